//! The protocol of the dirty memory once more, with its laws as switches.

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
