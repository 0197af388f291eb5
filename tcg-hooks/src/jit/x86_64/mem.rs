//! Loads and stores: the TLB probe in line, everything else behind the TB.
//!
//! ```text
//!   lea rax, [base + imm + BIAS]        the biased address
//!   rorx ecx, eax, 7 ; and ecx, …       32 bytes an entry: (address >> 12) << 5
//!   and rax, !(0xfff ^ (size-1))        page and alignment bits
//!   cmp rax, [rbp + rcx + comparator] ; jne slow
//!   mov dst, [base + imm + K]           K = host - guest: the access does not wait for the entry
//! ```
//!
//! An entry whose addend is not K carries OTHER and never matches, so the last line is right whenever it is reached.
use super::context::TABLE;
use super::regs::{RAX, RCX, RDX};
use super::{Cold, Emitter};
use crate::ir::{Ir, MemOp};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use notdirty_softmmu::tlb::entry::{ADDEND, BIAS, ENTRY_BITS, FLAGS, READ, TLB_ENTRIES, WRITE};

const SHIFT: i8 = (notdirty_core::PAGE_BITS - ENTRY_BITS) as i8;
const INDEX: i32 = ((TLB_ENTRIES - 1) << ENTRY_BITS) as i32;

impl Emitter {
    /// Leaves the entry's offset in rcx; the base register survives.
    fn probe(&mut self, base: u8, imm: i32, bytes: u32, comparator: i32, slow: DynamicLabel) {
        let mask = !(FLAGS as i32) | (bytes as i32 - 1);
        dynasm!(self.ops; .arch x64; lea rax, [Rq(base) + (imm + BIAS as i32)]);
        if self.bmi2 {
            dynasm!(self.ops; .arch x64; rorx ecx, eax, SHIFT);
        } else {
            dynasm!(self.ops; .arch x64; mov ecx, eax; shr ecx, SHIFT);
        }
        dynasm!(self.ops; .arch x64
            ; and ecx, DWORD INDEX
            ; and rax, DWORD mask
            ; cmp rax, [rbp + rcx + (TABLE + comparator)]
            ; jne =>slow);
    }

    /// Register for the entry's addend, or none, and the displacement: host address = base + register + displacement.
    fn host_address(&mut self, imm: i32) -> (bool, i32) {
        match self.flat {
            Some(k) => (false, k + imm),
            None => {
                dynasm!(self.ops; .arch x64; mov rcx, [rbp + rcx + (TABLE + ADDEND)]);
                (true, imm)
            }
        }
    }

    fn slow(&mut self, site: u16) -> (DynamicLabel, DynamicLabel) {
        let (label, back) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        self.cold.push(Cold::Slow { label, back, site });
        (label, back)
    }

    pub(super) fn load(&mut self, ir: &Ir, mem: MemOp) {
        let imm = ir.imm as i32;
        let base = self.source(ir.a, RDX);
        let (slow, back) = self.slow(ir.site);
        self.probe(base, imm, mem.bytes(), READ, slow);
        let (indexed, disp) = self.host_address(imm);
        let d = if ir.rd == 0 { RAX } else { self.target(ir.rd, RAX) };
        macro_rules! go {
            ($op:ident $reg:ident $size:ident) => {
                if indexed {
                    dynasm!(self.ops; .arch x64; $op $reg(d), $size [Rq(base) + rcx + disp])
                } else {
                    dynasm!(self.ops; .arch x64; $op $reg(d), $size [Rq(base) + disp])
                }
            };
        }
        match (mem.bytes(), mem.signed()) {
            (1, true) => go!(movsx Rq BYTE),
            (1, false) => go!(movzx Rd BYTE),
            (2, true) => go!(movsx Rq WORD),
            (2, false) => go!(movzx Rd WORD),
            (4, true) => go!(movsxd Rq DWORD),
            (4, false) => go!(mov Rd DWORD),
            _ => go!(mov Rq QWORD),
        }
        if ir.rd != 0 {
            self.done(ir.rd, d);
        }
        // The slow path wrote the register where it lives.
        dynasm!(self.ops; .arch x64; =>back);
    }

    pub(super) fn store(&mut self, ir: &Ir, mem: MemOp) {
        let imm = ir.imm as i32;
        let base = self.source(ir.a, RDX);
        let (slow, back) = self.slow(ir.site);
        self.probe(base, imm, mem.bytes(), WRITE, slow);
        let (indexed, disp) = self.host_address(imm);
        let value = self.source(ir.b, RAX);
        macro_rules! go {
            ($reg:ident) => {
                if indexed {
                    dynasm!(self.ops; .arch x64; mov [Rq(base) + rcx + disp], $reg(value))
                } else {
                    dynasm!(self.ops; .arch x64; mov [Rq(base) + disp], $reg(value))
                }
            };
        }
        match mem.bytes() {
            1 => go!(Rb),
            2 => go!(Rw),
            4 => go!(Rd),
            _ => go!(Rq),
        }
        dynasm!(self.ops; .arch x64; =>back);
    }
}

const _: () = assert!(RCX == 1, "probe and host_address name rcx");
