//! Clients that come and go, takes, snapshots: under every interleaving, weak memory included.
//! `RUSTFLAGS="--cfg loom" cargo test -p notdirty-core --release --test loom_clients`
//!
//! As in `loom`: first the real `DirtyMemory`, then a twin whose laws can be broken, and has to lose a page then.
//! What fails in the first half if the real code is broken by hand:
//! - the id is looked at before the block is loaded: `a_number_that_outlived_its_client_steals_no_mark`
//! - a block is installed whatever the id: that, and `…installs_no_block`
//! - a setter looks who tracks before its fence: `a_store_is_heard_by_who_has_a_column_again`
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::RawDirty;
use notdirty_core::sync::{AtomicPtr, AtomicU64, Ordering::Relaxed, fence};
use notdirty_core::{ClientMask, DirtyClient, DirtyMemory, OwnedClient, PageIndex, PageRange, PageSet, pin};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const BLOCK: u64 = 64;
const ALL: PageRange = PageRange { start: PageIndex::new(0), end: PageIndex::new(BLOCK) };

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

fn page(n: u64) -> PageRange {
    PageRange::of_page(PageIndex::new(n))
}

fn memory() -> Arc<DirtyMemory> {
    let dirty = DirtyMemory::new();
    dirty.grow(BLOCK).unwrap();
    Arc::new(dirty)
}

fn client(dirty: &Arc<DirtyMemory>) -> OwnedClient {
    DirtyMemory::add_client(dirty, "somebody").unwrap()
}

fn numbers(pages: &PageSet) -> Vec<u64> {
    pages.ranges().flat_map(|range| range.iter()).map(PageIndex::get).collect()
}

fn take(dirty: &DirtyMemory, client: DirtyClient) -> Vec<u64> {
    let mut pages = PageSet::new();
    dirty.take(ALL, client, &pin(), &mut pages);
    numbers(&pages)
}

/// A setter that marks for the only client that tracks, while another begins to.
#[test]
fn a_client_that_begins_to_track_while_another_has_its_page_marked_misses_no_store() {
    model(|| {
        let (dirty, byte) = (memory(), Arc::new(AtomicU64::new(0)));
        dirty.test_and_clear(PageIndex::new(3), DirtyClient::VGA, &pin());
        let setter = thread::spawn({
            let (dirty, byte) = (dirty.clone(), byte.clone());
            move || {
                byte.store(1, Relaxed);
                dirty.set(page(3), ClientMask::VGA | ClientMask::MIGRATION, &pin());
            }
        });
        dirty.test_and_clear(PageIndex::new(3), MIGRATION, &pin());
        let seen = byte.load(Relaxed);
        setter.join().unwrap();
        assert!(seen == 1 || dirty.test(PageIndex::new(3), MIGRATION, &pin()), "neither read nor marked");
        assert!(dirty.test(PageIndex::new(3), DirtyClient::VGA, &pin()));
    });
}

/// Both come to their first block at once, or the one while a third client goes: no one's bit among those that track is lost.
#[test]
fn two_clients_that_begin_to_track_at_once_both_do() {
    for one_goes in [false, true] {
        model(move || {
            let dirty = memory();
            let goes = one_goes.then(|| client(&dirty));
            goes.iter().for_each(|goes| drop(take(&dirty, goes.client())));
            let other = thread::spawn({
                let dirty = dirty.clone();
                move || match goes {
                    Some(goes) => drop(goes),
                    None => drop(take(&dirty, DirtyClient::VGA)),
                }
            });
            take(&dirty, MIGRATION);
            other.join().unwrap();
            dirty.set(page(3), ClientMask::VGA | ClientMask::MIGRATION, &pin());
            assert_eq!(take(&dirty, MIGRATION), [3]);
            assert_eq!(take(&dirty, DirtyClient::VGA).len(), if one_goes { BLOCK as usize } else { 1 });
        });
    }
}

/// As vCPUs with rings do, who have to know which marks are theirs.
#[test]
fn two_setters_that_are_told_what_is_new_lose_no_mark() {
    model(|| {
        let dirty = memory();
        take(&dirty, MIGRATION);
        let set_new = |dirty: &DirtyMemory, at| {
            let mut told = 0;
            dirty.set_new(page(at), ClientMask::MIGRATION, &pin(), |_, _, bits| told += bits.count_ones());
            told
        };
        let other = thread::spawn({
            let dirty = dirty.clone();
            move || set_new(&dirty, 3) + set_new(&dirty, 4)
        });
        let ours = set_new(&dirty, 4);
        assert_eq!(ours + other.join().unwrap(), 2, "each mark is told once");
        assert_eq!(take(&dirty, MIGRATION), [3, 4]);
    });
}

