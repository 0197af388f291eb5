//! What safe code can do wrong: it may get wrong answers for it, but no dangling pointer and no panic.

mod common;

use common::{Live, RAM, Vm, pa, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{
    DirtyClient, DirtyLog, LogError, NotServed, PageIndex, PageRange, RamAddr, RamBlockSpec, RamError, RamList,
    barrier, pin,
};
use notdirty_softmmu::raw::{self, Request};
use notdirty_softmmu::tlb::entry;
use notdirty_softmmu::{
    Access, AccessError, AddressSpace, AmoOp, Asid, CodeInvalidator, FaultCause, GuestPhys, Hooks, LiveMmu, MapError,
    MemSize, MmioDevice, MmuIdx, NoHooks, Physical, Resolved, Rights, SoftMmu, Translation,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Panics when code dies.
struct Faulty;

impl CodeInvalidator for Faulty {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        panic!("as the test wants")
    }
}

impl Hooks for Faulty {}

/// A kill in front of whatever else is posted, and a serve in which it panics.
fn serve_and_panic(mmu: &mut LiveMmu) {
    raw::post(mmu.port(), Request::KillCode { ram: RamAddr::new(0), len: 1 });
    assert!(catch_unwind(AssertUnwindSafe(|| mmu.serve(&mut Faulty))).is_err());
}

#[test]
fn a_re_arm_behind_a_hook_that_panics_is_not_answered_before_it_is_done() {
    let mut vm = Vm::new();
    vm.put(RAM, MemSize::B8, 1);
    assert!(vm.mmu.is_store_fast(va(RAM)));
    vm.ram.dirty().test_and_clear(vm.page(0), DirtyClient::MIGRATION, &pin());
    let ticket = raw::post(vm.mmu.port(), Request::Rearm(PageRange::of_page(vm.page(0))));
    serve_and_panic(&mut vm.mmu);
    assert!(!raw::served(vm.mmu.port(), ticket) && vm.mmu.port().kicked());
    // It panics again, and a kick and a request that have nothing to do with it come in between.
    serve_and_panic(&mut vm.mmu);
    vm.mmu.port().kick();
    let late = raw::post(vm.mmu.port(), Request::Rearm(PageRange::of_page(vm.page(0x2000))));
    let report = vm.mmu.serve(&mut NoHooks);
    assert!(raw::served(vm.mmu.port(), ticket) && raw::served(vm.mmu.port(), late));
    assert!(!vm.mmu.is_store_fast(va(RAM)), "answered, and a store is fast and unheard: {report:?}");
}

#[test]
fn an_unmapping_behind_a_hook_that_panics_is_done_with_the_next_one() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let id = space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
    let mut mmu = Live::new(&space, 0);
    let store = |mmu: &mut LiveMmu| mmu.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, 1).is_ok();
    assert!(store(&mut mmu));
    raw::post(mmu.port(), Request::KillCode { ram: block.offset(), len: 1 });
    space.unmap(id).unwrap();
    let served = catch_unwind(AssertUnwindSafe(|| mmu.serve(&mut Faulty)));
    assert!(served.is_err() && mmu.port().kicked(), "the unmapping was taken, too, and is there again");
    // The next change brings a view that does not hold the block; the test does, so that a failure is no crash.
    space.map_ram(pa(RAM + 0x10_0000), &block, 0, 0x1000, 0).unwrap();
    let report = mmu.serve(&mut NoHooks);
    assert_eq!((report.remapped, report.flushed), (2, false));
    assert!(!store(&mut mmu), "the entry outlived the view that it came from");
}

#[test]
fn a_vcpu_that_is_back_has_served_before_it_stores() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let id = space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
    let mut mmu = SoftMmu::new(&space, 0).unwrap();
    let store =
        |mmu: &mut SoftMmu| mmu.run(&mut NoHooks).store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, 1).is_ok();
    assert!(store(&mut mmu));
    let page = PageRange::of_page(block.offset().page());
    ram.dirty().test_and_clear(page.start, DirtyClient::MIGRATION, &pin());
    ram.rearm(&[page], None).unwrap();
    assert!(store(&mut mmu) && ram.dirty().test(page.start, DirtyClient::MIGRATION, &pin()));
    space.unmap(id).unwrap();
    ram.remove(&block).unwrap();
    let gone = Arc::downgrade(&block);
    drop(block);
    barrier().unwrap();
    assert!(gone.upgrade().is_some(), "its view keeps the block");
    assert!(!store(&mut mmu));
    barrier().unwrap();
    assert!(gone.upgrade().is_none());
}

