//! Arithmetic. Each emitter reads all its operands before it writes the destination, which may be one of them.
use super::encode::{
    ADD, AND, CMP, IMUL, LEA, MOV, MOV_TO, MOVSXD, MOVZX_BYTE, NARROW, OR, Opcode, SUB, Shift, WIDE, Which, XOR,
};
use super::regs::{RAX, RCX, RDX};
use super::{Emitter, at_home, off};
use crate::ir::Alu;
use dynasmrt::dynasm;

/// `op reg, guest`, 64 or 32 bits, the guest register from where it lives.
macro_rules! with {
    ($s:ident, $op:ident, $size:ident, $d:expr, $g:expr) => {
        match $s.map.host($g) {
            Some(h) => dynasm!($s.ops; .arch x64; $op $size($d), $size(h)),
            None => $crate::jit::x86_64::at_home!(
                $g,
                |home| dynasm!($s.ops; .arch x64; $op $size($d), [BYTE rbp + home]),
                dynasm!($s.ops; .arch x64; $op $size($d), [rbp + home])
            ),
        }
    };
}
pub(super) use with;

impl Emitter {
    /// `op reg, guest`, the guest register from where it lives: `with!` for the commonest operations.
    #[inline(always)]
    pub(super) fn with(&mut self, width: u8, op: Opcode, reg: u8, guest: u8) {
        match self.map.host(guest) {
            Some(host) => self.ops.two(width, op, reg, host),
            None => self.ops.slot(width, op, reg, off(guest)),
        }
    }

    #[inline(never)]
    pub(super) fn copy(&mut self, rd: u8, a: u8) {
        let d = self.map.host(rd).or(self.map.host(a)).unwrap_or(RAX);
        if self.map.host(a) != Some(d) {
            self.with(WIDE, MOV, d, a);
        }
        self.done(rd, d);
    }

    #[inline(never)]
    pub(super) fn alu(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        match op {
            Alu::Add => match (self.map.host(rd), self.map.host(a), self.map.host(b)) {
                (Some(d), Some(x), Some(y)) if d != x && d != y => self.ops.sum(d, x, (y, 0)),
                _ => self.two(ADD, rd, a, b),
            },
            Alu::Sub | Alu::And | Alu::Or | Alu::Xor | Alu::Mul => {
                let op = match op {
                    Alu::Sub => SUB,
                    Alu::And => AND,
                    Alu::Or => OR,
                    Alu::Xor => XOR,
                    _ => IMUL,
                };
                self.two(op, rd, a, b);
            }
            Alu::AddW | Alu::SubW | Alu::MulW => {
                let op = match op {
                    Alu::AddW => ADD,
                    Alu::SubW => SUB,
                    _ => IMUL,
                };
                self.with(NARROW, MOV, RAX, a);
                self.with(NARROW, op, RAX, b);
                self.sign_extend(rd);
            }
            Alu::Sll | Alu::Srl | Alu::Sra | Alu::SllW | Alu::SrlW | Alu::SraW => self.shift(op, rd, a, b),
            Alu::Slt | Alu::Sltu => {
                let x = self.source(a, RAX);
                self.with(WIDE, CMP, x, b);
                self.set_less(rd, op == Alu::Slt);
            }
            Alu::Mulh | Alu::Mulhu | Alu::Mulhsu => self.mul_high(op, rd, a, b),
            _ => self.divide(op, rd, a, b),
        }
    }

    /// `rd = a op b` by a two-operand instruction.
    #[inline(always)]
    fn two(&mut self, op: Opcode, rd: u8, a: u8, b: u8) {
        if let (Some(d), Some(x), Some(y)) = (self.map.host(rd), self.map.host(a), self.map.host(b)) {
            let (x, y) = if y == d && op != SUB { (y, x) } else { (x, y) };
            if x == d {
                return self.ops.two(WIDE, op, d, y);
            }
            if y != d {
                return self.ops.moved_two(op, d, x, y);
            }
        }
        let d = self.target(rd, RAX);
        let commutes = op != SUB;
        let (a, b) = if commutes && self.map.host(b) == Some(d) { (b, a) } else { (a, b) };
        // With `sub d, d`-like clashes the result is made in rax.
        let clash = self.map.host(b) == Some(d) && self.map.host(a) != Some(d);
        let work = if clash { RAX } else { d };
        if self.map.host(a) != Some(work) {
            self.with(WIDE, MOV, work, a);
        }
        self.with(WIDE, op, work, b);
        if clash {
            self.ops.two(WIDE, MOV, d, RAX);
        }
        self.done(rd, d);
    }

