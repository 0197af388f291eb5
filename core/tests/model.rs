//! The RAM list against something too simple to be wrong, a `Vec` of what was added; and the edges of the dirty memory,
//! whose operations have their model in dirty.rs.
#![cfg(not(loom))]

use notdirty_core::raw::RawDirty;
use notdirty_core::{
    ClientMask, DirtyClient, DirtyMemory, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamBlock, RamBlockSpec, RamError,
    RamList, pin,
};
use proptest::prelude::*;
use std::sync::Arc;

/// Pages of one dirty block.
const BLOCK: u64 = 256 * 1024 * 8;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

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
                        dirty.set(PageRange::of_page(PageIndex::new(p)), ClientMask::ALL, &pin());
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
