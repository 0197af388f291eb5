//! Floating point on the host's scalar unit, registers in memory.
//!
//! ```text
//!   cmp frm, 0 ; jne cold        cmp dword [fa1 + 4], -1 ; jne cold (singles)
//!   movsd xmm0, [fa1] ; addsd xmm0, [fa2] ; ucomisd xmm0, xmm0 ; jp NaN ; movsd [fa0], xmm0
//!   cold: the site: Rust does the whole instruction ; jmp back         NaN: the canonical one ; jmp back
//! ```
//!
//! The host rounds to nearest even all the time; what is to be rounded otherwise goes to Rust, where it is done in
//! integers. Its sticky flags are the guest's while emitted code runs: an instruction that is left to Rust halfway must
//! have raised nothing that the guest's would not. Both detect tininess after rounding, and a comparison or an operation
//! raises `invalid` for the same operands, but where noted below.
use super::asm::{Flag, Hole};
use super::offsets::{ROUNDING, UNIT_DIRTY, UNIT_ON, float_off};
use super::regs::{RAX, RCX};
use super::{Cold as AnyCold, Emitter};
use crate::float::{F32, F64, Format, Int};
use crate::ir::{FIRST_FLOAT, Float, FloatArgs, Ir, boxed};
use crate::tier2::HOST;
use dynasmrt::dynasm;

/// The most reasons that an instruction has to go to Rust: `frm`, three boxes, the result.
const REASONS: usize = 5;

/// What is behind the TB for one instruction.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cold {
    /// Rust does all of it.
    Site { from: [Option<Hole>; REASONS], site: u16, back: u32 },
    /// The result is the canonical NaN.
    Nan { from: Hole, rd: u8, double: bool, back: u32 },
    /// Equal numbers of which the lesser (or greater) is wanted: two zeros may differ in sign.
    Zeros { from: Hole, rd: u8, a: u8, b: u8, lesser: bool, back: u32 },
}

/// The conditional jumps of one instruction to its site.
#[derive(Default)]
struct Reasons([Option<Hole>; REASONS]);

impl Reasons {
    fn add(&mut self, hole: Hole) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(hole);
        }
    }
}

/// An instruction in either precision.
macro_rules! either {
    ($self:ident, $double:expr, $d:ident, $s:ident, $($operands:tt)*) => {
        if $double {
            dynasm!($self.ops; .arch x64; $d $($operands)*)
        } else {
            dynasm!($self.ops; .arch x64; $s $($operands)*)
        }
    };
}

impl Emitter {
    /// The unit is on, and dirty if that is asked for.
    pub(super) fn float_on(&mut self, ir: &Ir) {
        let (at, bits) = if ir.imm == 2 { UNIT_DIRTY } else { UNIT_ON };
        dynasm!(self.ops; .arch x64; test BYTE [rbp + at], BYTE bits);
        let mut reasons = Reasons::default();
        reasons.add(self.ops.jump_if(Flag::Equal));
        self.float_behind(reasons, ir.site);
    }

    /// Rust does the instruction of the site instead of what was emitted since the reasons' jumps, up to here.
    fn float_behind(&mut self, reasons: Reasons, site: u16) {
        if reasons.0[0].is_some() {
            let back = self.here();
            self.cold.push(AnyCold::Float(Cold::Site { from: reasons.0, site, back }));
        }
    }

