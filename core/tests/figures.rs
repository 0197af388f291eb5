//! Figures, no claims: `cargo test --release -p notdirty-core --test figures -- --ignored --nocapture`. What has a bar is a row of
//! `make bench`.
#![cfg(not(loom))]

use notdirty_core::{
    ClientMask, DirtyClient, DirtyLog, PAGE_SIZE, PageIndex, PageRange, PageSet, RamBlockSpec, RamList, pin,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn time<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = f();
    (start.elapsed(), result)
}

#[test]
#[ignore = "a figure"]
fn a_user_that_syncs_often_beside_one_that_does_not() {
    let list = Arc::new(RamList::new());
    let pages = 4u64 << 20; // 16 GiB of addresses, nothing touched
    let block = list.add(RamBlockSpec::new("ram", pages * PAGE_SIZE)).unwrap();
    let start = || list.log(DirtyClient::MIGRATION).start().unwrap();
    let mark = |page: u64| {
        let page = PageIndex::new(block.offset().page().get() + page);
        list.dirty().set(PageRange::of_page(page), ClientMask::MIGRATION, &pin());
    };
    let one = |log: &DirtyLog| {
        mark(5);
        time(|| assert_eq!(log.sync(None).unwrap().commit().count(), 1)).0
    };
    let often = start();
    println!("alone: {:?}", [(); 5].map(|()| one(&often)));
    let _seldom = start();
    (0..pages).step_by(65).for_each(mark);
    drop(often.sync(None).unwrap().commit());
    println!("beside a user with {} pages pending: {:?}", pages / 65, [(); 5].map(|()| one(&often)));
}

#[test]
#[ignore = "a figure"]
fn a_set_of_the_entries_of_a_ring() {
    for count in [1u64 << 14, 1 << 16, 1 << 18] {
        let page = |n: u64| n.wrapping_mul(40503) & (count - 1);
        let words: Vec<_> = (0..count).map(|n| (PageIndex::new(page(n) & !63), 1 << (page(n) % 64))).collect();
        let (took, set) = time(|| PageSet::from_words(words));
        assert_eq!(set.count(), count);
        println!("{count} lone bits: {took:?}, {:.1} ns a page", took.as_nanos() as f64 / count as f64);
    }
}
