//! Floating point and cache lines in random programs.
use super::asm::*;
use super::body::Gen;
use super::floats;
use crate::float::{F32, F64};
use crate::riscv::csr::{mstatus, num};
use crate::riscv::fpu::boxed;
use crate::riscv::opcodes::{Op, PATTERNS};
use crate::testkit::Rng;

/// A value for a floating-point register or for memory.
pub(super) fn value(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..3 => boxed(floats::one::<F32>(rng)),
        // Small integers keep results from being NaNs and infinities soon.
        3 => (rng.within(-99, 99) as f64).to_bits(),
        4 => boxed((rng.within(-99, 99) as f32).to_bits().into()),
        5 => rng.value(),
        _ => floats::one::<F64>(rng),
    }
}

impl Gen<'_> {
    /// Any instruction of F and D that is no load or store.
    pub fn float(&mut self) {
        let p = loop {
            let p = self.rng.pick(PATTERNS);
            if p.format.is_float() {
                break p;
            }
        };
        let noise = self.rng.bits() as u32;
        let rd = if p.op.writes_f() { self.any() } else { self.rng.pick(&FREE) };
        // Mostly a mode that there is, mostly that of frm.
        let modes = if self.o.traps { 0x7654_3210u32 } else { 0x7774_3210 };
        let rm = if self.rng.chance(60) { 7 } else { modes >> (4 * self.rng.below(8)) & 7 };
        let fields = noise & !0x7f80 & !0x7000 | u32::from(rd) << 7 | rm << 12;
        self.a.word(p.value | fields & !p.mask);
    }

    pub fn float_memory(&mut self) {
        let op = self.rng.pick(&[Op::Flw, Op::Fld, Op::Fsw, Op::Fsd]);
        let (base, imm) = self.place(op.mem_bytes(), op.is_load());
        let register = self.any();
        self.a.op(op, register, base, register, imm);
    }

    /// The rounding mode, the flags, and whether the unit is on.
    pub fn float_state(&mut self) {
        let (rd, r) = (self.rng.pick(&FREE), self.reg());
        match self.rng.below(6) {
            0 => {
                let op = self.rng.pick(&[Op::Csrrw, Op::Csrrs, Op::Csrrc]);
                let csr = self.rng.pick(&[num::FFLAGS, num::FRM, num::FCSR]);
                let csr = if self.o.traps { csr } else { num::FFLAGS };
                let rs1 = self.rng.pick(&[ZERO, r, r]);
                self.a.op(op, rd, rs1, 0, csr.into());
            }
            1 => {
                let mode = self.rng.pick(&[0, 0, 0, 1, 2, 3, 4, if self.o.traps { 6 } else { 0 }]);
                self.a.op(Op::Csrrwi, rd, mode, 0, num::FRM.into());
            }
            2 => {
                let flags = self.any();
                self.a.op(Op::Csrrwi, rd, flags, 0, num::FFLAGS.into());
            }
            3 => self.a.op(Op::Csrrs, rd, ZERO, 0, num::FCSR.into()),
            _ => {
                // Clean, or off; on again it is soon enough.
                let (clear, set) =
                    self.rng.pick(&[(mstatus::FS, 0), (1 << 13, 1 << 14), (0, mstatus::FS), (1 << 14, 1 << 13)]);
                let set = if self.o.traps && self.rng.chance(20) { set } else { set.max(1 << 13) };
                for (op, bits) in [(Op::Csrrc, clear), (Op::Csrrs, set)] {
                    self.a.li(r, bits as i32);
                    self.a.op(op, ZERO, r, 0, num::MSTATUS.into());
                }
            }
        }
    }

    /// A cache line of the data, cleared or managed.
    pub fn line(&mut self) {
        let r = self.reg();
        let imm = self.rng.within(-2048, 2040) as i32;
        self.a.op(Op::Addi, r, S0, 0, imm);
        let op = self.rng.pick(&[Op::CboZero, Op::CboZero, Op::CboInval, Op::CboClean, Op::CboFlush]);
        let base = if self.o.traps && self.rng.chance(5) { S3 } else { r };
        self.a.op(op, 0, base, 0, 0);
    }
}

impl Asm {
    /// The unit is on, with any mode and flags, and its registers are loaded, eight bytes each from `t6`.
    pub fn float_registers(&mut self, offset: i32, rng: &mut Rng) {
        self.li(T5, mstatus::FS_INITIAL as i32);
        self.op(Op::Csrrs, ZERO, T5, 0, num::MSTATUS.into());
        let (mode, flags) = (rng.pick(&[0, 0, 0, 0, 1, 2, 3, 4]), rng.below(32) as u8);
        self.op(Op::Csrrwi, ZERO, flags, 0, num::FFLAGS.into());
        self.op(Op::Csrrwi, ZERO, mode, 0, num::FRM.into());
        for f in 0..32 {
            self.op(Op::Fld, f, T6, 0, offset + 8 * i32::from(f));
        }
    }
}
