//! Unplug against look-up, RAM-1's part in the list, under every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test -p notdirty-core --release --test loom_ram`
//!
//! First the real `RamList`, with its publication, its mru hint and its version. What it retires is leaked in a model, so
//! that a grace period ends, an address is reused or memory appears is played by a twin in the second half: each law is
//! kept there once and then weakened, and the model has to notice.
//!
//! The same was done to the real list by hand; what fails in the first half if one
//! - leaves out the version's step after a removal: `what_was_found_is_so…`
//! - takes the version's step of a plug before the publication: `a_block_that_is_plugged…`
//! - lets two change a block at once: `of_two_who_unplug…`
#![cfg(loom)]

use loom::model::Builder;
use loom::thread;
use notdirty_core::{PAGE_SIZE, RamAddr, RamBlock, RamBlockSpec, RamList, pin};
use std::sync::Arc;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(test);
}

fn list() -> (Arc<RamList>, Arc<RamBlock>) {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", PAGE_SIZE).max_length(2 * PAGE_SIZE).resizable(true)).unwrap();
    (list, block)
}

#[test]
fn a_look_up_finds_a_block_whole_or_not_at_all_while_it_is_unplugged() {
    model(|| {
        let (list, block) = list();
        let at = block.offset();
        let remover = thread::spawn({
            let list = list.clone();
            move || list.remove(&block).unwrap()
        });
        {
            let guard = pin();
            let find = || list.find(at, &guard).map(|found| (found.idstr().to_owned(), found.used_length()));
            let (first, second) = (find(), find()); // the second perhaps by the hint
            let whole = Some(("ram".to_owned(), PAGE_SIZE));
            assert!(first.is_none() || first == whole);
            assert!(second.is_none() || second == first, "a block came back");
        }
        remover.join().unwrap();
        // The hint of the reader died with its snapshot.
        assert!(list.find(at, &pin()).is_none());
        assert!(list.find_id("ram", &pin()).is_none());
    });
}

#[test]
fn what_was_found_is_so_as_long_as_the_version_is_the_same() {
    model(|| {
        let (list, block) = list();
        let at = block.offset();
        let remover = thread::spawn({
            let list = list.clone();
            move || list.remove(&block).unwrap()
        });
        let version = list.version();
        let found = list.find(at, &pin()).is_some();
        remover.join().unwrap();
        if list.version() == version {
            assert_eq!(found, list.find(at, &pin()).is_some(), "kept what is gone");
        }
    });
}

#[test]
fn a_block_that_is_plugged_is_found_by_who_reads_its_version() {
    model(|| {
        let (list, _block) = list();
        let plugger = thread::spawn({
            let list = list.clone();
            move || {
                list.add(RamBlockSpec::new("new", PAGE_SIZE)).unwrap();
            }
        });
        let version = list.version();
        let at = RamAddr::new(512 * PAGE_SIZE);
        let found = list.find(at, &pin()).is_some();
        plugger.join().unwrap();
        assert!(list.find(at, &pin()).is_some());
        assert!(found || list.version() != version, "the version is new, the list is old");
    });
}

#[test]
fn of_two_who_unplug_a_block_one_does() {
    model(|| {
        let (list, block) = list();
        let other = thread::spawn({
            let (list, block) = (list.clone(), block.clone());
            move || list.remove(&block).is_ok()
        });
        let ours = list.remove(&block).is_ok();
        assert!(ours != other.join().unwrap());
        assert_eq!(list.blocks(&pin()).count(), 0);
    });
}

#[test]
fn a_block_is_resized_before_it_is_unplugged_or_not_at_all() {
    model(|| {
        let (list, block) = list();
        let remover = thread::spawn({
            let (list, block) = (list.clone(), block.clone());
            move || list.remove(&block).is_ok()
        });
        let resized = list.resize(&block, 2 * PAGE_SIZE).is_ok();
        let removed = remover.join().unwrap();
        assert!(resized || removed, "each waits for the other");
        assert_eq!(block.used_length(), if resized { 2 * PAGE_SIZE } else { PAGE_SIZE });
        assert_eq!(list.blocks(&pin()).count(), usize::from(!removed));
    });
}

