//! Arithmetic. Each emitter reads all its operands before it writes the destination, which may be one of them.
use super::regs::{RAX, RCX, RDX};
use super::{Emitter, off};
use crate::ir::Alu;
use dynasmrt::dynasm;

/// `op reg, guest`, 64 or 32 bits, the guest register from where it lives.
macro_rules! with {
    ($s:ident, $op:ident, $size:ident, $d:expr, $g:expr) => {
        match $s.map.host($g) {
            Some(h) => dynasm!($s.ops; .arch x64; $op $size($d), $size(h)),
            None => dynasm!($s.ops; .arch x64; $op $size($d), [BYTE rbp + off($g)]),
        }
    };
}
pub(super) use with;

/// `op operand, imm` with the shortest immediate.
macro_rules! short {
    ($s:ident, $imm:expr, $op:ident $($operand:tt)*) => {
        match i8::try_from($imm) {
            Ok(imm) => dynasm!($s.ops; .arch x64; $op $($operand)*, BYTE imm),
            Err(_) => dynasm!($s.ops; .arch x64; $op $($operand)*, DWORD $imm),
        }
    };
}

impl Emitter {
    pub(super) fn copy(&mut self, rd: u8, a: u8) {
        let d = self.map.host(rd).or(self.map.host(a)).unwrap_or(RAX);
        if self.map.host(a) != Some(d) {
            with!(self, mov, Rq, d, a);
        }
        self.done(rd, d);
    }

    pub(super) fn alu(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        match op {
            Alu::Add => match (self.map.host(rd), self.map.host(a), self.map.host(b)) {
                (Some(d), Some(x), Some(y)) if d != x && d != y => {
                    dynasm!(self.ops; .arch x64; lea Rq(d), [Rq(x) + Rq(y)]);
                }
                _ => self.two(op, rd, a, b),
            },
            Alu::Sub | Alu::And | Alu::Or | Alu::Xor | Alu::Mul => self.two(op, rd, a, b),
            Alu::AddW | Alu::SubW | Alu::MulW => {
                with!(self, mov, Rd, RAX, a);
                match op {
                    Alu::AddW => with!(self, add, Rd, RAX, b),
                    Alu::SubW => with!(self, sub, Rd, RAX, b),
                    _ => with!(self, imul, Rd, RAX, b),
                }
                self.sign_extend(rd);
            }
            Alu::Sll | Alu::Srl | Alu::Sra | Alu::SllW | Alu::SrlW | Alu::SraW => self.shift(op, rd, a, b),
            Alu::Slt | Alu::Sltu => {
                let x = self.source(a, RAX);
                with!(self, cmp, Rq, x, b);
                self.set_less(rd, op == Alu::Slt);
            }
            Alu::Mulh | Alu::Mulhu | Alu::Mulhsu => self.mul_high(op, rd, a, b),
            _ => self.divide(op, rd, a, b),
        }
    }

    /// `rd = a op b` by a two-operand instruction.
    fn two(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        let d = self.target(rd, RAX);
        let commutes = op != Alu::Sub;
        let (a, b) = if commutes && self.map.host(b) == Some(d) { (b, a) } else { (a, b) };
        // With `sub d, d`-like clashes the result is made in rax.
        let clash = self.map.host(b) == Some(d) && self.map.host(a) != Some(d);
        let work = if clash { RAX } else { d };
        if self.map.host(a) != Some(work) {
            with!(self, mov, Rq, work, a);
        }
        match op {
            Alu::Add => with!(self, add, Rq, work, b),
            Alu::Sub => with!(self, sub, Rq, work, b),
            Alu::And => with!(self, and, Rq, work, b),
            Alu::Or => with!(self, or, Rq, work, b),
            Alu::Xor => with!(self, xor, Rq, work, b),
            _ => with!(self, imul, Rq, work, b),
        }
        if clash {
            dynasm!(self.ops; .arch x64; mov Rq(d), rax);
        }
        self.done(rd, d);
    }

    /// `rd` = the 32 bits in eax, sign-extended.
    fn sign_extend(&mut self, rd: u8) {
        let d = self.target(rd, RAX);
        dynasm!(self.ops; .arch x64; movsxd Rq(d), eax);
        self.done(rd, d);
    }

    fn set_less(&mut self, rd: u8, signed: bool) {
        if signed {
            dynasm!(self.ops; .arch x64; setl al);
        } else {
            dynasm!(self.ops; .arch x64; setb al);
        }
        let d = self.target(rd, RAX);
        dynasm!(self.ops; .arch x64; movzx Rd(d), al);
        self.done(rd, d);
    }

