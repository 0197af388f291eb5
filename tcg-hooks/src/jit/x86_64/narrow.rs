//! Arithmetic of which 32 bits count: no result is extended. The destination is a host register.
use super::Emitter;
use super::alu::with;
use super::off;
use super::regs::{RAX, RCX};
use crate::ir::{Alu, Ir};
use dynasmrt::dynasm;

impl Emitter {
    pub(super) fn narrow(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        match (op, self.map.host(rd), self.map.host(a), self.map.host(b)) {
            (Alu::AddW, Some(d), Some(x), Some(y)) if d != x && d != y => {
                dynasm!(self.ops; .arch x64; lea Rd(d), [Rq(x) + Rq(y)]);
            }
            (Alu::AddW | Alu::SubW | Alu::MulW | Alu::And | Alu::Or | Alu::Xor, Some(d), _, y) => {
                let (a, b) = if op != Alu::SubW && y == Some(d) { (b, a) } else { (a, b) };
                let clash = self.map.host(b) == Some(d) && self.map.host(a) != Some(d);
                let work = if clash { RAX } else { d };
                if self.map.host(a) != Some(work) {
                    with!(self, mov, Rd, work, a);
                }
                match op {
                    Alu::AddW => with!(self, add, Rd, work, b),
                    Alu::SubW => with!(self, sub, Rd, work, b),
                    Alu::MulW => with!(self, imul, Rd, work, b),
                    Alu::And => with!(self, and, Rd, work, b),
                    Alu::Or => with!(self, or, Rd, work, b),
                    _ => with!(self, xor, Rd, work, b),
                }
                if clash {
                    dynasm!(self.ops; .arch x64; mov Rd(d), eax);
                }
            }
            (Alu::SllW | Alu::SrlW | Alu::SraW, Some(d), ..) if self.bmi2 => {
                let x = self.source(a, RAX);
                let n = self.source(b, RCX);
                match op {
                    Alu::SllW => dynasm!(self.ops; .arch x64; shlx Rd(d), Rd(x), Rd(n)),
                    Alu::SrlW => dynasm!(self.ops; .arch x64; shrx Rd(d), Rd(x), Rd(n)),
                    _ => dynasm!(self.ops; .arch x64; sarx Rd(d), Rd(x), Rd(n)),
                }
            }
            _ => self.alu(op, rd, a, b),
        }
    }

    pub(super) fn narrow_imm(&mut self, op: Alu, ir: &Ir) {
        let (rd, a, imm) = (ir.rd, ir.a, ir.imm as i32);
        let Some(d) = self.map.host(rd) else { return self.alu_imm(op, rd, a, ir.imm) };
        match (op, self.map.host(a)) {
            (Alu::AddW, Some(x)) if x != d => dynasm!(self.ops; .arch x64; lea Rd(d), [Rq(x) + imm]),
            (Alu::AddW | Alu::And | Alu::Or | Alu::Xor | Alu::SllW | Alu::SrlW | Alu::SraW, x) => {
                if x != Some(d) {
                    with!(self, mov, Rd, d, a);
                }
                let n = (imm & 31) as i8;
                macro_rules! short {
                    ($op:ident) => {
                        match i8::try_from(imm) {
                            Ok(imm) => dynasm!(self.ops; .arch x64; $op Rd(d), BYTE imm),
                            Err(_) => dynasm!(self.ops; .arch x64; $op Rd(d), DWORD imm),
                        }
                    };
                }
                match op {
                    Alu::AddW => short!(add),
                    Alu::And => short!(and),
                    Alu::Or => short!(or),
                    Alu::Xor => short!(xor),
                    Alu::SllW => dynasm!(self.ops; .arch x64; shl Rd(d), n),
                    Alu::SrlW => dynasm!(self.ops; .arch x64; shr Rd(d), n),
                    _ => dynasm!(self.ops; .arch x64; sar Rd(d), n),
                }
            }
            _ => self.alu_imm(op, rd, a, ir.imm),
        }
    }

    pub(super) fn narrow_rotate(&mut self, ir: &Ir) {
        let d = self.target(ir.rd, RAX);
        let n = (ir.imm & 31) as i8;
        if self.bmi2 {
            let x = self.source(ir.a, RAX);
            dynasm!(self.ops; .arch x64; rorx Rd(d), Rd(x), n);
        } else {
            if self.map.host(ir.a) != Some(d) {
                with!(self, mov, Rd, d, ir.a);
            }
            dynasm!(self.ops; .arch x64; ror Rd(d), n);
        }
    }
}