#[test]
fn a_vcpu_that_runs_is_not_started_again_and_an_old_start_does_not_park_it() {
    let vm = Vm::new();
    let mut mmu = SoftMmu::new(&vm.space, 0).unwrap();
    // SAFETY: the result is used for no access.
    let is_live = |mmu: &mut SoftMmu| unsafe { mmu.live() }.is_some();
    assert!(!is_live(&mut mmu));
    let (first, _) = mmu.start(&mut NoHooks).unwrap();
    assert!(mmu.start(&mut NoHooks).is_none() && is_live(&mut mmu));
    assert!(!mmu.wait(Some(Duration::ZERO)) && !is_live(&mut mmu), "it slept, and has to start again");
    let (second, _) = mmu.start(&mut NoHooks).unwrap();
    drop(first);
    assert!(is_live(&mut mmu));
    drop(second);
    assert!(!is_live(&mut mmu));
}

#[test]
fn a_wait_for_a_vcpu_on_its_own_thread_is_refused_at_once() {
    struct Syncs(DirtyLog, Mutex<Option<LogError>>);
    impl MmioDevice for Syncs {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {
            *self.1.lock().unwrap() = self.0.sync(None).err();
        }
    }
    let mut vm = Vm::new();
    vm.mmu.park();
    let log = vm.ram.log(DirtyClient::VGA).start().unwrap();
    let dev = Arc::new(Syncs(log, Mutex::default()));
    vm.space.map_mmio(pa(0x5000_0000), 4096, dev.clone(), 0).unwrap();
    let _ = vm.mmu.start(&mut vm.tbs);
    vm.put(RAM, MemSize::B8, 1);
    vm.put(0x5000_0000, MemSize::B4, 1);
    assert_eq!(dev.1.lock().unwrap().take(), Some(LogError::NotServed(NotServed::OwnThread)));
    // Nothing is lost of it.
    vm.mmu.park();
    assert!(dev.0.sync(None).unwrap().pages().contains(vm.page(0)));
    // Nor is a change of the map waited for by who would have to answer.
    let _ = vm.mmu.start(&mut vm.tbs);
    let id = vm.space.map_ram(pa(0x6000_0000), &vm.block, 0, 0x1000, 0).unwrap();
    assert!(!vm.space.unmap_and_wait(id, None).unwrap());
}

/// A thread that waits for a vCPU is told that it is the vCPU's own; a vCPU that ran on another one could not be told.
#[test]
fn a_vcpu_runs_on_no_other_thread_than_that_of_its_start() {
    let vm = Vm::new();
    let mut mmu = SoftMmu::new(&vm.space, 0).unwrap();
    let (started, _) = mmu.start(&mut NoHooks).unwrap();
    std::mem::forget(started);
    // SAFETY: the result is used for no access.
    let is_live = |mmu: &mut SoftMmu| unsafe { mmu.live() }.is_some();
    assert!(is_live(&mut mmu));
    let mut mmu = std::thread::spawn(move || {
        assert!(!is_live(&mut mmu) && mmu.start(&mut NoHooks).is_none(), "it runs elsewhere");
        let running = mmu.run(&mut NoHooks);
        drop(running);
        let (started, _) = mmu.start(&mut NoHooks).expect("it parked");
        assert!(is_live(&mut mmu));
        std::mem::forget(started);
        mmu
    })
    .join()
    .unwrap();
    assert!(!is_live(&mut mmu));
    drop(mmu.run(&mut NoHooks));
    assert!(mmu.start(&mut NoHooks).is_some());
}

