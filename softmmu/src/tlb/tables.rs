//! Where page tables lie: a walk finds a table's page without the memory map.

use notdirty_core::{PAGE_BITS, RamAddr};

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

/// The pages that walks read last.
pub(crate) struct TableCache(Box<[TablePage; ENTRIES]>);

impl Default for TableCache {
    fn default() -> Self {
        let empty = TablePage { tag: 0, host: std::ptr::null_mut(), ram: RamAddr::new(0), readonly: false };
        TableCache(Box::new([empty; ENTRIES]))
    }
}

impl TableCache {
    /// Tables of one process lie apart by anything; so do those of two.
    fn slot(page: u64) -> usize {
        (page ^ page >> 6) as usize & (ENTRIES - 1)
    }

    /// The page of a physical address, if a walk was there.
    #[inline]
    pub(crate) fn get(&self, at: u64) -> Option<TablePage> {
        let page = at >> PAGE_BITS;
        let found = self.0[Self::slot(page)];
        (found.tag == page + 1).then_some(found)
    }

    pub(crate) fn add(&mut self, page: TablePage) {
        self.0[Self::slot(page.tag - 1)] = page;
    }

    /// The map changed.
    pub(crate) fn clear(&mut self) {
        for entry in self.0.iter_mut() {
            entry.tag = 0;
        }
    }
}
