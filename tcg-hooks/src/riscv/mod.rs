//! The guest's instruction set: RV64IMAC with Zicsr and Zifencei, M-mode.
//!
//! ```text
//!   opcodes ──▶ decode, compressed ──▶ Insn ──▶ translator | interp (the oracle) | disasm
//!   csr: the registers and who may touch them         trap: into a handler and back
//! ```
//!
//! Deliberately absent so far: S and U mode, paging, PMP that protects (its registers are storage), F and D.
pub mod compressed;
pub mod csr;
pub mod decode;
pub mod disasm;
#[cfg(test)]
mod llvm_tests;
pub mod opcodes;
pub mod trap;

pub use decode::{Insn, decode, decode_any};
pub use opcodes::{Format, Op};