#[test]
fn a_device_that_calls_itself_is_refused_and_the_stack_holds() {
    struct Calls(Mutex<Vec<AccessError>>, Weak<AddressSpace>);
    impl MmioDevice for Calls {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            7
        }
        fn write(&self, offset: u64, _: MemSize, value: u64) {
            let space = self.1.upgrade().unwrap();
            let (at, mut into) = (pa(0x5000_0000 + offset), [0; 4]);
            let errors = [space.write(at, &value.to_le_bytes()).err(), space.read(at, &mut into).err()];
            self.0.lock().unwrap().extend(errors.into_iter().flatten());
            // Another device, which calls this one.
            space.write(pa(0x5001_0000), &[0; 4]).unwrap();
        }
    }
    struct Other(Weak<AddressSpace>);
    impl MmioDevice for Other {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {
            assert!(self.0.upgrade().unwrap().write(pa(0x5000_0000), &[0; 4]).is_err());
        }
    }
    let mut vm = Vm::new();
    let space = Arc::downgrade(&vm.space);
    let dev = Arc::new(Calls(Mutex::default(), space.clone()));
    vm.space.map_mmio(pa(0x5000_0000), 4096, dev.clone(), 0).unwrap();
    vm.space.map_mmio(pa(0x5001_0000), 4096, Arc::new(Other(space)), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let again = |n: u64| AccessError::Reentered { addr: pa(0x5000_0000 + n) };
    vm.put(0x5000_0008, MemSize::B4, 1);
    assert_eq!(std::mem::take(&mut *dev.0.lock().unwrap()), [again(8), again(8)]);
    vm.space.write(pa(0x5000_0010), &[1, 0, 0, 0]).unwrap();
    assert_eq!(std::mem::take(&mut *dev.0.lock().unwrap()), [again(16), again(16)]);
    // It is over with the call.
    let mut into = [0; 4];
    vm.space.read(pa(0x5000_0000), &mut into).unwrap();
    assert_eq!(into[0], 7);
}

#[test]
fn a_device_that_stores_to_itself_with_a_vcpu_of_its_own_faults_there_and_the_stack_holds() {
    struct Runs(Mutex<Vec<bool>>, Weak<AddressSpace>);
    impl MmioDevice for Runs {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            let mut own = SoftMmu::new(&self.1.upgrade().unwrap(), 0).unwrap();
            let faults = own.run(&mut NoHooks).load(&mut NoHooks, MmuIdx::M, va(0x5000_0000), MemSize::B4).is_err();
            self.0.lock().unwrap().push(faults);
            7
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {
            let mut own = SoftMmu::new(&self.1.upgrade().unwrap(), 0).unwrap();
            let faults = own.run(&mut NoHooks).store(&mut NoHooks, MmuIdx::M, va(0x5000_0000), MemSize::B4, 1).is_err();
            self.0.lock().unwrap().push(faults);
        }
    }
    let mut vm = Vm::new();
    let dev = Arc::new(Runs(Mutex::default(), Arc::downgrade(&vm.space)));
    vm.space.map_mmio(pa(0x5000_0000), 4096, dev.clone(), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    // Twice: the second time the device is known to the TLB.
    for _ in 0..2 {
        vm.put(0x5000_0008, MemSize::B4, 1);
    }
    let mut into = [0; 4];
    vm.space.read(pa(0x5000_0000), &mut into).unwrap();
    assert_eq!((into[0], &**dev.0.lock().unwrap()), (7, &[true; 3][..]));
}

#[test]
fn a_block_that_is_mapped_does_not_leave_its_list_and_one_that_has_left_is_not_mapped() {
    let vm = Vm::new();
    let dimm = vm.ram.add(RamBlockSpec::new("dimm", 0x2000)).unwrap();
    let id = vm.space.map_ram(pa(0x4000_0000), &dimm, 0, 0x2000, 0).unwrap();
    assert!(matches!(vm.ram.remove(&dimm), Err(RamError::Mapped { times: 1, .. })));
    assert!(vm.ram.write(&dimm, 0, b"still logged").is_ok());
    vm.space.unmap(id).unwrap();
    vm.ram.remove(&dimm).unwrap();
    let again = vm.space.map_ram(pa(0x4000_0000), &dimm, 0, 0x2000, 0);
    assert_eq!(again, Err(MapError::NotInList { block: "dimm".into() }));
    assert!(matches!(vm.ram.write(&dimm, 0, b"nobody hears"), Err(RamError::NotInList { .. })));
}

#[test]
fn re_arms_of_everything_are_counted_for_ever() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let mut mmu = Live::new(&space, 0);
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(u64::MAX) };
    for _ in 0..4 {
        raw::post(mmu.port(), Request::Rearm(all));
        raw::post(mmu.port(), Request::Rearm(all));
        let _ = mmu.serve(&mut NoHooks);
    }
}

