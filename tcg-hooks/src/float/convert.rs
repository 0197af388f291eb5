//! Between formats, and to and from integers.
use super::parts::{Kind, Parts, propagate, signed};
use super::round::{cut, round};
use super::{Env, Format, flag};

/// An integer type, as RISC-V's conversions name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Int {
    /// 32 bits, signed.
    W,
    /// 32 bits, unsigned.
    Wu,
    /// 64 bits, signed.
    L,
    /// 64 bits, unsigned.
    Lu,
}

impl Int {
    /// Magnitudes of the least value and of the greatest.
    const fn limits(self) -> (u64, u64) {
        match self {
            Int::W => (1 << 31, (1 << 31) - 1),
            Int::Wu => (0, u32::MAX as u64),
            Int::L => (1 << 63, (1 << 63) - 1),
            Int::Lu => (0, u64::MAX),
        }
    }

    /// The value in an integer register: 32 bits are sign-extended, unsigned ones too.
    const fn register(self, value: u64) -> u64 {
        match self {
            Int::W | Int::Wu => value as i32 as u64,
            Int::L | Int::Lu => value,
        }
    }
}

/// From one format to another.
pub fn convert<From: Format, To: Format>(a: u64, env: &mut Env) -> u64 {
    let x = Parts::of::<From>(a);
    match x.kind {
        Kind::Nan => {
            propagate::<From>(&[a], env);
            To::NAN
        }
        Kind::Infinity => signed::<To>(x.sign, To::INFINITY),
        Kind::Zero => signed::<To>(x.sign, 0),
        Kind::Finite => round::<To>(x.sign, x.exponent - 63, x.significand.into(), env),
    }
}

/// From an integer register.
pub fn from_int<F: Format>(value: u64, int: Int, env: &mut Env) -> u64 {
    let (sign, magnitude) = match int {
        Int::W => ((value as i32) < 0, u64::from((value as i32).unsigned_abs())),
        Int::Wu => (false, u64::from(value as u32)),
        Int::L => ((value as i64) < 0, (value as i64).unsigned_abs()),
        Int::Lu => (false, value),
    };
    if magnitude == 0 {
        return 0;
    }
    round::<F>(sign, 0, magnitude.into(), env)
}

/// To an integer register. What does not fit, and a NaN, become the nearest limit (a NaN the greatest), and are invalid.
pub fn to_int<F: Format>(a: u64, int: Int, env: &mut Env) -> u64 {
    let x = Parts::of::<F>(a);
    let (least, greatest) = int.limits();
    // Whatever is 2^64 or more is too much for all of them, and need not be computed.
    let (magnitude, inexact) = match x.kind {
        Kind::Nan => return overflow(false, int, env),
        Kind::Infinity => return overflow(x.sign, int, env),
        Kind::Zero => (0, false),
        Kind::Finite if x.exponent > 63 => return overflow(x.sign, int, env),
        Kind::Finite => {
            // Its value is this times 2^(exponent - 127), and exponent is less than 64.
            let cut = cut(u128::from(x.significand) << 64, (127 - x.exponent) as u32);
            (cut.kept + u128::from(cut.up(x.sign, env.rounding)), cut.inexact)
        }
    };
    if magnitude > u128::from(if x.sign { least } else { greatest }) {
        return overflow(x.sign, int, env);
    }
    if inexact {
        env.raise(flag::NX);
    }
    let magnitude = magnitude as u64;
    int.register(if x.sign { magnitude.wrapping_neg() } else { magnitude })
}

fn overflow(sign: bool, int: Int, env: &mut Env) -> u64 {
    env.raise(flag::NV);
    let (least, greatest) = int.limits();
    int.register(if sign { least.wrapping_neg() } else { greatest })
}
