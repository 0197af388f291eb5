//! Dirty bitmaps that grow while vCPUs write to them, and columns of clients that come and go.
//!
//! ```text
//!   Blocks ─RcuCell─▶ BlockTable [r0, r1, r2]            reader: guard, load, index
//!                                     │
//!                                     ▼ Arc, shared by every table since it was made
//!                                   Row [Vga, Code, Migration, five of run time]     AtomicPtr<DirtyBlock>
//!                                     │     │
//!                                   null   DirtyBlock      null reads all ones and is skipped by setters
//!
//!   grow(): new table [r0, r1, r2, r3]; r0..r2 are the same allocations, the old table is dropped after grace
//! ```
//!
//! Keeps GROW-1: a published `DirtyBlock` keeps its address until `DirtyMemory` or its client drops, and then for a
//! grace period; an absent block reads all ones; installing one is a CAS of an all-ones block. Growth shares rows and
//! copies no bit.
//!
//! QEMU has one table per client. Here one table serves all: they grow together anyway, and the clients of a
//! page are neighbours in one line, so `listening` follows one path instead of three.
//!
//! What is shared is the row, not only the block: if a grown table copied the *block pointers*, a block installed in
//! the old table after its null was copied would be forgotten. The bits cleared in it would read 1 again, which for
//! CODE means that stores to translated code are not heard. Writer of the table, and of which client has which column: the
//! holder of `given`.
//!
//! A column is given out again at once. Which calls may still have been in it, and why that is harmless:
//! - a taker or tester of the old client looks whether the column's id is still its own *after* it loaded the block.
//!   The id changes before the old blocks go and hence before a new one comes, so a block of the new client shows it.
//!   Installing a block looks under the lock.
//! - a setter that found an old block or none: its fence (MARK-1) comes before its look, the new client's fence after
//!   the block that the setter has not seen. So what it stored is visible to a reader of the page after that take.
//! - an answer of `listening` for the old client: a mark too many for the new one. Checked by tests/loom_clients.rs.

use super::bitmap::{BLOCK_PAGES, DirtyBlock};
use super::client::{CLIENTS, ClientMask, DirtyClient};
use super::{MAX_PAGES, TooManyPages};
use crate::addr::{PageIndex, PageRange};
use crate::rcu::{Guard, RcuCell, drop_later, pin};
use crate::sync::{AtomicPtr, AtomicU8, AtomicU64, Mutex, Ordering, lock};
use core::ops::Range;
use core::ptr;
use std::sync::Arc;

/// The growing table of rows.
pub(super) struct Blocks {
    /// The first row of every table, which is most machines' only one: null until there is one. Of it a mark is found by three
    /// loads in a row instead of five.
    first: AtomicPtr<Row>,
    table: RcuCell<BlockTable>,
    /// The columns that may have a block: no look at the others is needed. Set before a column's first block is
    /// published, cleared after its last one went.
    tracking: AtomicU8,
    /// The client's id of each column, or `NOBODY`.
    ids: [AtomicU64; CLIENTS],
    /// Bits of the columns that a client has; the lock for a change of the table or of a column.
    given: Mutex<u8>,
}

/// The id of a column that is free.
const NOBODY: u64 = u64::MAX;

struct BlockTable {
    rows: Box<[Arc<Row>]>,
}

/// The blocks of every client for the same 2 Mi pages.
#[repr(align(64))]
pub(super) struct Row {
    /// Null, or from `Box::into_raw`; goes from null to a block and stays until its client or the row drops (GROW-1).
    blocks: [AtomicPtr<DirtyBlock>; CLIENTS],
}

