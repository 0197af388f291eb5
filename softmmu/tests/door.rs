//! What subscribes to `before` sees the old bytes of every writer: put back in reverse, they give RAM as it was.

mod common;

use common::{DEV, Live, RAM, ROM, Tbs, Vm, pa, va};
use notdirty_core::{
    BeforeWrite, CanWait, DirtyClient, DirtyLog, PAGE_SIZE, Pinned, RamAddr, RamBlock, RamBlockSpec, RamError, RamList,
    pin,
};
use notdirty_softmmu::{AccessError, AddressSpace, AmoOp, MemSize, MmuIdx};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

const PAGES: u64 = 16;
/// Where the last page of the block begins and a small device lies behind the first half of it.
const MIXED: u64 = RAM + (PAGES - 1) * PAGE_SIZE;

/// Keeps each page as it was before its first write, in order.
struct Undo {
    list: Weak<RamList>,
    saved: Mutex<Vec<(RamAddr, Vec<u8>)>>,
}

impl BeforeWrite for Undo {
    fn before(&self, ram: RamAddr, len: u64, _: &CanWait) {
        let list = self.list.upgrade().unwrap();
        let mut saved = self.saved.lock().unwrap();
        for page in notdirty_core::PageRange::of_bytes(ram, len).iter() {
            if saved.iter().any(|(at, _)| *at == page.base()) {
                continue;
            }
            let guard = pin();
            let block = list.find(page.base(), &guard).unwrap();
            let mut bytes = vec![0; PAGE_SIZE as usize];
            block.read_bytes(page.base().get() - block.offset().get(), &mut bytes).unwrap();
            saved.push((page.base(), bytes));
        }
    }
}

struct World {
    ram: Arc<RamList>,
    space: Arc<AddressSpace>,
    /// Mapped, with the last page shared with a device; ROM; and one that is not mapped and can be resized.
    blocks: [Arc<RamBlock>; 3],
    mmu: Live,
    tbs: Tbs,
}

/// Every way in which RAM is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Writer {
    Store,
    Misaligned,
    OverTwoPages,
    MixedPage,
    ToCode,
    Amo,
    Sc,
    Host,
    HostToRom,
    ListWrite,
    ListFill,
    ListStore,
    Discard,
    Resize,
}

const ALL: [Writer; 14] = {
    use Writer::*;
    [
        Store,
        Misaligned,
        OverTwoPages,
        MixedPage,
        ToCode,
        Amo,
        Sc,
        Host,
        HostToRom,
        ListWrite,
        ListFill,
        ListStore,
        Discard,
        Resize,
    ]
};

impl World {
    fn new() -> World {
        let ram = Arc::new(RamList::new());
        let spec = |name: &str| RamBlockSpec::new(name, PAGES * PAGE_SIZE).resizable(true);
        let blocks = ["ram", "rom", "dimm"].map(|name| ram.add(spec(name)).unwrap());
        for (n, block) in blocks.iter().enumerate() {
            for page in 0..PAGES {
                block.fill_raw(page * PAGE_SIZE, PAGE_SIZE, (n as u64 * PAGES + page + 1) as u8).unwrap();
            }
        }
        let space = AddressSpace::new(ram.clone());
        space.map_ram(pa(RAM), &blocks[0], 0, PAGES * PAGE_SIZE, 0).unwrap();
        space.map_rom(pa(ROM), &blocks[1], 0, PAGES * PAGE_SIZE, 0).unwrap();
        let dev = common::Regs::new(notdirty_softmmu::SizeMask::ALL);
        space.map_mmio(pa(MIXED + 0x800), 16, dev, 1).unwrap();
        let mmu = Live::new(&space, 0);
        let tbs = Tbs::new(&ram);
        World { ram, space, blocks, mmu, tbs }
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        let read = |block: &Arc<RamBlock>| {
            let mut bytes = vec![0; block.used_length() as usize];
            block.read_bytes(0, &mut bytes).unwrap();
            bytes
        };
        self.blocks.iter().map(read).collect()
    }

    /// Writes somewhere in `page`, which is none of the last two.
    fn write(&mut self, writer: Writer, page: u64, value: u64) {
        let World { ram, space, blocks: [block, _, dimm], mmu, tbs } = self;
        let (off, idx, b8) = (page * PAGE_SIZE, MmuIdx::M, MemSize::B8);
        let at = va(RAM + off + 0x100);
        let small = value.to_le_bytes();
        match writer {
            Writer::Store => _ = mmu.store(tbs, idx, at, b8, value).unwrap(),
            Writer::Misaligned => _ = mmu.store(tbs, idx, va(at.get() + 3), b8, value).unwrap(),
            Writer::OverTwoPages => _ = mmu.store(tbs, idx, va(RAM + off + PAGE_SIZE - 3), b8, value).unwrap(),
            Writer::MixedPage => _ = mmu.store(tbs, idx, va(MIXED + 8 * page), b8, value).unwrap(),
            Writer::ToCode => {
                tbs.translate(mmu, block.offset().get() + off + 0x100, 8);
                let _ = mmu.store(tbs, idx, at, b8, value).unwrap();
            }
            Writer::Amo => drop(mmu.amo(tbs, idx, at, b8, AmoOp::Xor, value | 1).unwrap()),
            Writer::Sc => {
                mmu.lr(tbs, idx, at, b8).unwrap();
                assert!(mmu.sc(tbs, idx, at, b8, value).unwrap().0);
            }
            Writer::Host => space.write(pa(RAM + off + 0x7f0), &[value as u8; 0x900]).unwrap(),
            Writer::HostToRom => space.write(pa(ROM + off), &small).unwrap(),
            Writer::ListWrite => ram.write(dimm, off + 5, &small).unwrap(),
            Writer::ListFill => ram.fill(dimm, off + 0xff0, 0x20, value as u8).unwrap(),
            Writer::ListStore => ram.store(dimm, off + 8, 4, value).unwrap(),
            Writer::Discard => ram.discard(if value & 1 == 0 { block } else { dimm }, off, PAGE_SIZE).unwrap(),
            Writer::Resize => {
                ram.resize(dimm, (page + 1) * PAGE_SIZE).unwrap();
                ram.release_tail(dimm).unwrap();
                ram.resize(dimm, PAGES * PAGE_SIZE).unwrap();
            }
        }
    }
}

