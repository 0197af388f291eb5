//! The host's arithmetic where it is the guest's: rounding to nearest even, a result that is neither NaN nor near the
//! ends of the range. All that it can raise then is NX.
//!
//! ```text
//!   a op b, by the host ─▶ within [2^-960, 2^1000]? ─ no ─▶ None: in integers (arith.rs)
//!                          │ yes: no overflow, no underflow, nothing invalid
//!                          ▼
//!                       NX set already, or the error of the operation is not zero: NX
//! ```
//!
//! The error is computed as numbers: nothing reads or writes the host's control or status register, which takes longer
//! than all of this. Each function returns `None` for what it leaves to the integers, and has raised nothing then.
use super::{Env, F32, F64, Format, Int, Rounding, flag};

/// The multiplication and addition that round once, where the host has them.
#[cfg(target_arch = "x86_64")]
mod fma {
    /// `a * b + c`, rounded once.
    pub(super) fn double(a: f64, b: f64, c: f64) -> Option<f64> {
        // SAFETY: the host has the instruction.
        std::arch::is_x86_feature_detected!("fma").then(|| unsafe { fused_double(a, b, c) })
    }

    pub(super) fn single(a: f32, b: f32, c: f32) -> Option<f32> {
        // SAFETY: the host has the instruction.
        std::arch::is_x86_feature_detected!("fma").then(|| unsafe { fused_single(a, b, c) })
    }

    #[target_feature(enable = "fma")]
    fn fused_double(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }

