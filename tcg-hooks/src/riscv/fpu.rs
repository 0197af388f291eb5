//! The floating-point unit as the manual has it, on [`crate::float`]: registers, NaN boxing, `fcsr`, `mstatus.FS`.
//!
//! ```text
//!   execute:  begin (FS off: illegal; else FS is dirty) ─▶ rm, frm ─▶ unbox ─▶ float::… ─▶ box, fflags
//! ```
//!
//! The oracle executes all of F and D here, in integers ([`execute`]). Tier 0, and what emitted code leaves to Rust, take the
//! host's arithmetic where that is the same (`execute_natively`). FS becomes dirty when an instruction begins that may write a floating-point register or
//! `fflags`, also if it then writes neither.
use super::csr::mstatus;
use super::decode::Insn;
use super::opcodes::{Format, Op};
use super::trap::Trap;
use crate::cpu::CpuState;
use crate::float::{self, Env, F32, F64, Int, Rounding, native};
pub use crate::ir::{Float, boxed};

/// The arithmetic of an instruction; none of loads, stores, and what is not floating point.
pub const fn float(op: Op) -> Option<Float> {
    Some(match op {
        Op::FaddS | Op::FaddD => Float::Add,
        Op::FsubS | Op::FsubD => Float::Sub,
        Op::FmulS | Op::FmulD => Float::Mul,
        Op::FdivS | Op::FdivD => Float::Div,
        Op::FsqrtS | Op::FsqrtD => Float::Sqrt,
        Op::FmaddS | Op::FmaddD => Float::MulAdd,
        Op::FmsubS | Op::FmsubD => Float::MulSub,
        Op::FnmsubS | Op::FnmsubD => Float::NegMulSub,
        Op::FnmaddS | Op::FnmaddD => Float::NegMulAdd,
        Op::FsgnjS | Op::FsgnjD => Float::Sign,
        Op::FsgnjnS | Op::FsgnjnD => Float::SignNot,
        Op::FsgnjxS | Op::FsgnjxD => Float::SignXor,
        Op::FminS | Op::FminD => Float::Min,
        Op::FmaxS | Op::FmaxD => Float::Max,
        Op::FeqS | Op::FeqD => Float::Eq,
        Op::FltS | Op::FltD => Float::Lt,
        Op::FleS | Op::FleD => Float::Le,
        Op::FclassS | Op::FclassD => Float::Class,
        Op::FcvtSD | Op::FcvtDS => Float::Convert,
        Op::FcvtWS | Op::FcvtWD => Float::ToInt(Int::W),
        Op::FcvtWuS | Op::FcvtWuD => Float::ToInt(Int::Wu),
        Op::FcvtLS | Op::FcvtLD => Float::ToInt(Int::L),
        Op::FcvtLuS | Op::FcvtLuD => Float::ToInt(Int::Lu),
        Op::FcvtSW | Op::FcvtDW => Float::FromInt(Int::W),
        Op::FcvtSWu | Op::FcvtDWu => Float::FromInt(Int::Wu),
        Op::FcvtSL | Op::FcvtDL => Float::FromInt(Int::L),
        Op::FcvtSLu | Op::FcvtDLu => Float::FromInt(Int::Lu),
        Op::FmvXW | Op::FmvXD => Float::ToBits,
        Op::FmvWX | Op::FmvDX => Float::FromBits,
        _ => return None,
    })
}

/// Of floating-point arithmetic: is it in double precision? (A conversion is named by what it converts to.)
#[inline]
pub const fn is_double(insn: &Insn) -> bool {
    insn.imm >> 25 & 1 != 0
}

/// May the instruction change what FS stands for? Stores, moves to integer registers and `fclass` do not.
pub const fn dirties(op: Op) -> bool {
    !matches!(op.format(), Format::FStore | Format::FToXExact)
}

use crate::ir::BOX;

/// The single-precision number in a register; what is not boxed is the canonical NaN.
#[inline]
pub const fn unboxed(register: u64) -> u64 {
    if register >= BOX { register & !BOX } else { <F32 as float::Format>::NAN }
}

/// What every instruction of F and D begins with: it is illegal while the unit is off.
///
/// # Errors
/// An illegal instruction, with its bits as `tval`.
pub fn begin(cpu: &mut CpuState, insn: &Insn) -> Result<(), Trap> {
    if cpu.csr.mstatus & mstatus::FS == 0 {
        return Err(Trap::illegal(insn.bits()));
    }
    if dirties(insn.op) {
        cpu.csr.mstatus |= mstatus::FS | mstatus::SD;
    }
    Ok(())
}

/// Executes one instruction that is no load or store, up to but without the retirement.
///
/// # Errors
/// An illegal instruction: the unit is off, there is no such rounding mode, or it is none of F and D.
pub fn execute(cpu: &mut CpuState, insn: &Insn) -> Result<(), Trap> {
    execute_with::<false>(cpu, insn)
}

