//! The members of a block that a migration needs, and the sync of what is dirty into them.
//!
//! ```text
//!   global MIGRATION bits ──harvest──▶ words ──absorb──▶ bmap      newly = bits that were 0 there: what is to be sent grew by that
//!   (dirty/, all blocks)     │re-arm, answers             clear_bmap   a bit for 2^shift pages: their log is to be cleared
//!                            └ not in time: bits go back, nothing was absorbed
//! ```
//!
//! A page's number here counts from the start of its block. A block starts at a multiple of 512 pages (SUM-1), so a word of
//! the one bitmap is a word of the other. The sync costs what is dirty: a bit of the summary for 512 clean pages.
//!
//! Keeps HARVEST-1: bits are absorbed once every vCPU has answered, and it is every page that was *taken* that is
//! re-armed, not only what is new here. What a sync leaves in `bmap` may be read and sent at once.
//!
//! `clear_bmap` is for logs kept outside (a hypervisor's), which are cleared a chunk at a time, just before the chunk's
//! first page is sent: clear, then read. Only chunks in which a page was taken need it.

use super::bits::{Bits, SharedBits};
use crate::addr::{PAGE_BITS, PageIndex, PageRange};
use crate::dirty::{DirtyLog, LogError, PageSet, Run, Words};
use crate::ram::RamBlock;
use core::fmt;
use core::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// log2 of the pages of a chunk of `clear_bmap`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ChunkShift(u8);

impl ChunkShift {
    /// 64 pages: what a kernel's log clears at least.
    pub const MIN: Self = Self(6);
    /// 2^31 pages.
    pub const MAX: Self = Self(31);

    /// 6 to 31, or `None`.
    pub const fn new(shift: u8) -> Option<Self> {
        if shift >= Self::MIN.0 && shift <= Self::MAX.0 { Some(Self(shift)) } else { None }
    }

    /// The plain number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// 2^18 pages: 1 GiB.
impl Default for ChunkShift {
    fn default() -> Self {
        Self(18)
    }
}

/// The lines of so many runs are asked for at once, as many runs before the first of them is absorbed. One by one, between what
/// is absorbed, took 1.6 times as long: a page that has to be looked up holds back what comes behind it, but for other look-ups.
const AHEAD: usize = 16;

/// How many pages a block may have.
fn max_pages(block: &RamBlock) -> u64 {
    block.max_length() >> PAGE_BITS
}

/// Pages that are still to be sent: `bmap`, with `clear_bmap`.
pub struct DirtyPages {
    /// The block's pages, up to the maximum length.
    all: PageRange,
    shift: ChunkShift,
    maps: Mutex<Maps>,
}

struct Maps {
    dirty: Bits,
    clear: Bits,
    count: u64,
}

impl DirtyPages {
    pub(super) fn new(block: &RamBlock, shift: ChunkShift) -> Self {
        let pages = max_pages(block);
        let maps = Maps { dirty: Bits::new(pages), clear: Bits::new(pages.div_ceil(1 << shift.0)), count: 0 };
        let all = PageRange::of_bytes(block.offset(), block.max_length());
        Self { all, shift, maps: Mutex::new(maps) }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunks' size.
    pub fn chunks(&self) -> ChunkShift {
        self.shift
    }

    /// Adds pages that were taken from the global bits; returns how many were not here yet. The set's pages are those of the
    /// space of all RAM; what lies outside of the block is left alone. Costs what lies inside, and a search.
    pub fn absorb(&self, pages: &PageSet) -> u64 {
        self.absorb_part(pages, self.all)
    }

    /// As `absorb`, of the pages in `part`, which lies in the block.
    fn absorb_part(&self, pages: &PageSet, part: PageRange) -> u64 {
        let mut parts = pages.meeting(part);
        if parts.len() == 0 {
            return 0;
        }
        let base = self.all.start.get() / 64;
        let maps = &mut *self.maps();
        let mut add = Add { maps, shift: self.shift, base, newly: 0, chunks: 0..0 };
        // Lone words are far apart: their lines are on the way before it is their turn. Of long runs the hardware sees to it.
        let mut ahead = parts.clone();
        for n in 0.. {
            if n % AHEAD == 0 {
                let more = if n == 0 { 2 * AHEAD } else { AHEAD };
                ahead.by_ref().take(more).for_each(|part| add.prefetch(&part));
            }
            match parts.next() {
                None => break,
                Some(Words::Each(first, words)) => add.each(first, words, part),
                Some(words) => words.alike().for_each(|run| run.within(part, |run| add.run(run))),
            }
        }
        let newly = add.newly;
        maps.count += newly;
        newly
    }

    /// Adds a run of the block's pages, as at the start, when all are to be sent; returns how many were not here yet.
    pub fn set(&self, pages: Range<u64>) -> u64 {
        let mut maps = self.maps();
        let newly = maps.dirty.set(pages);
        maps.count += newly;
        newly
    }

    /// Takes page `page`: whether it was to be sent.
    pub fn take(&self, page: u64) -> bool {
        let mut maps = self.maps();
        let was = maps.dirty.take(page);
        maps.count -= u64::from(was);
        was
    }

    /// Takes the next run of pages from `from` on that are to be sent, at most so many of them.
    pub fn take_run(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let mut maps = self.maps();
        let start = maps.dirty.next_set(from)?;
        let end = maps.dirty.next_clear(start).min(start.saturating_add(most));
        maps.dirty.clear_run(start..end);
        maps.count -= end - start;
        Some(start..end)
    }

    /// Whether page `page` is to be sent.
    pub fn test(&self, page: u64) -> bool {
        self.maps().dirty.test(page)
    }

    /// The first page from `from` on that is to be sent.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.maps().dirty.next_set(from)
    }

