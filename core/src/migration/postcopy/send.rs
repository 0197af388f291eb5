//! The source: pages that are waited for first, then the others, behind the last one that was.
//!
//! ```text
//!   Requests ──▶ page of bmap? ── at once, alone ──▶ carrier          the sweep goes on behind it: its neighbours are likely next
//!       none ──▶ the next run of bmap ── a batch ──▶ carrier          at most `bandwidth`; a request does not wait for that
//!   bmap empty ─▶ done        a write failed ─▶ bmap is wrong: the target says what came (`resume`), and it goes on
//! ```
//!
//! The machine stands still, so pages do not change: what is sent twice is sent the same. A page of the host that is larger than 4 KiB
//! goes whole and in one piece by a channel: its target places it from one temporary page of that.

use super::super::precopy::{Carrier, Progress, Run, Source};
use super::super::wire::{Fault, Result};
use super::super::{BlockMigration, Checksums, DirtyPages};
use super::answers::Bitmap;
use super::commands::Command;
use super::discard::{Named, canonical, discards};
use super::release::Release;
use super::requests::Requests;
use super::urgent::Urgent;
use crate::addr::PAGE_BITS;
use crate::dirty::DirtyLog;
use crate::ram::RamBlock;
use core::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pages of the sweep that are sent at once: a request waits for them.
const BATCH: u64 = 32;

/// How long a sweep that has a bandwidth sleeps at once, at most.
const STEP: Duration = Duration::from_millis(20);

struct Left {
    block: Arc<RamBlock>,
    dirty: Arc<DirtyPages>,
    pages: u64,
    /// Pages of a page of the host.
    host: u64,
    /// Kept when a channel and its carrier are gone.
    _sums: Arc<Checksums>,
}

impl Left {
    /// The pages of the host that these, which were taken, lie on: they go whole, by the same channel, also what went by another one.
    fn whole(&self, pages: Range<u64>) -> Range<u64> {
        if self.host <= 1 {
            return pages;
        }
        let whole = pages.start / self.host * self.host..pages.end.next_multiple_of(self.host).min(self.pages);
        (whole.start..pages.start).chain(pages.end..whole.end).for_each(|page| {
            self.dirty.take(page);
        });
        whole
    }
}

impl Source {
    /// Names what is yet to come while the machine runs, by `say`: it stays so whatever the machine does, and need not be said once it stands
    /// still.
    ///
    /// # Errors
    /// Those of `say`.
    pub fn name_rest<E>(
        &self,
        mut say: impl FnMut(&Command) -> core::result::Result<(), E>,
    ) -> core::result::Result<Named, E> {
        let mut named = Vec::new();
        for (block, dirty) in self.dirty() {
            let pages = block.pages().len();
            canonical(dirty, pages, block.page_size() >> PAGE_BITS);
            discards(dirty, block.idstr(), pages, &[]).try_for_each(|command| say(&command))?;
            named.push(dirty.words(0, pages.div_ceil(64) as usize));
        }
        Ok(Named(named))
    }
}

/// What is left of RAM when the source stands still.
pub struct Rest {
    blocks: Vec<Left>,
    at: (usize, u64),
    progress: Progress,
    /// Pages that were sent because they were asked for, by the main channel.
    asked: u64,
    urgent: Arc<Urgent>,
    release: Option<Release>,
    /// To end it takes as long as RAM is large: not while the guest waits for the message that it goes on with.
    log: Option<DirtyLog>,
}

impl Rest {
    /// What is to come, by host pages. The harts stand still, and the last sync was. The log of that ends when pages are
    /// [sent](Self::send), or this drops.
    pub fn new(source: Source) -> Rest {
        let (blocks, progress, log) = source.into_rest();
        let blocks = blocks.into_iter().map(|(block, dirty)| {
            let pages = block.pages().len();
            let host = block.page_size() >> PAGE_BITS;
            canonical(&dirty, pages, host);
            let sums = BlockMigration::need_checksums(&block);
            Left { block, dirty, pages, host, _sums: sums }
        });
        let blocks: Vec<_> = blocks.collect();
        let urgent = Urgent::new(blocks.iter().map(|left| (&left.block, &left.dirty, left.pages)));
        Rest { blocks, at: (0, 0), progress, asked: 0, urgent: Arc::new(urgent), release: None, log: Some(log) }
    }

    /// From here on memory of pages that the target has goes back to the host: of blocks that no file and no memfd backs. The machine
    /// is never run here again.
    pub fn release(&mut self) {
        self.release.get_or_insert_default();
    }

    /// Whether it does.
    pub fn releases(&self) -> bool {
        self.release.is_some()
    }

    /// Bytes that went back to the host.
    pub fn released(&self) -> u64 {
        self.release.as_ref().map_or(0, Release::released)
    }

    /// The target has all that went before the PING of this number, [of those](super::ReturnPath) that `send` says.
    pub fn placed(&mut self, number: u32) {
        let Some(release) = &mut self.release else { return };
        let blocks: Vec<_> = self.blocks.iter().map(|left| &left.block).collect();
        release.placed(number, &blocks);
    }

    /// It has all.
    pub fn release_all(&mut self) {
        let Some(release) = &mut self.release else { return };
        let blocks: Vec<_> = self.blocks.iter().map(|left| &left.block).collect();
        release.all(&blocks);
    }

    /// What a thread sends urgent pages by that has a channel of its own.
    pub fn preempt(&self) -> &Arc<Urgent> {
        &self.urgent
    }

