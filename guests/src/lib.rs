//! A machine to run bare-metal RISC-V guests on.
//!
//! ```text
//!   cli ──▶ Machine::builder() ──▶ machine/board.rs      RAM, devices, harts, wired as the common `virt` board
//!                │                     ├── devices/      uart, aclint, finisher, htif, semihost ─▶ console, ExitLatch
//!                │                     │                 framebuffer ─▶ an image, of dirty pages only
//!                │                     ├── machine/memory.rs      RAM read, written, plugged, unplugged, resized by any thread
//!                │                     ├── machine/checkpoint.rs  a moment of it all, and the way back
//!                │                     ├── machine/report.rs      the trap that nothing handled, as text
//!   load/ ◀──────┘                     └── notdirty_tcg::Vcpu     a hart: engine, TLB, translations; on its own thread
//!   elf, hex, raw, embedded ────▶ AddressSpace::write    the one door: code that lies there dies
//!   programs/    guests assembled with the host program: the demo, the self-modifying suite, …
//!   smc_test/    that suite as a product: run here, in QEMU, or written as ELF files
//! ```
//!
//! ```no_run
//! use notdirty::{Machine, MachineExit, Program, RunLimits};
//!
//! let mut machine = Machine::builder().program(Program::Elf("firmware.elf".into())).build()?;
//! match machine.run(&RunLimits { max_insns: Some(1_000_000), deadline: None }) {
//!     MachineExit::Guest(exit) => println!("the guest ended with {}", exit.code),
//!     other => println!("{other:?} at {:#x}", machine.cpu().pc),
//! }
//! # Ok::<(), notdirty::BuildError>(())
//! ```
//!
//! Deliberately absent: globals (a machine is a value, and `Send`), signals, a PLIC and other devices that
//! interrupt, a device tree or an ACPI table to tell a guest of plugged RAM: it probes.

#![warn(clippy::missing_errors_doc)]

pub mod cli;
pub mod devices;
pub mod load;
pub mod machine;
pub mod programs;
pub mod smc_test;

pub use devices::console::{Captured, Console, ConsoleFull};
pub use devices::exit::{ExitBy, GuestExit};
pub use load::{LoadError, Program, SymbolTable};
pub use machine::{
    Arrival, ArrivalState, ArrivalStatus, Baseline, BaselineError, Beside, BuildError, Callers, Checkpoint,
    CheckpointError, ClockKind, Compression, Crash, CrashKind, CrashedHart, Difference, LeaveOptions, Listener, LrSc,
    MAX_CHANNELS, MAX_HARTS, Machine, MachineBuilder, MachineExit, Memory, Migration, MigrationError, MigrationState,
    MigrationStatus, Migrator, More, MoreChannels, MultifdChannels, PlugError, PlugSpec, Plugged, Postcopy, RAM_BASE,
    RamInfo, RemapError, ResizeError, Road, Snapshot, SnapshotChain, SnapshotInfo, SnapshotOptions, Stop, Tls,
    TlsError, UnplugError, UrgentChannel, Uri, UriError, WeakStop, WriteReport, snapshot_info, squash, squash_by,
};
pub use notdirty_core::migration::{Cancel, Channel, Limits, Progress};
pub use notdirty_core::{FaultKind, PutBack};
pub use notdirty_softmmu::{AccessError, GuestPhys, RegionId};
pub use notdirty_tcg::cover::{Compares, Edges};
pub use notdirty_tcg::cpu::CpuState;
pub use notdirty_tcg::hooks;
pub use notdirty_tcg::listing::{ListError, Listing};
pub use notdirty_tcg::riscv::{Isa, Privilege};
pub use notdirty_tcg::{EngineKind, ICache, JitFlags, NewCode, RunLimits, TraceMask, TraceSink, VcpuStats};
