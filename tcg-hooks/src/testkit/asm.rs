//! The image under construction: a cursor, backpatching, and the parts that every program has.
use super::encode::encode;
use super::rng::Rng;
use super::{Options, Program};
use crate::riscv::csr::{mstatus, num};
use crate::riscv::opcodes::Op;

/// Offsets from the base: code, data, and the page that code is copied to.
pub(super) const CODE: u64 = 0x1000;
pub(super) const DATA: u64 = 0x5000;
pub(super) const COPIES: u64 = 0x9000;
const END: u64 = 0xb000;
/// The registers' first values, in the data.
const REGISTERS: u64 = DATA;
const TRAP_LIMIT: i32 = 64;

pub(super) const ZERO: u8 = 0;
pub(super) const RA: u8 = 1;
pub(super) const SP: u8 = 2;
pub(super) const S0: u8 = 8;
pub(super) const S1: u8 = 9;
pub(super) const S2: u8 = 18;
pub(super) const S3: u8 = 19;
pub(super) const S4: u8 = 20;
pub(super) const S10: u8 = 26;
pub(super) const S11: u8 = 27;
pub(super) const T4: u8 = 29;
pub(super) const T5: u8 = 30;
pub(super) const T6: u8 = 31;
/// Destinations that do no harm to the program's bones.
pub(super) const FREE: [u8; 20] = [3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22, 23, 24, 25, 28, 0];

/// The registers of the mode that handles a trap, and how it goes back.
struct Handler {
    vector: u16,
    scratch: u16,
    cause: u16,
    epc: u16,
    enable: u16,
    status: u16,
    /// The mode before, in `status`.
    mask: i32,
    back: Op,
}

const MACHINE: Handler = Handler {
    vector: num::MTVEC,
    scratch: num::MSCRATCH,
    cause: num::MCAUSE,
    epc: num::MEPC,
    enable: num::MIE,
    status: num::MSTATUS,
    mask: mstatus::MPP as i32,
    back: Op::Mret,
};

const SUPERVISOR: Handler = Handler {
    vector: num::STVEC,
    scratch: num::SSCRATCH,
    cause: num::SCAUSE,
    epc: num::SEPC,
    enable: num::SIE,
    status: num::SSTATUS,
    mask: mstatus::SPP as i32,
    back: Op::Sret,
};

