//! Into a trap handler, out of it, and which interrupt comes first.
//!
//! ```text
//!   Trap { cause, tval } ─ take_trap ─▶ mepc, mcause, mtval;  MPIE ← MIE ← 0;  pc ← mtvec (+ 4 × cause, if vectored)
//!   mret                              ◀─ MIE ← MPIE ← 1;  pc ← mepc
//! ```
//!
//! M-mode is the only mode so far, so nothing is delegated and MPP stays M.
use super::csr::mstatus;
use super::decode::Insn;
use crate::cpu::CpuState;
use notdirty_softmmu::{AccessKind, FaultCause, MemFault};

/// Values of `mcause`.
pub mod cause {
    /// Set for interrupts.
    pub const INTERRUPT: u64 = 1 << 63;
    /// Instruction address misaligned; with the C extension no jump can cause it.
    pub const FETCH_MISALIGNED: u64 = 0;
    /// Instruction access fault.
    pub const FETCH_ACCESS: u64 = 1;
    /// Illegal instruction.
    pub const ILLEGAL: u64 = 2;
    /// `ebreak`.
    pub const BREAKPOINT: u64 = 3;
    /// Load address misaligned.
    pub const LOAD_MISALIGNED: u64 = 4;
    /// Load access fault.
    pub const LOAD_ACCESS: u64 = 5;
    /// Store or AMO address misaligned.
    pub const STORE_MISALIGNED: u64 = 6;
    /// Store or AMO access fault.
    pub const STORE_ACCESS: u64 = 7;
    /// `ecall` from U; add the privilege for the others (9 from S, 11 from M).
    pub const ECALL_U: u64 = 8;
    /// Instruction page fault.
    pub const FETCH_PAGE: u64 = 12;
    /// Load page fault.
    pub const LOAD_PAGE: u64 = 13;
    /// Store or AMO page fault.
    pub const STORE_PAGE: u64 = 15;
    /// Machine software interrupt.
    pub const MSI: u64 = INTERRUPT | 3;
    /// Machine timer interrupt.
    pub const MTI: u64 = INTERRUPT | 7;
    /// Machine external interrupt.
    pub const MEI: u64 = INTERRUPT | 11;
}

/// Why an instruction did not complete, or what interrupted the hart between two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Trap {
    /// For `mcause`; see [`cause`].
    pub cause: u64,
    /// For `mtval`.
    pub tval: u64,
}

impl Trap {
    /// An exception for these instruction bits.
    pub const fn illegal(bits: u64) -> Trap {
        Trap { cause: cause::ILLEGAL, tval: bits }
    }

    /// An illegal-instruction exception for an instruction that decoded, but may not run (a CSR that is not there).
    /// Its bits are put together again: decoding keeps all of them for the Zicsr forms, which alone need this.
    pub const fn illegal_csr(insn: &Insn) -> Trap {
        let funct3 = match insn.op {
            super::Op::Csrrw => 1,
            super::Op::Csrrs => 2,
            super::Op::Csrrc => 3,
            super::Op::Csrrwi => 5,
            super::Op::Csrrsi => 6,
            super::Op::Csrrci => 7,
            _ => return Trap::illegal(insn.illegal_bits()),
        };
        let (csr, rs1, rd) = (insn.csr() as u64, insn.rs1 as u64, insn.rd as u64);
        Trap::illegal(csr << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x73)
    }

    /// `ebreak` at `pc`.
    pub const fn breakpoint(pc: u64) -> Trap {
        Trap { cause: cause::BREAKPOINT, tval: pc }
    }

    /// `ecall` from this privilege.
    pub const fn ecall(privilege: u8) -> Trap {
        Trap { cause: cause::ECALL_U + privilege as u64, tval: 0 }
    }

    /// The manual's name of the cause.
    pub const fn name(&self) -> &'static str {
        match self.cause {
            cause::FETCH_MISALIGNED => "instruction address misaligned",
            cause::FETCH_ACCESS => "instruction access fault",
            cause::ILLEGAL => "illegal instruction",
            cause::BREAKPOINT => "breakpoint",
            cause::LOAD_MISALIGNED => "load address misaligned",
            cause::LOAD_ACCESS => "load access fault",
            cause::STORE_MISALIGNED => "store/AMO address misaligned",
            cause::STORE_ACCESS => "store/AMO access fault",
            8 => "environment call from U-mode",
            9 => "environment call from S-mode",
            11 => "environment call from M-mode",
            cause::FETCH_PAGE => "instruction page fault",
            cause::LOAD_PAGE => "load page fault",
            cause::STORE_PAGE => "store/AMO page fault",
            cause::MSI => "machine software interrupt",
            cause::MTI => "machine timer interrupt",
            cause::MEI => "machine external interrupt",
            _ => "unknown cause",
        }
    }

    /// An interrupt, with a cause from [`pending_interrupt`].
    pub const fn interrupt(cause: u64) -> Trap {
        Trap { cause, tval: 0 }
    }
}

impl From<MemFault> for Trap {
    fn from(fault: MemFault) -> Trap {
        use {AccessKind::*, FaultCause::*};
        let cause = match (fault.kind, fault.cause) {
            (Fetch, Misaligned) => cause::FETCH_MISALIGNED,
            (Fetch, Access) => cause::FETCH_ACCESS,
            (Fetch, Page) => cause::FETCH_PAGE,
            (Load, Misaligned) => cause::LOAD_MISALIGNED,
            (Load, Access) => cause::LOAD_ACCESS,
            (Load, Page) => cause::LOAD_PAGE,
            (Store, Misaligned) => cause::STORE_MISALIGNED,
            (Store, Access) => cause::STORE_ACCESS,
            (Store, Page) => cause::STORE_PAGE,
        };
        Trap { cause, tval: fault.addr.get() }
    }
}

