//! Our dirty ring beside the kernel's: a real vCPU under KVM and a thread with ours do the same, case by case.
//!
//! ```text
//!   trait Vcpu ─┬─ Kernel   KVM_CAP_DIRTY_LOG_RING, a guest of four instructions, exit reason 31, KVM_RESET_DIRTY_RINGS
//!               └─ Ours     DirtyMemory's bits as the filter, DirtyRing behind it, as softmmu's slow store has them
//! ```
//!
//! Each case says what it expects, is run on both, and what happened must be equal. Where `/dev/kvm` does not work, or
//! has no rings, ours is run alone and the test says why.
#![cfg(all(not(loom), target_os = "linux", target_arch = "x86_64"))]

mod kernel;
mod ours;
mod vm;

use kernel::Kernel;
use notdirty_core::DirtyGfn;
use notdirty_core::ring::{DIRTY, RESET};
use ours::Ours;
use std::fmt::Write;

/// Why a vCPU came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    /// Every page was stored to.
    Done,
    /// `KVM_EXIT_DIRTY_RING_FULL`.
    RingFull,
}

/// A vCPU with a ring, and its harvester.
trait Vcpu {
    /// Entries of the ring.
    fn size(&self) -> u32;
    /// Stores to these pages of the logged slot, in turn.
    fn store(&mut self, pages: &[u64]) -> Left;
    /// Goes on after `RingFull`.
    fn resume(&mut self) -> Left;
    /// Stores that are still to do.
    fn left(&self) -> u64;
    /// The pages of the next entries, at most `max`; they must name the logged slot.
    fn harvest(&mut self, max: u32) -> Vec<u64>;
    /// How many entries were freed.
    fn reset(&mut self) -> u32;
    /// What lies in the ring.
    fn peek(&self, index: u32) -> DirtyGfn;

    fn used(&self) -> u32 {
        (0..self.size()).filter(|n| self.peek(*n).flags != 0).count() as u32
    }
}

const SIZE: u32 = 1024;
/// Pages of the logged slot.
const PAGES: u64 = 4096;

type Case = fn(&mut dyn Vcpu, u32, &mut String);

/// Runs a case on both.
fn compare(case: Case) {
    let reserved = match Kernel::new(SIZE) {
        Ok(mut kernel) => {
            let reserved = reserved_by(&mut kernel);
            let mut theirs = String::new();
            case(&mut Kernel::new(SIZE).unwrap(), SIZE - reserved, &mut theirs);
            let mut ours = String::new();
            case(&mut Ours::new(SIZE, reserved), SIZE - reserved, &mut ours);
            assert_eq!(ours, theirs);
            return;
        }
        Err(why) => {
            eprintln!("KVM is left out, ours runs alone: {why}");
            64
        }
    };
    case(&mut Ours::new(SIZE, reserved), SIZE - reserved, &mut String::new());
}

/// The kernel does not tell how many entries it reserves, so it is read off the first exit: 64, and as many as the
/// hardware's own log holds where there is one.
fn reserved_by(kernel: &mut Kernel) -> u32 {
    let pages: Vec<u64> = (0..u64::from(SIZE)).collect();
    assert_eq!(kernel.store(&pages), Left::RingFull);
    let reserved = SIZE - kernel.used();
    assert_eq!(reserved, if kernel::has_hardware_log() { 64 + 512 } else { 64 });
    reserved
}

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            compare(case::$name);
        }
    )*};
}

cases! {
    entries_are_published_in_order_with_slot_and_offset
    a_page_is_pushed_once_until_it_is_reset
    a_page_that_is_dirtied_after_its_reset_appears_again
    a_reset_frees_what_was_harvested_and_says_how_many
    the_ring_is_full_at_size_minus_reserved_and_nothing_runs_until_a_reset
    one_entry_freed_lets_the_vcpu_go_on_to_the_next_exit
    pages_dirtied_downwards_are_heard_again_after_a_reset
    rounds_pass_the_end_of_the_ring_without_losing_a_page
}

mod case {
    use super::*;

    /// Writes down what happened, for the comparison.
    macro_rules! note {
        ($log:ident, $($text:tt)*) => {
            writeln!($log, $($text)*).unwrap()
        };
    }

