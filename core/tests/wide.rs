//! Models of takes that are not of one word: a line whose words are exchanged one after the other, as runs or each for itself,
//! and lines in two words of the summary. `cargo loom-wide`; in `loom` a block is one word.
#![cfg(all(loom, loom_wide))]

use loom::model::Builder;
use loom::thread;
use notdirty_core::raw::RawDirty;
use notdirty_core::sync::{AtomicU64, BLOCK_WORDS, Ordering, SUMMARY_WORDS};
use notdirty_core::{ClientMask, DirtyClient, DirtyMemory, PageIndex, PageRange, PageSet, pin};
use std::sync::Arc;

const CLIENT: DirtyClient = DirtyClient::MIGRATION;
const LINE: u64 = SUMMARY_WORDS as u64 * 64;
const PAGES: u64 = BLOCK_WORDS as u64 * 64;

/// A word from each of the first two words of the summary, and one more of the first line.
struct Ram {
    dirty: DirtyMemory,
    bytes: [AtomicU64; 3],
}

const AT: [u64; 3] = [5, LINE - 64, PAGES - 1];

fn page(n: u64) -> PageRange {
    PageRange::of_page(PageIndex::new(n))
}

#[derive(Clone, Copy)]
enum Take {
    Runs,
    Words,
}

/// Takes all, and reads what it took. How often each of the places was taken is added to `times`.
fn take(ram: &Ram, how: Take, seen: &mut [u64; 3], times: &mut [u64; 3]) {
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(PAGES) };
    let mut pages = PageSet::new();
    match how {
        Take::Runs => ram.dirty.take(all, CLIENT, &pin(), &mut pages),
        Take::Words => {
            ram.dirty.test_and_clear_range(all, CLIENT, &pin(), |first, bits| pages.push(first, bits));
        }
    }
    for n in 0..3 {
        if pages.contains(PageIndex::new(AT[n])) {
            seen[n] = ram.bytes[n].load(Ordering::Relaxed);
            times[n] += 1;
        }
    }
}

fn each_store_is_read_after_its_take(how: Take, whole_line: bool, writes: &'static [usize]) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.max_branches = 100_000;
    builder.check(move || {
        let ram = Arc::new(Ram { dirty: DirtyMemory::new(), bytes: [(); 3].map(|()| AtomicU64::new(0)) });
        ram.dirty.grow(PAGES).unwrap();
        let (mut seen, mut times) = ([0; 3], [0; 3]);
        take(&ram, how, &mut seen, &mut times);
        if whole_line {
            // Three words that are not zero: they are taken as a line.
            (0..3).for_each(|n| ram.dirty.set(page(n * 64 + 1), ClientMask::MIGRATION, &pin()));
        }
        let writer = thread::spawn({
            let ram = ram.clone();
            move || {
                for &n in writes {
                    ram.bytes[n].store(1, Ordering::Relaxed);
                    ram.dirty.set(page(AT[n]), ClientMask::MIGRATION, &pin());
                }
            }
        });
        times = [0; 3];
        take(&ram, how, &mut seen, &mut times);
        writer.join().unwrap();
        take(&ram, how, &mut seen, &mut times);
        for n in 0..3 {
            let written = u64::from(writes.contains(&n));
            assert_eq!((seen[n], times[n]), (written, written), "place {n}");
        }
        take(&ram, how, &mut seen, &mut times);
        assert_eq!(times.iter().sum::<u64>(), writes.len() as u64, "nothing is left");
    });
}

#[test]
fn a_mark_in_a_line_that_is_taken_as_runs_is_taken_once() {
    each_store_is_read_after_its_take(Take::Runs, true, &[0, 1]);
}

#[test]
fn a_mark_in_a_line_that_is_taken_word_by_word_is_taken_once() {
    each_store_is_read_after_its_take(Take::Words, true, &[0, 1]);
}

#[test]
fn marks_in_lines_that_look_clean_are_taken_once_each() {
    each_store_is_read_after_its_take(Take::Runs, false, &[0, 1]);
}

#[test]
fn marks_under_two_words_of_the_summary_are_taken_once_each() {
    each_store_is_read_after_its_take(Take::Runs, false, &[2, 0]);
    each_store_is_read_after_its_take(Take::Words, false, &[0, 2]);
}

/// `before` is marked, and taken with `range`, while another thread marks `meanwhile`: both are found, once each.
fn a_mark_beside_what_is_taken_stays(range: std::ops::Range<u64>, before: u64, meanwhile: u64) {
    let pages = |start, end| PageRange { start: PageIndex::new(start), end: PageIndex::new(end) };
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.max_branches = 100_000;
    builder.check(move || {
        let dirty = Arc::new(DirtyMemory::new());
        dirty.grow(PAGES).unwrap();
        let take = |range| {
            let mut taken = PageSet::new();
            dirty.take(range, CLIENT, &pin(), &mut taken);
            [before, meanwhile].map(|page| usize::from(taken.contains(PageIndex::new(page))))
        };
        take(pages(0, PAGES));
        dirty.set(page(before), ClientMask::MIGRATION, &pin());
        let setter = thread::spawn({
            let dirty = dirty.clone();
            move || dirty.set(page(meanwhile), ClientMask::MIGRATION, &pin())
        });
        let first = take(pages(range.start, range.end));
        setter.join().unwrap();
        let rest = take(pages(0, PAGES));
        assert_eq!([first[0] + rest[0], first[1] + rest[1]], [1, 1]);
    });
}

#[test]
fn a_take_of_a_part_of_a_word_leaves_the_marks_of_the_rest() {
    a_mark_beside_what_is_taken_stays(0..10, 5, 20);
}

#[test]
fn a_take_of_a_line_leaves_the_mark_of_the_next_line_under_its_word_of_the_summary() {
    a_mark_beside_what_is_taken_stays(0..LINE, 5, LINE + 5);
}

#[test]
fn a_mark_in_a_clean_line_is_found_while_all_lines_of_its_word_of_the_summary_are_taken() {
    a_mark_beside_what_is_taken_stays(0..PAGES, 5, LINE + 5);
}
