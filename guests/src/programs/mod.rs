//! Guest programs, assembled by dynasm's RISC-V assembler while the host program is built, so that no cross compiler is
//! needed for the demo, the tests and the benches.
//!
//! Every program starts at [`BASE`] with a stack, checks its own result, and ends through the test finisher: code 0, or
//! the number of the check that failed, or 99 for a trap that was not meant.

#![allow(clippy::unnecessary_cast, reason = "dynasm casts every operand it is given")]

mod asm;
pub mod basic;
pub mod board;
pub mod clock;
pub mod crash;
pub mod demo;
pub mod draw;
pub mod hotplug;
pub mod minijit;
pub mod semihost;
pub mod sieve;
pub mod smc;
pub mod smp;
pub mod stress;
pub mod sums;
pub mod targets;
pub mod timer;

pub use asm::BASE;

/// A program as bytes for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// Name for messages.
    pub name: &'static str,
    /// Physical address of the first byte.
    pub load_addr: u64,
    /// Physical address of the first instruction.
    pub entry: u64,
    /// The program.
    pub bytes: Vec<u8>,
}
