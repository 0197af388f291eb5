//! The body of a random program: functions, then pieces one after the other.
use super::asm::*;
use super::rng::Rng;
use super::{Options, Program, Smc};
use crate::riscv::csr::{mstatus, num};
use crate::riscv::opcodes::Op;
use crate::testkit::encode;

pub(super) struct Gen<'a> {
    pub a: Asm,
    pub rng: Rng,
    pub o: &'a Options,
    /// Start and end of what may be called. Each begins with a four-byte `addi`, for others to patch.
    pub functions: Vec<(u64, u64)>,
}

pub(super) fn generate(seed: u64, tape: &[u8], options: &Options) -> Program {
    let rng = Rng::with_tape(seed, tape);
    let mut g = Gen { a: Asm::new(options.base), rng, o: options, functions: Vec::new() };
    g.a.seek(CODE + 2 * g.rng.below(64) * (1 + u64::from(!options.compressed)));
    for _ in 0..3 {
        g.function();
    }
    // The body starts anywhere before the end of the page, so that some instruction is likely to cross it.
    let early = 4 * g.rng.below(0x80);
    let body = g.a.here().max(CODE + 0x1000 - early).next_multiple_of(4) + if options.compressed { 2 } else { 0 };
    g.a.seek(body);
    for _ in 0..options.pieces {
        if !g.a.has_room() {
            break;
        }
        g.piece();
    }
    let to_stop = g.a.hole();
    // Of its own sequence, so that a program with fewer pieces is the beginning of one with more.
    let (entry, stop) = g.a.frame(body, options, &mut Rng::new(!seed));
    g.a.fill(to_stop, Op::Jal, ZERO, 0, 0, Asm::distance(to_stop, stop));
    g.a.finish(seed, entry, stop, options)
}

#[derive(Clone, Copy)]
enum Piece {
    Straight,
    Branch,
    Loop,
    Call,
    Switch,
    Overlap,
    DataInCode,
    Jungle,
    Change,
    Mode,
}

