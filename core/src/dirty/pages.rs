//! Pages that were taken: a list of words, as small as what it holds.
//!
//! ```text
//!   push(0, 0b0110)  push(64, !0)  push(128, !0)  push(192, !0)   push_line(256, [1, 3, 0, 9, 7, 2, 1, 5])    by rising page
//!   parts    [ 0: 0b0110 ×1 ]  [ 64: !0 ×3 ]                      [ 256: 8 words, from `words[0]` on ]
//!   ranges     1..3              64..256                            256..257, 320..322, …
//! ```
//!
//! Words in a row that are alike are one part, so a full terabyte takes no memory, and neither does a lone page. Where a line of
//! the bitmap has few words alike, its words are kept as they are: 64 bytes, as in the bitmap.

use crate::addr::{PageIndex, PageRange};
use core::fmt;
use core::ops::Range;

/// A set of pages, kept as words of 64.
#[derive(Clone, Default)]
pub struct PageSet {
    /// By rising `first`; no two touch the same word.
    parts: Vec<Part>,
    /// The words of the parts that are kept word by word, in the order of those.
    words: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Part {
    Alike(Run),
    /// Words `first..end`, of which `words[at]` is the first. Not all of them are zero.
    Each {
        first: u64,
        end: u64,
        at: usize,
    },
}

impl Part {
    /// The words' numbers: the page of bit 0, divided by 64.
    #[inline]
    fn span(&self) -> Range<u64> {
        match *self {
            Self::Alike(run) => run.first..run.end,
            Self::Each { first, end, .. } => first..end,
        }
    }

    fn range(&self) -> PageRange {
        let (page, span) = (|word: u64| PageIndex::new(word.saturating_mul(64)), self.span());
        PageRange { start: page(span.start), end: page(span.end) }
    }
}

/// A part with its words.
pub(crate) enum Words<'s> {
    /// They are alike.
    Alike(Run),
    /// The number of the first, and each of them.
    Each(u64, &'s [u64]),
}

impl<'s> Words<'s> {
    /// Those that are not zero, as runs.
    pub(crate) fn alike(self) -> Alike<'s> {
        match self {
            Self::Alike(run) => Alike { run: Some(run), first: 0, words: &[] },
            Self::Each(first, words) => Alike { run: None, first, words },
        }
    }
}

/// The runs of a part.
#[derive(Clone)]
pub(crate) struct Alike<'s> {
    run: Option<Run>,
    first: u64,
    words: &'s [u64],
}

