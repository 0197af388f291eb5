//! Single instructions, and the few that only make sense together: with operands that are legal, likely to matter,
//! and, where the options say so, neither.
use super::asm::*;
use super::body::Gen;
use crate::riscv::compressed::expand;
use crate::riscv::csr::{TABLE, num, read_only};
use crate::riscv::opcodes::{Format, Op, PATTERNS};

#[derive(Clone, Copy)]
enum Simple {
    Alu,
    Mul,
    Load,
    Store,
    Amo,
    LrSc,
    Csr,
    Trap,
    Short,
    Fence,
    Wild,
    Float,
    FloatMemory,
    FloatState,
    Bits,
    Line,
}

impl Gen<'_> {
    pub fn simple(&mut self) {
        let on = |on: bool, weight: u64| if on { weight } else { 0 };
        let kinds = [
            (30, Simple::Alu),
            (6, Simple::Mul),
            (14, Simple::Load),
            (14, Simple::Store),
            (on(self.o.atomics, 3), Simple::Amo),
            (on(self.o.atomics, 1), Simple::LrSc),
            (on(self.o.csrs, 3), Simple::Csr),
            (on(self.o.traps, 1), Simple::Trap),
            (on(self.o.compressed, 30), Simple::Short),
            (1, Simple::Fence),
            (on(self.o.wild && self.rng.chance(25), 1), Simple::Wild),
            (on(self.o.floats, 24), Simple::Float),
            (on(self.o.floats, 8), Simple::FloatMemory),
            (on(self.o.floats, 2), Simple::FloatState),
            (on(self.o.bits, 10), Simple::Bits),
            (on(self.o.bits && self.rng.chance(30), 1), Simple::Line),
        ];
        match self.rng.weighted(&kinds) {
            Simple::Alu => self.pattern(|op| op < Op::Mul),
            Simple::Bits => self.pattern(|op| op >= Op::AddUw),
            Simple::Float => self.float(),
            Simple::FloatMemory => self.float_memory(),
            Simple::FloatState => self.float_state(),
            Simple::Line => self.line(),
            Simple::Mul => self.pattern(|op| (Op::Mul..=Op::Remuw).contains(&op)),
            Simple::Load => {
                let op = self.rng.pick(&[Op::Lb, Op::Lh, Op::Lw, Op::Ld, Op::Lbu, Op::Lhu, Op::Lwu]);
                let (base, imm) = self.place(op.mem_bytes(), true);
                let rd = self.rng.pick(&FREE);
                self.a.op(op, rd, base, 0, imm);
            }
            Simple::Store => {
                let op = self.rng.pick(&[Op::Sb, Op::Sh, Op::Sw, Op::Sd]);
                let (base, imm) = self.place(op.mem_bytes(), false);
                let rs2 = self.any();
                self.a.op(op, 0, base, rs2, imm);
            }
            Simple::Amo => self.amo(),
            Simple::LrSc => self.lr_sc(),
            Simple::Csr => self.csr(),
            Simple::Trap => self.trap(),
            Simple::Short => {
                let bits = self.short();
                self.a.half(bits);
            }
            Simple::Fence => {
                let op = self.rng.pick(&[Op::Fence, Op::FenceI]);
                self.a.op(op, 0, 0, 0, 0x0ff);
            }
            Simple::Wild => self.wild(),
        }
    }

    /// Any arithmetic instruction of the table that `wanted` wants, with any operands.
    pub(super) fn pattern(&mut self, wanted: fn(Op) -> bool) {
        use Format::*;
        loop {
            let p = self.rng.pick(PATTERNS);
            if matches!(p.format, U | I | Shift | ShiftW | R | Unary) && wanted(p.op) {
                let noise = self.rng.bits() as u32 & !p.mask & !0xf80;
                let rd = self.rng.pick(&FREE);
                self.a.word(p.value | noise | u32::from(rd) << 7);
                return;
            }
        }
    }

    /// A base register and an offset for an access of so many bytes.
    pub(super) fn place(&mut self, bytes: u32, load: bool) -> (u8, i32) {
        let rare = u64::from(self.o.traps);
        let kinds = [
            (12, S0),
            (8, SP),
            (4, S2),
            (2, S4),
            (if load { 2 } else { 0 }, S1),
            (rare, S3),
            (if self.o.wild { rare } else { 0 }, ZERO),
        ];
        let base = self.rng.weighted(&kinds);
        let imm = match base {
            S2 => self.rng.within(-8, 8),
            S4 => self.rng.within(-16, if self.o.traps { 12 } else { 0 }),
            S1 => self.rng.within(0, 2047),
            _ => self.rng.within(-2048, 2040),
        } as i32;
        let base = if base == ZERO { self.any() } else { base };
        let imm = if self.rng.chance(70) { imm & !(bytes as i32 - 1) } else { imm };
        (base, imm)
    }

    /// A register that holds an address for an atomic access: aligned, most of the time.
    fn atomic_address(&mut self, r: u8) {
        let imm = self.rng.within(-2048, 2040) as i32 & !7;
        let off = if self.o.traps && self.rng.chance(4) { 4 - self.rng.below(4) as i32 } else { 0 };
        // Mostly data; sometimes the border of two pages, the end of RAM, nothing.
        let (base, imm) = match self.rng.below(20) {
            0 => (S2, self.rng.within(-2, 1) as i32 * 8),
            1 => (SP, imm),
            2 if self.o.traps => (S4, self.rng.within(-3, 2) as i32 * 8),
            3 if self.o.traps && self.rng.chance(50) => (S3, 0),
            _ => (S0, imm),
        };
        self.a.op(Op::Addi, r, base, 0, imm + off);
    }

    fn amo(&mut self) {
        let [r, d, _] = self.regs();
        let op = loop {
            let op = self.rng.pick(Op::ALL);
            if op.is_amo() && !matches!(op, Op::LrW | Op::LrD | Op::ScW | Op::ScD) {
                break op;
            }
        };
        self.atomic_address(r);
        let (rd, rs2, order) = (self.rng.pick(&[d, d, ZERO, r]), self.any(), self.rng.below(4) as i32);
        self.a.op(op, rd, r, rs2, order);
    }

    fn lr_sc(&mut self) {
        let [r, d, e] = self.regs();
        self.atomic_address(r);
        self.lr_sc_at(r, d, e, false);
    }

    /// LR and SC of the cell that `r` points to, perhaps with writers in between. Unless it is the `only` one, cells and
    /// bytes near it are written, too.
    fn lr_sc_at(&mut self, r: u8, d: u8, e: u8, only: bool) {
        let wide = self.rng.chance(50);
        let (lr, mut sc) = if wide { (Op::LrD, Op::ScD) } else { (Op::LrW, Op::ScW) };
        if self.rng.chance(90) {
            let (rd, order) = (self.rng.pick(&[d, d, d, ZERO]), self.rng.below(4) as i32);
            self.a.op(lr, rd, r, 0, order);
        }
        for _ in 0..self.rng.below(3) {
            let rs2 = self.any();
            match self.rng.below(10) {
                // What LR saw, or not; all of the cell, or a part of it, or what is beside it.
                0 => self.a.op(if wide { Op::Sd } else { Op::Sw }, 0, r, d, 0),
                1 => self.a.op(Op::Sw, 0, r, rs2, 0),
                2 => {
                    let imm = if only { self.rng.below(8) } else { self.rng.below(11).wrapping_sub(2) } as i32;
                    self.a.op(Op::Sb, 0, r, rs2, imm);
                }
                3 => {
                    let op = self.rng.pick(&[Op::AmoaddW, Op::AmoorD, Op::AmoswapW]);
                    self.a.op(op, ZERO, r, rs2, 0);
                }
                4 if !only => self.a.op(Op::Addi, r, r, 0, 8),
                5 => sc = if sc == Op::ScD { Op::ScW } else { Op::ScD },
                _ => self.a.op(Op::Addi, d, d, 0, 1),
            }
        }
        let (rd, rs2, order) = (self.rng.pick(&[e, e, ZERO, r]), self.any(), self.rng.below(4) as i32);
        self.a.op(sc, rd, r, rs2, order);
    }

    /// An atomic access to the cell that `r` points to.
    pub fn atomic_at(&mut self, r: u8) {
        let mut d = self.reg();
        while d == r {
            d = self.reg();
        }
        if self.rng.chance(50) {
            return self.lr_sc_at(r, d, d, true);
        }
        let op = self.rng.pick(&[Op::AmoaddD, Op::AmoxorW, Op::AmomaxD, Op::AmoswapW]);
        let (rd, rs2) = (self.rng.pick(&[d, ZERO]), self.any());
        self.a.op(op, rd, r, rs2, 0);
    }

    fn csr(&mut self) {
        let op = self.rng.pick(&[Op::Csrrw, Op::Csrrs, Op::Csrrc, Op::Csrrwi, Op::Csrrsi, Op::Csrrci]);
        // Any register that there is, and more often those that an engine has a form of its own for.
        let row = loop {
            let row = &TABLE[self.rng.below(TABLE.len() as u64) as usize];
            if row.present() {
                break row;
            }
        };
        let any = row.first + self.rng.below((row.last - row.first + 1).into()) as u16;
        let favoured = [num::MIE, num::MEPC, num::MINSTRET, num::INSTRET, num::MCYCLE, num::FFLAGS];
        let of_modes = [
            [num::SIE, num::SIP, num::SEPC, num::SCAUSE, num::STVAL, num::SCOUNTEREN],
            [num::MIP, num::MIDELEG, num::MEDELEG, num::MENVCFG, num::STIMECMP, num::MCOUNTEREN],
        ];
        let mut csr = match self.rng.below(4) {
            0 | 1 => any,
            2 if self.o.modes => {
                let set = self.rng.pick(&of_modes);
                self.rng.pick(&set)
            }
            _ => self.rng.pick(&favoured),
        };
        if self.o.traps && self.rng.chance(10) {
            csr = self.rng.below(0x1000) as u16;
        }
        // What leaves the unit off as often as on, or may name a rounding mode that there is not, leads to traps.
        if matches!(csr, num::FRM | num::FCSR) && !self.o.traps {
            csr = num::FFLAGS;
        }
        if matches!(csr, num::MSTATUS | num::SSTATUS) && !(self.o.traps && self.rng.chance(30)) {
            csr = num::MIE;
        }
        // The handler's own, and the one that the host's clock may drive, are only read, or left alone.
        match csr {
            num::MTVEC | num::TIME => csr = num::MSCRATCH,
            num::STVEC => csr = num::SSCRATCH,
            _ => {}
        }
        if matches!(csr, num::MSCRATCH | num::SSCRATCH) {
            let rd = self.reg();
            return self.a.op(Op::Csrrs, rd, ZERO, 0, i32::from(csr));
        }
        let (rd, rs1) = (self.rng.pick(&FREE), self.rng.pick(&[ZERO, self.rng.clone().below(32) as u8]));
        // Read-only ones are written only where traps are welcome.
        let read = read_only(csr) && !self.o.traps;
        let (op, rs1) = if read { (Op::Csrrs, ZERO) } else { (op, rs1) };
        self.a.op(op, rd, rs1, 0, i32::from(csr));
    }

    fn trap(&mut self) {
        match self.rng.below(5) {
            0 => self.a.op(Op::Ecall, 0, 0, 0, 0),
            1 => self.a.op(Op::Ebreak, 0, 0, 0, 0),
            2 if self.o.compressed => {
                let bits = self.rng.pick(&[0x0000, 0x9002, 0x6001, 0x8002, 0x8000]);
                self.a.half(bits);
            }
            3 if self.o.modes => {
                let op = self.rng.pick(&[Op::SfenceVma, Op::SinvalVma, Op::SfenceWInval, Op::SfenceInvalIr]);
                let (rs1, rs2) = if op.format() == Format::Addresses { (self.any(), self.any()) } else { (0, 0) };
                self.a.op(op, 0, rs1, rs2, 0)
            }
            _ => {
                let bits = self.rng.pick(&[0xffff_ffff, 0x0020_0073, 0x2200_0073, 0x0205_5553, 0x0205_151b]);
                self.a.word(bits);
            }
        }
    }

    /// A compressed instruction that neither jumps nor spoils a pointer.
    pub fn short(&mut self) -> u16 {
        loop {
            let mut h = self.rng.bits() as u16 & !3 | self.rng.below(3) as u16;
            let mut i = expand(h);
            if i.op.is_memory() && i.rs1 != SP {
                // c.lw and its like: let the base be s0.
                h &= !0x380;
                i = expand(h);
            }
            let on = self.o.floats || !i.op.is_float();
            let harmless = on && !i.op.ends_block() && (!i.op.writes_rd() || i.op.writes_f() || FREE.contains(&i.rd));
            if harmless {
                return h;
            }
        }
    }

    /// Anything at all.
    fn wild(&mut self) {
        match self.rng.below(3) {
            0 => {
                let bits = self.rng.bits() as u16;
                self.a.half(if self.o.compressed { bits } else { 0 });
                if !self.o.compressed {
                    self.a.half(0);
                }
            }
            1 => {
                let bits = self.rng.bits() as u32;
                self.a.word(bits | if self.o.compressed { 0 } else { 3 });
            }
            _ => {
                let p = self.rng.pick(PATTERNS);
                // Waiting for an interrupt that never comes tells nothing.
                if p.op != Op::Wfi {
                    let noise = self.rng.bits() as u32 & !p.mask;
                    self.a.word(p.value | noise);
                }
            }
        }
    }
}
