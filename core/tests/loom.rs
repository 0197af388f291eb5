//! GROW-1, SUM-1 and MARK-1 under every interleaving, weak memory included:
//! `RUSTFLAGS="--cfg loom" cargo test -p notdirty-core --release --test loom`
//!
//! The first half drives the real `DirtyMemory`, whose blocks are one word long here. The second half has a twin of
//! its protocol, small enough to break: each law is obeyed once, and then weakened, and the model has to notice.
//!
//! The same was done to the real code by hand; what fails in the first half if one
//! - drops the fence of `set`, of `test_and_clear`, of `test_and_clear_range`: `growth_never_hides_a_block…`, `a_setter_that_skips…`
//! - makes the accesses of SUM-1 AcqRel, and `in_total_order` nothing: `a_take_of_a_line_that_looks_clean…`
//! - clears the summary bit in a take of a part: `a_take_of_a_part…`
//! - does not look at the summary if the word was set: `a_mark_is_found_once_its_setter_returns…`
//! - sets words by a load and a store: `a_take_by_summary…`
//! - copies pointers to blocks on growth: `growth_never_forgets_who_listens`, `two_growers…`
//!
//! Not seen by loom, which executes RMWs in one order that all threads agree on and does not track what a pointer
//! points to: the Acquire of a taker's summary RMW, and the pairs that publish tables and blocks. They are argued where
//! they stand.
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::RawDirty;
use notdirty_core::sync::{AtomicU64, Ordering::Relaxed};
use notdirty_core::{ClientMask, DirtyClient, DirtyMemory, PageIndex, PageRange, pin};
use std::sync::Arc;

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
/// Pages of one dirty block in a model.
const BLOCK: u64 = 64;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    // No race known to the field needs more switches than this at places where a thread could have gone on. Four
    // pass as well, in half a minute: LOOM_MAX_PREEMPTIONS=4.
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

fn page(n: u64) -> PageIndex {
    PageIndex::new(n)
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange { start: page(start), end: page(end) }
}

/// Which code of `set` marks: one page for the one client that tracks, two pages, or one for two clients.
#[derive(Clone, Copy, PartialEq)]
enum Marks {
    OnePage,
    TwoPages,
    TwoClients,
}

const EACH: [Marks; 3] = [Marks::OnePage, Marks::TwoPages, Marks::TwoClients];

/// One byte of guest RAM, and the dirty memory of its page.
struct Ram {
    byte: [AtomicU64; 2],
    dirty: DirtyMemory,
    marks: Marks,
}

impl Ram {
    fn new(pages: u64) -> Arc<Self> {
        Self::marked(pages, Marks::OnePage)
    }

    fn marked(pages: u64, marks: Marks) -> Arc<Self> {
        let ram = Self { byte: [AtomicU64::new(0), AtomicU64::new(0)], dirty: DirtyMemory::new(), marks };
        ram.dirty.grow(pages).unwrap();
        if marks == Marks::TwoClients {
            ram.dirty.test_and_clear(page(0), DirtyClient::VGA, &pin());
        }
        Arc::new(ram)
    }

    /// Pages that stand for one in a model.
    fn span(&self) -> u64 {
        if self.marks == Marks::TwoPages { 2 } else { 1 }
    }

    fn mark(&self, at: u64) {
        let clients = if self.marks == Marks::TwoClients {
            ClientMask::VGA | ClientMask::MIGRATION
        } else {
            ClientMask::MIGRATION
        };
        self.dirty.set(pages(at * self.span(), (at + 1) * self.span()), clients, &pin());
    }

    /// A slow writer: the store, then its mark (MARK-1).
    fn write(&self, byte: usize, at: u64) {
        self.byte[byte].store(1, Relaxed);
        self.mark(at);
    }

    /// A harvester of one page, who reads it afterwards.
    fn harvest(&self, at: u64) -> [u64; 2] {
        self.dirty.test_and_clear(page(at), MIGRATION, &pin());
        [self.byte[0].load(Relaxed), self.byte[1].load(Relaxed)]
    }

    fn is_dirty(&self, at: u64) -> bool {
        self.dirty.test(page(at), MIGRATION, &pin())
    }

