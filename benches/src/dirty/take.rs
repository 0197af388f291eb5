//! Taking all dirty bits of 1 TiB: what a harvest costs before the re-arm.
//!
//! Every contender hands each word that had bits to a sink and counts them; the check round compares what came.

use std::ops::Range;
use std::rc::Rc;

use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, DirtyMemory, PageIndex, PageRange, pin};

use super::clock::timed;
use super::flat::Flat;
use super::patterns::{self, TIB};
use super::row::{Bar, Contender, Row, Sample};

const CLIENT: DirtyClient = DirtyClient::MIGRATION;

fn pages(range: &Range<u64>) -> PageRange {
    PageRange { start: PageIndex::new(range.start), end: PageIndex::new(range.end) }
}

/// 1 TiB of dirty memory with nothing dirty in it.
pub fn clean_tebibyte() -> Result<DirtyMemory, String> {
    let dirty = DirtyMemory::new();
    dirty.grow(TIB).map_err(|e| e.to_string())?;
    dirty.test_and_clear_range(pages(&(0..TIB)), CLIENT, &pin(), |_, _| {});
    Ok(dirty)
}

/// Marks them for the client that is measured.
pub fn mark(dirty: &DirtyMemory, ranges: &[Range<u64>]) {
    let guard = pin();
    ranges.iter().for_each(|range| dirty.set(pages(range), CLIENT.into(), &guard));
}

/// Folds what a taker hands out, in any order, into a word.
fn fold(check: &mut u64, first: u64, bits: u64) {
    *check = check.wrapping_add((first ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15));
}

/// Times a take: it gives each word to the sink and returns the count.
fn take(take: impl FnOnce(&mut u64) -> u64) -> Sample {
    let mut check = 0;
    let sample = timed(1.0, || take(&mut check));
    Sample { check: check ^ sample.check, ..sample }
}

fn row(ranges: Vec<Range<u64>>, scan: Bar, exchange: Bar) -> Result<Row, String> {
    let ranges = Rc::new(ranges);
    let dirty = clean_tebibyte()?;
    let flat = Rc::new(Flat::new(TIB));
    let dirty_pages: u64 = ranges.iter().map(|r| r.end - r.start).sum();
    let for_flat = |name, how: fn(&Flat, &mut u64) -> u64| {
        let (ranges, flat) = (ranges.clone(), flat.clone());
        Contender::new(name, move || {
            ranges.iter().for_each(|range| flat.set_range(range.clone()));
            take(|check| how(&flat, check))
        })
    };
    let scanning = for_flat("flat scan", |flat, check| flat.take_scanning(|at, bits| fold(check, at, bits))).bar(scan);
    let exchanging =
        for_flat("one exchange a word", |flat, check| flat.take_exchanging(|at, bits| fold(check, at, bits)))
            .bar(exchange);
    let ours = Contender::new("notdirty", move || {
        mark(&dirty, &ranges);
        let guard = pin();
        take(|check| {
            dirty.test_and_clear_range(pages(&(0..TIB)), CLIENT, &guard, |at, bits| fold(check, at.get(), bits))
        })
    });
    Ok(Row::times("1 TiB", vec![ours, scanning, exchanging]).note(format!("{dirty_pages} pages dirty")))
}

/// Every page.
pub fn full() -> Result<Row, String> {
    row(patterns::full(TIB), Bar::None, Bar::OursWithin(1.3))
}

/// Every second page, in runs.
pub fn half() -> Result<Row, String> {
    row(patterns::half(TIB), Bar::OursWithin(1.5), Bar::None)
}

/// 0.1 % in runs of 2 MiB.
pub fn runs() -> Result<Row, String> {
    row(patterns::runs(TIB), Bar::TimesOurs(25.0), Bar::None)
}

/// 0.001 % anywhere.
pub fn random() -> Result<Row, String> {
    row(patterns::random(TIB), Bar::TimesOurs(10.0), Bar::None)
}
