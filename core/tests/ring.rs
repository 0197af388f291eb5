//! What a dirty ring does, with one thread: order, limits, resets, wrap-around. With threads: loom_ring.rs.
#![cfg(not(loom))]

use kvm_bindings::kvm_dirty_gfn;
use notdirty_core::ring::{DIRTY, RESET};
use notdirty_core::{DirtyGfn, DirtyRing, Pushed, RingConsumer, RingError, RingProducer};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::mem::{align_of, offset_of, size_of};

fn ring(entries: u32, reserved: u32) -> (RingProducer, RingConsumer) {
    DirtyRing::new(entries, reserved).unwrap()
}

fn harvest(ring: &mut RingConsumer) -> Vec<(u32, u64)> {
    let mut pages = Vec::new();
    let n = ring.harvest(|slot, offset| pages.push((slot, offset)));
    assert_eq!(n as usize, pages.len());
    pages
}

fn reset(ring: &mut RingConsumer) -> (u32, Vec<(u32, u64, u64)>) {
    let mut runs = Vec::new();
    let n = ring.reset(|slot, base, mask| runs.push((slot, base, mask)));
    (n, runs)
}

#[test]
fn an_entry_is_laid_out_as_the_kernels() {
    assert_eq!(size_of::<DirtyGfn>(), size_of::<kvm_dirty_gfn>());
    assert_eq!(align_of::<DirtyGfn>(), align_of::<kvm_dirty_gfn>());
    assert_eq!(offset_of!(DirtyGfn, flags), offset_of!(kvm_dirty_gfn, flags));
    assert_eq!(offset_of!(DirtyGfn, slot), offset_of!(kvm_dirty_gfn, slot));
    assert_eq!(offset_of!(DirtyGfn, offset), offset_of!(kvm_dirty_gfn, offset));
    assert_eq!(DIRTY | RESET, kvm_bindings::KVM_DIRTY_GFN_F_MASK);
}

#[test]
fn odd_sizes_are_refused_with_their_numbers() {
    for entries in [0, 1, 64, 100, 127, 129, 4095, 1 << 17, 1 << 31, u32::MAX] {
        assert_eq!(DirtyRing::new(entries, 8).unwrap_err(), RingError::Size { entries });
    }
    for entries in (7..=16).map(|n| 1 << n) {
        assert!(DirtyRing::new(entries, entries - 1).is_ok());
        let refused = DirtyRing::new(entries, entries).unwrap_err();
        assert_eq!(refused, RingError::Reserved { entries, reserved: entries });
    }
}

#[test]
fn pages_come_out_in_the_order_they_went_in_and_once() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    for n in [5, 900, 6, 5, (1 << 51) + 2] {
        assert_eq!(vcpu.push((n % 3) as u32, n), Pushed::Ok);
    }
    assert_eq!(harvest(&mut harvester), [(2, 5), (0, 900), (0, 6), (2, 5), (1, (1 << 51) + 2)]);
    assert_eq!(harvest(&mut harvester), []);
}

#[test]
fn an_entry_goes_from_free_to_dirty_to_reset_and_back() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    let flags = |vcpu: &RingProducer| vcpu.ring().peek(0).flags;
    assert_eq!(flags(&vcpu), 0);
    assert_eq!(vcpu.push(1, 2), Pushed::Ok);
    assert_eq!(vcpu.ring().peek(0), DirtyGfn { flags: DIRTY, slot: 1, offset: 2 });
    assert_eq!(reset(&mut harvester).0, 0, "a reset leaves alone what nobody has harvested");
    assert_eq!(flags(&vcpu), DIRTY);
    harvest(&mut harvester);
    assert_eq!(flags(&vcpu) & RESET, RESET);
    assert_eq!(reset(&mut harvester).0, 1);
    assert_eq!(flags(&vcpu), 0);
}

