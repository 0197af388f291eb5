//! Two threads and a clock: what the ordering rules are for. Each test fails (most runs) when the rule it names is
//! broken in the source.

mod common;

use common::{Live, RAM, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PageIndex, PageRange, RamAddr, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::raw::Request;
use notdirty_softmmu::{AddressSpace, CodeInvalidator, Hooks, MemSize, MmuIdx, NoHooks, VcpuId, lines_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn machine() -> (Arc<RamList>, Arc<RamBlock>, Arc<AddressSpace>) {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let space = AddressSpace::new(ram.clone());
    space.map_ram(notdirty_softmmu::GuestPhys::new(RAM), &block, 0, 0x4000, 0).unwrap();
    (ram, block, space)
}

/// Lets the other thread go when this one fails, so that a failure is a failure and not a hang.
struct Release<'a>(&'a AtomicU64);
impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX, Ordering::Release);
    }
}

/// A translator whose one TB is the eight bytes at the start of RAM: translating is reading them.
struct Translator {
    ram: Arc<RamList>,
    page: PageIndex,
    vcpu: VcpuId,
    tb: Option<u64>,
}
impl CodeInvalidator for Translator {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        let dead = usize::from(self.tb.take().is_some());
        self.ram.dirty().set_code_lines(self.page, 0, self.vcpu, &pin());
        dead
    }
}
impl Hooks for Translator {}

#[test]
fn a_translation_never_outlives_the_bytes_that_another_vcpu_wrote_over() {
    // CODE-1, MARK-1, TLB-1: the writer has a vCPU of its own, and only posts.
    let (ram, block, space) = machine();
    let page = block.offset().page();
    let mut mmu = Live::new(&space, 0);
    let mut tr = Translator { ram, page, vcpu: mmu.port().id(), tb: None };
    let round = AtomicU64::new(0);
    let settled = AtomicU64::new(0);
    const ROUNDS: u64 = 3000;
    std::thread::scope(|scope| {
        let writer_space = space.clone();
        let (round, settled) = (&round, &settled);
        scope.spawn(move || {
            let mut mmu = Live::new(&writer_space, 0);
            for n in 1..=ROUNDS {
                for burst in 0..1 + n % 7 {
                    let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, n * 16 + burst).unwrap();
                    let _ = mmu.serve(&mut NoHooks);
                }
                settled.store(n, Ordering::Release);
                while round.load(Ordering::Acquire) < n {
                    // A vCPU that spins still passes safe points.
                    let _ = mmu.serve(&mut NoHooks);
                    std::hint::spin_loop();
                    std::thread::yield_now();
                }
            }
        });
        let release = Release(round);
        for n in 1..=ROUNDS {
            let deadline = Instant::now() + Duration::from_secs(60);
            // Translate again and again while the writer writes.
            loop {
                let quiet = settled.load(Ordering::Acquire) >= n;
                if tr.tb.is_none() {
                    let mut pending = mmu.announce_code(page, lines_of(0, 8));
                    let bytes = block.load(0, 8).unwrap();
                    tr.tb = Some(bytes);
                    while !pending.is_served() {
                        assert!(Instant::now() < deadline, "a re-arm is never acknowledged");
                        std::thread::yield_now();
                        let _ = mmu.serve(&mut tr);
                    }
                    // Stores that were on their way have landed: compare again.
                    if tr.tb.is_some_and(|tb| tb != block.load(0, 8).unwrap()) {
                        tr.code_written(block.offset(), 8);
                    }
                }
                let _ = mmu.serve(&mut tr);
                if quiet {
                    break;
                }
            }
            // The writer stands still. What was posted is served; what lives now must be true.
            if let Some(tb) = tr.tb {
                assert_eq!(tb, block.load(0, 8).unwrap(), "a translation of old bytes survived round {n}");
            }
            release.0.store(n, Ordering::Release);
        }
    });
}

#[test]
fn a_harvest_misses_no_store() {
    // HARVEST-1 and MARK-1: take the bit, re-arm and wait, then read. At the end, the last copy is what RAM holds.
    let (ram, block, space) = machine();
    let page = block.offset().page();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let vcpu_space = space.clone();
        let vcpu = scope.spawn(move || {
            let mut mmu = Live::new(&vcpu_space, 0);
            let mut n = 0;
            while !stop.load(Ordering::Acquire) {
                for _ in 0..50 {
                    n += 1;
                    let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(RAM + 8), MemSize::B8, n).unwrap();
                }
                let _ = mmu.serve(&mut NoHooks);
            }
            // The last stores came before the end; nobody serves this vCPU any more.
            n
        });
        let mut copy = 0;
        let until = Instant::now() + Duration::from_millis(300);
        let harvest = |copy: &mut u64| {
            let was = ram.dirty().test_and_clear(page, DirtyClient::MIGRATION, &pin());
            if was {
                let rearm = Request::Rearm(PageRange::of_page(page));
                assert!(common::post_all_and_wait(&space, rearm, Some(Duration::from_secs(20))));
                *copy = block.load(8, 8).unwrap();
            }
        };
        while Instant::now() < until {
            harvest(&mut copy);
        }
        stop.store(true, Ordering::Release);
        let last = vcpu.join().unwrap();
        harvest(&mut copy);
        assert_eq!(copy, last);
    });
}