    pub(super) fn float_cold(&mut self, cold: Cold) {
        let back = match cold {
            Cold::Site { from, site, back } => {
                from.into_iter().flatten().for_each(|hole| self.ops.close(hole));
                self.execute_site(site);
                back
            }
            Cold::Nan { from, rd, double, back } => {
                self.ops.close(from);
                let nan = if double { F64::NAN } else { boxed(F32::NAN) };
                dynasm!(self.ops; .arch x64; mov rax, QWORD nan as i64; mov [rbp + float_off(rd)], rax);
                back
            }
            Cold::Zeros { from, rd, a, b, lesser, back } => {
                self.ops.close(from);
                dynasm!(self.ops; .arch x64; mov rax, [rbp + float_off(a)]);
                if lesser {
                    dynasm!(self.ops; .arch x64; or rax, [rbp + float_off(b)]);
                } else {
                    dynasm!(self.ops; .arch x64; and rax, [rbp + float_off(b)]);
                }
                dynasm!(self.ops; .arch x64; mov [rbp + float_off(rd)], rax);
                back
            }
        };
        self.ops.jump_to(back);
    }

    pub(super) fn float(&mut self, ir: &Ir, what: Float) {
        let args = FloatArgs::unpack(ir.imm);
        let fused = matches!(what, Float::MulAdd | Float::MulSub | Float::NegMulSub | Float::NegMulAdd);
        if fused && !self.fma {
            return self.execute_site(ir.site);
        }
        let mut reasons = Reasons::default();
        if args.dynamic {
            dynasm!(self.ops; .arch x64; cmp BYTE [rbp + ROUNDING], BYTE 0);
            reasons.add(self.ops.jump_if(Flag::NotEqual));
        }
        let narrow = if what == Float::Convert { args.double } else { !args.double };
        let operands = match what {
            _ if !narrow => 0,
            Float::ToBits | Float::FromBits | Float::FromInt(_) => 0,
            Float::Sqrt | Float::ToInt(_) | Float::Convert => 1,
            _ if fused => 3,
            _ => 2,
        };
        let registers = [ir.a, ir.b, args.third];
        for n in 0..operands {
            // The same register once.
            let checked = registers[..n].iter().any(|earlier| earlier & 31 == registers[n] & 31);
            if !args.boxes[n] && !checked {
                dynasm!(self.ops; .arch x64; cmp DWORD [rbp + (float_off(registers[n]) + 4)], BYTE -1);
                reasons.add(self.ops.jump_if(Flag::NotEqual));
            }
        }
        match what {
            Float::Add | Float::Sub | Float::Mul | Float::Div | Float::Sqrt | Float::Convert => {
                self.arithmetic(ir, what, &args);
            }
            Float::MulAdd | Float::MulSub | Float::NegMulSub | Float::NegMulAdd => {
                self.fused(ir, what, &args, &mut reasons);
            }
            Float::Sign | Float::SignNot | Float::SignXor => self.sign(ir, what, &args),
            Float::Min | Float::Max => self.extreme(ir, what == Float::Min, &args, &mut reasons),
            Float::Eq | Float::Lt | Float::Le => self.compare(ir, what, &args),
            Float::ToInt(int) => self.convert_to_int(ir, int, &args, &mut reasons),
            Float::FromInt(int) => self.convert_from_int(ir, int, &args, &mut reasons),
            Float::ToBits => {
                let d = self.target(ir.rd, RAX);
                if args.double {
                    dynasm!(self.ops; .arch x64; mov Rq(d), [rbp + float_off(ir.a)]);
                } else {
                    dynasm!(self.ops; .arch x64; movsxd Rq(d), DWORD [rbp + float_off(ir.a)]);
                }
                self.done_unless_zero(ir.rd, d);
            }
            Float::FromBits => {
                let x = self.source(ir.a, RAX);
                self.store_bits(ir.rd, x, &args);
            }
            // The translator leaves it to Rust.
            Float::Class => self.execute_site(ir.site),
        }
        self.float_behind(reasons, ir.site);
    }

    /// A result in an integer register; `x0` has no place.
    fn done_unless_zero(&mut self, rd: u8, host: u8) {
        if rd != 0 {
            self.done(rd, host);
        }
    }

    /// What is in xmm0 is the result.
    fn store_float(&mut self, rd: u8, args: &FloatArgs) {
        if args.double {
            dynasm!(self.ops; .arch x64; movsd [rbp + float_off(rd)], xmm0);
        } else {
            dynasm!(self.ops; .arch x64; movss [rbp + float_off(rd)], xmm0);
            self.box_upper(rd, args);
        }
    }