/// What random numbers are for.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Two intervals between checkpoints, each of `steps` writes by some of `writers`.
fn put_back(writers: &[Writer], seed: u64, steps: u64) {
    let mut w = World::new();
    w.mmu.park();
    let client = w.ram.add_client("checkpoint").unwrap();
    let log: DirtyLog = w.ram.log(client).start().unwrap();
    let undo = Arc::new(Undo { list: Arc::downgrade(&w.ram), saved: Mutex::default() });
    let _subscribed = w.ram.before_writes(Some(&log), undo.clone());
    let (golden, mut seed) = (w.bytes(), seed | 1);
    for _ in 0..2 {
        let _ = w.mmu.start(&mut w.tbs);
        for _ in 0..steps {
            let writer = writers[(random(&mut seed) % writers.len() as u64) as usize];
            let (page, value) = (random(&mut seed) % (PAGES - 2), random(&mut seed));
            w.write(writer, page, value);
        }
        w.mmu.park();
        assert_ne!(w.bytes(), golden, "{writers:?} wrote nothing");
        // As a restore does: what the log names, from what was kept; its own work is not told to it.
        let dirty = log.sync(None).unwrap().commit();
        let saved = std::mem::take(&mut *undo.saved.lock().unwrap());
        for (at, bytes) in saved.iter().rev() {
            let block = w.ram.find(*at, &pin()).unwrap().clone();
            w.ram.write_for(&log, &block, at.get() - block.offset().get(), bytes).unwrap();
        }
        assert!(w.bytes() == golden, "RAM is not as it was after {writers:?}");
        let kept: BTreeMap<_, _> = saved.iter().map(|(at, _)| (at.page(), ())).collect();
        // A resize marks all of its block, whatever becomes of its bytes.
        let resized = |page| writers.contains(&Writer::Resize) && w.blocks[2].pages().contains(page);
        let mut pages = dirty.ranges().flat_map(|range| range.iter());
        assert!(pages.all(|page| resized(page) || kept.contains_key(&page)), "a page is dirty that was not kept");
        assert!(kept.keys().all(|page| dirty.contains(*page)), "a page was written by {writers:?} and is not dirty");
        assert!(undo.saved.lock().unwrap().is_empty(), "its own restore was kept");
        assert_eq!(log.sync(None).unwrap().commit().count(), 0, "its own restore is dirty");
    }
}

#[test]
fn the_old_bytes_of_each_writer_put_back_give_ram_as_it_was() {
    for writer in ALL {
        put_back(&[writer], 7, 3);
    }
}

#[test]
fn the_old_bytes_of_any_mix_of_writers_put_back_give_ram_as_it_was() {
    for seed in 0..60 {
        put_back(&ALL, seed * 0x9e37_79b9 + 1, 1 + seed);
    }
}

/// Counts.
#[derive(Default)]
struct Counts(AtomicU64);

impl BeforeWrite for Counts {
    fn before(&self, _: RamAddr, _: u64, _: &CanWait) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_writer_that_holds_a_guard_is_refused_while_something_subscribes_and_writes_nothing() {
    let mut vm = Vm::new();
    let calls = Arc::<Counts>::default();
    let guard = pin();
    vm.ram.write(&vm.block, 0, b"x").unwrap();
    let subscribed = vm.ram.before_writes(None, calls.clone());
    assert!(matches!(vm.ram.write(&vm.block, 0, b"y"), Err(RamError::Pinned(Pinned))));
    assert_eq!(vm.space.write(pa(RAM), b"y"), Err(AccessError::Pinned { addr: pa(RAM) }));
    vm.track(vm.page(0), DirtyClient::VGA);
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.store(RAM, MemSize::B1, 0x79).is_err());
    assert_eq!((vm.block.load(0, 1).unwrap(), calls.0.load(Ordering::Relaxed)), (u64::from(b'x'), 0));
    drop(guard);
    vm.put(RAM, MemSize::B1, 0x79);
    vm.ram.write(&vm.block, 0, b"y").unwrap();
    assert_eq!(calls.0.load(Ordering::Relaxed), 2);
    drop(subscribed);
    vm.ram.write(&vm.block, 0, b"z").unwrap();
    assert_eq!(calls.0.load(Ordering::Relaxed), 2, "it is over");
}

#[test]
fn an_access_that_is_refused_or_goes_to_a_device_has_no_before() {
    let mut vm = Vm::new();
    let calls = Arc::<Counts>::default();
    let _subscribed = vm.ram.before_writes(None, calls.clone());
    vm.put(DEV, MemSize::B4, 1);
    vm.put(ROM, MemSize::B4, 1);
    assert!(vm.store(0x4000_0000, MemSize::B4, 1).is_err());
    assert!(vm.ram.write(&vm.block, u64::MAX, b"x").is_err() && vm.ram.write(&vm.block, 0x2_0000, b"x").is_err());
    assert_eq!(calls.0.load(Ordering::Relaxed), 0);
}
