//! One dirty block: 2 Mi bits, handled a word at a time, and a summary above them.
//!
//! ```text
//!   summary   1 0 0 1 …        one bit for 8 words = 512 pages = 2 MiB of RAM = one cache line of bits
//!             │     └──────────────────────────────┐
//!   words   [w0 w1 w2 w3 w4 w5 w6 w7] [0 …] [0 …] [w24 …]        summary bit 0: the line is all zero
//!
//!   setter    word |= bits ───▶ summary bit |= 1         taker    summary bits = 0 ───▶ each word that is not 0, swapped
//! ```
//!
//! Keeps SUM-1: a word is set before its summary bit; a summary bit is cleared before its words are taken; a take of
//! a part of a line leaves the bit alone (a one above zeros costs a look at 8 words, a zero above a one loses a page;
//! clearing it and setting it back would show a second taker a zero in between). Blocks of RAM start at multiples of
//! 512 pages, so none shares a line with another.
//!
//! Why a setter may skip a summary bit that it finds set, and a taker a word that it finds zero. Both do "write mine,
//! then look at the other's", and all four accesses are SeqCst. Say the setter looked at the summary before the taker
//! cleared it. Then in the one order of SeqCst accesses its word (or that of the setter whose bit it found) comes
//! before its look, that before the taker's clear, and that before the taker's look at the word: the taker finds the
//! bit. On x86-64 this is free: RMWs are full barriers, and a SeqCst load is a plain one. So a take costs a RMW per
//! word that was dirty and one per 64 lines, and reads no line that was clean.
//!
//! A scan of the summary reads 64 KiB for 1 TiB of RAM; a second summary above it would be mostly ones as soon as it
//! could save anything. What costs is a miss: of each dirty line, so a taker asks for some lines at once, ahead; and of each
//! page of the host's that has a summary, so a taker of many blocks asks for the summaries of the next ones.
//!
//! Checked by tests/loom.rs, where each of these orders is also tried the wrong way round, by tests/wide.rs with several words
//! and lines, and by tests/take_race.rs as it is.

use super::fence_after_store;
use crate::hint::{self, Soon};
use crate::sync::{AtomicU64, BLOCK_WORDS, Ordering, SUMMARY_WORDS, in_total_order};
use core::ops::Range;
use core::ptr;

/// Pages of one block.
pub(super) const BLOCK_PAGES: usize = BLOCK_WORDS * 64;
const LINES: usize = BLOCK_WORDS / SUMMARY_WORDS;
const SUMMARY: usize = LINES.div_ceil(64);
const LINE_PAGES: usize = SUMMARY_WORDS * 64;
/// Words of a cache line of the host's.
const CACHE_LINE: usize = 8;
/// Pages of a cache line of the summary.
pub(super) const SUMMARY_LINE_PAGES: u64 = (CACHE_LINE * 64 * LINE_PAGES) as u64;
/// Lines at most whose summary bits are cleared while their words are yet to be taken. They are asked for by the half: about
/// as many misses as a core has under way at once.
const OPEN: usize = 32;
/// Whether a SeqCst RMW orders what is before it and what is after it as a fence does, whatever the addresses: a locked
/// instruction does.
const RMW_IS_FENCE: bool = cfg!(all(target_arch = "x86_64", not(any(loom, miri))));
const _: () = assert!(SUMMARY <= 64 && SUMMARY_WORDS <= 64);

/// The bits of one client for 2 Mi pages.
#[repr(C, align(64))]
pub(super) struct DirtyBlock {
    words: [AtomicU64; BLOCK_WORDS],
    summary: [AtomicU64; SUMMARY],
}

/// The bits `first..end`, all of word `first / 64`, as a mask of that word.
const fn mask(first: usize, end: usize) -> u64 {
    let len = end - first;
    if len == 64 { !0 } else { ((1 << len) - 1) << (first % 64) }
}

/// Splits bits into words: each word's index and the mask of its bits.
#[inline]
fn words_of(bits: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let words = bits.start / 64..bits.end.div_ceil(64).max(bits.start / 64);
    words.map(move |w| (w, mask(bits.start.max(w * 64), bits.end.min(w * 64 + 64))))
}

/// Words that had bits.
pub(super) enum Taken<'a> {
    /// So many in a row, with the same bits.
    Alike(usize, u64),
    /// A line of them, of which few are alike; some may be zero.
    Each(&'a [u64]),
}

