//! Bits, one for each page of a block or each chunk of it.

use crate::hint::{self, Soon};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// The words that a run of bits touches, each with the mask of its part.
fn words_of(bits: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let words = if bits.is_empty() { 0..0 } else { bits.start / 64..bits.end.div_ceil(64) };
    words.map(move |word| {
        let low = bits.start.saturating_sub(word * 64); // < 64
        let high = (bits.end - word * 64).min(64); // 1..=64
        (word, !0 << low & !0 >> (64 - high))
    })
}

/// Bits for one thread at a time. Past the end there are none: they read as 0 and stay so.
pub(super) struct Bits {
    /// From `start` on, where a line begins: 2 MiB of guest RAM are one line of the host's, not two.
    memory: Vec<u64>,
    start: usize,
    len: u64,
}

/// Words in a line.
const LINE: usize = 8;

impl Bits {
    /// `len` zeros; memory is taken as they are set.
    pub(super) fn new(len: u64) -> Self {
        // Asked for with an alignment, the allocator would write the zeros.
        let memory = vec![0; len.div_ceil(64) as usize + LINE - 1];
        advise_huge(&memory);
        let start = memory.as_ptr().align_offset(LINE * size_of::<u64>()).min(LINE - 1);
        Self { memory, start, len }
    }

    fn words(&self) -> &[u64] {
        &self.memory[self.start..]
    }

    /// A word is going to be set soon.
    #[inline]
    pub(super) fn prefetch(&self, word: u64) {
        if let Some(word) = usize::try_from(word).ok().and_then(|word| self.words().get(word)) {
            hint::expect(word, Soon::Read);
        }
    }

