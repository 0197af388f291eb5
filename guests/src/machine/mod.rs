//! The machine as a value: build it, run it, look inside, change its memory and its map, run on.
//!
//! Host writes go through [`Machine::write`] and the loader, and both end in `AddressSpace::write`: bytes first, then
//! the kills for code that lay there. Between runs the machine's vCPUs are parked and its own, so that each serves them
//! before the call returns.
//!
//! ```text
//!   run: hart 0 on the caller's thread, each further hart on a thread of the run; the first to end ends all
//! ```
//!
//! A limit of instructions is each hart's own: the first to reach it stops there exactly, the others where they are.

mod arrive;
mod baseline;
mod board;
mod builder;
mod chain;
mod checkpoint;
mod compression;
mod detect;
mod hooks;
mod leave;
mod memory;
mod migrate;
mod report;
mod run;
mod state;
mod tls;
mod unfinished;
mod unwind;
mod uri;
#[cfg(feature = "zstd")]
mod zstd;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use notdirty_softmmu::{AccessError, AddressSpace, GuestPhys, MapError, MmioDevice, RegionId, VcpuPort, Watched};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::cover::{Compares, Edges};
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::hooks::HookId;
use notdirty_tcg::listing::{self, ListError, Listing};
use notdirty_tcg::riscv::trap::Trap;
use notdirty_tcg::{Harts, JitFlags, Turns, Vcpu, VcpuStats};

pub use arrive::{Arrival, ArrivalState, ArrivalStatus, MoreChannels};
pub use baseline::{Baseline, BaselineError};
pub use board::RAM_BASE;
pub use builder::{BuildError, ClockKind, DEFAULT_RAM, LrSc, MAX_HARTS, MachineBuilder};
pub use chain::{SnapshotChain, squash, squash_by};
pub use checkpoint::{Checkpoint, CheckpointError, Difference};
pub use compression::Compression;
pub use detect::{Crash, CrashKind};
pub use leave::{
    Beside, LeaveOptions, Migration, MigrationState, MigrationStatus, Migrator, MultifdChannels, Postcopy, Road,
    UrgentChannel,
};
pub use memory::{Memory, PlugError, PlugSpec, Plugged, RamInfo, RemapError, ResizeError, UnplugError};
pub use migrate::{MAX_CHANNELS, MigrationError, More, Snapshot, SnapshotInfo, snapshot_info};
pub use report::{Callers, CrashedHart};

pub use tls::{Tls, TlsError};
pub use unfinished::SnapshotOptions;
pub use uri::{End, Listener, Uri, UriError};

use crate::devices::{Console, Framebuffer, GuestExit};
use crate::load::{self, FrameTables, Program, SymbolTable};
use board::Board;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineExit {
    /// The guest said so. Further runs end in the same way at once, until a reset.
    Guest(GuestExit),
    /// The instruction limit was reached.
    InsnLimit,
    /// The deadline passed.
    Deadline,
    /// A [`Stop`] handle was used.
    Stopped,
    /// A hart's dirty ring is at its soft limit; further runs end in the same way at once. Sync the log, and run on.
    RingFull,
    /// A hart needs a page of RAM that was yet to come, and does not come any more.
    MissingPage,
    /// A hart is about to execute the instruction at an address of [`Machine::set_exits`].
    Pc {
        /// Which hart.
        hart: usize,
        /// Where it is.
        pc: u64,
    },
    /// A hart is about to take an exception of [`Machine::set_trap_exits`].
    Trap {
        /// Which hart.
        hart: usize,
        /// The instruction that trapped.
        pc: u64,
        /// Why.
        trap: Trap,
    },
    /// The machine has [left](Migrator); further runs end in the same way at once.
    Migrated,
    /// A hart is about to execute an instruction outside of [`Machine::set_code`].
    Code {
        /// Which hart.
        hart: usize,
        /// Where it is.
        pc: u64,
    },
    /// A hart is about to access bytes that are watched, poisoned, or a canary: see [`Machine::watch`].
    Watch {
        /// Which hart.
        hart: usize,
        /// The instruction.
        pc: u64,
        /// The access, and why it is watched.
        access: Watched,
    },
    /// A hook of a hart ended the run: see [`Machine::add_hook`].
    Hook {
        /// Which hart.
        hart: usize,
        /// Where it is.
        pc: u64,
        /// Which of its hooks.
        hook: HookId,
    },
    /// The guest waits for an interrupt that nothing can raise.
    Hung,
    /// A trap has no handler, or one that traps itself; [`Machine::crash_report`] has more. Of several harts, all are
    /// stuck so or wait for each other.
    Unhandled(CrashedHart),
}

