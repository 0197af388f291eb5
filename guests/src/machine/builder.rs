//! From wishes to a machine.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use notdirty_core::migration::postcopy::Notifiers;
use notdirty_core::{FaultKind, PAGE_SIZE, RamError};
use notdirty_softmmu::MapError;
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Isa;
use notdirty_tcg::{
    EngineKind, Harts, ICache, JitFlags, NewCode, Semihosting, TraceMask, TraceSink, Turns, Vcpu, VcpuConfig,
};

use super::board::Board;
use super::{Machine, RAM_BASE, SnapshotOptions};
use crate::devices::{Console, Framebuffer, FramebufferError, Semihost};
use crate::load::{LoadError, Program, SymbolTable};

/// RAM unless asked otherwise.
pub const DEFAULT_RAM: u64 = 128 << 20;
/// Host code a vCPU may keep unless asked otherwise.
const DEFAULT_TB_CACHE: usize = 128 << 20;
/// Harts of a machine, at most. Each has its own TLB and code cache.
pub const MAX_HARTS: usize = 64;
/// The end of the physical address space of an RV64 hart.
pub(super) const PHYS_END: u64 = 1 << 56;

/// What time the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockKind {
    /// The host's.
    #[default]
    Host,
    /// The instruction count, a tick of 10 MHz for each 100: a run can be repeated exactly. For one hart only.
    Insns,
}

