//! RAM that moves while the guest runs: rounds over what is dirty, until the rest fits into the downtime.
//!
//! ```text
//!   start     log on ─▶ bmap: every page that was ever written
//!   round     bmap ── runs of pages ─▶ zero? ─▶ heads │ RAM ─▶ one vectored write          taken first, then read: a page
//!             rate limit between writes                                                    that is stored to is dirty again
//!   sync      log ─▶ bmap                rest ≤ bandwidth × downtime?  no: the next round
//!   last      harts and DMA stand still ─▶ sync ─▶ all that is left
//! ```
//!
//! What pages go by is a [`Carrier`]: the stream itself (`sender.rs`), several channels (`multifd.rs`), a file with a home for each page
//! (`mapped_ram.rs`). The bitmap is the only list of work. The RAM of a target is zero before the first record, so a page that was never written has none.
//! A log that finds its pages by rings serves as well as one by bits.

use super::wire::{Fault, Result, StreamError};
use super::{BlockMigration, ChunkShift, DirtyPages, sync};
use crate::addr::{PAGE_BITS, PageIndex, PageRange};
use crate::dirty::DirtyLog;
use crate::ram::RamBlock;
use crate::rcu::pin;
use core::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rate is kept, and measured, in pieces of this length.
const WINDOW: Duration = Duration::from_millis(100);

/// What a migration may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes a second; without one, what the channel takes.
    pub bandwidth: Option<u64>,
    /// How long the guest may stand still at the end.
    pub downtime: Duration,
    /// How long a sync waits for vCPUs.
    pub sync: Duration,
}

/// Pages in a row of one block, on their way.
#[derive(Debug)]
pub struct Run<'s> {
    /// The block's number in the list of RAM.
    pub index: usize,
    /// The block.
    pub block: &'s Arc<RamBlock>,
    /// Its pages.
    pub pages: Range<u64>,
}

/// What pages go by.
pub trait Carrier {
    /// How many pages it takes at once.
    fn batch(&self) -> u64;
    /// Whether a page that was stored to again is better left out: what takes long runs at once takes longer for the pieces.
    fn leaves_gaps(&self) -> bool {
        true
    }
    /// Sends these pages: they were taken, and are read from here on.
    ///
    /// # Errors
    /// The channel's.
    fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()>;
    /// Pages come until `end`.
    ///
    /// # Errors
    /// The channel's.
    fn begin(&mut self) -> Result<()>;
    /// A piece, a round (`true`), or all of it ends.
    ///
    /// # Errors
    /// The channel's.
    fn end(&mut self, round: bool) -> Result<()>;
    /// A command between two pieces, to the other end: it is on its way when this returns. A file has no other end.
    ///
    /// # Errors
    /// The channel's.
    fn command(&mut self, _command: u16, _data: &[u8]) -> Result<()> {
        Ok(())
    }
    /// Bytes so far.
    fn bytes(&self) -> u64;
    /// An error here.
    fn error(&self, fault: Fault) -> StreamError;
}

