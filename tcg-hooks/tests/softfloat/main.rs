//! Our floating point against Berkeley SoftFloat in its RISC-V variety, bit for bit: results and flags, in five rounding
//! modes, with flags set before. `NOTDIRTY_FLOATS=n` operations, of which each kind and format has its share.
mod c;

use c::Berkeley;
use notdirty_tcg::float::{self, Env, F16, F32, F64, Format, Int, Rounding};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::{Rng, float_natively, floats};

/// Operations of one run, unless the environment says otherwise.
const OPERATIONS: u64 = 2_000_000;

fn operations() -> u64 {
    std::env::var("NOTDIRTY_FLOATS").map_or(OPERATIONS, |n| n.parse().expect("NOTDIRTY_FLOATS is a number"))
}

/// What is compared: an operation and how many operands it has. An integer stands for a result that is none.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Add,
    Sub,
    Mul,
    Div,
    Sqrt,
    MulAdd,
    Eq,
    Lt,
    Le,
    ToHalf,
    ToSingle,
    ToDouble,
    ToInt(Int),
    FromInt(Int),
}

const INTS: [Int; 4] = [Int::W, Int::Wu, Int::L, Int::Lu];

/// Operations where rounding happens have more corners.
const KINDS: [(u64, Kind); 20] = [
    (4, Kind::Add),
    (4, Kind::Sub),
    (4, Kind::Mul),
    (4, Kind::Div),
    (3, Kind::Sqrt),
    (8, Kind::MulAdd),
    (1, Kind::Eq),
    (1, Kind::Lt),
    (1, Kind::Le),
    (2, Kind::ToHalf),
    (2, Kind::ToSingle),
    (1, Kind::ToDouble),
    (1, Kind::ToInt(INTS[0])),
    (1, Kind::ToInt(INTS[1])),
    (1, Kind::ToInt(INTS[2])),
    (1, Kind::ToInt(INTS[3])),
    (1, Kind::FromInt(INTS[0])),
    (1, Kind::FromInt(INTS[1])),
    (1, Kind::FromInt(INTS[2])),
    (1, Kind::FromInt(INTS[3])),
];

fn ours<F: Format>(kind: Kind, [a, b, c]: [u64; 3], env: &mut Env) -> u64 {
    match kind {
        Kind::Add => float::add::<F>(a, b, env),
        Kind::Sub => float::sub::<F>(a, b, env),
        Kind::Mul => float::mul::<F>(a, b, env),
        Kind::Div => float::div::<F>(a, b, env),
        Kind::Sqrt => float::sqrt::<F>(a, env),
        Kind::MulAdd => float::mul_add::<F>(a, b, c, env),
        Kind::Eq => float::eq::<F>(a, b, env).into(),
        Kind::Lt => float::lt::<F>(a, b, env).into(),
        Kind::Le => float::le::<F>(a, b, env).into(),
        Kind::ToHalf => float::convert::<F, F16>(a, env),
        Kind::ToSingle => float::convert::<F, F32>(a, env),
        Kind::ToDouble => float::convert::<F, F64>(a, env),
        Kind::ToInt(int) => float::to_int::<F>(a, int, env),
        Kind::FromInt(int) => float::from_int::<F>(a, int, env),
    }
}

fn operands<F: Format>(kind: Kind, rng: &mut Rng) -> [u64; 3] {
    match kind {
        Kind::MulAdd => floats::three::<F>(rng).into(),
        Kind::FromInt(_) => [floats::integer(rng), 0, 0],
        Kind::Sqrt if rng.chance(50) => {
            let root = floats::one::<F>(rng);
            let square = float::mul::<F>(root, root, &mut Env::default());
            [floats::near::<F>(square, rng) & !F::SIGN, 0, 0]
        }
        _ => {
            let (a, b) = floats::two::<F>(rng);
            [a, b, 0]
        }
    }
}

/// The instruction of F or D that does it, if one does.
fn instruction<F: Format>(kind: Kind) -> Option<Op> {
    use Op::*;
    let [single, double] = match kind {
        Kind::Add => [FaddS, FaddD],
        Kind::Sub => [FsubS, FsubD],
        Kind::Mul => [FmulS, FmulD],
        Kind::Div => [FdivS, FdivD],
        Kind::Sqrt => [FsqrtS, FsqrtD],
        Kind::MulAdd => [FmaddS, FmaddD],
        Kind::Eq => [FeqS, FeqD],
        Kind::Lt => [FltS, FltD],
        Kind::Le => [FleS, FleD],
        Kind::ToSingle if F::BITS == 64 => return Some(FcvtSD),
        Kind::ToDouble if F::BITS == 32 => return Some(FcvtDS),
        Kind::ToHalf | Kind::ToSingle | Kind::ToDouble => return None,
        Kind::ToInt(Int::W) => [FcvtWS, FcvtWD],
        Kind::ToInt(Int::Wu) => [FcvtWuS, FcvtWuD],
        Kind::ToInt(Int::L) => [FcvtLS, FcvtLD],
        Kind::ToInt(Int::Lu) => [FcvtLuS, FcvtLuD],
        Kind::FromInt(Int::W) => [FcvtSW, FcvtDW],
        Kind::FromInt(Int::Wu) => [FcvtSWu, FcvtDWu],
        Kind::FromInt(Int::L) => [FcvtSL, FcvtDL],
        Kind::FromInt(Int::Lu) => [FcvtSLu, FcvtDLu],
    };
    match F::BITS {
        32 => Some(single),
        64 => Some(double),
        _ => None,
    }
}

