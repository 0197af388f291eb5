//! One TLB entry, as Rust and emitted code share it. Nothing else knows its layout: take the constants.
//!
//! ```text
//!    0         8         16        24        32
//!    │ read    │ write   │ addend  │ aux     │       comparator = (page's address + BIAS) | flags
//!
//!    63 ······ 12 │ 11      10       9    8       7     6        5     4   3    │ 2..0
//!    page + BIAS  │ INVALID NOTDIRTY MMIO DISCARD OTHER CODEPAGE LINES ASK free │ stay zero: alignment of the access
//! ```
//!
//! A probe compares `(va + BIAS) & !(0xfff ^ (size - 1))` with a comparator: equal means this page, aligned, and no
//! flag; anything else goes slow. The bias makes a zeroed entry match nothing but the page 1 GiB below the end of the 64-bit space,
//! and the slots that are asked for that page are never left zero (`Tlb::EMPTY_ON_TOP`). An access that may be misaligned
//! looks in the slot of its first byte, for the page of its last.

use core::mem::offset_of;

/// One page's translation.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TlbEntry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Host address = guest address + addend.
    pub(crate) addend: u64,
    /// With CODEPAGE or LINES: host address of what is known of the page's lines (a `CodePage`).
    pub(crate) aux: u64,
}

/// Offset of the read comparator.
pub const READ: i32 = offset_of!(TlbEntry, read) as i32;
/// Offset of the write comparator.
pub const WRITE: i32 = offset_of!(TlbEntry, write) as i32;
/// Offset of the addend.
pub const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;
/// Offset of the line mask's address.
pub const AUX: i32 = offset_of!(TlbEntry, aux) as i32;
/// Logarithm of the entry's size.
pub const ENTRY_BITS: u32 = 5;
/// Logarithm of the number of entries. 16 Ki cover 64 MiB of scattered pages without a second miss.
pub const TLB_BITS: u32 = 14;
/// Number of entries.
pub const TLB_ENTRIES: usize = 1 << TLB_BITS;
/// From the start of the table: what LR left for SC, which lies behind the last entry. See [`Reservation`]. Not at the
/// start of its page: hosts take a load for one of the bytes stored before if their places in their pages are the same,
/// and guests like to put cells at the start of pages.
pub const RESERVATION: i32 = (TLB_ENTRIES << ENTRY_BITS) as i32 + 0xf80;

/// From the start of the owner's bytes, in front of them: which set loads and stores look in. See [`Selected`]. What emitted code has one
/// register for is near it so.
pub const SELECTED: i32 = -(size_of::<Selected>() as i32);

/// The set of the loads and stores that come next. Emitted code reads it on the owner's thread (TLB-1). What it reads most is last.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Selected {
    /// Where the set's table is.
    pub table: u64,
    /// The set's flat addend: its entries with another one carry OTHER. It stays while the set has entries.
    pub addend: u64,
    /// Of machine mode's set: how many addresses there are, from the flat RAM's first on, at which a load of up to [`WIDEST`] bytes
    /// finds RAM with the flat addend, whatever entries there are. It is as an entry is: whatever drops those of this RAM drops it.
    pub whole: u64,
    /// From the start of the first table to that of the set's.
    pub offset: u64,
    /// Of the set, if it is not machine mode's: where a run of pages begins in which loads find RAM with the set's flat addend, whatever
    /// entries there are.
    pub run_start: u64,
    /// How many addresses there are in it, from its first on, at which a load of up to [`WIDEST`] bytes lies in it.
    pub run: u64,
}

/// Bytes of the widest load, for which [`Selected::whole`] leaves room.
pub const WIDEST: u64 = 8;

/// From the start of the table, behind the reservation: the pages whose lines were noted. See [`NotedList`].
pub const NOTED_LIST: i32 = RESERVATION + size_of::<Reservation>() as i32;

