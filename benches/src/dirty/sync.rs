//! Taking all dirty bits of 1 TiB into a migration's own bitmap, with an exact count of what is new there; and what it
//! costs a vCPU to be told to listen again, which comes on top.
//!
//! Nobody runs in the first rows. Few pages are sent again between runs, so that they are new to the migration; many
//! are left where they are, and only the check round counts them.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use notdirty_core::migration::{BlockMigration, ChunkShift, DirtyPages, sync};
use notdirty_core::{DirtyClient, DirtyLog, PageIndex, PageRange, RamBlock, RamBlockSpec, RamList, pin};

use super::clock::timed;
use super::flat::{Flat, Own};
use super::guest::{Spinning, Stores};
use super::patterns::{self, TIB};
use super::row::{Bar, Contender, Row, Sample};

/// More than this are not sent again between runs.
const SENT: u64 = 1 << 20;

struct Ours {
    list: Arc<RamList>,
    log: DirtyLog,
    block: Arc<RamBlock>,
    pages: Arc<DirtyPages>,
}

impl Ours {
    fn new() -> Result<Ours, String> {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", TIB << 12)).map_err(|e| e.to_string())?;
        let log = list.log(DirtyClient::MIGRATION).start().map_err(|e| e.to_string())?;
        let pages = BlockMigration::need_dirty(&block, ChunkShift::default());
        Ok(Ours { list, log, block, pages })
    }

    fn run(&self, ranges: &[Range<u64>], count: u64) -> Result<Sample, String> {
        let guard = pin();
        let first = self.block.pages().start.get();
        for range in ranges {
            let range =
                PageRange { start: PageIndex::new(first + range.start), end: PageIndex::new(first + range.end) };
            self.list.dirty().set(range, DirtyClient::MIGRATION.into(), &guard);
        }
        drop(guard);
        let what = [(self.block.clone(), 0..TIB)];
        let mut result = Ok(0);
        let sample = timed(1.0, || {
            result = sync(&self.log, &what, None);
            0
        });
        let check = result.map_err(|e| e.to_string())?;
        if count <= SENT {
            ranges.iter().flat_map(Clone::clone).for_each(|page| {
                self.pages.take(page);
            });
        }
        Ok(Sample { check, ..sample })
    }
}

fn row(ranges: Vec<Range<u64>>, bar: Bar) -> Result<Row, String> {
    let count: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let ranges = Rc::new(ranges);
    let ours = Ours::new()?;
    let flat = Rc::new(Flat::new(TIB));
    let reference = |name, exchange: bool| {
        let (ranges, flat, mut own) = (ranges.clone(), flat.clone(), Own::new(TIB));
        Contender::new(name, move || {
            ranges.iter().for_each(|range| flat.set_range(range.clone()));
            let sample = timed(1.0, || {
                let mut newly = 0;
                let sink = |first, bits| newly += own.add(first, bits);
                let _ = if exchange { flat.take_exchanging(sink) } else { flat.take_scanning(sink) };
                newly
            });
            if count <= SENT {
                ranges.iter().for_each(|range| own.clear(range.clone()));
            }
            sample
        })
    };
    let scanning = reference("flat scan", false).bar(bar);
    let exchanging = reference("one exchange a word", true);
    let ours = {
        let ranges = ranges.clone();
        Contender::fallible("notdirty", move || ours.run(&ranges, count))
    };
    Ok(Row::times("1 TiB", vec![ours, scanning, exchanging]).note(format!("{count} pages dirty")))
}

/// Every page.
pub fn full() -> Result<Row, String> {
    row(patterns::full(TIB), Bar::None)
}

/// Every second page, in runs.
pub fn half() -> Result<Row, String> {
    row(patterns::half(TIB), Bar::OursWithin(2.0))
}

/// 0.1 % in runs of 2 MiB.
pub fn runs() -> Result<Row, String> {
    row(patterns::runs(TIB), Bar::TimesOurs(25.0))
}

/// 0.001 % anywhere.
pub fn random() -> Result<Row, String> {
    row(patterns::random(TIB), Bar::TimesOurs(10.0))
}