/// What a host write did to translated code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteReport {
    /// Translations dropped.
    pub tbs_killed: usize,
}

/// Stops a running machine from another thread.
#[derive(Clone)]
pub struct Stop {
    port: Arc<VcpuPort>,
    asked: Arc<AtomicBool>,
}

impl Stop {
    /// The run ends soon, with [`MachineExit::Stopped`].
    pub fn stop(&self) {
        self.asked.store(true, Ordering::Release);
        self.port.request_stop();
    }
}

impl Stop {
    /// Stops the harts for a moment: whoever calls has left a request.
    pub(super) fn kick(&self) {
        self.port.request_stop();
    }

    /// The same, for a caller that does not keep a hart waiting by it: a hart in `wfi` that only a [`Stop`] can reach waits for that, and
    /// is hung otherwise.
    pub fn downgrade(&self) -> WeakStop {
        WeakStop { port: Arc::downgrade(&self.port), asked: self.asked.clone() }
    }
}

/// A [`Stop`] that does not count; see [`Stop::downgrade`].
#[derive(Clone)]
pub struct WeakStop {
    port: Weak<VcpuPort>,
    asked: Arc<AtomicBool>,
}

impl WeakStop {
    pub(super) fn upgrade(&self) -> Option<Stop> {
        Some(Stop { port: self.port.upgrade()?, asked: self.asked.clone() })
    }

    /// As [`Stop::stop`]; nothing, if the machine is gone.
    pub fn stop(&self) {
        if let Some(port) = self.port.upgrade() {
            Stop { port, asked: self.asked.clone() }.stop();
        }
    }
}

/// One board with its harts.
pub struct Machine {
    /// Hart 0 first; there is one.
    vcpus: Vec<Vcpu>,
    harts: Arc<Harts>,
    board: Board,
    clock: Arc<Clock>,
    symbols: Arc<RwLock<SymbolTable>>,
    frames: FrameTables,
    /// A [`Stop`] was used since a run last ended by one.
    asked: Arc<AtomicBool>,
    /// The numbers of edges, if they are counted.
    edges: Option<Arc<Edges>>,
    /// The places of comparisons, if they are noted.
    compares: Option<Arc<Compares>>,
    checkpoints: Option<Box<checkpoint::Checkpoints>>,
    /// How often devices had been called when these were last as the current checkpoint says.
    settled_calls: Option<u64>,
    /// Pages whose entries a restore arms; kept for its memory.
    to_arm: Vec<notdirty_core::PageIndex>,
    /// How harts take turns, if they do.
    turns: Option<Turns>,
    /// Until when an odd low half of `tohost` waits for its high half, in instructions of the hart that stored it; not of harts that run side
    /// by side.
    half_end: Option<(usize, u64)>,
    /// What it was built as.
    recipe: state::Recipe,
    snapshot_options: SnapshotOptions,
    migration: Arc<leave::MigrationDoor>,
    /// Its pages come while it runs.
    arrival: Option<arrive::Owner>,
}

// A machine moves between threads as a whole: that is what an embedder's pool does.
const _: () = {
    const fn send<T: Send>() {}
    send::<Machine>();
};

impl Machine {
    /// Starts to describe a machine.
    pub fn builder() -> MachineBuilder {
        MachineBuilder::default()
    }

    fn assemble(
        board: Board,
        vcpus: Vec<Vcpu>,
        harts: Arc<Harts>,
        clock: Arc<Clock>,
        symbols: Arc<RwLock<SymbolTable>>,
        recipe: state::Recipe,
    ) -> Machine {
        let migration = board.memory.migration().clone();
        Machine {
            vcpus,
            harts,
            board,
            clock,
            symbols,
            frames: FrameTables::default(),
            asked: Arc::default(),
            edges: None,
            compares: None,
            checkpoints: None,
            settled_calls: None,
            to_arm: Vec::new(),
            turns: None,
            half_end: None,
            recipe,
            snapshot_options: SnapshotOptions::default(),
            migration,
            arrival: None,
        }
    }

