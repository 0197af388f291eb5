//! A walk on one vCPU while others write the tables, and while their pages are harvested.

mod common;

use common::{Live, RAM, pa, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PageRange, RamAddr, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::{
    Access, AccessKind, AddressSpace, CodeInvalidator, FaultCause, Hooks, MemSize, MmuIdx, NoHooks, Physical, Rights,
    Translation,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const A: u64 = 1;
const D: u64 = 2;
const VIRT: u64 = 0x40_0000_0000;

/// One entry, at the start of RAM, for one page: marks, and above them what the owner of the table wrote.
struct Walker;

impl CodeInvalidator for Walker {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Walker {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        if access.idx == MmuIdx::M {
            return Ok(Translation::identity(access.va));
        }
        loop {
            let entry = memory.read(pa(RAM)).unwrap();
            let wanted = entry | A | if access.kind == AccessKind::Store { D } else { 0 };
            if wanted == entry || memory.replace(self, pa(RAM), entry, wanted).unwrap() {
                let rights = Rights { load: true, store: wanted & D != 0, fetch: false };
                let to = Translation { rights, ..Translation::identity(access.va) };
                return Ok(Translation { page: pa(RAM + 0x1000), ..to });
            }
        }
    }
}

fn machine() -> (Arc<RamList>, Arc<RamBlock>, Arc<AddressSpace>) {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let space = AddressSpace::new(ram.clone());
    space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
    (ram, block, space)
}

/// Lets the walker go when the other thread is done, or fails.
struct Release<'a>(&'a AtomicBool);
impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Walks and flushes until it is told to stop.
fn walk(space: &Arc<AddressSpace>, stop: &AtomicBool, walks: &AtomicU64) {
    let mut mmu = Live::new(space, 0);
    let mut walker = Walker;
    for round in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        for n in 0..16 {
            mmu.load(&mut walker, MmuIdx::S, va(VIRT), MemSize::B8).unwrap();
            // Between a mark of a load and that of a store there is a safe point.
            if round % 2 == 1 {
                let _ = mmu.store(&mut walker, MmuIdx::S, va(VIRT), MemSize::B8, n).unwrap();
            }
            mmu.flush_translations(Some(va(VIRT)), None);
        }
        walks.fetch_add(16, Ordering::Release);
        let _ = mmu.serve(&mut walker);
    }
}

#[test]
fn a_mark_of_a_walk_never_brings_back_what_another_vcpu_wrote_over() {
    let (_, _, space) = machine();
    let (stop, walks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let walker = scope.spawn(|| walk(&space, &stop, &walks));
        let release = Release(&stop);
        let mut mmu = Live::new(&space, 0);
        let until = Instant::now() + Duration::from_millis(300);
        let mut n = 0u64;
        while Instant::now() < until || walks.load(Ordering::Relaxed) < 1000 {
            n += 1;
            // A new entry, with no marks: what comes back may be marked, and is this one.
            let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, n << 12).unwrap();
            for _ in 0..n % 50 {
                let entry = mmu.load(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8).unwrap();
                assert_eq!(entry & !(A | D), n << 12, "an older entry is back");
            }
            let _ = mmu.serve(&mut NoHooks);
        }
        drop(release);
        walker.join().unwrap();
    });
}

#[test]
fn a_harvest_misses_no_mark_of_a_walk() {
    // HARVEST-1 and MARK-1, of stores that no instruction makes.
    let (ram, block, space) = machine();
    let page = block.offset().page();
    let (stop, walks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let walker = scope.spawn(|| walk(&space, &stop, &walks));
        let release = Release(&stop);
        let mut copy = 0;
        let harvest = |copy: &mut u64| {
            if ram.dirty().test_and_clear(page, DirtyClient::MIGRATION, &pin()) {
                let rearm = Request::Rearm(PageRange::of_page(page));
                assert!(common::post_all_and_wait(&space, rearm, Some(Duration::from_secs(20))));
                *copy = block.load(0, 8).unwrap();
            }
        };
        for n in 0..1000u64 {
            // The owner of the table takes the marks away: a store of its own, which is marked and harvested.
            space.write(pa(RAM), &(n << 12).to_le_bytes()).unwrap();
            harvest(&mut copy);
            let before = walks.load(Ordering::Acquire);
            while walks.load(Ordering::Acquire) < before + 48 && !walker.is_finished() {
                std::thread::yield_now();
            }
            harvest(&mut copy);
            assert_eq!(copy, n << 12 | A | D);
        }
        drop(release);
        walker.join().unwrap();
    });
}
