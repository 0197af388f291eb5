//! Into a trap handler, out of it, and which interrupt comes first.
//!
//! ```text
//!   Trap { cause, tval } ─ take_trap ─▶ mepc, mcause, mtval;  MPP ← mode ← M;  MPIE ← MIE ← 0;  pc ← mtvec (+ 4 × cause,
//!                                       if vectored); delegated, and not from M-mode: the same with s for m
//!   mret                              ◀─ MIE ← MPIE ← 1;  mode ← MPP ← U;  pc ← mepc;  MPRV ← 0, unless the mode is M
//! ```
use super::csr::{irq, mstatus};
use super::decode::Insn;
use super::opcodes::PATTERNS;
use super::privilege::Privilege;
use super::{Format, Op};
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
    /// No trap of the guest's: an access was not made, as its bytes are watched.
    pub(crate) const WATCHED: u64 = 1 << 62;
    /// Nor is this: an access was not made, as its page is yet to come.
    pub(crate) const MISSING: u64 = 1 << 61;
    /// Supervisor software interrupt.
    pub const SSI: u64 = INTERRUPT | 1;
    /// Supervisor timer interrupt.
    pub const STI: u64 = INTERRUPT | 5;
    /// Supervisor external interrupt.
    pub const SEI: u64 = INTERRUPT | 9;
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

    /// An illegal-instruction exception for an instruction that decoded, but may not run: of Zicsr, by a register that is
    /// not there or not reached, or of those that a mode may not execute ([`CpuState::may_execute`]). Its bits are put
    /// together again; decoding keeps all that such an instruction has.
    pub const fn not_allowed(insn: &Insn) -> Trap {
        if matches!(insn.op, Op::Illegal) {
            return Trap::illegal(insn.illegal_bits());
        }
        let pattern = &PATTERNS[insn.op as usize];
        let csr = if matches!(pattern.format, Format::Csr | Format::CsrImm) { insn.csr() as u64 } else { 0 };
        let (rd, rs1, rs2) = ((insn.rd & 31) as u64, (insn.rs1 & 31) as u64, (insn.rs2 & 31) as u64);
        Trap::illegal(pattern.value as u64 | csr << 20 | rs2 << 20 | rs1 << 15 | rd << 7)
    }

    /// `ebreak` at `pc`.
    pub const fn breakpoint(pc: u64) -> Trap {
        Trap { cause: cause::BREAKPOINT, tval: pc }
    }

    /// `ecall` from this mode.
    pub const fn ecall(mode: Privilege) -> Trap {
        Trap { cause: cause::ECALL_U + mode.bits(), tval: 0 }
    }

    /// Is it an interrupt, and no exception?
    pub const fn is_interrupt(&self) -> bool {
        self.cause & cause::INTERRUPT != 0
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
            cause::SSI => "supervisor software interrupt",
            cause::STI => "supervisor timer interrupt",
            cause::SEI => "supervisor external interrupt",
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
            (_, Watched) => cause::WATCHED,
            (_, Missing) => cause::MISSING,
        };
        Trap { cause, tval: fault.addr.get() }
    }
}

/// Does S-mode handle a trap? M-mode does, unless it is delegated and did not come from there.
#[inline]
pub fn is_delegated(cpu: &CpuState, trap: &Trap) -> bool {
    cpu.privilege != Privilege::M && is_delegated_below(cpu, trap)
}

/// Apart, so that what happens in M-mode alone stays short.
#[inline(never)]
fn is_delegated_below(cpu: &CpuState, trap: &Trap) -> bool {
    let delegated = if trap.is_interrupt() { cpu.csr.mideleg } else { cpu.csr.medeleg };
    // Causes are below 64; what a host makes up is not.
    let bit = 1u64.checked_shl((trap.cause & !cause::INTERRUPT).min(64) as u32).unwrap_or(0);
    delegated & bit != 0
}

/// Enters the handler. `epc` is the instruction that trapped, or the one an interrupt kept from running.
pub fn take_trap(cpu: &mut CpuState, trap: &Trap, epc: u64) {
    if is_delegated(cpu, trap) { take_in_s_mode(cpu, trap, epc) } else { take_in_m_mode(cpu, trap, epc) }
}

