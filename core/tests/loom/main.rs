//! GROW-1, SUM-1 and MARK-1 under every interleaving, weak memory included:
//! `RUSTFLAGS="--cfg loom" cargo test -p notdirty-core --release --test loom`
//!
//! Here they run the real `DirtyMemory`, whose blocks are one word long in a model. `twin.rs` has a copy of its protocol,
//! small enough to break: each law is obeyed once, and then weakened, and the model has to notice.
//!
//! The same was done to the real code by hand; what fails in this file if one
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

mod twin;

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

/// A store and a harvest of one page while the table grows to `blocks`.
fn store_beside_growth(ram: &Arc<Ram>, blocks: u64) {
    let setter = thread::spawn({
        let ram = ram.clone();
        move || ram.write(0, 3)
    });
    let grower = thread::spawn({
        let ram = ram.clone();
        move || ram.dirty.grow(blocks * BLOCK).unwrap()
    });
    let seen = ram.harvest(3);
    setter.join().unwrap();
    grower.join().unwrap();
    assert!(seen[0] == 1 || ram.is_dirty(3), "the store is neither read nor marked");
}

#[test]
fn growth_never_hides_a_bit() {
    model(|| {
        let ram = Ram::new(BLOCK);
        ram.take(pages(0, BLOCK));
        store_beside_growth(&ram, 3);
        assert!(ram.is_dirty(BLOCK), "new pages are dirty");
    });
}

/// The block appears while the table grows and a setter may still hold the old table.
#[test]
fn growth_never_hides_a_block_that_is_being_installed() {
    model(|| store_beside_growth(&Ram::new(BLOCK), 2));
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
