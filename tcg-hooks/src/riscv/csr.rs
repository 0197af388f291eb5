//! The control and status registers of an M-mode hart.
//!
//! ```text
//!   csrrw rd, csr, rs1 ─▶ execute ─▶ csr_read  ─▶ Illegal, if it is not there
//!                                └─▶ csr_write ─▶ WARL masks ─▶ CsrEffect: must the hart look for interrupts?
//! ```
//!
//! What is there: the machine information, trap and counter registers; sixteen PMP entries; triggers that read zero.
//! A PMP entry binds M-mode only when it is locked, and the lock bit is a WARL zero here, so the entries are storage
//! until S and U arrive. Absent, hence illegal: `medeleg`, `mideleg` (no S), `mcounteren`, `menvcfg` (no U).
//!
//! The counters are offsets from [`CpuState::retired`]: nothing is counted twice, and an inhibited counter keeps its
//! value instead. A cycle is an instruction. What a counter reads is the count before the instruction that reads it;
//! what is written is what the next instruction reads.
use super::decode::Insn;
use super::isa::Extension;
use super::opcodes::Op;
use crate::clock::Clock;
use crate::cpu::CpuState;

/// Fields of `mstatus`.
pub mod mstatus {
    /// Interrupts are enabled in M-mode.
    pub const MIE: u64 = 1 << 3;
    /// What MIE was before the trap.
    pub const MPIE: u64 = 1 << 7;
    /// The mode before the trap; M is the only one there is.
    pub const MPP: u64 = 3 << 11;
    /// The state of the floating-point unit: off, initial, clean, dirty.
    pub const FS: u64 = 3 << 13;
    /// FS: on, and as after reset.
    pub const FS_INITIAL: u64 = 1 << 13;
    /// Some state is dirty: FS is.
    pub const SD: u64 = 1 << 63;
}

/// Bits of `mie` and `mip`.
pub mod irq {
    /// Machine software interrupt.
    pub const MSI: u64 = 1 << 3;
    /// Machine timer interrupt.
    pub const MTI: u64 = 1 << 7;
    /// Machine external interrupt.
    pub const MEI: u64 = 1 << 11;
    /// All that an M-mode hart has.
    pub const ALL: u64 = MSI | MTI | MEI;
}

/// CSR numbers, by the manual's names.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod num {
    pub const FFLAGS: u16 = 0x001;
    pub const FRM: u16 = 0x002;
    pub const FCSR: u16 = 0x003;
    pub const MSTATUS: u16 = 0x300;
    pub const MISA: u16 = 0x301;
    pub const MIE: u16 = 0x304;
    pub const MTVEC: u16 = 0x305;
    pub const MCOUNTINHIBIT: u16 = 0x320;
    pub const MHPMEVENT3: u16 = 0x323;
    pub const MHPMEVENT31: u16 = 0x33f;
    pub const MSCRATCH: u16 = 0x340;
    pub const MEPC: u16 = 0x341;
    pub const MCAUSE: u16 = 0x342;
    pub const MTVAL: u16 = 0x343;
    pub const MIP: u16 = 0x344;
    pub const PMPCFG0: u16 = 0x3a0;
    pub const PMPCFG2: u16 = 0x3a2;
    pub const PMPADDR0: u16 = 0x3b0;
    pub const PMPADDR15: u16 = 0x3bf;
    pub const TSELECT: u16 = 0x7a0;
    pub const TDATA3: u16 = 0x7a3;
    pub const MCYCLE: u16 = 0xb00;
    pub const MINSTRET: u16 = 0xb02;
    pub const MHPMCOUNTER3: u16 = 0xb03;
    pub const MHPMCOUNTER31: u16 = 0xb1f;
    pub const CYCLE: u16 = 0xc00;
    pub const TIME: u16 = 0xc01;
    pub const INSTRET: u16 = 0xc02;
    pub const HPMCOUNTER3: u16 = 0xc03;
    pub const HPMCOUNTER31: u16 = 0xc1f;
    pub const MVENDORID: u16 = 0xf11;
    pub const MARCHID: u16 = 0xf12;
    pub const MIMPID: u16 = 0xf13;
    pub const MHARTID: u16 = 0xf14;
    pub const MCONFIGPTR: u16 = 0xf15;
}

/// A counter that costs nothing while nobody reads it: an offset from the retired instructions, or, while it is
/// inhibited, its value.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counter(u64);

