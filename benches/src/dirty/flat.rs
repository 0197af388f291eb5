//! The designs to compare with: one flat array of words, and a tree behind a mutex.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// A bitmap without structure.
pub struct Flat {
    words: Vec<AtomicU64>,
}

impl Flat {
    /// All zero.
    pub fn new(pages: u64) -> Flat {
        Flat { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether a page's bit is set.
    #[inline]
    pub fn test(&self, page: u64) -> bool {
        self.words[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 != 0
    }

    /// Sets a page's bit, come what may.
    #[inline]
    pub fn set(&self, page: u64) {
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// Sets the bits of a range.
    pub fn set_range(&self, pages: Range<u64>) {
        let mut at = pages.start;
        while at < pages.end {
            let end = pages.end.min((at / 64 + 1) * 64);
            let mask = (!0 >> (64 - (end - at))) << (at % 64);
            self.words[(at / 64) as usize].fetch_or(mask, Ordering::Relaxed);
            at = end;
        }
    }

    /// Takes all bits: looks at each word and exchanges it if there is something in it.
    pub fn take_scanning(&self, mut sink: impl FnMut(u64, u64)) -> u64 {
        let mut taken = 0;
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::AcqRel);
                taken += u64::from(bits.count_ones());
                sink(index as u64 * 64, bits);
            }
        }
        taken
    }

    /// Takes all bits with one exchange a word, whatever is in it.
    pub fn take_exchanging(&self, mut sink: impl FnMut(u64, u64)) -> u64 {
        let mut taken = 0;
        for (index, word) in self.words.iter().enumerate() {
            let bits = word.swap(0, Ordering::AcqRel);
            if bits != 0 {
                taken += u64::from(bits.count_ones());
                sink(index as u64 * 64, bits);
            }
        }
        taken
    }
}

/// A migration's own bitmap, for one thread.
pub struct Own {
    words: Vec<u64>,
}

impl Own {
    /// All zero.
    pub fn new(pages: u64) -> Own {
        Own { words: vec![0; pages.div_ceil(64) as usize] }
    }

    /// Adds bits of the word of page `first`; returns how many are new.
    #[inline]
    pub fn add(&mut self, first: u64, bits: u64) -> u64 {
        let word = &mut self.words[(first / 64) as usize];
        let newly = bits & !*word;
        *word |= bits;
        u64::from(newly.count_ones())
    }

    /// Forgets pages.
    pub fn clear(&mut self, pages: Range<u64>) {
        pages.for_each(|page| self.words[(page / 64) as usize] &= !(1 << (page % 64)));
    }
}

/// The pages that are dirty, in a tree behind a lock.
#[derive(Default)]
pub struct Tree(Mutex<BTreeSet<u64>>);

impl Tree {
    /// Marks a page.
    pub fn set(&self, page: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(page);
    }

    /// Forgets all pages.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_take_give_what_was_set() {
        let flat = Flat::new(1000);
        for scan in [true, false] {
            flat.set_range(3..200);
            flat.set(700);
            assert!(flat.test(3) && flat.test(199) && flat.test(700) && !flat.test(2) && !flat.test(200));
            let mut pages = Vec::new();
            let sink = |base, bits: u64| pages.extend((0..64).filter(|n| bits >> n & 1 != 0).map(|n| base + n));
            let taken = if scan { flat.take_scanning(sink) } else { flat.take_exchanging(sink) };
            assert_eq!(taken, 198);
            assert!(pages.iter().copied().eq((3..200).chain([700])));
        }
    }
}