    /// From now on those of the first so many pages are to be sent that have no bit in these words.
    pub fn set_missing(&self, received: &[u64], pages: u64) {
        let mut maps = self.maps();
        let (all, maps) = (maps.dirty.len(), &mut *maps);
        maps.dirty.clear_run(0..all);
        let words = 0..pages.div_ceil(64).min(received.len() as u64);
        maps.count = words
            .map(|word| {
                let mask = if (word + 1) * 64 <= pages { u64::MAX } else { (1 << (pages % 64)) - 1 };
                maps.dirty.or_word(word, !received[word as usize] & mask)
            })
            .sum();
    }

    /// The next run of pages from `from` on that are to be sent.
    pub fn run(&self, from: u64) -> Option<Range<u64>> {
        let maps = self.maps();
        let start = maps.dirty.next_set(from)?;
        Some(start..maps.dirty.next_clear(start))
    }

    /// So many words of pages that are to be sent, from word `first` on; past the end there are zeros.
    pub fn words(&self, first: u64, count: usize) -> Vec<u64> {
        self.maps().dirty.copy_words(first, count)
    }

    /// How many pages are to be sent.
    pub fn count(&self) -> u64 {
        self.maps().count
    }

    /// The pages of the chunk of `page`, if the log for them is still to be cleared; asked for once. It is cleared before the first
    /// of them is read.
    pub fn take_chunk(&self, page: u64) -> Option<Range<u64>> {
        let mut maps = self.maps();
        let chunk = page >> self.shift.0;
        let end = ((chunk + 1) << self.shift.0).min(maps.dirty.len());
        maps.clear.take(chunk).then_some(chunk << self.shift.0..end)
    }
}

/// An absorption under way.
struct Add<'m> {
    maps: &'m mut Maps,
    shift: ChunkShift,
    /// The number of the block's first word.
    base: u64,
    newly: u64,
    /// The chunks that were set last.
    chunks: Range<u64>,
}