    fn shift(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        if self.bmi2 {
            let x = self.source(a, RAX);
            let n = self.source(b, RCX);
            let d = self.target(rd, RAX);
            match op {
                Alu::Sll => dynasm!(self.ops; .arch x64; shlx Rq(d), Rq(x), Rq(n)),
                Alu::Srl => dynasm!(self.ops; .arch x64; shrx Rq(d), Rq(x), Rq(n)),
                Alu::Sra => dynasm!(self.ops; .arch x64; sarx Rq(d), Rq(x), Rq(n)),
                Alu::SllW => dynasm!(self.ops; .arch x64; shlx eax, Rd(x), Rd(n)),
                Alu::SrlW => dynasm!(self.ops; .arch x64; shrx eax, Rd(x), Rd(n)),
                _ => dynasm!(self.ops; .arch x64; sarx eax, Rd(x), Rd(n)),
            }
            if matches!(op, Alu::Sll | Alu::Srl | Alu::Sra) {
                self.done(rd, d)
            } else {
                self.sign_extend(rd)
            }
            return;
        }
        with!(self, mov, Rq, RAX, a);
        with!(self, mov, Rq, RCX, b);
        match op {
            Alu::Sll => dynasm!(self.ops; .arch x64; shl rax, cl),
            Alu::Srl => dynasm!(self.ops; .arch x64; shr rax, cl),
            Alu::Sra => dynasm!(self.ops; .arch x64; sar rax, cl),
            Alu::SllW => dynasm!(self.ops; .arch x64; shl eax, cl; movsxd rax, eax),
            Alu::SrlW => dynasm!(self.ops; .arch x64; shr eax, cl; movsxd rax, eax),
            _ => dynasm!(self.ops; .arch x64; sar eax, cl; movsxd rax, eax),
        }
        self.put(rd, RAX);
    }

    /// Moves a scratch register to a guest register.
    pub(super) fn put(&mut self, rd: u8, host: u8) {
        match self.map.host(rd) {
            Some(d) => dynasm!(self.ops; .arch x64; mov Rq(d), Rq(host)),
            None => dynasm!(self.ops; .arch x64; mov [BYTE rbp + off(rd)], Rq(host)),
        }
    }

    fn mul_high(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        with!(self, mov, Rq, RAX, a);
        with!(self, mov, Rq, RCX, b);
        match op {
            Alu::Mulh => dynasm!(self.ops; .arch x64; imul rcx),
            Alu::Mulhu => dynasm!(self.ops; .arch x64; mul rcx),
            _ => {
                // Signed by unsigned: where a is negative, the unsigned product has b too many in its high half.
                dynasm!(self.ops; .arch x64; mul rcx);
                with!(self, mov, Rq, RAX, a);
                dynasm!(self.ops; .arch x64; sar rax, 63; and rax, rcx; sub rdx, rax);
            }
        }
        self.put(rd, RDX);
    }

    /// Division never traps: by zero it gives all ones and the dividend, and the one overflow wraps.
    fn divide(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        let word = matches!(op, Alu::DivW | Alu::DivuW | Alu::RemW | Alu::RemuW);
        let signed = matches!(op, Alu::Div | Alu::Rem | Alu::DivW | Alu::RemW);
        let remainder = matches!(op, Alu::Rem | Alu::Remu | Alu::RemW | Alu::RemuW);
        let (zero, minus, end) = (self.ops.new_label(), self.ops.new_label(), self.ops.new_label());
        if word {
            with!(self, mov, Rd, RAX, a);
            with!(self, mov, Rd, RCX, b);
            dynasm!(self.ops; .arch x64; test ecx, ecx; jz =>zero);
            if signed {
                dynasm!(self.ops; .arch x64; cmp ecx, -1; je =>minus; cdq; idiv ecx);
            } else {
                dynasm!(self.ops; .arch x64; xor edx, edx; div ecx);
            }
        } else {
            with!(self, mov, Rq, RAX, a);
            with!(self, mov, Rq, RCX, b);
            dynasm!(self.ops; .arch x64; test rcx, rcx; jz =>zero);
            if signed {
                dynasm!(self.ops; .arch x64; cmp rcx, -1; je =>minus; cqo; idiv rcx);
            } else {
                dynasm!(self.ops; .arch x64; xor edx, edx; div rcx);
            }
        }
        dynasm!(self.ops; .arch x64; jmp =>end; =>zero; mov rdx, rax; mov rax, -1);
        if signed {
            dynasm!(self.ops; .arch x64; jmp =>end; =>minus; neg rax; xor edx, edx);
        }
        dynasm!(self.ops; .arch x64; =>end);
        match (word, remainder) {
            (false, true) => self.put(rd, RDX),
            (false, false) => self.put(rd, RAX),
            (true, _) => {
                if remainder {
                    dynasm!(self.ops; .arch x64; mov eax, edx);
                }
                self.sign_extend(rd);
            }
        }
    }

