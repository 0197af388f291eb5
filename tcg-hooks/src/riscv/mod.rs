//! The guest's instruction set: RV64GC with B, Zbc, Zicond and cache-block operations, in the modes M, S and U.
//!
//! ```text
//!   opcodes ──▶ decode, compressed ──▶ Insn ──▶ lower (to IR) | step (tier 0) | sites, execute (for emitted code) | interp (the oracle) | disasm
//!   csr: the registers, and which mode reaches them   trap: into a handler and back       fpu: F and D
//!   privilege: the modes, and what each may execute
//!   walk: from a virtual page to a physical one       pmp: what may be done there
//! ```
//!
//! `mmu` puts the two together: what the hart's registers make of an address. `peek` does so from outside, and changes nothing.
//!
//! What the rest of the crate uses of it goes by `guest.rs`: `flow` and `hart` are there for that alone.
pub(crate) mod bits;
pub mod compressed;
pub mod csr;
pub mod decode;
pub mod disasm;
pub(crate) mod execute;
pub(crate) mod flow;
pub mod fpu;
pub(crate) mod hart;
pub mod interp;
pub mod isa;
#[cfg(test)]
mod llvm_tests;
pub(crate) mod lower;
pub(crate) mod mmu;
pub mod opcodes;
mod peek;
pub mod pmp;
pub mod privilege;
mod semihost;
pub(crate) mod sites;
pub(crate) mod step;
pub mod trap;
pub mod walk;

pub use decode::{Insn, decode, decode_any};
pub use isa::{Extension, Isa};
pub use opcodes::{Format, Op};
pub use privilege::Privilege;
