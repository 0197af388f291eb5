//! IEEE 754 binary arithmetic in integers, exact: every result, every flag, the five rounding modes of RISC-V.
//!
//! ```text
//!   bits ─▶ parts: sign, exponent, 64-bit significand ─▶ an exact value, or one with a sticky bit ─▶ round ─▶ bits, flags
//!           NaN, infinity, zero: decided on the way        arith.rs, convert.rs                      round.rs
//! ```
//!
//! Values are the bits of their format in a `u64`; what lies above a narrower format's bits is the caller's (NaN boxing
//! is in `riscv::fpu`). Everything is generic over [`Format`]. A NaN that comes out is the canonical one; tininess is
//! detected after rounding. The host's floating point is not used: what it would do, and in which mode, does not matter. But
//! native.rs is the host's, for what it does alike.
//!
//! Deliberately absent: `rem`, decimal, traps, payloads of NaNs.
mod arith;
mod compare;
mod convert;
pub(crate) mod native;
mod parts;
mod round;

pub use arith::{add, div, mul, mul_add, sqrt, sub};
pub use compare::{class, eq, le, lt, max, min};
pub use convert::{Int, convert, from_int, to_int};

/// An interchange format: how many bits, and how many of them are the fraction.
pub trait Format {
    /// Bits of the whole, at most 64.
    const BITS: u32;
    /// Bits of the fraction.
    const FRAC: u32;

    /// The sign.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// The exponent of infinities and NaNs.
    const EXP_MAX: u64 = (1 << (Self::BITS - 1 - Self::FRAC)) - 1;
    /// What is added to an exponent.
    const BIAS: i32 = (Self::EXP_MAX / 2) as i32;
    /// Positive infinity.
    const INFINITY: u64 = Self::EXP_MAX << Self::FRAC;
    /// The canonical NaN: quiet, positive, nothing else.
    const NAN: u64 = Self::INFINITY | 1 << (Self::FRAC - 1);
    /// All bits of the format.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
}

/// Half precision.
#[derive(Debug, Clone, Copy)]
pub struct F16;
/// Single precision.
#[derive(Debug, Clone, Copy)]
pub struct F32;
/// Double precision.
#[derive(Debug, Clone, Copy)]
pub struct F64;

impl Format for F16 {
    const BITS: u32 = 16;
    const FRAC: u32 = 10;
}

impl Format for F32 {
    const BITS: u32 = 32;
    const FRAC: u32 = 23;
}

impl Format for F64 {
    const BITS: u32 = 64;
    const FRAC: u32 = 52;
}

/// Rounding modes, numbered as in an instruction's `rm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Rounding {
    /// To nearest, ties to even.
    #[default]
    NearestEven = 0,
    /// Towards zero.
    Zero = 1,
    /// Towards negative infinity.
    Down = 2,
    /// Towards positive infinity.
    Up = 3,
    /// To nearest, ties away from zero.
    NearestMax = 4,
}

impl Rounding {
    /// All five.
    pub const ALL: [Rounding; 5] =
        [Rounding::NearestEven, Rounding::Zero, Rounding::Down, Rounding::Up, Rounding::NearestMax];

    /// The mode of that number, if there is one.
    pub const fn from_bits(bits: u8) -> Option<Rounding> {
        match bits {
            0 => Some(Rounding::NearestEven),
            1 => Some(Rounding::Zero),
            2 => Some(Rounding::Down),
            3 => Some(Rounding::Up),
            4 => Some(Rounding::NearestMax),
            _ => None,
        }
    }
}

/// Exception flags, as bits of `fflags`.
pub mod flag {
    /// Inexact.
    pub const NX: u8 = 1 << 0;
    /// Underflow: tiny after rounding, and inexact.
    pub const UF: u8 = 1 << 1;
    /// Overflow.
    pub const OF: u8 = 1 << 2;
    /// An exact infinity from finite operands.
    pub const DZ: u8 = 1 << 3;
    /// Invalid.
    pub const NV: u8 = 1 << 4;
}

/// How to round, and what happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Env {
    /// The mode in force.
    pub rounding: Rounding,
    /// Flags raised; operations only add to them.
    pub flags: u8,
}

impl Env {
    /// No flags yet.
    pub const fn new(rounding: Rounding) -> Env {
        Env { rounding, flags: 0 }
    }

    pub(crate) fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// The canonical NaN of an operation that has no other answer.
    fn invalid<F: Format>(&mut self) -> u64 {
        self.raise(flag::NV);
        F::NAN
    }
}
