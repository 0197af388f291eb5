//! Floating point to IR: what the host's unit does as the guest's would, and the rest as sites.
//!
//! ```text
//!   fadd.d fa0, fa1, fa2       fpu on and dirty #7 ; fa0 = Add.d fa1, fa2 #8
//!                              └ once a block         └ to nearest even, and no NaN: else Rust does it all
//! ```
use super::{Lower, push_site};
use crate::float::Int;
use crate::ir::{Does, FIRST_FLOAT, FloatArgs, Ir, Kind, MemOp, Region};
use crate::riscv::fpu::{self, Float};
use crate::riscv::{Format, Insn};

/// What a block knows of the unit.
#[derive(Default)]
pub(crate) struct Unit {
    /// 1: it is on; 2: it is dirty, too.
    state: u8,
    /// Registers that hold a single-precision number in its box, a bit each.
    boxed: u32,
}

impl Unit {
    /// Anything may have happened to `mstatus`.
    pub(crate) fn forget_state(&mut self) {
        self.state = 0;
    }

    fn has_box(&self, f: u8) -> bool {
        self.boxed >> (f & 31) & 1 != 0
    }

    fn wrote(&mut self, f: u8, single: bool) {
        let bit = 1 << (f & 31);
        self.boxed = if single { self.boxed | bit } else { self.boxed & !bit };
    }
}

/// Does the host round as this instruction says, or, where that is what `frm` says, as it does most of the time?
fn rounds_alike(what: Float, insn: &Insn) -> bool {
    if !insn.op.format().has_rounding() {
        return true;
    }
    let exact = match what {
        Float::FromInt(Int::W | Int::Wu) | Float::Convert => fpu::is_double(insn),
        _ => false,
    };
    match insn.rm() {
        0 | 7 => true,
        1 => exact || matches!(what, Float::ToInt(_)),
        _ => exact,
    }
}

impl Lower {
    /// A floating-point instruction, number `count` of its block.
    pub(crate) fn float(&mut self, region: &mut Region, pc: u64, insn: Insn, count: u16) {
        let needed = if fpu::dirties(insn.op) { 2 } else { 1 };
        let (f, imm) = (|register: u8| FIRST_FLOAT + register, i64::from(insn.imm));
        let what = fpu::float(insn.op).filter(|what| *what != Float::Class && rounds_alike(*what, &insn));
        let format = insn.op.format();
        if what.is_none() && format.is_float() {
            let site = push_site(region, pc, insn, count, Does::Execute);
            let rd = if insn.op.writes_f() { 0 } else { insn.rd };
            self.push(region, Ir { kind: Kind::Rust, rd, a: 0, b: 0, site, imm });
            if insn.op.writes_f() {
                self.unit.wrote(insn.rd, !fpu::is_double(&insn));
            }
            return;
        }
        if self.unit.state < needed {
            let site = push_site(region, pc, insn, count, Does::Begin);
            self.push(region, Ir { kind: Kind::FloatOn, rd: 0, a: 0, b: 0, site, imm: needed.into() });
            self.unit.state = needed;
        }
        let site = push_site(region, pc, insn, count, Does::Execute);
        let size = MemOp(insn.op.mem_bytes().trailing_zeros() as u8 & 3);
        match (format, what) {
            (Format::FLoad, _) => {
                let (rd, single) = (f(insn.rd), size.bytes() == 4);
                self.push(region, Ir { kind: Kind::Load(size), rd, a: insn.rs1, b: 0, site, imm });
                if single {
                    self.push(region, Ir { kind: Kind::Box, rd, a: 0, b: 0, site, imm: 0 });
                }
                self.unit.wrote(insn.rd, single);
            }
            (Format::FStore, _) => {
                self.push(region, Ir { kind: Kind::Store(size), rd: 0, a: insn.rs1, b: f(insn.rs2), site, imm });
            }
            (_, Some(what)) => {
                let double = fpu::is_double(&insn);
                let from_x = matches!(what, Float::FromInt(_) | Float::FromBits);
                let boxes = [insn.rs1, insn.rs2, insn.rs3()].map(|register| self.unit.has_box(register));
                let args = FloatArgs {
                    double,
                    dynamic: format.has_rounding() && insn.rm() == 7,
                    truncate: insn.rm() == 1,
                    boxes: boxes.map(|known| known || from_x),
                    boxed: self.unit.has_box(insn.rd),
                    third: insn.rs3(),
                };
                let rd = if insn.op.writes_f() { f(insn.rd) } else { insn.rd };
                let a = if from_x { insn.rs1 } else { f(insn.rs1) };
                self.push(region, Ir { kind: Kind::Float(what), rd, a, b: f(insn.rs2), site, imm: args.pack() });
                if insn.op.writes_f() {
                    self.unit.wrote(insn.rd, !double);
                }
            }
            _ => {}
        }
    }
}
