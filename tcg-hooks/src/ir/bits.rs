//! Operations on the bits of words: more than [`Alu`](super::Alu) has, of which a host may have some in one instruction.
//!
//! ```text
//!   Two        rd = op a, b        Shadd, Andn, Min, Rol, Bset, CzeroEqz ..
//!   One        rd = op a           Clz, SextB, Rev8 ..
//!   Immediate  rd = op a, imm      Rori, Bexti ..
//! ```

/// Of what an operation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// `a` and `b`.
    Two,
    /// `a`.
    One,
    /// `a` and the immediate.
    Immediate,
}

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident $operands:ident),* $(,)?) => {
        /// An operation on bits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bits {
            $($(#[$doc])* $name),*
        }

        impl Bits {
            /// All of them.
            pub const ALL: &[Bits] = &[$(Bits::$name),*];

            /// Of what it is made.
            #[inline]
            pub const fn operands(self) -> Operands {
                match self {
                    $(Bits::$name => Operands::$operands),*
                }
            }
        }
    };
}

bits! {
    /// `b` plus the low 32 bits of `a`
    AddUw Two,
    /// `b + (a << 1)`
    Sh1add Two,
    /// `b + (a << 2)`
    Sh2add Two,
    /// `b + (a << 3)`
    Sh3add Two,
    /// As `Sh1add`, with the low 32 bits of `a`
    Sh1addUw Two,
    /// As `Sh2add`, with the low 32 bits of `a`
    Sh2addUw Two,
    /// As `Sh3add`, with the low 32 bits of `a`
    Sh3addUw Two,
    /// The low 32 bits of `a`, shifted to the left
    SlliUw Immediate,
    /// `a & !b`
    Andn Two,
    /// `a | !b`
    Orn Two,
    /// `a ^ !b`
    Xnor Two,
    /// The larger, signed
    Max Two,
    /// The larger
    Maxu Two,
    /// The smaller, signed
    Min Two,
    /// The smaller
    Minu Two,
    /// Rotated to the left
    Rol Two,
    /// Rotated to the right
    Ror Two,
    /// 32 bits rotated to the left; their sign is extended
    Rolw Two,
    /// 32 bits rotated to the right; their sign is extended
    Rorw Two,
    /// Rotated to the right
    Rori Immediate,
    /// 32 bits rotated to the right; their sign is extended
    Roriw Immediate,
    /// Zeros in front
    Clz One,
    /// Zeros at the end
    Ctz One,
    /// Ones
    Cpop One,
    /// Zeros in front, of 32 bits
    Clzw One,
    /// Zeros at the end, of 32 bits
    Ctzw One,
    /// Ones, of 32 bits
    Cpopw One,
    /// The sign of a byte is extended
    SextB One,
    /// The sign of 16 bits is extended
    SextH One,
    /// The low 16 bits
    ZextH One,
    /// Each byte is all ones, unless it is 0
    OrcB One,
    /// The bytes in the other order
    Rev8 One,
    /// Bit `b` of `a` is cleared
    Bclr Two,
    /// Bit `b` of `a`
    Bext Two,
    /// Bit `b` of `a` is inverted
    Binv Two,
    /// Bit `b` of `a` is set
    Bset Two,
    /// As `Bclr`
    Bclri Immediate,
    /// As `Bext`
    Bexti Immediate,
    /// As `Binv`
    Binvi Immediate,
    /// As `Bset`
    Bseti Immediate,
    /// 0 if `b` is 0, else `a`
    CzeroEqz Two,
    /// 0 if `b` is not 0, else `a`
    CzeroNez Two,
}
