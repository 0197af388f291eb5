//! The control and status registers of an M-mode hart.
//!
//! ```text
//!   csrrw rd, csr, rs1 ─▶ execute ─▶ the register's row in the table ─▶ Illegal, if it is absent, of a higher mode, off
//!                                ├─▶ read                              ─▶ Illegal, if it is read-only and written
//!                                └─▶ write: WARL mask, rule ─▶ CsrEffect: must the hart look for interrupts?
//! ```
//!
//! [`table`](TABLE) has what is known of each register; here is how a value is read and written.
//!
//! What is there: the machine information, trap and counter registers; sixteen PMP entries; triggers that read zero.
//! A PMP entry binds M-mode only when it is locked, and the lock bit is a WARL zero here, so the entries are storage
//! until S and U arrive. What S and U bring is in the table, and absent.
//!
//! The counters are offsets from [`CpuState::retired`]: nothing is counted twice, and an inhibited counter keeps its
//! value instead. A cycle is an instruction. What a counter reads is the count before the instruction that reads it;
//! what is written is what the next instruction reads.
mod table;

use super::decode::Insn;
use super::isa::Extension;
use super::opcodes::Op;
use crate::clock::Clock;
use crate::cpu::CpuState;

pub use table::{Name, Row, Rule, TABLE, Value, Word, find, lowest_mode, num, read_only};

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
}

/// The register's row, if the hart has it and its mode reaches it.
fn reach(cpu: &CpuState, csr: u16) -> Result<&'static Row, Illegal> {
    let row = find(csr).ok_or(Illegal)?;
    let off = match row.value {
        Value::Absent(_) => true,
        Value::Float(_) => cpu.csr.mstatus & mstatus::FS == 0,
        _ => false,
    };
    if off || table::lowest_mode(csr) > cpu.privilege { Err(Illegal) } else { Ok(row) }
}

/// Reads a CSR as an instruction does that has not retired yet.
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
        Value::Pins => env.mip & irq::ALL,
        Value::Time => {
            env.clock.publish(cpu.retired);
            env.clock.mtime()
        }
        Value::Isa => cpu.isa.misa(),
        Value::HartId => cpu.hart_id,
    }
}

/// Writes a CSR as an instruction does that has not retired yet. Bits a register cannot hold are dropped (WARL).
pub fn csr_write(cpu: &mut CpuState, csr: u16, value: u64) -> Result<CsrEffect, Illegal> {
    if table::read_only(csr) {
        return Err(Illegal);
    }
    let row = reach(cpu, csr)?;
    Ok(write(cpu, row, csr, value))
}

fn write(cpu: &mut CpuState, row: &Row, csr: u16, value: u64) -> CsrEffect {
    let mut new = value & row.mask | row.ones;
    let (retired, c) = (cpu.retired, &mut cpu.csr);
    match row.rule {
        Rule::Plain => {}
        Rule::Status => {
            let fs = if cpu.isa.has(Extension::F) { new & mstatus::FS } else { 0 };
            let sd = if fs == mstatus::FS { mstatus::SD } else { 0 };
            new = new & !(mstatus::FS | mstatus::SD) | fs | sd;
        }
        Rule::Inhibit => {
            let (cycle, instret) = (c.inhibited(0), c.inhibited(2));
            c.cycle.switch(cycle, new & 1 != 0, retired);
            c.instret.switch(instret, new & 4 != 0, retired);
        }
        Rule::Pmp => {
            let readable = new & 0x0101_0101_0101_0101;
            new &= !0x0202_0202_0202_0202 | readable << 1;
        }
    }
    match row.value {
        Value::Word(word) => *c.word_mut(word, csr - row.first) = new,
        Value::Float(shift) => {
            let fcsr = c.fcsr() & !(row.mask << shift) | new << shift;
            (c.fflags, c.frm) = (fcsr as u8 & 31, (fcsr >> 5) as u8 & 7);
            c.mstatus |= mstatus::FS | mstatus::SD;
        }
        Value::Counter(word, bit) => {
            let mut counter = Counter(0);
            counter.set(c.inhibited(bit), retired, new);
            *c.word_mut(word, 0) = counter.0;
        }
        Value::Absent(_) | Value::Fixed | Value::Pins | Value::Time | Value::Isa | Value::HartId => {}
    }
    row.effect
}

/// The registers that have a word of the state, by number, with their words: what two harts are compared by.
pub fn words(csrs: &Csrs) -> impl Iterator<Item = (Name, u64)> {
    let words = TABLE.iter().flat_map(move |row| {
        (row.first..=row.last).filter_map(move |csr| match row.value {
            Value::Word(word) | Value::Counter(word, _) if !read_only(csr) => {
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
pub fn execute(cpu: &mut CpuState, insn: &Insn, env: &CsrEnv) -> Result<CsrEffect, Illegal> {
    let csr = insn.csr();
    let operand = match insn.op {
        Op::Csrrw | Op::Csrrs | Op::Csrrc => cpu.x[usize::from(insn.rs1 & 31)],
        Op::Csrrwi | Op::Csrrsi | Op::Csrrci => u64::from(insn.rs1),
        _ => return Err(Illegal),
    };
    let row = reach(cpu, csr)?;
    let old = read(cpu, row, csr, env);
    let new = match insn.op {
        Op::Csrrw | Op::Csrrwi => Some(operand),
        // Setting or clearing by x0 (or by an immediate of 0) is a read; by a register that holds 0 it is a write.
        _ if insn.rs1 == 0 => None,
        Op::Csrrs | Op::Csrrsi => Some(old | operand),
        _ => Some(old & !operand),
    };
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

#[cfg(test)]
mod tests;