#[test]
fn the_soft_limit_is_size_minus_reserved_and_holds_until_enough_is_reset() {
    for (entries, reserved) in [(128, 0), (128, 1), (128, 64), (1024, 576), (128, 127)] {
        let (mut vcpu, mut harvester) = ring(entries, reserved);
        let soft = entries - reserved;
        assert_eq!(vcpu.ring().soft_limit(), soft);
        for n in 1..soft {
            assert_eq!(vcpu.push(0, n.into()), Pushed::Ok, "{n} of {entries}");
            assert!(!vcpu.is_soft_full());
        }
        for n in soft..=entries {
            assert_eq!(vcpu.push(0, n.into()), Pushed::SoftFull, "{n} of {entries}");
            assert!(vcpu.is_soft_full());
        }
        assert_eq!(vcpu.push(0, 0), Pushed::Full);
        assert_eq!(vcpu.ring().used(), entries);
        // Harvesting alone frees nothing, and one entry short of the limit is not enough.
        assert_eq!(harvester.harvest_up_to(reserved, |_, _| ()), reserved);
        assert!(vcpu.is_soft_full());
        assert_eq!(reset(&mut harvester).0, reserved);
        assert!(vcpu.is_soft_full(), "used is the limit");
        assert_eq!(harvester.harvest_up_to(1, |_, _| ()), 1);
        assert_eq!(reset(&mut harvester).0, 1);
        assert!(!vcpu.is_soft_full());
        assert_eq!(vcpu.push(0, 0), Pushed::SoftFull);
    }
}

#[test]
fn a_reset_stops_at_the_first_entry_that_was_not_harvested() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    for n in 0..10 {
        let _ = vcpu.push(7, n);
    }
    assert_eq!(harvester.harvest_up_to(4, |_, _| ()), 4);
    assert_eq!(reset(&mut harvester), (4, vec![(7, 0, 0b1111)]));
    assert_eq!(reset(&mut harvester), (0, vec![]));
    assert_eq!(harvest(&mut harvester), (4..10).map(|n| (7, n)).collect::<Vec<_>>());
    assert_eq!(reset(&mut harvester), (6, vec![(7, 4, 0b11_1111)]));
}

#[test]
fn resets_come_in_runs_of_one_slot_upwards_and_downwards() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    for (slot, offset) in [(1, 40), (1, 41), (1, 38), (2, 39), (2, 38), (1, 5), (1, 68), (1, 69)] {
        let _ = vcpu.push(slot, offset);
    }
    harvest(&mut harvester);
    let runs = vec![(1, 38, 0b1101), (2, 38, 0b11), (1, 5, 1 | 1 << 63), (1, 69, 1)];
    assert_eq!(reset(&mut harvester), (8, runs));
}

#[test]
fn a_harvest_and_a_reset_end_though_the_ring_is_filled_again_meanwhile() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    let _ = vcpu.push(0, 0);
    let mut n = 0;
    harvester.harvest(|_, _| {
        n += 1;
        let _ = vcpu.push(0, n);
    });
    assert_eq!(n, 128, "a round, and no further");
    // Each run frees entries, and each is filled again at once.
    let freed = harvester.reset(|_, _, _| while vcpu.push(0, 1000) != Pushed::Full {});
    assert_eq!(freed, 128);
}

#[test]
fn a_sink_that_panics_sees_the_entries_again() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    for n in [1, 2, 500, 501] {
        let _ = vcpu.push(0, n);
    }
    let mut bad = std::panic::AssertUnwindSafe(&mut harvester);
    assert!(std::panic::catch_unwind(move || bad.harvest(|_, page| assert!(page < 500))).is_err());
    assert_eq!(harvest(&mut harvester), [(0, 500), (0, 501)]);
    let mut bad = std::panic::AssertUnwindSafe(&mut harvester);
    assert!(std::panic::catch_unwind(move || bad.reset(|_, page, _| assert!(page < 500))).is_err());
    assert_eq!(reset(&mut harvester), (2, vec![(0, 500, 0b11)]));
}