/// Enters the handler. `epc` is the instruction that trapped, or the one an interrupt kept from running.
pub fn take_trap(cpu: &mut CpuState, trap: &Trap, epc: u64) {
    let csr = &mut cpu.csr;
    csr.mepc = epc & !1;
    csr.mcause = trap.cause;
    csr.mtval = trap.tval;
    let mpie = if csr.mstatus & mstatus::MIE != 0 { mstatus::MPIE } else { 0 };
    csr.mstatus = csr.mstatus & !(mstatus::MIE | mstatus::MPIE) | mpie | mstatus::MPP;
    let base = csr.mtvec & !3;
    let vectored = csr.mtvec & 1 != 0 && trap.cause & cause::INTERRUPT != 0;
    cpu.pc = if vectored { base.wrapping_add((trap.cause & !cause::INTERRUPT) << 2) } else { base };
    cpu.privilege = 3;
}

/// Returns from the handler: the effect of `mret` on `pc`, `mstatus` and the privilege.
pub fn mret(cpu: &mut CpuState) {
    let csr = &mut cpu.csr;
    let mie = if csr.mstatus & mstatus::MPIE != 0 { mstatus::MIE } else { 0 };
    csr.mstatus = csr.mstatus & !mstatus::MIE | mie | mstatus::MPIE;
    cpu.privilege = 3;
    cpu.pc = csr.mepc;
}

/// The interrupt to take now, as a value for `mcause`, given the bits that devices drive.
#[inline]
pub fn pending_interrupt(cpu: &CpuState, mip: u64) -> Option<u64> {
    let ready = mip & cpu.csr.mie;
    if ready == 0 || (cpu.privilege == 3 && cpu.csr.mstatus & mstatus::MIE == 0) {
        return None;
    }
    [cause::MEI, cause::MSI, cause::MTI].into_iter().find(|c| ready >> (c & 63) & 1 != 0)
}

/// Whether a hart in `wfi` goes on: an enabled interrupt is pending, whatever MIE says.
#[inline]
pub fn wakes_from_wfi(cpu: &CpuState, mip: u64) -> bool {
    mip & cpu.csr.mie != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_softmmu::GuestVirt;

    fn cpu() -> CpuState {
        let mut cpu = CpuState::new(0, 0x8000_0000);
        cpu.csr.mtvec = 0x8000_1000;
        cpu
    }

    #[test]
    fn a_trap_and_its_return_restore_the_interrupt_enable() {
        let mut c = cpu();
        c.csr.mstatus |= mstatus::MIE;
        take_trap(&mut c, &Trap::illegal(0xabcd), 0x8000_0010);
        assert_eq!((c.pc, c.csr.mepc, c.csr.mcause, c.csr.mtval), (0x8000_1000, 0x8000_0010, 2, 0xabcd));
        assert_eq!(c.csr.mstatus, mstatus::MPP | mstatus::MPIE);
        mret(&mut c);
        assert_eq!(c.pc, 0x8000_0010);
        assert_eq!(c.csr.mstatus, mstatus::MPP | mstatus::MPIE | mstatus::MIE);
    }

    #[test]
    fn only_interrupts_are_vectored() {
        let mut c = cpu();
        c.csr.mtvec |= 1;
        take_trap(&mut c, &Trap::ecall(3), 0x8000_0010);
        assert_eq!((c.pc, c.csr.mcause, c.csr.mtval), (0x8000_1000, 11, 0));
        take_trap(&mut c, &Trap::interrupt(cause::MTI), 0x8000_0010);
        assert_eq!((c.pc, c.csr.mcause), (0x8000_1000 + 4 * 7, cause::MTI));
    }

    #[test]
    fn external_comes_before_software_before_timer() {
        let mut c = cpu();
        c.csr.mie = 1 << 11 | 1 << 7 | 1 << 3;
        assert_eq!(pending_interrupt(&c, !0), None, "MIE is off");
        assert!(wakes_from_wfi(&c, 1 << 7));
        c.csr.mstatus |= mstatus::MIE;
        assert_eq!(pending_interrupt(&c, 1 << 11 | 1 << 7 | 1 << 3), Some(cause::MEI));
        assert_eq!(pending_interrupt(&c, 1 << 7 | 1 << 3), Some(cause::MSI));
        assert_eq!(pending_interrupt(&c, 1 << 7), Some(cause::MTI));
        assert_eq!(pending_interrupt(&c, 0), None);
        c.csr.mie = 1 << 7;
        assert_eq!(pending_interrupt(&c, 1 << 11 | 1 << 3), None);
        assert!(!wakes_from_wfi(&c, 1 << 11 | 1 << 3));
    }

    #[test]
    fn a_memory_fault_keeps_its_kind_and_address() {
        let fault = |kind, cause| Trap::from(MemFault { kind, cause, addr: GuestVirt::new(0x1235) });
        assert_eq!(fault(AccessKind::Fetch, FaultCause::Access), Trap { cause: 1, tval: 0x1235 });
        assert_eq!(fault(AccessKind::Load, FaultCause::Access).cause, 5);
        assert_eq!(fault(AccessKind::Store, FaultCause::Misaligned).cause, 6);
        assert_eq!(fault(AccessKind::Store, FaultCause::Page).cause, 15);
    }

    #[test]
    fn an_absent_csr_shows_the_whole_instruction_in_mtval() {
        for bits in [0x3020_9573u32, 0x1800_2073, 0x302f_e7f3] {
            assert_eq!(Trap::illegal_csr(&crate::riscv::decode(bits)).tval, u64::from(bits));
        }
    }
}