impl Add<'_> {
    #[inline]
    fn prefetch(&self, part: &Words<'_>) {
        let first = match part {
            Words::Alike(run) => run.first,
            Words::Each(first, _) => *first,
        };
        self.maps.dirty.prefetch(first.saturating_sub(self.base));
    }

    #[inline]
    fn run(&mut self, run: Run) {
        let words = run.first - self.base..run.end - self.base;
        self.newly += match run.bits {
            u64::MAX => self.maps.dirty.fill_words(words.clone()),
            bits => words.clone().map(|word| self.maps.dirty.or_word(word, bits)).sum(),
        };
        self.chunks(words);
    }

    fn each(&mut self, mut first: u64, mut words: &[u64], part: PageRange) {
        let (start, end) = (part.start.get(), part.end.get());
        let mut cut = |word, bits| Run { first: word, end: word + 1, bits }.within(part, |run| self.run(run));
        if let Some((bits, rest)) = words.split_first()
            && start > first * 64
        {
            cut(first, *bits);
            (first, words) = (first + 1, rest);
        }
        if let Some((bits, rest)) = words.split_last()
            && end < (first + words.len() as u64) * 64
        {
            cut(first + rest.len() as u64, *bits);
            words = rest;
        }
        let (mut first, mut left) = (first - self.base, words);
        self.newly += self.maps.dirty.or_words(first, words);
        while !left.is_empty() {
            let chunk = (first * 64) >> self.shift.0;
            let end = ((chunk + 1) << self.shift.0) / 64;
            let (these, rest) = left.split_at(left.len().min((end - first) as usize));
            if these.iter().any(|bits| *bits != 0) {
                self.chunks(first..end);
            }
            (first, left) = (end, rest);
        }
    }

    /// The log of these words is to be cleared. A chunk is a word at least.
    #[inline]
    fn chunks(&mut self, words: Range<u64>) {
        let chunk_of = |word: u64| (word * 64) >> self.shift.0;
        let chunks = chunk_of(words.start)..chunk_of(words.end - 1) + 1;
        if self.chunks != chunks {
            self.maps.clear.set(chunks.clone());
            self.chunks = chunks;
        }
    }
}

impl fmt::Debug for DirtyPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyPages")
            .field("base", &self.all.start)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// Pages that a file has: `file_bmap`, and where in the file that and they lie.
pub struct FilePages {
    pages: SharedBits,
    bitmap_offset: u64,
    pages_offset: u64,
}

impl FilePages {
    pub(super) fn new(block: &RamBlock, bitmap_offset: u64, pages_offset: u64) -> Self {
        Self { pages: SharedBits::new(max_pages(block)), bitmap_offset, pages_offset }
    }

    /// Where the bitmap lies in the file.
    pub fn bitmap_offset(&self) -> u64 {
        self.bitmap_offset
    }

    /// Where the block's first page lies in the file; each has one home there.
    pub fn pages_offset(&self) -> u64 {
        self.pages_offset
    }

    /// Notes that page `page` was written to the file; whether it was not there before.
    pub fn set(&self, page: u64) -> bool {
        self.pages.set(page)
    }

    /// Notes that these pages are not in the file, because they are zero now; returns how many were.
    pub fn clear(&self, pages: Range<u64>) -> u64 {
        self.pages.clear(pages)
    }

    /// Whether the file has page `page`.
    pub fn test(&self, page: u64) -> bool {
        self.pages.test(page)
    }

    /// How many the file has.
    pub fn count(&self) -> u64 {
        self.pages.count()
    }
}

impl fmt::Debug for FilePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilePages")
            .field("bitmap_offset", &self.bitmap_offset)
            .field("pages_offset", &self.pages_offset)
            .finish_non_exhaustive()
    }
}

/// Pages that were placed: `receivedmap`.
pub struct Received(SharedBits);

impl Received {
    pub(super) fn new(block: &RamBlock) -> Self {
        Self(SharedBits::new(max_pages(block)))
    }

    /// Notes that page `page` is in its place; whether it was not before. Of several threads one is told so.
    pub fn set(&self, page: u64) -> bool {
        self.0.set(page)
    }

    /// Forgets these pages, which were discarded; returns how many had been placed.
    pub fn clear(&self, pages: Range<u64>) -> u64 {
        self.0.clear(pages)
    }

