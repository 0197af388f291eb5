//! Unicorn as another engine: RISC-V for now, on the board that `notdirty` has.
//!
//! ```text
//!  elf.rs     PT_LOAD segments by physical address, the entry; nothing else of an ELF file
//!    │
//!  board.rs   RAM at 0x8000_0000, UART, CLINT mtime and test finisher as mmio_map callbacks
//!    │
//!  bin/notdirty-unicorn-run.rs    runs one guest; the contender of the benchmarks
//!    │
//!  bin/notdirty-unicorn-fuzz.rs   the best snapshot-fuzzing loop known; the contender of the fifth table
//!
//!  smc_test.rs                    runs a directory of them, each in a process of its own: the self-modifying suite
//!    └── host.rs                  its cases in which the host writes
//! ```
//!
//! It is a peer to measure against and one oracle among several, with limits that are its own and known:
//!
//! * it never enters `mtvec`: an exception stops the run (unicorn-engine/unicorn issue 2402, and issue 1990 for the pc
//!   it reports), so guests are compared up to the first trap, and rows with traps have no figure here;
//! * interrupts likewise: CLINT's deadline can be written and is never met;
//! * self-modifying code is not compared (issues 820, 1561 and 2367 tell its history); `smc-test` tells what it does;
//! * an odd pc is taken as it comes (issue 2390);
//! * its floating point follows older rules, so F and D are not compared; some of their encodings run even on a hart
//!   without them instead of trapping: `fsgnj.d` (issue 2388), and `c.fld`, `c.fsd`, `c.fldsp`, `c.fsdsp`, for which
//!   no public issue was found (`tests/differential.rs` has the list);
//! * `sfence.vma` runs on a hart without S-mode; an SC that has no reservation fails before its address is checked;
//! * a store over the end of RAM leaves the half that fits (the ISA allows it; ours writes neither).
//!
//! Absent on purpose: any use of this package by ours. It is GPL-2.0-only and stays a process of its own.

pub mod board;
pub mod elf;
pub mod host;
pub mod smc_test;
