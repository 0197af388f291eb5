//! Side by side or not at all: the same guest program on our JIT and on its peers, in one run, on one machine.
//!
//! ```text
//!  rows.rs      which guest programs, in which group, and the bar each has to pass
//!    │
//!  table.rs     one table: its command line, then row after row
//!    │
//!  pairing.rs   round after round, A B then B A, so that a busy machine is busy for both
//!    │
//!    ├─ rivals/ours.rs     target/release/notdirty run X.elf
//!    ├─ rivals/qemu.rs     qemu-system-riscv64 -M virt, version 10 or newer
//!    └─ rivals/unicorn.rs  notdirty-unicorn-run X.elf, if that package was built
//!    │        each guest reads its own clock and prints `NAME ticks=N check=HEX n=EVENTS`  (line.rs)
//!  stats.rs     medians of times, medians of ratios within a pair, geometric means
//!    │
//!  report.rs    one table, or JSON; host.rs has the facts for its header
//!
//!  against.rs   rows on this build against an earlier one
//!  paged.rs     the fourth table: programs under page tables against themselves without
//!  fuzz/        the fifth table: a fuzzer's loop, run and reset, beside the best one known on Unicorn
//!  migrate/     the sixth table: a guest moves to another process, beside QEMU's
//!  dirty/       the second table: the dirty memory and what it is held against, in one process, round after round
//! ```
//!
//! Absent on purpose: stored baselines. A figure stands beside its peer's from the same minutes or it is not a figure.

pub mod against;
pub mod args;
pub mod dirty;
pub mod fuzz;
pub mod host;
pub mod line;
pub mod migrate;
pub mod paged;
pub mod pairing;
pub mod report;
pub mod rivals;
pub mod rows;
pub mod stats;
pub mod table;