    /// Sets all bits of whole words; returns how many were 0. Words past the end do not exist; the last one may stand out.
    pub(super) fn fill_words(&mut self, words: Range<u64>) -> u64 {
        let whole = self.len / 64;
        let cut = words.start.min(whole)..words.end.min(whole);
        let mut newly = 0;
        let (lines, rest) = self.memory[self.start..][cut.start as usize..cut.end as usize].as_chunks_mut::<LINE>();
        // Mostly nothing was there, and not every host counts bits in one step.
        for line in lines {
            newly += match line.iter().fold(0, |any, had| any | had) {
                0 => 512,
                _ => line.iter().map(|had| u64::from((!*had).count_ones())).sum(),
            };
            *line = [!0; LINE];
        }
        for had in rest {
            newly += u64::from((!*had).count_ones());
            *had = !0;
        }
        newly + if words.end > whole && words.start <= whole { self.or_word(whole, !0) } else { 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// So many words from `first` on, zeros past the end.
    pub(super) fn copy_words(&self, first: u64, count: usize) -> Vec<u64> {
        let words = self.words();
        let words = &words[usize::try_from(first).unwrap_or(usize::MAX).min(words.len())..];
        let mut copy = words[..count.min(words.len())].to_vec();
        copy.resize(count, 0);
        copy
    }

    /// Sets `bits` in word `word`; returns how many of them were 0.
    #[inline]
    pub(super) fn or_word(&mut self, word: u64, bits: u64) -> u64 {
        // The last word may stand out, and the ones past it are the memory's end and have no bits.
        let left = self.len - (word * 64).min(self.len);
        let bits = if left < 64 { bits & !(!0 << left) } else { bits };
        let Some(had) = usize::try_from(word).ok().and_then(|word| self.memory[self.start..].get_mut(word)) else {
            return 0;
        };
        let new = bits & !*had;
        if new != 0 {
            *had |= new;
        }
        new.count_ones().into()
    }

    /// Sets these bits in the words from `word` on; returns how many of them were 0.
    pub(super) fn or_words(&mut self, word: u64, bits: &[u64]) -> u64 {
        let whole = usize::try_from(self.len / 64).unwrap_or(usize::MAX);
        let first = usize::try_from(word).unwrap_or(usize::MAX).min(whole);
        let (inside, rest) = bits.split_at(bits.len().min(whole - first));
        let words = &mut self.memory[self.start..][first..first + inside.len()];
        let mut newly = 0;
        for (had, bits) in words.iter_mut().zip(inside) {
            newly += u64::from((*bits & !*had).count_ones());
            *had |= bits;
        }
        // The last word may stand out.
        newly + rest.first().map_or(0, |bits| self.or_word(word + inside.len() as u64, *bits))
    }

    /// Sets a run of bits; returns how many of them were 0.
    #[inline]
    pub(super) fn set(&mut self, bits: Range<u64>) -> u64 {
        words_of(bits.start..bits.end.min(self.len)).map(|(word, mask)| self.or_word(word, mask)).sum()
    }

    /// Clears bit `bit`; whether it was set.
    pub(super) fn take(&mut self, bit: u64) -> bool {
        let was = self.test(bit);
        if was {
            self.memory[self.start..][(bit / 64) as usize] &= !(1 << (bit % 64));
        }
        was
    }

    /// Clears a run of bits that are all set.
    pub(super) fn clear_run(&mut self, bits: Range<u64>) {
        let start = self.start;
        words_of(bits).for_each(|(word, mask)| self.memory[start..][word as usize] &= !mask);
    }

    pub(super) fn test(&self, bit: u64) -> bool {
        bit < self.len && self.words()[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    /// The first bit from `from` on that is not set; at most the end.
    pub(super) fn next_clear(&self, from: u64) -> u64 {
        let words = self.words();
        let mut word = (from / 64) as usize;
        let mut clear = words.get(word).map_or(0, |bits| !bits & (!0 << (from % 64)));
        while clear == 0 {
            word += 1;
            match words.get(word) {
                Some(bits) => clear = !bits,
                None => return self.len,
            }
        }
        (word as u64 * 64 + u64::from(clear.trailing_zeros())).min(self.len)
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.words().iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether of those groups of `size` bits that have one set, a multiple of 64, less than half is set.
    pub(super) fn is_sparse(&self, size: u64) -> bool {
        let groups = self.words().chunks((size / 64) as usize);
        let counts = groups.map(|words| words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>());
        let (set, all) = counts.filter(|set| *set != 0).fold((0, 0), |(set, all), more| (set + more, all + size));
        set * 2 < all
    }

    /// Whole words, little endian.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let words = self.len.div_ceil(64) as usize;
        self.words()[..words].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `len` bits from whole words, as [`to_bytes`](Self::to_bytes) gave them. Bits past the end stay, to be [found](Self::stray).
    pub(super) fn from_bytes(len: u64, bytes: &[u8]) -> Self {
        let mut bits = Bits::new(len);
        let start = bits.start;
        for (word, bytes) in bits.memory[start..].iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        bits
    }

    /// The first bit past the end.
    pub(super) fn stray(&self) -> Option<u64> {
        self.next_set(self.len)
    }

    /// The first bit from `from` on that is set.
    pub(super) fn next_set(&self, from: u64) -> Option<u64> {
        let first = usize::try_from(from / 64).ok()?;
        let words = self.words();
        let mut masked = words.get(first)? & (!0 << (from % 64));
        let mut word = first;
        while masked == 0 {
            word += 1;
            masked = *words.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(masked.trailing_zeros()))
    }
}

/// Long bitmaps are touched far and wide by a sync, and most of what that costs is looking up 4 KiB pages of the host's.
fn advise_huge(words: &[u64]) {
    const HUGE: usize = 2 << 20;
    let range = words.as_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE);
    let len = range.end.addr().saturating_sub(start) / HUGE * HUGE;
    if len != 0 {
        let at = range.start.with_addr(start).cast_mut().cast();
        // SAFETY: whole huge pages inside of our own allocation, and the advice changes no content. A host that does not take
        // it says no, and all works the same.
        unsafe { libc::madvise(at, len, libc::MADV_HUGEPAGE) };
    }
}

/// Bits that threads set at once. Not of `crate::sync`: each is for itself, no order between two of them matters, and
/// the memory of a kernel's zeros can be taken for std's atomics.
pub(super) struct SharedBits {
    words: Box<[AtomicU64]>,
    len: u64,
}

impl SharedBits {
    /// `len` zeros; memory is taken as they are set.
    pub(super) fn new(len: u64) -> Self {
        let words = Box::into_raw(vec![0u64; len.div_ceil(64) as usize].into_boxed_slice());
        // SAFETY: an AtomicU64 has the size and bits of a u64, and on 64-bit hosts its alignment; no other reference has the
        // box.
        let words = unsafe { Box::from_raw(words as *mut [AtomicU64]) };
        Self { words, len }
    }

    fn word(&self, bit: u64) -> Option<(&AtomicU64, u64)> {
        (bit < self.len).then(|| (&self.words[(bit / 64) as usize], 1 << (bit % 64)))
    }

    /// Sets the bit; whether it was 0. Of several threads one is told so. Release: what the bit tells of is done.
    pub(super) fn set(&self, bit: u64) -> bool {
        self.word(bit).is_some_and(|(word, mask)| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    /// Clears a run of bits; returns how many of them were set.
    pub(super) fn clear(&self, bits: Range<u64>) -> u64 {
        let had = |(word, mask): (u64, u64)| self.words[word as usize].fetch_and(!mask, Ordering::AcqRel) & mask;
        words_of(bits.start..bits.end.min(self.len)).map(|part| u64::from(had(part).count_ones())).sum()
    }

    /// Clears these bits of a word; which of them were set.
    pub(super) fn clear_word(&self, word: u64, bits: u64) -> u64 {
        let found = usize::try_from(word).ok().and_then(|word| self.words.get(word));
        found.map_or(0, |word| word.fetch_and(!bits, Ordering::AcqRel) & bits)
    }

    /// Acquire: partner of `set`.
    pub(super) fn test(&self, bit: u64) -> bool {
        self.word(bit).is_some_and(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }
}

const _: () = assert!(align_of::<AtomicU64>() == align_of::<u64>());

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What stands out past the end, or lies there, is no bit.
        #[test]
        fn bits_are_a_set_up_to_their_end_by_the_bit_the_word_and_the_line(
            len in 1..1500u64,
            steps in prop::collection::vec((0..5u8, 0..1700u64, 0..1700u64, any::<u64>()), 1..30),
        ) {
            let (mut bits, mut model) = (Bits::new(len), BTreeSet::new());
            for (what, a, b, word) in steps {
                let words = [word, 0, !0, !word, 1, word << 7];
                let in_words = |first: u64, words: &[u64]| -> Vec<u64> {
                    (first * 64..).zip(words.iter().flat_map(|word| (0..64).map(move |n| word >> n & 1 != 0)))
                        .filter_map(|(at, on)| on.then_some(at)).collect()
                };
                let (first, last) = (a.min(b), a.max(b));
                let many = &words[..(b % 7) as usize];
                let (newly, wanted) = match what {
                    0 => (bits.set(first..last), (first..last).collect()),
                    1 => (bits.or_word(a / 64, word), in_words(a / 64, &[word])),
                    2 => (bits.or_words(a / 64, many), in_words(a / 64, many)),
                    3 => (bits.fill_words(first / 64..last / 64), (first / 64 * 64..last / 64 * 64).collect()),
                    _ => {
                        prop_assert_eq!(bits.take(a), model.remove(&a));
                        continue;
                    }
                };
                let new = wanted.into_iter().filter(|at| *at < len && model.insert(*at)).count();
                prop_assert_eq!(newly, new as u64, "{} {}..{}", what, first, last);
                let all = std::iter::successors(bits.next_set(0), |at| bits.next_set(at + 1));
                prop_assert!(all.eq(model.iter().copied()), "{} {}..{}", what, first, last);
                prop_assert!((0..1700).all(|at| bits.test(at) == model.contains(&at)));
            }
        }
    }

    #[test]
    fn two_mib_of_pages_are_one_line_of_the_host() {
        for len in [1, 64, 513, 1 << 16, 1 << 22] {
            let mut bits = Bits::new(len);
            assert_eq!(bits.words().as_ptr().addr() % 64, 0, "{len} bits");
            assert!(bits.words().len() as u64 >= len.div_ceil(64));
            assert_eq!(bits.set(0..len + 1), len, "and there are no more of them");
            assert_eq!(bits.next_set(len), None);
        }
    }
}