    fn take(&self, range: PageRange) -> Vec<u64> {
        let mut taken = Vec::new();
        self.dirty.test_and_clear_range(range, MIGRATION, &pin(), |first, bits| {
            taken.extend((0..64).filter(|n| bits >> n & 1 != 0).map(|n| (first.get() + n) / self.span()));
        });
        // Pages of one mark are set by one RMW.
        assert!(taken.chunks(self.span() as usize).all(|pages| pages.iter().all(|page| *page == pages[0])));
        taken.dedup();
        taken
    }
}

#[test]
fn growth_never_hides_a_bit() {
    model(|| {
        let ram = Ram::new(BLOCK);
        ram.take(pages(0, BLOCK));
        let setter = thread::spawn({
            let ram = ram.clone();
            move || ram.write(0, 3)
        });
        let grower = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.grow(3 * BLOCK).unwrap()
        });
        let seen = ram.harvest(3);
        setter.join().unwrap();
        grower.join().unwrap();
        assert!(seen[0] == 1 || ram.is_dirty(3), "the store is neither read nor marked");
        assert!(ram.is_dirty(BLOCK), "new pages are dirty");
    });
}

/// The block appears while the table grows and a setter may still hold the old table.
#[test]
fn growth_never_hides_a_block_that_is_being_installed() {
    model(|| {
        let ram = Ram::new(BLOCK);
        let setter = thread::spawn({
            let ram = ram.clone();
            move || ram.write(0, 3)
        });
        let grower = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.grow(2 * BLOCK).unwrap()
        });
        let seen = ram.harvest(3);
        setter.join().unwrap();
        grower.join().unwrap();
        assert!(seen[0] == 1 || ram.is_dirty(3), "the store is neither read nor marked");
    });
}

/// As for an announcement: the CODE bit is cleared, in a block that this installs, while the table grows.
#[test]
fn growth_never_forgets_who_listens() {
    model(|| {
        let ram = Ram::new(BLOCK);
        let grower = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.grow(2 * BLOCK).unwrap()
        });
        ram.dirty.test_and_clear(page(3), notdirty_core::raw::CODE, &pin());
        assert!(ram.dirty.listening(page(3), &pin()).only_code());
        grower.join().unwrap();
        assert!(ram.dirty.listening(page(3), &pin()).only_code());
    });
}

#[test]
fn two_growers_leave_the_larger_table() {
    model(|| {
        let ram = Ram::new(0);
        let other = thread::spawn({
            let ram = ram.clone();
            move || {
                ram.dirty.grow(BLOCK).unwrap();
                ram.dirty.test_and_clear(page(5), MIGRATION, &pin());
            }
        });
        ram.dirty.grow(2 * BLOCK).unwrap();
        assert!(ram.dirty.test_and_clear(page(BLOCK), MIGRATION, &pin()));
        other.join().unwrap();
        assert!(!ram.is_dirty(5) && !ram.is_dirty(BLOCK) && ram.is_dirty(6));
    });
}

#[test]
fn one_of_two_takers_installs_the_block_and_one_gets_the_page() {
    model(|| {
        let ram = Ram::new(BLOCK);
        let other = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.test_and_clear(page(1), MIGRATION, &pin())
        });
        let ours = ram.dirty.test_and_clear(page(1), MIGRATION, &pin());
        assert!(ours != other.join().unwrap());
        assert!(!ram.is_dirty(1) && ram.is_dirty(0));
    });
}

#[test]
fn a_take_by_summary_loses_no_mark_of_two_setters() {
    EACH.into_iter().for_each(|marks| {
        model(move || {
            let ram = Ram::marked(BLOCK, marks);
            ram.take(pages(0, BLOCK));
            let setters = [0, 1].map(|n| {
                let ram = ram.clone();
                thread::spawn(move || ram.mark(n))
            });
            let mut taken = ram.take(pages(0, BLOCK));
            setters.into_iter().for_each(|t| t.join().unwrap());
            taken.extend(ram.take(pages(0, BLOCK)));
            taken.sort();
            assert_eq!(taken, [0, 1]);
        })
    });
}