/// As [`execute`], quicker, and with the same results: by the host where it rounds alike.
pub(crate) fn execute_natively(cpu: &mut CpuState, insn: &Insn) -> Result<(), Trap> {
    execute_with::<true>(cpu, insn)
}

fn execute_with<const NATIVE: bool>(cpu: &mut CpuState, insn: &Insn) -> Result<(), Trap> {
    begin(cpu, insn)?;
    let illegal = || Trap::illegal(insn.bits());
    let what = float(insn.op).ok_or_else(illegal)?;
    let rounding = if insn.op.format().has_rounding() {
        let rm = insn.rm();
        Rounding::from_bits(if rm == 7 { cpu.csr.frm } else { rm }).ok_or_else(illegal)?
    } else {
        Rounding::default()
    };
    // Operations only add flags; which are set already makes some quicker.
    let mut env = Env { rounding, flags: cpu.csr.fflags };
    let value = if is_double(insn) {
        run::<F64, NATIVE>(cpu, insn, what, &mut env)
    } else {
        run::<F32, NATIVE>(cpu, insn, what, &mut env)
    };
    cpu.csr.fflags = env.flags;
    let rd = usize::from(insn.rd & 31);
    if insn.op.writes_f() {
        cpu.f[rd] = value;
    } else if rd != 0 {
        cpu.x[rd] = value;
    }
    Ok(())
}

/// A precision, as the registers hold it.
trait Register: native::Native {
    /// The number in a register.
    fn get(register: u64) -> u64;
    /// The register for a number.
    fn put(bits: u64) -> u64;
    /// From the number in a register of the other precision.
    fn from_other(register: u64, env: &mut Env) -> u64;
    /// The same by the host, if it does it alike.
    fn from_other_natively(register: u64, env: &mut Env) -> Option<u64>;
}

impl Register for F32 {
    fn get(register: u64) -> u64 {
        unboxed(register)
    }

    fn put(bits: u64) -> u64 {
        boxed(bits)
    }

    fn from_other(register: u64, env: &mut Env) -> u64 {
        float::convert::<F64, F32>(register, env)
    }

    fn from_other_natively(register: u64, env: &mut Env) -> Option<u64> {
        native::narrow(register, env)
    }
}

impl Register for F64 {
    fn get(register: u64) -> u64 {
        register
    }

    fn put(bits: u64) -> u64 {
        bits
    }

    fn from_other(register: u64, env: &mut Env) -> u64 {
        float::convert::<F32, F64>(unboxed(register), env)
    }

    fn from_other_natively(register: u64, _: &mut Env) -> Option<u64> {
        native::widen(unboxed(register))
    }
}

