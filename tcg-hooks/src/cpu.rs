//! One hart's architectural state, as the JIT, the oracle and the exec loop see it.
//!
//! ```text
//!   CpuState  x0..x31 | pc | retired ...        at the start of the TLB mapping's prefix,
//!   [prefix: jit Context][TlbEntry; N]           so that one host register reaches both
//! ```
use crate::guest::{Features, Mode, System};

/// Architectural state of one hart. `repr(C)`: emitted code reaches it by offsets.
#[repr(C)]
#[derive(Debug, Clone, PartialEq)]
pub struct CpuState {
    /// Integer registers; `x[0]` is zero: a run begins by making it so.
    pub x: [u64; 32],
    /// Address of the next instruction.
    pub pc: u64,
    /// Instructions retired since reset; `minstret` and `mcycle` are offsets from it.
    pub retired: u64,
    /// Floating-point registers; a single-precision number has ones above it.
    pub f: [u64; 32],
    /// The mode that it runs in.
    pub privilege: Mode,
    /// This hart's number.
    pub hart_id: u64,
    /// The extensions that it has.
    pub isa: Features,
    /// Control and status registers.
    pub csr: System,
}

impl CpuState {
    /// State after reset: M-mode, interrupts off, `pc` at `entry`.
    pub fn new(hart_id: u64, entry: u64) -> Self {
        CpuState {
            x: [0; 32],
            pc: entry,
            retired: 0,
            f: [0; 32],
            privilege: Mode::FIRST,
            hart_id,
            isa: Features::ALL,
            csr: System::default(),
        }
    }
}