/// A page taken alone leaves its summary bit above a word of zeros, and the next take begins there.
#[test]
fn a_take_of_a_line_that_looks_clean_loses_no_mark() {
    EACH.into_iter().for_each(|marks| {
        model(move || {
            let ram = Ram::marked(BLOCK, marks);
            ram.take(pages(0, BLOCK));
            ram.mark(5);
            (5 * ram.span()..6 * ram.span())
                .for_each(|n| assert!(ram.dirty.test_and_clear(page(n), MIGRATION, &pin())));
            let setter = thread::spawn({
                let ram = ram.clone();
                move || ram.mark(0)
            });
            let mut taken = ram.take(pages(0, BLOCK));
            setter.join().unwrap();
            taken.extend(ram.take(pages(0, BLOCK)));
            assert_eq!(taken, [0]);
        })
    });
}

#[test]
fn a_mark_is_found_once_its_setter_returns_even_if_another_is_halfway() {
    EACH.into_iter().for_each(|marks| {
        model(move || {
            let ram = Ram::marked(BLOCK, marks);
            ram.take(pages(0, BLOCK));
            let other = thread::spawn({
                let ram = ram.clone();
                move || ram.mark(4)
            });
            ram.mark(4);
            assert_eq!(ram.take(pages(0, BLOCK)), [4]);
            other.join().unwrap();
        })
    });
}

#[test]
fn a_setter_that_skips_a_set_bit_is_read_by_the_taker() {
    EACH.into_iter().for_each(|marks| {
        model(move || {
            let ram = Ram::marked(BLOCK, marks);
            ram.take(pages(0, BLOCK));
            let setters = [0, 1].map(|n| {
                let ram = ram.clone();
                thread::spawn(move || ram.write(n, 7))
            });
            let taken = ram.take(pages(0, BLOCK));
            let seen = [ram.byte[0].load(Relaxed), ram.byte[1].load(Relaxed)];
            setters.into_iter().for_each(|t| t.join().unwrap());
            assert!(taken.is_empty() || taken == [7]);
            if seen != [1, 1] {
                assert_eq!(ram.take(pages(0, BLOCK)), [7], "a store is neither read nor marked");
            }
        })
    });
}

#[test]
fn a_take_of_a_part_leaves_the_rest_to_be_found() {
    model(|| {
        let ram = Ram::new(BLOCK);
        ram.take(pages(0, BLOCK));
        let setter = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.set(pages(9, 11), ClientMask::MIGRATION, &pin())
        });
        let mut taken = ram.take(pages(0, 10));
        setter.join().unwrap();
        taken.extend(ram.take(pages(0, BLOCK)));
        assert_eq!(taken, [9, 10]);
    });
}

#[test]
fn a_page_that_is_clean_for_one_client_is_listened_to_until_it_is_marked() {
    model(|| {
        let ram = Ram::new(BLOCK);
        ram.dirty.test_and_clear(page(2), MIGRATION, &pin());
        let setter = thread::spawn({
            let ram = ram.clone();
            move || ram.dirty.set(pages(2, 3), ClientMask::ALL, &pin())
        });
        let who = ram.dirty.listening(page(2), &pin());
        assert!(who.is_empty() || who.clients() == ClientMask::MIGRATION);
        setter.join().unwrap();
        assert!(ram.dirty.listening(page(2), &pin()).is_empty());
    });
}

