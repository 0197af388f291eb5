//! The control and status registers of a hart with the modes M, S and U.
//!
//! ```text
//!   csrrw rd, csr, rs1 ─▶ execute ─▶ the register's row in the table ─▶ Illegal, if it is absent, of a higher mode, off, not enabled
//!                                ├─▶ read                              ─▶ Illegal, if it is read-only and written
//!                                └─▶ write: WARL mask, rule ─▶ CsrEffect: must the hart look for interrupts?
//! ```
//!
//! [`table`](TABLE) has what is known of each register, `fields` its bits; here is how a value is read, `write` has how it is
//! written.
//!
//! What is there: the registers of the modes M, S and U, with delegation, Sstc, and sixteen PMP entries; triggers that read
//! zero. What is not there has a row that says so.
//!
//! The counters are offsets from [`CpuState::retired`]: nothing is counted twice, and an inhibited counter keeps its
//! value instead. A cycle is an instruction. What a counter reads is the count before the instruction that reads it;
//! what is written is what the next instruction reads.
mod fields;
mod state;
mod table;
mod write;

use super::decode::Insn;
use super::opcodes::Op;
use super::privilege::Privilege;
use crate::clock::Clock;
use crate::cpu::CpuState;
use write::write;

pub use fields::{envcfg, irq, mstatus, pmpcfg, satp};
pub use table::{Gate, Name, Row, Rule, TABLE, Value, Word, find, lowest_mode, num, read_only};

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
    /// Exceptions that S-mode handles unless they are of M-mode, one bit each.
    pub medeleg: u64,
    /// Interrupts that S-mode handles, one bit each; see [`irq`].
    pub mideleg: u64,
    /// Interrupts that software made pending; devices drive others. See [`Csrs::pending`].
    pub mip: u64,
    /// The counters that lower modes read, one bit each.
    pub mcounteren: u64,
    /// What lower modes may do; see [`envcfg`].
    pub menvcfg: u64,
    /// As `mtvec`, of S-mode, and so are the next four.
    pub stvec: u64,
    /// The handler's own word.
    pub sscratch: u64,
    /// Where the trap came from.
    pub sepc: u64,
    /// Why it came.
    pub scause: u64,
    /// The address or the instruction that it is about.
    pub stval: u64,
    /// The counters that U-mode reads, of those that S-mode does.
    pub scounteren: u64,
    /// What U-mode may do, of what `menvcfg` allows.
    pub senvcfg: u64,
    /// When the timer of S-mode is due, if there is one: see [`Csrs::supervisor_deadline`].
    pub stimecmp: u64,
    /// Where addresses of S-mode and U-mode are translated.
    pub satp: u64,
    pub(crate) mcountinhibit: u64,
    pub(crate) cycle: Counter,
    pub(crate) instret: Counter,
    pmpcfg0: u64,
    pmpcfg2: u64,
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
            mstatus: mstatus::RESET,
            mie: 0,
            mtvec: 0,
            mscratch: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            medeleg: 0,
            mideleg: 0,
            mip: 0,
            mcounteren: 0,
            menvcfg: 0,
            stvec: 0,
            sscratch: 0,
            sepc: 0,
            scause: 0,
            stval: 0,
            scounteren: 0,
            senvcfg: 0,
            stimecmp: u64::MAX,
            satp: 0,
            mcountinhibit: 0,
            cycle: Counter(0),
            instret: Counter(0),
            pmpcfg0: 0,
            pmpcfg2: 0,
            pmpaddr: [0; 16],
            fflags: 0,
            frm: 0,
        }
    }
}

/// What a CSR access sees of the world outside the hart.
#[derive(Debug, Clone, Copy)]
pub struct CsrEnv<'a> {
    /// Interrupt bits as devices and timers drive them now.
    pub mip: u64,
    /// For `time`.
    pub clock: &'a Clock,
}

/// The access raises an illegal-instruction exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Illegal;

