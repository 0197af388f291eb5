//! SoftFloat's operations by our names.
use super::Kind;
use notdirty_tcg::float::{F16, F32, F64, Format, Int, Rounding};
use softfloat_wrapper::{self as sf, ExceptionFlags, Float, RoundingMode};

/// One of our formats, and theirs.
pub trait Berkeley: Format {
    type Theirs: Float;

    fn theirs(bits: u64) -> Self::Theirs;
    fn bits(value: &Self::Theirs) -> u64;
}

macro_rules! berkeley {
    ($($format:ident $bits:ident;)*) => {
        $(impl Berkeley for $format {
            type Theirs = sf::$format;

            fn theirs(bits: u64) -> sf::$format {
                sf::$format::from_bits(bits as $bits)
            }

            fn bits(value: &sf::$format) -> u64 {
                value.to_bits().into()
            }
        })*
    };
}

berkeley! {
    F16 u16;
    F32 u32;
    F64 u64;
}

/// The result, and all flags after it.
pub fn run<F: Berkeley>(kind: Kind, [a, b, c]: [u64; 3], rounding: Rounding, flags: u8) -> (u64, u8) {
    let mode = match rounding {
        Rounding::NearestEven => RoundingMode::TiesToEven,
        Rounding::Zero => RoundingMode::TowardZero,
        Rounding::Down => RoundingMode::TowardNegative,
        Rounding::Up => RoundingMode::TowardPositive,
        Rounding::NearestMax => RoundingMode::TiesToAway,
    };
    ExceptionFlags::from_bits(flags).set();
    let (x, y, z) = (F::theirs(a), F::theirs(b), F::theirs(c));
    let result = match kind {
        Kind::Add => F::bits(&x.add(y, mode)),
        Kind::Sub => F::bits(&x.sub(y, mode)),
        Kind::Mul => F::bits(&x.mul(y, mode)),
        Kind::Div => F::bits(&x.div(y, mode)),
        Kind::Sqrt => F::bits(&x.sqrt(mode)),
        Kind::MulAdd => F::bits(&x.fused_mul_add(y, z, mode)),
        Kind::Eq => x.eq(y).into(),
        Kind::Lt => x.lt(y).into(),
        Kind::Le => x.le(y).into(),
        // To one's own format theirs is a copy; ours makes a NaN canonical, as the conversions to others do.
        Kind::ToHalf if F::BITS == 16 => return same::<F>(a, flags),
        Kind::ToSingle if F::BITS == 32 => return same::<F>(a, flags),
        Kind::ToDouble if F::BITS == 64 => return same::<F>(a, flags),
        Kind::ToHalf => x.to_f16(mode).to_bits().into(),
        Kind::ToSingle => x.to_f32(mode).to_bits().into(),
        Kind::ToDouble => x.to_f64(mode).to_bits(),
        Kind::ToInt(Int::W) => x.to_i32(mode, true) as u64,
        Kind::ToInt(Int::Wu) => x.to_u32(mode, true) as i32 as u64,
        Kind::ToInt(Int::L) => x.to_i64(mode, true) as u64,
        Kind::ToInt(Int::Lu) => x.to_u64(mode, true),
        Kind::FromInt(Int::W) => F::bits(&F::Theirs::from_i32(a as i32, mode)),
        Kind::FromInt(Int::Wu) => F::bits(&F::Theirs::from_u32(a as u32, mode)),
        Kind::FromInt(Int::L) => F::bits(&F::Theirs::from_i64(a as i64, mode)),
        Kind::FromInt(Int::Lu) => F::bits(&F::Theirs::from_u64(a, mode)),
    };
    let mut after = ExceptionFlags::default();
    after.get();
    (result, after.to_bits())
}

fn same<F: Format>(a: u64, flags: u8) -> (u64, u8) {
    let magnitude = a & (F::SIGN - 1);
    if magnitude <= F::INFINITY {
        return (a, flags);
    }
    let quiet = a & 1 << (F::FRAC - 1) != 0;
    (F::NAN, if quiet { flags } else { flags | 16 })
}