/// What an SC notices of what other harts did since its LR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LrSc {
    /// Another value: SC is a compare-and-swap of the value that LR saw. A value that was changed and changed back is not noticed.
    #[default]
    Cas,
    /// Any store to the same aligned eight bytes, by another hart, a device or the host, whatever its value.
    Strict,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// RAM of that size cannot be.
    #[error("RAM size {size:#x} is not a multiple of {PAGE_SIZE} bytes from 4 KiB to {:#x}", PHYS_END - RAM_BASE)]
    RamSize {
        /// The size asked for.
        size: u64,
    },
    /// So many harts cannot be.
    #[error("a machine has 1 to {MAX_HARTS} harts, not {harts}")]
    Harts {
        /// The number asked for.
        harts: usize,
    },
    /// Harts that run side by side do not retire instructions in one order, which could be the time.
    #[error(
        "{harts} harts share no instruction count for the clock: use one hart, the host clock, or harts that take turns"
    )]
    ClockOfHarts {
        /// The number asked for.
        harts: usize,
    },
    /// The machine's RAM is more than it may ever have.
    #[error("RAM size {size:#x} is over the maximum {max:#x}")]
    MaxRam {
        /// The size asked for.
        size: u64,
        /// The maximum asked for.
        max: u64,
    },
    /// The entry point has no RAM under it, or is odd.
    #[error("entry {entry:#x} is not an even address in RAM {:#x}..{:#x}", ram.start, ram.end)]
    Entry {
        /// The entry asked for.
        entry: u64,
        /// The RAM there is.
        ram: std::ops::Range<u64>,
    },
    /// The program cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The host gives no RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Something does not fit on the bus.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There is no such framebuffer.
    #[error(transparent)]
    Framebuffer(#[from] FramebufferError),
    /// The host does not let us have a vCPU.
    #[error("the host has no memory for a vCPU: {0}")]
    Host(#[from] io::Error),
}

/// Collects what the machine is to be like.
pub struct MachineBuilder {
    pub(super) ram_size: u64,
    pub(super) ram_page: Option<u64>,
    pub(super) harts: usize,
    pub(super) turns: Option<Turns>,
    pub(super) max_ram: u64,
    pub(super) snapshot_options: SnapshotOptions,
    engine: EngineKind,
    pub(super) clock: ClockKind,
    jit_flags: JitFlags,
    pub(super) icache: ICache,
    pub(super) lrsc: LrSc,
    pub(super) isa: Isa,
    tb_cache_bytes: usize,
    console: Option<Arc<Console>>,
    pub(super) program: Option<Program>,
    pub(super) entry: Option<u64>,
    trace: Option<Box<dyn TraceSink>>,
    pub(super) framebuffer: Option<(u32, u32)>,
    pub(super) semihosting: bool,
    pub(super) notifiers: Notifiers,
    pub(super) faults: FaultKind,
}

impl Default for MachineBuilder {
    fn default() -> Self {
        MachineBuilder {
            ram_size: DEFAULT_RAM,
            ram_page: None,
            harts: 1,
            turns: None,
            max_ram: u64::MAX,
            snapshot_options: SnapshotOptions::default(),
            engine: EngineKind::default(),
            clock: ClockKind::default(),
            jit_flags: JitFlags::default(),
            icache: ICache::default(),
            lrsc: LrSc::default(),
            isa: Isa::ALL,
            tb_cache_bytes: DEFAULT_TB_CACHE,
            console: None,
            program: None,
            entry: None,
            trace: None,
            framebuffer: None,
            semihosting: true,
            notifiers: Notifiers::default(),
            faults: FaultKind::default(),
        }
    }
}

impl MachineBuilder {
    /// Bytes of RAM, a multiple of 4 KiB; 128 MiB unless said.
    pub fn ram_size(mut self, bytes: u64) -> Self {
        self.ram_size = bytes;
        self
    }

    /// RAM is given back, and placed when it is missing, in pieces of so many bytes, as on a host with larger pages: both sides of a
    /// postcopy have the same. Without this, the host's page.
    pub fn ram_page(mut self, bytes: u64) -> Self {
        self.ram_page = Some(bytes);
        self
    }

    /// Harts take turns on the caller's thread, in an order and for numbers of instructions that follow from this seed alone. With
    /// [`ClockKind::Insns`] a run of several harts repeats exactly; see [`Machine::set_seed`].
    pub fn turns(mut self, seed: u64) -> Self {
        self.turns = Some(Turns::new(seed));
        self
    }

    /// How many harts run side by side, each on a thread of its own; one unless said. All start at the entry, with
    /// their numbers in a0.
    pub fn harts(mut self, harts: usize) -> Self {
        self.harts = harts;
        self
    }

    /// Bytes of RAM there may ever be, what is plugged later included; no bound unless said.
    pub fn max_ram(mut self, bytes: u64) -> Self {
        self.max_ram = bytes;
        self
    }

    /// How it is [restored](Self::restore), and its snapshots are written.
    pub fn snapshot_options(mut self, options: SnapshotOptions) -> Self {
        self.snapshot_options = options;
        self
    }

    /// Who executes; the JIT unless said.
    pub fn engine(mut self, engine: EngineKind) -> Self {
        self.engine = engine;
        self
    }

    /// What time the guest sees; the host's unless said.
    pub fn clock(mut self, clock: ClockKind) -> Self {
        self.clock = clock;
        self
    }

    /// When the guest's own stores reach its instruction stream.
    pub fn icache(mut self, icache: ICache) -> Self {
        self.icache = icache;
        self
    }

    /// What an SC notices; another value unless said. One hart that is all that stores has nothing to notice, and pays nothing.
    pub fn lrsc(mut self, lrsc: LrSc) -> Self {
        self.lrsc = lrsc;
        self
    }

    /// Which extensions the harts have; all that there are unless said.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = isa;
        self
    }

    /// Optimisations of the JIT; all unless said.
    pub fn jit_flags(mut self, flags: JitFlags) -> Self {
        self.jit_flags = flags;
        self
    }

    /// Bytes of each hart that host code and what is kept of it may take; 128 MiB unless said.
    pub fn tb_cache_bytes(mut self, bytes: usize) -> Self {
        self.tb_cache_bytes = bytes;
        self
    }

    /// The other end of the serial line; unconnected by default.
    pub fn console(mut self, console: Arc<Console>) -> Self {
        self.console = Some(console);
        self
    }

    /// What to run.
    pub fn program(mut self, program: Program) -> Self {
        self.program = Some(program);
        self
    }

    /// Where to start, in M-mode, if not where the program says: an even address in RAM.
    pub fn entry(mut self, entry: u64) -> Self {
        self.entry = Some(entry);
        self
    }

    /// Who gets the trace.
    pub fn trace(mut self, sink: Box<dyn TraceSink>) -> Self {
        self.trace = Some(sink);
        self
    }

    /// A framebuffer of so many pixels; none unless said.
    pub fn framebuffer(mut self, width: u32, height: u32) -> Self {
        self.framebuffer = Some((width, height));
        self
    }

    /// Whether semihosting calls, known by their sequence of three instructions, are answered (they print, read, ask for the
    /// time and end the run; they reach no file). Else they are exceptions as any `ebreak`. On unless said.
    pub fn semihosting(mut self, on: bool) -> Self {
        self.semihosting = on;
        self
    }

    /// What is told if the machine [comes](Self::receive) by postcopy, and may refuse it at each step.
    pub fn postcopy_notifiers(mut self, notifiers: &Notifiers) -> Self {
        self.notifiers = notifiers.clone();
        self
    }

    /// How missing pages are noticed if the machine comes by postcopy: by the softmmu alone, unless said; or by the host's MMU, too, for what
    /// reaches RAM by pointer. Where that is not to be had, [`receive`](Self::receive) refuses at once, and says why.
    pub fn postcopy_faults(mut self, kind: FaultKind) -> Self {
        self.faults = kind;
        self
    }

    /// The machine, its program loaded, its harts at the entry.
    ///
    /// # Errors
    /// [`BuildError`]: a setting that cannot be, a program that cannot be loaded, or a host without memory.
    pub fn build(self) -> Result<Machine, BuildError> {
        if self.ram_size == 0 || !self.ram_size.is_multiple_of(PAGE_SIZE) || self.ram_size > PHYS_END - RAM_BASE {
            return Err(BuildError::RamSize { size: self.ram_size });
        }
        if self.ram_size > self.max_ram {
            return Err(BuildError::MaxRam { size: self.ram_size, max: self.max_ram });
        }
        if !(1..=MAX_HARTS).contains(&self.harts) {
            return Err(BuildError::Harts { harts: self.harts });
        }
        if self.harts > 1 && self.clock == ClockKind::Insns && self.turns.is_none() {
            return Err(BuildError::ClockOfHarts { harts: self.harts });
        }
        let recipe = self.recipe();
        let console = self.console.unwrap_or_else(|| Console::new(Box::new(io::sink())));
        let mut board = Board::new(self.ram_size, self.ram_page, self.max_ram, console)?;
        if self.lrsc == LrSc::Strict {
            board.space.ram().break_reservations();
        }
        let screen = self.framebuffer.map(|(width, height)| Framebuffer::attach(&board.space, width, height));
        board.framebuffer = screen.transpose()?;
        let clock = Arc::new(match self.clock {
            ClockKind::Host => Clock::host(),
            ClockKind::Insns => Clock::insns(),
        });
        let symbols = Arc::new(RwLock::new(SymbolTable::default()));
        let sink = self.trace.map(|sink| Arc::new(Mutex::new(sink)));
        let harts = Arc::new(Harts::default());
        let mut vcpus = Vec::with_capacity(self.harts);
        let semihost = self.semihosting.then(|| -> Arc<dyn Semihosting> {
            Arc::new(Semihost::new(&board.space, board.latch.clone(), board.console.clone(), clock.clone()))
        });
        for hart_id in 0..self.harts as u64 {
            let trace = sink
                .clone()
                .map(|sink| -> Box<dyn TraceSink> { Box::new(Symbolised { sink, symbols: symbols.clone() }) });
            let config = VcpuConfig {
                engine: self.engine,
                hart_id,
                entry: RAM_BASE,
                clock: clock.clone(),
                jit_flags: self.jit_flags,
                icache: self.icache,
                tb_cache_bytes: self.tb_cache_bytes,
                trace,
            };
            let mut vcpu = Vcpu::new(&board.space, config)?;
            vcpu.cpu_mut().isa = self.isa;
            if self.harts > 1 {
                vcpu.join(&harts);
            }
            vcpu.set_semihosting(semihost.clone());
            vcpus.push(vcpu);
        }
        // WRITER-1: one hart, and nothing was given out yet that another thread could write by.
        board.space.vcpus().promise_one_writer();
        board.attach(vcpus.iter().map(Vcpu::port), &clock)?;
        let mut machine = Machine::assemble(board, vcpus, harts, clock, symbols, recipe);
        machine.turns = self.turns;
        machine.snapshot_options = self.snapshot_options;
        let entry = match &self.program {
            Some(program) => machine.load(program)?,
            None => RAM_BASE,
        };
        machine.start_at(self.entry.unwrap_or(entry))?;
        Ok(machine)
    }
}

/// A sink that knows the names of the loaded program. Harts share what is behind it.
struct Symbolised {
    sink: Arc<Mutex<Box<dyn TraceSink>>>,
    symbols: Arc<RwLock<SymbolTable>>,
}

impl Symbolised {
    fn sink(&self) -> MutexGuard<'_, Box<dyn TraceSink>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TraceSink for Symbolised {
    fn mask(&self) -> TraceMask {
        self.sink().mask()
    }

    fn line(&mut self, what: TraceMask, text: &str) {
        self.sink().line(what, text);
    }

    fn code(&mut self, code: &NewCode<'_>) {
        self.sink().code(code);
    }

    fn symbol(&self, addr: u64) -> Option<String> {
        self.symbols.read().unwrap_or_else(PoisonError::into_inner).resolve(addr)
    }
}
