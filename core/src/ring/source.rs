//! Rings as the back end of a [`DirtyLog`](crate::dirty::DirtyLog).
//!
//! ```text
//!   start   RingLog into the table, before any bit is cleared        take    new blocks: their bits, by a scan, once
//!   stop    out again, before the bits are set                               all else: the rings and their list
//! ```
//!
//! A page reaches a ring when its bit goes from 0 to 1. The bits of a block that is plugged under a running log are all 1,
//! and so are those of pages that a block grows by: no vCPU would ever push them. So a take looks for blocks that it does
//! not know (by slot, which no two blocks share, and by length) and takes their bits as a bitmap would. That happens when
//! the list's version changes, and in the take after that one: the ranges that a take is given are a little older than
//! the version that it reads.

use super::{RingError, RingLog, RingStartError};
use crate::addr::{PageIndex, PageRange};
use crate::dirty::{DirtyClient, DirtyMemory, PageSet};
use crate::ram::RamList;
use crate::rcu::Guard;
use crate::sync::{Mutex, lock};
use core::fmt;
use std::collections::HashMap;
use std::sync::Arc;

/// Dirty rings for every vCPU that writes to the RAM that one log is of.
pub(crate) struct RingSource {
    log: Arc<RingLog>,
    blocks: Mutex<Known>,
}

/// The blocks that had their bits taken once.
#[derive(Default)]
struct Known {
    version: u64,
    /// The take before this one saw another version.
    again: bool,
    /// By slot: the end of the pages that are known.
    ends: HashMap<u32, PageIndex>,
}

impl RingSource {
    /// Rings of `entries`.
    pub(crate) fn new(client: DirtyClient, entries: u32) -> Result<Self, RingError> {
        Ok(Self { log: Arc::new(RingLog::new(client, entries)?), blocks: Mutex::default() })
    }

    /// The rings: to see how full they are.
    pub(crate) fn log(&self) -> &Arc<RingLog> {
        &self.log
    }

    pub(crate) fn entries(&self) -> u32 {
        self.log.entries()
    }

    /// Logging begins. Called before the first bit is cleared. If it refuses, nothing begins.
    pub(crate) fn start(&self, list: &RamList, guard: &Guard) -> Result<(), RingStartError> {
        // Read before the blocks: what comes later is looked for.
        let version = list.version();
        list.dirty().rings().start(self.log.clone())?;
        // All of these are armed by the start, as far as they are logged.
        let ends = list.blocks(guard).map(|block| (block.slot(), block.pages().end)).collect();
        *lock(&self.blocks) = Known { version, again: false, ends };
        Ok(())
    }

    /// Puts what was found into `pages`, and clears the bits of these pages so that their next store is found, too.
    /// `ranges` (rising, disjoint) is what is logged now; the rest is left out by the caller. The pages are re-armed
    /// before they are read.
    pub(crate) fn take(&self, list: &RamList, ranges: &[PageRange], guard: &Guard, pages: &mut PageSet) {
        let mut blocks = lock(&self.blocks);
        for range in blocks.new_pages(list, ranges, guard) {
            list.dirty().take(range, self.log.client(), guard, pages);
        }
        pages.merge(&PageSet::from_words(self.log.take(list, Some(ranges), guard)));
    }

    /// Logging ends: the client's bits in the regions will be set, and it need not hear of that.
    pub(crate) fn stop(&self, dirty: &DirtyMemory) {
        dirty.rings().stop(&self.log);
    }
}

impl Known {
    /// The parts of `ranges` that no take has seen, by rising page.
    fn new_pages(&mut self, list: &RamList, ranges: &[PageRange], guard: &Guard) -> Vec<PageRange> {
        let version = list.version();
        if version == self.version && !self.again {
            return Vec::new();
        }
        self.again = version != self.version;
        self.version = version;
        let old = core::mem::take(&mut self.ends);
        let mut new = Vec::new();
        for range in ranges {
            // A range lies in one block. If that has gone since, so has the interest in it.
            let Some(block) = list.find(range.start.base(), guard) else { continue };
            let known = old.get(&block.slot()).copied().unwrap_or(range.start).max(range.start);
            if known < range.end {
                new.push(PageRange { start: known, end: range.end });
            }
            let end = self.ends.entry(block.slot()).or_insert(range.end);
            *end = range.end.max(*end);
        }
        new
    }
}

impl fmt::Debug for RingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingSource").field("entries", &self.entries()).finish_non_exhaustive()
    }
}
