//! Addresses of guest RAM, one type for each kind.
//!
//! ```text
//!   RamAddr    byte offset in the one linear space of all RAM blocks (QEMU's ram_addr_t)
//!     │ page()             ▲ base()
//!     ▼                    │
//!   PageIndex  number of a 4 KiB guest page in that space; what dirty bits are counted by
//!   PageRange  half open, may be empty, never wraps
//! ```
//!
//! There is no `From<u64>` and no `+`: a conversion is a named call, an addition is checked.

use core::fmt;

/// log2 of the guest's page size.
pub const PAGE_BITS: u32 = 12;
/// The guest's page size in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_BITS;
/// log2 of the line inside a page by which translated code is tracked.
pub const LINE_BITS: u32 = 6;

/// A byte offset in the linear space that all RAM blocks share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamAddr(u64);

impl RamAddr {
    /// The address `addr` bytes from the start of the space.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The page this byte is in.
    pub const fn page(self) -> PageIndex {
        PageIndex(self.0 >> PAGE_BITS)
    }

    /// How far into its page this byte is.
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// The address `bytes` further, if there is one.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Debug for RamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamAddr({:#x})", self.0)
    }
}

/// The number of a guest page in the space of all RAM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIndex(u64);

impl PageIndex {
    /// Page number `index`.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first byte of the page. An index that no [`RamAddr`] can have loses its top bits.
    pub const fn base(self) -> RamAddr {
        RamAddr(self.0 << PAGE_BITS)
    }
}

/// Pages from `start` up to, but without, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRange {
    /// The first page.
    pub start: PageIndex,
    /// The page after the last one.
    pub end: PageIndex,
}

impl PageRange {
    /// Every page that holds one of the `len` bytes from `addr` on; none if `len` is 0. Bytes past the end of the
    /// space do not exist, so the range stops there.
    pub const fn of_bytes(addr: RamAddr, len: u64) -> Self {
        let start = addr.page();
        if len == 0 {
            return Self { start, end: start };
        }
        let last = RamAddr(addr.0.saturating_add(len - 1)).page();
        Self { start, end: PageIndex(last.0 + 1) }
    }

    /// The range of `page` alone.
    pub const fn of_page(page: PageIndex) -> Self {
        Self { start: page, end: PageIndex(page.0.saturating_add(1)) }
    }

    /// The number of pages.
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether there is no page in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `page` is one of them.
    pub const fn contains(&self, page: PageIndex) -> bool {
        self.start.0 <= page.0 && page.0 < self.end.0
    }

    /// The pages, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = PageIndex> + use<> {
        (self.start.0..self.end.0).map(PageIndex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_bytes_covers_each_page_it_touches_and_stops_at_the_end_of_the_space() {
        let range = |addr, len| PageRange::of_bytes(RamAddr::new(addr), len);
        assert!(range(5, 0).is_empty());
        assert_eq!(range(0, PAGE_SIZE).len(), 1);
        assert_eq!(range(PAGE_SIZE - 1, 2).len(), 2);
        assert_eq!(range(1, PAGE_SIZE).len(), 2);
        let last = range(u64::MAX, u64::MAX);
        assert_eq!(last.iter().collect::<Vec<_>>(), [RamAddr::new(u64::MAX).page()]);
    }

    #[test]
    fn an_address_is_a_page_and_a_place_in_it() {
        for (addr, page, offset) in [(0, 0, 0), (4095, 0, 4095), (4096, 1, 0), (0x12_3456, 0x123, 0x456)] {
            let addr = RamAddr::new(addr);
            assert_eq!((addr.page(), addr.page_offset()), (PageIndex::new(page), offset));
            assert_eq!(addr.page().base().checked_add(addr.page_offset()), Some(addr));
        }
        assert_eq!(RamAddr::new(u64::MAX).page_offset(), PAGE_SIZE - 1);
    }

    #[test]
    fn an_addition_that_would_wrap_is_refused() {
        assert_eq!(RamAddr::new(u64::MAX).checked_add(1), None);
        assert_eq!(RamAddr::new(1).checked_add(2), Some(RamAddr::new(3)));
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_empty() {
        let backwards = PageRange { start: PageIndex::new(9), end: PageIndex::new(3) };
        assert!(backwards.is_empty());
        assert_eq!(backwards.iter().count(), 0);
        assert!(!backwards.contains(PageIndex::new(5)));
    }
}