/// The CSRs that have state.
#[repr(C)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csrs {
    /// Interrupt enables; see [`mstatus`].
    pub mstatus: u64,
    /// Which interrupts are enabled, one bit each; see [`irq`].
    pub mie: u64,
    /// Handler's address, and 1 if interrupts are vectored.
    pub mtvec: u64,
    /// The handler's own word.
    pub mscratch: u64,
    /// Where the trap came from.
    pub mepc: u64,
    /// Why it came.
    pub mcause: u64,
    /// The address or the instruction that it is about.
    pub mtval: u64,
    pub(crate) mcountinhibit: u64,
    pub(crate) cycle: Counter,
    pub(crate) instret: Counter,
    pmpcfg: [u64; 2],
    pmpaddr: [u64; 16],
    /// Accrued floating-point exceptions. While emitted code runs, the host's unit may hold more.
    pub fflags: u8,
    /// The dynamic rounding mode.
    pub frm: u8,
}

impl Default for Csrs {
    /// The state after reset.
    fn default() -> Self {
        Csrs {
            mstatus: mstatus::MPP,
            mie: 0,
            mtvec: 0,
            mscratch: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            mcountinhibit: 0,
            cycle: Counter(0),
            instret: Counter(0),
            pmpcfg: [0; 2],
            pmpaddr: [0; 16],
            fflags: 0,
            frm: 0,
        }
    }
}

/// What a CSR access sees of the world outside the hart.
#[derive(Debug, Clone, Copy)]
pub struct CsrEnv<'a> {
    /// Interrupt bits as devices drive them now.
    pub mip: u64,
    /// For `time`.
    pub clock: &'a Clock,
}

/// The access raises an illegal-instruction exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Illegal;

/// What a CSR write means to whoever runs the hart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum CsrEffect {
    /// Nothing beyond the register.
    None,
    /// An interrupt that is already pending may have become takable: look before the next instruction.
    Interrupts,
}

const CY: u64 = 1 << 0;
const IR: u64 = 1 << 2;
/// Per PMP entry: A, X, W, R. L and the reserved bits are zero.
const PMPCFG_MASK: u64 = 0x1f1f_1f1f_1f1f_1f1f;
/// Bits 55..2 of a 56-bit address.
const PMPADDR_MASK: u64 = (1 << 54) - 1;

impl Counter {
    fn get(self, inhibited: bool, retired: u64) -> u64 {
        if inhibited { self.0 } else { retired.wrapping_add(self.0) }
    }

    /// Makes the instruction after the current one (which retires as number `retired`) read `value`.
    fn set(&mut self, inhibited: bool, retired: u64, value: u64) {
        self.0 = if inhibited { value } else { value.wrapping_sub(retired.wrapping_add(1)) };
    }

    /// `mcountinhibit` changes. The instruction that stops or starts a counter is not counted.
    fn switch(&mut self, was: bool, is: bool, retired: u64) {
        if was != is {
            let value = self.get(was, retired);
            self.set(is, retired, value);
        }
    }
}

impl Csrs {
    fn inhibited(&self, bit: u64) -> bool {
        self.mcountinhibit & bit != 0
    }
}

/// Does this mode reach that register at all? Bits 9 and 8 of the number are the lowest privilege that does.
const fn reachable(privilege: u8, csr: u16) -> bool {
    (csr >> 8 & 3) as u8 <= privilege
}

/// Numbers with both top bits set are read-only.
const fn read_only(csr: u16) -> bool {
    csr >> 10 == 3
}

