//! Pages that somebody took: a list of words, as small as what it holds.
//!
//! ```text
//!   push(0, 0b0110)  push(64, !0)  push(128, !0)  push(192, !0)         by rising page
//!   runs   [ 0: 0b0110 ×1 ]  [ 64: !0 ×3 ]                              like words in a row are one run
//!   ranges   1..3              64..256
//! ```
//!
//! A full terabyte is one run, a lone page is one too. So to take much costs no memory, and nobody scans for little.

use crate::addr::{PageIndex, PageRange};
use core::fmt;

/// A set of pages, kept as words of 64.
#[derive(Clone, Default)]
pub struct PageSet {
    /// By rising `first`; no two touch the same word.
    runs: Vec<Run>,
}

/// Words in a row, each with the same bits, which are not zero.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// The words' numbers: the page of bit 0, divided by 64.
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) bits: u64,
}

impl Run {
    fn range(&self) -> PageRange {
        let page = |word: u64| PageIndex::new(word.saturating_mul(64));
        PageRange { start: page(self.first), end: page(self.end) }
    }

    /// The part that lies in `range`, which is not empty: at most three runs, since its first and its last word may be cut.
    #[inline]
    pub(crate) fn within(self, range: PageRange, mut sink: impl FnMut(Run)) {
        let (start, last) = (range.start.get(), range.end.get() - 1);
        let (mut first, mut end) = (self.first.max(start / 64), self.end.min(last / 64 + 1));
        let (head, tail) = (!0 << (start % 64), !0 >> (63 - last % 64));
        if first >= end {
            return;
        }
        let mut cut = |word, mask| {
            let bits = self.bits & mask;
            if bits != 0 {
                sink(Run { first: word, end: word + 1, bits });
            }
        };
        if start / 64 == last / 64 {
            return cut(first, head & tail);
        }
        if head != !0 && first == start / 64 {
            cut(first, head);
            first += 1;
        }
        let last = (tail != !0 && end == last / 64 + 1).then_some(end - 1);
        end -= u64::from(last.is_some());
        if first < end {
            sink(Run { first, end, bits: self.bits });
        }
        if let Some(last) = last {
            let bits = self.bits & tail;
            if bits != 0 {
                sink(Run { first: last, end: last + 1, bits });
            }
        }
    }
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// The set of these words, in any order and as often as they like. A word is the page of its bit 0, which is
    /// rounded down to 64, and its bits.
    pub fn from_words(mut words: Vec<(PageIndex, u64)>) -> Self {
        words.sort_unstable_by_key(|(first, _)| *first);
        let mut set = Self::new();
        words.into_iter().for_each(|(first, bits)| set.push(first, bits));
        set
    }

    /// Adds a word. Cheap behind the last one that is in it, or at it; before that, the set is made anew.
    pub fn push(&mut self, first: PageIndex, bits: u64) {
        self.push_words(first, 1, bits);
    }

    /// Adds `words` words in a row with the same bits.
    #[inline]
    pub fn push_words(&mut self, first: PageIndex, words: u64, bits: u64) {
        let first = first.get() / 64;
        self.push_run(Run { first, end: first.saturating_add(words).min(u64::MAX / 64 + 1), bits });
    }

    #[inline]
    fn push_run(&mut self, run: Run) {
        match self.runs.last_mut() {
            _ if run.bits == 0 || run.first >= run.end => {}
            Some(last) if last.end == run.first && last.bits == run.bits => last.end = run.end,
            Some(last) if last.end > run.first => self.push_before(run.first, run.end, run.bits),
            _ => self.runs.push(run),
        }
    }

    /// Adds a run that does not lie behind the last one. By its parts: a run by reference would go through memory on the
    /// usual way, too, and wait there between two exchanges of a take.
    #[cold]
    fn push_before(&mut self, first: u64, end: u64, bits: u64) {
        let tail = self.runs.partition_point(|before| before.end <= first);
        let mut tail = Self { runs: self.runs.split_off(tail) };
        tail.merge(&Self { runs: vec![Run { first, end, bits }] });
        tail.runs.into_iter().for_each(|run| self.push_run(run));
    }