impl Iterator for Alike<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if let Some(run) = self.run.take() {
            return Some(run);
        }
        let skip = self.words.iter().position(|bits| *bits != 0)?;
        let (bits, rest) = (self.words[skip], &self.words[skip..]);
        let len = rest.iter().position(|other| *other != bits).unwrap_or(rest.len());
        let first = self.first + skip as u64;
        (self.first, self.words) = (first + len as u64, &rest[len..]);
        Some(Run { first, end: self.first, bits })
    }
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
        Self { parts: Vec::new(), words: Vec::new() }
    }

    /// The set of these words, in any order and as often as they like. A word is the page of its bit 0, which is
    /// rounded down to 64, and its bits.
    pub fn from_words(mut words: Vec<(PageIndex, u64)>) -> Self {
        words.sort_unstable_by_key(|(first, _)| *first);
        // As a ring's entries are: many of one word. Each by itself would make the end of the set anew.
        words.dedup_by(|next, last| {
            let one = next.0.get() / 64 == last.0.get() / 64;
            if one {
                last.1 |= next.1;
            }
            one
        });
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
        self.push_run(Run { first, end: first.saturating_add(words).min(WORDS), bits });
    }

    /// Adds words in a row, of which few are alike: they are kept as they are.
    #[inline]
    pub fn push_line(&mut self, first: PageIndex, words: &[u64]) {
        let first = first.get() / 64;
        let end = first.saturating_add(words.len() as u64);
        match self.parts.last_mut() {
            Some(last) if last.span().end > first => return self.push_each(first, words),
            // Its words are the last ones.
            Some(Part::Each { end: last, .. }) if *last == first && end <= WORDS => *last = end,
            _ if end > WORDS || words.iter().all(|bits| *bits == 0) => return self.push_each(first, words),
            _ => self.parts.push(Part::Each { first, end, at: self.words.len() }),
        }
        self.words.extend_from_slice(words);
    }

    #[cold]
    fn push_each(&mut self, first: u64, words: &[u64]) {
        for (word, bits) in (first..WORDS).zip(words) {
            self.push_run(Run { first: word, end: word + 1, bits: *bits });
        }
    }

    #[inline]
    fn push_run(&mut self, run: Run) {
        match self.parts.last_mut() {
            _ if run.bits == 0 || run.first >= run.end => {}
            Some(Part::Alike(last)) if last.end == run.first && last.bits == run.bits => last.end = run.end,
            Some(last) if last.span().end > run.first => self.push_before(run.first, run.end, run.bits),
            _ => self.parts.push(Part::Alike(run)),
        }
    }

    /// Adds a run that does not lie behind the last one. By its parts: a run by reference would go through memory on the
    /// usual way, too, and wait there between two exchanges of a take.
    #[cold]
    fn push_before(&mut self, first: u64, end: u64, bits: u64) {
        let tail = self.part_from(first);
        let mut after = Self { parts: self.parts.split_off(tail), words: Vec::new() };
        let at = after.parts.iter().find_map(|part| match part {
            Part::Each { at, .. } => Some(*at),
            Part::Alike(_) => None,
        });
        // What is left has the words up to there.
        if let Some(from) = at {
            after.words = self.words.split_off(from);
            for part in &mut after.parts {
                if let Part::Each { at, .. } = part {
                    *at -= from;
                }
            }
        }
        after.merge(&Self { parts: vec![Part::Alike(Run { first, end, bits })], words: Vec::new() });
        after.alike().for_each(|run| self.push_run(run));
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
        let before = core::mem::take(self);
        let (mut a, mut b) = (before.alike().peekable(), other.alike().peekable());
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
        for part in &self.parts {
            let all = part.range();
            rest = &rest[rest.partition_point(|range| range.end <= all.start)..];
            match self.words_of(part) {
                Words::Each(_, words) if rest.first().is_some_and(|r| r.start <= all.start && all.end <= r.end) => {
                    set.push_line(all.start, words);
                }
                part => {
                    for run in part.alike() {
                        rest = &rest[rest.partition_point(|range| range.end.get() <= run.first.saturating_mul(64))..];
                        let meeting = rest.iter().take_while(|range| range.start.get() / 64 < run.end);
                        for range in meeting.filter(|range| !range.is_empty()) {
                            run.within(*range, |part| set.push_run(part));
                        }
                    }
                }
            }
        }
        set
    }

    /// The number of the first part with a word from `word` on.
    #[inline]
    fn part_from(&self, word: u64) -> usize {
        self.parts.partition_point(|part| part.span().end <= word)
    }

    #[inline]
    fn words_of(&self, part: &Part) -> Words<'_> {
        match *part {
            Part::Alike(run) => Words::Alike(run),
            Part::Each { first, end, at } => Words::Each(first, &self.words[at..at + (end - first) as usize]),
        }
    }

    /// The parts that have a word in common with `range`; of those kept word by word only such words. Finding them costs a search.
    pub(crate) fn meeting(&self, range: PageRange) -> impl ExactSizeIterator<Item = Words<'_>> + Clone {
        let (first, last) = (range.start.get() / 64, range.end.get().saturating_sub(1) / 64);
        let from = if range.is_empty() { &[][..] } else { &self.parts[self.part_from(first)..] };
        let parts = &from[..from.partition_point(|part| part.span().start <= last)];
        parts.iter().map(move |part| match self.words_of(part) {
            Words::Each(at, words) => {
                let cut = first.saturating_sub(at)..(last + 1 - at).min(words.len() as u64);
                Words::Each(at + cut.start, &words[cut.start as usize..cut.end as usize])
            }
            alike => alike,
        })
    }

    /// The first page from `from` on.
    pub(crate) fn next(&self, from: PageIndex) -> Option<PageIndex> {
        let page = |word: u64, bits: u64| Some(PageIndex::new(word * 64 + u64::from(bits.trailing_zeros())));
        let (word, low) = (from.get() / 64, !0 << (from.get() % 64));
        let mask = |at: u64| if at == word { low } else { !0 };
        for part in &self.parts[self.part_from(word)..] {
            match self.words_of(part) {
                Words::Alike(run) => {
                    let first = run.first.max(word);
                    let mut words = (first..run.end.min(first + 2)).map(|at| (at, run.bits & mask(at)));
                    if let Some((at, bits)) = words.find(|(_, bits)| *bits != 0) {
                        return page(at, bits);
                    }
                }
                Words::Each(first, words) => {
                    let skip = word.saturating_sub(first);
                    let mut words =
                        (first + skip..).zip(&words[skip as usize..]).map(|(at, bits)| (at, bits & mask(at)));
                    if let Some((at, bits)) = words.find(|(_, bits)| *bits != 0) {
                        return page(at, bits);
                    }
                }
            }
        }
        None
    }

    /// How many pages; `u64::MAX` also stands for all that there can be, which are one more.
    pub fn count(&self) -> u64 {
        let ones = |words: &[u64]| words.iter().map(|bits| u64::from(bits.count_ones())).sum::<u64>();
        let count = |part| match self.words_of(part) {
            Words::Alike(run) => (run.end - run.first).saturating_mul(run.bits.count_ones().into()),
            Words::Each(_, words) => ones(words),
        };
        self.parts.iter().map(count).fold(0, u64::saturating_add)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// None are left, and the memory for as many is.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.words.clear();
    }

    /// Whether `page` is one of them.
    pub fn contains(&self, page: PageIndex) -> bool {
        self.next(page) == Some(page)
    }

    /// The words that are not zero, as runs of words that are alike.
    fn alike(&self) -> impl Iterator<Item = Run> + '_ {
        self.parts.iter().flat_map(|part| self.words_of(part).alike())
    }

    /// Words in a row that are alike, by rising page: the page of bit 0 of the first, how many words, and their bits.
    pub fn runs(&self) -> impl Iterator<Item = (PageIndex, u64, u64)> + '_ {
        self.alike().map(|run| (PageIndex::new(run.first * 64), run.end - run.first, run.bits))
    }

    /// The words that have some, by rising page: the page of bit 0, and the bits.
    pub fn words(&self) -> impl Iterator<Item = (PageIndex, u64)> + '_ {
        self.alike().flat_map(|run| (run.first..run.end).map(move |word| (PageIndex::new(word * 64), run.bits)))
    }

    /// The pages in as few ranges as they need, by rising page.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        join(self.alike().flat_map(|run| Pieces { run, left: run.bits }))
    }

    /// At most `most` ranges, or one, that cover all pages, and others, if it takes too many to name each: for a poster that asks
    /// something harmless of them.
    pub fn cover(&self, most: usize) -> Vec<PageRange> {
        let most = most.max(1);
        // A range is three runs at most: a word that it begins in, words of ones, a word that it ends in. A part whose words
        // differ has several.
        let few = self.parts.len() <= most.saturating_mul(3);
        let mut cover: Vec<_> = self.ranges().take(if few { most.saturating_add(1) } else { 0 }).collect();
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else { return cover };
        // There are at most `8 * most` gaps longer than this; it is doubled until there are few enough.
        let span = (last.span().end - first.span().start).saturating_mul(64);
        let mut gap = (span / (most as u64).saturating_mul(8).saturating_add(1)).max(64);
        if cover.len() > most || !few {
            cover.clear();
            for range in join(self.alike().map(|run| run.range())) {
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

/// Words of all numbers that a page may have.
const WORDS: u64 = u64::MAX / 64 + 1;

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

/// What was dirty in a range when its bits were taken. Has no owner: the bits may be set and taken again, the
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