/// Reads a CSR as an instruction does that has not retired yet.
pub fn csr_read(cpu: &CpuState, csr: u16, env: &CsrEnv) -> Result<u64, Illegal> {
    if !reachable(cpu.privilege, csr) {
        return Err(Illegal);
    }
    let c = &cpu.csr;
    Ok(match csr {
        num::FFLAGS..=num::FCSR if c.mstatus & mstatus::FS == 0 => return Err(Illegal),
        num::FFLAGS => c.fflags.into(),
        num::FRM => c.frm.into(),
        num::FCSR => u64::from(c.frm) << 5 | u64::from(c.fflags),
        num::MSTATUS => c.mstatus,
        num::MISA => cpu.isa.misa(),
        num::MIE => c.mie,
        num::MTVEC => c.mtvec,
        num::MCOUNTINHIBIT => c.mcountinhibit,
        num::MSCRATCH => c.mscratch,
        num::MEPC => c.mepc,
        num::MCAUSE => c.mcause,
        num::MTVAL => c.mtval,
        num::MIP => env.mip & irq::ALL,
        num::PMPCFG0 => c.pmpcfg[0],
        num::PMPCFG2 => c.pmpcfg[1],
        num::PMPADDR0..=num::PMPADDR15 => c.pmpaddr[usize::from(csr - num::PMPADDR0)],
        num::MCYCLE | num::CYCLE => c.cycle.get(c.inhibited(CY), cpu.retired),
        num::MINSTRET | num::INSTRET => c.instret.get(c.inhibited(IR), cpu.retired),
        num::TIME => {
            env.clock.publish(cpu.retired);
            env.clock.mtime()
        }
        num::MHARTID => cpu.hart_id,
        // Counters without events, triggers of type "none", and no vendor.
        num::MHPMEVENT3..=num::MHPMEVENT31
        | num::MHPMCOUNTER3..=num::MHPMCOUNTER31
        | num::HPMCOUNTER3..=num::HPMCOUNTER31
        | num::TSELECT..=num::TDATA3
        | num::MVENDORID
        | num::MARCHID
        | num::MIMPID
        | num::MCONFIGPTR => 0,
        _ => return Err(Illegal),
    })
}

/// Writes a CSR as an instruction does that has not retired yet. Bits a register cannot hold are dropped (WARL).
pub fn csr_write(cpu: &mut CpuState, csr: u16, value: u64, env: &CsrEnv) -> Result<CsrEffect, Illegal> {
    if read_only(csr) {
        return Err(Illegal);
    }
    // What cannot be read is not there.
    csr_read(cpu, csr, env)?;
    let (retired, c) = (cpu.retired, &mut cpu.csr);
    match csr {
        num::FFLAGS..=num::FCSR => {
            c.mstatus |= mstatus::FS | mstatus::SD;
            if csr != num::FRM {
                c.fflags = value as u8 & 31;
            }
            match csr {
                num::FRM => c.frm = value as u8 & 7,
                num::FCSR => c.frm = (value >> 5) as u8 & 7,
                _ => {}
            }
        }
        num::MSTATUS => {
            let fs = if cpu.isa.has(Extension::F) { value & mstatus::FS } else { 0 };
            let sd = if fs == mstatus::FS { mstatus::SD } else { 0 };
            c.mstatus = value & (mstatus::MIE | mstatus::MPIE) | mstatus::MPP | fs | sd;
            return Ok(CsrEffect::Interrupts);
        }
        num::MIE => {
            c.mie = value & irq::ALL;
            return Ok(CsrEffect::Interrupts);
        }
        // The bits of M-mode interrupts belong to the devices; the write changes none, but a reader may expect
        // that pending ones are looked at.
        num::MIP => return Ok(CsrEffect::Interrupts),
        // Modes 2 and 3 are reserved; they become 0 and 1.
        num::MTVEC => c.mtvec = value & !2,
        num::MCOUNTINHIBIT => {
            let before = c.mcountinhibit;
            c.mcountinhibit = value & (CY | IR);
            c.cycle.switch(before & CY != 0, c.mcountinhibit & CY != 0, retired);
            c.instret.switch(before & IR != 0, c.mcountinhibit & IR != 0, retired);
        }
        num::MSCRATCH => c.mscratch = value,
        num::MEPC => c.mepc = value & !1,
        num::MCAUSE => c.mcause = value,
        num::MTVAL => c.mtval = value,
        num::PMPCFG0 => c.pmpcfg[0] = pmpcfg(value),
        num::PMPCFG2 => c.pmpcfg[1] = pmpcfg(value),
        num::PMPADDR0..=num::PMPADDR15 => c.pmpaddr[usize::from(csr - num::PMPADDR0)] = value & PMPADDR_MASK,
        num::MCYCLE => c.cycle.set(c.mcountinhibit & CY != 0, retired, value),
        num::MINSTRET => c.instret.set(c.mcountinhibit & IR != 0, retired, value),
        // misa, the event selectors, the triggers: hardwired.
        _ => {}
    }
    Ok(CsrEffect::None)
}

fn pmpcfg(value: u64) -> u64 {
    // W without R is reserved; such an entry loses its W.
    let readable = value & 0x0101_0101_0101_0101;
    value & PMPCFG_MASK & (!0x0202_0202_0202_0202 | readable << 1)
}

