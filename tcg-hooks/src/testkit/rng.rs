//! A generator of numbers that stays the same for ever: a seed in a test's output is a program anybody can have again.

use std::sync::Arc;

/// SplitMix64; or, for a fuzzer, a tape of bytes that decide, with SplitMix64 for the rest.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    tape: Arc<[u8]>,
    at: usize,
}

impl Rng {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed, tape: Arc::new([]), at: 0 }
    }

    /// Numbers whose top byte, and with it most decisions, comes from `tape`, while it lasts: a changed byte is a
    /// changed decision.
    pub fn with_tape(seed: u64, tape: &[u8]) -> Rng {
        Rng { tape: tape.into(), ..Rng::new(seed) }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        match self.tape.get(self.at) {
            Some(&top) => {
                self.at += 1;
                z & u64::MAX >> 8 | u64::from(top) << 56
            }
            None => z,
        }
    }

    /// A number below `n`, or 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn within(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// One of them, by weight.
    ///
    /// # Panics
    /// If the weights are all 0.
    pub fn weighted<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let mut left = self.below(from.iter().map(|(w, _)| w).sum());
        for &(weight, item) in from {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return item,
            }
        }
        panic!("no weight is above 0")
    }

    /// A 64-bit value of the kind that finds mistakes: extremes, small numbers, single bits, words, anything.
    pub fn value(&mut self) -> u64 {
        let bits = self.bits();
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1]),
            1 => self.pick(&[0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_ffff_8000_0000, 0x1_0000_0000]),
            2 => bits & 0xff,
            3 => (bits as i16) as u64,
            4 => (bits as i32) as u64,
            5 => 1 << (bits & 63),
            _ => bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_decides_until_it_ends() {
        let mut r = Rng::with_tape(42, &[0, 0x80, 0xff]);
        assert_eq!([r.below(2), r.below(2), r.below(8)], [0, 1, 7]);
        let mut plain = Rng::new(42);
        (0..3).for_each(|_| _ = plain.bits());
        assert_eq!(r.bits(), plain.bits());
    }

    #[test]
    fn a_seed_is_a_sequence_for_ever() {
        let mut r = Rng::new(42);
        assert_eq!([r.bits(), r.bits()], [0xbdd7_3226_2feb_6e95, 0x28ef_e333_b266_f103]);
        assert_eq!(r.below(0), 0);
        assert!((0..1000).all(|_| (-3..=5).contains(&r.within(-3, 5))));
        assert!((0..100).all(|_| r.weighted(&[(0, 'a'), (2, 'b')]) == 'b'));
    }
}
