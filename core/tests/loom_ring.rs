//! RING-1 under every interleaving, weak memory included: `cargo loom`, or
//! `RUSTFLAGS="--cfg loom" cargo test -p notdirty-core --release --test loom_ring`
//!
//! As in `loom`, the first half drives the real `DirtyRing`, of two entries here and with indices that wrap; the second
//! half has a twin of its protocol with its laws as switches: obeyed once, then weakened, and the model has to notice.
//!
//! The same was done to the real code by hand; each of these fails the first two tests:
//! - `push` stores flags first, or Relaxed; `harvest` loads them Relaxed
//! - `push` does not look at `reset_index`, or loads it Relaxed
//! - `free` stores the index first, or Relaxed
//!
//! and of the log, each fails its last test:
//! - `DirtyMemory::set` asks whether there are rings before it marks
//! - `RingLog::take` clears the bits before it takes the list
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::{RawDirty, RawRings};
use notdirty_core::sync::{AtomicU64, Ordering};
use notdirty_core::{
    ClientMask, DirtyClient, DirtyRing, PageIndex, PageRange, Pushed, RamList, RingConsumer, RingLog, pin,
};
use std::sync::Arc;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    // As in `loom`.
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

/// A round of the harvester: what it harvested, and what it reset.
fn round(ring: &mut RingConsumer, pages: &mut Vec<(u32, u64)>, reset: &mut Vec<u64>) {
    ring.harvest(|slot, page| pages.push((slot, page)));
    ring.reset(|_, base, mask| reset.extend((0..64).filter(|n| mask >> n & 1 != 0).map(|n| base + n)));
}

/// What the vCPU pushes: far apart, so that each is a run of its own and a mixture of two is neither.
const PAGES: [(u32, u64); 3] = [(1, 1000), (2, 2000), (3, 3000)];

/// A vCPU pushes three pages into two entries while a harvester makes two rounds.
fn each_page_is_harvested_or_refused(start: u32) {
    model(move || {
        let (mut vcpu, mut harvester) = DirtyRing::starting_at(2, 1, start).unwrap();
        let vcpu = thread::spawn(move || {
            let full = PAGES.map(|(slot, page)| vcpu.push(slot, page) == Pushed::Full);
            (vcpu, full)
        });
        let (mut pages, mut reset) = (Vec::new(), Vec::new());
        round(&mut harvester, &mut pages, &mut reset);
        round(&mut harvester, &mut pages, &mut reset);
        let (mut vcpu, full) = vcpu.join().unwrap();
        round(&mut harvester, &mut pages, &mut reset);
        let pushed: Vec<_> = PAGES.into_iter().zip(full).filter(|(_, full)| !full).map(|(page, _)| page).collect();
        assert_eq!(pages, pushed, "in order, and each once");
        assert_eq!(reset, pages.iter().map(|(_, page)| *page).collect::<Vec<_>>());
        assert!(!vcpu.is_soft_full(), "all was reset");
    });
}

#[test]
fn no_page_is_lost_or_torn_between_push_harvest_and_reset() {
    each_page_is_harvested_or_refused(0);
}

#[test]
fn no_page_is_lost_or_torn_when_the_indices_wrap() {
    each_page_is_harvested_or_refused(u32::MAX);
}

/// A vCPU that leaves when it is told to never finds the ring full: that is what the reserved entry is for.
#[test]
fn a_vcpu_that_heeds_the_soft_limit_is_never_refused() {
    model(|| {
        let (mut vcpu, mut harvester) = DirtyRing::starting_at(2, 1, u32::MAX).unwrap();
        let vcpu = thread::spawn(move || {
            let mut pushed = Vec::new();
            for (slot, page) in PAGES {
                if vcpu.is_soft_full() {
                    continue;
                }
                assert_eq!(vcpu.push(slot, page), Pushed::SoftFull);
                pushed.push((slot, page));
            }
            pushed
        });
        let (mut pages, mut reset) = (Vec::new(), Vec::new());
        round(&mut harvester, &mut pages, &mut reset);
        let pushed = vcpu.join().unwrap();
        round(&mut harvester, &mut pages, &mut reset);
        assert_eq!(pages, pushed);
        assert!(!pages.is_empty());
    });
}

