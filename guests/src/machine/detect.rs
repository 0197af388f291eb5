//! Detectors: what a fuzzer calls a crash, though the guest may not.
//!
//! ```text
//!   access where nothing is ───── set_trap_exits ─┐
//!   execution outside of code ─── set_code        │
//!   red zone, freed memory ────── poison ─────────┼──▶ MachineExit ─▶ Machine::crash ─▶ Crash { what, where, registers, report, input }
//!   canary ────────────────────── canary          │
//!   budget ────────────────────── RunLimits ──────┘
//! ```
//!
//! Each costs nothing where it does not look: poison and canaries are flags of the TLB's entries, code is part of a TB's key, traps are
//! looked at when they are taken. Poison and canaries belong to a checkpoint, as the heap does whose red zones they are: a restore takes back
//! what hooks poisoned in a run, at the cost of what changed. What is watched, and what is code, belongs to the machine.

use std::fmt::Write as _;
use std::ops::Range;

use notdirty_softmmu::{Kinds, Watch, Watched};
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::riscv::disasm::REGISTERS;
use notdirty_tcg::riscv::trap::Trap;

use super::{Machine, MachineExit};

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashKind {
    /// An exception of [`Machine::set_trap_exits`]: an access to where nothing is, a fetch from there, an illegal instruction, …
    Trap(Trap),
    /// An instruction outside of [`Machine::set_code`].
    Code,
    /// An access to poisoned bytes, to a canary, or to what is watched.
    Access(Watched),
    /// It ran for longer than it may.
    Budget,
    /// A trap that nothing handles.
    Unhandled(Trap),
    /// It waits for what cannot come.
    Hung,
}

/// A crash of the guest, with all that is known of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Crash {
    /// What was wrong.
    pub kind: CrashKind,
    /// Of which hart.
    pub hart: usize,
    /// The instruction.
    pub pc: u64,
    /// What it was about: the address that was accessed, jumped to, or is to blame otherwise.
    pub addr: u64,
    /// All registers.
    pub cpu: CpuState,
    /// All of it as text, with symbols and callers; it ends with a newline.
    pub report: String,
    /// What the guest was given.
    pub input: Vec<u8>,
}

impl Machine {
    /// Ends runs, from now on or no more, before instructions of any hart that access one of these bytes in this way: see
    /// [`Vcpu::watch`](notdirty_tcg::Vcpu::watch). The next run makes the access.
    ///
    /// ```
    /// use notdirty::hooks::Kinds;
    /// use notdirty::programs::sieve::sieve;
    /// use notdirty::{Machine, MachineExit, Program};
    ///
    /// let mut machine = Machine::builder().ram_size(2 << 20).program(Program::Image(sieve(100, 25))).build()?;
    /// // The sieve's table.
    /// machine.watch(0x8010_0000..0x8010_1000, Kinds::Stores, true);
    /// let MachineExit::Watch { pc, access, .. } = machine.run_to_end() else { panic!("it stores there") };
    /// println!("{} bytes at {:#x} are about to be stored by {}", access.size, access.addr, machine.place(pc));
    /// machine.watch(0x8010_0000..0x8010_1000, Kinds::Stores, false);
    /// assert!(matches!(machine.run_to_end(), MachineExit::Guest(_)));
    /// # Ok::<(), notdirty::BuildError>(())
    /// ```
    pub fn watch(&mut self, bytes: Range<u64>, kinds: Kinds, on: bool) {
        self.watch_for(bytes, Watch::Watch, kinds, on);
    }