    /// Loads a program over what is there, whatever runs there now; returns its entry. The hart stays where it is.
    ///
    /// # Errors
    /// [`BuildError::Load`]: it cannot be read, or does not lie in RAM; symbols are then those of the program before.
    pub fn load(&mut self, program: &Program) -> Result<u64, BuildError> {
        self.board.remove_htif()?;
        let loaded = load::load(program, &self.board.space, self.board.ram_range());
        let mut symbols = self.symbols.write().unwrap_or_else(PoisonError::into_inner);
        let entry = loaded.map(|loaded| {
            *symbols = loaded.symbols;
            self.frames = loaded.frames;
            loaded.entry
        });
        // Of the program before, if this one was refused.
        self.board.place_htif(&symbols)?;
        drop(symbols);
        self.serve();
        Ok(entry?)
    }

    /// How its snapshots are written from now on; a machine that was restored writes as it was read.
    pub fn set_snapshot_options(&mut self, options: SnapshotOptions) {
        self.snapshot_options = options;
    }

    /// Takes the symbols and frame tables of an ELF file, for traces and crash reports of a machine that was restored or came from
    /// elsewhere; nothing of the file is loaded.
    ///
    /// # Errors
    /// [`BuildError::Load`]: it cannot be read, or does not lie in RAM.
    pub fn load_symbols(&mut self, file: impl AsRef<Path>) -> Result<(), BuildError> {
        let loaded = load::names(file.as_ref(), self.board.ram_range())?;
        *self.symbols.write().unwrap_or_else(PoisonError::into_inner) = loaded.symbols;
        self.frames = loaded.frames;
        Ok(())
    }

    /// How the pages come of a machine that runs before they are here ([`Postcopy`]); of any other none.
    pub fn arrival(&self) -> Option<Arrival> {
        self.arrival.as_ref().map(|owner| owner.0.clone())
    }

    /// Serves what was posted to the harts, which are parked; returns how many translations died.
    fn serve(&mut self) -> usize {
        self.vcpus.iter_mut().map(Vcpu::serve).sum()
    }

