//! What the exec loop asks of a hart: which interrupts it takes, where its handlers are, what an exception means, its registers by name.
use super::csr::{self, irq, mstatus, num};
use super::disasm::{FLOAT_REGISTERS, REGISTERS};
use super::trap::{self, Trap, cause};
use super::{Extension, Insn, Isa, Op, Privilege};
use crate::cpu::CpuState;
use notdirty_softmmu::{AccessKind, Value};
use std::mem::offset_of;

pub(crate) use super::trap::{BY_DEVICES, interrupt_state, is_interrupted, is_open, wakes_from_wfi};

/// The line of the timer that is a device, and of that which the hart itself has.
pub(crate) const TIMER: u64 = irq::MTI;
pub(crate) const OWN_TIMER: u64 = irq::STI;

/// When the hart's own timer is due; `u64::MAX`: never.
#[inline]
pub(crate) fn own_deadline(cpu: &CpuState) -> u64 {
    cpu.csr.supervisor_deadline()
}

/// The interrupts that are enabled, a bit for each line, whether the mode takes them or not.
#[inline]
pub(crate) fn enabled(cpu: &CpuState) -> u64 {
    cpu.csr.mie
}

/// The interrupt that is taken now, with these lines up.
#[inline]
pub(crate) fn interrupt(cpu: &CpuState, lines: u64) -> Option<Trap> {
    trap::pending_interrupt(cpu, lines).map(Trap::interrupt)
}

/// Does the instruction show the lines?
#[inline]
pub(crate) fn shows_lines(insn: &Insn) -> bool {
    insn.op.is_csr() && matches!(insn.csr(), num::MIP | num::SIP)
}

/// Which handler a trap goes to: where it is, and in which mode.
#[derive(Clone, Copy)]
pub(crate) struct Handler {
    pub(crate) vector: u64,
    delegated: bool,
}

/// Of a trap that is about to be taken.
#[inline]
pub(crate) fn handler(cpu: &CpuState, trap: &Trap) -> Handler {
    let delegated = trap::is_delegated(cpu, trap);
    Handler { vector: if delegated { cpu.csr.stvec } else { cpu.csr.mtvec }, delegated }
}

/// Enters it.
#[inline]
pub(crate) fn take(cpu: &mut CpuState, trap: &Trap, epc: u64, to: Handler) {
    if to.delegated {
        trap::take_in_s_mode(cpu, trap, epc);
    } else {
        trap::take_in_m_mode(cpu, trap, epc);
    }
}

/// Where the code is that exceptions come to.
pub(crate) const fn code_at(vector: u64) -> u64 {
    vector & !3
}

/// An access that was not made, as its bytes are watched.
#[inline]
pub(crate) const fn is_watched(trap: &Trap) -> bool {
    trap.cause == cause::WATCHED
}

/// The same, or its page is yet to come: no trap of the guest's.
#[inline]
pub(crate) const fn is_hosts(trap: &Trap) -> bool {
    trap.cause & (cause::WATCHED | cause::MISSING) != 0 && !trap.is_interrupt()
}

/// An instruction that asks the debugger.
pub(crate) const fn is_breakpoint(trap: &Trap) -> bool {
    trap.cause == cause::BREAKPOINT
}

/// Did the program mean it, a call or a break?
pub(crate) const fn is_meant(trap: &Trap) -> bool {
    matches!(trap.cause, cause::BREAKPOINT | cause::ECALL_U..=11)
}

/// Of one that page tables or physical memory made: what was tried.
pub(crate) const fn access(trap: &Trap) -> Option<AccessKind> {
    match trap.cause {
        1 | 12 => Some(AccessKind::Fetch),
        4 | 5 | 13 => Some(AccessKind::Load),
        6 | 7 | 15 => Some(AccessKind::Store),
        _ => None,
    }
}

/// May it enable an interrupt, or leave the mode? The others do neither.
pub(crate) const fn is_system(insn: &Insn) -> bool {
    insn.op.is_system() || insn.op.is_csr()
}

/// Does it return from a handler?
pub(crate) const fn ends_handler(insn: &Insn) -> bool {
    matches!(insn.op, Op::Mret | Op::Sret)
}

/// What it would write to the register of page tables and does not, as that is no value which the hart has.
pub(crate) fn refused(cpu: &CpuState, insn: &Insn) -> Option<u64> {
    csr::refused_satp(cpu, insn)
}

/// The line of that; `at`: the symbol for `pc`.
pub(crate) fn refusal(cpu: &CpuState, (pc, at): (u64, &str), value: u64) -> String {
    let (stays, mode, by) = (cpu.csr.satp, value >> csr::satp::MODE_SHIFT, cpu.privilege.beside_pc());
    format!("satp stays {stays:#x}: {value:#x} by pc {pc:#x}{at}{by} has mode {mode}, which is reserved")
}

/// What emitted code looks at: places in [`CpuState`], and bits there.
pub(crate) mod seen {
    use super::{CpuState, offset_of};
    use crate::riscv::csr::Csrs;

    const AT: usize = offset_of!(CpuState, csr);
    /// A bit of this byte that is set stops its counter (`mcountinhibit`).
    pub(crate) const STOPPED: usize = AT + offset_of!(Csrs, mcountinhibit);
    /// This byte is 0 where floating point rounds to nearest even (`frm`).
    pub(crate) const ROUNDING: usize = AT + offset_of!(Csrs, frm);
    /// One of these bits is set while the unit is on (`mstatus.FS`), and while it is dirty (`mstatus.SD`).
    pub(crate) const UNIT_ON: (usize, u8) = (AT + offset_of!(Csrs, mstatus) + 1, 0x60);
    pub(crate) const UNIT_DIRTY: (usize, u8) = (AT + offset_of!(Csrs, mstatus) + 7, 0x80);
}

/// Exceptions of floating point came up.
#[inline]
pub(crate) fn raise(cpu: &mut CpuState, flags: u8) {
    cpu.csr.fflags |= flags;
}

/// Somebody else wrote a floating-point register; where the unit is on, it is dirty then.
pub(crate) fn wrote_float(cpu: &mut CpuState) {
    if cpu.csr.mstatus & mstatus::FS != 0 {
        cpu.csr.mstatus |= mstatus::FS | mstatus::SD;
    }
}

/// A hart as named values, for streams.
pub(crate) fn each(cpu: &mut CpuState, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
    // All of it, so that a field that comes is not forgotten here.
    let CpuState { x, pc, retired, f, privilege, hart_id, isa, csr } = cpu;
    for (name, register) in REGISTERS.iter().zip(x.iter_mut()).skip(1) {
        visit(name, Value::U64(register));
    }
    visit("pc", Value::U64(pc));
    *pc &= !1;
    visit("retired", Value::U64(retired));
    for (name, register) in FLOAT_REGISTERS.iter().zip(f.iter_mut()) {
        visit(name, Value::U64(register));
    }
    mode("privilege", privilege, visit);
    // A stream for another hart is refused: this one keeps its number.
    let mut id = *hart_id;
    visit("hart_id", Value::U64(&mut id));
    let mut bits = isa.bits();
    visit("isa", Value::U32(&mut bits));
    *isa = Isa::from_bits(bits);
    csr.each(isa.has(Extension::F), visit);
}

/// A mode by its bits.
pub(crate) fn mode(name: &'static str, mode: &mut Privilege, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
    let mut bits = mode.bits() as u8;
    visit(name, Value::U8(&mut bits));
    *mode = Privilege::from_bits(bits.into());
}
