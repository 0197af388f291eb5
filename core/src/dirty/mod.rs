//! Dirty memory: for each client one bit per guest page.
//!
//! ```text
//!   bit 1   nobody has to be told: the page is dirty for this client (Code: there is no translated code on it)
//!   bit 0   this client listens: it wants to hear the next store
//!
//!   all clients 1 ─▶ listening() is empty ─▶ a TLB entry may be fast: tracking that is off costs nothing
//! ```
//!
//! New RAM is all ones. CODE is inverted, as in the field: translating clears it, the end of the last TB sets it.
//!
//! Keeps MARK-1 for its callers: [`DirtyMemory::set`] comes after the store it tells of, and starts with a SeqCst
//! fence, so that finding a bit set (and skipping the mark) cannot be older than the store. Takers use RMW and end
//! with such a fence before they read the page. Who tests a bit in order to skip work after a store, without
//! calling `set`, calls [`fence_after_store`] between the two.
//! GROW-1 is kept in `blocks.rs`, SUM-1 in `bitmap.rs`. Checked by tests/loom.rs (order) and tests/model.rs (meaning).

mod bitmap;
mod blocks;
mod client;
mod harvest;

pub use client::{ClientMask, DirtyClient};
pub use harvest::{DirtyListener, NoVcpus, NotServed};

use crate::addr::{PageIndex, PageRange};
use crate::rcu::{Guard, Retired};
use crate::sync::{AtomicU8, Ordering, fence};
use blocks::Blocks;
use core::fmt;

/// More pages than any host can hold; a wrong number, most likely.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("dirty memory for {pages:#x} pages: at most {MAX_PAGES:#x}")]
pub struct TooManyPages {
    /// What was asked for.
    pub pages: u64,
}

/// 4 PiB of guest RAM; the pointers alone take 32 MiB then.
const MAX_PAGES: u64 = 1 << 40;

/// Orders a store to guest RAM before a test of a dirty bit (or of a code mask) that may skip the mark: MARK-1.
/// [`DirtyMemory::set`] and [`DirtyMemory::test_and_clear`] have their own.
pub fn fence_after_store() {
    fence(Ordering::SeqCst);
}

/// The dirty bits of all RAM, for all clients.
///
/// Pages beyond what [`grow`](Self::grow) covered hold no RAM and read as ones, like any absent block. Nothing
/// clears them: a mark is never lost, whatever the caller asks.
pub struct DirtyMemory {
    blocks: Blocks,
    ringed: AtomicU8,
}

impl DirtyMemory {
    /// Dirty memory that covers no page yet.
    pub fn new() -> Self {
        Self { blocks: Blocks::new(), ringed: AtomicU8::new(0) }
    }

    /// The clients whose new marks are to be pushed to a ring: for these, who marks calls [`set_new`](Self::set_new).
    #[inline]
    pub fn ringed(&self) -> ClientMask {
        ClientMask(self.ringed.load(Ordering::Acquire))
    }

    /// Puts a client among the [`ringed`](Self::ringed) ones, or takes it out.
    pub fn set_ringed(&self, client: DirtyClient, on: bool) {
        let bit = ClientMask::of(client).0;
        match on {
            true => self.ringed.fetch_or(bit, Ordering::AcqRel),
            false => self.ringed.fetch_and(!bit, Ordering::AcqRel),
        };
    }

    /// Covers pages `0..pages`. Never shrinks. Readers and setters go on meanwhile (GROW-1).
    pub fn grow(&self, pages: u64) -> Result<(), TooManyPages> {
        self.grow_under_lock(pages).map(drop)
    }

    /// As `grow`, for who holds a lock and drops the result after it.
    pub(crate) fn grow_under_lock(&self, pages: u64) -> Result<Option<Retired>, TooManyPages> {
        self.blocks.grow(pages)
    }

    /// Marks `range` for each of `clients`, after the store that dirtied it. Clients that track nothing there cost
    /// a look at a null pointer.
    pub fn set(&self, range: PageRange, clients: ClientMask, guard: &Guard) {
        self.set_new(range, clients, guard, |_, _, _| {});
    }

    /// As `set`, and tells which bits went from 0 to 1: `sink` gets the client, the page of a word's bit 0, and the
    /// word's new bits. Of several who mark a page at once, one is told.
    pub fn set_new(
        &self,
        range: PageRange,
        clients: ClientMask,
        guard: &Guard,
        mut sink: impl FnMut(DirtyClient, PageIndex, u64),
    ) {
        if range.is_empty() || clients.is_empty() {
            return;
        }
        fence_after_store();
        for (first, row, pages) in self.blocks.rows(range, guard) {
            for column in clients.columns() {
                if let Some(block) = row.block(column) {
                    let client = DirtyClient { column: column as u8, age: 0 };
                    block.set(pages.clone(), |word, bits| sink(client, PageIndex::new(first + word as u64 * 64), bits));
                }
            }
        }
    }

    /// Takes the bit of `page`: clears it and tells whether it was set. The page may be read only after every
    /// vCPU was told and has answered (HARVEST-1).
    pub fn test_and_clear(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool {
        let Some((row, bit)) = self.blocks.locate(page, guard) else {
            return true;
        };
        let was = row.block_or_install(client.column()).test_and_clear(bit);
        fence(Ordering::SeqCst);
        was
    }

    /// Takes every bit in `range`. `sink` gets each word that had one: the page of its bit 0, and the bits taken
    /// (only bits of the range). Returns how many there were. What is clean costs a bit of the summary per 512 pages.
    pub fn test_and_clear_range(
        &self,
        range: PageRange,
        client: DirtyClient,
        guard: &Guard,
        mut sink: impl FnMut(PageIndex, u64),
    ) -> u64 {
        let mut taken = 0;
        if range.is_empty() {
            return taken;
        }
        for (first, row, pages) in self.blocks.rows(range, guard) {
            row.block_or_install(client.column()).take(pages, |word, bits| {
                taken += u64::from(bits.count_ones());
                sink(PageIndex::new(first + word as u64 * 64), bits);
            });
        }
        fence(Ordering::SeqCst);
        taken
    }

    /// Whether the bit of `page` is set.
    pub fn test(&self, page: PageIndex, client: DirtyClient, guard: &Guard) -> bool {
        match self.blocks.locate(page, guard) {
            Some((row, bit)) => row.block(client.column()).is_none_or(|block| block.test(bit)),
            None => true,
        }
    }

    /// Who wants to hear the next store to `page`: the clients whose bit is 0. Nobody: its TLB entry may be fast.
    ///
    /// One row of pointers, one cache line, answers for every client that tracks nothing. An answer may be outdated
    /// when it arrives; whoever clears a bit posts a re-arm afterwards, and that corrects the entry (HARVEST-1).
    #[inline]
    pub fn listening(&self, page: PageIndex, guard: &Guard) -> ClientMask {
        let Some((row, bit)) = self.blocks.locate(page, guard) else {
            return ClientMask::NONE;
        };
        let mut who = ClientMask::NONE;
        for column in ClientMask::ALL.columns() {
            if row.block(column).is_some_and(|block| !block.test(bit)) {
                who |= ClientMask(1 << column);
            }
        }
        who
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
