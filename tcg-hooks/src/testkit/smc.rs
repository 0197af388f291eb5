//! The ways in which a generated program changes its own code.
//!
//! ```text
//!   patch        li new; la target; sw ─ (fence.i) ─ a few instructions ─ target      same block, line, page
//!   straddle     one store over the border of two instructions, or of half of each
//!   remote       the first instruction of a function, pages away; then a call
//!   count        a loop whose body adds to an immediate in itself, each time round
//!   copy         a function to another page, in units of 1 to 8 bytes; then a call to the copy
//!   fresh        two instructions and a return, written word by word where none were
//! ```
use super::asm::*;
use super::body::Gen;
use super::{Smc, encode};
use crate::riscv::opcodes::Op;

impl Gen<'_> {
    pub(super) fn change(&mut self) {
        match self.rng.below(8) {
            0 | 1 => self.patch(),
            2 => self.straddle(),
            3 | 4 => self.remote(),
            5 => self.count(),
            6 => self.copy(),
            _ => self.fresh(),
        }
    }

    /// What stands between a change and the changed code.
    fn sync(&mut self) {
        if self.o.smc == Smc::Fenced || self.rng.chance(40) {
            self.a.op(Op::FenceI, 0, 0, 0, 0);
        }
    }

    /// A constant into a register by eight bytes of code, whatever it is.
    fn li8(&mut self, rd: u8, value: u32) {
        let low = (value as i32) << 20 >> 20;
        self.a.op(Op::Lui, rd, 0, 0, (value as i32).wrapping_sub(low));
        self.a.op(Op::Addiw, rd, rd, 0, low);
    }

    /// Overwrites an instruction a little further on, whole or in part.
    fn patch(&mut self) {
        let [value, place, scratch] = self.regs();
        let new = self.addi_bits();
        self.li8(value, new);
        let la = self.a.here();
        self.a.hole();
        self.a.hole();
        let store = self.a.hole();
        self.sync();
        let n = self.rng.below(4) as i64;
        self.straight(n);
        if self.rng.chance(20) {
            self.branch();
        }
        let target = self.a.here();
        self.addi_any();
        let end = self.a.here();
        self.a.seek(la);
        self.a.la(place, target);
        self.a.seek(end);
        // A part of the upper half is an immediate; the lower half of one of ours fits any upper half.
        let (op, offset) = match self.rng.below(6) {
            0 => (Op::Sb, 3),
            1 => (Op::Sh, 2),
            2 => (Op::Sh, 0),
            3 if self.o.atomics && target.is_multiple_of(4) => (Op::AmoswapW, 0),
            _ => (Op::Sw, 0),
        };
        if op == Op::AmoswapW {
            self.a.fill(store, op, scratch, place, value, 0);
        } else {
            self.a.fill(store, op, 0, place, value, offset);
        }
    }

    /// One store over two instructions: both whole, or the end of one and the start of the other.
    fn straddle(&mut self) {
        let [value, place, high] = self.regs();
        let (x, y) = (self.addi_bits(), self.addi_bits());
        let whole = self.rng.chance(40);
        self.li8(value, x);
        if whole {
            self.li8(high, y);
            self.a.op(Op::Slli, high, high, 0, 32);
            self.a.op(Op::Slli, value, value, 0, 32);
            self.a.op(Op::Srli, value, value, 0, 32);
            self.a.op(Op::Or, value, value, high, 0);
        } else {
            // An upper half in the low bits, a lower half in the high ones.
            self.a.op(Op::Slliw, high, value, 0, 16);
            self.a.op(Op::Srliw, value, value, 0, 16);
            self.a.op(Op::Or, value, value, high, 0);
        }
        let la = self.a.here();
        self.a.hole();
        self.a.hole();
        let (op, offset) = if whole { (Op::Sd, 0) } else { (Op::Sw, 2) };
        self.a.op(op, 0, place, value, offset);
        self.sync();
        let n = self.rng.below(3) as i64;
        self.straight(n);
        let target = self.a.here();
        self.addi_any();
        self.addi_any();
        let end = self.a.here();
        self.a.seek(la);
        self.a.la(place, target);
        self.a.seek(end);
    }

    /// Patches a function, then calls it.
    fn remote(&mut self) {
        let [value, place, _] = self.regs();
        let (f, _) = self.rng.pick(&self.functions);
        for _ in 0..self.rng.within(1, 3) {
            let new = self.addi_bits();
            self.li8(value, new);
            self.a.la(place, f);
            self.a.op(Op::Sw, 0, place, value, 0);
            self.sync();
            self.call_to(f);
        }
    }

    /// A loop that patches itself each time round.
    fn count(&mut self) {
        let [value, place, step] = self.regs();
        let n = self.rng.within(2, 9) as i32;
        self.a.op(Op::Addi, S10, ZERO, 0, n);
        let top = self.a.here();
        let la = self.a.here();
        self.a.hole();
        self.a.hole();
        self.a.op(Op::Lw, value, place, 0, 0);
        let add = self.rng.within(1, 0x7f) as i32;
        self.a.op(Op::Lui, step, 0, 0, add << 20);
        self.a.op(Op::Addw, value, value, step, 0);
        // After the instruction, or before it.
        let early = self.o.smc == Smc::Fenced || self.rng.chance(60);
        if early {
            self.a.op(Op::Sw, 0, place, value, 0);
            self.sync();
        }
        let n = self.rng.below(3) as i64;
        let safe = [S10, value, place];
        for _ in 0..n {
            let bits = loop {
                let bits = self.addi_bits();
                if !safe.contains(&((bits >> 7 & 31) as u8)) {
                    break bits;
                }
            };
            self.a.word(bits);
        }
        let target = self.a.here();
        let rd = loop {
            let r = self.reg();
            if !safe.contains(&r) {
                break r;
            }
        };
        self.a.word(encode(Op::Addi, rd, rd, 0, 1));
        if !early {
            self.a.op(Op::Sw, 0, place, value, 0);
        }
        let end = self.a.here();
        self.a.seek(la);
        self.a.la(place, target);
        self.a.seek(end);
        self.a.op(Op::Addi, S10, S10, 0, -1);
        let imm = Asm::distance(self.a.here(), top);
        self.a.op(Op::Bne, 0, S10, ZERO, imm);
    }

    /// Where a copy may go: anywhere in the page, its end too, so that it runs over into the next.
    fn elsewhere(&mut self) -> u64 {
        let align = if self.o.compressed { 2 } else { 4 };
        let offset = if self.rng.chance(30) { 0xfc0 + self.rng.below(0x40) } else { self.rng.below(0xfc0) };
        COPIES + offset / align * align
    }

    fn copy(&mut self) {
        let [from, to, value] = self.regs();
        let (start, end) = self.rng.pick(&self.functions);
        let dest = self.elsewhere();
        let (load, store) = self.rng.pick(&[
            (Op::Lbu, Op::Sb),
            (Op::Lhu, Op::Sh),
            (Op::Lw, Op::Sw),
            (Op::Ld, Op::Sd),
            (Op::Ld, Op::Sd),
        ]);
        let unit = load.mem_bytes() as i32;
        let times = ((end - start) as i32 + unit - 1) / unit;
        self.a.la(from, start);
        self.a.la(to, dest);
        self.a.li(S10, times);
        let top = self.a.here();
        self.a.op(load, value, from, 0, 0);
        self.a.op(store, 0, to, value, 0);
        self.a.op(Op::Addi, from, from, 0, unit);
        self.a.op(Op::Addi, to, to, 0, unit);
        self.a.op(Op::Addi, S10, S10, 0, -1);
        let imm = Asm::distance(self.a.here(), top);
        self.a.op(Op::Bne, 0, S10, ZERO, imm);
        self.sync();
        self.call_to(dest);
        if self.rng.chance(40) {
            // Change a copy that has run, and run it again.
            let new = self.addi_bits();
            self.li8(value, new);
            self.a.la(to, dest);
            self.a.op(Op::Sw, 0, to, value, 0);
            self.sync();
            self.call_to(dest);
        }
    }

    fn fresh(&mut self) {
        let [value, place, _] = self.regs();
        let dest = self.elsewhere();
        self.a.la(place, dest);
        let words = [self.addi_bits(), self.addi_bits(), encode(Op::Jalr, ZERO, RA, 0, 0)];
        for (i, word) in words.into_iter().enumerate() {
            self.li8(value, word);
            self.a.op(Op::Sw, 0, place, value, 4 * i as i32);
        }
        self.sync();
        self.call_to(dest);
    }
}
