//! Where page tables lie: a walk finds a table's page without the memory map.

use notdirty_core::{PAGE_BITS, PAGE_SIZE, RamAddr};

const ENTRIES: usize = 64;

/// A whole page of RAM, by its physical address. The vCPU's view keeps it alive, as it does the TLB's entries.
#[derive(Clone, Copy)]
pub(crate) struct TablePage {
    /// Physical page, plus one; zero is empty.
    tag: u64,
    /// Its first byte.
    pub(crate) host: *mut u8,
    pub(crate) ram: RamAddr,
    pub(crate) readonly: bool,
}

impl TablePage {
    /// The page of a physical address.
    pub(crate) fn new(at: u64, host: *mut u8, ram: RamAddr, readonly: bool) -> TablePage {
        TablePage { tag: (at >> PAGE_BITS) + 1, host, ram, readonly }
    }
}

/// A range of RAM in the memory map, as far as whole pages need no second look. The vCPU's view keeps it alive.
#[derive(Clone, Copy)]
pub(crate) struct RamSpan {
    /// Its first and last byte, by physical addresses. One that is empty ends before it starts.
    pub(crate) start: u64,
    pub(crate) last: u64,
    /// Of its first byte; that need not be the first of a page.
    pub(crate) host: u64,
    pub(crate) ram: u64,
    pub(crate) readonly: bool,
}

impl RamSpan {
    const EMPTY: RamSpan = RamSpan { start: 1, last: 0, host: 0, ram: 0, readonly: false };

    /// How far inside the page at `first` is, if all of it is inside.
    #[inline]
    pub(crate) fn page_at(&self, first: u64) -> Option<u64> {
        let into = first.wrapping_sub(self.start);
        (first >= self.start && first | (PAGE_SIZE - 1) <= self.last).then_some(into)
    }
}

/// What walks, and fills, found last in the memory map.
pub(crate) struct TableCache {
    pages: Box<[TablePage; ENTRIES]>,
    /// Most fills are of pages of one range.
    pub(crate) span: RamSpan,
}

impl Default for TableCache {
    fn default() -> Self {
        let empty = TablePage { tag: 0, host: std::ptr::null_mut(), ram: RamAddr::new(0), readonly: false };
        TableCache { pages: Box::new([empty; ENTRIES]), span: RamSpan::EMPTY }
    }
}

impl TableCache {
    /// Tables of one process lie apart by anything; so do those of two.
    fn slot(page: u64) -> usize {
        (page ^ page >> 6) as usize & (ENTRIES - 1)
    }

    /// The page of a physical address, if a walk was there.
    #[inline]
    pub(crate) fn get(&self, at: u64) -> Option<&TablePage> {
        let page = at >> PAGE_BITS;
        let found = &self.pages[Self::slot(page)];
        (found.tag == page + 1).then_some(found)
    }

    pub(crate) fn add(&mut self, page: TablePage) {
        self.pages[Self::slot(page.tag - 1)] = page;
    }

    /// The map changed.
    pub(crate) fn clear(&mut self) {
        for entry in self.pages.iter_mut() {
            entry.tag = 0;
        }
        self.span = RamSpan::EMPTY;
    }
}
