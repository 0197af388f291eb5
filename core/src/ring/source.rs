//! Rings as the back end of a [`DirtyLog`](crate::dirty::DirtyLog).
//!
//! ```text
//!   start   RingLog into the table, before any bit is cleared        take    new blocks: their bits, by a scan, once
//!   stop    out again, after the bits were set                               all else: the rings and their list
//! ```
//!
//! A page reaches a ring when its bit goes from 0 to 1. The bits of a block that is plugged under a running log are all 1,
//! and so are those of pages that a block grows by: nobody would ever push them. So a take looks for blocks that it does
//! not know (by slot, which no two blocks share, and by length) and takes their bits as a bitmap would. That happens when
//! the list's version changes, and in the take after that one: the ranges that a take is given are a little older than
//! the version that it reads.

use super::{DirtyRing, RingError, RingLog, RingStartError};
use crate::addr::{PageIndex, PageRange};
use crate::dirty::{DirtyClient, DirtyMemory, LogSource, PageSet};
use crate::ram::RamList;
use crate::rcu::{Guard, pin};
use crate::sync::{Mutex, lock};
use core::fmt;
use std::collections::HashMap;
use std::sync::Arc;

/// Dirty rings for every vCPU that writes to the RAM of one list.
pub struct RingSource {
    list: Arc<RamList>,
    entries: u32,
    logs: Mutex<Vec<Running>>,
}

/// A client's log.
struct Running {
    log: Arc<RingLog>,
    blocks: Known,
}

/// The blocks whose bits were taken once.
struct Known {
    version: u64,
    /// The take before this one saw another version.
    again: bool,
    /// By slot: the end of the pages that are known.
    ends: HashMap<u32, PageIndex>,
}

impl RingSource {
    /// Rings of `entries`, for whichever client is to be logged.
    pub fn new(list: &Arc<RamList>, entries: u32) -> Result<Arc<Self>, RingError> {
        // Refused here, not when a vCPU comes.
        drop(DirtyRing::new(entries, 0)?);
        Ok(Arc::new(Self { list: list.clone(), entries, logs: Mutex::new(Vec::new()) }))
    }

    /// The rings of a client that is logged: to see how full they are.
    pub fn log(&self, client: DirtyClient) -> Option<Arc<RingLog>> {
        lock(&self.logs).iter().find(|running| running.log.client() == client).map(|running| running.log.clone())
    }
}

impl LogSource for RingSource {
    fn start(&self, dirty: &DirtyMemory, client: DirtyClient) -> Result<(), RingStartError> {
        if !core::ptr::eq(dirty, self.list.dirty()) {
            return Err(RingStartError::OtherList);
        }
        // Read before the blocks: what comes later is looked for.
        let version = self.list.version();
        let log = dirty.start_rings(client, self.entries)?;
        let guard = pin();
        // All of these are armed by whoever starts, as far as they are logged.
        let ends = self.list.blocks(&guard).map(|block| (block.slot(), block.pages().end)).collect();
        lock(&self.logs).push(Running { log, blocks: Known { version, again: false, ends } });
        Ok(())
    }

    fn take(&self, dirty: &DirtyMemory, client: DirtyClient, ranges: &[PageRange], guard: &Guard, pages: &mut PageSet) {
        let mut logs = lock(&self.logs);
        let Some(Running { log, blocks }) = logs.iter_mut().find(|running| running.log.client() == client) else {
            return;
        };
        for range in blocks.new_pages(&self.list, ranges, guard) {
            dirty.test_and_clear_range(range, client, guard, |first, bits| pages.push(first, bits));
        }
        pages.merge(&PageSet::from_words(log.take(&self.list, Some(ranges), guard)));
    }

    fn stop(&self, dirty: &DirtyMemory, client: DirtyClient) {
        let mut logs = lock(&self.logs);
        if let Some(at) = logs.iter().position(|running| running.log.client() == client) {
            let gone = logs.swap_remove(at);
            drop(logs);
            dirty.stop_rings(&gone.log);
        }
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
        f.debug_struct("RingSource").field("entries", &self.entries).finish_non_exhaustive()
    }
}
