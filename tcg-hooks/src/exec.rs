//! The vCPU loop: find a TB, run it, see why it came back.
//!
//! ```text
//!   run: ┌─▶ safe point: serve what others posted, stop?, interrupt?, limits
//!        │        ▼ a slice of n instructions
//!        │   JIT: look up or translate ──▶ emitted code ──▶ exit: link and go on
//!        │   or the oracle, one by one      │ site: helpers.rs executes one instruction
//!        └──────────────────────────────────┘
//! ```
//!
//! Between two polls emitted code runs at most `MAX_INSNS` instructions, so a limit is kept exactly by stopping that
//! far before it and letting the oracle do the rest.
mod core;
mod exits;
mod harts;
mod limits;
mod pace;
mod run;
mod semihost;
mod show;
mod stats;
mod turns;
mod unhandled;

pub(crate) use self::core::{Core, StoreHooks};
pub use exits::Exit;
pub(crate) use exits::Stops;
pub use harts::Harts;
pub use limits::{RunLimits, VcpuExit};
pub(crate) use run::flat_of;
pub use run::{Vcpu, VcpuConfig, VcpuState};
pub use semihost::{SemihostAnswer, Semihosting};
pub use stats::VcpuStats;
pub use turns::Turns;
pub use unhandled::{TrapAt, UnhandledTrap};
