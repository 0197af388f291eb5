//! RAM that is yet to come, one test for each way to it: nothing is made of a missing page, and an access to one was not made.

use notdirty_core::{MissingPages, PAGE_SIZE, PageBytes, PageSource, RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{
    Access, AccessError, AccessKind, AddressSpace, AmoOp, CodeInvalidator, FaultCause, GuestPhys, GuestVirt, Hooks,
    LiveMmu, MemFault, MemSize, MmuIdx, NoHooks, Physical, Rights, SoftMmu, Translation,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RAM: u64 = 0x8000_0000;
const PAGES: u64 = 8;
const M: MmuIdx = MmuIdx::M;

/// Counts what is asked for.
#[derive(Default)]
struct Asked(AtomicU64);

impl PageSource for Asked {
    fn request(&self, _: &Arc<RamBlock>, _: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    space: Arc<AddressSpace>,
    block: Arc<RamBlock>,
    asked: Arc<Asked>,
}

impl Rig {
    fn new() -> Rig {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap();
        let space = AddressSpace::new(list);
        space.map_ram(GuestPhys::new(RAM), &block, 0, PAGES * PAGE_SIZE, 0).unwrap();
        Rig { space, block, asked: Arc::default() }
    }

    fn mmu(&self) -> SoftMmu {
        let mut mmu = SoftMmu::new(&self.space, 0).unwrap();
        mmu.set_flat_addend((self.block.host() as u64).wrapping_sub(RAM));
        mmu.set_flat_start(RAM);
        mmu
    }

    fn until_asked(&self, pages: u64) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.asked.0.load(Ordering::Relaxed) < pages {
            assert!(Instant::now() < until, "{pages} pages are not asked for");
            std::thread::yield_now();
        }
    }

    fn take(&self) -> Arc<MissingPages> {
        let pages = self.space.ram().set_missing(self.asked.clone(), [self.block.clone()]).unwrap();
        pages.listen().unwrap();
        pages
    }
}

fn va(page: u64, off: u64) -> GuestVirt {
    GuestVirt::new(RAM + page * PAGE_SIZE + off)
}

fn bring(pages: &MissingPages, block: &RamBlock, page: u64) {
    assert!(pages.place(block, page * PAGE_SIZE, PageBytes::Copy(&[page as u8 + 1; PAGE_SIZE as usize])).unwrap());
}

#[track_caller]
fn is_missing<T: std::fmt::Debug>(mmu: &mut LiveMmu, done: Result<T, MemFault>, page: u64, kind: AccessKind) {
    let fault = done.unwrap_err();
    assert_eq!((fault.cause, fault.kind), (FaultCause::Missing, kind));
    let (ram, wants) = mmu.take_missing().expect("it says which page it waits for");
    assert_eq!((ram.page().get(), wants), (page, kind));
    assert!(mmu.take_missing().is_none());
}

#[test]
fn no_access_is_made_of_a_missing_page_and_each_is_made_once_it_is_here() {
    let rig = Rig::new();
    let mut mmu = rig.mmu();
    let pages = rig.take();
    let mut live = mmu.run(&mut NoHooks);
    let h = &mut NoHooks;
    for size in MemSize::ALL {
        let done = live.load(h, M, va(0, 8), size);
        is_missing(&mut live, done, 0, AccessKind::Load);
        let done = live.store(h, M, va(1, 9), size, !0);
        is_missing(&mut live, done, 1, AccessKind::Store);
    }
    let done = live.load_missed(h, va(0, 16), MemSize::B8);
    is_missing(&mut live, done, 0, AccessKind::Load);
    let done = live.store_missed(h, va(0, 16), MemSize::B8, 1);
    is_missing(&mut live, done, 0, AccessKind::Store);
    let done = live.amo(h, M, va(2, 0), MemSize::B4, AmoOp::Add, 1);
    is_missing(&mut live, done, 2, AccessKind::Store);
    let done = live.lr(h, M, va(2, 0), MemSize::B4);
    is_missing(&mut live, done, 2, AccessKind::Load);
    let done = live.sc(h, M, va(2, 0), MemSize::B4, 5);
    is_missing(&mut live, done, 2, AccessKind::Store);
    let done = live.fetch(h, M, va(3, 0)).map(|_| ());
    is_missing(&mut live, done, 3, AccessKind::Fetch);
    let done = live.fetch_u32(h, M, va(3, 0));
    is_missing(&mut live, done, 3, AccessKind::Fetch);
    // Over two pages, of which the second is missing: nothing of the first is written.
    bring(&pages, &rig.block, 4);
    let done = live.store(h, M, va(4, PAGE_SIZE - 2), MemSize::B8, 0);
    is_missing(&mut live, done, 5, AccessKind::Store);
    assert_eq!(live.load(h, M, va(4, PAGE_SIZE - 4), MemSize::B4), Ok(0x0505_0505));
    let done = live.load(h, M, va(4, PAGE_SIZE - 2), MemSize::B4);
    is_missing(&mut live, done, 5, AccessKind::Load);
    assert!(live.stats().missing > 10 && live.stats().faults == 0);
    for page in [0, 1, 2, 3, 5] {
        bring(&pages, &rig.block, page);
    }
    assert_eq!(live.load(h, M, va(0, 8), MemSize::B2), Ok(0x0101));
    assert_eq!(live.store(h, M, va(4, PAGE_SIZE - 2), MemSize::B4, 0x6070_8090).map(|_| ()), Ok(()));
    assert_eq!(live.load(h, M, va(4, PAGE_SIZE - 4), MemSize::B8), Ok(0x0606_6070_8090_0505));
    assert_eq!(live.amo(h, M, va(2, 0), MemSize::B4, AmoOp::Add, 1).unwrap().0, 0x0303_0303);
    assert_eq!(live.lr(h, M, va(2, 0), MemSize::B4), Ok(0x0303_0304));
    assert!(live.sc(h, M, va(2, 0), MemSize::B4, 5).unwrap().0);
    assert_eq!(live.fetch_u32(h, M, va(3, 4)), Ok(Some(0x0404_0404)));
}

#[test]
fn what_a_vcpu_had_of_a_page_that_goes_missing_is_dropped() {
    let rig = Rig::new();
    rig.space.write(GuestPhys::new(RAM), &[9; 64]).unwrap();
    let mut mmu = rig.mmu();
    let mut live = mmu.run(&mut NoHooks);
    let h = &mut NoHooks;
    assert_eq!(live.load(h, M, va(0, 0), MemSize::B1), Ok(9));
    live.store(h, M, va(0, 8), MemSize::B1, 7).map(|_| ()).unwrap();
    live.fetch(h, M, va(0, 0)).map(|_| ()).unwrap();
    drop(live);
    let pages = rig.take();
    let mut live = mmu.run(h);
    let done = live.load(h, M, va(0, 0), MemSize::B1);
    is_missing(&mut live, done, 0, AccessKind::Load);
    let done = live.fetch(h, M, va(0, 0)).map(|_| ());
    is_missing(&mut live, done, 0, AccessKind::Fetch);
    bring(&pages, &rig.block, 0);
    assert_eq!(live.load(h, M, va(0, 0), MemSize::B1), Ok(1));
}

/// Each page is where it is, and all may be done: as of machine mode.
struct Everywhere;

impl CodeInvalidator for Everywhere {
    fn code_written(&mut self, _: notdirty_core::RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Everywhere {
    fn translate(&mut self, _: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        Ok(Translation { everywhere: true, ..Translation::identity(access.va) })
    }
}

#[test]
fn loads_of_flat_ram_need_entries_while_anything_is_missing() {
    let rig = Rig::new();
    let mut mmu = rig.mmu();
    let whole = |live: &LiveMmu| live.selected().whole;
    let mut live = mmu.run(&mut Everywhere);
    live.load(&mut Everywhere, M, va(0, 0), MemSize::B8).unwrap();
    assert!(whole(&live) > 7 * PAGE_SIZE);
    drop(live);
    let pages = rig.take();
    bring(&pages, &rig.block, 0);
    let mut live = mmu.run(&mut Everywhere);
    assert_eq!(whole(&live), 0);
    live.load(&mut Everywhere, M, va(0, 0), MemSize::B8).unwrap();
    assert_eq!(whole(&live), 0, "nor once an entry is made");
    let mut other = rig.mmu();
    let mut new = other.run(&mut Everywhere);
    new.load(&mut Everywhere, M, va(0, 0), MemSize::B8).unwrap();
    assert_eq!(whole(&new), 0, "nor of a vCPU that comes later");
    drop(new);
    (1..PAGES).for_each(|page| bring(&pages, &rig.block, page));
    assert!(live.take_kick(), "it is told that all is here");
    let _ = live.serve_posted(&mut Everywhere);
    assert!(whole(&live) > 7 * PAGE_SIZE, "and needs no entries any more");
}

/// Each page is where it is, of S-mode too, and says so before it is asked for; the one page may not be loaded from.
struct Row(Option<u64>);

impl CodeInvalidator for Row {
    fn code_written(&mut self, _: notdirty_core::RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Row {
    fn look(&mut self, _: &mut Physical<'_>, access: Access) -> Option<Translation> {
        let refused = self.0.is_some_and(|page| access.va == va(page, 0));
        let rights = Rights { load: !refused, ..Rights::ALL };
        Some(Translation { rights, ..Translation::identity(access.va) })
    }
}

#[test]
fn what_lies_between_pages_is_not_taken_for_loadable_while_pages_are_missing_or_where_rights_are() {
    for (missing, refused, run) in [(false, None, 6), (false, Some(4), 3), (true, None, 1)] {
        let rig = Rig::new();
        let mut mmu = rig.mmu();
        let pages = missing.then(|| rig.take());
        for (pages, page) in pages.iter().flat_map(|pages| [(pages, 1), (pages, 6)]) {
            bring(pages, &rig.block, page);
        }
        let mut row = Row(refused);
        let mut live = mmu.run(&mut row);
        for page in [1, 6] {
            live.load(&mut row, MmuIdx::S, va(page, 0), MemSize::B8).unwrap();
        }
        assert_eq!((live.selected().run + 7) / PAGE_SIZE, run, "{missing} {refused:?}");
    }
}

/// A table of one level at the last page: each page of RAM is where its word says, if that is not 0.
struct Walks {
    asked: u32,
}

impl CodeInvalidator for Walks {
    fn code_written(&mut self, _: notdirty_core::RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Walks {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        self.asked += 1;
        let at = GuestPhys::new(RAM + (PAGES - 1) * PAGE_SIZE + (access.va.get() >> 12 & 7) * 8);
        let entry = memory.read(at).ok_or(FaultCause::Access)?;
        let page = GuestPhys::new(RAM + (entry & 7) * PAGE_SIZE);
        Ok(Translation { page, rights: Rights::ALL, ..Translation::identity(access.va) })
    }
}

#[test]
fn a_walk_waits_for_its_tables_and_its_own_error_does_not_count() {
    let rig = Rig::new();
    let mut mmu = rig.mmu();
    let pages = rig.take();
    let mut walks = Walks { asked: 0 };
    let mut live = mmu.run(&mut walks);
    for kind in [AccessKind::Load, AccessKind::Store, AccessKind::Fetch] {
        let done = match kind {
            AccessKind::Load => live.load(&mut walks, MmuIdx(1), va(2, 0), MemSize::B8).map(|_| ()),
            AccessKind::Store => live.store(&mut walks, MmuIdx(1), va(2, 0), MemSize::B8, 1).map(|_| ()),
            AccessKind::Fetch => live.fetch(&mut walks, MmuIdx(1), va(2, 0)).map(|_| ()),
        };
        is_missing(&mut live, done, PAGES - 1, kind);
    }
    // Page 2 is where page 3 is, which is missing, too.
    let mut table = [0; PAGE_SIZE as usize];
    table[16] = 3;
    pages.place(&rig.block, (PAGES - 1) * PAGE_SIZE, PageBytes::Copy(&table)).unwrap();
    let done = live.load(&mut walks, MmuIdx(1), va(2, 0), MemSize::B8);
    is_missing(&mut live, done, 3, AccessKind::Load);
    bring(&pages, &rig.block, 3);
    assert_eq!(live.load(&mut walks, MmuIdx(1), va(2, 0), MemSize::B2), Ok(0x0404));
    assert_eq!(walks.asked, 5);
}

#[test]
fn a_part_of_a_page_and_rom_are_missing_as_ram_is() {
    let rig = Rig::new();
    let at = |at: u64| GuestPhys::new(at);
    // A page of two regions, and ROM.
    rig.space.map_ram(at(0x1000), &rig.block, 0x1000, 0x800, 0).unwrap();
    rig.space.map_rom(at(0x4000), &rig.block, 0x2000, 0x1000, 0).unwrap();
    let mut mmu = rig.mmu();
    let pages = rig.take();
    let mut live = mmu.run(&mut NoHooks);
    let h = &mut NoHooks;
    let done = live.load(h, M, GuestVirt::new(0x1008), MemSize::B8);
    is_missing(&mut live, done, 1, AccessKind::Load);
    let done = live.store(h, M, GuestVirt::new(0x4008), MemSize::B8, 1);
    is_missing(&mut live, done, 2, AccessKind::Store);
    bring(&pages, &rig.block, 1);
    bring(&pages, &rig.block, 2);
    assert_eq!(live.load(h, M, GuestVirt::new(0x1008), MemSize::B1), Ok(2));
    live.store(h, M, GuestVirt::new(0x4008), MemSize::B8, 1).map(|_| ()).unwrap();
    assert_eq!(live.load(h, M, GuestVirt::new(0x4008), MemSize::B1), Ok(3));
}

#[test]
fn host_accesses_wait_and_a_parked_vcpu_sleeps_until_its_page_is_here() {
    let rig = Rig::new();
    let mut mmu = rig.mmu();
    let pages = rig.take();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = [0; 16];
            rig.space.read(GuestPhys::new(RAM + PAGE_SIZE - 8), &mut bytes).map(|()| bytes)
        });
        rig.until_asked(2);
        bring(&pages, &rig.block, 1);
        bring(&pages, &rig.block, 0);
        assert_eq!(reader.join().unwrap().unwrap(), [[1; 8], [2; 8]].concat()[..]);
        let mut live = mmu.run(&mut NoHooks);
        live.load(&mut NoHooks, M, va(2, 0), MemSize::B1).unwrap_err();
        let (page, _) = live.take_missing().unwrap();
        drop(live);
        assert!(!mmu.wait_for_page(page, 0, Some(Duration::from_millis(1))).unwrap());
        let placer = scope.spawn(|| {
            rig.until_asked(3);
            // While it waits, what asks the vCPU has its answer.
            assert!(rig.space.safe_point().wait(None));
            bring(&pages, &rig.block, 2);
        });
        while !mmu.wait_for_page(page, 0, None).unwrap() {
            // Kicked by the request above.
            drop(mmu.run(&mut NoHooks));
        }
        placer.join().unwrap();
    });
    assert_eq!(rig.asked.0.load(Ordering::Relaxed), 3, "asked for once each");
    pages.end("it is a test");
    let mut bytes = [0; 8];
    let missing = AccessError::Missing { addr: GuestPhys::new(RAM + 3 * PAGE_SIZE) };
    assert_eq!(rig.space.read(GuestPhys::new(RAM + 3 * PAGE_SIZE), &mut bytes), Err(missing));
    assert_eq!(rig.space.write(GuestPhys::new(RAM + 3 * PAGE_SIZE), &bytes), Err(missing));
}