/// Runs one Zicsr instruction, up to but without the retirement: the CSR and `rd` change, `pc` and
/// [`CpuState::retired`] do not. Nothing changes when it is illegal.
pub fn execute(cpu: &mut CpuState, insn: &Insn, env: &CsrEnv) -> Result<CsrEffect, Illegal> {
    let csr = insn.csr();
    let operand = match insn.op {
        Op::Csrrw | Op::Csrrs | Op::Csrrc => cpu.x[usize::from(insn.rs1 & 31)],
        Op::Csrrwi | Op::Csrrsi | Op::Csrrci => u64::from(insn.rs1),
        _ => return Err(Illegal),
    };
    let old = csr_read(cpu, csr, env)?;
    let new = match insn.op {
        Op::Csrrw | Op::Csrrwi => Some(operand),
        // Setting or clearing by x0 (or by an immediate of 0) is a read; by a register that holds 0 it is a write.
        _ if insn.rs1 == 0 => None,
        Op::Csrrs | Op::Csrrsi => Some(old | operand),
        _ => Some(old & !operand),
    };
    let effect = match new {
        Some(value) => csr_write(cpu, csr, value, env)?,
        None => CsrEffect::None,
    };
    if insn.rd != 0 {
        cpu.x[usize::from(insn.rd & 31)] = old;
    }
    Ok(effect)
}

