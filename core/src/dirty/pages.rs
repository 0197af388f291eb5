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
    count: u64,
}

/// `words` words in a row, each with the same bits, which are not zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The page of the first word's bit 0, a multiple of 64.
    first: u64,
    words: u64,
    bits: u64,
}

impl Run {
    /// The page after the last word.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.words.saturating_mul(64))
    }
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { runs: Vec::new(), count: 0 }
    }

    /// The set of these words, in any order and as often as they like. A word is the page of its bit 0, which is
    /// rounded down to 64, and its bits.
    pub fn from_words(mut words: Vec<(PageIndex, u64)>) -> Self {
        words.sort_unstable_by_key(|(first, _)| *first);
        let mut set = Self::new();
        words.into_iter().for_each(|(first, bits)| set.push(first, bits));
        set
    }

    /// Adds a word. Cheap behind or at the last one that is in it; before that, the set is made anew.
    pub fn push(&mut self, first: PageIndex, bits: u64) {
        let first = first.get() & !63;
        if bits == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if first > last.first.wrapping_add((last.words - 1) * 64) => {
                self.count += u64::from(bits.count_ones());
                if last.end() == first && last.bits == bits {
                    last.words += 1;
                } else {
                    self.runs.push(Run { first, words: 1, bits });
                }
            }
            Some(_) => self.merge(&Self { runs: vec![Run { first, words: 1, bits }], count: bits.count_ones().into() }),
            None => {
                self.count = bits.count_ones().into();
                self.runs.push(Run { first, words: 1, bits });
            }
        }
    }

    /// Adds a range.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start.get(), range.end.get());
        let (first, last) = (start & !63, (end - 1) & !63);
        let (head, tail) = (!0 << (start % 64), !0 >> (63 - (end - 1) % 64));
        let mut new = Self::new();
        if first == last {
            new.push(range.start, head & tail);
        } else {
            new.push(range.start, head);
            if let words @ 1.. = (last - first) / 64 - 1 {
                new.runs.push(Run { first: first + 64, words, bits: !0 });
                new.count += words * 64;
            }
            new.push(PageIndex::new(last), tail);
        }
        match self.runs.last() {
            Some(run) if run.end() > first => self.merge(&new),
            _ => {
                self.count += new.count;
                self.runs.append(&mut new.runs);
            }
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
        let old = core::mem::take(self);
        let (mut a, mut b) = (old.words().peekable(), other.words().peekable());
        loop {
            let (first, bits) = match (a.peek().copied(), b.peek().copied()) {
                (Some(x), Some(y)) if x.0 == y.0 => (x.0, x.1 | y.1),
                (Some(x), Some(y)) if x.0 < y.0 => x,
                (Some(x), None) => x,
                (_, Some(y)) => y,
                (None, None) => return,
            };
            a.next_if(|x| x.0 == first);
            b.next_if(|y| y.0 == first);
            self.push(first, bits);
        }
    }

    /// The pages that also lie in one of `ranges`, which rise and do not overlap.
    pub fn within(&self, ranges: &[PageRange]) -> Self {
        let mut set = Self::new();
        let mut ranges = ranges.iter().copied().filter(|r| !r.is_empty()).peekable();
        for (first, bits) in self.words() {
            let end = first.get().saturating_add(64);
            while ranges.next_if(|r| r.end <= first).is_some() {}
            let mut kept = 0;
            // A range may end inside of this word, and the next one begin there.
            while let Some(range) = ranges.peek().filter(|r| r.start.get() < end) {
                let from = range.start.get().max(first.get()) - first.get();
                let to = range.end.get().min(end) - first.get();
                kept |= bits & (!0 >> (64 - (to - from)) << from);
                if range.end.get() > end {
                    break;
                }
                ranges.next();
            }
            set.push(first, kept);
        }
        set
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `page` is one of them.
    pub fn contains(&self, page: PageIndex) -> bool {
        let n = self.runs.partition_point(|run| run.first <= page.get());
        let Some(run) = n.checked_sub(1).map(|n| self.runs[n]) else { return false };
        page.get() < run.end() && run.bits >> (page.get() % 64) & 1 != 0
    }

    /// The words that have some, by rising page: the page of bit 0, and the bits.
    pub fn words(&self) -> impl Iterator<Item = (PageIndex, u64)> + '_ {
        let words = |run: &Run| {
            let run = *run;
            (0..run.words).map(move |n| (PageIndex::new(run.first + n * 64), run.bits))
        };
        self.runs.iter().flat_map(words)
    }

    /// The pages in as few ranges as they need, by rising page.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        let mut pieces = self.runs.iter().flat_map(|run| Pieces { run: *run, left: run.bits }).peekable();
        core::iter::from_fn(move || {
            let (start, mut end) = pieces.next()?;
            while let Some((_, further)) = pieces.next_if(|next| next.0 == end) {
                end = further;
            }
            Some(PageRange { start: PageIndex::new(start), end: PageIndex::new(end) })
        })
    }
}

/// The runs of ones in a run of words; words of ones are one piece.
struct Pieces {
    run: Run,
    left: u64,
}

impl Iterator for Pieces {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let Run { first, words, bits } = self.run;
        if words == 0 {
            return None;
        }
        if bits == !0 {
            let end = self.run.end();
            self.run.words = 0;
            return Some((first, end));
        }
        let start = self.left.trailing_zeros();
        let len = (self.left >> start).trailing_ones();
        // Not 64 ones: that is the case above.
        self.left &= !(((1 << len) - 1) << start);
        if self.left == 0 {
            self.run = Run { first: first.wrapping_add(64), words: words - 1, bits };
            self.left = bits;
        }
        let start = first + u64::from(start);
        Some((start, start.saturating_add(len.into())))
    }
}

/// The same pages, whatever the runs.
impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.ranges().eq(other.ranges())
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