mod twin {
    use super::*;
    use notdirty_core::sync::{AtomicBool, AtomicU64, Ordering::*, fence};

    #[derive(Clone, Copy, PartialEq)]
    enum Law {
        Kept,
        /// A hint of the list's own, reset by the remover, as the field has it.
        HintOfTheList,
        /// Memory goes without a grace period.
        NoGrace,
        /// The version goes up before the list changes, and not after.
        VersionBefore,
        /// The version goes up after the list changed, and not before.
        VersionAfter,
        /// The address is free as soon as the block left the list.
        LeaseUntilRemoved,
        /// The length is told before there is memory.
        LengthFirst,
        /// The length is told without Release.
        LengthRelaxed,
    }

    /// A list with one block, or, once `current` is 1, without.
    struct Twin {
        law: Law,
        current: AtomicU64,
        /// Of each snapshot: whether the block was found last.
        hint: [AtomicU64; 2],
        version: AtomicU64,
        pinned: AtomicU64,
        unmapped: AtomicBool,
        refs: AtomicU64,
        /// Whose the block's addresses are: 0 the block's, 1 another's.
        owner: AtomicU64,
        memory: AtomicU64,
        used: AtomicU64,
    }

    impl Twin {
        fn new(law: Law) -> Arc<Self> {
            let zero = || AtomicU64::new(0);
            Arc::new(Self {
                law,
                current: zero(),
                hint: [zero(), zero()],
                version: zero(),
                pinned: zero(),
                unmapped: AtomicBool::new(false),
                refs: AtomicU64::new(2),
                owner: zero(),
                memory: AtomicU64::new(1),
                used: AtomicU64::new(1),
            })
        }

        /// A read section, as an epoch collector has it: the pin is visible before anything is read.
        fn pinned<T>(&self, read: impl FnOnce() -> T) -> T {
            self.pinned.fetch_add(1, AcqRel);
            fence(SeqCst);
            let result = read();
            self.pinned.fetch_add(!0, AcqRel);
            result
        }

        fn touch(&self) {
            assert!(!self.unmapped.load(Relaxed), "found a block that is gone");
        }

        fn look_up(&self) -> bool {
            self.pinned(|| {
                let snapshot = self.current.load(Acquire);
                let hint = if self.law == Law::HintOfTheList { 0 } else { snapshot };
                let hint = &self.hint[hint as usize];
                let found = hint.load(Relaxed) == 1 || snapshot == 0;
                if found {
                    self.touch();
                    hint.store(1, Relaxed);
                }
                found
            })
        }

        fn remove(&self) {
            if self.law != Law::VersionAfter {
                self.version.fetch_add(1, AcqRel);
            }
            self.current.swap(1, AcqRel);
            if self.law == Law::HintOfTheList {
                self.hint[0].store(0, Release);
            }
            fence(SeqCst);
            if self.law == Law::NoGrace || self.pinned.load(Acquire) == 0 {
                self.unmapped.store(true, Relaxed);
            }
            // The grace period began with the swap, so this may come after its end.
            if self.law != Law::VersionBefore {
                self.version.fetch_add(1, Release);
            }
        }

        fn grow(&self) {
            let told = if self.law == Law::LengthRelaxed { Relaxed } else { Release };
            if self.law == Law::LengthFirst {
                self.used.store(2, told);
            }
            self.memory.store(2, Relaxed);
            self.used.store(2, told);
        }

        /// The last to let go frees the addresses, which are another's at once.
        fn let_go(&self) {
            if self.refs.fetch_add(!0, AcqRel) == 1 {
                self.owner.store(1, Relaxed);
            }
        }
    }

    fn nobody_finds_what_is_gone(law: Law) {
        model(move || {
            let twin = Twin::new(law);
            let reader = thread::spawn({
                let twin = twin.clone();
                move || twin.look_up()
            });
            twin.remove();
            reader.join().unwrap();
            // Nobody reads: the grace period is over.
            twin.unmapped.store(true, Relaxed);
            assert!(!twin.look_up(), "found a block that is gone");
        });
    }

