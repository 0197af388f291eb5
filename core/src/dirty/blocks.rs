//! Dirty bitmaps that grow while vCPUs write to them.
//!
//! ```text
//!   DirtyMemory ─RcuCell─▶ BlockTable [r0, r1, r2]        reader: guard, load, index, one cache line
//!                                       │
//!                             Row { [Vga, Code, Migration, five to spare] }     AtomicPtr<DirtyBlock>
//!                                     │     │
//!                                   null   DirtyBlock      null reads all ones and is skipped by setters
//!
//!   grow(): new table [r0, r1, r2, r3]; r0..r2 are the same allocations, the old table is dropped after grace
//! ```
//!
//! Keeps GROW-1: a published `DirtyBlock` keeps its address until `DirtyMemory` drops, and then for a grace period;
//! an absent block reads all ones; installing one is a CAS of an all-ones block. Growth shares rows and copies no bit.
//!
//! The field has one table per client. Here one table serves all: they grow together anyway, and the clients of a
//! page are neighbours in one line, so `listening` follows one path instead of three.
//!
//! What is shared is the row, not only the block: if a grown table copied the *block pointers*, a block installed in
//! the old table after its null was copied would be forgotten. The bits cleared in it would read 1 again, which for
//! CODE means that stores to translated code are not heard. Writer of the table: the holder of `growing`. Checked by tests/loom.rs.

use super::bitmap::{BLOCK_PAGES, DirtyBlock};
use super::client::CLIENTS;
use super::{MAX_PAGES, TooManyPages};
use crate::addr::{PageIndex, PageRange};
use crate::rcu::{Guard, RcuCell, Retired, pin};
use crate::sync::{AtomicPtr, Mutex, Ordering, lock};
use core::ops::Range;
use core::ptr;
use std::sync::Arc;

/// The growing table of rows.
pub(super) struct Blocks {
    table: RcuCell<BlockTable>,
    growing: Mutex<()>,
}

struct BlockTable {
    rows: Box<[Arc<Row>]>,
}

/// The blocks of every client for the same 2 Mi pages.
#[repr(align(64))]
pub(super) struct Row {
    /// Null, or from `Box::into_raw`; goes from null to a block once and stays until the row drops (GROW-1).
    blocks: [AtomicPtr<DirtyBlock>; CLIENTS],
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { table: RcuCell::new(BlockTable { rows: Box::default() }), growing: Mutex::new(()) }
    }

    /// Makes sure that there is a row for each of pages `0..pages`. The result is dropped without a lock held.
    pub(super) fn grow(&self, pages: u64) -> Result<Option<Retired>, TooManyPages> {
        if pages > MAX_PAGES {
            return Err(TooManyPages { pages });
        }
        let wanted = pages.div_ceil(BLOCK_PAGES as u64) as usize;
        let guard = pin(); // before the lock, see `RcuCell::replace`
        let _growing = lock(&self.growing);
        let old = &self.table.load(&guard).rows;
        if wanted <= old.len() {
            return Ok(None);
        }
        let new = (old.len()..wanted).map(|_| Arc::new(Row::new()));
        Ok(Some(self.table.replace(BlockTable { rows: old.iter().cloned().chain(new).collect() })))
    }

    /// The row of `page` and its bit there.
    #[inline]
    pub(super) fn locate<'g>(&self, page: PageIndex, guard: &'g Guard) -> Option<(&'g Row, usize)> {
        let row = usize::try_from(page.get() / BLOCK_PAGES as u64).ok()?;
        let bit = (page.get() % BLOCK_PAGES as u64) as usize;
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
}

impl Row {
    fn new() -> Self {
        Self { blocks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())) }
    }

    /// The block of a client, if it tracks anything here.
    #[inline]
    pub(super) fn block(&self, client: usize) -> Option<&DirtyBlock> {
        // Acquire: partner of the CAS in `block_or_install`, which published a finished block.
        let block = self.blocks[client].load(Ordering::Acquire);
        // SAFETY: null, or a block that GROW-1 keeps alive and in place as long as the row.
        unsafe { block.as_ref() }
    }

    /// The block of a client; an absent one is installed, all ones.
    pub(super) fn block_or_install(&self, client: usize) -> &DirtyBlock {
        if let Some(block) = self.block(client) {
            return block;
        }
        let new = Box::into_raw(DirtyBlock::all_ones());
        let slot = &self.blocks[client];
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
            let block = slot.load(Ordering::Relaxed);
            if !block.is_null() {
                // SAFETY: `&mut self`: the last table with this row is gone, and that was dropped after its grace
                // period, so no reader holds the block.
                drop(unsafe { Box::from_raw(block) });
            }
        }
    }
}