    /// Pages that were sent because they were asked for.
    pub fn urgent(&self) -> u64 {
        self.asked + self.urgent.pages()
    }

    /// The commands that name each page which is yet to come, but for those that were [`named`](Source::name_rest) before.
    pub fn discards<'n>(&'n self, named: &'n Named) -> impl Iterator<Item = Command> + 'n {
        self.blocks.iter().enumerate().flat_map(|(index, left)| {
            let named = named.0.get(index).map_or(&[][..], Vec::as_slice);
            discards(&left.dirty, left.block.idstr(), left.pages, named)
        })
    }

    /// How many pages are yet to come.
    pub fn left(&self) -> u64 {
        self.blocks.iter().map(|left| left.dirty.count()).sum()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let bytes = self.progress.bytes + self.urgent.bytes();
        Progress { left: self.left(), bytes, pages: self.progress.pages + self.urgent.pages(), ..self.progress }
    }

    /// Each block, and how many pages it has.
    pub fn blocks(&self) -> impl Iterator<Item = (&Arc<RamBlock>, u64)> {
        self.blocks.iter().map(|left| (&left.block, left.pages))
    }

    /// What the target has, block by block; all else is to be sent.
    ///
    /// # Errors
    /// [`Fault`]: another number of blocks; [`Fault::Block`] if it lacks pages that were [given back](Self::release), which nothing can send.
    pub fn resume(&mut self, received: &[Bitmap]) -> core::result::Result<(), Fault> {
        if received.len() != self.blocks.len() {
            return Err(Fault::Order(format!("bitmaps of {} blocks, of {}", received.len(), self.blocks.len())));
        }
        if let Some(release) = &self.release {
            let mut all = self.blocks.iter().zip(received).enumerate();
            all.try_for_each(|(index, (left, Bitmap(words)))| release.check(index, &left.block, words))?;
        }
        for (left, Bitmap(words)) in self.blocks.iter().zip(received) {
            left.dirty.set_missing(words, left.pages);
        }
        self.at = (0, 0);
        if let Some(release) = &mut self.release {
            release.forget();
        }
        Ok(())
    }

    /// Sends pages until none is left. `tell` is called between writes, and ends it by `false`.
    ///
    /// # Errors
    /// The channel's: what came is not known; `tell` said so.
    pub fn send(
        &mut self,
        carrier: &mut impl Carrier,
        requests: &Requests,
        bandwidth: Option<u64>,
        mut tell: impl FnMut(&mut Rest) -> bool,
    ) -> Result<()> {
        drop(self.log.take());
        let (mut since, mut swept) = (Instant::now(), 0u64);
        while self.left() != 0 {
            if !tell(self) {
                return Err(carrier.error(Fault::Order("cancelled".into())));
            }
            let before = carrier.bytes();
            if let Some(at) = self.urgent.take_at() {
                self.at = at;
            }
            if let Some((block, page)) = requests.pop() {
                self.page(carrier, block, page)?;
            } else if let Some(wait) = bandwidth.and_then(|most| due(swept, most, since)) {
                requests.wait(wait.min(STEP));
            } else {
                self.batch(carrier)?;
                swept += carrier.bytes() - before;
                if bandwidth.is_some() && since.elapsed() > Duration::from_secs(1) {
                    // What was not used is not kept.
                    (since, swept) = (Instant::now(), 0);
                }
            }
            self.progress.bytes = carrier.bytes();
        }
        self.urgent.settle();
        tell(self);
        Ok(())
    }

    /// A page that is waited for, unless it was sent.
    fn page(&mut self, carrier: &mut impl Carrier, index: usize, page: u64) -> Result<()> {
        let Some(left) = self.blocks.get(index).filter(|left| left.dirty.take(page)) else { return Ok(()) };
        let pages = left.whole(page..page + 1);
        self.at = (index, pages.end);
        self.asked += pages.end - pages.start;
        let run = Run { index, block: &left.block, pages };
        carrier.send(&[run], &mut self.progress)
    }

    /// Pages in a row from where the sweep is.
    fn batch(&mut self, carrier: &mut impl Carrier) -> Result<()> {
        let (mut runs, mut room) = (Vec::new(), BATCH.min(carrier.batch()));
        // Each block once, and the first once more, from its start.
        for _ in 0..=self.blocks.len() {
            let Some(left) = self.blocks.get(self.at.0) else { break };
            while let Some(pages) = left.dirty.take_run(self.at.1, room).filter(|_| room != 0) {
                let pages = left.whole(pages);
                self.at.1 = pages.end;
                room = room.saturating_sub(pages.end - pages.start);
                runs.push(Run { index: self.at.0, block: &left.block, pages });
                if room == 0 {
                    break;
                }
            }
            if room == 0 {
                break;
            }
            self.at = ((self.at.0 + 1) % self.blocks.len(), 0);
        }
        if runs.is_empty() {
            return Ok(());
        }
        carrier.send(&runs, &mut self.progress)?;
        let Some(release) = &mut self.release else { return Ok(()) };
        runs.into_iter().for_each(|run| release.sent(run.index, run.pages));
        match release.ping() {
            Some(ping) => {
                // Between two pieces of RAM.
                carrier.end(false)?;
                carrier.command(ping.code(), &ping.data())?;
                carrier.begin()
            }
            None => Ok(()),
        }
    }
}

/// How long it takes until so many bytes a second were no more than that.
fn due(swept: u64, most: u64, since: Instant) -> Option<Duration> {
    let due = Duration::from_secs_f64(swept as f64 / most.max(1) as f64);
    due.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
}
