//! A taker and a setter in the same words, unsynchronised: each mark is taken exactly once. The models have short words; this
//! is for the code that takes whole lines and runs of words. NOTDIRTY_RACE_SECONDS=n: longer.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{ClientMask, DirtyClient, PAGE_SIZE, PageIndex, PageRange, RamBlockSpec, RamList, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How the setter marks: `pages` at a time, some of the first `of` ones.
fn race(pages: u64, of: u64) {
    let seconds = std::env::var("NOTDIRTY_RACE_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(0.7);
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", 64 * 512 * PAGE_SIZE)).unwrap(); // one word of the summary
    let all = block.pages();
    let client = DirtyClient::MIGRATION;
    let take = || list.dirty().test_and_clear_range(all, client, &pin(), |_, _| {});
    take();
    let (stop, marked) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut taken = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut x, mut new) = (1u64, 0u64);
            while !stop.load(Ordering::Relaxed) {
                let guard = pin();
                for _ in 0..64 {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let start = all.start.get() + x % of;
                    let range = PageRange { start: PageIndex::new(start), end: PageIndex::new(start + pages) };
                    let count = |_, _, bits: u64| new += u64::from(bits.count_ones());
                    list.dirty().set_new(range, ClientMask::MIGRATION, &guard, count);
                }
            }
            marked.fetch_add(new, Ordering::Relaxed);
        });
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            taken += take();
        }
        stop.store(true, Ordering::Relaxed);
    });
    taken += take();
    let guard = pin();
    let left = all.iter().filter(|page| list.dirty().test(*page, client, &guard)).count();
    assert_eq!((taken, left), (marked.load(Ordering::Relaxed), 0), "{pages} of {of}");
}

#[test]
fn each_mark_of_lone_pages_is_taken_exactly_once() {
    race(1, 1024); // two lines: what is marked and what is taken meet
    race(1, 64);
}

#[test]
fn each_mark_of_runs_is_taken_exactly_once() {
    race(200, 1024);
}

/// `set` asks nothing of the word that it changes: two setters in the same words, each of its own pages, and no mark is lost.
#[test]
fn marks_of_two_setters_in_the_same_words_all_stay() {
    const PAGES: u64 = 64 * 64;
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap();
    let (all, client) = (block.pages(), DirtyClient::MIGRATION);
    let take = || list.dirty().test_and_clear_range(all, client, &pin(), |_, _| {});
    take();
    let round = AtomicU64::new(0);
    let meet = |n: u64| {
        round.fetch_add(1, Ordering::SeqCst);
        while round.load(Ordering::SeqCst) < n {
            std::thread::yield_now();
        }
    };
    const ROUNDS: u64 = 200;
    let set = |own: u64| {
        let guard = pin();
        for page in all.iter().filter(|page| page.get() % 2 == own) {
            list.dirty().set(PageRange::of_page(page), ClientMask::MIGRATION, &guard);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..ROUNDS {
                meet(4 * n + 2);
                set(1);
                meet(4 * n + 4);
            }
        });
        let taken: Vec<u64> = (0..ROUNDS)
            .map(|n| {
                meet(4 * n + 2);
                set(0);
                meet(4 * n + 4);
                take()
            })
            .collect();
        assert!(taken.iter().all(|taken| *taken == PAGES), "{taken:?}");
    });
}
