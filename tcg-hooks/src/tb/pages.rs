//! Which TBs lie on a RAM page, and on which of its 64-byte lines.
//!
//! ```text
//!   page ─┬─ few:  [(TbId, lines), …]                      up to FEW: looked through
//!         └─ many: [line 0 ‥ line 63] ─▶ (union, [(TbId, lines), …])
//!                   a TB is listed under its first line there, so a look-up passes over the lists whose union it misses
//! ```
//!
//! A page may hold thousands of TBs (one from each halfword, and again for each alias of the page), so neither a kill
//! nor a store goes through all of them.
use super::TbId;
use hashbrown::HashMap;
use notdirty_core::PageIndex;
use smallvec::SmallVec;

/// Pages with more TBs than this keep a list for each line.
const FEW: usize = 32;

/// A TB and its lines on the page.
type Entry = (TbId, u64);

/// The TBs that begin on one line of a page, or come over from the page before.
#[derive(Debug, Default, Clone)]
struct Line {
    /// Their lines.
    union: u64,
    tbs: Vec<Entry>,
}

#[derive(Debug)]
enum List {
    Few(SmallVec<[Entry; 4]>),
    Many(Box<[Line; 64]>),
}

fn union(tbs: &[Entry]) -> u64 {
    tbs.iter().fold(0, |m, e| m | e.1)
}

/// The list of a TB with these lines.
fn home(lines: u64) -> usize {
    lines.trailing_zeros() as usize % 64
}

fn place(tbs: &[Entry], tb: TbId) -> Option<usize> {
    tbs.iter().position(|e| e.0 == tb)
}

impl List {
    fn add(&mut self, tb: TbId, lines: u64) {
        if let List::Few(tbs) = self
            && tbs.len() == FEW
        {
            let mut many = List::Many(Box::new([const { Line { union: 0, tbs: Vec::new() } }; 64]));
            tbs.iter().for_each(|&(tb, lines)| many.add(tb, lines));
            *self = many;
        }
        match self {
            List::Few(tbs) => tbs.push((tb, lines)),
            List::Many(all) => {
                let line = &mut all[home(lines)];
                line.union |= lines;
                line.tbs.push((tb, lines));
            }
        }
    }

    /// Returns how many entries were looked at.
    fn remove(&mut self, tb: TbId, lines: u64) -> usize {
        match self {
            List::Few(tbs) => {
                let steps = tbs.len();
                if let Some(at) = place(tbs, tb) {
                    tbs.swap_remove(at);
                }
                steps
            }
            List::Many(all) => {
                let line = &mut all[home(lines)];
                let steps = line.tbs.len();
                if let Some(at) = place(&line.tbs, tb) {
                    line.tbs.swap_remove(at);
                }
                line.union = union(&line.tbs);
                steps
            }
        }
    }

    fn union(&self) -> u64 {
        match self {
            List::Few(tbs) => union(tbs),
            List::Many(all) => all.iter().fold(0, |m, line| m | line.union),
        }
    }

    /// The lists that may have TBs on `lines`.
    fn parts(&self, lines: u64) -> impl Iterator<Item = &[Entry]> {
        let (few, many) = match self {
            List::Few(tbs) => (Some(tbs.as_slice()), None),
            List::Many(all) => (None, Some(all)),
        };
        let many = many.into_iter().flat_map(move |all| all.iter().filter(move |line| line.union & lines != 0));
        few.into_iter().chain(many.map(|line| line.tbs.as_slice()))
    }
}

/// The TBs of each page, with their lines: a store looks at masks, not at TBs.
#[derive(Debug, Default)]
pub(crate) struct PageTbs {
    pages: HashMap<PageIndex, List>,
}

impl PageTbs {
    pub(crate) fn add(&mut self, page: PageIndex, tb: TbId, lines: u64) {
        self.pages.entry(page).or_insert_with(|| List::Few(SmallVec::new())).add(tb, lines);
    }

    /// Takes a TB with these lines off a page; returns the lines that are left, and how many entries were looked at.
    pub(crate) fn remove(&mut self, page: PageIndex, tb: TbId, lines: u64) -> (u64, usize) {
        let Some(list) = self.pages.get_mut(&page) else { return (0, 0) };
        let steps = list.remove(tb, lines);
        let left = list.union();
        if left == 0 {
            self.pages.remove(&page);
        }
        (left, steps)
    }

    /// The lines of a page that TBs have.
    pub(crate) fn lines(&self, page: PageIndex) -> u64 {
        self.pages.get(&page).map_or(0, List::union)
    }

    #[cfg(any(test, feature = "testkit"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (PageIndex, Vec<Entry>)> {
        self.pages.iter().map(|(page, list)| (*page, list.parts(u64::MAX).flatten().copied().collect()))
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

    /// The TBs of a page that have code on any of `lines`, and how many were looked at.
    pub(crate) fn on(&self, page: PageIndex, lines: u64) -> (SmallVec<[TbId; 8]>, usize) {
        let mut steps = 0;
        let mut found = SmallVec::new();
        for tbs in self.pages.get(&page).into_iter().flat_map(|list| list.parts(lines)) {
            steps += tbs.len();
            found.extend(tbs.iter().filter(|e| e.1 & lines != 0).map(|e| e.0));
        }
        (found, steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageIndex = PageIndex::new(7);

    /// A TB from each halfword of the page, of up to three lines, and the list that has no order to compare with.
    fn crowd() -> (PageTbs, Vec<Entry>) {
        let mut pages = PageTbs::default();
        let mut model = Vec::new();
        for tb in 0..2048 {
            let first = tb / 32;
            let lines = [1u64, 3, 7][tb as usize % 3] << first;
            pages.add(PAGE, tb, lines);
            model.push((tb, lines));
        }
        (pages, model)
    }

    fn sorted(mut tbs: Vec<TbId>) -> Vec<TbId> {
        tbs.sort_unstable();
        tbs
    }

    #[test]
    fn a_page_of_few_or_many_tbs_finds_what_a_plain_list_does() {
        let (mut pages, mut model) = crowd();
        let mut rng = crate::testkit::Rng::new(5);
        while !model.is_empty() {
            let query = rng.bits() & rng.bits() & rng.bits() & rng.bits();
            let want = model.iter().filter(|e| e.1 & query != 0).map(|e| e.0).collect();
            assert_eq!(sorted(pages.on(PAGE, query).0.to_vec()), sorted(want));
            assert_eq!(pages.lines(PAGE), union(&model));
            let (tb, lines) = model.swap_remove(rng.below(model.len() as u64) as usize);
            assert_eq!(pages.remove(PAGE, tb, lines).0, union(&model));
        }
        assert!(!pages.has(PAGE));
    }

    #[test]
    fn a_tb_of_a_crowded_page_is_found_and_dropped_without_a_look_at_all_of_them() {
        let (mut pages, model) = crowd();
        let (mut found, mut dropped) = (0, 0);
        for &(tb, lines) in &model {
            found += pages.on(PAGE, lines & lines.wrapping_neg()).1;
            dropped += pages.remove(PAGE, tb, lines).1;
        }
        assert!(found <= 96 * model.len() && dropped <= 32 * model.len(), "{found} and {dropped} steps");
    }
}