    /// Adds a range.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let (start, last) = (range.start.get(), range.end.get() - 1);
        let (head, tail) = (!0 << (start % 64), !0 >> (63 - last % 64));
        if start / 64 == last / 64 {
            self.push(range.start, head & tail);
        } else {
            self.push(range.start, head);
            self.push_run(Run { first: start / 64 + 1, end: last / 64, bits: !0 });
            self.push(PageIndex::new(last), tail);
        }
    }

    /// Adds all pages of `other`.
    pub fn merge(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            return self.clone_from(other);
        }
        let mut a = core::mem::take(&mut self.runs).into_iter().peekable();
        let mut b = other.runs.iter().copied().peekable();
        while let (Some(x), Some(y)) = (a.peek_mut(), b.peek_mut()) {
            // Up to where the next of all starts and ends lies, the two are alike from word to word.
            let first = x.first.min(y.first);
            let (in_x, in_y) = (x.first == first, y.first == first);
            let end = [x.end, y.end, if in_x { x.end } else { x.first }, if in_y { y.end } else { y.first }];
            let end = end.into_iter().min().unwrap_or(first);
            let bits = if in_x { x.bits } else { 0 } | if in_y { y.bits } else { 0 };
            x.first = if in_x { end } else { x.first };
            y.first = if in_y { end } else { y.first };
            self.push_run(Run { first, end, bits });
            a.next_if(|x| x.first == x.end);
            b.next_if(|y| y.first == y.end);
        }
        a.chain(b).for_each(|run| self.push_run(run));
    }

    /// The pages that also lie in one of `ranges`, which rise and do not overlap. Costs what is in the set and little for
    /// each range beside it.
    pub fn within(&self, ranges: &[PageRange]) -> Self {
        let (mut set, mut rest) = (Self::new(), ranges);
        for run in &self.runs {
            rest = &rest[rest.partition_point(|range| range.end.get() <= run.first.saturating_mul(64))..];
            let meeting = rest.iter().take_while(|range| range.start.get() / 64 < run.end);
            for range in meeting.filter(|range| !range.is_empty()) {
                run.within(*range, |part| set.push_run(part));
            }
        }
        set
    }

    /// The runs that have a word in common with `range`. Finding them costs a search.
    pub(crate) fn meeting(&self, range: PageRange) -> &[Run] {
        if range.is_empty() {
            return &[];
        }
        let (first, last) = (range.start.get() / 64, (range.end.get() - 1) / 64);
        let from = &self.runs[self.runs.partition_point(|run| run.end <= first)..];
        &from[..from.partition_point(|run| run.first <= last)]
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| (run.end - run.first) * u64::from(run.bits.count_ones())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether `page` is one of them.
    pub fn contains(&self, page: PageIndex) -> bool {
        let word = page.get() / 64;
        let n = self.runs.partition_point(|run| run.end <= word);
        self.runs.get(n).is_some_and(|run| run.first <= word && run.bits >> (page.get() % 64) & 1 != 0)
    }

    /// Words in a row that are alike, by rising page: the page of bit 0 of the first, how many words, and their bits.
    pub fn runs(&self) -> impl Iterator<Item = (PageIndex, u64, u64)> + '_ {
        self.runs.iter().map(|run| (PageIndex::new(run.first * 64), run.end - run.first, run.bits))
    }

    /// The words that have some, by rising page: the page of bit 0, and the bits.
    pub fn words(&self) -> impl Iterator<Item = (PageIndex, u64)> + '_ {
        let words = |run: &Run| {
            let bits = run.bits;
            (run.first..run.end).map(move |word| (PageIndex::new(word * 64), bits))
        };
        self.runs.iter().flat_map(words)
    }

    /// The pages in as few ranges as they need, by rising page.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        join(self.runs.iter().flat_map(|run| Pieces { run: *run, left: run.bits }))
    }

    /// At most `most` ranges, or one, that cover all pages, and others, if it takes too many to name each: for who asks
    /// something harmless of them.
    pub fn cover(&self, most: usize) -> Vec<PageRange> {
        let most = most.max(1);
        // A range is three runs at most: a word that it begins in, words of ones, a word that it ends in.
        let few = self.runs.len() <= most.saturating_mul(3);
        let mut cover: Vec<_> = self.ranges().take(if few { most.saturating_add(1) } else { 0 }).collect();
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else { return cover };
        // There are at most `8 * most` gaps longer than this; it is doubled until there are few enough.
        let span = (last.end - first.first).saturating_mul(64);
        let mut gap = (span / (most as u64).saturating_mul(8).saturating_add(1)).max(64);
        if cover.len() > most || !few {
            cover.clear();
            for range in join(self.runs.iter().map(Run::range)) {
                match cover.last_mut() {
                    Some(last) if range.start.get() - last.end.get() <= gap => last.end = range.end,
                    _ => cover.push(range),
                }
                while cover.len() > most {
                    // Closes the gaps up to twice as long: at the latest when all of them are, there is one range.
                    gap = gap.saturating_mul(2);
                    cover.dedup_by(|next, last| {
                        let near = next.start.get() - last.end.get() <= gap;
                        if near {
                            last.end = next.end;
                        }
                        near
                    });
                }
            }
        }
        cover
    }
}

/// Joins ranges that touch. They rise.
fn join(ranges: impl Iterator<Item = PageRange>) -> impl Iterator<Item = PageRange> {
    let mut ranges = ranges.peekable();
    core::iter::from_fn(move || {
        let mut range = ranges.next()?;
        while let Some(next) = ranges.next_if(|next| next.start == range.end) {
            range.end = next.end;
        }
        Some(range)
    })
}

/// The runs of ones in a run of words; words of ones are one piece.
struct Pieces {
    run: Run,
    left: u64,
}

impl Iterator for Pieces {
    type Item = PageRange;

    fn next(&mut self) -> Option<PageRange> {
        let Run { first, end, bits } = self.run;
        if first >= end {
            return None;
        }
        if bits == !0 {
            let all = self.run.range();
            self.run.first = end;
            return Some(all);
        }
        let start = self.left.trailing_zeros();
        let len = (self.left >> start).trailing_ones();
        // Not 64 ones: that is the case above.
        self.left &= !(((1 << len) - 1) << start);
        if self.left == 0 {
            self.run.first = first + 1;
            self.left = bits;
        }
        let start = first * 64 + u64::from(start);
        Some(PageRange { start: PageIndex::new(start), end: PageIndex::new(start.saturating_add(len.into())) })
    }
}

/// The same pages, whatever the runs.
impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        self.ranges().eq(other.ranges())
    }
}

impl Eq for PageSet {}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges().map(|r| r.start.get()..r.end.get())).finish()
    }
}

/// What was dirty in a range when its bits were taken. Belongs to nobody: the bits may be set and taken again, the
/// block be gone, and this still says what was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    pub(super) range: PageRange,
    pub(super) pages: PageSet,
}

impl Snapshot {
    /// The range that was taken.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Whether `page` was dirty. What lies outside of the range was not asked for, and is not.
    pub fn test(&self, page: PageIndex) -> bool {
        self.pages.contains(page)
    }

    /// Whether any page in `range` was.
    pub fn any(&self, range: PageRange) -> bool {
        !self.pages.within(&[range]).is_empty()
    }

    /// The pages that were.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }
}
