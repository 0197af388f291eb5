//! What a change of the map costs a vCPU, with ten thousand blocks there.

mod common;

use common::{Live, pa, va};
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, MemSize, MmuIdx, NoHooks};
use std::sync::Arc;
use std::time::Duration;

const BLOCKS: u64 = 10_000;
const STEP: u64 = 1 << 20;
const FIRST: u64 = 0x1_0000_0000;

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux, and `time` is ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn a_plug_or_an_unplug_costs_a_vcpu_microseconds_with_ten_thousand_blocks() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    // One block over and over: what counts is how many ranges the map has.
    let block = ram.add(RamBlockSpec::new("ram", 1 << 20)).unwrap();
    let at = |n: u64| pa(FIRST + n * 2 * STEP);
    for n in 0..BLOCKS {
        space.map_ram(at(n), &block, n % 255 * 4096, 4096, 0).unwrap();
    }
    let mut mmu = Live::new(&space, 0);
    // A TLB full of other pages, which stay.
    for n in 0..BLOCKS {
        let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(at(n).get()), MemSize::B8, n).unwrap();
    }
    let (mut plugs, mut unplugs) = (Vec::new(), Vec::new());
    for n in 0..200 {
        let new = pa(FIRST + (n * 37 % BLOCKS) * 2 * STEP + STEP);
        let id = space.map_ram(new, &block, 0, STEP, 0).unwrap();
        let start = cpu_time();
        let _ = mmu.serve(&mut NoHooks);
        plugs.push(cpu_time() - start);
        for page in 0..100 {
            let _ = mmu.store(&mut NoHooks, MmuIdx::M, va(new.get() + page * 4096), MemSize::B8, 1).unwrap();
        }
        space.unmap(id).unwrap();
        let start = cpu_time();
        let _ = mmu.serve(&mut NoHooks);
        unplugs.push(cpu_time() - start);
        assert!(mmu.store(&mut NoHooks, MmuIdx::M, va(new.get()), MemSize::B8, 1).is_err());
    }
    for (what, mut times) in [("plug", plugs), ("unplug", unplugs)] {
        times.sort();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{what}: median {median:?}, most {most:?}");
        assert!(median < Duration::from_micros(50), "{what}: {median:?}");
    }
}