/// RAM of one page, and its log.
struct Ram {
    list: RamList,
    byte: AtomicU64,
}

impl Ram {
    fn write(&self, value: u64) {
        self.byte.store(value, Ordering::Relaxed);
        let page = PageRange::of_page(PageIndex::new(3));
        self.list.dirty().set(page, ClientMask::MIGRATION, &pin());
    }

    fn read(&self) -> u64 {
        self.byte.load(Ordering::Relaxed)
    }

    /// Whether the page was dirty.
    fn take(&self, log: &RingLog) -> bool {
        match log.take(&self.list, None, &pin())[..] {
            [] => false,
            [(first, bits)] => (first, bits) == (PageIndex::new(0), 1 << 3) || unreachable!(),
            _ => unreachable!(),
        }
    }
}

/// A writer without a ring, while the log starts and is harvested: the last value read is the last one written.
#[test]
fn a_store_is_read_or_comes_with_a_later_take_from_the_start_of_the_log_on() {
    model(|| {
        let ram = Arc::new(Ram { list: RamList::new(), byte: AtomicU64::new(0) });
        ram.list.dirty().grow(64).unwrap();
        let writer = thread::spawn({
            let ram = ram.clone();
            move || {
                ram.write(1);
                ram.write(2);
            }
        });
        let log = ram.list.dirty().start_rings(DirtyClient::MIGRATION, 2).unwrap();
        ram.list.dirty().test_and_clear(PageIndex::new(3), DirtyClient::MIGRATION, &pin());
        let mut seen = ram.read();
        if ram.take(&log) {
            seen = ram.read();
        }
        writer.join().unwrap();
        if ram.take(&log) {
            seen = ram.read();
        }
        assert_eq!(seen, 2, "a store is neither read nor reported");
    });
}

/// A page is taken out of a word in which another page is marked meanwhile.
#[test]
fn a_take_of_one_page_leaves_the_mark_of_its_neighbour() {
    model(|| {
        let list = Arc::new(RamList::new());
        list.dirty().grow(64).unwrap();
        let log = list.dirty().start_rings(DirtyClient::MIGRATION, 2).unwrap();
        let pages = PageRange { start: PageIndex::new(3), end: PageIndex::new(5) };
        list.dirty().test_and_clear_range(pages, DirtyClient::MIGRATION, &pin(), |_, _| ());
        let mark = |list: &RamList, page| {
            list.dirty().set(PageRange::of_page(PageIndex::new(page)), ClientMask::MIGRATION, &pin());
        };
        mark(&list, 3);
        let writer = thread::spawn({
            let list = list.clone();
            move || mark(&list, 4)
        });
        let mut taken = log.take(&list, None, &pin());
        writer.join().unwrap();
        taken.extend(log.take(&list, None, &pin()));
        assert_eq!(taken.iter().fold(0, |all, (_, bits)| all | bits), 0b11 << 3);
    });
}

