//! Operations of floating point, in either precision.
//!
//! A single-precision number in a register has ones above it: its box. What is not boxed counts as a NaN.
use crate::float::Int;

/// What floating-point arithmetic does, whatever the precision.
#[allow(missing_docs, reason = "the names are the manual's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    Add,
    Sub,
    Mul,
    Div,
    Sqrt,
    MulAdd,
    MulSub,
    NegMulSub,
    NegMulAdd,
    Sign,
    SignNot,
    SignXor,
    Min,
    Max,
    Eq,
    Lt,
    Le,
    Class,
    /// To the other of the two precisions this one is converted from.
    Convert,
    ToInt(Int),
    FromInt(Int),
    ToBits,
    FromBits,
}

pub(crate) const BOX: u64 = 0xffff_ffff_0000_0000;

/// A single-precision number as a register holds it.
#[inline]
pub const fn boxed(bits: u64) -> u64 {
    bits | BOX
}