    /// Harts and devices as after power-on, each hart at `entry` with its number in a0; RAM stays as it is.
    ///
    /// # Errors
    /// [`BuildError::Entry`]: `entry` is odd or not in RAM. Nothing was reset.
    pub fn start_at(&mut self, entry: u64) -> Result<(), BuildError> {
        let ram = self.board.ram_range();
        if !ram.contains(&entry) || !entry.is_multiple_of(2) {
            return Err(BuildError::Entry { entry, ram });
        }
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.reset(entry));
        self.settled_calls = None;
        self.board.reset();
        self.clock.reset();
        self.turns.iter_mut().for_each(Turns::restart);
        self.half_end = None;
        self.asked.store(false, Ordering::Release);
        // a1 would be the device tree, once there is one.
        for vcpu in &mut self.vcpus {
            let cpu = vcpu.cpu_mut();
            cpu.x[10] = cpu.hart_id;
            cpu.x[11] = 0;
        }
        Ok(())
    }

    /// Writes guest memory. Code that lay there is dropped before this returns.
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails. Of bytes that are not all mapped, none is written.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<WriteReport, AccessError> {
        self.board.space.write(GuestPhys::new(addr), bytes)?;
        Ok(WriteReport { tbs_killed: self.serve() })
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// [`AccessError`] with the first address that fails; `into` may be filled in part.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.board.space.read(GuestPhys::new(addr), into)
    }

    /// The machine's memory, to change it from any thread while the machine runs.
    pub fn memory(&self) -> Memory {
        self.admit_writers();
        self.board.memory.clone()
    }

    /// Adds RAM at `base`.
    ///
    /// # Errors
    /// [`PlugError`], as from [`Memory::plug`].
    pub fn add_ram(&mut self, name: &str, base: u64, size: u64) -> Result<Plugged, PlugError> {
        let plugged = self.board.memory.plug(name, base, size, PlugSpec::default())?;
        self.serve();
        Ok(plugged)
    }

    /// Shows added RAM at a second address.
    ///
    /// # Errors
    /// [`PlugError::NotPlugged`], or [`PlugError::Map`]: `base` is no multiple of a page, or too high.
    pub fn map_again(&mut self, ram: &Plugged, base: u64) -> Result<RegionId, PlugError> {
        let region = self.board.memory.map_again(ram, base)?;
        self.serve();
        Ok(region)
    }

    /// Shows at `base` what is visible at `target`.
    ///
    /// # Errors
    /// [`MapError`]: `len` is 0 or wraps, or `base` and `target` differ in their offset in a page.
    pub fn map_alias(&mut self, base: u64, target: u64, len: u64) -> Result<RegionId, MapError> {
        let region = self.board.space.map_alias(GuestPhys::new(base), GuestPhys::new(target), len, 0)?;
        self.serve();
        Ok(region)
    }

    /// Puts a device at these addresses, in front of what is there: one that is a closure ([`MmioModel`](notdirty_softmmu::MmioModel)), or any other.
    ///
    /// ```
    /// use notdirty::Machine;
    /// use notdirty_softmmu::{MmioAccess, MmioModel};
    ///
    /// let mut machine = Machine::builder().ram_size(2 << 20).build()?;
    /// // A status register whose ready bit is always set.
    /// machine.mmio(0x4000_0000..0x4000_0004, MmioModel::stateless("status", |_: MmioAccess| 1))?;
    /// let mut status = [0; 4];
    /// machine.read(0x4000_0000, &mut status)?;
    /// assert_eq!(status, [1, 0, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MapError`]: there are no bytes.
    pub fn mmio(
        &mut self,
        bytes: std::ops::Range<u64>,
        device: impl MmioDevice + 'static,
    ) -> Result<RegionId, MapError> {
        let (base, len) = (GuestPhys::new(bytes.start), bytes.end.saturating_sub(bytes.start));
        let region = self.board.space.map_mmio(base, len, Arc::new(device), board::OVERLAY)?;
        self.serve();
        Ok(region)
    }

    /// Takes a mapping away.
    ///
    /// # Errors
    /// [`MapError::UnknownRegion`].
    pub fn unmap(&mut self, region: RegionId) -> Result<(), MapError> {
        self.board.space.unmap(region)?;
        self.serve();
        Ok(())
    }

    /// Something is given out by which another thread may write while the machine runs (WRITER-1).
    fn admit_writers(&self) {
        // All vCPUs are parked while the machine is not being run: nothing is waited for.
        let _ = self.board.space.vcpus().admit_writers(None);
    }

    /// The registers of hart 0.
    pub fn cpu(&self) -> &CpuState {
        self.vcpus[0].cpu()
    }

    /// The registers of hart 0, to change them between runs. S and U have no memory until PMP allows some:
    /// `csr.allow_all_memory()`.
    pub fn cpu_mut(&mut self) -> &mut CpuState {
        self.vcpus[0].cpu_mut()
    }

    /// How many harts there are.
    pub fn harts(&self) -> usize {
        self.vcpus.len()
    }

    /// A hart, if there is one of that number.
    pub fn vcpu(&self, hart: usize) -> Option<&Vcpu> {
        self.vcpus.get(hart)
    }

    /// A hart, to change it between runs.
    pub fn vcpu_mut(&mut self, hart: usize) -> Option<&mut Vcpu> {
        self.vcpus.get_mut(hart)
    }

    /// Counters since the machine was built, summed over the harts.
    pub fn stats(&self) -> VcpuStats {
        let mut sum = self.vcpus[0].stats();
        self.vcpus[1..].iter().for_each(|vcpu| sum += vcpu.stats());
        sum
    }

    /// The address space: for devices of one's own.
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.admit_writers();
        &self.board.space
    }

    /// Where RAM is.
    pub fn ram_range(&self) -> std::ops::Range<u64> {
        self.board.ram_range()
    }

    /// `name+0x12` for an address in the loaded program.
    pub fn symbol(&self, addr: u64) -> Option<String> {
        self.symbols.read().unwrap_or_else(PoisonError::into_inner).resolve(addr)
    }

    /// The address of a symbol of the loaded program.
    pub fn symbol_address(&self, name: &str) -> Option<u64> {
        self.symbols.read().unwrap_or_else(PoisonError::into_inner).address(name)
    }

    /// The code at `addr` as guest instructions, IR and host code. It is translated anew, with these switches, and not
    /// run.
    ///
    /// # Errors
    /// [`ListError`]: no instruction can be fetched at `addr`, or the host has no memory for a TLB.
    pub fn listing(&self, addr: u64, flags: JitFlags) -> Result<Listing, ListError> {
        listing::region(&self.board.space, addr, flags, &|addr| self.symbol(addr))
    }

    /// The other end of the serial line.
    pub fn console(&self) -> &Arc<Console> {
        &self.board.console
    }

    /// The framebuffer, if there is one. It can be redrawn from any thread while the machine runs.
    pub fn framebuffer(&self) -> Option<&Arc<Framebuffer>> {
        self.board.framebuffer.as_ref()
    }

    /// A handle that stops this machine from another thread.
    pub fn stop_handle(&self) -> Stop {
        Stop { port: self.vcpus[0].port().clone(), asked: self.asked.clone() }
    }
}
