//! The guest's instruction set: RV64GC with B, Zbc, Zicond and cache-block operations, in the modes M, S and U.
//!
//! ```text
//!   opcodes ──▶ decode, compressed ──▶ Insn ──▶ translator | interp (the oracle) | disasm
//!   csr: the registers, and which mode reaches them   trap: into a handler and back       fpu: F and D
//!   privilege: the modes, and what each may execute
//!   walk: from a virtual page to a physical one       pmp: what may be done there
//! ```
//!
//! `mmu` puts the two together: what the hart's registers make of an address. `peek` does so from outside, and changes nothing.
pub mod compressed;
pub mod csr;
pub mod decode;
pub mod disasm;
pub mod fpu;
pub mod isa;
#[cfg(test)]
mod llvm_tests;
pub(crate) mod mmu;
pub mod opcodes;
mod peek;
pub mod pmp;
pub mod privilege;
pub mod trap;
pub mod walk;

pub use decode::{Insn, decode, decode_any};
pub use isa::{Extension, Isa};
pub use opcodes::{Format, Op};
pub use privilege::Privilege;