#[test]
fn a_vcpu_that_waits_wakes_for_every_post() {
    // Two posters, so that one posts while the vCPU takes what the other posted.
    let (_, _, space) = machine();
    const POSTERS: u64 = 2;
    let limit = Some(Duration::from_secs(10));
    let done = AtomicU64::new(0);
    let mut mmu = Live::new(&space, 0);
    let port = mmu.port().clone();
    std::thread::scope(|scope| {
        for _ in 0..POSTERS {
            scope.spawn(|| {
                let lost = (0..4000).find(|_| !common::post_all_and_wait(&space, Request::FlushAll, limit));
                done.fetch_add(1, Ordering::SeqCst);
                port.kick();
                assert_eq!(lost, None, "a post was lost");
            });
        }
        while done.load(Ordering::SeqCst) < POSTERS {
            let _ = mmu.wait(None);
        }
    });
}

#[test]
fn a_harvest_misses_no_store_of_vcpus_that_come_and_go() {
    // HARVEST-1 with parked vCPUs: two of them run a little, park, sleep, and are back, while a harvester takes.
    let (ram, block, space) = machine();
    let page = block.offset().page();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let vcpus: Vec<_> = (0..2u64)
            .map(|hart| {
                let space = space.clone();
                scope.spawn(move || {
                    let mut mmu = Live::new(&space, 0);
                    mmu.park();
                    let mut n = 0;
                    while !stop.load(Ordering::Acquire) {
                        let _ = mmu.start(&mut NoHooks);
                        for _ in 0..1 + n % 3 {
                            for _ in 0..20 {
                                n += 1;
                                let at = va(RAM + 64 * hart);
                                let _ = mmu.store(&mut NoHooks, MmuIdx::M, at, MemSize::B8, n).unwrap();
                            }
                            let _ = mmu.serve(&mut NoHooks);
                        }
                        if n % 5 == 0 {
                            let _ = mmu.wait(Some(Duration::from_micros(50)));
                        }
                        mmu.park();
                    }
                    n
                })
            })
            .collect();
        let mut copy = [0; 2];
        let harvest = |copy: &mut [u64; 2]| {
            if ram.dirty().test_and_clear(page, DirtyClient::MIGRATION, &pin()) {
                ram.rearm(&[PageRange::of_page(page)], Some(Duration::from_secs(20))).unwrap();
                *copy = [0, 64].map(|at| block.load(at, 8).unwrap());
            }
        };
        let until = Instant::now() + Duration::from_millis(400);
        while Instant::now() < until {
            harvest(&mut copy);
        }
        stop.store(true, Ordering::Release);
        let last: Vec<u64> = vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).collect();
        harvest(&mut copy);
        assert_eq!(copy.as_slice(), last);
    });
}

#[test]
fn memory_that_was_unmapped_and_waited_for_is_touched_by_nobody() {
    // RAM-1: after the wait, what is in the block stays as it is.
    let (ram, _, space) = machine();
    let at = notdirty_softmmu::GuestPhys::new(0x2_0000_0000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        for hart in 0..2u64 {
            let space = space.clone();
            scope.spawn(move || {
                let mut mmu = Live::new(&space, 0);
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    let _ = mmu.serve(&mut NoHooks);
                    for _ in 0..50 {
                        n += 1;
                        let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(at.get() + 8 * hart), MemSize::B8, n);
                    }
                }
            });
        }
        for n in 0..2000 {
            let block = ram.add(RamBlockSpec::new("dimm", 0x1000)).unwrap();
            let id = space.map_ram(at, &block, 0, 0x1000, 0).unwrap();
            for _ in 0..n % 50 * 20 {
                std::hint::spin_loop();
            }
            assert!(space.unmap_and_wait(id, Some(Duration::from_secs(20))).unwrap());
            let (a, b) = (block.load(0, 8).unwrap(), block.load(8, 8).unwrap());
            for _ in 0..200 {
                std::hint::spin_loop();
            }
            assert_eq!((block.load(0, 8).unwrap(), block.load(8, 8).unwrap()), (a, b), "round {n}");
            ram.remove(&block).unwrap();
        }
        stop.store(true, Ordering::Release);
    });
}