/// What the instruction writes to its destination.
fn run<F: Register, const NATIVE: bool>(cpu: &CpuState, insn: &Insn, what: Float, env: &mut Env) -> u64 {
    let register = |n: u8| cpu.f[usize::from(n & 31)];
    let (raw, x) = (register(insn.rs1), cpu.x[usize::from(insn.rs1 & 31)]);
    let (a, b, c) = (F::get(raw), F::get(register(insn.rs2)), F::get(register(insn.rs3())));
    if NATIVE {
        let number = match what {
            Float::Add => native::add::<F>(a, b, env),
            Float::Sub => native::add::<F>(a, b ^ F::SIGN, env),
            Float::Mul => native::mul::<F>(a, b, env),
            Float::Div => native::div::<F>(a, b, env),
            Float::Sqrt => native::sqrt::<F>(a, env),
            Float::MulAdd => native::mul_add::<F>(a, b, c, env),
            Float::MulSub => native::mul_add::<F>(a, b, c ^ F::SIGN, env),
            Float::NegMulSub => native::mul_add::<F>(a ^ F::SIGN, b, c, env),
            Float::NegMulAdd => native::mul_add::<F>(a ^ F::SIGN, b, c ^ F::SIGN, env),
            Float::Convert => F::from_other_natively(raw, env),
            Float::FromInt(int) => native::from_int::<F>(x, int, env),
            Float::ToInt(int) => {
                if let Some(value) = native::to_int::<F>(a, int, env) {
                    return value;
                }
                None
            }
            _ => None,
        };
        if let Some(bits) = number {
            return F::put(bits);
        }
    }
    let number = match what {
        Float::Add => float::add::<F>(a, b, env),
        Float::Sub => float::sub::<F>(a, b, env),
        Float::Mul => float::mul::<F>(a, b, env),
        Float::Div => float::div::<F>(a, b, env),
        Float::Sqrt => float::sqrt::<F>(a, env),
        Float::MulAdd => float::mul_add::<F>(a, b, c, env),
        Float::MulSub => float::mul_add::<F>(a, b, c ^ F::SIGN, env),
        Float::NegMulSub => float::mul_add::<F>(a ^ F::SIGN, b, c, env),
        Float::NegMulAdd => float::mul_add::<F>(a ^ F::SIGN, b, c ^ F::SIGN, env),
        Float::Sign => a & !F::SIGN | b & F::SIGN,
        Float::SignNot => a & !F::SIGN | !b & F::SIGN,
        Float::SignXor => a ^ b & F::SIGN,
        Float::Min => float::min::<F>(a, b, env),
        Float::Max => float::max::<F>(a, b, env),
        Float::Convert => F::from_other(raw, env),
        Float::FromInt(int) => float::from_int::<F>(x, int, env),
        Float::FromBits => x & F::MASK,
        Float::Eq => return float::eq::<F>(a, b, env).into(),
        Float::Lt => return float::lt::<F>(a, b, env).into(),
        Float::Le => return float::le::<F>(a, b, env).into(),
        Float::Class => return float::class::<F>(a),
        Float::ToInt(int) => return float::to_int::<F>(a, int, env),
        // The bits as they are, boxed or not; 32 of them are sign-extended.
        Float::ToBits if F::BITS == 32 => return raw as i32 as u64,
        Float::ToBits => return raw,
    };
    F::put(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::flag;
    use crate::riscv::decode;
    use crate::riscv::opcodes::PATTERNS;

    fn cpu() -> CpuState {
        let mut cpu = CpuState::new(0, 0x8000_0000);
        cpu.csr.mstatus |= mstatus::FS_INITIAL;
        cpu
    }

    #[test]
    fn every_instruction_of_the_table_is_known_here() {
        for p in PATTERNS {
            assert_eq!(float(p.op).is_some(), p.format.is_float(), "{:?}", p.op);
            if p.format.is_float() {
                let suffix = p.op.mnemonic().split('.').find(|part| ["s", "d", "w", "x"].contains(part));
                let double = is_double(&decode(p.value));
                let names_double = p.op.mnemonic().contains(".d") && p.op != Op::FcvtSD;
                assert_eq!(double, names_double, "{:?} {suffix:?}", p.op);
            }
        }
    }

    #[test]
    fn what_is_not_boxed_is_a_nan_but_for_a_move_of_bits() {
        let mut c = cpu();
        c.f[1] = 0x3f80_0000;
        c.f[2] = boxed(0x3f80_0000);
        // fadd.s f3, f1, f2; fmv.x.w a0, f1; fsgnj.s f4, f1, f1; fcvt.d.s f5, f1; fclass.s a1, f1
        for bits in [0x0020_f1d3, 0xe000_8553, 0x2010_8253, 0x4200_82d3, 0xe000_95d3] {
            assert_eq!(execute(&mut c, &decode(bits)), Ok(()), "{bits:#x}");
        }
        assert_eq!(c.f[3], boxed(0x7fc0_0000));
        assert_eq!(c.x[10], 0x3f80_0000);
        assert_eq!(c.f[4], boxed(0x7fc0_0000));
        assert_eq!(c.f[5], 0x7ff8_0000_0000_0000);
        assert_eq!(c.x[11], 1 << 9);
        assert_eq!(c.csr.fflags, 0, "a quiet NaN is not invalid");
    }

    #[test]
    fn the_unit_is_illegal_while_off_and_dirty_once_used() {
        let add = decode(0x0220_f1d3);
        let mut c = CpuState::new(0, 0x8000_0000);
        assert_eq!(execute(&mut c, &add), Err(Trap::illegal(0x0220_f1d3)));
        let mut c = cpu();
        // fmv.x.d a0, f1
        assert_eq!(execute(&mut c, &decode(0xe200_8553)), Ok(()));
        assert_eq!(c.csr.mstatus & (mstatus::FS | mstatus::SD), mstatus::FS_INITIAL);
        assert_eq!(execute(&mut c, &add), Ok(()));
        assert_eq!(c.csr.mstatus & (mstatus::FS | mstatus::SD), mstatus::FS | mstatus::SD);
    }

    #[test]
    fn the_mode_is_the_instructions_own_or_that_of_frm() {
        // fdiv.d f3, f1, f2 with rm 7, 2, 3.
        let mut c = cpu();
        (c.f[1], c.f[2]) = (1f64.to_bits(), 3f64.to_bits());
        let third = 0x3fd5_5555_5555_5555;
        for (frm, bits, want) in [(0, 0x1a20_f1d3, third), (3, 0x1a20_f1d3, third + 1), (3, 0x1a20_a1d3, third)] {
            c.csr.frm = frm;
            assert_eq!(execute(&mut c, &decode(bits)), Ok(()));
            assert_eq!(c.f[3], want);
        }
        assert_eq!(c.csr.fflags, flag::NX);
        c.csr.frm = 5;
        assert_eq!(execute(&mut c, &decode(0x1a20_f1d3)), Err(Trap::illegal(0x1a20_f1d3)));
        assert_eq!(execute(&mut c, &decode(0x1a20_b1d3)), Ok(()), "its own mode is no concern of frm");
    }
}