/// What a CSR write means to the exec loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum CsrEffect {
    /// Nothing beyond the register.
    None,
    /// An interrupt that is already pending may have become takable: look before the next instruction.
    Interrupts,
    /// A timer has another deadline: a slice that was cut for the old one must end.
    Deadline,
    /// Addresses mean something else, or other ones are refused.
    Memory,
}

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
    fn inhibited(&self, bit: u8) -> bool {
        self.mcountinhibit >> bit & 1 != 0
    }

    /// `fcsr`: the mode above the flags.
    fn fcsr(&self) -> u64 {
        u64::from(self.frm) << 5 | u64::from(self.fflags)
    }

    /// `mip`, while devices and timers drive these lines.
    #[inline]
    pub fn pending(&self, lines: u64) -> u64 {
        (lines | self.mip) & irq::ALL
    }

    /// When the timer of S-mode is due by itself (Sstc); `u64::MAX` if that is never.
    #[inline]
    pub fn supervisor_deadline(&self) -> u64 {
        if self.menvcfg & envcfg::STCE != 0 { self.stimecmp } else { u64::MAX }
    }
}

impl Gate {
    /// Does a mode that may know the register reach it?
    fn is_open(self, cpu: &CpuState, csr: u16) -> bool {
        let (c, mode) = (&cpu.csr, cpu.privilege);
        let counted = |number: u16| {
            let enabled = if mode == Privilege::U { c.mcounteren & c.scounteren } else { c.mcounteren };
            enabled >> (number & 31) & 1 != 0
        };
        match self {
            Gate::None => true,
            Gate::Float => c.mstatus & mstatus::FS != 0,
            _ if mode == Privilege::M => true,
            Gate::Counter => counted(csr),
            Gate::Timer => c.menvcfg & envcfg::STCE != 0 && counted(num::TIME),
            Gate::Translation => c.mstatus & mstatus::TVM == 0,
        }
    }
}

/// The register's row, if the hart has it and its mode reaches it.
fn reach(cpu: &CpuState, csr: u16) -> Result<&'static Row, Illegal> {
    let row = find(csr).filter(|row| row.present()).ok_or(Illegal)?;
    let open = table::lowest_mode(csr) <= cpu.privilege && row.gate.is_open(cpu, csr);
    if open { Ok(row) } else { Err(Illegal) }
}

/// Reads a CSR as an instruction does that has not retired yet.
///
/// # Errors
/// [`Illegal`]: there is no such CSR, or it is closed to this mode.
pub fn csr_read(cpu: &CpuState, csr: u16, env: &CsrEnv) -> Result<u64, Illegal> {
    Ok(read(cpu, reach(cpu, csr)?, csr, env))
}

fn read(cpu: &CpuState, row: &Row, csr: u16, env: &CsrEnv) -> u64 {
    let c = &cpu.csr;
    match row.value {
        Value::Absent(_) | Value::Fixed => row.ones,
        Value::Word(word) => c.word(word, csr - row.first),
        Value::Float(shift) => c.fcsr() >> shift & row.mask,
        Value::Counter(word, bit) => Counter(c.word(word, 0)).get(c.inhibited(bit), cpu.retired),
        Value::Part(word, mask) => c.word(word, 0) & mask,
        Value::Delegated => c.mie & c.mideleg,
        Value::Pending(_) => c.pending(env.mip),
        Value::DelegatedPending => c.pending(env.mip) & c.mideleg,
        Value::Time => {
            env.clock.publish(cpu.retired);
            env.clock.mtime()
        }
        Value::Isa => cpu.isa.misa(),
        Value::HartId => cpu.hart_id,
    }
}

