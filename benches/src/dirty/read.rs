//! The read side: is this page's bit set? The reference is one load from an array that can never grow.
//!
//! Ours finds the block through the table that grows: table, row, block, word. The first of these stay in registers
//! or in the first cache; `chained` makes each access wait for the one before, which shows all of the way as latency.

use std::rc::Rc;
use std::sync::{PoisonError, RwLock};

use arc_swap::ArcSwap;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, DirtyMemory, PageIndex, PageRange, pin};

use super::clock::timed;
use super::flat::Flat;
use super::patterns::Random;
use super::row::{Bar, Contender, Row, Sample};

/// 4 rows of the table.
const PAGES: u64 = 8 << 20;
/// Pages that are asked for: their words fit the first cache.
const ASKED: usize = 256;
const ACCESSES: usize = 1 << 20;
const BAR: Bar = Bar::OursPlus(2.0);

struct Fixture {
    dirty: DirtyMemory,
    flat: Flat,
    swap: ArcSwap<Flat>,
    lock: RwLock<Flat>,
    asked: Vec<u64>,
}

fn fixture() -> Result<Rc<Fixture>, String> {
    let dirty = DirtyMemory::new();
    dirty.grow(PAGES).map_err(|e| e.to_string())?;
    let mut random = Random::new(7);
    let asked: Vec<u64> = (0..ASKED).map(|_| random.below(PAGES)).collect();
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(PAGES) };
    let guard = pin();
    dirty.test_and_clear_range(all, DirtyClient::MIGRATION, &guard, |_, _| {});
    let (flat, swap, lock) = (Flat::new(PAGES), Flat::new(PAGES), Flat::new(PAGES));
    for &page in asked.iter().filter(|page| *page % 3 == 0) {
        dirty.set(PageRange::of_page(PageIndex::new(page)), DirtyClient::MIGRATION.into(), &guard);
        for copy in [&flat, &swap, &lock] {
            copy.set(page);
        }
    }
    Ok(Rc::new(Fixture { dirty, flat, swap: ArcSwap::from_pointee(swap), lock: RwLock::new(lock), asked }))
}

/// Times `test` over the pages that are asked for, each access on its own.
fn stream(asked: &[u64], test: impl Fn(u64) -> bool) -> Sample {
    timed(ACCESSES as f64, || {
        (0..ACCESSES / ASKED).map(|_| asked.iter().map(|&page| u64::from(test(page))).sum::<u64>()).sum()
    })
}

/// As `stream`; which page comes next hangs on what the last one gave.
fn chain(asked: &[u64], test: impl Fn(u64) -> bool) -> Sample {
    timed(ACCESSES as f64, || {
        let (mut at, mut count) = (0, 0);
        for _ in 0..ACCESSES {
            let bit = usize::from(test(asked[at % ASKED]));
            at += 1 + bit;
            count += bit as u64;
        }
        count
    })
}

fn with(fixture: &Rc<Fixture>, name: &'static str, run: impl Fn(&Fixture) -> Sample + 'static) -> Contender {
    let fixture = fixture.clone();
    Contender::new(name, move || run(&fixture))
}

/// A vCPU holds a guard for a whole slice: this is what it pays.
pub fn guarded() -> Result<Row, String> {
    let fixture = fixture()?;
    let f = &fixture;
    let contenders = vec![
        with(f, "notdirty, test", |f| {
            let guard = pin();
            stream(&f.asked, |page| f.dirty.test(PageIndex::new(page), DirtyClient::MIGRATION, &guard))
        }),
        with(f, "notdirty, listening, all clients", |f| {
            let guard = pin();
            stream(&f.asked, |page| !f.dirty.listening(PageIndex::new(page), &guard).contains(DirtyClient::MIGRATION))
        }),
        with(f, "plain atomic load", |f| stream(&f.asked, |page| f.flat.test(page))).bar(BAR),
        with(f, "arc-swap load", |f| stream(&f.asked, |page| f.swap.load().test(page))),
        with(f, "RwLock read", |f| {
            stream(&f.asked, |page| f.lock.read().unwrap_or_else(PoisonError::into_inner).test(page))
        }),
    ];
    Ok(Row::times("access", contenders))
}

/// Who asks once in a while takes a guard for it.
pub fn pinning() -> Result<Row, String> {
    let fixture = fixture()?;
    let f = &fixture;
    let contenders = vec![
        with(f, "notdirty, pin and test", |f| {
            stream(&f.asked, |page| f.dirty.test(PageIndex::new(page), DirtyClient::MIGRATION, &pin()))
        }),
        with(f, "notdirty, nested pin and test", |f| {
            let _outer = pin();
            stream(&f.asked, |page| f.dirty.test(PageIndex::new(page), DirtyClient::MIGRATION, &pin()))
        }),
        with(f, "plain atomic load", |f| stream(&f.asked, |page| f.flat.test(page))),
        with(f, "arc-swap load", |f| stream(&f.asked, |page| f.swap.load().test(page))),
        with(f, "RwLock read", |f| {
            stream(&f.asked, |page| f.lock.read().unwrap_or_else(PoisonError::into_inner).test(page))
        }),
    ];
    Ok(Row::times("access", contenders))
}

/// Nothing overlaps: the length of the way.
pub fn chained() -> Result<Row, String> {
    let fixture = fixture()?;
    let f = &fixture;
    let contenders = vec![
        with(f, "notdirty, test", |f| {
            let guard = pin();
            chain(&f.asked, |page| f.dirty.test(PageIndex::new(page), DirtyClient::MIGRATION, &guard))
        }),
        with(f, "plain atomic load", |f| chain(&f.asked, |page| f.flat.test(page))),
        with(f, "arc-swap load", |f| chain(&f.asked, |page| f.swap.load().test(page))),
        with(f, "RwLock read", |f| {
            chain(&f.asked, |page| f.lock.read().unwrap_or_else(PoisonError::into_inner).test(page))
        }),
    ];
    Ok(Row::times("access", contenders).note("each access waits for the result of the one before"))
}
