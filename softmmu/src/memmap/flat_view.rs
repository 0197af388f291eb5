//! The rendered memory map: sorted ranges without overlap, in chunks that versions share.
//!
//! ```text
//!   FlatView v1  [ c0 ][ c1 ][ c2 ]          a change replaces the chunks it touches: ten thousand DIMMs cost
//!   FlatView v2  [ c0 ][ c1'][ c2 ]          some 160 pointer copies, not ten thousand range copies
//! ```
//!
//! A view holds its RAM blocks and devices alive. That is what makes a TLB entry's raw pointers sound: a vCPU keeps
//! its view until it has dropped the entries that came from it.

use crate::addr::GuestPhys;
use crate::mmio::MmioDevice;
use notdirty_core::{PAGE_SIZE, RamBlock};
use std::sync::Arc;

/// A chunk is cut in pieces of half of this when it grows past it.
const CHUNK: usize = 128;

/// What a range of guest-physical addresses is.
#[derive(Clone)]
pub(crate) enum What {
    Ram { block: Arc<RamBlock>, off: u64, readonly: bool },
    Mmio { dev: Arc<dyn MmioDevice>, off: u64 },
}

impl What {
    /// The same thing, `n` bytes further in.
    pub(crate) fn advanced(&self, n: u64) -> What {
        match self {
            What::Ram { block, off, readonly } => What::Ram { block: block.clone(), off: off + n, readonly: *readonly },
            What::Mmio { dev, off } => What::Mmio { dev: dev.clone(), off: off + n },
        }
    }

    /// Is `next` what follows `len` bytes of this?
    fn continues_with(&self, len: u64, next: &What) -> bool {
        match (self, next) {
            (
                What::Ram { block, off, readonly },
                What::Ram { block: next_block, off: next_off, readonly: next_readonly },
            ) => Arc::ptr_eq(block, next_block) && off + len == *next_off && readonly == next_readonly,
            (What::Mmio { dev, off }, What::Mmio { dev: next_dev, off: next_off }) => {
                // Data pointers only: one type may have several vtables.
                std::ptr::addr_eq(Arc::as_ptr(dev), Arc::as_ptr(next_dev)) && off + len == *next_off
            }
            _ => false,
        }
    }
}

/// One rendered range; `last` is inclusive, so that the end of the address space needs no exception.
#[derive(Clone)]
pub(crate) struct FlatRange {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) what: What,
}

impl FlatRange {
    /// The part within `[start, last]`, which must overlap.
    fn cut(&self, start: u64, last: u64) -> FlatRange {
        let from = self.start.max(start);
        FlatRange { start: from, last: self.last.min(last), what: self.what.advanced(from - self.start) }
    }
}

type Chunk = Arc<[FlatRange]>;

/// What lies at an address, and for how far.
pub enum Resolved<'v> {
    /// Guest RAM (or ROM, if `readonly`): byte `off` of `block`.
    Ram {
        /// The block.
        block: &'v Arc<RamBlock>,
        /// Offset in the block.
        off: u64,
        /// Stores are discarded.
        readonly: bool,
        /// Bytes from here to the end of the range.
        len_left: u64,
    },
    /// A device.
    Mmio {
        /// The device.
        dev: &'v Arc<dyn MmioDevice>,
        /// Offset from the start of its region.
        off: u64,
        /// Bytes from here to the end of the range.
        len_left: u64,
    },
    /// Nothing.
    None,
}

/// What a whole page is, for the TLB.
pub(crate) enum Span<'v> {
    /// One range covers the page; the offset is that of the page's first byte.
    Whole(&'v FlatRange, u64),
    /// Something is there, but not one thing on the whole page.
    Mixed,
    /// Nothing at the address asked for, and nothing else on the page.
    Empty,
}

/// The memory map at one moment.
#[derive(Default)]
pub struct FlatView {
    chunks: Vec<Chunk>,
    /// `chunks[i][0].start`, apart, so that a lookup touches few cache lines.
    firsts: Vec<u64>,
    /// Goes up with each change.
    version: u64,
}

impl FlatView {
    /// Index of the chunk that could hold `addr`.
    fn chunk_of(&self, addr: u64) -> Option<usize> {
        self.firsts.partition_point(|&first| first <= addr).checked_sub(1)
    }

    /// The range that covers `addr`.
    #[inline]
    pub(crate) fn find(&self, addr: u64) -> Option<&FlatRange> {
        let chunk = &self.chunks[self.chunk_of(addr)?];
        let at = chunk.partition_point(|range| range.start <= addr).checked_sub(1)?;
        Some(&chunk[at]).filter(|range| addr <= range.last)
    }

