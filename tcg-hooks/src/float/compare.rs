//! Order, extremes and classes.
use super::parts::{is_nan, is_signaling};
use super::{Env, Format, flag};

/// A key that orders all numbers that are no NaNs as they are, with minus zero below zero.
fn key<F: Format>(bits: u64) -> i64 {
    let magnitude = (bits & (F::SIGN - 1)) as i64;
    if bits & F::SIGN != 0 { !magnitude } else { magnitude }
}

fn both_zero<F: Format>(a: u64, b: u64) -> bool {
    (a | b) & (F::SIGN - 1) == 0
}

fn unordered<F: Format>(a: u64, b: u64) -> bool {
    is_nan::<F>(a) || is_nan::<F>(b)
}

/// `a == b`; only a signaling NaN is invalid.
pub fn eq<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    if unordered::<F>(a, b) {
        if is_signaling::<F>(a) || is_signaling::<F>(b) {
            env.raise(flag::NV);
        }
        return false;
    }
    both_zero::<F>(a, b) || key::<F>(a) == key::<F>(b)
}

/// `a < b`; any NaN is invalid.
pub fn lt<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    if unordered::<F>(a, b) {
        env.raise(flag::NV);
        return false;
    }
    !both_zero::<F>(a, b) && key::<F>(a) < key::<F>(b)
}

/// `a <= b`; any NaN is invalid.
pub fn le<F: Format>(a: u64, b: u64, env: &mut Env) -> bool {
    if unordered::<F>(a, b) {
        env.raise(flag::NV);
        return false;
    }
    both_zero::<F>(a, b) || key::<F>(a) <= key::<F>(b)
}

/// The lesser of two numbers; of a number and a NaN, the number.
pub fn min<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, key::<F>(a) <= key::<F>(b), env)
}

/// The greater of two numbers; of a number and a NaN, the number.
pub fn max<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    extreme::<F>(a, b, key::<F>(a) >= key::<F>(b), env)
}

fn extreme<F: Format>(a: u64, b: u64, first: bool, env: &mut Env) -> u64 {
    if is_signaling::<F>(a) || is_signaling::<F>(b) {
        env.raise(flag::NV);
    }
    match (is_nan::<F>(a), is_nan::<F>(b)) {
        (true, true) => F::NAN,
        (true, false) => b & F::MASK,
        (false, true) => a & F::MASK,
        (false, false) => (if first { a } else { b }) & F::MASK,
    }
}

/// What `fclass` says: one bit of ten.
pub fn class<F: Format>(bits: u64) -> u64 {
    let (negative, magnitude) = (bits & F::SIGN != 0, bits & (F::SIGN - 1));
    let bit = if is_nan::<F>(bits) {
        return if is_signaling::<F>(bits) { 1 << 8 } else { 1 << 9 };
    } else if magnitude == F::INFINITY {
        0
    } else if magnitude >> F::FRAC != 0 {
        1
    } else if magnitude != 0 {
        2
    } else {
        3
    };
    1 << if negative { bit } else { 7 - bit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::{F16, F32, F64};

    /// SoftFloat has neither of these.
    #[test]
    fn a_number_wins_over_a_nan_and_minus_zero_is_less_than_zero() {
        let (one, zero, minus) = (0x3f80_0000, 0, 0x8000_0000);
        let (quiet, signaling, odd) = (0x7fc0_0000, 0x7f80_0001, 0xffff_ffff);
        let cases = [
            (zero, minus, minus, zero, 0),
            (minus, zero, minus, zero, 0),
            (one, minus, minus, one, 0),
            (one, quiet, one, one, 0),
            (odd, one, one, one, 0),
            (signaling, one, one, one, flag::NV),
            (odd, quiet, quiet, quiet, 0),
            (odd, signaling, quiet, quiet, flag::NV),
            (0xff80_0000, 0x7f80_0000, 0xff80_0000, 0x7f80_0000, 0),
            (0xbf80_0000, 0xc000_0000, 0xc000_0000, 0xbf80_0000, 0),
        ];
        for (a, b, least, greatest, flags) in cases {
            for (f, want) in [(min::<F32> as fn(u64, u64, &mut Env) -> u64, least), (max::<F32>, greatest)] {
                let mut env = Env::default();
                assert_eq!((f(a, b, &mut env), env.flags), (want, flags), "{a:#x} {b:#x}");
            }
        }
    }

    #[test]
    fn each_number_is_of_one_class() {
        let doubles = [
            0xfff0_0000_0000_0000,
            0xbff0_0000_0000_0000,
            0x8000_0000_0000_0001,
            0x8000_0000_0000_0000,
            0,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0xfff8_0000_0000_0000,
        ];
        for (n, bits) in doubles.into_iter().enumerate() {
            assert_eq!(class::<F64>(bits), 1 << n, "{bits:#x}");
        }
        let mut counts = [0; 10];
        (0..=0xffff).for_each(|bits| counts[class::<F16>(bits).trailing_zeros() as usize] += 1);
        assert_eq!(counts, [1, 0x7800, 0x3ff, 1, 1, 0x3ff, 0x7800, 1, 2 * 0x1ff, 2 * 0x200]);
    }
}