    /// The same of an integer register.
    fn store_bits(&mut self, rd: u8, host: u8, args: &FloatArgs) {
        if args.double {
            dynasm!(self.ops; .arch x64; mov [rbp + float_off(rd)], Rq(host));
        } else {
            dynasm!(self.ops; .arch x64; mov [rbp + float_off(rd)], Rd(host));
            self.box_upper(rd, args);
        }
    }

    fn box_upper(&mut self, rd: u8, args: &FloatArgs) {
        if !args.boxed {
            dynasm!(self.ops; .arch x64; mov DWORD [rbp + (float_off(rd) + 4)], -1);
        }
    }

    /// The result of an operation is in xmm0, and may be a NaN.
    fn result(&mut self, rd: u8, args: &FloatArgs) {
        either!(self, args.double, ucomisd, ucomiss, xmm0, xmm0);
        let from = self.ops.jump_if(Flag::Parity);
        self.store_float(rd, args);
        let back = self.here();
        self.cold.push(AnyCold::Float(Cold::Nan { from, rd, double: args.double, back }));
    }

    fn arithmetic(&mut self, ir: &Ir, what: Float, args: &FloatArgs) {
        let (a, b) = (float_off(ir.a), float_off(ir.b));
        match what {
            Float::Sqrt => {
                either!(self, args.double, movsd, movss, xmm0, [rbp + a]);
                either!(self, args.double, sqrtsd, sqrtss, xmm0, xmm0);
            }
            Float::Convert if args.double => {
                dynasm!(self.ops; .arch x64; movss xmm0, [rbp + a]; cvtss2sd xmm0, xmm0);
            }
            Float::Convert => dynasm!(self.ops; .arch x64; movsd xmm0, [rbp + a]; cvtsd2ss xmm0, xmm0),
            _ => {
                either!(self, args.double, movsd, movss, xmm0, [rbp + a]);
                match what {
                    Float::Add => either!(self, args.double, addsd, addss, xmm0, [rbp + b]),
                    Float::Sub => either!(self, args.double, subsd, subss, xmm0, [rbp + b]),
                    Float::Mul => either!(self, args.double, mulsd, mulss, xmm0, [rbp + b]),
                    _ => either!(self, args.double, divsd, divss, xmm0, [rbp + b]),
                }
            }
        }
        self.result(ir.rd, args);
    }

    /// A NaN goes to Rust: of infinity times zero plus a quiet NaN the host does not say that it is invalid.
    fn fused(&mut self, ir: &Ir, what: Float, args: &FloatArgs, reasons: &mut Reasons) {
        let (a, b, c) = (float_off(ir.a), float_off(ir.b), float_off(args.third));
        either!(self, args.double, movsd, movss, xmm0, [rbp + a]);
        either!(self, args.double, movsd, movss, xmm1, [rbp + b]);
        match what {
            Float::MulAdd => either!(self, args.double, vfmadd213sd, vfmadd213ss, xmm0, xmm1, [rbp + c]),
            Float::MulSub => either!(self, args.double, vfmsub213sd, vfmsub213ss, xmm0, xmm1, [rbp + c]),
            Float::NegMulSub => either!(self, args.double, vfnmadd213sd, vfnmadd213ss, xmm0, xmm1, [rbp + c]),
            _ => either!(self, args.double, vfnmsub213sd, vfnmsub213ss, xmm0, xmm1, [rbp + c]),
        }
        either!(self, args.double, ucomisd, ucomiss, xmm0, xmm0);
        reasons.add(self.ops.jump_if(Flag::Parity));
        self.store_float(ir.rd, args);
    }