impl Blocks {
    pub(super) fn new() -> Self {
        let fixed = DirtyClient::FIXED;
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
            table: RcuCell::new(BlockTable { rows: Box::default() }),
            tracking: AtomicU8::new(0),
            ids: core::array::from_fn(|n| AtomicU64::new(fixed.get(n).map_or(NOBODY, |client| client.id))),
            given: Mutex::new(fixed.iter().fold(0, |mask, client| mask | ClientMask::of(*client).0)),
        }
    }

    /// Makes sure that there is a row for each of pages `0..pages`.
    pub(super) fn grow(&self, pages: u64) -> Result<(), TooManyPages> {
        if pages > MAX_PAGES {
            return Err(TooManyPages { pages });
        }
        let wanted = pages.div_ceil(BLOCK_PAGES as u64) as usize;
        let guard = pin();
        let _given = lock(&self.given);
        let old = &self.table.load(&guard).rows;
        if wanted <= old.len() {
            return Ok(());
        }
        let new = (old.len()..wanted).map(|_| Arc::new(Row::new()));
        let rows: Box<[Arc<Row>]> = old.iter().cloned().chain(new).collect();
        let first = Arc::as_ptr(&rows[0]);
        self.table.replace(BlockTable { rows });
        // Release: partner of the Acquire in `locate`.
        self.first.store(first.cast_mut(), Ordering::Release);
        Ok(())
    }

    /// Gives out a free column, if there is one.
    pub(super) fn give_column(&self, id: u64) -> Option<DirtyClient> {
        let mut given = lock(&self.given);
        let column = (!*given).trailing_zeros();
        if column as usize >= CLIENTS {
            return None;
        }
        *given |= 1 << column;
        self.ids[column as usize].store(id, Ordering::Release);
        Some(DirtyClient { column: column as u8, id })
    }

    /// Takes a column back; its blocks are freed after the grace period.
    pub(super) fn take_column_back(&self, client: DirtyClient) {
        let (column, bit) = (client.column(), ClientMask::of(client).0);
        let guard = pin();
        let mut given = lock(&self.given);
        // First the id: a setter that loads a block of the next client then sees that it is not its own. Partner: `is_current`.
        self.ids[column].store(NOBODY, Ordering::Release);
        let rows = &self.table.load(&guard).rows;
        let blocks = rows.iter().map(|row| row.blocks[column].swap(ptr::null_mut(), Ordering::AcqRel));
        // They came out of the rows by these swaps: no new reader finds them, and nothing else retires them.
        drop_later(Unlinked(blocks.filter(|block| !block.is_null()).collect()));
        self.tracking.fetch_and(!bit, Ordering::AcqRel);
        *given &= !bit;
    }

    /// Whether the column is still this client's. For a block: asked after the block was loaded.
    #[inline]
    pub(super) fn is_current(&self, client: DirtyClient) -> bool {
        self.ids[client.column()].load(Ordering::Acquire) == client.id
    }

    /// The id of the column's client now.
    pub(super) fn client_of(&self, column: usize) -> DirtyClient {
        DirtyClient { column: column as u8, id: self.ids[column].load(Ordering::Acquire) }
    }

    /// The columns that may have a block. A setter tests it to skip a mark after the fence of MARK-1, like any
    /// test of a bit: a client that comes later takes its bits later.
    #[inline]
    pub(super) fn tracking(&self) -> ClientMask {
        ClientMask(self.tracking.load(Ordering::Acquire))
    }

    /// The row of `page` and its bit there.
    #[inline]
    pub(super) fn locate<'g>(&self, page: PageIndex, guard: &'g Guard) -> Option<(&'g Row, usize)> {
        let row = usize::try_from(page.get() / BLOCK_PAGES as u64).ok()?;
        let bit = (page.get() % BLOCK_PAGES as u64) as usize;
        if row == 0 {
            // SAFETY: null, or a row that every table has had since, the last of which is dropped after the grace period
            // (GROW-1): it outlives `guard`.
            return Some((unsafe { self.first.load(Ordering::Acquire).as_ref() }?, bit));
        }
        Some((self.table.load(guard).rows.get(row)?, bit))
    }

    /// The rows that `range` touches: the page of the row's bit 0, the row, and the bits of its part. Pages without a
    /// row are left out.
    pub(super) fn rows<'g>(
        &self,
        range: PageRange,
        guard: &'g Guard,
    ) -> impl Iterator<Item = (u64, &'g Row, Range<usize>)> + use<'g> {
        const SPAN: u64 = BLOCK_PAGES as u64;
        let (start, end) = (range.start.get(), range.end.get());
        let rows = &self.table.load(guard).rows;
        let touched = (start / SPAN)..end.div_ceil(SPAN).min(rows.len() as u64);
        touched.map(move |n| {
            let base = n * SPAN;
            let first = start.max(base) - base;
            let last = (end - base).min(SPAN);
            // Both are at most SPAN; `touched` leaves out what lies past the table.
            (base, &*rows[n as usize], first as usize..last as usize)
        })
    }

    /// The block of a client for reading: `None` reads all ones, be it absent or the client gone.
    #[inline]
    pub(super) fn block<'g>(&self, row: &'g Row, client: DirtyClient) -> Option<&'g DirtyBlock> {
        row.block(client.column()).filter(|_| self.is_current(client))
    }

    /// The block of a client for taking; an absent one is installed, all ones. `None`: the client is gone.
    #[inline]
    pub(super) fn block_or_install<'g>(&self, row: &'g Row, client: DirtyClient) -> Option<&'g DirtyBlock> {
        match row.block(client.column()) {
            Some(block) => self.is_current(client).then_some(block),
            None => self.install(row, client),
        }
    }

    #[cold]
    fn install<'g>(&self, row: &'g Row, client: DirtyClient) -> Option<&'g DirtyBlock> {
        let new = DirtyBlock::all_ones();
        // The fixed clients' columns never change hands, and a vCPU that announces code waits for no lock.
        let fixed = client.column() < DirtyClient::FIXED.len();
        let _given = (!fixed).then(|| lock(&self.given));
        if !self.is_current(client) {
            return None;
        }
        self.tracking.fetch_or(ClientMask::of(client).0, Ordering::AcqRel);
        Some(row.install(client.column(), new))
    }
}