/// A setter has read the mask of a client that drops, and may hold its block. The next client has the same column.
#[test]
fn a_store_is_heard_by_who_has_a_column_again() {
    model(|| {
        let (dirty, byte) = (memory(), Arc::new(AtomicU64::new(0)));
        let old = client(&dirty);
        let mask = ClientMask::of(old.client());
        take(&dirty, old.client());
        let setter = thread::spawn({
            let (dirty, byte) = (dirty.clone(), byte.clone());
            move || {
                byte.store(1, Relaxed);
                dirty.set(page(3), mask, &pin());
            }
        });
        drop(old);
        let new = client(&dirty);
        assert_eq!(mask, ClientMask::of(new.client()), "the column is free at once");
        dirty.test_and_clear(PageIndex::new(3), new.client(), &pin());
        let seen = byte.load(Relaxed);
        setter.join().unwrap();
        let marked = dirty.test(PageIndex::new(3), new.client(), &pin());
        assert!(seen == 1 || marked, "the store is neither read nor marked");
    });
}

/// A taker goes on with the number of a client that has dropped, while the next one has its column.
#[test]
fn a_number_that_outlived_its_client_steals_no_mark() {
    model(|| {
        let dirty = memory();
        let old = client(&dirty);
        let number = old.client();
        take(&dirty, number);
        let taker = thread::spawn({
            let dirty = dirty.clone();
            move || dirty.test_and_clear(PageIndex::new(3), number, &pin())
        });
        drop(old);
        let new = client(&dirty);
        assert_eq!(take(&dirty, new.client()).len(), BLOCK as usize, "a new client has seen no page");
        dirty.set(page(3), ClientMask::of(new.client()), &pin());
        taker.join().unwrap();
        assert_eq!(take(&dirty, new.client()), [3], "the mark is stolen");
    });
}

/// As that, but the old client has no block yet, and would install one.
#[test]
fn a_number_that_outlived_its_client_installs_no_block() {
    model(|| {
        let dirty = memory();
        let old = client(&dirty);
        let number = old.client();
        let taker = thread::spawn({
            let dirty = dirty.clone();
            move || dirty.test_and_clear(PageIndex::new(3), number, &pin())
        });
        drop(old);
        let new = client(&dirty);
        assert!(dirty.listening(PageIndex::new(3), &pin()).is_empty(), "the new client does not listen yet");
        taker.join().unwrap();
        assert_eq!(take(&dirty, new.client()).len(), BLOCK as usize);
    });
}

#[test]
fn whoever_asks_who_listens_while_a_client_drops_gets_the_old_answer_or_the_new_one() {
    model(|| {
        let dirty = memory();
        let own = client(&dirty);
        let mask = ClientMask::of(own.client());
        dirty.test_and_clear(PageIndex::new(3), own.client(), &pin());
        let reader = thread::spawn({
            let dirty = dirty.clone();
            move || dirty.listening(PageIndex::new(3), &pin())
        });
        drop(own);
        assert!(dirty.listening(PageIndex::new(3), &pin()).is_empty());
        let who = reader.join().unwrap();
        assert!(who.is_empty() || who.clients() == mask);
    });
}

#[test]
fn a_store_during_a_take_is_read_or_dirty() {
    model(move || {
        let (dirty, byte) = (memory(), Arc::new(AtomicU64::new(0)));
        take(&dirty, MIGRATION);
        dirty.set(page(3), ClientMask::MIGRATION, &pin());
        let setter = thread::spawn({
            let (dirty, byte) = (dirty.clone(), byte.clone());
            move || {
                byte.store(1, Relaxed);
                dirty.set(page(3), ClientMask::MIGRATION, &pin());
            }
        });
        assert_eq!(take(&dirty, MIGRATION), [3]);
        let seen = byte.load(Relaxed);
        setter.join().unwrap();
        assert!(seen == 1 || take(&dirty, MIGRATION) == [3], "the store is neither read nor marked");
    });
}

#[test]
fn a_mark_is_in_the_snapshot_or_after_it_and_in_one_of_them_only() {
    model(|| {
        let dirty = memory();
        take(&dirty, MIGRATION);
        dirty.set(page(3), ClientMask::MIGRATION, &pin());
        let setter = thread::spawn({
            let dirty = dirty.clone();
            move || {
                dirty.set(PageRange { start: PageIndex::new(4), end: PageIndex::new(6) }, ClientMask::MIGRATION, &pin())
            }
        });
        let snapshot = dirty.snapshot_and_clear(ALL, MIGRATION, &pin());
        setter.join().unwrap();
        let mut all = numbers(snapshot.pages());
        all.extend(take(&dirty, MIGRATION));
        assert_eq!(all, [3, 4, 5], "each mark once");
    });
}