/// Writes a CSR as an instruction does that has not retired yet. Bits a register cannot hold are dropped (WARL).
///
/// # Errors
/// [`Illegal`]: there is no such CSR, it is closed to this mode, or only read.
pub fn csr_write(cpu: &mut CpuState, csr: u16, value: u64) -> Result<CsrEffect, Illegal> {
    if table::read_only(csr) {
        return Err(Illegal);
    }
    let row = reach(cpu, csr)?;
    Ok(write(cpu, row, csr, value))
}

/// The registers that have a word of the state, by number, with their words: what two harts are compared by.
pub fn words(csrs: &Csrs) -> impl Iterator<Item = (Name, u64)> {
    let words = TABLE.iter().flat_map(move |row| {
        (row.first..=row.last).filter_map(move |csr| match row.value {
            Value::Word(word) | Value::Counter(word, _) | Value::Pending(word) if !read_only(csr) => {
                Some((Name(csr), csrs.word(word, csr - row.first)))
            }
            _ => None,
        })
    });
    words.chain([(Name(num::FCSR), csrs.fcsr())])
}

/// The first register that two harts differ in, with both words.
pub fn difference(a: &Csrs, b: &Csrs) -> Option<String> {
    let differs =
        |((name, a), (_, b)): ((Name, u64), (Name, u64))| (a != b).then(|| format!("{name} is {a:#x}, not {b:#x}"));
    words(a).zip(words(b)).find_map(differs)
}

/// Runs one Zicsr instruction, up to but without the retirement: the CSR and `rd` change, `pc` and
/// [`CpuState::retired`] do not. Nothing changes when it is illegal.
///
/// # Errors
/// [`Illegal`]: no Zicsr instruction, or as for [`csr_read`] and [`csr_write`].
pub fn execute(cpu: &mut CpuState, insn: &Insn, env: &CsrEnv) -> Result<CsrEffect, Illegal> {
    let csr = insn.csr();
    let operand = operand(cpu, insn).ok_or(Illegal)?;
    let row = reach(cpu, csr)?;
    let old = read(cpu, row, csr, env);
    // What a device drives is read, but does not stay behind as what software made pending.
    let own = if row.rule == Rule::Pending { old & !(env.mip & irq::SEI & !cpu.csr.mip) } else { old };
    let new = written(insn, own, operand);
    let effect = match new {
        Some(_) if table::read_only(csr) => return Err(Illegal),
        Some(value) => write(cpu, row, csr, value),
        None => CsrEffect::None,
    };
    if insn.rd != 0 {
        cpu.x[usize::from(insn.rd & 31)] = old;
    }
    Ok(effect)
}

/// What a Zicsr instruction has beside the register's value.
fn operand(cpu: &CpuState, insn: &Insn) -> Option<u64> {
    match insn.op {
        Op::Csrrw | Op::Csrrs | Op::Csrrc => Some(cpu.x[usize::from(insn.rs1 & 31)]),
        Op::Csrrwi | Op::Csrrsi | Op::Csrrci => Some(u64::from(insn.rs1)),
        _ => None,
    }
}

/// What it writes, if it does.
fn written(insn: &Insn, old: u64, operand: u64) -> Option<u64> {
    match insn.op {
        Op::Csrrw | Op::Csrrwi => Some(operand),
        // Setting or clearing by x0 (or by an immediate of 0) is a read; by a register that holds 0 it is a write.
        _ if insn.rs1 == 0 => None,
        Op::Csrrs | Op::Csrrsi => Some(old | operand),
        _ => Some(old & !operand),
    }
}

/// What the next instruction would write to `satp`, if that has a mode which is not there: then the register stays as it is, and nothing
/// else tells of it.
pub fn refused_satp(cpu: &CpuState, insn: &Insn) -> Option<u64> {
    if !insn.op.is_csr() || insn.csr() != num::SATP {
        return None;
    }
    let value = written(insn, cpu.csr.satp, operand(cpu, insn)?)?;
    (satp::MODES >> (value >> satp::MODE_SHIFT) & 1 == 0).then_some(value)
}

#[cfg(test)]
mod tests;