impl DirtyBlock {
    /// A block with every bit set, which is how an absent one reads.
    pub(super) fn all_ones() -> Box<Self> {
        let mut new = Box::<Self>::new_uninit();
        let at = new.as_mut_ptr();
        // Written in place: 256 KiB do not belong on a stack.
        for n in 0..BLOCK_WORDS {
            // SAFETY: inside the box's own allocation.
            unsafe { ptr::write(&raw mut (*at).words[n], AtomicU64::new(!0)) };
        }
        for n in 0..SUMMARY {
            // SAFETY: as above.
            unsafe { ptr::write(&raw mut (*at).summary[n], AtomicU64::new(!0)) };
        }
        // SAFETY: both arrays, hence all fields, were written above.
        unsafe { new.assume_init() }
    }

    /// Sets `bits`; `sink` gets the index of each word that had some of them clear, and those. The caller's fence
    /// orders its store before this (MARK-1).
    #[inline]
    pub(super) fn set(&self, bits: Range<usize>, mut sink: impl FnMut(usize, u64)) {
        for (w, mask) in words_of(bits) {
            let new = self.set_word(w, mask);
            if new != 0 {
                sink(w, new);
            }
        }
    }

    /// Sets one bit, as `set`; tells whether it was clear.
    #[inline]
    pub(super) fn set_bit(&self, bit: usize) -> bool {
        self.set_word(bit / 64, 1 << (bit % 64)) != 0
    }