pub(super) struct Asm {
    pub base: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl Asm {
    pub fn new(base: u64) -> Asm {
        Asm { base, bytes: vec![0; END as usize], at: 0 }
    }

    /// Where the next instruction goes, as an offset from the base.
    pub fn here(&self) -> u64 {
        self.at as u64
    }

    pub fn seek(&mut self, offset: u64) {
        self.at = offset as usize;
    }

    /// Is there room for a few hundred more bytes of code?
    pub fn has_room(&self) -> bool {
        self.here() + 0x300 < DATA
    }

    pub fn half(&mut self, bits: u16) {
        self.put(&bits.to_le_bytes());
    }

    pub fn word(&mut self, bits: u32) {
        self.put(&bits.to_le_bytes());
    }

    pub fn put(&mut self, bytes: &[u8]) {
        // A generator that runs over its pages is a mistake of ours, but not one to die of: the excess is dropped.
        if let Some(place) = self.bytes.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }

    pub fn op(&mut self, op: Op, rd: u8, rs1: u8, rs2: u8, imm: i32) {
        self.word(encode(op, rd, rs1, rs2, imm));
    }

    /// Leaves four bytes for an instruction that is known later.
    pub fn hole(&mut self) -> u64 {
        let at = self.here();
        self.word(0);
        at
    }

    /// Fills a hole. `imm` is what the instruction's own place makes of a target: see [`Asm::distance`].
    pub fn fill(&mut self, hole: u64, op: Op, rd: u8, rs1: u8, rs2: u8, imm: i32) {
        let end = self.at;
        self.at = hole as usize;
        self.op(op, rd, rs1, rs2, imm);
        self.at = end;
    }

    /// From an instruction at `from` to `to`.
    pub fn distance(from: u64, to: u64) -> i32 {
        to.wrapping_sub(from) as i32
    }

    /// Any 32-bit constant, sign-extended.
    pub fn li(&mut self, rd: u8, value: i32) {
        let low = value << 20 >> 20;
        let high = value.wrapping_sub(low);
        if high == 0 {
            self.op(Op::Addi, rd, ZERO, 0, low);
        } else {
            self.op(Op::Lui, rd, 0, 0, high);
            self.op(Op::Addiw, rd, rd, 0, low);
        }
    }

    /// The address of an offset into the image, relative to the pc.
    pub fn la(&mut self, rd: u8, target: u64) {
        let distance = Asm::distance(self.here(), target);
        let low = distance << 20 >> 20;
        self.op(Op::Auipc, rd, 0, 0, distance.wrapping_sub(low));
        self.op(Op::Addi, rd, rd, 0, low);
    }

    pub fn j(&mut self, rd: u8, target: u64) {
        let imm = Asm::distance(self.here(), target);
        self.op(Op::Jal, rd, 0, 0, imm);
    }

    /// The first page: handler, prologue, the end. Returns the entry and the stop; `body` is where the prologue goes.
    pub fn frame(&mut self, body: u64, options: &Options, rng: &mut Rng) -> (u64, u64) {
        self.data(options.ram_len, rng);
        self.seek(0);
        let stop = self.here();
        self.op(Op::Jal, ZERO, 0, 0, 0);
        let handlers = [&MACHINE, &SUPERVISOR].map(|handler| {
            let at = self.here();
            self.handler(stop, handler, options.modes);
            (at, handler.vector)
        });
        let entry = self.here();
        for (at, vector) in handlers {
            self.la(T6, at);
            self.op(Op::Csrrw, ZERO, T6, 0, vector.into());
        }
        self.op(Op::Csrrwi, ZERO, 0, 0, num::MSCRATCH.into());
        if options.modes {
            self.modes(rng);
        }
        self.la(T6, REGISTERS);
        for x in 1..31 {
            self.op(Op::Ld, x, T6, 0, 8 * i32::from(x));
        }
        if options.floats {
            self.float_registers(256, rng);
        }
        self.la(T4, stop);
        self.j(ZERO, body);
        (entry, stop)
    }

    /// What lower modes may do, and where their traps go.
    fn modes(&mut self, rng: &mut Rng) {
        // All memory, for all modes.
        self.li(T6, -1);
        self.op(Op::Csrrw, ZERO, T6, 0, num::PMPADDR0.into());
        self.op(Op::Csrrwi, ZERO, 0x1f, 0, num::PMPCFG0.into());
        let all = [num::MEDELEG, num::MIDELEG, num::MCOUNTEREN, num::SCOUNTEREN, num::MENVCFG, num::SENVCFG, num::MIE];
        for csr in all.into_iter().chain([num::MIP]) {
            let value = rng.pick(&[0, -1, rng.clone().bits() as i32]);
            self.li(T6, value);
            self.op(Op::Csrrw, ZERO, T6, 0, csr.into());
        }
        // Ticks of 100 instructions.
        self.op(Op::Csrrwi, ZERO, rng.below(12) as u8, 0, num::STIMECMP.into());
    }

    /// Counts the trap; gives up at the limit; leaves interrupts by switching them off; skips what trapped, or, if
    /// that could not even be fetched, goes where `t4` says. A call comes back in a mode that its address says, if there
    /// are modes.
    fn handler(&mut self, stop: u64, own: &Handler, modes: bool) {
        let csr = i32::from;
        self.op(Op::Csrrs, T5, ZERO, 0, csr(own.scratch));
        self.op(Op::Addi, T5, T5, 0, 1);
        self.op(Op::Csrrw, ZERO, T5, 0, csr(own.scratch));
        self.op(Op::Addi, T6, ZERO, 0, TRAP_LIMIT);
        self.op(Op::Bltu, 0, T5, T6, 8);
        self.j(ZERO, stop);
        self.op(Op::Csrrs, T6, ZERO, 0, csr(own.cause));
        self.op(Op::Bge, 0, T6, ZERO, 12);
        self.op(Op::Csrrwi, ZERO, 0, 0, csr(own.enable));
        self.op(own.back, 0, 0, 0, 0);
        // Instruction access fault.
        self.op(Op::Addi, T6, T6, 0, -1);
        self.op(Op::Bne, 0, T6, ZERO, 12);
        self.op(Op::Csrrw, ZERO, T4, 0, csr(own.epc));
        self.op(own.back, 0, 0, 0, 0);
        // Two bytes, or two more if the low bits say so.
        self.op(Op::Csrrs, T5, ZERO, 0, csr(own.epc));
        self.op(Op::Lhu, T6, T5, 0, 0);
        self.op(Op::Andi, T6, T6, 0, 3);
        self.op(Op::Sltiu, T6, T6, 0, 3);
        self.op(Op::Xori, T6, T6, 0, 1);
        self.op(Op::Slli, T6, T6, 0, 1);
        self.op(Op::Add, T5, T5, T6, 0);
        self.op(Op::Addi, T5, T5, 0, 2);
        self.op(Op::Csrrw, ZERO, T5, 0, csr(own.epc));
        if modes {
            self.op(Op::Csrrs, T6, ZERO, 0, csr(own.cause));
            self.op(Op::Srli, T6, T6, 0, 2);
            self.op(Op::Addi, T6, T6, 0, -2);
            let no_call = self.hole();
            // Bits 2 and up of the address that it comes back to.
            self.op(Op::Slli, T6, T5, 0, own.mask.trailing_zeros() as i32 - 2);
            self.li(T5, own.mask);
            self.op(Op::And, T6, T6, T5, 0);
            self.op(Op::Csrrc, ZERO, T5, 0, csr(own.status));
            self.op(Op::Csrrs, ZERO, T6, 0, csr(own.status));
            let end = self.here();
            self.fill(no_call, Op::Bne, 0, T6, ZERO, Asm::distance(no_call, end));
        }
        self.op(own.back, 0, 0, 0, 0);
    }

    /// The data pages: the registers, then words worth loading.
    fn data(&mut self, ram_len: u64, rng: &mut Rng) {
        let base = self.base;
        self.seek(REGISTERS);
        for x in 0..32u8 {
            let value = match x {
                SP => base + DATA + 0x1000 + 16 * rng.below(64),
                S0 => base + DATA + 0x1800,
                S1 => base + CODE,
                S2 => base + DATA + 0x2000,
                S3 => {
                    rng.pick(&[0, 0x1000, 0x4000_0000, base - 0x1000, u64::MAX - 7, 1 << 62, base + ram_len + 0x1000])
                }
                S4 => base + ram_len - 8,
                _ => rng.value(),
            };
            self.put(&value.to_le_bytes());
        }
        for _ in 0..32 {
            self.put(&super::float::value(rng).to_le_bytes());
        }
        while self.here() < COPIES {
            // Words keep the values small enough in number; some are instructions, for copies.
            let value = if rng.chance(30) { super::float::value(rng) } else { rng.value() };
            self.put(&value.to_le_bytes());
        }
    }

    pub fn finish(self, seed: u64, entry: u64, stop: u64, options: &Options) -> Program {
        let base = self.base;
        Program {
            seed,
            base,
            bytes: self.bytes,
            entry: base + entry,
            stop: base + stop,
            max_insns: 500 + 400 * u64::from(options.pieces),
        }
    }
}