/// The result and the flags of the instruction as tier 0 executes it, if there is one.
fn natively<F: Format>(kind: Kind, operands: [u64; 3], rounding: Rounding, flags: u8) -> Option<(u64, u8)> {
    let op = instruction::<F>(kind)?;
    let boxed = |bits: u64| if F::BITS == 32 { bits | 0xffff_ffff << 32 } else { bits };
    let registers = if matches!(kind, Kind::FromInt(_)) { operands } else { operands.map(boxed) };
    let rm = if op.format().has_rounding() { rounding as u8 } else { 0 };
    let (register, flags) = float_natively(op, registers, rm, flags);
    let single = op.writes_f() && (kind == Kind::ToSingle || F::BITS == 32 && kind != Kind::ToDouble);
    assert!(!single || register >> 32 == 0xffff_ffff, "{op:?} of {operands:#x?}: {register:#x} has no box");
    Some((if single { register & 0xffff_ffff } else { register }, flags))
}

/// Compares `n` operations of a format, in integers and as tier 0 executes them; in each, the five modes.
fn compare<F: Berkeley>(n: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut seen = 0u64;
    for _ in 0..n / 5 {
        let kind = rng.weighted(&KINDS);
        let operands = operands::<F>(kind, &mut rng);
        for rounding in Rounding::ALL {
            let before = if rng.chance(50) { 0 } else { rng.below(32) as u8 };
            let mut env = Env { rounding, flags: before };
            let got = ours::<F>(kind, operands, &mut env);
            let (want, flags) = c::run::<F>(kind, operands, rounding, before);
            if let Some(native) = natively::<F>(kind, operands, rounding, before) {
                assert!(
                    native == (want, flags),
                    "{kind:?} of {operands:#x?} in {} bits, {rounding:?}, flags {before:#x}: {native:#x?} in tier 0, \
                     SoftFloat says {want:#x} and {flags:#x}",
                    F::BITS
                );
            }
            if before == 0 {
                seen |= 1 << env.flags;
            }
            assert!(
                (got, env.flags) == (want, flags),
                "{kind:?} of {operands:#x?} in {} bits, {rounding:?}, flags {before:#x}: {got:#x} and {:#x}, \
                 SoftFloat says {want:#x} and {flags:#x}",
                F::BITS,
                env.flags
            );
        }
    }
    // Nothing, NX, UF and NX, OF and NX, DZ alone, NV alone: all that there is to raise was raised, and nothing else.
    assert_eq!(seen, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 16, "{seen:#x}");
    println!("{n} operations of {} bits agree with SoftFloat", F::BITS);
}

/// Its state is of its thread, so each format has one; and so has each seed of a long run.
#[test]
fn every_operation_is_softfloats_in_result_and_flags() {
    let share = operations() / 16;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..4).for_each(|seed| compare::<F64>(share, seed)));
        scope.spawn(|| (10..14).for_each(|seed| compare::<F32>(share, seed)));
        scope.spawn(|| (20..24).for_each(|seed| compare::<F64>(share, seed)));
        scope.spawn(|| {
            (30..32).for_each(|seed| compare::<F32>(share, seed));
            (40..42).for_each(|seed| compare::<F16>(share, seed));
        });
    });
}

/// All of them: 65536 operands, five modes, all that takes one.
#[test]
fn every_half_precision_number_is_converted_and_rooted_as_softfloat_does() {
    let kinds = [Kind::Sqrt, Kind::ToSingle, Kind::ToDouble];
    for kind in kinds.into_iter().chain(INTS.map(Kind::ToInt)) {
        for a in 0..=0xffff {
            for rounding in Rounding::ALL {
                let mut env = Env::new(rounding);
                let got = ours::<F16>(kind, [a, 0, 0], &mut env);
                let want = c::run::<F16>(kind, [a, 0, 0], rounding, 0);
                assert_eq!((got, env.flags), want, "{kind:?} of {a:#x}, {rounding:?}");
            }
        }
    }
}