/// The manual's name of a CSR, if we have it.
pub fn name(csr: u16) -> Option<&'static str> {
    Some(match csr {
        num::FFLAGS => "fflags",
        num::FRM => "frm",
        num::FCSR => "fcsr",
        num::MSTATUS => "mstatus",
        num::MISA => "misa",
        num::MIE => "mie",
        num::MTVEC => "mtvec",
        num::MCOUNTINHIBIT => "mcountinhibit",
        num::MSCRATCH => "mscratch",
        num::MEPC => "mepc",
        num::MCAUSE => "mcause",
        num::MTVAL => "mtval",
        num::MIP => "mip",
        num::PMPCFG0 => "pmpcfg0",
        num::PMPCFG2 => "pmpcfg2",
        num::PMPADDR0 => "pmpaddr0",
        num::TSELECT => "tselect",
        0x7a1 => "tdata1",
        0x7a2 => "tdata2",
        num::TDATA3 => "tdata3",
        num::MCYCLE => "mcycle",
        num::MINSTRET => "minstret",
        num::CYCLE => "cycle",
        num::TIME => "time",
        num::INSTRET => "instret",
        num::MVENDORID => "mvendorid",
        num::MARCHID => "marchid",
        num::MIMPID => "mimpid",
        num::MHARTID => "mhartid",
        num::MCONFIGPTR => "mconfigptr",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::{Isa, decode};

    struct Hart {
        cpu: CpuState,
        clock: Clock,
        mip: u64,
    }

    impl Hart {
        fn new() -> Hart {
            Hart { cpu: CpuState::new(3, 0x8000_0000), clock: Clock::insns(), mip: 0 }
        }

        fn read(&self, csr: u16) -> Result<u64, Illegal> {
            csr_read(&self.cpu, csr, &CsrEnv { mip: self.mip, clock: &self.clock })
        }

        fn write(&mut self, csr: u16, value: u64) -> Result<CsrEffect, Illegal> {
            csr_write(&mut self.cpu, csr, value, &CsrEnv { mip: self.mip, clock: &self.clock })
        }

        /// Runs `op a0, csr, a1` or, for the immediate forms, `op a0, csr, rs1`, and retires it.
        fn run(&mut self, op: Op, csr: u16, rs1: u8) -> Result<u64, Illegal> {
            let insn = decode::Insn { op, rd: 10, rs1, rs2: 0, len: 4, imm: i32::from(csr) };
            let effect = execute(&mut self.cpu, &insn, &CsrEnv { mip: self.mip, clock: &self.clock });
            self.cpu.retired += u64::from(effect.is_ok());
            effect.map(|_| self.cpu.x[10])
        }
    }

    #[test]
    fn what_is_absent_is_illegal_to_read_and_to_write() {
        let mut h = Hart::new();
        // medeleg, mideleg, mcounteren, menvcfg, satp, fcsr while FS is off, sstatus, pmpcfg1, pmpaddr16, mstateen0, tcontrol, 0xb01.
        for csr in [0x302, 0x303, 0x306, 0x30a, 0x180, 0x003, 0x100, 0x3a1, 0x3c0, 0x30c, 0x7a5, 0xb01] {
            assert_eq!(h.read(csr), Err(Illegal), "{csr:#x}");
            assert_eq!(h.write(csr, 0), Err(Illegal), "{csr:#x}");
        }
    }

    #[test]
    fn the_floating_point_registers_are_parts_of_one_and_make_it_dirty() {
        let mut h = Hart::new();
        assert!(h.write(num::MSTATUS, mstatus::FS_INITIAL).is_ok());
        assert_eq!(h.read(num::FCSR), Ok(0));
        assert_eq!(h.read(num::MSTATUS), Ok(mstatus::MPP | mstatus::FS_INITIAL), "reading leaves it as it is");
        assert!(h.write(num::FCSR, 0xffff_ff7d).is_ok());
        assert_eq!(h.read(num::MSTATUS), Ok(mstatus::MPP | mstatus::FS | mstatus::SD));
        assert_eq!([num::FCSR, num::FRM, num::FFLAGS].map(|csr| h.read(csr)), [Ok(0x7d), Ok(3), Ok(0x1d)]);
        assert!(h.write(num::FRM, 0xff).is_ok());
        assert!(h.write(num::FFLAGS, 0x22).is_ok());
        assert_eq!(h.read(num::FCSR), Ok(0xe2));
        h.cpu.isa = Isa::parse("rv64imac").unwrap();
        assert!(h.write(num::MSTATUS, !0).is_ok());
        assert_eq!(h.read(num::FCSR), Err(Illegal), "without F it cannot be switched on");
    }

    #[test]
    fn read_only_registers_can_be_read_and_set_by_x0_only() {
        let mut h = Hart::new();
        for csr in [num::CYCLE, num::TIME, num::INSTRET, num::HPMCOUNTER31, num::MHARTID, num::MCONFIGPTR] {
            assert!(h.run(Op::Csrrs, csr, 0).is_ok(), "{csr:#x}");
            assert!(h.run(Op::Csrrci, csr, 0).is_ok(), "{csr:#x}");
            let before = h.cpu.x[10];
            assert_eq!(h.run(Op::Csrrw, csr, 0), Err(Illegal), "{csr:#x}");
            assert_eq!(h.run(Op::Csrrs, csr, 11), Err(Illegal), "{csr:#x}: a1 holds 0, but it is a write");
            assert_eq!(h.run(Op::Csrrwi, csr, 0), Err(Illegal), "{csr:#x}");
            assert_eq!(h.cpu.x[10], before, "rd changed");
        }
        assert_eq!(h.read(num::MHARTID), Ok(3));
    }

    #[test]
    fn fields_hold_only_what_is_legal() {
        let mut h = Hart::new();
        let cases = [
            (num::MSTATUS, mstatus::MIE | mstatus::MPIE | mstatus::MPP | mstatus::FS | mstatus::SD, mstatus::MPP),
            (num::MIE, irq::ALL, 0),
            (num::MTVEC, !2, 0),
            (num::MCOUNTINHIBIT, 5, 0),
            (num::MSCRATCH, !0, 0),
            (num::MEPC, !1, 0),
            (num::MCAUSE, !0, 0),
            (num::MTVAL, !0, 0),
            (num::MIP, 0, 0),
            (num::MISA, Isa::ALL.misa(), Isa::ALL.misa()),
            (num::PMPCFG0, 0x1f1f_1f1f_1f1f_1f1f, 0),
            (num::PMPADDR15, (1 << 54) - 1, 0),
            (num::TSELECT, 0, 0),
            (num::MHPMEVENT3, 0, 0),
            (num::MHPMCOUNTER31, 0, 0),
        ];
        for (csr, ones, zeros) in cases {
            assert!(h.write(csr, !0).is_ok(), "{csr:#x}");
            assert_eq!(h.read(csr), Ok(ones), "{csr:#x}");
            assert!(h.write(csr, 0).is_ok(), "{csr:#x}");
            assert_eq!(h.read(csr), Ok(zeros), "{csr:#x}");
        }
        assert!(h.write(num::PMPCFG2, 0x0203_0206).is_ok());
        assert_eq!(h.read(num::PMPCFG2), Ok(0x0003_0004), "W needs R");
    }

    #[test]
    fn the_six_forms_read_the_old_value_and_change_the_right_bits() {
        let mut h = Hart::new();
        h.cpu.x[11] = 0b1100;
        assert_eq!(h.run(Op::Csrrwi, num::MSCRATCH, 0b1010), Ok(0));
        assert_eq!(h.run(Op::Csrrs, num::MSCRATCH, 11), Ok(0b1010));
        assert_eq!(h.run(Op::Csrrci, num::MSCRATCH, 0b0010), Ok(0b1110));
        assert_eq!(h.run(Op::Csrrc, num::MSCRATCH, 11), Ok(0b1100));
        assert_eq!(h.run(Op::Csrrw, num::MSCRATCH, 11), Ok(0));
        assert_eq!(h.run(Op::Csrrsi, num::MSCRATCH, 1), Ok(0b1100));
        assert_eq!(h.read(num::MSCRATCH), Ok(0b1101));
        // rd and rs1 may be one register.
        h.cpu.x[10] = 77;
        assert_eq!(h.run(Op::Csrrw, num::MSCRATCH, 10), Ok(0b1101));
        assert_eq!(h.read(num::MSCRATCH), Ok(77));
    }

    #[test]
    fn the_next_instruction_reads_what_was_written_to_a_counter() {
        let mut h = Hart::new();
        h.cpu.retired = 1000;
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(1000));
        assert_eq!(h.run(Op::Csrrwi, num::MINSTRET, 0), Ok(1001));
        assert_eq!(h.run(Op::Csrrs, num::INSTRET, 0), Ok(0));
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(1));
        assert_eq!(h.run(Op::Csrrs, num::MCYCLE, 0), Ok(1004), "the other counter went on");
        h.cpu.x[11] = u64::MAX;
        assert_eq!(h.run(Op::Csrrw, num::MCYCLE, 11), Ok(1005));
        assert_eq!(h.run(Op::Csrrs, num::CYCLE, 0), Ok(u64::MAX));
        assert_eq!(h.run(Op::Csrrs, num::CYCLE, 0), Ok(0), "it wraps");
    }

    #[test]
    fn an_inhibited_counter_stands_still() {
        let mut h = Hart::new();
        h.cpu.retired = 50;
        assert_eq!(h.run(Op::Csrrsi, num::MCOUNTINHIBIT, 4), Ok(0));
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(50));
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(50));
        assert_eq!(h.run(Op::Csrrs, num::MCYCLE, 0), Ok(53), "only instret was stopped");
        assert_eq!(h.run(Op::Csrrwi, num::MINSTRET, 9), Ok(50));
        assert_eq!(h.run(Op::Csrrsi, num::MCOUNTINHIBIT, 4), Ok(4));
        assert_eq!(h.run(Op::Csrrci, num::MCOUNTINHIBIT, 4), Ok(4));
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(9));
        assert_eq!(h.run(Op::Csrrs, num::MINSTRET, 0), Ok(10));
    }

    #[test]
    fn devices_drive_mip_and_the_hart_cannot() {
        let mut h = Hart::new();
        h.mip = irq::MTI | 1 << 40;
        assert_eq!(h.read(num::MIP), Ok(irq::MTI));
        assert_eq!(h.write(num::MIP, 0), Ok(CsrEffect::Interrupts));
        assert_eq!(h.read(num::MIP), Ok(irq::MTI));
        assert_eq!(h.write(num::MSCRATCH, 0), Ok(CsrEffect::None));
        assert_eq!(h.write(num::MIE, irq::MTI), Ok(CsrEffect::Interrupts));
        assert_eq!(h.write(num::MSTATUS, mstatus::MIE), Ok(CsrEffect::Interrupts));
    }

    #[test]
    fn lower_privileges_reach_less() {
        let mut h = Hart::new();
        h.cpu.privilege = 0;
        assert_eq!(h.read(num::MSCRATCH), Err(Illegal));
        assert_eq!(h.write(num::MSCRATCH, 0), Err(Illegal));
        assert!(h.read(num::CYCLE).is_ok());
    }

    #[test]
    fn no_number_panics() {
        let mut h = Hart::new();
        for csr in 0..=0xffff {
            assert!(h.read(csr).is_ok() || h.write(csr, !0).is_err(), "{csr:#x}");
        }
    }
}
