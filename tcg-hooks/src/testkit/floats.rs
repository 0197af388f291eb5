//! Floating-point operands of the kind that finds mistakes, as TestFloat makes them: all exponents that matter with few
//! significand bits set, neighbours, ties, subnormals, and second operands that nearly cancel the first.
use super::Rng;
use crate::float::{self, Env, Format, Rounding};

/// One number, or NaN, or infinity.
pub fn one<F: Format>(rng: &mut Rng) -> u64 {
    let sign = if rng.chance(50) { F::SIGN } else { 0 };
    sign | exponent::<F>(rng) << F::FRAC | fraction::<F>(rng)
}

fn exponent<F: Format>(rng: &mut Rng) -> u64 {
    let (bias, max) = (F::BIAS as u64, F::EXP_MAX);
    match rng.below(10) {
        0 => 0,
        1 => max,
        2 => rng.pick(&[1, 2, max - 1, max - 2]),
        3 => bias.wrapping_add(rng.within(-2, 2) as u64),
        // Around where integers end, and where a fraction's bits do.
        4 => bias + u64::from(rng.pick(&[F::FRAC, 31, 32, 63, 64])).min(max / 2) - rng.below(3),
        5 | 6 => bias.wrapping_add(rng.within(-(F::FRAC as i64), F::FRAC as i64) as u64) & max,
        // Products of these are near the ends of the range.
        7 => rng.pick(&[bias / 2, bias + bias / 2]).wrapping_add(rng.within(-3, 3) as u64) & max,
        _ => rng.below(max + 1),
    }
}

/// None, one or a run of bits, from either side, or any.
fn fraction<F: Format>(rng: &mut Rng) -> u64 {
    let all = (1 << F::FRAC) - 1u64;
    let at = rng.below(F::FRAC.into());
    let bits = rng.bits() & all;
    match rng.below(9) {
        0 => 0,
        1 => all,
        2 => 1 << at,
        3 => all ^ 1 << at,
        4 => all >> at,
        5 => all << at & all,
        6 => rng.pick(&[1, 2, 3, all - 1, 1 << (F::FRAC - 1), (1 << (F::FRAC - 1)) - 1, (1 << (F::FRAC - 1)) + 1]),
        7 => bits & all << (at & !7) & all,
        _ => bits,
    }
}

/// A number near that one, or near its negative.
pub fn near<F: Format>(a: u64, rng: &mut Rng) -> u64 {
    let sign = if rng.chance(60) { F::SIGN } else { 0 };
    let moved = match rng.below(3) {
        0 => a.wrapping_add(rng.within(-3, 3) as u64),
        1 => a.wrapping_add((rng.within(-2, 2) as u64) << F::FRAC),
        _ => a ^ 1 << rng.below((F::FRAC + 3).into()),
    };
    (moved ^ sign) & F::MASK
}

/// Two operands.
pub fn two<F: Format>(rng: &mut Rng) -> (u64, u64) {
    let a = one::<F>(rng);
    let b = match rng.below(5) {
        0 => near::<F>(a, rng),
        // Far apart by as much as there are bits, give or take some: where one is the other's sticky bit.
        1 => {
            let distance = u64::from(F::FRAC) + rng.below(5);
            let biased = (a >> F::FRAC & F::EXP_MAX).saturating_sub(distance);
            one::<F>(rng) & !F::INFINITY | biased << F::FRAC
        }
        // The quotient of something by it, or the like: products and quotients that are nearly exact.
        2 => {
            let mut env = Env::new(rng.pick(&Rounding::ALL));
            let c = one::<F>(rng);
            if rng.chance(50) { float::div::<F>(c, a, &mut env) } else { float::mul::<F>(c, a, &mut env) }
        }
        _ => one::<F>(rng),
    };
    if rng.chance(50) { (a, b) } else { (b, a) }
}

/// Two factors and what is added: often nearly the negative of their product, or just at its last bit.
pub fn three<F: Format>(rng: &mut Rng) -> (u64, u64, u64) {
    let (a, b) = two::<F>(rng);
    let c = match rng.below(4) {
        0 | 1 => {
            let product = float::mul::<F>(a, b, &mut Env::new(rng.pick(&Rounding::ALL)));
            match rng.below(3) {
                0 => product ^ F::SIGN,
                1 => near::<F>(product, rng),
                _ => {
                    let by = rng.within(-(2 * F::FRAC as i64) - 4, F::FRAC as i64 + 4);
                    let biased = ((product >> F::FRAC & F::EXP_MAX) as i64 + by).clamp(0, F::EXP_MAX as i64 - 1);
                    one::<F>(rng) & !F::INFINITY | (biased as u64) << F::FRAC
                }
            }
        }
        2 => near::<F>(a, rng),
        _ => one::<F>(rng),
    };
    (a, b, c)
}

/// An integer to be converted: ties and neighbours of what a format can hold.
pub fn integer(rng: &mut Rng) -> u64 {
    let value = match rng.below(3) {
        // A few bits at the top, and a tie or nearly one below.
        0 => {
            let top = rng.bits() | 1 << 63;
            let kept = rng.pick(&[11, 24, 53]);
            let tie = 1u64 << (63 - kept);
            (top & !(2 * tie - 1) | tie).wrapping_add(rng.within(-1, 1) as u64) >> rng.below(64 - kept)
        }
        _ => rng.value(),
    };
    if rng.chance(50) { value.wrapping_neg() } else { value }
}
