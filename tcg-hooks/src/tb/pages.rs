//! Which TBs lie on a RAM page, and on which of its 64-byte lines.
use super::TbId;
use hashbrown::HashMap;
use notdirty_core::PageIndex;
use smallvec::SmallVec;

/// The TBs of each page, with their lines: a store looks at masks, not at TBs.
#[derive(Debug, Default)]
pub(crate) struct CodeMap {
    pages: HashMap<PageIndex, SmallVec<[(TbId, u64); 4]>>,
}

impl CodeMap {
    pub(crate) fn add(&mut self, page: PageIndex, tb: TbId, lines: u64) {
        self.pages.entry(page).or_default().push((tb, lines));
    }

    /// Takes a TB off a page; returns the lines that are left.
    pub(crate) fn remove(&mut self, page: PageIndex, tb: TbId) -> u64 {
        let Some(list) = self.pages.get_mut(&page) else { return 0 };
        list.retain(|e| e.0 != tb);
        let left = list.iter().fold(0, |m, e| m | e.1);
        if list.is_empty() {
            self.pages.remove(&page);
        }
        left
    }

    /// The lines of a page that TBs have.
    pub(crate) fn lines(&self, page: PageIndex) -> u64 {
        self.pages.get(&page).map_or(0, |list| list.iter().fold(0, |m, e| m | e.1))
    }

    #[cfg(any(test, feature = "testkit"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (PageIndex, &[(TbId, u64)])> {
        self.pages.iter().map(|(page, list)| (*page, list.as_slice()))
    }

    /// Pages with TBs.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Has the page TBs?
    pub(crate) fn has(&self, page: PageIndex) -> bool {
        self.pages.contains_key(&page)
    }

    /// The pages with TBs.
    pub(crate) fn all(&self) -> impl Iterator<Item = PageIndex> {
        self.pages.keys().copied()
    }

    /// The TBs of a page that have code on any of `lines`.
    pub(crate) fn on(&self, page: PageIndex, lines: u64) -> SmallVec<[TbId; 8]> {
        let list = self.pages.get(&page).map_or(&[][..], |l| l.as_slice());
        list.iter().filter(|e| e.1 & lines != 0).map(|e| e.0).collect()
    }
}
