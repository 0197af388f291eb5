//! Every operation against something too simple to be wrong: dirty memory against `Vec<bool>`, the RAM list
//! against a `Vec` of what was added.
#![cfg(not(loom))]

use notdirty_core::{
    ClientMask, DirtyClient, DirtyMemory, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamBlock, RamBlockSpec, RamError,
    RamList, pin,
};
use proptest::prelude::*;
use std::sync::Arc;

/// Pages of one dirty block. The window under test has a border of two blocks in its middle.
const BLOCK: u64 = 256 * 1024 * 8;
const WINDOW: u64 = 4096;
const BASE: u64 = BLOCK - WINDOW / 2;

/// One operation; pages count from `BASE`.
#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64, u8),
    TakeRange(u64, u64, usize),
    TakePage(u64, usize),
    Test(u64, usize),
    Listening(u64),
    Grow(u64),
}

/// A page of the window, often one at an edge of a word, a summary line or a block.
fn a_page() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..WINDOW,
        (0..WINDOW / 64, 0..3u64).prop_map(|(w, d)| (w * 64 + d).saturating_sub(1)),
        (0..WINDOW / 512, 0..3u64).prop_map(|(l, d)| (l * 512 + d).saturating_sub(1)),
        (0..3u64).prop_map(|d| WINDOW / 2 + d - 1),
    ]
}

/// The end of a range: any page, near its start, or the end of the window.
fn a_range() -> impl Strategy<Value = (u64, u64)> {
    let end = prop_oneof![a_page().prop_map(Some), Just(Some(WINDOW)), Just(None)];
    (a_page(), end, 0..130u64).prop_map(|(a, b, near)| {
        let b = b.unwrap_or((a + near).min(WINDOW));
        (a.min(b), a.max(b))
    })
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (a_range(), 0..8u8).prop_map(|((a, b), m)| Op::Set(a, b, m)),
        (a_range(), 0..3usize).prop_map(|((a, b), c)| Op::TakeRange(a, b, c)),
        (a_page(), 0..3usize).prop_map(|(p, c)| Op::TakePage(p, c)),
        (a_page(), 0..3usize).prop_map(|(p, c)| Op::Test(p, c)),
        a_page().prop_map(Op::Listening),
        (0..5 * BLOCK).prop_map(Op::Grow),
    ]
}

fn pages(a: u64, b: u64) -> PageRange {
    PageRange { start: PageIndex::new(BASE + a), end: PageIndex::new(BASE + b) }
}

fn clients(bits: u8) -> ClientMask {
    let some = DirtyClient::FIXED.into_iter().filter(|c| bits >> c.column() & 1 != 0);
    some.fold(ClientMask::NONE, |mask, c| mask | ClientMask::of(c))
}

