//! A hart with RAM and nothing else, run by the oracle.
use super::Program;
use crate::clock::Clock;
use crate::cpu::CpuState;
use crate::interp::{self, Step};
use crate::riscv::csr::{CsrEnv, irq};
use crate::riscv::trap::{self, Trap};
use notdirty_core::ram::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, LiveMmu, NoHooks, SoftMmu, Started};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// One block of RAM in an address space of its own.
///
/// # Panics
/// If the host has no memory for it.
pub fn ram_only(base: u64, len: u64) -> (Arc<AddressSpace>, Arc<RamBlock>) {
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", len)).expect("a RAM block");
    let space = AddressSpace::new(list);
    space.map_ram(GuestPhys::new(base), &block, 0, len, 0).expect("a mapping in an empty space");
    (space, block)
}

/// A vCPU that runs for as long as there is one, on the thread that made it.
pub struct Runs {
    mmu: SoftMmu,
    _started: Started,
}

impl Runs {
    /// On this address space, with `prefix` bytes before its table.
    ///
    /// # Panics
    /// If the host has no memory for it.
    pub fn new(space: &Arc<AddressSpace>, prefix: usize) -> Runs {
        let mut mmu = SoftMmu::new(space, prefix).expect("a TLB");
        let (started, _) = mmu.start(&mut NoHooks).expect("it is new");
        Runs { mmu, _started: started }
    }
}

impl Deref for Runs {
    type Target = LiveMmu;

    fn deref(&self) -> &LiveMmu {
        &self.mmu
    }
}

impl DerefMut for Runs {
    fn deref_mut(&mut self) -> &mut LiveMmu {
        // SAFETY: `_started` lives as long as `self`, and nothing swaps two of these.
        unsafe { self.mmu.live() }.expect("it runs")
    }
}

/// The oracle with a program loaded.
pub struct Oracle {
    /// The hart.
    pub cpu: CpuState,
    /// Its way to memory.
    pub mmu: Runs,
    /// The RAM.
    pub ram: Arc<RamBlock>,
    /// Interrupt bits, as devices would drive them.
    pub mip: u64,
    /// Traps taken so far.
    pub traps: u64,
    /// The latest of them, and where.
    pub last_trap: Option<(u64, Trap)>,
    clock: Clock,
}

impl Oracle {
    /// `bytes` at the start of so much RAM, a hart at `entry`.
    ///
    /// # Panics
    /// If the bytes do not fit.
    pub fn new(base: u64, ram_len: u64, entry: u64, bytes: &[u8]) -> Oracle {
        let (space, ram) = ram_only(base, ram_len);
        ram.write_raw(0, bytes).expect("the image fits");
        let mmu = Runs::new(&space, 4096);
        let cpu = CpuState::new(0, entry);
        Oracle { cpu, mmu, ram, mip: 0, traps: 0, last_trap: None, clock: Clock::insns() }
    }

    /// Loads a generated program, which was made for this much RAM.
    pub fn with_program(program: &Program, ram_len: u64) -> Oracle {
        Oracle::new(program.base, ram_len, program.entry, &program.bytes)
    }

    /// Takes a pending interrupt, or executes one instruction and enters the handler if it trapped. A `wfi` does
    /// not wait.
    pub fn step(&mut self) -> Step {
        let pc = self.cpu.pc;
        self.clock.publish(self.cpu.retired);
        let due = self.clock.mtime() >= self.cpu.csr.supervisor_deadline();
        let mip = self.mip | if due { irq::STI } else { 0 };
        if let Some(cause) = trap::pending_interrupt(&self.cpu, mip) {
            return self.trap(Trap::interrupt(cause), pc);
        }
        let env = CsrEnv { mip, clock: &self.clock };
        match interp::step(&mut self.cpu, &mut self.mmu, &mut NoHooks, &env) {
            Step::Trap(t) => self.trap(t, pc),
            other => other,
        }
    }

    fn trap(&mut self, t: Trap, pc: u64) -> Step {
        self.traps += 1;
        self.last_trap = Some((pc, t));
        trap::take_trap(&mut self.cpu, &t, pc);
        Step::Trap(t)
    }

    /// Runs until `stop`, or until so many instructions have retired, or as many traps were taken. Says whether it
    /// came to `stop`.
    pub fn run(&mut self, stop: u64, max_insns: u64) -> bool {
        let traps = self.traps;
        while self.cpu.pc != stop && self.cpu.retired < max_insns && self.traps - traps <= max_insns {
            let _ = self.step();
        }
        self.cpu.pc == stop
    }

    /// All of RAM, copied.
    ///
    /// # Panics
    /// Never, as the length is the block's own.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.ram.used_length() as usize];
        self.ram.read_bytes(0, &mut bytes).expect("the block's own length");
        bytes
    }
}
