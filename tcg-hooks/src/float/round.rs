//! The one place where bits are lost.
use super::parts::signed;
use super::{Env, Format, Rounding, flag};

/// Of `value`, what is left above `shift` bits, and how the lost ones compare: whether there were any, and with half of
/// the last bit kept.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) kept: u128,
    pub(super) inexact: bool,
    half: core::cmp::Ordering,
}

/// Cuts `shift` bits off. `shift` is at least 1, and may be more than there are bits.
pub(super) fn cut(value: u128, shift: u32) -> Cut {
    use core::cmp::Ordering;
    match shift {
        1..128 => {
            let lost = value & ((1 << shift) - 1);
            Cut { kept: value >> shift, inexact: lost != 0, half: lost.cmp(&(1 << (shift - 1))) }
        }
        128 => Cut { kept: 0, inexact: value != 0, half: value.cmp(&(1 << 127)) },
        _ => Cut { kept: 0, inexact: value != 0, half: Ordering::Less },
    }
}

impl Cut {
    /// Is the magnitude rounded up?
    pub(super) fn up(&self, sign: bool, rounding: Rounding) -> bool {
        match rounding {
            Rounding::NearestEven => self.half.is_gt() || self.half.is_eq() && self.kept & 1 != 0,
            Rounding::NearestMax => self.half.is_ge(),
            Rounding::Zero => false,
            Rounding::Down => sign && self.inexact,
            Rounding::Up => !sign && self.inexact,
        }
    }
}

/// `value * 2^exponent`, rounded; its lowest bit may stand for anything that was there below it, if enough bits are
/// above. `value` is not zero.
pub(super) fn round<F: Format>(sign: bool, exponent: i32, value: u128, env: &mut Env) -> u64 {
    let zeros = value.leading_zeros();
    // Of the top bit, now 127.
    let (value, exponent) = (value << zeros, exponent + 127 - zeros as i32);
    let least = 1 - F::BIAS;
    let shift = 127 - F::FRAC;
    let below = (least - exponent).max(0);
    let cut_here = cut(value, shift.saturating_add(below as u32));
    let magnitude = cut_here.kept as u64 + u64::from(cut_here.up(sign, env.rounding));
    // The bit in front of the fraction, or a carry into it, counts one up: hence the exponent less one.
    let biased = if below == 0 { (exponent - least) as u64 } else { 0 };
    if biased >= F::EXP_MAX || (biased << F::FRAC) + magnitude >= F::INFINITY {
        env.raise(flag::OF | flag::NX);
        let finite = match env.rounding {
            Rounding::NearestEven | Rounding::NearestMax => false,
            Rounding::Zero => true,
            Rounding::Down => !sign,
            Rounding::Up => sign,
        };
        return signed::<F>(sign, F::INFINITY - u64::from(finite));
    }
    if cut_here.inexact {
        env.raise(flag::NX);
        if below != 0 && !reaches_normal::<F>(sign, below, value, env.rounding) {
            env.raise(flag::UF);
        }
    }
    signed::<F>(sign, (biased << F::FRAC) + magnitude)
}

/// Would a value just below the least normal number be that number, if it were rounded with all of a normal number's
/// bits? Then it is not tiny.
fn reaches_normal<F: Format>(sign: bool, below: i32, value: u128, rounding: Rounding) -> bool {
    let whole = cut(value, 127 - F::FRAC);
    below == 1 && whole.kept + u128::from(whole.up(sign, rounding)) == 2 << F::FRAC
}