    /// Forgets the pages of word `word` that have a bit; those of them that had been placed.
    pub(super) fn clear_word(&self, word: u64, bits: u64) -> u64 {
        self.0.clear_word(word, bits)
    }

    /// Whether page `page` is in its place, its bytes visible.
    pub fn test(&self, page: u64) -> bool {
        self.0.test(page)
    }

    /// How many are.
    pub fn count(&self) -> u64 {
        self.0.count()
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").finish_non_exhaustive()
    }
}

/// Why nothing was synced. What was dirty is so still.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// No migration of this block is under way: there is no bitmap to sync into.
    #[error("RAM block {idstr} has no migration bitmap: call and keep `BlockMigration::need_dirty` first")]
    NoBitmap {
        /// The block.
        idstr: String,
    },
    /// The block is another list's; its pages mean something else here.
    #[error("RAM block {idstr} is of another list")]
    OtherList {
        /// The block.
        idstr: String,
    },
    /// The log does not log these pages, so nothing is known of them.
    #[error("pages {}..{} of RAM block {idstr} are not logged", .pages.start, .pages.end)]
    NotLogged {
        /// The block.
        idstr: String,
        /// The pages, counted from the block's first.
        pages: Range<u64>,
    },
    /// The log has nothing to give.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Takes what `log` has found in these runs of pages of these blocks, re-arms it, and adds it to the
/// blocks' own bitmaps. Returns how many pages are new there, exactly. Runs stop at the used length. What the log has
/// found elsewhere stays there.
///
/// One re-arm for all of them, so a round over a whole machine asks its vCPUs once. Not with a guard held, nor on a vCPU's
/// own thread while it runs (SAFE-1).
///
/// ```
/// # use notdirty_core::migration::{BlockMigration, ChunkShift, sync};
/// # use notdirty_core::{DirtyClient, RamBlockSpec, RamList};
/// # let list = std::sync::Arc::new(RamList::new());
/// # let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
/// let log = list.log(DirtyClient::MIGRATION).start()?;
/// // The bitmap is there while it is held. At the start all pages are to be sent.
/// let to_send = BlockMigration::need_dirty(&ram, ChunkShift::default());
/// to_send.set(0..ram.pages().len());
/// while let Some(page) = to_send.next(0) {
///     to_send.take(page); // and send it
/// }
/// list.write(&ram, 0x3000, b"bytes")?;
/// assert_eq!(sync(&log, &[(ram.clone(), 0..ram.pages().len())], None)?, 1);
/// assert_eq!(to_send.next(0), Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`SyncError`]; what was dirty is still dirty, and comes with the next sync.
pub fn sync(log: &DirtyLog, what: &[(Arc<RamBlock>, Range<u64>)], timeout: Option<Duration>) -> Result<u64, SyncError> {
    let mut into = Vec::with_capacity(what.len());
    for (block, pages) in what {
        let idstr = || block.idstr().to_owned();
        if !block.belongs_to(log.list()) {
            return Err(SyncError::OtherList { idstr: idstr() });
        }
        let Some(map) = block.migration().dirty() else {
            return Err(SyncError::NoBitmap { idstr: idstr() });
        };
        into.push((map, within(block, pages)));
    }
    let ranges: Vec<_> = into.iter().map(|(_, range)| *range).collect();
    if let Some(n) = log.first_not_logged(&ranges) {
        let (block, pages) = &what[n];
        return Err(SyncError::NotLogged { idstr: block.idstr().to_owned(), pages: pages.clone() });
    }
    let harvest = log.sync_within(&ranges, timeout)?;
    // Two runs of one block may overlap: the second then finds nothing new.
    let newly = into.iter().map(|(map, range)| map.absorb_part(harvest.pages(), *range)).sum();
    log.reuse(harvest.commit());
    Ok(newly)
}