impl Default for Limits {
    fn default() -> Self {
        Self { bandwidth: None, downtime: Duration::from_millis(300), sync: Duration::from_secs(10) }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Rounds that were begun.
    pub rounds: u64,
    /// Pages whose bytes were sent.
    pub pages: u64,
    /// Pages that were sent as zero.
    pub zero_pages: u64,
    /// Pages that were sent as what differs.
    pub deltas: u64,
    /// Bytes that went to the channel.
    pub bytes: u64,
    /// Pages that are dirty now.
    pub left: u64,
    /// Pages that were found dirty since the round began; at its end, all of it. With rings there are several syncs in one.
    pub dirtied: u64,
    /// Bytes a second, as last measured.
    pub bandwidth: u64,
    /// How long the rest would take.
    pub expected_downtime: Duration,
}

impl Progress {
    fn sent(&self) -> u64 {
        self.pages + self.zero_pages + self.deltas
    }
}

/// A block that is on its way.
struct Leaving {
    block: Arc<RamBlock>,
    dirty: Arc<DirtyPages>,
    pages: u64,
}

/// The RAM of a machine that leaves.
pub struct Source {
    blocks: Vec<Leaving>,
    log: DirtyLog,
    version: u64,
    what: Vec<(Arc<RamBlock>, Range<u64>)>,
    meter: Meter,
    progress: Progress,
    /// The last round left out nearly all, so the next one leaves out nothing.
    starved: bool,
}

impl Source {
    /// What is to be sent: all that was ever written. `log` has all of these blocks, and has begun.
    pub fn new(log: DirtyLog, blocks: &[Arc<RamBlock>]) -> Source {
        let version = log.list().version();
        let leaving = blocks.iter().map(|block| {
            let (dirty, pages) = (BlockMigration::need_dirty(block, ChunkShift::default()), block.pages().len());
            for run in block.touched(0..pages) {
                dirty.set(run);
            }
            Leaving { block: block.clone(), dirty, pages }
        });
        let blocks: Vec<_> = leaving.collect();
        let what = blocks.iter().map(|leaving| (leaving.block.clone(), 0..leaving.pages)).collect();
        let (meter, progress) = (Meter::default(), Progress::default());
        let mut source = Source { blocks, log, version, what, meter, progress, starved: false };
        source.count();
        source
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Takes what became dirty. Not on a vCPU's own thread while it runs.
    ///
    /// # Errors
    /// A vCPU does not answer, or RAM came, went, or was resized.
    pub fn sync(&mut self, carrier: &impl Carrier, limits: &Limits) -> Result<()> {
        let failed = |why: String| carrier.error(Fault::Order(why));
        let dirtied = sync(&self.log, &self.what, Some(limits.sync));
        self.progress.dirtied += dirtied.map_err(|why| failed(why.to_string()))?;
        if self.log.list().version() != self.version {
            return Err(failed("RAM was plugged, unplugged or resized".into()));
        }
        self.count();
        Ok(())
    }

    fn count(&mut self) {
        self.progress.left = self.blocks.iter().map(|leaving| leaving.dirty.count()).sum();
        self.progress.bandwidth = self.meter.bandwidth;
        let bytes = (self.progress.left << PAGE_BITS) as f64;
        let rate = self.meter.bandwidth.max(1) as f64;
        // More than a day is told as that.
        self.progress.expected_downtime = Duration::from_secs_f64((bytes / rate).min(86_400.0));
    }

    /// Rounds, until the rest can be sent within the downtime. `tell` is called between writes, and after each round (`true`); it ends
    /// all by `false`.
    ///
    /// # Errors
    /// The channel's; a vCPU does not answer; `tell` said so.
    pub fn rounds(
        &mut self,
        carrier: &mut impl Carrier,
        limits: &Limits,
        mut tell: impl FnMut(&Progress, bool) -> bool,
    ) -> Result<()> {
        loop {
            self.round(carrier, limits, |progress| tell(progress, false))?;
            if !tell(&self.progress, true) {
                return Err(carrier.error(Fault::Order("cancelled".into())));
            }
            let fits = self.meter.bandwidth as f64 * limits.downtime.as_secs_f64();
            if ((self.progress.left << PAGE_BITS) as f64) <= fits {
                return Ok(());
            }
        }
    }

    /// One round, and a sync. `tell` is called between writes; it ends the round by `false`, as an error, and what is left stays to be sent.
    ///
    /// # Errors
    /// As [`rounds`](Self::rounds).
    pub fn round(
        &mut self,
        carrier: &mut impl Carrier,
        limits: &Limits,
        mut tell: impl FnMut(&Progress) -> bool,
    ) -> Result<()> {
        self.progress.rounds += 1;
        self.progress.dirtied = 0;
        let (left, before) = (self.progress.left, self.progress.sent());
        self.sweep(carrier, limits, limits.bandwidth, !self.starved, &mut tell)?;
        // A guest that stores to all that is left: how fast the channel is must be seen all the same.
        self.starved = self.progress.sent() - before < left / 8;
        self.sync(carrier, limits)
    }

    /// Each block, and what is to be sent of it.
    pub(super) fn dirty(&self) -> impl Iterator<Item = (&Arc<RamBlock>, &Arc<DirtyPages>)> {
        self.blocks.iter().map(|leaving| (&leaving.block, &leaving.dirty))
    }

    /// Each block with what is left of it, how far it is, and the log: until that drops stores are logged.
    pub(super) fn into_rest(self) -> (impl Iterator<Item = (Arc<RamBlock>, Arc<DirtyPages>)>, Progress, DirtyLog) {
        let blocks = self.blocks.into_iter().map(|leaving| (leaving.block, leaving.dirty));
        (blocks, self.progress, self.log)
    }

    /// What is left, once harts and DMA stand still.
    ///
    /// # Errors
    /// The channel's.
    pub fn last(&mut self, carrier: &mut impl Carrier, limits: &Limits) -> Result<()> {
        self.progress.dirtied = 0;
        self.sync(carrier, limits)?;
        self.sweep(carrier, limits, None, false, &mut |_| true)?;
        self.count();
        Ok(())
    }

    /// Sends all pages that are dirty when it comes by, once over all blocks.
    fn sweep(
        &mut self,
        carrier: &mut impl Carrier,
        limits: &Limits,
        bandwidth: Option<u64>,
        runs_on: bool,
        tell: &mut impl FnMut(&Progress) -> bool,
    ) -> Result<()> {
        let mut at = (0, 0);
        while at.0 < self.blocks.len() {
            carrier.begin()?;
            let (start, before) = (Instant::now(), carrier.bytes());
            // A piece ends with the window, so that the other end has whole pieces.
            while at.0 < self.blocks.len() && start.elapsed() < WINDOW {
                self.batch(carrier, &mut at, runs_on)?;
                if bandwidth.is_some_and(|most| carrier.bytes() - before >= most / 10) {
                    break;
                }
            }
            let ends = Instant::now();
            carrier.end(at.0 == self.blocks.len())?;
            self.meter.time += ends.elapsed();
            if self.log.rings().is_some() {
                // A hart whose ring is full waits for this.
                self.sync(carrier, limits)?;
            }
            self.progress.bytes = carrier.bytes();
            let sent = self.progress.bytes - before;
            self.meter.add(sent);
            self.count();
            if !tell(&self.progress) {
                return Err(carrier.error(Fault::Order("cancelled".into())));
            }
            if let Some(most) = bandwidth {
                // What was sent is to have taken so long.
                let due = Duration::from_secs_f64(sent as f64 / most.max(1) as f64);
                self.meter.limit(most);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        Ok(())
    }

    /// As many pages as the carrier takes at once. While the guest runs, a page that was stored to since the sync is not sent: the next
    /// sync has it in any case, and what went now would go twice.
    fn batch(&mut self, carrier: &mut impl Carrier, at: &mut (usize, u64), runs_on: bool) -> Result<()> {
        let (mut runs, mut room) = (Vec::new(), carrier.batch());
        let guard = pin();
        let runs_on = runs_on && carrier.leaves_gaps();
        while let Some(leaving) = self.blocks.get(at.0).filter(|_| room != 0) {
            let Some(pages) = leaving.dirty.take_run(at.1, room) else {
                *at = (at.0 + 1, 0);
                continue;
            };
            at.1 = pages.end;
            let base = leaving.block.offset().page().get();
            let again = |from: u64| {
                let range = PageRange { start: PageIndex::new(base + from), end: PageIndex::new(base + pages.end) };
                let found = if runs_on { self.log.written_again(range, &guard) } else { None };
                found.map_or(pages.end, |page| page.get() - base)
            };
            let mut from = pages.start;
            while from < pages.end {
                let end = again(from);
                if from < end {
                    room -= end - from;
                    runs.push(Run { index: at.0, block: &leaving.block, pages: from..end });
                }
                from = end + 1;
            }
        }
        drop(guard);
        if runs.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        carrier.send(&runs, &mut self.progress)?;
        self.meter.time += start.elapsed();
        Ok(())
    }
}

/// A piece with fewer bytes says little of the channel: what each piece costs beside them is most of its time.
const TELLING: u64 = 64 << 10;

/// How fast the channel is, by what went in and how long that took. The time in which pages were looked for does not count, nor do pieces
/// of a few pages: of a guest that stores to all that is left nothing goes until it stands still, and it would seem to take for ever.
#[derive(Default)]
struct Meter {
    bandwidth: u64,
    /// How long this piece has taken.
    time: Duration,
    /// A telling piece was seen.
    sure: bool,
}

impl Meter {
    /// A piece is through.
    fn add(&mut self, bytes: u64) {
        let now = (bytes as f64 / std::mem::take(&mut self.time).as_secs_f64().max(1e-6)) as u64;
        let telling = bytes >= TELLING;
        self.bandwidth = match (telling, self.sure) {
            (true, true) => self.bandwidth / 2 + now / 2,
            (true, false) => now,
            (false, true) => self.bandwidth,
            // The best there is: the guess that comes too low would let the guest never go.
            (false, false) => self.bandwidth.max(now),
        };
        self.sure |= telling;
    }

    fn limit(&mut self, most: u64) {
        self.bandwidth = self.bandwidth.min(most);
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::dirty::DirtyClient;
    use crate::ram::{RamBlockSpec, RamList};

    /// Notes which pages went, and lets the guest store to some before the rest goes.
    struct Noted<'s> {
        batch: u64,
        sent: Vec<Vec<u64>>,
        store: &'s dyn Fn(usize, u64),
    }

    impl Carrier for Noted<'_> {
        fn batch(&self) -> u64 {
            self.batch
        }
        fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()> {
            let pages: Vec<u64> = runs.iter().flat_map(|run| run.pages.clone()).collect();
            assert!(pages.len() as u64 <= self.batch && !pages.is_empty());
            progress.pages += pages.len() as u64;
            self.sent.last_mut().unwrap().extend(&pages);
            (self.store)(self.sent.len(), pages[0]);
            Ok(())
        }
        fn begin(&mut self) -> Result<()> {
            Ok(())
        }
        fn end(&mut self, round: bool) -> Result<()> {
            if round {
                self.sent.push(Vec::new());
            }
            Ok(())
        }
        fn bytes(&self) -> u64 {
            self.sent.iter().map(|pages| pages.len() as u64).sum::<u64>() << PAGE_BITS
        }
        fn error(&self, fault: Fault) -> StreamError {
            StreamError { section: "test".into(), offset: 0, fault }
        }
    }

    #[test]
    fn a_guest_that_stores_to_all_that_is_left_is_sent_all_the_same() {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 300 * PAGE_SIZE)).unwrap();
        let all = || (0..300).for_each(|page| list.write(&block, page * PAGE_SIZE, &[1]).unwrap());
        all();
        let log = list.log(DirtyClient::MIGRATION).start().unwrap();
        let nothing = |_: usize, _: u64| {};
        let mut carrier = Noted { batch: 64, sent: vec![Vec::new()], store: &nothing };
        let mut source = Source::new(log, std::slice::from_ref(&block));
        let mut rounds = 0;
        let mut tell = |_: &Progress| {
            rounds += 1;
            true
        };
        // Between a sync and what goes after it, each page is stored to.
        for _ in 0..6 {
            all();
            source.round(&mut carrier, &Limits::default(), &mut tell).unwrap();
        }
        let sizes: Vec<usize> = carrier.sent.iter().map(Vec::len).collect();
        assert_eq!(sizes, [0, 300, 0, 300, 0, 300, 0]);
        assert!(source.progress().bandwidth > 0);
    }