/// Takes a range and tells which pages of the window it had.
fn take(dirty: &DirtyMemory, a: u64, b: u64, client: usize) -> (u64, Vec<u64>) {
    let mut taken = Vec::new();
    let count = dirty.test_and_clear_range(pages(a, b), DirtyClient::FIXED[client], &pin(), |first, bits| {
        assert_ne!(bits, 0);
        taken.extend((0..64).filter(|n| bits >> n & 1 != 0).map(|n| first.get() + n - BASE));
    });
    (count, taken)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dirty_memory_does_what_a_vec_of_bool_does(ops in prop::collection::vec(an_op(), 1..60)) {
        let dirty = DirtyMemory::new();
        dirty.grow(BASE + WINDOW).unwrap();
        let mut model = vec![[true; 3]; WINDOW as usize];
        for op in ops {
            match op {
                Op::Set(a, b, mask) => {
                    dirty.set(pages(a, b), clients(mask), &pin());
                    for c in (0..3).filter(|c| mask >> c & 1 != 0) {
                        model[a as usize..b as usize].iter_mut().for_each(|page| page[c] = true);
                    }
                }
                Op::TakeRange(a, b, c) => {
                    let (count, taken) = take(&dirty, a, b, c);
                    let expected: Vec<_> = (a..b).filter(|p| model[*p as usize][c]).collect();
                    prop_assert_eq!(count, expected.len() as u64);
                    prop_assert_eq!(taken, expected);
                    model[a as usize..b as usize].iter_mut().for_each(|page| page[c] = false);
                }
                Op::TakePage(p, c) => {
                    let was = dirty.test_and_clear(PageIndex::new(BASE + p), DirtyClient::FIXED[c], &pin());
                    prop_assert_eq!(was, std::mem::replace(&mut model[p as usize][c], false));
                }
                Op::Test(p, c) => {
                    let is = dirty.test(PageIndex::new(BASE + p), DirtyClient::FIXED[c], &pin());
                    prop_assert_eq!(is, model[p as usize][c]);
                }
                Op::Listening(p) => {
                    let who = dirty.listening(PageIndex::new(BASE + p), &pin());
                    for client in DirtyClient::FIXED {
                        prop_assert_eq!(who.contains(client), !model[p as usize][client.column()]);
                    }
                }
                Op::Grow(pages) => dirty.grow(pages).unwrap(),
            }
        }
        // Whatever happened, the summary leads to every bit that is left (SUM-1), and to nothing else.
        for c in DirtyClient::FIXED.map(|client| client.column()) {
            let left: Vec<_> = (0..WINDOW).filter(|p| model[*p as usize][c]).collect();
            prop_assert_eq!(take(&dirty, 0, WINDOW, c).1, left);
            prop_assert_eq!(take(&dirty, 0, WINDOW, c).0, 0);
        }
    }

    #[test]
    fn the_list_finds_each_block_and_nothing_else(steps in prop::collection::vec((any::<bool>(), 1..700u64, any::<usize>()), 1..80)) {
        let list = RamList::new();
        let mut model: Vec<Arc<RamBlock>> = Vec::new();
        for (n, (add, pages, pick)) in steps.into_iter().enumerate() {
            let version = list.version();
            if add || model.is_empty() {
                let spec = RamBlockSpec::new(format!("ram{n}"), PAGE_SIZE).max_length(pages * PAGE_SIZE);
                model.push(list.add(spec).unwrap());
            } else {
                let gone = model.swap_remove(pick % model.len());
                list.remove(&gone).unwrap();
                let refused = matches!(list.remove(&gone), Err(RamError::NotInList { .. }));
                prop_assert!(refused, "removed twice");
                prop_assert!(list.find(gone.offset(), &pin()).is_none());
            }
            prop_assert!(list.version() > version);
            model.sort_by_key(|b| b.offset());
            let guard = pin();
            prop_assert!(list.blocks(&guard).map(|b| b.idstr()).eq(model.iter().map(|b| b.idstr())));
            for block in &model {
                let (offset, max) = (block.offset().get(), block.max_length());
                prop_assert_eq!(offset % (512 * PAGE_SIZE), 0);
                for off in [0, max / 2, max - 1] {
                    let found = list.find(RamAddr::new(offset + off), &guard).unwrap();
                    prop_assert!(Arc::ptr_eq(found, block));
                    let (found, at) = list.find_host(block.host().wrapping_add(off as usize), &guard).unwrap();
                    prop_assert!(Arc::ptr_eq(found, block) && at == off);
                }
                prop_assert!(list.find(RamAddr::new(offset + max), &guard).is_none_or(|b| !Arc::ptr_eq(b, block)));
                prop_assert!(list.find_host(block.host().wrapping_add(max as usize), &guard).is_none());
            }
            for two in model.windows(2) {
                prop_assert!(two[0].offset().get() + two[0].max_length() <= two[1].offset().get());
            }
        }
    }
}

#[test]
fn what_lies_past_the_table_reads_dirty_and_stays_so() {
    let dirty = DirtyMemory::new();
    let guard = pin();
    let far = PageIndex::new(u64::MAX);
    assert!(dirty.test(far, DirtyClient::VGA, &guard));
    assert!(dirty.test_and_clear(far, DirtyClient::VGA, &guard));
    assert!(dirty.test(far, DirtyClient::VGA, &guard));
    assert!(dirty.listening(far, &guard).is_empty());
    let all = PageRange { start: PageIndex::new(0), end: far };
    dirty.set(all, ClientMask::ALL, &guard);
    assert_eq!(dirty.test_and_clear_range(all, DirtyClient::VGA, &guard, |_, _| panic!()), 0);
    let backwards = PageRange { start: PageIndex::new(70), end: PageIndex::new(3) };
    dirty.grow(100).unwrap();
    dirty.set(backwards, ClientMask::ALL, &guard);
    assert_eq!(dirty.test_and_clear_range(backwards, DirtyClient::VGA, &guard, |_, _| panic!()), 0);
    assert_eq!(dirty.grow(u64::MAX).unwrap_err().pages, u64::MAX);
}

#[test]
fn many_threads_take_each_mark_once() {
    const PAGES: u64 = 10_000;
    let dirty = DirtyMemory::new();
    dirty.grow(PAGES).unwrap();
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(PAGES) };
    dirty.test_and_clear_range(all, DirtyClient::MIGRATION, &pin(), |_, _| {});
    let taken: u64 = std::thread::scope(|s| {
        let setters: Vec<_> = (0..2)
            .map(|n| {
                let dirty = &dirty;
                s.spawn(move || {
                    for p in (n..PAGES).step_by(2) {
                        dirty.set(PageRange::of_page(PageIndex::new(p)), ClientMask::NOCODE, &pin());
                        if p % 1000 == 0 {
                            dirty.grow(PAGES + p * BLOCK / 1000).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut taken = 0;
        while !setters.iter().all(|t| t.is_finished()) {
            taken += dirty.test_and_clear_range(all, DirtyClient::MIGRATION, &pin(), |_, _| {});
        }
        taken
    });
    let rest = dirty.test_and_clear_range(all, DirtyClient::MIGRATION, &pin(), |_, _| {});
    assert_eq!(taken + rest, PAGES);
}
