//! A vCPU with any engine, RAM for generated programs, and a device that stops it where a program ends.
//!
//! ```text
//!   base  [ RAM: the program ] ... nothing ... [ epilogue: store to STOP; spin ]        STOP: any store stops
//!           stop: jump to the epilogue ─────────▲
//! ```
//!
//! An exact instruction limit would do to stop, but its last few hundred instructions are the oracle's on every engine.
use super::Program;
use super::encode::encode;
use crate::clock::Clock;
use crate::riscv::Op;
use crate::{EngineKind, ICache, JitFlags, RunLimits, Vcpu, VcpuConfig, VcpuExit};
use notdirty_core::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice, VcpuPort};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Any store to this page ends a run.
const STOP: u64 = 0x10_0000;
/// From the end of RAM: out of reach of what programs touch beyond it.
const GAP: u64 = 0x4_0000;
const ZERO: u8 = 0;
const T5: u8 = 30;

#[derive(Default)]
struct Stop(Mutex<Weak<VcpuPort>>);

impl MmioDevice for Stop {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {
        if let Some(port) = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade() {
            port.request_stop();
        }
    }
}

/// What a [`Board`] is made of.
#[derive(Debug, Clone, Copy)]
pub struct Make {
    /// Who executes.
    pub engine: EngineKind,
    /// Switches of the JIT.
    pub flags: JitFlags,
    /// When stores reach the instruction stream.
    pub icache: ICache,
    /// Bytes of the code cache.
    pub cache: usize,
    /// RAM: where, and how much.
    pub ram: (u64, u64),
}

/// A machine for generated programs.
pub struct Board {
    /// The hart.
    pub vcpu: Vcpu,
    space: Arc<AddressSpace>,
    ram: (u64, u64),
    _blocks: [Arc<RamBlock>; 2],
}

impl Board {
    /// An empty machine.
    ///
    /// # Panics
    /// If the host has no memory for it.
    pub fn new(make: Make) -> Board {
        let Make { engine, flags, icache, cache, ram } = make;
        let list = Arc::new(RamList::new());
        let near = 0x1000_0000..0xf000_0000;
        let block = list.add(RamBlockSpec::new("ram", ram.1).near(near)).expect("RAM");
        let tail = list.add(RamBlockSpec::new("epilogue", 0x1000)).expect("RAM");
        let space = AddressSpace::new(list);
        space.map_ram(GuestPhys::new(ram.0), &block, 0, ram.1, 0).expect("an empty space");
        let epilogue = ram.0 + ram.1 + GAP;
        space.map_ram(GuestPhys::new(epilogue), &tail, 0, 0x1000, 0).expect("nothing is there");
        let code = [
            encode(Op::Lui, T5, 0, 0, STOP as i32),
            encode(Op::Sw, 0, T5, ZERO, 0),
            encode(Op::Jal, ZERO, 0, 0, 0),
        ];
        let code: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
        space.write(GuestPhys::new(epilogue), &code).expect("RAM is there");
        let stop = Arc::new(Stop::default());
        space.map_mmio(GuestPhys::new(STOP), 0x1000, stop.clone(), 0).expect("nothing is there");
        let config = VcpuConfig {
            engine,
            hart_id: 0,
            entry: ram.0,
            clock: Arc::new(Clock::insns()),
            icache,
            jit_flags: flags,
            tb_cache_bytes: cache,
            trace: None,
        };
        let vcpu = Vcpu::new(&space, config).expect("a vCPU");
        *stop.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(vcpu.port());
        Board { vcpu, space, ram, _blocks: [block, tail] }
    }

    /// Loads a program as a host does, kills and all, and puts the hart at its entry. What lies before the program in
    /// RAM stays, as does what lies behind the `ram_len` bytes that it was made for.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn load(&mut self, program: &Program, ram_len: u64) {
        let mut bytes = program.bytes.clone();
        bytes.resize(ram_len as usize, 0);
        let stop = (program.stop - program.base) as usize;
        let epilogue = self.ram.0 + self.ram.1 + GAP;
        // Far jumps have no room where it spins: two instructions would run into the handler.
        let jump = encode(Op::Jal, ZERO, 0, 0, epilogue.wrapping_sub(program.stop) as i32);
        bytes[stop..stop + 4].copy_from_slice(&jump.to_le_bytes());
        self.space.write(GuestPhys::new(program.base), &bytes).expect("RAM is there");
        self.vcpu.reset(program.entry);
    }

    /// Runs to the end of the program, or until so many instructions have retired. A minute is a failure.
    ///
    /// # Panics
    /// After a minute.
    pub fn run(&mut self, max_insns: u64) -> VcpuExit {
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let exit = self.vcpu.run(&RunLimits { max_insns: Some(max_insns), deadline });
        assert_ne!(exit, VcpuExit::Deadline, "it hangs at {:#x}", self.vcpu.cpu().pc);
        exit
    }

    /// All of RAM.
    ///
    /// # Panics
    /// Never: it is there.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.ram.1 as usize];
        self.space.read(GuestPhys::new(self.ram.0), &mut bytes).expect("RAM is there");
        bytes
    }

    /// What differs between the harts and RAM of two machines, if anything does.
    pub fn difference(&self, other: &Board) -> Option<String> {
        let (a, b) = (self.vcpu.cpu(), other.vcpu.cpu());
        if (a.retired, a.pc) != (b.retired, b.pc) {
            let text = format!("after {} insns at {:#x}, not after {} at {:#x}", a.retired, a.pc, b.retired, b.pc);
            return Some(text);
        }
        if let Some(n) = (0..32).find(|&n| a.x[n] != b.x[n]) {
            return Some(format!("x{n} is {:#x}, not {:#x}", a.x[n], b.x[n]));
        }
        if a.csr != b.csr {
            return Some(format!("CSRs are {:?}, not {:?}", a.csr, b.csr));
        }
        let (a, b) = (self.memory(), other.memory());
        let at = a.iter().zip(&b).position(|(a, b)| a != b)?;
        Some(format!("RAM at {:#x} is {:#04x}, not {:#04x}", self.ram.0 + at as u64, a[at], b[at]))
    }
}