    pub fn entries_are_published_in_order_with_slot_and_offset(vcpu: &mut dyn Vcpu, _: u32, log: &mut String) {
        let pages = [5, 3, 900, 4, 4095, 0, 64];
        assert_eq!(vcpu.peek(0).flags, 0);
        assert_eq!(vcpu.store(&pages), Left::Done);
        for (n, page) in pages.iter().enumerate() {
            let entry = vcpu.peek(n as u32);
            assert_eq!((entry.flags, entry.offset), (DIRTY, *page));
            note!(log, "{n}: flags {} offset {}", entry.flags, entry.offset);
        }
        assert_eq!(vcpu.peek(pages.len() as u32).flags, 0);
        assert_eq!(vcpu.harvest(u32::MAX), pages);
    }

    pub fn a_page_is_pushed_once_until_it_is_reset(vcpu: &mut dyn Vcpu, _: u32, log: &mut String) {
        assert_eq!(vcpu.store(&[7, 8, 7, 7, 8]), Left::Done);
        assert_eq!(vcpu.store(&[8, 7, 9]), Left::Done);
        note!(log, "{}", vcpu.used());
        assert_eq!(vcpu.harvest(u32::MAX), [7, 8, 9]);
        assert_eq!(vcpu.store(&[7, 8, 9]), Left::Done);
        assert_eq!(vcpu.harvest(u32::MAX), [], "harvesting alone re-arms nothing");
        note!(log, "{}", vcpu.used());
    }

    pub fn a_page_that_is_dirtied_after_its_reset_appears_again(vcpu: &mut dyn Vcpu, _: u32, log: &mut String) {
        for round in 0..5 {
            assert_eq!(vcpu.store(&[1, 2, 70, 3000]), Left::Done);
            let pages = vcpu.harvest(u32::MAX);
            assert_eq!(pages, [1, 2, 70, 3000]);
            assert_eq!(vcpu.reset(), 4);
            note!(log, "{round}: {pages:?}");
        }
        assert_eq!(vcpu.store(&[2]), Left::Done);
        assert_eq!(vcpu.harvest(u32::MAX), [2], "only what was stored to");
    }

    pub fn a_reset_frees_what_was_harvested_and_says_how_many(vcpu: &mut dyn Vcpu, _: u32, log: &mut String) {
        let pages: Vec<u64> = (100..110).collect();
        assert_eq!(vcpu.store(&pages), Left::Done);
        assert_eq!(vcpu.reset(), 0, "nothing was harvested");
        assert_eq!(vcpu.harvest(4), [100, 101, 102, 103]);
        assert_ne!(vcpu.peek(3).flags & RESET, 0);
        assert_eq!(vcpu.peek(4).flags, DIRTY);
        // It stops at the first entry that nobody has harvested.
        for expected in [4, 0] {
            let freed = vcpu.reset();
            assert_eq!(freed, expected);
            note!(log, "freed {freed}, used {}, {:?}", vcpu.used(), [vcpu.peek(3).flags, vcpu.peek(4).flags]);
        }
        // A page whose entry is free is heard again, the others not yet.
        assert_eq!(vcpu.store(&[103, 104]), Left::Done);
        assert_eq!(vcpu.harvest(u32::MAX), [104, 105, 106, 107, 108, 109, 103]);
        assert_eq!(vcpu.reset(), 7);
        assert_eq!(vcpu.used(), 0);
    }

    pub fn the_ring_is_full_at_size_minus_reserved_and_nothing_runs_until_a_reset(
        vcpu: &mut dyn Vcpu,
        soft: u32,
        log: &mut String,
    ) {
        let pages: Vec<u64> = (0..2 * u64::from(SIZE)).collect();
        assert_eq!(vcpu.store(&pages[..soft as usize - 1]), Left::Done, "one short of the limit");
        assert_eq!(vcpu.store(&pages[soft as usize - 1..]), Left::RingFull);
        note!(log, "used {}", vcpu.used());
        assert_eq!(vcpu.used(), soft);
        let left = vcpu.left();
        for _ in 0..3 {
            assert_eq!(vcpu.resume(), Left::RingFull);
            assert_eq!((vcpu.left(), vcpu.used()), (left, soft), "it ran on");
        }
        assert_eq!(vcpu.harvest(u32::MAX), pages[..soft as usize]);
        assert_eq!(vcpu.resume(), Left::RingFull, "harvesting alone frees nothing");
        assert_eq!(vcpu.left(), left);
        assert_eq!(vcpu.reset(), soft);
        let mut seen = vec![u64::from(soft) - 1];
        loop {
            let full = vcpu.resume() == Left::RingFull;
            note!(log, "full {full}");
            assert!(!full || vcpu.used() == soft);
            seen.extend(vcpu.harvest(u32::MAX));
            vcpu.reset();
            if !full {
                break;
            }
        }
        // The kernel leaves before the store that it pushed, which is heard once more after the reset. Ours leaves behind it.
        seen.dedup();
        assert_eq!(seen, pages[soft as usize - 1..]);
    }