    /// As `set_bit`, and as if a fence came before it and before what the caller looks at next: of a bit that looks clear the
    /// RMW is that, of one that looks set there is one, and then it is looked at. Of several that set a bit at once, one is told
    /// so if it is `EXACT`, else perhaps more.
    #[inline(always)]
    pub(super) fn set_bit_behind_fence<const EXACT: bool>(&self, bit: usize) -> bool {
        let (at, mask) = (&self.words[bit / 64], 1 << (bit % 64));
        let mut was = at.load(Ordering::SeqCst);
        if was & mask != 0 || !RMW_IS_FENCE {
            fence_after_store();
            was = at.load(Ordering::SeqCst);
        }
        let mut new = was & mask == 0;
        if new && EXACT {
            // Not by fetch_or, which is a `bts` then, and takes longer.
            let set = at.compare_exchange(was, was | mask, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            new = set || at.fetch_or(mask, Ordering::SeqCst) & mask == 0;
        } else if new {
            // What was there now is not asked for: nothing waits for the answer.
            at.fetch_or(mask, Ordering::SeqCst);
        }
        self.set_summary(bit / 64);
        new
    }

    /// Sets the bits of `mask`; returns those that were clear.
    #[inline]
    fn set_word(&self, word: usize, mask: u64) -> u64 {
        let at = &self.words[word];
        // SeqCst, all of these: partners of `take_lines`, see above.
        let was = at.load(Ordering::SeqCst);
        let was = if was & mask == mask { was } else { at.fetch_or(mask, Ordering::SeqCst) };
        // Also if the word was set already: its setter may not have come this far yet.
        self.set_summary(word);
        mask & !was
    }

    #[inline]
    fn set_summary(&self, word: usize) {
        let line = word / SUMMARY_WORDS;
        let (s, bit) = (line / 64, 1 << (line % 64));
        in_total_order();
        if self.summary[s].load(Ordering::SeqCst) & bit == 0 {
            self.summary[s].fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Whether bit `bit` is set.
    #[inline]
    pub(super) fn test(&self, bit: usize) -> bool {
        self.words[bit / 64].load(Ordering::Acquire) >> (bit % 64) & 1 != 0
    }

    /// The first bit in `bits` that is set. A mark that another thread is still making may be passed over.
    pub(super) fn next_set(&self, bits: Range<usize>) -> Option<usize> {
        let mut at = bits.start;
        while at < bits.end {
            let line = at / LINE_PAGES;
            let summary = self.summary[line / 64].load(Ordering::Acquire) >> (line % 64);
            if summary & 1 == 0 {
                // To the next line that may have one, or to the next word of the summary.
                let lines = if summary == 0 { 64 - line % 64 } else { summary.trailing_zeros() as usize };
                at = (line + lines) * LINE_PAGES;
                continue;
            }
            let end = bits.end.min((line + 1) * LINE_PAGES);
            for (w, mask) in words_of(at..end) {
                let found = self.words[w].load(Ordering::Acquire) & mask;
                if found != 0 {
                    return Some(w * 64 + found.trailing_zeros() as usize);
                }
            }
            at = end;
        }
        None
    }

    /// Clears bit `bit` and tells whether it was set. Part of a line: the summary stays. A RMW in any case: the
    /// announcement of code relies on it.
    pub(super) fn test_and_clear(&self, bit: usize) -> bool {
        let mask = 1 << (bit % 64);
        self.words[bit / 64].fetch_and(!mask, Ordering::SeqCst) & mask != 0
    }

    /// Clears `bits` of word `word` and tells which of them were set. Part of a line: the summary stays.
    pub(super) fn take_word(&self, word: usize, bits: u64) -> u64 {
        self.words[word].fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Clears `bits`; `sink` gets the words that had some: the index of the first, and what they had. More than one at once only if
    /// it wants `RUNS`: a sink that takes them apart again would mispredict how many there are.
    pub(super) fn take<const RUNS: bool>(&self, bits: Range<usize>, mut sink: impl FnMut(usize, Taken<'_>)) {
        let lines = bits.start.div_ceil(LINE_PAGES)..bits.end / LINE_PAGES;
        if lines.is_empty() {
            return self.take_part(bits, &mut sink);
        }
        self.take_part(bits.start..lines.start * LINE_PAGES, &mut sink);
        self.take_lines::<RUNS>(lines.clone(), &mut sink);
        self.take_part(lines.end * LINE_PAGES..bits.end, &mut sink);
    }

    /// Parts of at most two lines. Their summary bits stay, so a word that looks zero can be left alone: a setter that is
    /// about to mark it leaves it to be found.
    fn take_part(&self, bits: Range<usize>, sink: &mut impl FnMut(usize, Taken<'_>)) {
        for (w, mask) in words_of(bits) {
            if self.words[w].load(Ordering::SeqCst) & mask != 0 {
                let had = self.words[w].fetch_and(!mask, Ordering::SeqCst) & mask;
                if had != 0 {
                    sink(w, Taken::Alike(1, had));
                }
            }
        }
    }

    /// Asks for the summary of `bits`, which are to be taken soon.
    #[inline]
    pub(super) fn prefetch_summary(&self, bits: Range<usize>) {
        let words = bits.start / LINE_PAGES / 64..bits.end.div_ceil(LINE_PAGES).div_ceil(64);
        self.summary[words].iter().step_by(CACHE_LINE).for_each(|word| hint::expect(word, Soon::Written));
    }

    /// Which of `words` of the summary are not zero, as bits. A caller that looks at all of them first and goes from bit to bit then,
    /// here as in `take_first`, has one branch that no processor foretells instead of one a word.
    #[inline]
    fn busy(&self, words: Range<usize>) -> u64 {
        let mut busy = 0;
        for line in words.start / CACHE_LINE..words.end.div_ceil(CACHE_LINE) {
            let first = words.start.max(line * CACHE_LINE);
            let line = &self.summary[first..words.end.min((line + 1) * CACHE_LINE)];
            // Of a whole line, which is the usual case, the loop is unrolled.
            busy |= <&[_; CACHE_LINE]>::try_from(line).map_or_else(|_| not_zero(line), |line| not_zero(line)) << first;
        }
        busy
    }

    fn take_lines<const RUNS: bool>(&self, lines: Range<usize>, sink: &mut impl FnMut(usize, Taken<'_>)) {
        let mut open = OpenLines { block: self, lines: [0; OPEN], first: 0, asked: 0, end: 0 };
        let mut busy = self.busy(lines.start / 64..lines.end.div_ceil(64));
        while busy != 0 {
            let s = busy.trailing_zeros() as usize;
            busy &= busy - 1;
            let mask = mask(lines.start.max(s * 64), lines.end.min(s * 64 + 64));
            // Before the words are looked at (SUM-1).
            let mut left = match mask {
                u64::MAX => self.summary[s].swap(0, Ordering::SeqCst),
                mask if self.summary[s].load(Ordering::SeqCst) & mask == 0 => continue,
                mask => self.summary[s].fetch_and(!mask, Ordering::SeqCst) & mask,
            };
            in_total_order();
            while left != 0 {
                let bit = left & left.wrapping_neg();
                if open.is_full() {
                    // Should `sink` panic there, what is `left` is put back, too.
                    let rest = PutBack { word: &self.summary[s], bits: left };
                    open.take_first::<RUNS>(sink);
                    core::mem::forget(rest);
                }
                open.push(s * 64 + bit.trailing_zeros() as usize);
                left ^= bit;
            }
        }
        while open.first != open.end {
            open.take_first::<RUNS>(sink);
        }
    }
}

/// Which of at most 64 words are not zero, as bits.
#[inline]
fn not_zero(words: &[AtomicU64]) -> u64 {
    // SeqCst: partners of a setter's, see above.
    words.iter().enumerate().fold(0, |bits, (n, word)| bits | u64::from(word.load(Ordering::SeqCst) != 0) << n)
}

/// Lines whose summary bits are cleared and whose words are on their way into the cache. Dropped on unwinding, it puts
/// the bits back, so a sink that panics loses no more than what it was given.
struct OpenLines<'b> {
    block: &'b DirtyBlock,
    /// A ring; the indices run freely.
    lines: [u32; OPEN],
    first: usize,
    /// The first one that was not asked for.
    asked: usize,
    end: usize,
}

impl OpenLines<'_> {
    fn is_full(&self) -> bool {
        self.end - self.first == OPEN
    }

    #[inline]
    fn push(&mut self, line: usize) {
        self.lines[self.end % OPEN] = line as u32;
        self.end += 1;
    }

    /// Asks for the words of all that is open, at once: exchanges wait for pages that are looked up before them, so
    /// requests between them would not overlap.
    #[inline]
    fn ask(&mut self) {
        for n in self.asked..self.end {
            hint::expect(&self.block.words[self.lines[n % OPEN] as usize * SUMMARY_WORDS], Soon::Written);
        }
        self.asked = self.end;
    }

    #[inline]
    fn take_first<const RUNS: bool>(&mut self, sink: &mut impl FnMut(usize, Taken<'_>)) {
        if self.asked - self.first <= OPEN / 2 {
            self.ask();
        }
        let line = self.lines[self.first % OPEN] as usize;
        let first = line * SUMMARY_WORDS;
        let words = &self.block.words[first..first + SUMMARY_WORDS];
        let mut some = not_zero(words);
        let without_one = some & some.wrapping_sub(1);
        if without_one & without_one.wrapping_sub(1) != 0 {
            take_line::<RUNS>(words, first, sink);
        } else {
            // At most two: nothing is done for the others.
            while some != 0 {
                let n = some.trailing_zeros() as usize;
                some &= some - 1;
                let had = words[n].swap(0, Ordering::SeqCst);
                if had != 0 {
                    sink(first + n, Taken::Alike(1, had));
                }
            }
        }
        self.first += 1;
    }
}

/// Takes all words of a line: an exchange for each, zero or not, is as fast as one, and to guess which are is slower.
fn take_line<const RUNS: bool>(words: &[AtomicU64], first: usize, sink: &mut impl FnMut(usize, Taken<'_>)) {
    let Ok(words) = <&[AtomicU64; SUMMARY_WORDS]>::try_from(words) else { return };
    if RUNS {
        return take_runs(words, first, sink);
    }
    // What `sink` computes of one word is done while the next is exchanged.
    for (n, word) in words.iter().enumerate() {
        let had = word.swap(0, Ordering::SeqCst);
        if had != 0 {
            sink(first + n, Taken::Alike(1, had));
        }
    }
}

/// As `take_line`, for a sink that keeps what it is given: a store between two exchanges makes the second wait, so they come
/// first, and what comes then goes from bit to bit of a mask, not from branch to branch.
fn take_runs(words: &[AtomicU64; SUMMARY_WORDS], first: usize, sink: &mut impl FnMut(usize, Taken<'_>)) {
    let had: [u64; SUMMARY_WORDS] = core::array::from_fn(|n| words[n].swap(0, Ordering::SeqCst));
    let mut rest = Rest { words, had: &had, given: 0 };
    // Where a word is another than the one before it.
    let (mut starts, mut before) = (0u64, 0);
    for (n, bits) in had.into_iter().enumerate() {
        starts |= u64::from(bits != before) << n;
        before = bits;
    }
    // The runs would take more memory than the words, and longer.
    if starts.count_ones() as usize > SUMMARY_WORDS / 4 {
        rest.given = SUMMARY_WORDS;
        sink(first, Taken::Each(&had));
        starts = 0;
    }
    while starts != 0 {
        let start = starts.trailing_zeros() as usize;
        starts &= starts - 1;
        let end = (starts.trailing_zeros() as usize).min(SUMMARY_WORDS);
        rest.given = end;
        if had[start] != 0 {
            sink(first + start, Taken::Alike(end - start, had[start]));
        }
    }
    core::mem::forget(rest);
}

/// The words of a line from `given` on are put back if this drops, which is on unwinding only.
struct Rest<'a> {
    words: &'a [AtomicU64; SUMMARY_WORDS],
    had: &'a [u64; SUMMARY_WORDS],
    given: usize,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        for n in self.given..SUMMARY_WORDS {
            self.words[n].fetch_or(self.had[n], Ordering::SeqCst);
        }
    }
}

impl Drop for OpenLines<'_> {
    fn drop(&mut self) {
        while self.first != self.end {
            self.block.set_summary(self.lines[self.first % OPEN] as usize * SUMMARY_WORDS);
            self.first += 1;
        }
    }
}

/// Bits that are set again when this drops, which is on unwinding only.
struct PutBack<'b> {
    word: &'b AtomicU64,
    bits: u64,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        self.word.fetch_or(self.bits, Ordering::SeqCst);
    }
}