impl Gen<'_> {
    /// A free register that is not `zero`.
    pub fn reg(&mut self) -> u8 {
        self.rng.pick(&FREE[..FREE.len() - 1])
    }

    /// Three of them, different.
    pub fn regs(&mut self) -> [u8; 3] {
        let n = FREE.len() as u64 - 1;
        let (first, step) = (self.rng.below(n), 1 + self.rng.below(n / 2 - 1));
        [0, 1, 2].map(|i| FREE[((first + i * step) % n) as usize])
    }

    pub fn any(&mut self) -> u8 {
        self.rng.below(32) as u8
    }

    fn function(&mut self) {
        let start = self.a.here();
        self.addi_any();
        let n = self.rng.within(1, 8);
        self.straight(n);
        self.ret();
        self.functions.push((start, self.a.here()));
    }

    pub fn ret(&mut self) {
        if self.o.compressed && self.rng.chance(70) {
            self.a.half(0x8082);
        } else {
            self.a.op(Op::Jalr, ZERO, RA, 0, 0);
        }
    }

    /// One piece of the body, after telling the trap handler where the next one starts.
    fn piece(&mut self) {
        let place = self.a.here();
        self.a.hole();
        self.a.hole();
        let change = if self.o.smc == Smc::Never { 0 } else { 7 };
        let kinds = [
            (4, Piece::Straight),
            (4, Piece::Branch),
            (4, Piece::Loop),
            (3, Piece::Call),
            (2, Piece::Switch),
            (u64::from(self.o.compressed), Piece::Overlap),
            (1, Piece::DataInCode),
            (u64::from(self.o.traps), Piece::Jungle),
            (change, Piece::Change),
            (if self.o.modes { 4 } else { 0 }, Piece::Mode),
        ];
        match self.rng.weighted(&kinds) {
            Piece::Straight => {
                let n = self.rng.within(3, 14);
                self.straight(n);
            }
            Piece::Branch => self.branch(),
            Piece::Loop => self.repeat(S10),
            Piece::Call => self.call(),
            Piece::Switch => self.switch(),
            Piece::Overlap => self.overlap(),
            Piece::DataInCode => self.data_in_code(),
            Piece::Jungle => {
                // A jump to nowhere; the handler goes on at t4, the next piece.
                let rd = self.rng.pick(&[ZERO, RA]);
                let imm = self.rng.within(-8, 8) as i32;
                self.a.op(Op::Jalr, rd, S3, 0, imm);
            }
            Piece::Change => self.change(),
            Piece::Mode => self.mode(),
        }
        let end = self.a.here();
        self.a.seek(place);
        self.a.la(T4, end);
        self.a.seek(end);
    }

    /// Goes on in another mode: below M-mode most of this is illegal, and skipped.
    fn mode(&mut self) {
        let call = self.rng.chance(40);
        if call {
            return self.a.op(Op::Ecall, 0, 0, 0, 0);
        }
        let (status, mask, epc, back) = self.rng.pick(&[
            (num::MSTATUS, mstatus::MPP, num::MEPC, Op::Mret),
            (num::MSTATUS, mstatus::SPP | mstatus::MPP, num::SEPC, Op::Sret),
            (num::SSTATUS, mstatus::SPP, num::SEPC, Op::Sret),
        ]);
        let to = self.rng.bits() & mask | self.rng.pick(&[0, mstatus::SPIE, mstatus::MPIE]);
        for (op, bits) in [(Op::Csrrc, mask), (Op::Csrrs, to)] {
            self.a.li(T5, bits as i32);
            self.a.op(op, ZERO, T5, 0, status.into());
        }
        // Behind the two of `la`, the write, and the return.
        let next = self.a.here() + 16;
        self.a.la(T5, next);
        self.a.op(Op::Csrrw, ZERO, T5, 0, epc.into());
        self.a.op(back, 0, 0, 0, 0);
    }

    pub fn straight(&mut self, n: i64) {
        for _ in 0..n {
            self.simple();
        }
    }

    /// Skips some instructions, or does not.
    pub fn branch(&mut self) {
        let short = self.o.compressed && self.rng.chance(40);
        let hole = self.a.here();
        if short {
            self.a.half(0)
        } else {
            self.a.word(0)
        }
        let n = self.rng.within(1, 6);
        self.straight(n);
        let end = self.a.here();
        let distance = Asm::distance(hole, end);
        self.a.seek(hole);
        if short && distance < 256 {
            let half = self.rng.pick(&[0xc001, 0xe001, 0xa001]);
            // c.j is as good as a branch here, since all that follows is skipped.
            let reg = self.rng.below(8) as u16;
            let bits = if half == 0xa001 { half | cj(distance) } else { half | reg << 7 | cb(distance) };
            self.a.half(bits);
        } else if short {
            self.a.half(0x0001);
        } else {
            let op = self.rng.pick(&[Op::Beq, Op::Bne, Op::Blt, Op::Bge, Op::Bltu, Op::Bgeu]);
            let (rs1, rs2) = (self.any(), self.any());
            self.a.op(op, 0, rs1, rs2, distance);
        }
        self.a.seek(end);
    }

    /// A few times round.
    fn repeat(&mut self, counter: u8) {
        let times = self.rng.within(2, if counter == S10 { 9 } else { 4 }) as i32;
        self.a.op(Op::Addi, counter, ZERO, 0, times);
        let top = self.a.here();
        for _ in 0..self.rng.within(1, 3) {
            match self.rng.below(8) {
                0 if counter == S10 => self.repeat(S11),
                1 | 2 => self.branch(),
                3 => self.call(),
                _ => {
                    let n = self.rng.within(1, 6);
                    self.straight(n);
                }
            }
        }
        self.a.op(Op::Addi, counter, counter, 0, -1);
        let imm = Asm::distance(self.a.here(), top);
        self.a.op(Op::Bne, 0, counter, ZERO, imm);
    }

    pub fn call(&mut self) {
        let (f, _) = self.rng.pick(&self.functions);
        self.call_to(f);
    }

    /// Calls, in one of the ways compilers do, what lies at this offset.
    pub fn call_to(&mut self, f: u64) {
        let r = self.reg();
        match self.rng.below(3) {
            0 => self.a.j(RA, f),
            1 => {
                let distance = Asm::distance(self.a.here(), f);
                let low = distance << 20 >> 20;
                self.a.op(Op::Auipc, RA, 0, 0, distance.wrapping_sub(low));
                self.a.op(Op::Jalr, RA, RA, 0, low);
            }
            _ => {
                self.a.la(r, f);
                if self.o.compressed {
                    self.a.half(0x9002 | u16::from(r) << 7);
                } else {
                    self.a.op(Op::Jalr, RA, r, 0, 0);
                }
            }
        }
    }

    /// A computed jump to one of two instructions.
    fn switch(&mut self) {
        let [t, u, _] = self.regs();
        let rs = self.any();
        self.a.op(Op::Andi, t, rs, 0, 4);
        let here = self.a.here();
        self.a.la(u, here + 16);
        self.a.op(Op::Add, u, u, t, 0);
        self.a.op(Op::Jalr, ZERO, u, 0, 0);
        self.addi_any();
        self.addi_any();
    }

    /// A four-byte instruction whose upper half is one too: run whole, or from its middle.
    fn overlap(&mut self) {
        let rs = self.rng.below(8) as u16;
        self.a.half(0xc001 | rs << 7 | cb(4));
        let rd = u32::from(self.reg());
        let noise = self.rng.bits() as u32 & 0xf000;
        let upper = u32::from(self.short());
        self.a.word(upper << 16 | noise | rd << 7 | 0x37);
    }

    /// Words in the middle of code, on its line, that are written without being code.
    fn data_in_code(&mut self) {
        let hole = self.a.hole();
        let data = self.a.here();
        for _ in 0..2 {
            let value = self.rng.value();
            self.a.put(&value.to_le_bytes());
        }
        let end = self.a.here();
        self.a.fill(hole, Op::Jal, ZERO, 0, 0, Asm::distance(hole, end));
        let r = self.reg();
        if self.o.atomics && self.rng.chance(30) {
            // One of the two words is aligned, or nearly.
            self.a.la(r, data.next_multiple_of(8));
            return self.atomic_at(r);
        }
        self.a.la(r, data);
        for _ in 0..self.rng.within(1, 4) {
            let offset = self.rng.below(9) as i32;
            let (rd, rs2) = (self.reg(), self.any());
            if rd != r && self.rng.chance(50) {
                self.a.op(Op::Ld, rd, r, 0, offset);
            } else {
                let op = self.rng.pick(&[Op::Sb, Op::Sh, Op::Sw, Op::Sd]);
                self.a.op(op, 0, r, rs2, offset);
            }
        }
    }

    /// `addi`, or a relative, with any operands: whatever is made of its upper half stays an instruction.
    pub fn addi_any(&mut self) {
        let bits = self.addi_bits();
        self.a.word(bits);
    }

    pub fn addi_bits(&mut self) -> u32 {
        let op = self.rng.pick(&[Op::Addi, Op::Xori, Op::Ori, Op::Andi, Op::Slti, Op::Addiw]);
        let (rd, rs1) = (self.reg(), self.any());
        let imm = self.rng.within(-2048, 2047) as i32;
        encode(op, rd, rs1, 0, imm)
    }
}

/// The offset bits of `c.beqz` and `c.bnez`.
fn cb(offset: i32) -> u16 {
    let o = offset as u16;
    (o & 0x100) << 4 | (o & 0x18) << 7 | (o & 0xc0) >> 1 | (o & 6) << 2 | (o & 0x20) >> 3
}

/// The offset bits of `c.j`.
fn cj(offset: i32) -> u16 {
    let o = offset as u16;
    (o & 0x800) << 1
        | (o & 0x10) << 7
        | (o & 0x300) << 1
        | (o & 0x400) >> 2
        | (o & 0x40) << 1
        | (o & 0x80) >> 1
        | (o & 0xe) << 2
        | (o & 0x20) >> 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::compressed::expand;

    #[test]
    fn short_jumps_go_where_they_should() {
        for offset in (-256..256).step_by(2) {
            let i = expand(0xc001 | cb(offset));
            assert_eq!((i.op, i.imm), (Op::Beq, offset));
        }
        for offset in (-2048..2048).step_by(2) {
            let i = expand(0xa001 | cj(offset));
            assert_eq!((i.op, i.imm), (Op::Jal, offset));
        }
    }
}
