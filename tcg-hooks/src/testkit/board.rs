//! A vCPU with any engine, RAM for generated programs, and a device that stops it where a program ends.
//!
//! ```text
//!   RAM   [ program            ... ram_len - 0x800: epilogue ][ program ...            STOP: any store stops
//!           stop: jump to the epilogue ─────────▲ store to STOP; spin
//! ```
//!
//! An exact instruction limit would do to stop, but its last few hundred instructions are the oracle's on every engine.
use super::Program;
use super::encode::encode;
use crate::clock::Clock;
use crate::riscv::{Op, csr};
use crate::{EngineKind, ICache, JitFlags, RunLimits, Vcpu, VcpuConfig, VcpuExit};
use notdirty_core::{RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, MemSize, MmioDevice, VcpuPort};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Any store to this page ends a run.
const STOP: u64 = 0x10_0000;
/// From the end of a program's RAM: farther than programs reach on purpose.
const EPILOGUE: u64 = 0x800;
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
    /// The RAM of the program loaded last.
    loaded: (u64, u64),
    _block: Arc<RamBlock>,
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
        let space = AddressSpace::new(list);
        space.map_ram(GuestPhys::new(ram.0), &block, 0, ram.1, 0).expect("an empty space");
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
        Board { vcpu, space, loaded: ram, _block: block }
    }

    /// Loads a program as a host does, kills and all, and puts the hart at its entry. What lies before the program in
    /// RAM stays, as does what lies behind the `ram_len` bytes that it was made for.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn load(&mut self, program: &Program, ram_len: u64) {
        let mut bytes = program.bytes.clone();
        bytes.resize(ram_len as usize, 0);
        let (stop, epilogue) = (program.stop - program.base, ram_len - EPILOGUE);
        for (at, word) in [
            // There is room for one instruction.
            (stop, encode(Op::Jal, ZERO, 0, 0, (epilogue - stop) as i32)),
            (epilogue, encode(Op::Lui, T5, 0, 0, STOP as i32)),
            (epilogue + 4, encode(Op::Sw, 0, T5, ZERO, 0)),
            (epilogue + 8, encode(Op::Jal, ZERO, 0, 0, 0)),
        ] {
            bytes[at as usize..at as usize + 4].copy_from_slice(&word.to_le_bytes());
        }
        self.space.write(GuestPhys::new(program.base), &bytes).expect("RAM is there");
        self.loaded = (program.base, ram_len);
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

    /// The RAM of the program loaded last.
    ///
    /// # Panics
    /// Never: it is there.
    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.loaded.1 as usize];
        self.space.read(GuestPhys::new(self.loaded.0), &mut bytes).expect("RAM is there");
        bytes
    }

    /// What differs between the harts of two machines, and the RAM of their programs, if anything does.
    pub fn difference(&self, other: &Board) -> Option<String> {
        let (a, b) = (self.vcpu.cpu(), other.vcpu.cpu());
        if (a.retired, a.pc) != (b.retired, b.pc) {
            let text = format!("after {} insns at {:#x}, not after {} at {:#x}", a.retired, a.pc, b.retired, b.pc);
            return Some(text);
        }
        if a.privilege != b.privilege {
            return Some(format!("in {}, not in {}", a.privilege, b.privilege));
        }
        if let Some(n) = (0..32).find(|&n| a.x[n] != b.x[n]) {
            return Some(format!("x{n} is {:#x}, not {:#x}", a.x[n], b.x[n]));
        }
        if let Some(n) = (0..32).find(|&n| a.f[n] != b.f[n]) {
            return Some(format!("f{n} is {:#x}, not {:#x}", a.f[n], b.f[n]));
        }
        if let Some(text) = csr::difference(&a.csr, &b.csr) {
            return Some(text);
        }
        let (a, b) = (self.memory(), other.memory());
        if a == b {
            return None;
        }
        let at = a.iter().zip(&b).position(|(a, b)| a != b)?;
        Some(format!("RAM at {:#x} is {:#04x}, not {:#04x}", self.loaded.0 + at as u64, a[at], b[at]))
    }
}