/// The same of a trap that is not [delegated](is_delegated).
#[inline]
pub fn take_in_m_mode(cpu: &mut CpuState, trap: &Trap, epc: u64) {
    let (from, csr) = (cpu.privilege, &mut cpu.csr);
    let mpie = (csr.mstatus & mstatus::MIE) << 4;
    let mpp = from.bits() << mstatus::MPP_SHIFT;
    csr.mstatus = csr.mstatus & !(mstatus::MIE | mstatus::MPIE | mstatus::MPP) | mpie | mpp;
    (csr.mepc, csr.mcause, csr.mtval) = (epc & !1, trap.cause, trap.tval);
    (cpu.pc, cpu.privilege) = (entry(csr.mtvec, trap), Privilege::M);
}

/// The same of one that is.
#[inline(never)]
pub fn take_in_s_mode(cpu: &mut CpuState, trap: &Trap, epc: u64) {
    let (from, csr) = (cpu.privilege, &mut cpu.csr);
    let spie = (csr.mstatus & mstatus::SIE) << 4;
    let spp = from.bits() << mstatus::SPP_SHIFT;
    csr.mstatus = csr.mstatus & !(mstatus::SIE | mstatus::SPIE | mstatus::SPP) | spie | spp;
    (csr.sepc, csr.scause, csr.stval) = (epc & !1, trap.cause, trap.tval);
    (cpu.pc, cpu.privilege) = (entry(csr.stvec, trap), Privilege::S);
}

/// Where the handler begins: interrupts have places of their own, if the register asks for that.
#[inline]
fn entry(vector: u64, trap: &Trap) -> u64 {
    let base = vector & !3;
    let vectored = vector & 1 != 0 && trap.is_interrupt();
    if vectored { base.wrapping_add((trap.cause & !cause::INTERRUPT) << 2) } else { base }
}

/// Returns from M-mode's handler: the effect of `mret` on `pc`, `mstatus` and the mode.
#[inline]
pub fn mret(cpu: &mut CpuState) {
    let csr = &mut cpu.csr;
    let status = csr.mstatus;
    let to = Privilege::from_bits(status >> mstatus::MPP_SHIFT);
    let mie = (status & mstatus::MPIE) >> 4;
    csr.mstatus = status & !(mstatus::MIE | mstatus::MPP) | mie | mstatus::MPIE;
    (cpu.pc, cpu.privilege) = (csr.mepc, to);
    leave_mprv(cpu);
}

/// Returns from S-mode's handler, as `sret` does.
#[inline]
pub fn sret(cpu: &mut CpuState) {
    let csr = &mut cpu.csr;
    let status = csr.mstatus;
    let sie = (status & mstatus::SPIE) >> 4;
    csr.mstatus = status & !(mstatus::SIE | mstatus::SPP) | sie | mstatus::SPIE;
    (cpu.pc, cpu.privilege) = (csr.sepc, Privilege::from_bits(status >> mstatus::SPP_SHIFT & 1));
    leave_mprv(cpu);
}

/// MPRV is M-mode's: a return to another mode clears it.
#[inline]
fn leave_mprv(cpu: &mut CpuState) {
    if cpu.privilege != Privilege::M {
        cpu.csr.mstatus &= !mstatus::MPRV;
    }
}

/// The interrupt to take now, as a value for `mcause`, given the bits that devices and timers drive. A mode is interrupted
/// by what modes above it handle always, and by what it handles itself if it has enabled that.
#[inline]
pub fn pending_interrupt(cpu: &CpuState, lines: u64) -> Option<u64> {
    let ready = takable(cpu, lines);
    let is_ready = |cause: u64| ready >> (cause & 63) & 1 != 0;
    // By rank.
    match ready {
        0 => None,
        _ if is_ready(cause::MEI) => Some(cause::MEI),
        _ if is_ready(cause::MSI) => Some(cause::MSI),
        _ if is_ready(cause::MTI) => Some(cause::MTI),
        _ if is_ready(cause::SEI) => Some(cause::SEI),
        _ if is_ready(cause::SSI) => Some(cause::SSI),
        _ => Some(cause::STI),
    }
}

/// The interrupts that the hart can take now, given the lines: those of M-mode, or if there are none, those of S-mode.
#[inline]
fn takable(cpu: &CpuState, lines: u64) -> u64 {
    let csr = &cpu.csr;
    let ready = csr.pending(lines) & csr.mie;
    if ready == 0 {
        return 0;
    }
    let open =
        |mode: Privilege, enable: u64| cpu.privilege < mode || cpu.privilege == mode && csr.mstatus & enable != 0;
    let m = if open(Privilege::M, mstatus::MIE) { ready & !csr.mideleg } else { 0 };
    let s = if open(Privilege::S, mstatus::SIE) { ready & csr.mideleg } else { 0 };
    if m != 0 { m } else { s }
}

