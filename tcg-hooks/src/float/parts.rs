//! A number taken apart.
use super::{Env, Format, flag};

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Finite,
    Infinity,
    Nan,
}

/// A number; if it is finite, its value is `significand * 2^(exponent - 63)`, and the significand's top bit is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) sign: bool,
    pub(super) kind: Kind,
    pub(super) exponent: i32,
    pub(super) significand: u64,
}

impl Parts {
    pub(super) fn of<F: Format>(bits: u64) -> Parts {
        let sign = bits & F::SIGN != 0;
        let fraction = bits & ((1 << F::FRAC) - 1);
        let biased = bits >> F::FRAC & F::EXP_MAX;
        let finite = |exponent, significand: u64| {
            // A subnormal has leading zeros, which cost it exponent.
            let zeros = significand.leading_zeros();
            Parts { sign, kind: Kind::Finite, exponent: exponent - zeros as i32, significand: significand << zeros }
        };
        let none = |kind| Parts { sign, kind, exponent: 0, significand: 0 };
        // Where the bit in front of the fraction goes to the top.
        let shift = 63 - F::FRAC;
        if biased == F::EXP_MAX {
            none(if fraction == 0 { Kind::Infinity } else { Kind::Nan })
        } else if biased != 0 {
            finite(biased as i32 - F::BIAS, (1 << F::FRAC | fraction) << shift)
        } else if fraction != 0 {
            finite(1 - F::BIAS, fraction << shift)
        } else {
            none(Kind::Zero)
        }
    }
}

/// Is it a NaN?
pub(super) const fn is_nan<F: Format>(bits: u64) -> bool {
    bits & (F::SIGN - 1) > F::INFINITY
}

/// Is it a NaN that makes an operation invalid?
pub(super) const fn is_signaling<F: Format>(bits: u64) -> bool {
    is_nan::<F>(bits) && bits & 1 << (F::FRAC - 1) == 0
}

/// An infinity, or zero, of that sign.
pub(super) const fn signed<F: Format>(sign: bool, bits: u64) -> u64 {
    if sign { bits | F::SIGN } else { bits }
}

/// The answer to operands of which one is a NaN.
pub(super) fn propagate<F: Format>(operands: &[u64], env: &mut Env) -> u64 {
    if operands.iter().any(|&bits| is_signaling::<F>(bits)) {
        env.raise(flag::NV);
    }
    F::NAN
}