    fn sign(&mut self, ir: &Ir, what: Float, args: &FloatArgs) {
        // As wide as it was stored a moment ago, or the load waits.
        if args.double {
            dynasm!(self.ops; .arch x64; mov rax, [rbp + float_off(ir.a)]);
        } else {
            dynasm!(self.ops; .arch x64; mov eax, [rbp + float_off(ir.a)]);
        }
        let top = if args.double { 63 } else { 31 };
        if ir.a == ir.b {
            match what {
                Float::Sign => {}
                Float::SignNot => dynasm!(self.ops; .arch x64; btc rax, BYTE top),
                _ => dynasm!(self.ops; .arch x64; btr rax, BYTE top),
            }
        } else {
            // The sign of b, or its opposite, alone in rcx.
            if args.double {
                dynasm!(self.ops; .arch x64; mov rcx, [rbp + float_off(ir.b)]);
            } else {
                dynasm!(self.ops; .arch x64; mov ecx, [rbp + float_off(ir.b)]);
            }
            if what == Float::SignNot {
                dynasm!(self.ops; .arch x64; not rcx);
            }
            either!(self, args.double, shr, shr, rcx, BYTE top);
            if !args.double {
                dynasm!(self.ops; .arch x64; and ecx, BYTE 1);
            }
            dynasm!(self.ops; .arch x64; shl rcx, BYTE top);
            if what != Float::SignXor {
                dynasm!(self.ops; .arch x64; btr rax, BYTE top);
            }
            dynasm!(self.ops; .arch x64; xor rax, rcx);
        }
        self.store_bits(ir.rd, RAX, args);
    }

    /// A NaN, of which the host says that it is invalid though it is quiet, and of which it takes the second operand,
    /// goes to Rust before.
    fn extreme(&mut self, ir: &Ir, lesser: bool, args: &FloatArgs, reasons: &mut Reasons) {
        let (a, b) = (float_off(ir.a), float_off(ir.b));
        either!(self, args.double, movsd, movss, xmm0, [rbp + a]);
        either!(self, args.double, ucomisd, ucomiss, xmm0, [rbp + b]);
        reasons.add(self.ops.jump_if(Flag::Parity));
        let from = self.ops.jump_if(Flag::Equal);
        if lesser {
            either!(self, args.double, minsd, minss, xmm0, [rbp + b]);
        } else {
            either!(self, args.double, maxsd, maxss, xmm0, [rbp + b]);
        }
        self.store_float(ir.rd, args);
        let back = self.here();
        self.cold.push(AnyCold::Float(Cold::Zeros { from, rd: ir.rd, a: ir.a, b: ir.b, lesser, back }));
    }

    fn compare(&mut self, ir: &Ir, what: Float, args: &FloatArgs) {
        // Of a less than b the flags of b and a tell more: a NaN looks like less.
        let (first, second) = if what == Float::Eq { (ir.a, ir.b) } else { (ir.b, ir.a) };
        either!(self, args.double, movsd, movss, xmm0, [rbp + float_off(first)]);
        match what {
            Float::Eq => {
                either!(self, args.double, ucomisd, ucomiss, xmm0, [rbp + float_off(second)]);
                dynasm!(self.ops; .arch x64; setnp al; sete cl; and al, cl);
            }
            Float::Lt => {
                either!(self, args.double, comisd, comiss, xmm0, [rbp + float_off(second)]);
                dynasm!(self.ops; .arch x64; seta al);
            }
            _ => {
                either!(self, args.double, comisd, comiss, xmm0, [rbp + float_off(second)]);
                dynasm!(self.ops; .arch x64; setae al);
            }
        }
        if ir.rd != 0 {
            let d = self.target(ir.rd, RAX);
            dynasm!(self.ops; .arch x64; movzx Rd(d), al);
            self.done(ir.rd, d);
        }
    }