/// The protocol once more, with its laws as switches.
mod twin {
    use super::*;
    use notdirty_core::sync::{AtomicPtr, fence};
    use std::ptr::null_mut;
    use std::sync::atomic::Ordering::{AcqRel, Acquire, SeqCst};

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// SUM-1: the setter sets the summary bit, then the word.
        SummaryBeforeWord,
        /// SUM-1: the taker takes the words, then clears the summary bit.
        WordBeforeSummary,
        /// SUM-1: the taker skips a word that looked zero before its clear of the summary was out.
        PeekAtWord,
        /// SUM-1: the setter skips a summary bit that looked set before its word was out.
        NoOrder,
        /// SUM-1: the setter trusts the setter of a bit it finds set to have set the summary bit, too.
        TrustTheOther,
        /// MARK-1: no fence between the store and the test that skips the mark.
        NoFence,
        /// MARK-1: the mark comes before the store.
        MarkBeforeStore,
        /// GROW-1: growth copies pointers to blocks, absent ones too, instead of sharing what points to them.
        CopyPointers,
        /// GROW-1: growth copies the bits.
        CopyBits,
    }

    struct Line {
        law: Law,
        word: AtomicU64,
        summary: AtomicU64,
        data: [AtomicU64; 2],
    }

    impl Line {
        fn new(law: Law) -> Arc<Self> {
            let zero = || AtomicU64::new(0);
            Arc::new(Self { law, word: zero(), summary: zero(), data: [zero(), zero()] })
        }

        fn write(&self, n: usize, bits: u64) {
            if self.law == Law::MarkBeforeStore {
                self.set(bits);
            }
            self.data[n].store(1, Relaxed);
            if self.law != Law::MarkBeforeStore {
                self.set(bits);
            }
        }

        fn set(&self, bits: u64) {
            if self.law != Law::NoFence {
                fence(SeqCst);
            }
            if self.law == Law::SummaryBeforeWord {
                self.summary.fetch_or(1, AcqRel);
            }
            if self.word.load(Acquire) & bits != bits {
                self.word.fetch_or(bits, AcqRel);
            } else if self.law == Law::TrustTheOther {
                return;
            }
            if self.law != Law::NoOrder {
                fence(SeqCst); // stands for the total order of SeqCst accesses, see `in_total_order`
            }
            if self.law != Law::SummaryBeforeWord && self.summary.load(Acquire) == 0 {
                self.summary.fetch_or(1, AcqRel);
            }
        }

        fn take(&self) -> u64 {
            if self.summary.load(Acquire) == 0 {
                return 0;
            }
            if self.law == Law::WordBeforeSummary {
                let bits = self.word.swap(0, AcqRel);
                self.summary.fetch_and(0, AcqRel);
                return bits;
            }
            self.summary.fetch_and(0, AcqRel);
            if self.law != Law::PeekAtWord {
                fence(SeqCst);
            }
            let bits = if self.word.load(Acquire) == 0 { 0 } else { self.word.swap(0, AcqRel) };
            fence(SeqCst);
            bits
        }
    }

    /// A mark during a take: it is found once, by this take or the next.
    fn marks_are_found(law: Law) {
        model(move || {
            let line = Line::new(law);
            line.set(1);
            line.word.swap(0, AcqRel); // a take of a part: the summary bit is left above a zero
            let setter = thread::spawn({
                let line = line.clone();
                move || line.set(1)
            });
            let first = line.take();
            setter.join().unwrap();
            assert_eq!(first + line.take(), 1, "the mark is lost");
        });
    }

    /// Two writers of one page; once either has returned its mark can be found.
    fn own_mark_is_found(law: Law) {
        model(move || {
            let line = Line::new(law);
            let other = thread::spawn({
                let line = line.clone();
                move || line.set(1)
            });
            line.set(1);
            assert_eq!(line.take(), 1, "own mark not found");
            other.join().unwrap();
        });
    }

    /// A store is read by the taker, or it is marked for the next one.
    fn store_is_read_or_marked(law: Law) {
        model(move || {
            let line = Line::new(law);
            line.set(1);
            let writer = thread::spawn({
                let line = line.clone();
                move || line.write(0, 1)
            });
            line.take();
            let seen = line.data[0].load(Relaxed);
            writer.join().unwrap();
            assert!(seen == 1 || line.take() == 1, "the store is neither read nor marked");
        });
    }

    #[test]
    fn the_laws_hold_in_the_twin() {
        marks_are_found(Law::Kept);
        own_mark_is_found(Law::Kept);
        store_is_read_or_marked(Law::Kept);
        store_survives_growth(Law::Kept);
        clear_survives_growth(Law::Kept);
    }

    #[test]
    #[should_panic(expected = "the mark is lost")]
    fn a_summary_bit_set_before_its_word_loses_a_page() {
        marks_are_found(Law::SummaryBeforeWord);
    }

    #[test]
    #[should_panic(expected = "the mark is lost")]
    fn a_summary_bit_cleared_after_its_words_loses_a_page() {
        marks_are_found(Law::WordBeforeSummary);
    }

    #[test]
    #[should_panic(expected = "the mark is lost")]
    fn a_taker_that_skips_a_word_that_looks_zero_too_early_loses_a_page() {
        marks_are_found(Law::PeekAtWord);
    }

    #[test]
    #[should_panic(expected = "the mark is lost")]
    fn a_setter_that_skips_a_summary_bit_that_looks_set_too_early_loses_a_page() {
        marks_are_found(Law::NoOrder);
    }

    #[test]
    #[should_panic(expected = "own mark")]
    fn a_setter_that_leaves_the_summary_to_another_is_not_found() {
        own_mark_is_found(Law::TrustTheOther);
    }

    #[test]
    #[should_panic(expected = "neither read nor marked")]
    fn a_skipped_mark_without_a_fence_loses_a_store() {
        store_is_read_or_marked(Law::NoFence);
    }

    #[test]
    #[should_panic(expected = "neither read nor marked")]
    fn a_mark_before_its_store_loses_the_store() {
        store_is_read_or_marked(Law::MarkBeforeStore);
    }

    /// A table of one or two slots. The slot is shared by old and new tables, or is not. Leaked, as in the real one.
    struct Table {
        law: Law,
        slots: AtomicPtr<Slots>,
        data: AtomicU64,
    }

    type Slots = Vec<Arc<AtomicPtr<AtomicU64>>>;

    impl Table {
        fn slots(&self) -> &'static Slots {
            // SAFETY: from `Box::into_raw`, never freed.
            unsafe { &*self.slots.load(Acquire) }
        }

        fn word(slot: &AtomicPtr<AtomicU64>) -> Option<&'static AtomicU64> {
            // SAFETY: null, or from `Box::into_raw` and never freed.
            unsafe { slot.load(Acquire).as_ref() }
        }

        fn grow(&self) {
            let copy = |slot: &Arc<AtomicPtr<AtomicU64>>| match self.law {
                Law::CopyPointers => Arc::new(AtomicPtr::new(slot.load(Acquire))),
                Law::CopyBits => Arc::new(AtomicPtr::new(match Self::word(slot) {
                    Some(word) => Box::into_raw(Box::new(AtomicU64::new(word.load(Acquire)))),
                    None => null_mut(),
                })),
                _ => slot.clone(),
            };
            let mut new: Slots = self.slots().iter().map(copy).collect();
            new.push(Arc::new(AtomicPtr::new(null_mut())));
            self.slots.store(Box::into_raw(Box::new(new)), std::sync::atomic::Ordering::Release);
        }

        fn write(&self) {
            self.data.store(1, Relaxed);
            fence(SeqCst);
            if let Some(word) = Self::word(&self.slots()[0]) {
                word.fetch_or(1, AcqRel);
            }
        }

        fn take(&self) -> u64 {
            let slot = &self.slots()[0];
            let word = Self::word(slot).unwrap_or_else(|| {
                let new = Box::into_raw(Box::new(AtomicU64::new(!0)));
                let _ = slot.compare_exchange(null_mut(), new, AcqRel, Acquire);
                Self::word(slot).unwrap()
            });
            let bits = word.swap(0, AcqRel);
            fence(SeqCst);
            bits
        }
    }

    fn new_table(law: Law) -> Arc<Table> {
        let slots: Slots = vec![Arc::new(AtomicPtr::new(null_mut()))];
        let slots = AtomicPtr::new(Box::into_raw(Box::new(slots)));
        Arc::new(Table { law, slots, data: AtomicU64::new(0) })
    }

    fn store_survives_growth(law: Law) {
        model(move || {
            let table = new_table(law);
            let setter = thread::spawn({
                let table = table.clone();
                move || table.write()
            });
            table.take();
            let seen = table.data.load(Relaxed);
            table.grow();
            setter.join().unwrap();
            assert!(seen == 1 || table.take() & 1 == 1, "the store is neither read nor marked");
        });
    }

    fn clear_survives_growth(law: Law) {
        model(move || {
            let table = new_table(law);
            let grower = thread::spawn({
                let table = table.clone();
                move || table.grow()
            });
            assert_eq!(table.take(), !0);
            grower.join().unwrap();
            assert_eq!(table.take(), 0, "a cleared bit is set again");
        });
    }

    #[test]
    #[should_panic(expected = "a cleared bit is set again")]
    fn growth_that_copies_pointers_to_blocks_forgets_who_listens() {
        clear_survives_growth(Law::CopyPointers);
    }

    #[test]
    #[should_panic(expected = "neither read nor marked")]
    fn growth_that_copies_bits_loses_a_store() {
        store_survives_growth(Law::CopyBits);
    }
}