/// The protocol once more, with its laws as switches. One entry.
mod twin {
    use super::model;
    use loom::thread;
    use notdirty_core::sync::{AtomicU32, AtomicU64};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// The entry is published before it is written.
        FlagsBeforeFields,
        /// The entry is published, but nothing before it is.
        PublishRelaxed,
        /// The harvester believes fields that it did not acquire.
        HarvestRelaxed,
        /// The producer writes an entry that may not have been reset, or even harvested.
        ReuseAtOnce,
        /// The producer takes a harvested entry for a free one.
        ReuseBeforeReset,
        /// An entry is handed back before its flags are cleared.
        IndexBeforeFlags,
        /// An entry is handed back before its fields were read for the run.
        IndexBeforeRun,
        /// The index that hands it back orders nothing.
        IndexRelaxed,
    }

    struct Ring {
        law: Law,
        flags: AtomicU32,
        page: AtomicU64,
        reset_index: AtomicU32,
    }

    const DIRTY: u32 = 1;
    const RESET: u32 = 2;

    impl Ring {
        /// Pushes number `n` into the one entry; whether it was free.
        fn push(&self, n: u32, page: u64) -> bool {
            let order = if self.law == Law::IndexRelaxed { Relaxed } else { Acquire };
            let free = self.reset_index.load(order) == n;
            let reused = match self.law {
                Law::ReuseAtOnce => true,
                Law::ReuseBeforeReset => self.flags.load(Acquire) & RESET != 0,
                _ => false,
            };
            if !free && !reused {
                return false;
            }
            if self.law == Law::FlagsBeforeFields {
                self.flags.store(DIRTY, Release);
            }
            self.page.store(page, Relaxed);
            if self.law != Law::FlagsBeforeFields {
                self.flags.store(DIRTY, if self.law == Law::PublishRelaxed { Relaxed } else { Release });
            }
            true
        }

        fn harvest(&self, pages: &mut Vec<u64>) {
            let order = if self.law == Law::HarvestRelaxed { Relaxed } else { Acquire };
            if self.flags.load(order) & (DIRTY | RESET) == DIRTY {
                pages.push(self.page.load(Relaxed));
                self.flags.store(RESET, Release);
            }
        }

        fn reset(&self, n: &mut u32, pages: &mut Vec<u64>) {
            if self.flags.load(Acquire) & RESET == 0 {
                return;
            }
            *n += 1;
            let order = if self.law == Law::IndexRelaxed { Relaxed } else { Release };
            match self.law {
                Law::IndexBeforeFlags => {
                    pages.push(self.page.load(Relaxed));
                    self.reset_index.store(*n, order);
                    self.flags.store(0, Relaxed);
                }
                Law::IndexBeforeRun => {
                    self.flags.store(0, Relaxed);
                    self.reset_index.store(*n, order);
                    pages.push(self.page.load(Relaxed));
                }
                _ => {
                    pages.push(self.page.load(Relaxed));
                    self.flags.store(0, Relaxed);
                    self.reset_index.store(*n, order);
                }
            }
        }
    }

    /// Two pages through one entry: harvested and reset once each, or refused.
    fn pages_pass(law: Law) {
        model(move || {
            let ring = Arc::new(Ring {
                law,
                flags: AtomicU32::new(0),
                page: AtomicU64::new(0),
                reset_index: AtomicU32::new(0),
            });
            let vcpu = thread::spawn({
                let ring = ring.clone();
                move || {
                    let mut pushed = Vec::new();
                    for page in [7, 8] {
                        if ring.push(pushed.len() as u32, page) {
                            pushed.push(page);
                        }
                    }
                    pushed
                }
            });
            let (mut n, mut pages, mut reset) = (0, Vec::new(), Vec::new());
            for _ in 0..2 {
                ring.harvest(&mut pages);
                ring.reset(&mut n, &mut reset);
            }
            let pushed = vcpu.join().unwrap();
            ring.harvest(&mut pages);
            ring.reset(&mut n, &mut reset);
            assert_eq!(pages, pushed, "a page is lost or torn");
            assert_eq!(reset, pages, "another page is listened to than was harvested");
        });
    }

    #[test]
    fn the_laws_hold_in_the_twin() {
        pages_pass(Law::Kept);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_published_before_it_is_written_is_torn() {
        pages_pass(Law::FlagsBeforeFields);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_published_without_release_is_torn() {
        pages_pass(Law::PublishRelaxed);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_harvested_without_acquire_is_torn() {
        pages_pass(Law::HarvestRelaxed);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_written_again_before_it_is_harvested_loses_a_page() {
        pages_pass(Law::ReuseAtOnce);
    }

    #[test]
    #[should_panic]
    fn an_entry_written_again_before_it_is_reset_is_wiped_out() {
        pages_pass(Law::ReuseBeforeReset);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_handed_back_before_its_flags_are_cleared_is_wiped_out() {
        pages_pass(Law::IndexBeforeFlags);
    }

    #[test]
    #[should_panic(expected = "another page is listened to")]
    fn an_entry_handed_back_before_its_run_is_made_lets_another_page_in() {
        pages_pass(Law::IndexBeforeRun);
    }

    #[test]
    #[should_panic(expected = "a page is lost or torn")]
    fn an_entry_handed_back_without_release_is_wiped_out() {
        pages_pass(Law::IndexRelaxed);
    }
}

/// A log's start and its list once more, with their laws as switches. One page.
mod log_twin {
    use super::model;
    use loom::thread;
    use notdirty_core::sync::{AtomicU32, AtomicU64, Mutex, fence, lock};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// A writer asks whether there are rings, then marks.
        MaskFirst,
        /// The log clears bits before writers can find it.
        ClearBeforeStart,
        /// A take clears bits, then takes the list of what was marked.
        ClearBeforeTake,
        /// A take reads the page, then clears the bit.
        ReadBeforeClear,
    }

    struct Log {
        law: Law,
        ringed: AtomicU32,
        bit: AtomicU64,
        list: Mutex<u32>,
        byte: AtomicU64,
    }

    impl Log {
        fn write(&self, value: u64) {
            self.byte.store(value, Relaxed);
            fence(SeqCst);
            let before = self.ringed.load(Acquire);
            if self.bit.load(SeqCst) == 0 && self.bit.fetch_or(1, SeqCst) == 0 {
                let ringed = if self.law == Law::MaskFirst { before } else { self.ringed.load(Acquire) };
                *lock(&self.list) += ringed;
            }
        }

        fn clear(&self) {
            self.bit.fetch_and(0, SeqCst);
            fence(SeqCst);
        }

        fn start(&self) -> u64 {
            if self.law == Law::ClearBeforeStart {
                self.clear();
            }
            self.ringed.fetch_or(1, AcqRel);
            if self.law != Law::ClearBeforeStart {
                self.clear();
            }
            self.byte.load(Relaxed)
        }

        /// What a harvester reads, if the page was dirty.
        fn take(&self) -> Option<u64> {
            if self.law == Law::ClearBeforeTake {
                self.clear();
            }
            let found = std::mem::take(&mut *lock(&self.list));
            if found == 0 {
                return None;
            }
            let early = self.byte.load(Relaxed);
            if self.law != Law::ClearBeforeTake {
                self.clear();
            }
            Some(if self.law == Law::ReadBeforeClear { early } else { self.byte.load(Relaxed) })
        }
    }

    fn stores_are_read_or_reported(law: Law) {
        model(move || {
            let (ringed, list) = (AtomicU32::new(0), Mutex::new(0));
            let log = Log { law, ringed, bit: AtomicU64::new(1), list, byte: AtomicU64::new(0) };
            let log = Arc::new(log);
            let writer = thread::spawn({
                let log = log.clone();
                move || {
                    log.write(1);
                    log.write(2);
                }
            });
            let mut seen = log.start();
            seen = log.take().unwrap_or(seen);
            writer.join().unwrap();
            seen = log.take().unwrap_or(seen);
            assert_eq!(seen, 2, "a store is neither read nor reported");
        });
    }

    #[test]
    fn the_laws_hold_in_the_twin() {
        stores_are_read_or_reported(Law::Kept);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn a_writer_that_asks_for_rings_before_it_marks_misses_the_start() {
        stores_are_read_or_reported(Law::MaskFirst);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn bits_cleared_before_the_log_can_be_found_lose_a_page() {
        stores_are_read_or_reported(Law::ClearBeforeStart);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn bits_cleared_before_the_list_is_taken_lose_a_store() {
        stores_are_read_or_reported(Law::ClearBeforeTake);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn a_page_read_before_its_bit_is_cleared_loses_a_store() {
        stores_are_read_or_reported(Law::ReadBeforeClear);
    }
}

/// A vCPU's way to a harvester: a page's bit is the filter before the real ring. One page, one byte of it.
mod filter {
    use super::model;
    use loom::thread;
    use notdirty_core::sync::{AtomicU64, Mutex, fence, lock};
    use notdirty_core::{DirtyRing, Pushed, RingConsumer, RingProducer};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// The vCPU pushes a page whose bit is clear, then marks it.
        PushBeforeMark,
        /// The harvester reads the page, then clears its bit.
        ReadBeforeClear,
        /// The vCPU marks what it found no room for, and tells nobody.
        FullIsForgotten,
    }

    struct Page {
        law: Law,
        bit: AtomicU64,
        byte: AtomicU64,
        /// Whether the page is in the list for those without room.
        listed: Mutex<bool>,
    }

    impl Page {
        fn write(&self, ring: &mut RingProducer, value: u64) {
            self.byte.store(value, Relaxed);
            fence(SeqCst);
            if self.law == Law::PushBeforeMark {
                if self.bit.load(SeqCst) == 0 {
                    self.push(ring);
                    self.bit.fetch_or(1, SeqCst);
                }
            } else if self.bit.load(SeqCst) == 0 && self.bit.fetch_or(1, SeqCst) == 0 {
                self.push(ring);
            }
        }

        fn push(&self, ring: &mut RingProducer) {
            if ring.push(1, 7) == Pushed::Full && self.law != Law::FullIsForgotten {
                *lock(&self.listed) = true;
            }
        }

        /// A take, and what is read after it, if the page was found.
        fn take(&self, ring: &mut RingConsumer) -> Option<u64> {
            ring.harvest(|_, _| ());
            let mut found = std::mem::take(&mut *lock(&self.listed));
            let early = self.byte.load(Relaxed);
            ring.reset(|slot, base, mask| {
                assert!(slot == 1 && (base, mask) == (7, 1) || base == 1000);
                found |= base == 7;
            });
            if !found {
                return None;
            }
            self.bit.fetch_and(0, SeqCst);
            fence(SeqCst);
            Some(if self.law == Law::ReadBeforeClear { early } else { self.byte.load(Relaxed) })
        }
    }

    /// The last value read is the last one written. With `filled`, the ring has no room at first.
    fn stores_reach_the_harvester(law: Law, filled: bool) {
        model(move || {
            let (bit, byte, listed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(false));
            let page = Arc::new(Page { law, bit, byte, listed });
            let (mut vcpu, mut harvester) = DirtyRing::starting_at(2, 1, u32::MAX).unwrap();
            if filled {
                while vcpu.push(1, 1000) != Pushed::Full {}
            }
            let vcpu = thread::spawn({
                let page = page.clone();
                move || [1, 2].map(|value| page.write(&mut vcpu, value))
            });
            let mut seen = page.take(&mut harvester).unwrap_or(0);
            vcpu.join().unwrap();
            seen = page.take(&mut harvester).unwrap_or(seen);
            assert_eq!(seen, 2, "a store is neither read nor reported");
        });
    }

    #[test]
    fn a_store_is_read_or_comes_with_a_later_harvest() {
        stores_reach_the_harvester(Law::Kept, false);
        stores_reach_the_harvester(Law::Kept, true);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn a_page_pushed_before_it_is_marked_loses_a_store() {
        stores_reach_the_harvester(Law::PushBeforeMark, false);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn a_page_read_before_its_bit_is_cleared_loses_a_store() {
        stores_reach_the_harvester(Law::ReadBeforeClear, false);
    }

    #[test]
    #[should_panic(expected = "neither read nor reported")]
    fn a_page_for_which_there_was_no_room_must_be_told_to_somebody_else() {
        stores_reach_the_harvester(Law::FullIsForgotten, true);
    }
}