    /// `rd` = the 32 bits in eax, sign-extended.
    fn sign_extend(&mut self, rd: u8) {
        let d = self.target(rd, RAX);
        self.ops.two(WIDE, MOVSXD, d, RAX);
        self.done(rd, d);
    }

    fn set_less(&mut self, rd: u8, signed: bool) {
        if signed {
            dynasm!(self.ops; .arch x64; setl al);
        } else {
            dynasm!(self.ops; .arch x64; setb al);
        }
        let d = self.target(rd, RAX);
        self.ops.two(NARROW, MOVZX_BYTE, d, RAX);
        self.done(rd, d);
    }

    #[inline(never)]
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
        self.with(WIDE, MOV, RAX, a);
        self.with(WIDE, MOV, RCX, b);
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
            Some(d) => self.ops.two(WIDE, MOV, d, host),
            None => self.ops.slot(WIDE, MOV_TO, host, off(rd)),
        }
    }

    #[inline(never)]
    fn mul_high(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        self.with(WIDE, MOV, RAX, a);
        self.with(WIDE, MOV, RCX, b);
        match op {
            Alu::Mulh => dynasm!(self.ops; .arch x64; imul rcx),
            Alu::Mulhu => dynasm!(self.ops; .arch x64; mul rcx),
            _ => {
                // Signed by unsigned: where a is negative, the unsigned product has b too many in its high half.
                dynasm!(self.ops; .arch x64; mul rcx);
                self.with(WIDE, MOV, RAX, a);
                dynasm!(self.ops; .arch x64; sar rax, 63; and rax, rcx; sub rdx, rax);
            }
        }
        self.put(rd, RDX);
    }

    /// Division never traps: by zero it gives all ones and the dividend, and the one overflow wraps.
    #[inline(never)]
    fn divide(&mut self, op: Alu, rd: u8, a: u8, b: u8) {
        let word = matches!(op, Alu::DivW | Alu::DivuW | Alu::RemW | Alu::RemuW);
        let signed = matches!(op, Alu::Div | Alu::Rem | Alu::DivW | Alu::RemW);
        let remainder = matches!(op, Alu::Rem | Alu::Remu | Alu::RemW | Alu::RemuW);
        let (zero, minus, end) = (self.ops.new_label(), self.ops.new_label(), self.ops.new_label());
        if word {
            self.with(NARROW, MOV, RAX, a);
            self.with(NARROW, MOV, RCX, b);
            dynasm!(self.ops; .arch x64; test ecx, ecx; jz =>zero);
            if signed {
                dynasm!(self.ops; .arch x64; cmp ecx, -1; je =>minus; cdq; idiv ecx);
            } else {
                dynasm!(self.ops; .arch x64; xor edx, edx; div ecx);
            }
        } else {
            self.with(WIDE, MOV, RAX, a);
            self.with(WIDE, MOV, RCX, b);
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

    #[inline(never)]
    pub(super) fn alu_imm(&mut self, op: Alu, rd: u8, a: u8, imm: i64) {
        let imm32 = imm as i32;
        match op {
            Alu::Add => match (self.map.host(rd), self.map.host(a)) {
                (None, _) if rd == a => at_home!(
                    rd,
                    |home| dynasm!(self.ops; .arch x64; add QWORD [BYTE rbp + home], DWORD imm32),
                    dynasm!(self.ops; .arch x64; add QWORD [rbp + home], DWORD imm32)
                ),
                (Some(d), Some(x)) if d == x => self.ops.immediate(WIDE, Which::Add, d, imm32),
                _ => {
                    let x = self.source(a, RAX);
                    let d = self.target(rd, RAX);
                    self.ops.near(WIDE, LEA, d, x, imm32);
                    self.done(rd, d);
                }
            },
            Alu::AddW if imm == 0 => {
                let d = self.target(rd, RAX);
                self.with(WIDE, MOVSXD, d, a);
                self.done(rd, d);
            }
            Alu::AddW => {
                match self.map.host(a) {
                    Some(x) => self.ops.near(NARROW, LEA, RAX, x, imm32),
                    None => {
                        self.ops.slot(NARROW, MOV, RAX, off(a));
                        self.ops.immediate(NARROW, Which::Add, RAX, imm32);
                    }
                }
                self.sign_extend(rd);
            }
            Alu::And if imm == 0xff => {
                let d = self.target(rd, RAX);
                self.with(NARROW, MOVZX_BYTE, d, a);
                self.done(rd, d);
            }
            Alu::And | Alu::Or | Alu::Xor => {
                let which = match op {
                    Alu::And => Which::And,
                    Alu::Or => Which::Or,
                    _ => Which::Xor,
                };
                if let (Some((d, x)), Ok(imm)) = (self.apart(rd, a), i8::try_from(imm32)) {
                    return self.ops.moved_immediate(which, d, x, imm);
                }
                let d = self.moved(WIDE, rd, a);
                self.ops.immediate(WIDE, which, d, imm32);
                self.done(rd, d);
            }
            Alu::Sll | Alu::Srl | Alu::Sra => {
                let which = match op {
                    Alu::Sll => Shift::Left,
                    Alu::Srl => Shift::Right,
                    _ => Shift::RightSigned,
                };
                if let Some((d, x)) = self.apart(rd, a) {
                    return self.ops.moved_shift(which, d, x, (imm & 63) as u8);
                }
                let d = self.moved(WIDE, rd, a);
                self.ops.shift(WIDE, which, d, (imm & 63) as u8);
                self.done(rd, d);
            }
            Alu::SrlW if imm & 31 != 0 => {
                // The result is positive: the upper half is zero either way.
                let d = self.moved(NARROW, rd, a);
                self.ops.shift(NARROW, Shift::Right, d, (imm & 31) as u8);
                self.done(rd, d);
            }
            Alu::SllW | Alu::SrlW | Alu::SraW => {
                let which = match op {
                    Alu::SllW => Shift::Left,
                    Alu::SrlW => Shift::Right,
                    _ => Shift::RightSigned,
                };
                self.with(NARROW, MOV, RAX, a);
                self.ops.shift(NARROW, which, RAX, (imm & 31) as u8);
                self.sign_extend(rd);
            }
            Alu::Slt | Alu::Sltu => {
                match self.map.host(a) {
                    Some(x) => self.ops.immediate(WIDE, Which::Cmp, x, imm32),
                    None => at_home!(
                        a,
                        |home| dynasm!(self.ops; .arch x64; cmp QWORD [BYTE rbp + home], DWORD imm32),
                        dynasm!(self.ops; .arch x64; cmp QWORD [rbp + home], DWORD imm32)
                    ),
                }
                self.set_less(rd, op == Alu::Slt);
            }
            _ => unreachable!("{op:?} has no immediate form"),
        }
    }

    /// The host registers of two guest registers, if they have some, and not the same.
    #[inline(always)]
    fn apart(&self, rd: u8, a: u8) -> Option<(u8, u8)> {
        let (d, x) = (self.map.host(rd)?, self.map.host(a)?);
        (d != x).then_some((d, x))
    }

    /// The register in which `rd` is made, with `a` in it.
    #[inline(always)]
    fn moved(&mut self, width: u8, rd: u8, a: u8) -> u8 {
        let d = self.target(rd, RAX);
        if self.map.host(a) != Some(d) {
            self.with(width, MOV, d, a);
        }
        d
    }
}