    #[target_feature(enable = "fma")]
    fn fused_single(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod fma {
    pub(super) fn double(_: f64, _: f64, _: f64) -> Option<f64> {
        None
    }

    pub(super) fn single(_: f32, _: f32, _: f32) -> Option<f32> {
        None
    }
}

/// A format that the host computes in.
pub(crate) trait Native: Format {
    type Number: Copy + PartialEq;

    fn number(bits: u64) -> Self::Number;
    fn bits(number: Self::Number) -> u64;
    /// Far from overflow and underflow: the errors below are exact, and so is every step towards them.
    fn is_moderate(number: Self::Number) -> bool;
    fn is_zero(number: Self::Number) -> bool;
    fn add(a: Self::Number, b: Self::Number) -> Self::Number;
    fn mul(a: Self::Number, b: Self::Number) -> Self::Number;
    fn div(a: Self::Number, b: Self::Number) -> Self::Number;
    fn sqrt(a: Self::Number) -> Self::Number;
    fn fused(a: Self::Number, b: Self::Number, c: Self::Number) -> Option<Self::Number>;
    /// Is the sum `s` of two numbers exact?
    fn sum_is(s: Self::Number, a: Self::Number, b: Self::Number) -> bool;
    /// Is `p` the product of two numbers, exactly? `None` where the host cannot say.
    fn product_is(p: Self::Number, a: Self::Number, b: Self::Number) -> Option<bool>;
    fn to_double(number: Self::Number) -> f64;
    fn from_signed(int: i64) -> Self::Number;
    fn from_unsigned(int: u64) -> Self::Number;
}

macro_rules! common {
    ($number:ident, $fused:path, $least:literal, $most:literal) => {
        type Number = $number;

        #[inline]
        fn is_moderate(number: $number) -> bool {
            let (least, most) = ($number::from_bits($least), $number::from_bits($most));
            // Not so of a NaN.
            number.abs() >= least && number.abs() <= most
        }

        #[inline]
        fn is_zero(number: $number) -> bool {
            number == 0.0
        }

        #[inline]
        fn add(a: $number, b: $number) -> $number {
            a + b
        }

        #[inline]
        fn mul(a: $number, b: $number) -> $number {
            a * b
        }

        #[inline]
        fn div(a: $number, b: $number) -> $number {
            a / b
        }

        #[inline]
        fn sqrt(a: $number) -> $number {
            a.sqrt()
        }

        #[inline]
        fn fused(a: $number, b: $number, c: $number) -> Option<$number> {
            $fused(a, b, c)
        }

        /// Knuth's sum of two: the error is a number of the format, whatever the operands are.
        #[inline]
        fn sum_is(s: $number, a: $number, b: $number) -> bool {
            let of_b = s - a;
            let of_a = s - of_b;
            (a - of_a) + (b - of_b) == 0.0
        }

        #[inline]
        fn from_signed(int: i64) -> $number {
            int as $number
        }

        #[inline]
        fn from_unsigned(int: u64) -> $number {
            int as $number
        }
    };
}

impl Native for F64 {
    // 2^-960 and 2^1000.
    common!(f64, fma::double, 0x03f0_0000_0000_0000, 0x7e70_0000_0000_0000);

    #[inline]
    fn number(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    #[inline]
    fn bits(number: f64) -> u64 {
        number.to_bits()
    }

    #[inline]
    fn product_is(p: f64, a: f64, b: f64) -> Option<bool> {
        fma::double(a, b, -p).map(|error| error == 0.0)
    }

    #[inline]
    fn to_double(number: f64) -> f64 {
        number
    }
}

impl Native for F32 {
    // 2^-100 and 2^100.
    common!(f32, fma::single, 0x0d80_0000, 0x7180_0000);

    #[inline]
    fn number(bits: u64) -> f32 {
        f32::from_bits(bits as u32)
    }

    #[inline]
    fn bits(number: f32) -> u64 {
        number.to_bits().into()
    }

    /// Of two numbers of 24 bits the product has 48.
    #[inline]
    fn product_is(p: f32, a: f32, b: f32) -> Option<bool> {
        Some(f64::from(a) * f64::from(b) == f64::from(p))
    }

    #[inline]
    fn to_double(number: f32) -> f64 {
        number.into()
    }
}

/// Does the host round as asked, and where it may not know whether a result is exact, does that matter no more?
#[inline]
fn knows_nx(env: &Env) -> bool {
    env.flags & flag::NX != 0
}

/// `result` is as the host computed it, and exact or not; `None`: nothing knows.
#[inline]
fn done<F: Native>(result: F::Number, env: &mut Env, exact: impl FnOnce() -> Option<bool>) -> Option<u64> {
    if !F::is_moderate(result) {
        return None;
    }
    if !knows_nx(env) && !exact()? {
        env.raise(flag::NX);
    }
    Some(F::bits(result))
}

#[inline]
fn nearest(env: &Env) -> Option<()> {
    (env.rounding == Rounding::NearestEven).then_some(())
}

/// `a + b`
#[inline]
pub(crate) fn add<F: Native>(a: u64, b: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let (a, b) = (F::number(a), F::number(b));
    let sum = F::add(a, b);
    // What cancels is exact.
    if F::is_zero(sum) {
        return Some(F::bits(sum));
    }
    done::<F>(sum, env, || Some(F::sum_is(sum, a, b)))
}

/// `a * b`
#[inline]
pub(crate) fn mul<F: Native>(a: u64, b: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let (a, b) = (F::number(a), F::number(b));
    let product = F::mul(a, b);
    done::<F>(product, env, || F::product_is(product, a, b))
}

/// `a / b`
#[inline]
pub(crate) fn div<F: Native>(a: u64, b: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let (a, b) = (F::number(a), F::number(b));
    let quotient = F::div(a, b);
    // With a dividend far from underflow the remainder is a number of the format.
    done::<F>(quotient, env, || if F::is_moderate(a) { F::product_is(a, quotient, b) } else { None })
}

/// The square root.
#[inline]
pub(crate) fn sqrt<F: Native>(a: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let a = F::number(a);
    let root = F::sqrt(a);
    done::<F>(root, env, || if F::is_moderate(a) { F::product_is(a, root, root) } else { None })
}

/// `a * b + c`
#[inline]
pub(crate) fn mul_add<F: Native>(a: u64, b: u64, c: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    // Whether it is exact costs more than to compute it otherwise.
    done::<F>(F::fused(F::number(a), F::number(b), F::number(c))?, env, || None)
}

/// To the other format.
#[inline]
pub(crate) fn widen(a: u64) -> Option<u64> {
    let wide = f64::from(F32::number(a));
    // Subnormal ones, too, are exact.
    (wide.is_finite()).then_some(wide.to_bits())
}

/// To the other format.
#[inline]
pub(crate) fn narrow(a: u64, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let wide = F64::number(a);
    let narrow = wide as f32;
    done::<F32>(narrow, env, || Some(f64::from(narrow) == wide))
}

/// An integer of the register.
#[inline]
pub(crate) fn from_int<F: Native>(x: u64, int: Int, env: &mut Env) -> Option<u64> {
    nearest(env)?;
    let (value, number) = match int {
        Int::W => (i128::from(x as i32), F::from_signed((x as i32).into())),
        Int::Wu => (i128::from(x as u32), F::from_unsigned((x as u32).into())),
        Int::L => (i128::from(x as i64), F::from_signed(x as i64)),
        Int::Lu => (i128::from(x), F::from_unsigned(x)),
    };
    if !knows_nx(env) && F::to_double(number) as i128 != value {
        env.raise(flag::NX);
    }
    Some(F::bits(number))
}

/// To an integer, towards zero.
#[inline]
pub(crate) fn to_int<F: Native>(a: u64, int: Int, env: &mut Env) -> Option<u64> {
    let number = F::to_double(F::number(a));
    // The numbers between these are cut to integers that fit. Not so of a NaN.
    let (above, below) = match int {
        Int::W => (-2_147_483_649.0, 2_147_483_648.0),
        Int::Wu => (-1.0, 4_294_967_296.0),
        // The next number below -2^63 does not fit.
        Int::L => (-9_223_372_036_854_777_856.0, 9_223_372_036_854_775_808.0),
        Int::Lu => (-1.0, 18_446_744_073_709_551_616.0),
    };
    if env.rounding != Rounding::Zero || !(number > above && number < below) {
        return None;
    }
    let (value, back) = match int {
        Int::W => (number as i32 as u64, f64::from(number as i32)),
        Int::Wu => (number as u32 as i32 as u64, f64::from(number as u32)),
        Int::L => (number as i64 as u64, number as i64 as f64),
        Int::Lu => (number as u64, number as u64 as f64),
    };
    if back != number {
        env.raise(flag::NX);
    }
    Some(value)
}