#[test]
fn an_alias_does_not_grow_past_the_end_of_what_it_shows() {
    let space = AddressSpace::new(Arc::new(RamList::new()));
    let alias = space.map_alias(pa(0), pa(u64::MAX - 0xfff), 0x1000, 0).unwrap();
    assert!(matches!(space.resize_mapping(alias, 0x2000), Err(MapError::Wraps { .. })));
    // And nothing has changed.
    assert!(space.resize_mapping(alias, 0x1000).is_ok());
    space.unmap(alias).unwrap();
}

#[test]
fn vcpus_that_were_swapped_run_as_long_as_what_holds_them() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x1_0000)).unwrap();
    let space = AddressSpace::new(ram.clone());
    space.map_ram(pa(RAM), &block, 0, 0x1_0000, 0).unwrap();
    let (mut a, mut b) = (SoftMmu::new(&space, 0).unwrap(), SoftMmu::new(&space, 0).unwrap());
    let (mut first, mut second) = (a.run(&mut NoHooks), b.run(&mut NoHooks));
    std::mem::swap(&mut *first, &mut *second);
    let _ = second.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, 1).unwrap();
    assert!(second.is_store_fast(va(RAM)));
    drop(first);
    drop(a); // and with it the other one, which would have to answer
    let started = || ram.log(DirtyClient::VGA).timeout(Duration::ZERO).start().is_ok();
    assert!(!std::thread::scope(|scope| scope.spawn(started).join().unwrap()), "one that stores counts as parked");
    drop(second);
    assert!(started());
}

#[test]
fn a_write_for_a_log_of_another_list_says_so_and_writes_nothing() {
    let vm = Vm::new();
    let log = Arc::new(RamList::new()).log(DirtyClient::MIGRATION).start().unwrap();
    let refused = vm.space.write_for(&log, pa(RAM), b"bytes");
    assert_eq!(refused, Err(AccessError::OtherLog { addr: pa(RAM) }));
    let mut bytes = [1; 5];
    vm.space.read(pa(RAM), &mut bytes).unwrap();
    assert_eq!(bytes, [0; 5]);
}

#[test]
fn what_a_vcpu_that_runs_here_refuses_says_what_to_do() {
    let mut vm = Vm::new();
    let log = vm.space.ram().log(DirtyClient::MIGRATION).timeout(Duration::from_secs(9)).start();
    let why = log.expect_err("the vCPU runs on this thread").to_string();
    assert_eq!(why, "a vCPU that has to answer runs on this thread: ask from another, or while it is parked");
    let fault = vm.mmu.load(&mut NoHooks, MmuIdx::M, va(8), MemSize::B8).expect_err("a hole");
    assert_eq!(fault.to_string(), "load at 0x8: nothing there takes it");
}