impl Row {
    fn new() -> Self {
        Self { blocks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())) }
    }

    /// The block of a column. A row is reached under a guard, so the borrow of it ends before that guard does.
    #[inline]
    pub(super) fn block(&self, column: usize) -> Option<&DirtyBlock> {
        // Acquire: partner of the CAS in `install`, which published a finished block.
        let block = self.blocks[column].load(Ordering::Acquire);
        // SAFETY: null, or a block that GROW-1 keeps alive and in place for as long as a guard of now.
        unsafe { block.as_ref() }
    }

    /// Whether the column's block is this one, now.
    #[inline]
    pub(super) fn has(&self, column: usize, block: &DirtyBlock) -> bool {
        ptr::eq(self.blocks[column].load(Ordering::Acquire), block)
    }

    /// The column's client if it listens, or none.
    #[inline]
    pub(super) fn listening(&self, column: usize, bit: usize) -> ClientMask {
        match self.block(column) {
            Some(block) if !block.test(bit) => ClientMask(1 << column),
            _ => ClientMask::NONE,
        }
    }

    fn install(&self, column: usize, new: Box<DirtyBlock>) -> &DirtyBlock {
        let new = Box::into_raw(new);
        let slot = &self.blocks[column];
        match slot.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: published by us just now; from here on as in `block`.
            Ok(_) => unsafe { &*new },
            Err(theirs) => {
                // SAFETY: `new` is ours and was never published.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: not null, since the exchange expected null; then as in `block`.
                unsafe { &*theirs }
            }
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for slot in &self.blocks {
            // SAFETY: `&mut self`: the last table with this row is gone, and that was dropped after its grace
            // period, so no reader holds the block.
            unsafe { Unlinked::free(slot.load(Ordering::Relaxed)) };
        }
    }
}

/// Blocks that no table leads to any more. Dropped after the grace period.
struct Unlinked(Vec<*mut DirtyBlock>);

impl Unlinked {
    /// # Safety
    /// Null, or a block from `Box::into_raw` that has no other owner or reader.
    unsafe fn free(block: *mut DirtyBlock) {
        if !block.is_null() {
            // SAFETY: this function's contract.
            drop(unsafe { Box::from_raw(block) });
        }
    }
}

impl Drop for Unlinked {
    fn drop(&mut self) {
        for block in &self.0 {
            // SAFETY: made by `take_column_back` only, of blocks that it unlinked, and dropped after grace.
            unsafe { Self::free(*block) };
        }
    }
}

// SAFETY: it owns its blocks; their fields are atomics.
unsafe impl Send for Unlinked {}