    fn what_was_kept_is_good_for_its_version(law: Law) {
        model(move || {
            let twin = Twin::new(law);
            let remover = thread::spawn({
                let twin = twin.clone();
                move || twin.remove()
            });
            let version = twin.version.load(Acquire);
            let found = twin.current.load(Acquire) == 0;
            remover.join().unwrap();
            assert!(!found || twin.version.load(Acquire) != version, "kept what is gone");
        });
    }

    fn what_was_kept_outlives_the_guard(law: Law) {
        model(move || {
            let twin = Twin::new(law);
            let kept = twin.version.load(Acquire);
            let remover = thread::spawn({
                let twin = twin.clone();
                move || twin.remove()
            });
            twin.pinned(|| {
                if twin.version.load(Acquire) == kept {
                    twin.touch();
                }
            });
            remover.join().unwrap();
        });
    }

    fn addresses_are_the_blocks_as_long_as_somebody_has_it(law: Law) {
        model(move || {
            let twin = Twin::new(law);
            let holder = thread::spawn({
                let twin = twin.clone();
                move || {
                    assert_eq!(twin.owner.load(Relaxed), 0, "marks the pages of another block");
                    twin.let_go();
                }
            });
            twin.remove();
            if law == Law::LeaseUntilRemoved {
                twin.owner.store(1, Relaxed);
            }
            twin.let_go();
            holder.join().unwrap();
            assert_eq!(twin.owner.load(Relaxed), 1, "the addresses are lost");
        });
    }

    fn a_length_that_is_seen_is_memory(law: Law) {
        model(move || {
            let twin = Twin::new(law);
            let grower = thread::spawn({
                let twin = twin.clone();
                move || twin.grow()
            });
            let used = twin.used.load(Acquire);
            assert!(twin.memory.load(Relaxed) >= used, "a length without memory");
            grower.join().unwrap();
        });
    }

    #[test]
    fn the_laws_hold_in_the_twin() {
        nobody_finds_what_is_gone(Law::Kept);
        what_was_kept_is_good_for_its_version(Law::Kept);
        what_was_kept_outlives_the_guard(Law::Kept);
        addresses_are_the_blocks_as_long_as_somebody_has_it(Law::Kept);
        a_length_that_is_seen_is_memory(Law::Kept);
    }

    #[test]
    #[should_panic(expected = "found a block that is gone")]
    fn a_hint_of_the_lists_own_brings_a_block_back() {
        nobody_finds_what_is_gone(Law::HintOfTheList);
    }

    #[test]
    #[should_panic(expected = "found a block that is gone")]
    fn memory_that_goes_without_grace_goes_from_under_a_reader() {
        nobody_finds_what_is_gone(Law::NoGrace);
    }

    #[test]
    #[should_panic(expected = "kept what is gone")]
    fn a_version_that_goes_up_first_only_names_an_old_list() {
        what_was_kept_is_good_for_its_version(Law::VersionBefore);
    }

    #[test]
    #[should_panic(expected = "found a block that is gone")]
    fn a_version_that_goes_up_last_only_lets_a_kept_block_go() {
        what_was_kept_outlives_the_guard(Law::VersionAfter);
    }

    #[test]
    #[should_panic(expected = "marks the pages of another block")]
    fn addresses_that_are_free_at_once_are_anothers_too_soon() {
        addresses_are_the_blocks_as_long_as_somebody_has_it(Law::LeaseUntilRemoved);
    }

    #[test]
    #[should_panic(expected = "a length without memory")]
    fn a_length_that_comes_before_its_memory_is_a_fault() {
        a_length_that_is_seen_is_memory(Law::LengthFirst);
    }

    #[test]
    #[should_panic(expected = "a length without memory")]
    fn a_length_without_release_is_a_fault() {
        a_length_that_is_seen_is_memory(Law::LengthRelaxed);
    }
}