#[test]
fn an_access_that_is_called_missed_is_done_like_any_other_though_its_entry_was_never_looked_for() {
    let mut vm = Vm::new();
    let start = vm.block.offset().get();
    let Vm { mmu, tbs, .. } = &mut vm;
    // Nothing was selected; nothing is there.
    assert!(mmu.load_missed(tbs, va(0x40), MemSize::B8).is_err());
    assert!(mmu.store_missed(tbs, va(u64::MAX - 2), MemSize::B8, 0).is_err());
    for idx in [MmuIdx::M, MmuIdx::S] {
        mmu.select(idx);
        for size in MemSize::ALL {
            let mut want = *mmu.stats();
            let value = 0x8182_8384_8586_8788 & size.mask();
            // Without an entry, with one, and with one beside code; then across two pages.
            for at in [RAM + 0x5008, RAM + 0x5008, RAM + 0x5010, RAM + 0x5008] {
                let _ = mmu.store_missed(tbs, va(at), size, value).unwrap();
                assert_eq!(mmu.load_missed(tbs, va(at), size), Ok(value));
                tbs.translate(mmu, start + 0x5800, 8);
            }
            assert_eq!(mmu.stats().misaligned, want.misaligned, "they are aligned");
            want.accesses += 8;
            assert_eq!(mmu.stats().accesses, want.accesses);
            if size != MemSize::B1 {
                for at in [RAM + 0x6ffd, RAM + 0x6fff, RAM + 0x6001] {
                    let _ = mmu.store_missed(tbs, va(at), size, value).unwrap();
                    assert_eq!(mmu.load_missed(tbs, va(at), size), Ok(value));
                }
                assert!(mmu.stats().misaligned > want.misaligned);
            }
            // Code that lies there dies.
            tbs.translate(mmu, start + 0x5008, 8);
            let killed = mmu.stats().killed;
            assert_ne!(mmu.store_missed(tbs, va(RAM + 0x5008), size, 1).unwrap().killed, 0);
            assert_eq!(mmu.stats().killed, killed + 1);
        }
        let _ = mmu.store_missed(tbs, va(common::DEV + 8), MemSize::B4, 5).unwrap();
        assert_eq!(mmu.load_missed(tbs, va(common::DEV + 8), MemSize::B4), Ok(5));
        assert!(mmu.load_missed(tbs, va(common::DEV + 9), MemSize::B4).is_err());
        let _ = mmu.store_missed(tbs, va(common::ROM), MemSize::B8, 5).unwrap();
        assert_eq!(mmu.load_missed(tbs, va(common::ROM), MemSize::B8), Ok(0));
    }
}

/// Says of every access something else, and changes what it finds on the way.
struct Liar {
    state: u64,
}

impl Liar {
    fn below(&mut self, n: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % n
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Around RAM, ROM, the device, what lies over RAM, holes, and the ends of the address space.
    fn place(&mut self) -> u64 {
        let base = [RAM, RAM, RAM + 0xf000, common::ROM, common::DEV, 0, 0u64.wrapping_sub(1 << 30), u64::MAX - 0x1fff];
        let base = base[self.below(8) as usize];
        base.wrapping_add(self.below(0x4000)).wrapping_sub(self.below(0x1000))
    }
}

impl CodeInvalidator for Liar {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        self.below(3) as usize
    }
}

impl Hooks for Liar {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        let at = GuestPhys::new(self.place());
        let old = memory.read(at).unwrap_or(1);
        if self.below(4) == 0 {
            let new = self.below(u64::MAX);
            let _ = memory.replace(self, at, old, new);
        }
        if self.below(8) == 0 {
            return Err(if self.flip() { FaultCause::Page } else { FaultCause::Access });
        }
        let rights = Rights { load: self.below(4) != 0, store: self.below(4) != 0, fetch: self.flip() };
        let page = if self.flip() { self.place() } else { access.va.get() };
        let size_log2 = [12, 12, 12, 0, 13, 21, 63, 64, 255][self.below(9) as usize];
        let (global, lasting) = (self.flip(), self.below(8) != 0);
        Ok(Translation { page: GuestPhys::new(page), size_log2, rights, global, lasting, everywhere: false })
    }
}