    /// What lies at `addr`.
    pub fn resolve(&self, addr: GuestPhys) -> Resolved<'_> {
        let addr = addr.get();
        let Some(range) = self.find(addr) else { return Resolved::None };
        let into = addr - range.start;
        // Only a range over all 2^64 addresses would overflow, and `map_*` takes no such length.
        let len_left = (range.last - addr).saturating_add(1);
        match &range.what {
            What::Ram { block, off, readonly } => {
                Resolved::Ram { block, off: off + into, readonly: *readonly, len_left }
            }
            What::Mmio { dev, off } => Resolved::Mmio { dev, off: off + into, len_left },
        }
    }

    /// Which of the views of one address space it is: a later one has a larger number.
    /// Goes up with each change of the map.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What the page of `addr` is.
    pub(crate) fn page(&self, addr: GuestPhys) -> Span<'_> {
        let first = addr.page_base().get();
        let last = first + (PAGE_SIZE - 1);
        match self.find(addr.get()) {
            Some(range) if range.start <= first && last <= range.last => Span::Whole(range, first - range.start),
            Some(_) => Span::Mixed,
            None if self.overlapping(first, last).next().is_some() => Span::Mixed,
            None => Span::Empty,
        }
    }

    /// The ranges that share a byte with `[start, last]`, in order.
    pub(crate) fn overlapping(&self, start: u64, last: u64) -> impl Iterator<Item = &FlatRange> {
        let from = self.chunk_of(start).unwrap_or(0);
        self.chunks[from..]
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip_while(move |range| range.last < start)
            .take_while(move |range| range.start <= last)
    }

    /// The first address in `[start, last]` where something is, if there is one.
    pub fn first_in(&self, start: GuestPhys, last: GuestPhys) -> Option<GuestPhys> {
        let range = self.overlapping(start.get(), last.get()).next()?;
        Some(GuestPhys::new(range.start.max(start.get())))
    }

    /// All ranges: first address, last address (inclusive) and what is there, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestPhys, GuestPhys, Resolved<'_>)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|range| {
            let start = GuestPhys::new(range.start);
            (start, GuestPhys::new(range.last), self.resolve(start))
        })
    }

    /// The view with `[start, last]` rendered anew as `fresh` (sorted, inside the interval).
    pub(crate) fn replaced(&self, start: u64, last: u64, fresh: Vec<FlatRange>) -> FlatView {
        // The chunks that the interval touches, and their neighbours: what is adjacent may merge.
        let from = self.chunk_of(start.saturating_sub(1)).unwrap_or(0);
        let to = self.firsts.partition_point(|&first| first <= last.saturating_add(1));
        let (mut from, mut to) = (from.min(to), to);
        // Small chunks grow together with a neighbour, so that a view does not fall to dust.
        let count = |from: usize, to: usize| self.chunks[from..to].iter().map(|c| c.len()).sum::<usize>();
        if count(from, to) < CHUNK / 4 {
            to = (to + 1).min(self.chunks.len());
            from = from.saturating_sub(usize::from(count(from, to) < CHUNK / 4));
        }
        let mut ranges = Vec::with_capacity(count(from, to) + fresh.len() + 1);
        for old in self.chunks[from..to].iter().flat_map(|chunk| chunk.iter()) {
            if old.last < start || old.start > last {
                ranges.push(old.clone());
                continue;
            }
            if old.start < start {
                ranges.push(old.cut(old.start, start - 1));
            }
            if old.last > last {
                ranges.push(old.cut(last + 1, old.last));
            }
        }
        ranges.extend(fresh);
        ranges.sort_by_key(|range| range.start);
        let ranges = merged(ranges);

        let mut chunks = Vec::with_capacity(self.chunks.len() + 2);
        chunks.extend_from_slice(&self.chunks[..from]);
        let size = if ranges.len() <= CHUNK { CHUNK } else { CHUNK / 2 };
        chunks.extend(ranges.chunks(size).map(Chunk::from));
        chunks.extend_from_slice(&self.chunks[to..]);
        let firsts = chunks.iter().map(|chunk| chunk[0].start).collect();
        FlatView { chunks, firsts, version: self.version + 1 }
    }
}

/// Joins neighbours that continue each other.
fn merged(ranges: Vec<FlatRange>) -> Vec<FlatRange> {
    let mut out: Vec<FlatRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(prev)
                if prev.last.checked_add(1) == Some(range.start)
                    && prev.what.continues_with(range.start - prev.start, &range.what) =>
            {
                prev.last = range.last;
            }
            _ => out.push(range),
        }
    }
    out
}

impl core::fmt::Debug for FlatView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut list = f.debug_list();
        for (start, last, what) in self.ranges() {
            list.entry(&format_args!("{start}..={last} {what:?}"));
        }
        list.finish()
    }
}

impl core::fmt::Debug for Resolved<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Resolved::Ram { block, off, readonly, .. } => {
                let kind = if *readonly { "rom" } else { "ram" };
                write!(f, "{kind} {}+{off:#x}", block.idstr())
            }
            Resolved::Mmio { off, .. } => write!(f, "mmio+{off:#x}"),
            Resolved::None => write!(f, "nothing"),
        }
    }
}