    pub fn one_entry_freed_lets_the_vcpu_go_on_to_the_next_exit(vcpu: &mut dyn Vcpu, soft: u32, log: &mut String) {
        let pages: Vec<u64> = (0..2 * u64::from(SIZE)).collect();
        assert_eq!(vcpu.store(&pages), Left::RingFull);
        for n in 1..10 {
            assert_eq!(vcpu.harvest(1), [n - 1]);
            assert_eq!(vcpu.reset(), 1);
            assert_eq!(vcpu.resume(), Left::RingFull);
            assert_eq!(vcpu.used(), soft);
            note!(log, "{n}: {}", vcpu.peek(soft - 1 + n as u32).offset);
        }
    }

    pub fn pages_dirtied_downwards_are_heard_again_after_a_reset(vcpu: &mut dyn Vcpu, _: u32, log: &mut String) {
        let pages: Vec<u64> = (200..400).rev().chain([1000, 950, 1013, 949, 4095, 4032, 4031]).collect();
        for _ in 0..2 {
            assert_eq!(vcpu.store(&pages), Left::Done);
            assert_eq!(vcpu.harvest(u32::MAX), pages);
            assert_eq!(vcpu.reset(), pages.len() as u32);
            note!(log, "{}", vcpu.used());
        }
    }

    pub fn rounds_pass_the_end_of_the_ring_without_losing_a_page(vcpu: &mut dyn Vcpu, soft: u32, log: &mut String) {
        let step = u64::from(soft) - 7;
        for round in 0..12 {
            let pages: Vec<u64> = (0..step).map(|n| (n * 3 + round * 1000) % PAGES).collect();
            assert_eq!(vcpu.store(&pages), Left::Done);
            assert_eq!(vcpu.harvest(u32::MAX), pages);
            assert_eq!(u64::from(vcpu.reset()), step);
            note!(log, "{round} {:?}", vcpu.peek((round + 1) as u32 * step as u32 - 1).offset);
        }
    }
}

#[test]
fn the_same_sizes_are_refused() {
    for entries in [0, 1, 3, 32, 1000, 1023, 1025, 3072, 1 << 17, 1 << 20] {
        assert!(Ours::refuses(entries), "{entries}");
        if let Some(refused) = Kernel::refuses(entries) {
            assert!(refused, "the kernel has a ring of {entries}");
        }
    }
    for entries in [1024, 4096, 1 << 16] {
        assert!(!Ours::refuses(entries), "{entries}");
        if let Some(refused) = Kernel::refuses(entries) {
            assert!(!refused, "the kernel has no ring of {entries}");
        }
    }
}

/// What our types rule out (the consumer has no way to skip an entry), the kernel must be asked about by itself.
#[test]
fn the_kernel_too_stops_at_an_entry_that_was_skipped() {
    let mut kernel = match Kernel::new(SIZE) {
        Ok(kernel) => kernel,
        Err(why) => return eprintln!("left out: {why}"),
    };
    assert_eq!(kernel.store(&[1, 2, 3, 4]), Left::Done);
    kernel.mark_reset(0);
    kernel.mark_reset(2);
    assert_eq!(kernel.reset(), 1, "the third waits for the second");
    assert_eq!(kernel.peek(2).flags & RESET, RESET);
    kernel.mark_reset(1);
    assert_eq!(kernel.reset(), 2);
    assert_eq!(kernel.peek(3).flags, DIRTY);
}