#[test]
fn a_translator_that_lies_gets_wrong_answers_and_stores_nowhere_but_to_what_is_mapped() {
    for seed in 1..60 {
        let mut vm = Vm::new();
        let canary = vm.ram.add(RamBlockSpec::new("canary", 0x8000)).unwrap();
        let mut liar = Liar { state: seed * 0x9e37_79b9 };
        let mut over = Vec::new();
        for _ in 0..3000 {
            let (at, n) = (va(liar.place()), liar.below(22));
            let idx = [MmuIdx::M, MmuIdx::S, MmuIdx::U][liar.below(3) as usize];
            let size = MemSize::ALL[liar.below(4) as usize];
            let value = liar.below(u64::MAX);
            let aligned = va(at.get() & !(size.bytes() - 1));
            let Vm { mmu, space, dev, block, rom, tbs, .. } = &mut vm;
            match n {
                0..3 => drop(mmu.load(&mut liar, idx, at, size)),
                3..6 => drop(mmu.store(&mut liar, idx, at, size, value)),
                6..8 => drop(mmu.load_missed(&mut liar, at, size)),
                8..10 => drop(mmu.store_missed(&mut liar, at, size, value)),
                10 => drop(mmu.amo(&mut liar, idx, aligned, MemSize::B8, AmoOp::Add, value)),
                11 => drop(mmu.fetch_u32(&mut liar, idx, va(at.get() & !1))),
                12 => mmu.select(idx),
                13 => mmu.set_asid(Asid(value as u32 % 40)),
                14 => mmu.flush_translations(
                    (!value.is_multiple_of(3)).then_some(at),
                    value.is_multiple_of(2).then_some(Asid(value as u32 % 40)),
                ),
                15 => drop(mmu.load_device(at, size, || ())),
                16 => drop(mmu.store_device(at, size, value, || ())),
                17 => {
                    let page = block.offset().page().get() + value % 16;
                    let _ = mmu.announce_code(PageIndex::new(page), value);
                }
                18 if value.is_multiple_of(8) => mmu.set_flat_addend(value),
                18 if value % 8 == 1 => mmu.set_tlb_shape(value as u32 % 20, value % 16 == 1),
                19 => {
                    let at = pa(RAM + value % 0x10 * 0x1000 + value % 2 * 0x800);
                    let priority = 1 + over.len() as i32;
                    over.extend(match value % 3 {
                        0 => space.map_mmio(at, 0x800, dev.clone(), priority),
                        1 => space.map_rom(pa(at.get() & !0xfff), rom, 0, 0x1000, priority),
                        _ => {
                            space.map_alias(pa(at.get() & !0xfff), pa(RAM + value / 64 % 16 * 0x1000), 0x1000, priority)
                        }
                    });
                }
                20 if !over.is_empty() => {
                    let id = over.swap_remove(value as usize % over.len());
                    space.unmap(id).unwrap();
                }
                _ => drop(mmu.serve(tbs)),
            }
        }
        let mut bytes = [0; 0x8000];
        canary.read_bytes(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "seed {seed}");
        let mut rom = [0; 0x2000];
        vm.rom.read_bytes(0, &mut rom).unwrap();
        assert!(rom.iter().all(|&byte| byte == 0), "seed {seed}: ROM was written");
        // To one that tells the truth, it is what the map says.
        let _ = vm.mmu.serve(&mut vm.tbs);
        vm.mmu.flush_tlb();
        vm.mmu.set_tlb_shape(14, false);
        for page in 0..16 {
            let at = RAM + page * 0x1000 + 0x400;
            let mut want = [0; 8];
            if matches!(vm.space.snapshot().resolve(pa(at)), Resolved::Ram { .. }) {
                vm.space.read(pa(at), &mut want).unwrap();
                assert_eq!(vm.load(at, MemSize::B8), Ok(u64::from_le_bytes(want)), "seed {seed}");
            }
        }
    }
}

#[test]
fn in_no_shape_of_the_table_does_an_empty_slot_match_the_page_whose_biased_address_is_zero() {
    let mut vm = Vm::new();
    let zero = 0u64.wrapping_sub(entry::BIAS);
    for (bits, hashed) in
        [(4, false), (4, true), (9, true), (entry::TLB_BITS, true), (1, false), (entry::TLB_BITS, false)]
    {
        vm.mmu.set_tlb_shape(bits, hashed);
        for idx in [MmuIdx::M, MmuIdx::S, MmuIdx::U] {
            vm.mmu.select(idx);
            // By itself, and by an access that begins on the page before.
            for at in [zero, zero - 1] {
                // SAFETY: an entry is four words, of which these are the comparators (`entry`).
                let [read, write, ..] =
                    unsafe { core::mem::transmute::<entry::TlbEntry, [u64; 4]>(vm.mmu.probe(va(at))) };
                assert!(read & !entry::OTHER != 0 && write & !entry::OTHER != 0, "{bits} {hashed} {at:#x}");
            }
            assert!(vm.mmu.load(&mut vm.tbs, idx, va(zero), MemSize::B8).is_err());
            assert!(vm.mmu.load(&mut vm.tbs, idx, va(zero - 3), MemSize::B8).is_err());
            vm.put(RAM, MemSize::B8, 1);
        }
    }
}