    pub(super) fn alu_imm(&mut self, op: Alu, rd: u8, a: u8, imm: i64) {
        let imm32 = imm as i32;
        match op {
            Alu::Add => match (self.map.host(rd), self.map.host(a)) {
                (None, _) if rd == a => dynasm!(self.ops; .arch x64; add QWORD [BYTE rbp + off(rd)], DWORD imm32),
                (Some(d), Some(x)) if d == x => short!(self, imm32, add Rq(d)),
                _ => {
                    let x = self.source(a, RAX);
                    let d = self.target(rd, RAX);
                    match i8::try_from(imm32) {
                        Ok(imm) => dynasm!(self.ops; .arch x64; lea Rq(d), [BYTE Rq(x) + imm]),
                        Err(_) => dynasm!(self.ops; .arch x64; lea Rq(d), [Rq(x) + imm32]),
                    }
                    self.done(rd, d);
                }
            },
            Alu::AddW if imm == 0 => {
                let d = self.target(rd, RAX);
                match self.map.host(a) {
                    Some(x) => dynasm!(self.ops; .arch x64; movsxd Rq(d), Rd(x)),
                    None => dynasm!(self.ops; .arch x64; movsxd Rq(d), DWORD [BYTE rbp + off(a)]),
                }
                self.done(rd, d);
            }
            Alu::AddW => {
                match (self.map.host(a), i8::try_from(imm32)) {
                    (Some(x), Ok(imm)) => dynasm!(self.ops; .arch x64; lea eax, [BYTE Rq(x) + imm]),
                    (Some(x), Err(_)) => dynasm!(self.ops; .arch x64; lea eax, [Rq(x) + imm32]),
                    (None, _) => {
                        dynasm!(self.ops; .arch x64; mov eax, [BYTE rbp + off(a)]);
                        short!(self, imm32, add eax);
                    }
                }
                self.sign_extend(rd);
            }
            Alu::And if imm == 0xff => {
                let d = self.target(rd, RAX);
                match self.map.host(a) {
                    Some(x) => dynasm!(self.ops; .arch x64; movzx Rd(d), Rb(x)),
                    None => dynasm!(self.ops; .arch x64; movzx Rd(d), BYTE [BYTE rbp + off(a)]),
                }
                self.done(rd, d);
            }
            Alu::And | Alu::Or | Alu::Xor | Alu::Sll | Alu::Srl | Alu::Sra => {
                let d = self.target(rd, RAX);
                if self.map.host(a) != Some(d) {
                    with!(self, mov, Rq, d, a);
                }
                let n = (imm & 63) as i8;
                match op {
                    Alu::And => short!(self, imm32, and Rq(d)),
                    Alu::Or => short!(self, imm32, or Rq(d)),
                    Alu::Xor => short!(self, imm32, xor Rq(d)),
                    Alu::Sll => dynasm!(self.ops; .arch x64; shl Rq(d), n),
                    Alu::Srl => dynasm!(self.ops; .arch x64; shr Rq(d), n),
                    _ => dynasm!(self.ops; .arch x64; sar Rq(d), n),
                }
                self.done(rd, d);
            }
            Alu::SrlW if imm & 31 != 0 => {
                // The result is positive: the upper half is zero either way.
                let d = self.target(rd, RAX);
                if self.map.host(a) != Some(d) {
                    with!(self, mov, Rd, d, a);
                }
                dynasm!(self.ops; .arch x64; shr Rd(d), (imm & 31) as i8);
                self.done(rd, d);
            }
            Alu::SllW | Alu::SrlW | Alu::SraW => {
                with!(self, mov, Rd, RAX, a);
                let n = (imm & 31) as i8;
                match op {
                    Alu::SllW => dynasm!(self.ops; .arch x64; shl eax, n),
                    Alu::SrlW => dynasm!(self.ops; .arch x64; shr eax, n),
                    _ => dynasm!(self.ops; .arch x64; sar eax, n),
                }
                self.sign_extend(rd);
            }
            Alu::Slt | Alu::Sltu => {
                match self.map.host(a) {
                    Some(x) => dynasm!(self.ops; .arch x64; cmp Rq(x), DWORD imm32),
                    None => dynasm!(self.ops; .arch x64; cmp QWORD [BYTE rbp + off(a)], DWORD imm32),
                }
                self.set_less(rd, op == Alu::Slt);
            }
            _ => unreachable!("{op:?} has no immediate form"),
        }
    }
}