/// The protocols once more, with their laws as switches.
mod twin {
    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// A taker looks at the id before it loads the block.
        IdBeforeBlock,
        /// A setter looks who tracks before its store is out.
        LookBeforeFence,
        /// A snapshot copies the word, then clears it.
        CopyThenClear,
    }

    /// One column: the owner's id, whether it tracks, its block of one word under one summary bit; a byte of RAM.
    struct Column {
        law: Law,
        id: AtomicU64,
        tracking: AtomicU64,
        block: AtomicPtr<Block>,
        byte: AtomicU64,
    }

    struct Block {
        word: AtomicU64,
        summary: AtomicU64,
    }

    impl Block {
        fn new(bits: u64) -> *mut Self {
            // Leaked, as what is retired in a model.
            Box::into_raw(Box::new(Self { word: AtomicU64::new(bits), summary: AtomicU64::new(1) }))
        }

        fn set(&self, bits: u64) {
            self.word.fetch_or(bits, AcqRel);
            fence(SeqCst);
            if self.summary.load(Acquire) == 0 {
                self.summary.fetch_or(1, AcqRel);
            }
        }

        fn take(&self) -> u64 {
            if self.summary.load(Acquire) == 0 {
                return 0;
            }
            self.summary.fetch_and(0, AcqRel);
            fence(SeqCst);
            let bits = self.word.swap(0, AcqRel);
            fence(SeqCst);
            bits
        }
    }

    impl Column {
        fn new(law: Law, block: *mut Block) -> Arc<Self> {
            let (id, tracking) = (AtomicU64::new(1), AtomicU64::new(u64::from(!block.is_null())));
            Arc::new(Self { law, id, tracking, block: AtomicPtr::new(block), byte: AtomicU64::new(0) })
        }

        fn block(&self) -> Option<&'static Block> {
            // SAFETY: null, or leaked by `Block::new`.
            unsafe { self.block.load(Acquire).as_ref() }
        }

        fn change_hands(&self) {
            self.id.store(2, Release);
            self.block.swap(null_mut(), AcqRel);
            self.block.compare_exchange(null_mut(), Block::new(!0), AcqRel, Acquire).unwrap();
        }

        fn stale_take(&self, id: u64) {
            let before = self.id.load(Acquire) == id;
            let Some(block) = self.block() else { return };
            let current = if self.law == Law::IdBeforeBlock { before } else { self.id.load(Acquire) == id };
            if current {
                block.word.fetch_and(!1, AcqRel);
            }
        }

        fn write(&self) {
            let early = self.tracking.load(Acquire);
            self.byte.store(1, Relaxed);
            fence(SeqCst);
            let tracking = if self.law == Law::LookBeforeFence { early } else { self.tracking.load(Acquire) };
            if let Some(block) = self.block().filter(|_| tracking != 0) {
                block.set(1);
            }
        }

        fn begin(&self) -> &'static Block {
            self.tracking.fetch_or(1, AcqRel);
            let _ = self.block.compare_exchange(null_mut(), Block::new(!0), AcqRel, Acquire);
            self.block().unwrap()
        }
    }

    fn a_stale_taker_steals_nothing(law: Law) {
        model(move || {
            let column = Column::new(law, Block::new(0));
            let taker = thread::spawn({
                let column = column.clone();
                move || column.stale_take(1)
            });
            column.change_hands();
            let block = column.block().unwrap();
            block.take();
            block.set(1);
            taker.join().unwrap();
            assert_eq!(block.take(), 1, "the mark is stolen");
        });
    }

    fn who_begins_to_listen_hears(law: Law) {
        model(move || {
            let column = Column::new(law, null_mut());
            let setter = thread::spawn({
                let column = column.clone();
                move || column.write()
            });
            let block = column.begin();
            block.take();
            let seen = column.byte.load(Relaxed);
            setter.join().unwrap();
            assert!(seen == 1 || block.take() == 1, "the store is neither read nor marked");
        });
    }

    fn a_snapshot_has_it_or_leaves_it(law: Law) {
        model(move || {
            let column = Column::new(law, Block::new(0b01));
            let block = column.block().unwrap();
            let setter = thread::spawn({
                let column = column.clone();
                move || column.block().unwrap().set(0b10)
            });
            let snapshot = match law {
                Law::CopyThenClear => {
                    let copy = block.word.load(Acquire);
                    block.word.swap(0, AcqRel);
                    copy
                }
                _ => block.take(),
            };
            setter.join().unwrap();
            assert_eq!(snapshot | block.take(), 0b11, "a mark is lost");
        });
    }

    #[test]
    fn the_laws_hold_in_the_twin() {
        a_stale_taker_steals_nothing(Law::Kept);
        who_begins_to_listen_hears(Law::Kept);
        a_snapshot_has_it_or_leaves_it(Law::Kept);
    }

    #[test]
    #[should_panic(expected = "the mark is stolen")]
    fn an_id_that_is_looked_at_before_the_block_lets_an_old_client_steal() {
        a_stale_taker_steals_nothing(Law::IdBeforeBlock);
    }

    #[test]
    #[should_panic(expected = "neither read nor marked")]
    fn a_setter_that_looks_who_tracks_before_its_fence_loses_a_store() {
        who_begins_to_listen_hears(Law::LookBeforeFence);
    }

    #[test]
    #[should_panic(expected = "a mark is lost")]
    fn a_snapshot_that_copies_before_it_clears_loses_a_page() {
        a_snapshot_has_it_or_leaves_it(Law::CopyThenClear);
    }
}