/// Where the next page goes whose first store since the last take is noted: the host address of its `CodePage`. Emitted code
/// reads and writes it on the owner's thread (TLB-1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NotedList {
    /// Host address of the next place.
    pub top: u64,
    /// There are no more places from here on.
    pub end: u64,
    /// Not zero: no other vCPU stores to this RAM, so none notes lines of a page at the same time (WRITER-1).
    pub alone: u64,
}

/// What LR left for SC: the cell, by its host address, and the value that LR saw there. Emitted code reads and writes it
/// on the owner's thread (TLB-1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reservation {
    /// The cell's host address, plus one if it has eight bytes, plus two if any other store to it breaks the reservation, of which
    /// emitted code knows nothing; zero is none. A change of the map that could give the
    /// address another meaning clears it.
    pub tag: u64,
    /// The value, of which as many bytes count as the cell has.
    pub value: u64,
}

/// Added to an address before it is compared. It does not change which slot a page has, unless the index is hashed.
pub const BIAS: u64 = 1 << 30;

/// Not a hit, whatever the rest says.
pub const INVALID: u64 = 1 << 11;
/// Write comparator: a client or the translator listens.
pub const NOTDIRTY: u64 = 1 << 10;
/// A device. No entry of today carries it: device pages have a table of their own and miss here.
pub const MMIO: u64 = 1 << 9;
/// Write comparator: ROM, the store is ignored.
pub const DISCARD: u64 = 1 << 8;
/// RAM with another addend than the set's flat one.
pub const OTHER: u64 = 1 << 7;
/// Write comparator, in place of NOTDIRTY: only translated code listens; `aux` points to the line mask.
pub const CODEPAGE: u64 = 1 << 6;
/// Write comparator: a checkpoint wants to know which lines are written; `aux` points to where they are noted. Beside CODEPAGE, or alone.
pub const LINES: u64 = 1 << 5;
/// Somebody asks about bytes of this page: each access is looked at. See `ask.rs`.
pub const ASK: u64 = 1 << 4;
/// Every bit of a comparator that is not the page.
pub const FLAGS: u64 = 0xfff;

const _: () = assert!(size_of::<TlbEntry>() == 1 << ENTRY_BITS);
const _: () = assert!(READ == 0 && WRITE == 8 && ADDEND == 16 && AUX == 24);
const _: () = assert!(
    BIAS.is_multiple_of((TLB_ENTRIES as u64) << notdirty_core::PAGE_BITS) && FLAGS == notdirty_core::PAGE_SIZE - 1
);
const _: () = assert!((INVALID | NOTDIRTY | MMIO | DISCARD | OTHER | CODEPAGE | LINES | ASK) & 7 == 0);

/// How far the upper bits of an address are shifted onto the index, where it is hashed.
pub const HASH_SHIFT: u32 = TLB_BITS;

/// A biased address with its upper bits mixed into those of the index: streams that lie a multiple of the table's reach
/// apart do not meet. Emitted code computes it in 32 bits.
#[inline]
pub(crate) const fn hashed(biased: u64) -> u64 {
    (biased as u32 ^ (biased as u32 >> HASH_SHIFT)) as u64
}

/// Index of the entry for a biased address.
#[inline]
pub(crate) const fn index(biased: u64) -> usize {
    (biased >> notdirty_core::PAGE_BITS) as usize & (TLB_ENTRIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a probe that lets misaligned accesses through stands on: it looks where the first byte's page is, for the last
    /// byte's page.
    #[test]
    fn neighbouring_pages_never_share_a_slot() {
        for page in 0..1u64 << 21 {
            let (this, next) = (page << 12, (page + 1) << 12);
            for mask in [TLB_ENTRIES - 1, (1 << 8) - 1] {
                assert_ne!(index(this) & mask, index(next) & mask, "{page:#x}");
                assert_ne!(index(hashed(this)) & mask, index(hashed(next)) & mask, "{page:#x}");
            }
        }
    }
}
