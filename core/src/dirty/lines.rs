//! Which lines of RAM were written since a checkpoint: what a restore has to put back, and no more.
//!
//! ```text
//!   a vCPU's store, entry with LINES ─▶ its page's NotedPage { written |= line, stores += 1 }     first one: page ─▶ the vCPU's list
//!                                          stores == NOTED_STORES: all lines count as written, and the entry is plain
//!   any other writer ─▶ RamList::after ─▶ Lines.others: a list of ranges, behind a lock
//!   take (the vCPUs are parked):  the lists ─▶ pages with their lines ; the ranges
//! ```
//!
//! What the bytes were is not kept here: a checkpoint has a copy of all RAM (`checkpoint/`), and is the authority. So a line that
//! is noted twice, or for nothing, costs a copy, and no order between writers matters: no store can be saved as an old value.
//!
//! Keeps LINE-1: a line is noted by the end of the store that wrote it, and taken before it is put back. A vCPU notes before or
//! after its store, as nothing is taken while it runs. Any other writer stores, then notes under the lock that a take holds:
//! bytes that a take does not know of are known to the next.

use super::DirtyMemory;
use super::code::CodePage;
use crate::addr::{PageIndex, RamAddr};
use crate::ram::RamList;
use crate::sync::{Mutex, lock};
use core::mem::offset_of;
use core::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Of so many stores to a page the lines are noted, then it counts as written whole, and they cost nothing more. To note a store
/// costs about a twenty-fifth of what it costs to put a page back.
pub const NOTED_STORES: u32 = 24;
/// For so many takes, at most, a page goes on to count as written whole before its stores are counted again.
const MAX_WHOLE: u32 = 64;

/// Beside a page's index: page tables lay there.
const TABLE: u64 = 1 << 63;

/// What vCPUs stored to one page of RAM. Emitted code reads and writes `written` and `stores`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct NotedPage {
    /// Bit n: the n-th line was written.
    written: AtomicU64,
    /// The page's own index; written before an entry points here. [`TABLE`] is set with it.
    page: AtomicU64,
    /// Stores that were noted. Zero: the page is in no vCPU's list.
    stores: AtomicU32,
    /// Takes for which it counts as written whole, 16 bits each: left, and of the last time.
    whole: AtomicU32,
}

/// Where emitted code finds the lines that were written, from the start of what is noted.
pub const WRITTEN_OFFSET: i32 = offset_of!(NotedPage, written) as i32;
/// The same for the count of stores.
pub const STORES_OFFSET: i32 = offset_of!(NotedPage, stores) as i32;

/// What becomes of a page that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakenAs {
    /// Its lines are noted again, as they were: its entries are as they should be.
    Lines,
    /// It was written whole, and its lines are noted again: its entries are to be armed.
    Armed,
    /// It goes on to count as written whole.
    Whole,
}

impl CodePage {
    /// A vCPU stores to these lines, which are those of a page that [`DirtyMemory::noted_page`] gave out. Is the page in the list of
    /// some vCPU already? If it is not, it must come into the caller's.
    #[inline]
    pub fn note(&self, lines: u64) -> bool {
        let noted = &self.noted;
        let stores = noted.stores.load(Ordering::Relaxed);
        noted.stores.store(stores.saturating_add(1), Ordering::Relaxed);
        let all = if stores >= NOTED_STORES { u64::MAX } else { lines };
        // Another vCPU may note another line: but for it a plain store would do.
        if noted.written.load(Ordering::Relaxed) & all != all {
            noted.written.fetch_or(all, Ordering::Relaxed);
        }
        stores != 0
    }

    /// Does the page count as written whole?
    #[inline]
    pub fn is_noted_whole(&self) -> bool {
        self.noted.written.load(Ordering::Relaxed) == u64::MAX
    }

    /// As if nothing had been stored there.
    pub fn forget_noted(&self) {
        self.noted.written.store(0, Ordering::Relaxed);
        self.noted.stores.store(0, Ordering::Relaxed);
        self.noted.whole.store(0, Ordering::Relaxed);
    }

    /// Which page this is, if an entry ever pointed here.
    #[inline]
    pub fn index(&self) -> PageIndex {
        PageIndex::new(self.noted.page.load(Ordering::Relaxed) & !TABLE)
    }

    /// A walk reads page tables there.
    #[inline]
    pub fn note_table(&self) {
        if !self.has_tables() {
            self.noted.page.fetch_or(TABLE, Ordering::Relaxed);
        }
    }

    /// Did a walk ever read page tables there?
    #[inline]
    pub fn has_tables(&self) -> bool {
        self.noted.page.load(Ordering::Relaxed) & TABLE != 0
    }

    /// Takes what vCPUs noted; all that may store there are parked (LINE-1).
    #[inline]
    pub fn take_noted(&self) -> (u64, TakenAs) {
        let noted = &self.noted;
        let written = noted.written.load(Ordering::Relaxed);
        let taken = if written == u64::MAX { self.take_whole() } else { TakenAs::Lines };
        if taken != TakenAs::Whole {
            noted.written.store(0, Ordering::Relaxed);
            noted.stores.store(0, Ordering::Relaxed);
            if taken == TakenAs::Lines {
                noted.whole.store(0, Ordering::Relaxed);
            }
        }
        (written, taken)
    }