/// A run of the block's pages, up to the used length, in the space of all RAM.
fn within(block: &RamBlock, pages: &Range<u64>) -> PageRange {
    let used = block.pages();
    let page = |n: u64| PageIndex::new(used.start.get().saturating_add(n).min(used.end.get()));
    PageRange { start: page(pages.start), end: page(pages.end) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ram::{RamBlockSpec, RamList};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Pages of the block: it is no whole number of words.
    const PAGES: u64 = 64 * 64 * 4 + 100;

    /// Pages near the ends of words and chunks.
    fn place() -> impl Strategy<Value = u64> {
        let near = |step: u64| (0..=PAGES / step, 0..3u64).prop_map(move |(n, d)| (n * step + d).saturating_sub(1));
        prop_oneof![near(1), near(64), near(4096)].prop_map(|page| page.min(PAGES))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

        /// The set has pages beside the part, and beside the block.
        #[test]
        fn of_a_set_the_pages_of_a_part_are_absorbed_each_is_counted_once_and_its_chunk_is_to_be_cleared(
            steps in prop::collection::vec((place(), prop_oneof![0..130u64, 0..9000u64], 1..200u64, place(), place()), 1..6),
            shift in 6..=12u8,
        ) {
            let list = RamList::new();
            let add = |name: &str, pages| list.add(RamBlockSpec::new(name, pages * PAGE_SIZE)).unwrap();
            let (before, block, after) = (add("before", 700), add("block", PAGES), add("after", 64));
            let maps = DirtyPages::new(&block, ChunkShift::new(shift).unwrap());
            let base = block.offset().page().get();
            let (mut sent, mut chunks) = (BTreeSet::new(), BTreeSet::new());
            for (start, len, gap, a, b) in steps {
                let mut words = vec![0u64; (PAGES as usize).div_ceil(64)];
                (start..(start + len).min(PAGES)).step_by(gap as usize).for_each(|page| {
                    words[page as usize / 64] |= 1 << (page % 64);
                });
                // As a take gives them: lines of unlike words, or of words that are alike.
                let mut set = PageSet::new();
                set.insert(before.pages());
                for (n, line) in words.chunks(8).enumerate() {
                    let first = PageIndex::new(base + n as u64 * 512);
                    if line.iter().all(|bits| *bits == line[0]) {
                        set.push_words(first, line.len() as u64, line[0]);
                    } else {
                        set.push_line(first, line);
                    }
                }
                set.insert(after.pages());
                let (from, to) = (a.min(b), a.max(b));
                let page = |n| PageIndex::new(base + n);
                let newly = maps.absorb_part(&set, PageRange { start: page(from), end: page(to) });
                let mut wanted = 0;
                for page in (from..to).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 != 0) {
                    wanted += u64::from(sent.insert(page));
                    chunks.insert(page >> shift);
                }
                prop_assert_eq!(newly, wanted);
                prop_assert_eq!(maps.count(), sent.len() as u64);
                let pages = std::iter::successors(maps.next(0), |page| maps.next(page + 1));
                prop_assert!(pages.eq(sent.iter().copied()));
            }
            for chunk in 0..=(PAGES - 1) >> shift {
                let wanted = chunks.contains(&chunk).then_some(chunk << shift..((chunk + 1) << shift).min(PAGES));
                prop_assert_eq!((maps.take_chunk(chunk << shift), maps.take_chunk(chunk << shift)), (wanted, None));
            }
        }
    }

    #[test]
    fn pages_that_are_set_at_the_start_are_counted_once() {
        let list = RamList::new();
        let block = list.add(RamBlockSpec::new("block", 100 * PAGE_SIZE)).unwrap();
        let maps = DirtyPages::new(&block, ChunkShift::MIN);
        assert_eq!((maps.set(10..70), maps.set(60..200), maps.set(0..100), maps.set(5..5)), (60, 30, 10, 0));
        assert_eq!((maps.count(), maps.next(0), maps.test(100)), (100, Some(0), false));
        assert_eq!((maps.take(99), maps.take(99), maps.count()), (true, false, 99));
    }
}