    /// What does not fit a signed integer comes out as the least one and is invalid on both; Rust says what it is. An
    /// unsigned one is looked at before, as the host might convert it, and note that it is inexact.
    fn convert_to_int(&mut self, ir: &Ir, int: Int, args: &FloatArgs, reasons: &mut Reasons) {
        let a = float_off(ir.a);
        macro_rules! convert {
            ($reg:ident) => {
                match (args.double, args.truncate) {
                    (true, true) => dynasm!(self.ops; .arch x64; cvttsd2si $reg, [rbp + a]),
                    (true, false) => dynasm!(self.ops; .arch x64; cvtsd2si $reg, [rbp + a]),
                    (false, true) => dynasm!(self.ops; .arch x64; cvttss2si $reg, [rbp + a]),
                    (false, false) => dynasm!(self.ops; .arch x64; cvtss2si $reg, [rbp + a]),
                }
            };
        }
        match int {
            Int::W => {
                convert!(eax);
                dynasm!(self.ops; .arch x64; cmp eax, DWORD i32::MIN);
                reasons.add(self.ops.jump_if(Flag::Equal));
            }
            Int::L => {
                convert!(rax);
                dynasm!(self.ops; .arch x64; mov rcx, QWORD i64::MIN; cmp rax, rcx);
                reasons.add(self.ops.jump_if(Flag::Equal));
            }
            Int::Wu | Int::Lu => {
                // Positive numbers below 2^32 - 1, which none is rounded above; below 2^63.
                let limit = match (int, args.double) {
                    (Int::Wu, true) => 4_294_967_295f64.to_bits(),
                    (Int::Wu, false) => 4_294_967_296f32.to_bits().into(),
                    (_, true) => 9_223_372_036_854_775_808f64.to_bits(),
                    (_, false) => 9_223_372_036_854_775_808f32.to_bits().into(),
                };
                if args.double {
                    dynasm!(self.ops; .arch x64
                        ; mov rax, [rbp + a]
                        ; mov rcx, QWORD limit as i64
                        ; cmp rax, rcx);
                } else {
                    dynasm!(self.ops; .arch x64; cmp DWORD [rbp + a], DWORD limit as i32);
                }
                reasons.add(self.ops.jump_if(Flag::NotBelow));
                convert!(rax);
            }
        }
        if ir.rd == 0 {
            return;
        }
        let d = self.target(ir.rd, RAX);
        match int {
            Int::W | Int::Wu => dynasm!(self.ops; .arch x64; movsxd Rq(d), eax),
            _ if d != RAX => dynasm!(self.ops; .arch x64; mov Rq(d), rax),
            _ => {}
        }
        self.done(ir.rd, d);
    }

    /// The host knows signed integers only; of an unsigned one with its top bit set Rust takes care.
    fn convert_from_int(&mut self, ir: &Ir, int: Int, args: &FloatArgs, reasons: &mut Reasons) {
        debug_assert!(!(FIRST_FLOAT..HOST).contains(&ir.a), "an integer register");
        let x = self.source(ir.a, RAX);
        // It would wait for what xmm0 held before.
        dynasm!(self.ops; .arch x64; xorps xmm0, xmm0);
        match int {
            Int::W => either!(self, args.double, cvtsi2sd, cvtsi2ss, xmm0, Rd(x)),
            Int::Wu => {
                dynasm!(self.ops; .arch x64; mov ecx, Rd(x));
                either!(self, args.double, cvtsi2sd, cvtsi2ss, xmm0, rcx);
            }
            Int::L => either!(self, args.double, cvtsi2sd, cvtsi2ss, xmm0, Rq(x)),
            Int::Lu => {
                dynasm!(self.ops; .arch x64; test Rq(x), Rq(x));
                reasons.add(self.ops.jump_if(Flag::Sign));
                either!(self, args.double, cvtsi2sd, cvtsi2ss, xmm0, Rq(x));
            }
        }
        self.store_float(ir.rd, args);
    }
}

const _: () = assert!(RCX == 1, "it is named above");
