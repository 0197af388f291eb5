//! Dirty memory: for each client one bit per guest page.
//!
//! ```text
//!   bit 1   nothing has to be told: the page is dirty for this client (Code: there is no translated code on it)
//!   bit 0   this client listens: it wants to hear the next store
//!
//!   all clients 1 ─▶ listening() is empty ─▶ a TLB entry may be fast: tracking that is off costs nothing
//! ```
//!
//! New RAM is all ones. CODE is inverted, as in QEMU: translating clears it, the end of the last TB sets it.
//!
//! Keeps MARK-1 for its callers: [`DirtyMemory::set`] comes after the store it tells of, and starts with a SeqCst
//! fence, so that finding a bit set (and skipping the mark) cannot be older than the store. Takers use RMW and end
//! with such a fence before they read the page. A caller that tests a bit in order to skip work after a store, without
//! calling `set`, calls [`fence_after_store`] between the two.
//! GROW-1 is kept in `blocks.rs`, SUM-1 in `bitmap.rs`. Checked by tests/loom, loom_clients.rs (order) and dirty.rs (meaning).

mod bitmap;
mod blocks;
mod client;
mod code;
mod harvest;
mod lines;
mod log;
mod pages;
mod scope;

pub use client::{ClientMask, DirtyClient, Listening, NoRoom, OwnedClient};
pub use code::{CodePage, CodePages, HALVES_OFFSET, MASK_OFFSET, NOTED_OFFSET, Owned, VcpuId, lines_of};
pub(crate) use harvest::Listeners;
pub use harvest::{Answers, DirtyListener, Harvest, MAX_RANGES as MAX_REARM_RANGES, NotServed};
pub use lines::{LineLog, LinesTaken, NOTED_STORES, STORES_OFFSET, WRITTEN_OFFSET};
pub use log::{DirtyLog, LogBuilder, LogError};
pub use pages::{PageSet, Snapshot};
pub(crate) use pages::{Run, Words};
pub use scope::{LogClient, LogRegion, LogScope};

use crate::addr::{PageIndex, PageRange};
use crate::rcu::Guard;
use crate::ring::RingTable;
use crate::sync::{Mutex, Ordering, fence};
use bitmap::{SUMMARY_LINE_PAGES, Taken};
use blocks::Blocks;
use core::fmt;
use lines::Lines;
use std::sync::Arc;

/// More pages than any host can hold; a wrong number, most likely.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("dirty memory for {pages:#x} pages: at most {MAX_PAGES:#x}")]
pub struct TooManyPages {
    /// What was asked for.
    pub pages: u64,
}

/// So many rows ahead of its turn the summary of a row is asked for: a take is through a clean one long before the hardware
/// sees what it is about, and each lies on another page of the host's.
const ROWS_AHEAD: usize = 3;

/// 4 PiB of guest RAM; the pointers alone take 32 MiB then.
const MAX_PAGES: u64 = 1 << 40;