    #[cold]
    fn take_whole(&self) -> TakenAs {
        let whole = self.noted.whole.load(Ordering::Relaxed);
        let (left, last) = (whole & 0xffff, whole >> 16);
        // It was counted, and written often: the longer it was so, the longer it is taken to be.
        let (left, last) =
            if left > 0 { (left - 1, last) } else { ((2 * last).clamp(1, MAX_WHOLE), (2 * last).clamp(1, MAX_WHOLE)) };
        self.noted.whole.store(left | last << 16, Ordering::Relaxed);
        if left == 0 { TakenAs::Armed } else { TakenAs::Whole }
    }
}

/// Whether lines are noted, and what writers other than vCPUs wrote. One for each dirty memory.
#[derive(Debug, Default)]
pub(super) struct Lines {
    on: AtomicBool,
    others: Mutex<Vec<Range<u64>>>,
    /// There are some; written under their lock.
    any: AtomicBool,
}

impl DirtyMemory {
    /// Are lines noted?
    #[inline]
    pub fn notes_lines(&self) -> bool {
        self.lines.on.load(Ordering::Acquire)
    }

    /// The page, if a vCPU has to note which of its lines it stores to. Its address stays good as long as `self`.
    #[inline]
    pub fn noted_page(&self, page: PageIndex) -> Option<&CodePage> {
        if !self.notes_lines() {
            return None;
        }
        let noted = self.code.page_or_insert(page);
        if noted.index() != page {
            noted.noted.page.fetch_or(page.get(), Ordering::Relaxed);
        }
        (!noted.is_noted_whole()).then_some(noted)
    }

    /// Notes bytes that no vCPU wrote. They are visible.
    #[inline]
    pub(crate) fn note_others(&self, ram: RamAddr, len: u64) {
        if self.notes_lines() {
            self.note_range(ram.get()..ram.get().saturating_add(len));
        }
    }

    #[cold]
    fn note_range(&self, range: Range<u64>) {
        let mut others = lock(&self.lines.others);
        self.lines.any.store(true, Ordering::Release);
        match others.last_mut() {
            Some(last) if range.start <= last.end && range.end >= last.start => {
                *last = last.start.min(range.start)..last.end.max(range.end);
            }
            _ => others.push(range),
        }
    }
}

/// Lines that are written are noted as long as this lives.
#[must_use = "dropped, no line is noted any more"]
#[derive(Debug)]
pub struct LineLog {
    list: Arc<RamList>,
    /// Pages that count as written whole.
    whole: Vec<PageIndex>,
}

/// Lines are noted for another [`LineLog`] of this list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("another checkpoint's owner notes what is written to this RAM")]
pub struct LinesTaken;

impl LineLog {
    /// From here on stores are noted: those that come after the caller has armed the entries of each vCPU, which is parked, and
    /// emptied its list.
    ///
    /// # Errors
    /// [`LinesTaken`]: a list has one such log at a time.
    pub fn start(list: &Arc<RamList>) -> Result<LineLog, LinesTaken> {
        let lines = &list.dirty().lines;
        if lines.on.swap(true, Ordering::SeqCst) {
            return Err(LinesTaken);
        }
        lock(&lines.others).clear();
        Ok(LineLog { list: list.clone(), whole: Vec::new() })
    }

    /// The list.
    pub fn list(&self) -> &Arc<RamList> {
        &self.list
    }

    /// Takes what was noted by writers that are no vCPU.
    pub fn take_others(&mut self) -> Vec<Range<u64>> {
        let lines = &self.list.dirty().lines;
        // Of a writer that has not come so far the next take hears, as if it had come for the lock behind this.
        if !lines.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut others = lock(&lines.others);
        lines.any.store(false, Ordering::Relaxed);
        core::mem::take(&mut *others)
    }

    /// Takes a page of a vCPU's list, or of [`take_whole`](Self::take_whole): its lines, and whether its entries are to be armed. If it
    /// was taken already, there are no lines.
    #[inline]
    pub fn take(&mut self, page: &CodePage) -> (u64, bool) {
        let (lines, taken) = page.take_noted();
        if taken == TakenAs::Whole {
            self.whole.push(page.index());
        }
        (lines, taken == TakenAs::Armed)
    }

    /// The pages that count as written whole since the last take. Each is to be [taken](Self::take).
    pub fn take_whole(&mut self) -> Vec<PageIndex> {
        core::mem::take(&mut self.whole)
    }
}

impl Drop for LineLog {
    fn drop(&mut self) {
        self.list.dirty().lines.on.store(false, Ordering::SeqCst);
        let code = self.list.dirty().code();
        for page in self.whole.drain(..) {
            if let Some(page) = code.page(page) {
                page.forget_noted();
            }
        }
    }
}