    #[test]
    fn pieces_of_a_few_pages_do_not_make_the_channel_slow() {
        let mut meter = Meter::default();
        let mut piece = |bytes: u64, millis: u64| {
            meter.time = Duration::from_millis(millis);
            meter.add(bytes);
            meter.bandwidth
        };
        // Nothing better is known yet.
        assert_eq!(piece(8192, 8), 1_024_000);
        assert_eq!(piece(4096, 8), 1_024_000);
        assert_eq!(piece(1 << 20, 8), 131_072_000);
        (0..100).for_each(|_| assert_eq!(piece(8192, 8), 131_072_000));
        assert_eq!(piece(1 << 20, 16), 98_304_000);
    }

    #[test]
    fn a_page_that_is_stored_to_before_it_goes_waits_for_the_next_round() {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 300 * PAGE_SIZE)).unwrap();
        (0..300).for_each(|page| list.write(&block, page * PAGE_SIZE, &[1]).unwrap());
        let log = list.log(DirtyClient::MIGRATION).start().unwrap();
        // With the first pages of round 1 out: one of them, and five that have yet to go.
        let store = |round: usize, first: u64| {
            if (round, first) == (1, 0) {
                [3, 100, 101, 130, 163, 299]
                    .iter()
                    .for_each(|page| list.write(&block, page * PAGE_SIZE, &[2]).unwrap());
            }
        };
        let mut carrier = Noted { batch: 64, sent: vec![Vec::new()], store: &store };
        let mut limits = Limits::default();
        let mut source = Source::new(log, std::slice::from_ref(&block));
        // Till nothing is dirty.
        limits.downtime = Duration::ZERO;
        let mut dirtied = Vec::new();
        let tell = |progress: &Progress, round: bool| {
            dirtied.extend(round.then_some(progress.dirtied));
            true
        };
        source.rounds(&mut carrier, &limits, tell).unwrap();
        let waits = [100, 101, 130, 163, 299];
        let first: Vec<u64> = (0..300).filter(|page| !waits.contains(page)).collect();
        assert_eq!(carrier.sent[..2], [first, vec![3, 100, 101, 130, 163, 299]]);
        assert_eq!(dirtied, [6, 0]);
        // Once it stands still all that is left goes, whatever the bits say by then.
        list.write(&block, 7 * PAGE_SIZE, &[3]).unwrap();
        let store = |_: usize, _: u64| list.write(&block, 9 * PAGE_SIZE, &[3]).unwrap();
        list.write(&block, 9 * PAGE_SIZE, &[3]).unwrap();
        let mut carrier = Noted { batch: 1, sent: vec![Vec::new()], store: &store };
        source.last(&mut carrier, &limits).unwrap();
        assert_eq!(carrier.sent[0], [7, 9]);
    }
}