/// Orders stores before loads, as a full barrier does: a store to guest RAM before a test of a dirty bit (or of a code
/// mask) that may skip the mark (MARK-1), and what a guest's fence asks for.
/// [`DirtyMemory::set`] and a log's sync have their own.
#[inline]
pub fn fence_after_store() {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    // SAFETY: or-ing nothing changes nothing, and the top of the stack is ours. A locked instruction is a full barrier
    // as `mfence` is, and cheaper; that the asm may touch memory holds the compiler back on both sides.
    unsafe {
        core::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    fence(Ordering::SeqCst);
}

/// No column has this number.
const NO_COLUMN: u8 = u8::MAX;

/// What became of the mark of one page.
struct One {
    /// The column with a clear bit, if one was.
    new: Option<usize>,
    /// Whether that was all.
    done: bool,
}

/// The dirty bits of all RAM, for all clients.
///
/// Pages beyond what [`grow`](Self::grow) covered hold no RAM and read as ones, like any absent block. Nothing
/// clears them: a mark is never lost, whatever the caller asks.
pub struct DirtyMemory {
    blocks: Blocks,
    rings: RingTable,
    logs: log::Registry,
    code: CodePages,
    lines: Lines,
}

impl DirtyMemory {
    /// Dirty memory that covers no page yet.
    pub fn new() -> Self {
        let logs = Mutex::new(Vec::new());
        Self { blocks: Blocks::new(), rings: RingTable::new(), logs, code: CodePages::new(), lines: Lines::default() }
    }

    /// The clients that have rings.
    pub fn ringed(&self) -> ClientMask {
        ClientMask(self.rings.mask())
    }

    /// Which clients have rings, and which.
    #[inline]
    pub(crate) fn rings(&self) -> &RingTable {
        &self.rings
    }

    /// The logs that run.
    fn logs(&self) -> &log::Registry {
        &self.logs
    }

    /// Whether the client has not been dropped.
    pub(crate) fn is_current(&self, client: DirtyClient) -> bool {
        self.blocks.is_current(client)
    }

    /// A client of this run: it listens nowhere until it takes bits. When it drops, the memory of its bits is freed,
    /// its pages are no longer listened to, and its number may be another's. `owner` is what holds this dirty memory.
    ///
    /// # Errors
    /// [`NoRoom`] if all numbers are given out: drop an [`OwnedClient`] first.
    pub fn add_client<T>(owner: &Arc<T>, name: &str) -> Result<OwnedClient, NoRoom>
    where
        T: AsRef<DirtyMemory> + Send + Sync + 'static,
    {
        OwnedClient::new(owner.clone(), name)
    }

    /// Covers pages `0..pages`. Never shrinks. Readers and setters go on meanwhile (GROW-1).
    ///
    /// # Errors
    /// [`TooManyPages`] above 2^40.
    pub fn grow(&self, pages: u64) -> Result<(), TooManyPages> {
        self.blocks.grow(pages)
    }

    /// Marks `range` for each of `clients`, after the store that dirtied it. Clients that track nothing there cost
    /// a look at a null pointer. New marks of a client with rings go to the list for writers without one (RING-1).
    #[inline]
    pub fn set(&self, range: PageRange, clients: ClientMask, guard: &Guard) {
        if range.len() == 1 {
            // Straight code: a locked instruction waits for the stores before it, and a call would be some. Two setters of a page at
            // once may both report it: the harvest takes its bit once.
            let one = self.mark_one::<false>(range.start, clients, guard);
            if !one.done || (one.new.is_some() && self.rings.mask() != 0) {
                self.set_rest_of_one(range.start, clients, guard, one.new.map_or(NO_COLUMN, |new| new as u8), one.done);
            }
        } else {
            self.set_range(range, clients, guard);
        }
    }

    #[cold]
    #[inline(never)]
    fn set_rest_of_one(&self, page: PageIndex, clients: ClientMask, guard: &Guard, new: u8, done: bool) {
        let one = One { new: (new != NO_COLUMN).then_some(new.into()), done };
        self.rest_of_one(page, clients, guard, one, &mut |client, first, bits| self.rings.report(client, first, bits));
    }

    #[inline(never)]
    fn set_range(&self, range: PageRange, clients: ClientMask, guard: &Guard) {
        self.set_pages(range, clients, guard, &mut |client, first, bits| self.rings.report(client, first, bits));
    }

    /// As `set`, and tells which bits went from 0 to 1: `sink` gets the client, the page of a word's bit 0, and the
    /// word's new bits. Of several setters of a page at once, one is told; it must see to it that a client with rings
    /// hears of it, as [`VcpuRings::push`](crate::ring::VcpuRings::push) does.
    pub fn set_new(
        &self,
        range: PageRange,
        clients: ClientMask,
        guard: &Guard,
        sink: impl FnMut(DirtyClient, PageIndex, u64),
    ) {
        self.mark(range, clients & ClientMask::ALL, guard, sink);
    }

    /// As `set_new`, of the translator's bits too.
    pub(crate) fn mark(
        &self,
        range: PageRange,
        clients: ClientMask,
        guard: &Guard,
        mut sink: impl FnMut(DirtyClient, PageIndex, u64),
    ) {
        if range.len() == 1 {
            let one = self.mark_one::<true>(range.start, clients, guard);
            if !one.done || one.new.is_some() {
                self.rest_of_one(range.start, clients, guard, one, &mut sink);
            }
        } else {
            self.set_pages(range, clients, guard, &mut sink);
        }
    }

    /// What a vCPU does: marks one page for the only one of the clients that tracks. That is one locked instruction, and
    /// few loads behind it: what was looked up before is looked at again there, since it is there that a client may be
    /// found to need no mark. The row is not: a page that has one keeps it.
    #[inline(always)]
    fn mark_one<const EXACT: bool>(&self, page: PageIndex, clients: ClientMask, guard: &Guard) -> One {
        let tracking = clients & self.blocks.tracking();
        let mut new = None;
        if let Some((row, bit)) = self.blocks.locate(page, guard)
            && let Some(column) = tracking.only()
            && let Some(block) = row.block(column)
        {
            new = block.set_bit_behind_fence::<EXACT>(bit).then_some(column);
            if row.has(column, block) && clients & self.blocks.tracking() == tracking {
                return One { new, done: true };
            }
        }
        One { new, done: false }
    }

    /// What `mark_one` left: the mark that is yet to be told of, and the other columns that may need one.
    fn rest_of_one(
        &self,
        page: PageIndex,
        clients: ClientMask,
        guard: &Guard,
        one: One,
        sink: &mut impl FnMut(DirtyClient, PageIndex, u64),
    ) {
        let mut tell = |column| {
            sink(self.blocks.client_of(column), PageIndex::new(page.get() & !63), 1 << (page.get() % 64));
        };
        one.new.into_iter().for_each(&mut tell);
        if one.done {
            return;
        }
        fence_after_store();
        let Some((row, bit)) = self.blocks.locate(page, guard) else { return };
        for column in (clients & self.blocks.tracking()).columns() {
            if row.block(column).is_some_and(|block| block.set_bit(bit)) {
                tell(column);
            }
        }
    }

    fn set_pages(
        &self,
        range: PageRange,
        clients: ClientMask,
        guard: &Guard,
        sink: &mut impl FnMut(DirtyClient, PageIndex, u64),
    ) {
        if range.is_empty() || clients.is_empty() {
            return;
        }
        fence_after_store();
        let clients = clients & self.blocks.tracking();
        for (first, row, pages) in self.blocks.rows(range, guard) {
            for column in clients.columns() {
                if let Some(block) = row.block(column) {
                    block.set(pages.clone(), |word, bits| {
                        sink(self.blocks.client_of(column), PageIndex::new(first + word as u64 * 64), bits);
                    });
                }
            }
        }
    }

    /// Takes the bit of `page`: clears it and tells whether it was set. The page may be read only after every
    /// vCPU was told and has answered (HARVEST-1).
    pub(crate) fn test_and_clear(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool {
        let Some((row, bit)) = self.blocks.locate(page, guard) else {
            return true;
        };
        let Some(block) = self.blocks.block_or_install(row, client) else {
            return true;
        };
        let was = block.test_and_clear(bit);
        fence(Ordering::SeqCst);
        was
    }

    /// Takes every bit in `range`. `sink` gets each word that had one: the page of its bit 0, and the bits taken
    /// (only bits of the range). Returns how many there were. What is clean costs a bit of the summary per 512 pages.
    pub(crate) fn test_and_clear_range(
        &self,
        range: PageRange,
        client: DirtyClient,
        guard: &Guard,
        mut sink: impl FnMut(PageIndex, u64),
    ) -> u64 {
        let mut taken = 0;
        self.take_runs::<false>(range, client, guard, |first, words| {
            if let Taken::Alike(_, bits) = words {
                taken += u64::from(bits.count_ones());
                sink(first, bits);
            }
        });
        taken
    }

    /// Takes every bit in `range` and adds it to `pages`.
    pub(crate) fn take(&self, range: PageRange, client: DirtyClient, guard: &Guard, pages: &mut PageSet) {
        self.take_runs::<true>(range, client, guard, |first, words| match words {
            Taken::Alike(words, bits) => pages.push_words(first, words as u64, bits),
            Taken::Each(words) => pages.push_line(first, words),
        });
    }

    /// `sink` gets the page of a word's bit 0, and what was taken from there on (one word, unless it wants `RUNS`).
    fn take_runs<const RUNS: bool>(
        &self,
        range: PageRange,
        client: DirtyClient,
        guard: &Guard,
        mut sink: impl FnMut(PageIndex, Taken<'_>),
    ) {
        if range.is_empty() {
            return;
        }
        // Of a small range there is nothing to run ahead of.
        let mut ahead = (range.len() > SUMMARY_LINE_PAGES).then(|| self.blocks.rows(range, guard));
        let mut ask = |rows: usize| {
            for (_, row, pages) in ahead.iter_mut().flatten().take(rows) {
                if let Some(block) = row.block(client.column()) {
                    block.prefetch_summary(pages);
                }
            }
        };
        ask(ROWS_AHEAD);
        for (first, row, pages) in self.blocks.rows(range, guard) {
            ask(1);
            let Some(block) = self.blocks.block_or_install(row, client) else {
                break; // the client is gone, and whatever is marked now is another's
            };
            block.take::<RUNS>(pages, |word, taken| sink(PageIndex::new(first + word as u64 * 64), taken));
        }
        fence(Ordering::SeqCst);
    }

    /// Takes those of `bits` that are set, in the word of pages from `first` on; returns them. Before a page is read the
    /// caller ends as the other takers do, with a fence.
    pub(crate) fn take_word(&self, first: PageIndex, bits: u64, client: DirtyClient, guard: &Guard) -> u64 {
        let Some((row, bit)) = self.blocks.locate(first, guard) else { return 0 };
        // Without a block no client listens, and nothing can have been pushed.
        self.blocks.block(row, client).map_or(0, |block| block.take_word(bit / 64, bits))
    }

    /// As `test_and_clear_range`, into an object of its own.
    pub(crate) fn snapshot_and_clear(&self, range: PageRange, client: DirtyClient, guard: &Guard) -> Snapshot {
        let mut pages = PageSet::new();
        self.take(range, client, guard, &mut pages);
        Snapshot { range, pages }
    }

    /// Whether the bit of `page` is set.
    pub fn test(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool {
        match self.blocks.locate(page, guard) {
            Some((row, bit)) => self.blocks.block(row, client).is_none_or(|block| block.test(bit)),
            None => true,
        }
    }

    /// The first page in `range` with its bit set. A mark that another thread is still making may be passed over.
    pub fn next_set(&self, range: PageRange, client: DirtyClient, guard: &Guard) -> Option<PageIndex> {
        if range.is_empty() {
            return None;
        }
        let mut covered = range.start.get();
        for (first, row, pages) in self.blocks.rows(range, guard) {
            covered = first + pages.end as u64;
            let found = match self.blocks.block(row, client) {
                Some(block) => block.next_set(pages),
                None => Some(pages.start),
            };
            if let Some(bit) = found {
                return Some(PageIndex::new(first + bit as u64));
            }
        }
        // Past the table all are.
        (covered < range.end.get()).then_some(PageIndex::new(covered))
    }

    /// Whether any bit in `range` is set.
    pub fn any_set(&self, range: PageRange, client: DirtyClient, guard: &Guard) -> bool {
        self.next_set(range, client, guard).is_some()
    }

    /// Does no client but the translator track anything?
    #[inline]
    pub(crate) fn tracks_nothing(&self) -> bool {
        self.blocks.tracking().without(ClientMask::CODE).is_empty()
    }

    /// What wants to hear the next store to `page`: the clients whose bit is 0. If nothing does, its TLB entry may be fast.
    ///
    /// Only columns of clients that track something are looked at, and their pointers share one cache line. An answer may be outdated
    /// when it arrives; a taker that clears a bit posts a re-arm afterwards, and that corrects the entry (HARVEST-1).
    #[inline]
    pub fn listening(&self, page: PageIndex, guard: &Guard) -> Listening {
        let Some((row, bit)) = self.blocks.locate(page, guard) else {
            return Listening::default();
        };
        let tracking = self.blocks.tracking();
        let mut clients = ClientMask::NONE;
        if tracking.is_empty() {
            return Listening(clients);
        }
        // Straight code for the fixed clients, and a loop that is rarely entered.
        for client in DirtyClient::FIXED {
            clients |= row.listening(client.column(), bit);
        }
        let others = tracking.without(ClientMask::FIXED);
        if !others.is_empty() {
            others.columns().for_each(|column| clients |= row.listening(column, bit));
        }
        Listening(clients)
    }
}

impl DirtyMemory {
    /// The pages in `range` whose stores are heard for the sake of translated code. Costs nothing where no block of
    /// pages ever had code. Asked after a fence that follows the store (MARK-1).
    pub(crate) fn code_pages<'g>(&'g self, range: PageRange, guard: &'g Guard) -> impl Iterator<Item = PageIndex> + 'g {
        self.blocks.rows(range, guard).flat_map(|(first, row, pages)| {
            let block = row.block(DirtyClient::CODE.column()).into_iter();
            block.flat_map(move |block| {
                let listening = pages.clone().filter(|bit| !block.test(*bit));
                listening.map(move |bit| PageIndex::new(first + bit as u64))
            })
        })
    }
}

impl Default for DirtyMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DirtyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyMemory").finish_non_exhaustive()
    }
}
