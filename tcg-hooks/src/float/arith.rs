//! Sums, products, quotients, roots: each computes an exact value, or one with a sticky bit far below where it is
//! rounded, and rounds once.
use super::parts::{Kind, Parts, propagate, signed};
use super::round::round;
use super::{Env, Format, flag};

/// `a + b`
pub fn add<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (x, y) = (Parts::of::<F>(a), Parts::of::<F>(b));
    match (x.kind, y.kind) {
        (Kind::Nan, _) | (_, Kind::Nan) => propagate::<F>(&[a, b], env),
        (Kind::Infinity, Kind::Infinity) if x.sign != y.sign => env.invalid::<F>(),
        (Kind::Infinity, _) | (Kind::Finite, Kind::Zero) => a & F::MASK,
        (_, Kind::Infinity) | (Kind::Zero, Kind::Finite) => b & F::MASK,
        (Kind::Zero, Kind::Zero) => no_difference::<F>(x.sign, y.sign, env),
        (Kind::Finite, Kind::Finite) => sum::<F>(Addend::of(&x), Addend::of(&y), env),
    }
}

/// `a - b`
pub fn sub<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    // A NaN's sign is not looked at.
    add::<F>(a, b ^ F::SIGN, env)
}

/// `a * b`
pub fn mul<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (x, y) = (Parts::of::<F>(a), Parts::of::<F>(b));
    let sign = x.sign != y.sign;
    match (x.kind, y.kind) {
        (Kind::Nan, _) | (_, Kind::Nan) => propagate::<F>(&[a, b], env),
        (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity) => env.invalid::<F>(),
        (Kind::Infinity, _) | (_, Kind::Infinity) => signed::<F>(sign, F::INFINITY),
        (Kind::Zero, _) | (_, Kind::Zero) => signed::<F>(sign, 0),
        (Kind::Finite, Kind::Finite) => {
            let value = u128::from(x.significand) * u128::from(y.significand);
            round::<F>(sign, x.exponent + y.exponent - 126, value, env)
        }
    }
}

/// `a * b + c`, rounded once.
pub fn mul_add<F: Format>(a: u64, b: u64, c: u64, env: &mut Env) -> u64 {
    let (x, y, z) = (Parts::of::<F>(a), Parts::of::<F>(b), Parts::of::<F>(c));
    let sign = x.sign != y.sign;
    // Invalid even if what is added is a quiet NaN.
    if matches!((x.kind, y.kind), (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity)) {
        return env.invalid::<F>();
    }
    match (x.kind, y.kind, z.kind) {
        (Kind::Nan, ..) | (_, Kind::Nan, _) | (.., Kind::Nan) => propagate::<F>(&[a, b, c], env),
        (Kind::Infinity, ..) | (_, Kind::Infinity, _) if z.kind == Kind::Infinity && z.sign != sign => {
            env.invalid::<F>()
        }
        (Kind::Infinity, ..) | (_, Kind::Infinity, _) => signed::<F>(sign, F::INFINITY),
        (.., Kind::Infinity) => c & F::MASK,
        (Kind::Zero, ..) | (_, Kind::Zero, _) if z.kind == Kind::Zero => no_difference::<F>(sign, z.sign, env),
        (Kind::Zero, ..) | (_, Kind::Zero, _) => c & F::MASK,
        (Kind::Finite, Kind::Finite, _) => {
            let product = Addend::product(&x, &y);
            if z.kind == Kind::Zero {
                return round::<F>(sign, product.exponent - 126, product.value, env);
            }
            sum::<F>(product, Addend::of(&z), env)
        }
    }
}

/// `a / b`
pub fn div<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (x, y) = (Parts::of::<F>(a), Parts::of::<F>(b));
    let sign = x.sign != y.sign;
    match (x.kind, y.kind) {
        (Kind::Nan, _) | (_, Kind::Nan) => propagate::<F>(&[a, b], env),
        (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => env.invalid::<F>(),
        (Kind::Infinity, _) => signed::<F>(sign, F::INFINITY),
        (Kind::Zero, _) | (_, Kind::Infinity) => signed::<F>(sign, 0),
        (Kind::Finite, Kind::Zero) => {
            env.raise(flag::DZ);
            signed::<F>(sign, F::INFINITY)
        }
        (Kind::Finite, Kind::Finite) => {
            // Sixty-three bits of quotient at least, and whether there are more.
            let (n, d) = (u128::from(x.significand) << 63, u128::from(y.significand));
            let (quotient, rest) = (n / d, n % d);
            round::<F>(sign, x.exponent - y.exponent - 64, quotient << 1 | u128::from(rest != 0), env)
        }
    }
}

/// The square root of `a`.
pub fn sqrt<F: Format>(a: u64, env: &mut Env) -> u64 {
    let x = Parts::of::<F>(a);
    match x.kind {
        Kind::Nan => propagate::<F>(&[a], env),
        // Of minus zero it is minus zero.
        Kind::Zero => a & F::MASK,
        _ if x.sign => env.invalid::<F>(),
        Kind::Infinity => F::INFINITY,
        Kind::Finite => {
            // An even exponent, and 126 bits or more below it: sixty-four bits of root.
            let odd = (x.exponent - 63) & 1;
            let value = u128::from(x.significand) << (64 - odd);
            let root = value.isqrt();
            let rest = value - root * root;
            round::<F>(false, (x.exponent - 127 + odd) / 2 - 1, root << 1 | u128::from(rest != 0), env)
        }
    }
}

/// A finite number to be added: `value * 2^(exponent - 126)`, and bit 126 is the top one, so a sum has room.
struct Addend {
    sign: bool,
    exponent: i32,
    value: u128,
}

impl Addend {
    fn of(x: &Parts) -> Addend {
        Addend { sign: x.sign, exponent: x.exponent, value: u128::from(x.significand) << 63 }
    }

    fn product(x: &Parts, y: &Parts) -> Addend {
        let value = u128::from(x.significand) * u128::from(y.significand);
        // Both significands end in zeros, so the bit shifted out is one.
        let carry = (value >> 127) as i32;
        Addend { sign: x.sign != y.sign, exponent: x.exponent + y.exponent + carry, value: value >> carry }
    }
}

/// The sum of two numbers that are not zero. The one of less magnitude is shifted by at least as much as its exponent is
/// less; what is shifted out is below the last bit by twenty places, and if there is any, the sum loses one place at most.
fn sum<F: Format>(a: Addend, b: Addend, env: &mut Env) -> u64 {
    let (large, small) = if (a.exponent, a.value) >= (b.exponent, b.value) { (a, b) } else { (b, a) };
    let shift = (large.exponent - small.exponent) as u32;
    let moved = match shift {
        0..128 => small.value >> shift | u128::from(small.value & ((1 << shift) - 1) != 0),
        _ => 1,
    };
    let value = if large.sign == small.sign { large.value + moved } else { large.value - moved };
    if value == 0 {
        return no_difference::<F>(large.sign, small.sign, env);
    }
    round::<F>(large.sign, large.exponent - 126, value, env)
}

/// Zero, as a sum of what has these signs.
fn no_difference<F: Format>(a: bool, b: bool, env: &mut Env) -> u64 {
    signed::<F>(if a == b { a } else { env.rounding == super::Rounding::Down }, 0)
}