    fn watch_for(&mut self, bytes: Range<u64>, why: Watch, kinds: Kinds, on: bool) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.watch(bytes.clone(), why, kinds, on));
    }

    /// Accesses to these bytes are crashes from now on: a red zone, or memory that was freed. A hook does so by
    /// [`View::poison`](notdirty_tcg::hooks::View::poison), of its own hart.
    pub fn poison(&mut self, bytes: Range<u64>) {
        self.watch_for(bytes, Watch::Poison, Kinds::All, true);
    }

    /// They are none any more.
    pub fn unpoison(&mut self, bytes: Range<u64>) {
        self.watch_for(bytes, Watch::Poison, Kinds::All, false);
    }

    /// Nothing is poisoned any more.
    pub fn unpoison_all(&mut self) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.watch_nothing(Watch::Poison));
    }

    /// Stores to these bytes are crashes from now on, or no more.
    pub fn canary(&mut self, bytes: Range<u64>, on: bool) {
        self.watch_for(bytes, Watch::Canary, Kinds::Stores, on);
    }

    /// From now on runs end before an instruction that begins outside of these ranges; `None`: everything may be code.
    pub fn set_code(&mut self, code: Option<&[Range<u64>]>) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.set_code(code));
    }

    /// What a run ended by, if that was no good, with the input that led there. Ask at once: registers are those of now. Ends that were
    /// asked for, as exits at pcs, are none.
    pub fn crash(&self, exit: &MachineExit, input: &[u8]) -> Option<Crash> {
        let (kind, hart, pc, addr) = match *exit {
            MachineExit::Trap { hart, pc, trap } => (CrashKind::Trap(trap), hart, pc, trap.tval),
            MachineExit::Code { hart, pc } => (CrashKind::Code, hart, pc, pc),
            MachineExit::Watch { hart, pc, access } => (CrashKind::Access(access), hart, pc, access.addr),
            MachineExit::InsnLimit | MachineExit::Deadline => {
                let pc = self.cpu().pc;
                (CrashKind::Budget, 0, pc, pc)
            }
            MachineExit::Unhandled(crash) => {
                (CrashKind::Unhandled(crash.first.trap), crash.hart, crash.first.pc, crash.first.trap.tval)
            }
            MachineExit::Hung => (CrashKind::Hung, 0, self.cpu().pc, self.cpu().pc),
            _ => return None,
        };
        let cpu = self.vcpu(hart)?.cpu().clone();
        let report = match kind {
            CrashKind::Unhandled(_) => self.crash_report(hart),
            _ => None,
        };
        let report = report.unwrap_or_else(|| self.report(kind, hart, pc, &cpu));
        Some(Crash { kind, hart, pc, addr, cpu, report, input: input.to_vec() })
    }

    fn report(&self, kind: CrashKind, hart: usize, pc: u64, cpu: &CpuState) -> String {
        let what = match kind {
            CrashKind::Trap(trap) | CrashKind::Unhandled(trap) => {
                format!("{} (cause {}), tval {:#x}", trap.name(), trap.cause, trap.tval)
            }
            CrashKind::Code => "execution outside of code".into(),
            CrashKind::Access(Watched { why, addr, size, store, .. }) => {
                let does = if store { "store to" } else { "load of" };
                let what = match why {
                    Watch::Poison => "poisoned bytes",
                    Watch::Canary => "a canary",
                    _ => "watched bytes",
                };
                let name = self.symbol(addr).map(|name| format!(" <{name}>")).unwrap_or_default();
                format!("{does} {what}, {size} bytes at {addr:#x}{name}")
            }
            CrashKind::Budget => "it ran for too long".into(),
            CrashKind::Hung => "it waits for an interrupt that nothing can raise".into(),
        };
        let mut out = format!("crash of hart {hart}: {what}, at {}{}\n", self.place(pc), cpu.privilege.beside_pc());
        for (n, (name, value)) in REGISTERS.iter().zip(&cpu.x).enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(out, "  {name:>4} {value:016x}");
            if n % 4 == 3 {
                out.push('\n');
            }
        }
        let (_, callers) = self.callers((hart, cpu.privilege), pc, &cpu.x);
        if !callers.is_empty() {
            out.push_str("  called from:\n");
        }
        for caller in callers {
            let _ = writeln!(out, "    {}", self.place(caller));
        }
        out
    }
}