#[test]
fn what_a_vcpu_pushed_outlives_its_end() {
    let (mut vcpu, mut harvester) = ring(128, 8);
    let _ = vcpu.push(0, 3);
    assert!(!harvester.is_abandoned());
    drop(vcpu);
    assert!(harvester.is_abandoned());
    assert_eq!(harvest(&mut harvester), [(0, 3)]);
}

#[test]
fn a_harvester_on_another_thread_sees_each_page_once_and_in_order() {
    const PAGES: u64 = 200_000;
    // The indices wrap on the way.
    let (mut vcpu, mut harvester) = DirtyRing::starting_at(128, 64, u32::MAX - 70_000).unwrap();
    std::thread::scope(|s| {
        let seen = s.spawn(move || {
            let (mut next, mut reset) = (0, 0);
            while reset < PAGES {
                harvester.harvest(|slot, page| {
                    assert_eq!((slot, page), ((next % 5) as u32, next));
                    next += 1;
                });
                reset += u64::from(harvester.reset(|_, _, mask| assert_ne!(mask, 0)));
                if next > reset {
                    panic!("{next} harvested and {reset} reset");
                }
                std::thread::yield_now();
            }
            next
        });
        for n in 0..PAGES {
            while vcpu.push((n % 5) as u32, n) == Pushed::Full {
                std::thread::yield_now();
            }
        }
        assert_eq!(seen.join().unwrap(), PAGES);
    });
}

#[derive(Clone, Debug)]
enum Do {
    Push(u32, u64),
    Harvest(u32),
    Reset,
}

fn what() -> impl Strategy<Value = Do> {
    prop_oneof![
        6 => (0u32..3, prop_oneof![0u64..200, Just(u64::MAX), 0u64..=u64::MAX]).prop_map(|(s, o)| Do::Push(s, o)),
        2 => (0u32..100).prop_map(Do::Harvest),
        1 => Just(Do::Reset),
    ]
}

proptest! {
    /// Against queues that need no indices.
    #[test]
    fn a_ring_is_a_bounded_queue_of_two_stages(
        start in prop_oneof![Just(0u32), Just(u32::MAX - 40), 0u32..=u32::MAX],
        steps in prop::collection::vec(what(), 1..600),
    ) {
        let (mut vcpu, mut harvester) = DirtyRing::starting_at(128, 100, start).unwrap();
        let (mut dirty, mut harvested) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            let used = dirty.len() + harvested.len();
            match step {
                Do::Push(slot, offset) => {
                    let expected = match used {
                        128 => Pushed::Full,
                        n if n + 1 >= 28 => Pushed::SoftFull,
                        _ => Pushed::Ok,
                    };
                    prop_assert_eq!(vcpu.push(slot, offset), expected);
                    if expected != Pushed::Full {
                        dirty.push_back((slot, offset));
                    }
                }
                Do::Harvest(max) => {
                    let mut seen = Vec::new();
                    harvester.harvest_up_to(max, |slot, offset| seen.push((slot, offset)));
                    prop_assert_eq!(seen.len(), dirty.len().min(max as usize));
                    prop_assert!(seen.iter().eq(dirty.iter().take(seen.len())));
                    harvested.extend(dirty.drain(..seen.len()));
                }
                Do::Reset => {
                    let mut pages = Vec::new();
                    let n = harvester.reset(|slot, base, mask| {
                        pages.extend((0..64).filter(|n| mask >> n & 1 != 0).map(|n| (slot, base + n)));
                    });
                    prop_assert_eq!(n as usize, harvested.len());
                    let mut expected: Vec<_> = harvested.drain(..).collect();
                    expected.sort_unstable();
                    expected.dedup();
                    pages.sort_unstable();
                    pages.dedup();
                    prop_assert_eq!(pages, expected);
                }
            }
            let used = (dirty.len() + harvested.len()) as u32;
            prop_assert_eq!(vcpu.ring().used(), used);
            prop_assert_eq!(vcpu.is_soft_full(), used >= 28);
        }
    }
}
