//! One dirty block: 2 Mi bits, handled a word at a time, and a summary above them.
//!
//! ```text
//!   summary   1 0 0 1 …        one bit for 8 words = 512 pages = 2 MiB of RAM = one cache line of bits
//!             │     └──────────────────────────────┐
//!   words   [w0 w1 w2 w3 w4 w5 w6 w7] [0 …] [0 …] [w24 …]        summary bit 0: the line is all zero
//!
//!   setter    word |= bits ───▶ summary bit |= 1         taker    summary bit &= 0 ───▶ word.swap(0), each of the 8
//! ```
//!
//! Keeps SUM-1: a word is set before its summary bit; a summary bit is cleared before its words are taken; a take of
//! a part of a line leaves the bit alone (a one above zeros costs a look at 8 words, a zero above a one loses a page;
//! clearing it and setting it back would show a second taker a zero in between). Blocks of RAM start at multiples of
//! 512 pages, so none shares a line with another.
//!
//! Why a setter may skip a summary bit that it finds set. Its word operation is a RMW with Acquire, the taker's one
//! with Release. If the setter's comes later on that word, it sees the cleared summary, and sets it. If it comes
//! earlier, the taker gets the bit. So a taker that cleared a summary bit may not skip a word that looks zero: it
//! would leave no RMW to meet. Checked by tests/loom.rs, where each of these orders is also tried the wrong way round.

use crate::sync::{AtomicU64, BLOCK_WORDS, Ordering, SUMMARY_WORDS};
use core::ops::Range;
use core::ptr;

/// Pages of one block.
pub(super) const BLOCK_PAGES: usize = BLOCK_WORDS * 64;
const LINES: usize = BLOCK_WORDS / SUMMARY_WORDS;
const SUMMARY: usize = LINES.div_ceil(64);

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
fn words_of(bits: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let words = bits.start / 64..bits.end.div_ceil(64).max(bits.start / 64);
    words.map(move |w| (w, mask(bits.start.max(w * 64), bits.end.min(w * 64 + 64))))
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
            // Acquire: who sees bits of another setter also sees what that one saw of the summary.
            if self.words[w].load(Ordering::Acquire) & mask != mask {
                let new = mask & !self.words[w].fetch_or(mask, Ordering::AcqRel);
                if new != 0 {
                    sink(w, new);
                }
            }
            let line = w / SUMMARY_WORDS;
            let (s, bit) = (line / 64, 1 << (line % 64));
            // Also if the word was set already: its setter may not have come this far yet.
            if self.summary[s].load(Ordering::Acquire) & bit == 0 {
                self.summary[s].fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// Whether bit `bit` is set.
    #[inline]
    pub(super) fn test(&self, bit: usize) -> bool {
        self.words[bit / 64].load(Ordering::Acquire) >> (bit % 64) & 1 != 0
    }

    /// Clears bit `bit` and tells whether it was set. Part of a line: the summary stays.
    pub(super) fn test_and_clear(&self, bit: usize) -> bool {
        let mask = 1 << (bit % 64);
        self.words[bit / 64].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Clears `bits`; `sink` gets the index of each word that had some, and those it had.
    pub(super) fn take(&self, bits: Range<usize>, mut sink: impl FnMut(usize, u64)) {
        const LINE_PAGES: usize = SUMMARY_WORDS * 64;
        let mut at = bits.start;
        while at < bits.end {
            let line = at / LINE_PAGES;
            let end = bits.end.min((line + 1) * LINE_PAGES);
            let (s, bit) = (line / 64, 1u64 << (line % 64));
            let summary = self.summary[s].load(Ordering::Acquire);
            if summary == 0 {
                at = bits.end.min((s + 1) * 64 * LINE_PAGES);
                continue;
            }
            if summary & bit != 0 {
                let whole = end - at == LINE_PAGES;
                if whole {
                    self.summary[s].fetch_and(!bit, Ordering::AcqRel);
                }
                for (w, mask) in words_of(at..end) {
                    // A RMW even if the word looks zero, see above.
                    let had = self.words[w].fetch_and(!mask, Ordering::AcqRel) & mask;
                    if had != 0 {
                        sink(w, had);
                    }
                }
            }
            at = end;
        }
    }
}