/// 8,192 blocks, as of a machine whose memory is plugged by 4 MiB, with 16 lone dirty pages each.
pub fn blocks() -> Result<Row, String> {
    const BLOCKS: u64 = 8192;
    const PAGES: u64 = 1024;
    let list = Arc::new(RamList::new());
    let mut what = Vec::new();
    let mut maps = Vec::new();
    for n in 0..BLOCKS {
        let block = list.add(RamBlockSpec::new(format!("dimm{n}"), PAGES << 12)).map_err(|e| e.to_string())?;
        maps.push(BlockMigration::need_dirty(&block, ChunkShift::default()));
        what.push((block, 0..u64::MAX));
    }
    let log = list.log(DirtyClient::MIGRATION).start().map_err(|e| e.to_string())?;
    let dirty: Rc<Vec<u64>> =
        Rc::new((0..BLOCKS).flat_map(|block| (0..16).map(move |n| block * PAGES + n * 65)).collect());
    let ours = {
        let dirty = dirty.clone();
        Contender::fallible("notdirty", move || {
            let guard = pin();
            for (n, page) in dirty.iter().enumerate() {
                let page = what[n / 16].0.pages().start.get() + page % PAGES;
                list.dirty().set(PageRange::of_page(PageIndex::new(page)), DirtyClient::MIGRATION.into(), &guard);
            }
            drop(guard);
            let mut result = Ok(0);
            let sample = timed(1.0, || {
                result = sync(&log, &what, None);
                0
            });
            for (n, page) in dirty.iter().enumerate() {
                maps[n / 16].take(page % PAGES);
            }
            Ok(Sample { check: result.map_err(|e| e.to_string())?, ..sample })
        })
    };
    let (flat, mut own) = (Flat::new(BLOCKS * PAGES), Own::new(BLOCKS * PAGES));
    let scan = Contender::new("flat scan of as much RAM", move || {
        dirty.iter().for_each(|page| flat.set(*page));
        let sample = timed(1.0, || {
            let mut newly = 0;
            flat.take_scanning(|first, bits| newly += own.add(first, bits));
            newly
        });
        dirty.iter().for_each(|page| own.clear(*page..page + 1));
        sample
    });
    let note = format!("{BLOCKS} blocks of 4 MiB, 16 dirty pages in each");
    Ok(Row::times("sync", vec![ours.bar(Bar::AtMost(10e6)), scan]).note(note))
}

/// A vCPU with a full TLB drops its write permissions; the time is the vCPU's own.
pub fn rearm() -> Result<Row, String> {
    let guest = Rc::new(RefCell::new(Stores::new("rand-store")?));
    let with = |name, pages: fn(PageRange) -> Vec<PageRange>| {
        let guest = guest.clone();
        Contender::fallible(name, move || guest.borrow_mut().rearm(pages, false))
    };
    let contenders = vec![
        with("1024 lone pages", |ram| {
            let pages = patterns::scattered(ram.len(), 1024).into_iter();
            pages.map(|page| PageRange::of_page(PageIndex::new(ram.start.get() + page.start))).collect()
        }),
        with("one lone page", |ram| vec![PageRange::of_page(ram.start)]),
        with("all of 128 MiB", |ram| vec![ram]),
    ];
    Ok(Row::times("re-arm", contenders).note("the CPU time of a vCPU whose TLB has 16 Ki pages of 128 MiB"))
}

/// The same for each of as many lone pages as a re-arm names at most, and fewer. What one page takes when the caches are
/// full of the guest's memory (see the row above) is most of what few pages take then, so the bars are for warm ones.
pub fn rearm_page() -> Result<Row, String> {
    let guest = Rc::new(RefCell::new(Stores::new("rand-store")?));
    let with = |name, second, count: u64, pages: fn(PageRange) -> Vec<PageRange>| {
        let guest = guest.clone();
        let run = move || {
            let sample = guest.borrow_mut().rearm(pages, second)?;
            Ok(Sample { units: count as f64, ..sample })
        };
        Contender::fallible(name, run).bar(if second { Bar::AtMost(100.0) } else { Bar::None })
    };
    let contenders = vec![
        with("65 lone pages", true, 65, |ram| lone(ram, 65)),
        with("256", true, 256, |ram| lone(ram, 256)),
        with("1024", true, 1024, |ram| lone(ram, 1024)),
        with("65, caches cold", false, 65, |ram| lone(ram, 65)),
        with("256, caches cold", false, 256, |ram| lone(ram, 256)),
        with("1024, caches cold", false, 1024, |ram| lone(ram, 1024)),
    ];
    Ok(Row::times("page", contenders).note("the CPU time of a vCPU whose TLB has 16 Ki pages of 128 MiB"))
}

/// Pages that do not touch, all over RAM.
fn lone(ram: PageRange, count: u64) -> Vec<PageRange> {
    let step = ram.len() / count;
    (0..count).map(|n| PageRange::of_page(PageIndex::new(ram.start.get() + n * step + n % 7))).collect()
}

/// How long the harvester waits for a vCPU that runs, on the wall.
pub fn answer() -> Result<Row, String> {
    let mut guest = Spinning::new()?;
    let ours = Contender::fallible("notdirty, a vCPU that runs", move || guest.answers());
    Ok(Row::times("answer", vec![ours]).rounds(3).note("wall clock: with more threads than processors it shows them"))
}