/// Is there one, by [`pending_interrupt`]?
#[inline]
pub fn is_interrupted(cpu: &CpuState, lines: u64) -> bool {
    takable(cpu, lines) != 0
}

/// Could this interrupt be taken if it were pending?
#[inline]
pub fn is_open(cpu: &CpuState, interrupt: u64) -> bool {
    cpu.csr.mie & interrupt != 0 && takable(cpu, interrupt) != 0
}

/// All that [`pending_interrupt`] looks at but the lines, and the deadline of S-mode's timer: while it stays as it is,
/// nothing becomes takable by what the hart does.
pub fn interrupt_state(cpu: &CpuState) -> impl PartialEq + use<> {
    let csr = &cpu.csr;
    let enables = csr.mstatus & (mstatus::MIE | mstatus::SIE);
    (cpu.privilege, enables, csr.mie, csr.mip, csr.mideleg, csr.supervisor_deadline())
}

/// Whether a hart in `wfi` goes on: an enabled interrupt is pending, whatever MIE, SIE and `mideleg` say.
#[inline]
pub fn wakes_from_wfi(cpu: &CpuState, lines: u64) -> bool {
    cpu.csr.pending(lines) & cpu.csr.mie != 0
}

/// The interrupts that a device may raise while the hart sleeps.
pub const BY_DEVICES: u64 = irq::MSI | irq::MEI | irq::SEI;

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
        let reset = c.csr.mstatus;
        c.csr.mstatus |= mstatus::MIE;
        take_trap(&mut c, &Trap::illegal(0xabcd), 0x8000_0010);
        assert_eq!((c.pc, c.csr.mepc, c.csr.mcause, c.csr.mtval), (0x8000_1000, 0x8000_0010, 2, 0xabcd));
        assert_eq!(c.csr.mstatus, reset | mstatus::MPP | mstatus::MPIE);
        mret(&mut c);
        assert_eq!(c.pc, 0x8000_0010);
        assert_eq!((c.privilege, c.csr.mstatus), (Privilege::M, reset & !mstatus::MPP | mstatus::MPIE | mstatus::MIE));
    }

    #[test]
    fn only_interrupts_are_vectored() {
        let mut c = cpu();
        c.csr.mtvec |= 1;
        take_trap(&mut c, &Trap::ecall(Privilege::M), 0x8000_0010);
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
    fn what_is_not_allowed_shows_the_whole_instruction_in_mtval() {
        let system = [0x1020_0073, 0x3020_0073, 0x1050_0073, 0x12b5_0073, 0x17f0_8073, 0x1800_0073, 0x1810_0073];
        for bits in [0x3020_9573u32, 0x1800_2073, 0x302f_e7f3, 0x0045_200f, 0x0005_a00f].into_iter().chain(system) {
            let insn = crate::riscv::decode(bits);
            assert_ne!(insn.op, Op::Illegal, "{bits:#x}");
            assert_eq!(Trap::not_allowed(&insn).tval, u64::from(bits), "{:?}", insn.op);
        }
        assert_eq!(Trap::not_allowed(&crate::riscv::decode(0xffff_ffff)).tval, 0xffff_ffff);
    }

    #[test]
    fn a_trap_goes_to_the_mode_that_it_is_delegated_to_unless_m_mode_raises_it() {
        for from in Privilege::ALL {
            let mut c = cpu();
            (c.privilege, c.csr.stvec, c.csr.medeleg) = (from, 0x8000_2001, 1 << 2);
            c.csr.mstatus |= mstatus::SIE | mstatus::MIE;
            let before = c.csr.mstatus;
            assert_eq!(is_delegated(&c, &Trap::illegal(7)), from != Privilege::M);
            take_trap(&mut c, &Trap::illegal(7), 0x8000_0010);
            if from == Privilege::M {
                assert_eq!((c.privilege, c.pc, c.csr.mcause, c.csr.scause), (Privilege::M, 0x8000_1000, 2, 0));
                continue;
            }
            assert_eq!((c.privilege, c.pc), (Privilege::S, 0x8000_2000));
            assert_eq!((c.csr.sepc, c.csr.scause, c.csr.stval, c.csr.mepc), (0x8000_0010, 2, 7, 0));
            let spp = if from == Privilege::S { mstatus::SPP } else { 0 };
            assert_eq!(c.csr.mstatus, before & !mstatus::SIE | mstatus::SPIE | spp, "MIE and MPP are as they were");
            // A call is not delegated, and comes back to S-mode.
            take_trap(&mut c, &Trap::ecall(Privilege::S), 0x8000_2004);
            assert_eq!((c.privilege, c.pc, c.csr.mcause), (Privilege::M, 0x8000_1000, 9));
            c.csr.mstatus |= mstatus::MPRV;
            mret(&mut c);
            assert_eq!((c.privilege, c.pc, c.csr.mstatus & mstatus::MPRV), (Privilege::S, 0x8000_2004, 0));
            sret(&mut c);
            assert_eq!((c.privilege, c.pc), (from, 0x8000_0010));
            assert_eq!(c.csr.mstatus & (mstatus::SIE | mstatus::SPIE | mstatus::SPP), mstatus::SIE | mstatus::SPIE);
        }
    }

    #[test]
    fn mprv_stays_in_m_mode_and_a_reserved_mode_is_u() {
        let mut c = cpu();
        c.csr.mstatus |= mstatus::MPP | mstatus::MPRV;
        mret(&mut c);
        assert_eq!((c.privilege, c.csr.mstatus & mstatus::MPRV), (Privilege::M, mstatus::MPRV));
        c.csr.mstatus = c.csr.mstatus & !mstatus::MPP | 2 << mstatus::MPP_SHIFT;
        mret(&mut c);
        assert_eq!((c.privilege, c.csr.mstatus & mstatus::MPRV), (Privilege::U, 0));
    }

    #[test]
    fn a_mode_is_interrupted_by_the_modes_above_it_always_and_by_itself_if_it_has_enabled_that() {
        let mut c = cpu();
        (c.csr.mie, c.csr.mideleg) = (irq::ALL, irq::SUPERVISOR);
        // Mode, status, lines, what comes.
        let (mie, sie) = (mstatus::MIE, mstatus::SIE);
        for (mode, status, lines, comes) in [
            (Privilege::M, 0, irq::ALL, None),
            (Privilege::M, sie, irq::ALL, None),
            (Privilege::M, mie | sie, irq::SUPERVISOR, None),
            (Privilege::M, mie, irq::ALL, Some(cause::MEI)),
            (Privilege::S, 0, irq::SUPERVISOR, None),
            (Privilege::S, mie, irq::SUPERVISOR, None),
            (Privilege::S, 0, irq::ALL, Some(cause::MEI)),
            (Privilege::S, sie, irq::SUPERVISOR, Some(cause::SEI)),
            (Privilege::S, sie, irq::SSI | irq::STI, Some(cause::SSI)),
            (Privilege::S, sie, irq::STI | irq::MTI, Some(cause::MTI)),
            (Privilege::U, 0, irq::STI, Some(cause::STI)),
            (Privilege::U, 0, irq::STI | irq::MSI, Some(cause::MSI)),
        ] {
            c.privilege = mode;
            c.csr.mstatus = status;
            assert_eq!(pending_interrupt(&c, lines), comes, "{mode} {status:#x} {lines:#x}");
        }
        // What is not delegated is M-mode's, behind its own, and what is disabled is not taken.
        (c.csr.mideleg, c.privilege, c.csr.mstatus) = (irq::SSI, Privilege::S, sie);
        assert_eq!(pending_interrupt(&c, irq::SEI | irq::SSI), Some(cause::SEI));
        assert_eq!(pending_interrupt(&c, irq::SEI | irq::MTI), Some(cause::MTI));
        c.csr.mie = irq::SSI;
        assert_eq!(pending_interrupt(&c, irq::SEI | irq::SSI), Some(cause::SSI));
        assert!(is_open(&c, irq::SSI) && !is_open(&c, irq::SEI));
        assert!(wakes_from_wfi(&c, irq::SSI) && !wakes_from_wfi(&c, irq::SEI));
        c.csr.mip = irq::SSI;
        assert_eq!(pending_interrupt(&c, 0), Some(cause::SSI), "software made it pending");
    }
}
