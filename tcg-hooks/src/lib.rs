//! RISC-V in, host code out; and what happens to that code when its bytes are written.
//!
//! ```text
//!   guest bytes ──▶ riscv/decode ──▶ translate ──▶ ir ──▶ jit/x86_64 ──▶ jit/code_cache
//!                        │                                                   │
//!                        ▼                                                   ▼
//!                interp (oracle), tier0                 tb/{cache,pages,chain,invalidate,provisional}
//!                        ▲                                                   ▲
//!                        └──────────────── exec: the vCPU loop ──────────────┘
//! ```
//!
//! * [`Vcpu`] is what a machine drives: one hart, its TLB, its TB cache, one engine. [`Harts`] is what several share: the
//!   first exit, and who is idle.
//! * The oracle shares the decode table and the softmmu with the JIT, nothing else.
//! * Invalidation has one door, `TbCache::invalidate` (`tb/invalidate.rs`): guest stores reach it through
//!   `notdirty_softmmu::CodeInvalidator`, everybody else posts a kill that the owner drains (TB-1). What
//!   another hart may have stored unheard is found by comparing the bytes again (CODE-1, `tb/provisional.rs`).
//!
//! Deliberately absent: files, devices, threads (the `notdirty` package has them), and locks around translated code
//! (each vCPU owns its own).

mod barrier;
pub mod clock;
pub mod cpu;
pub mod engine;
pub mod exec;
mod fetch;
pub mod float;
mod heat;
pub mod interp;
pub mod ir;
#[cfg(target_arch = "x86_64")]
pub mod jit;
#[cfg(target_arch = "x86_64")]
pub mod listing;
pub mod perf_map;
pub mod riscv;
pub mod tb;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod tier0;
mod tier2;
pub mod trace;
pub mod translate;

pub use engine::{EngineKind, ICache, JitFlags};
pub use exec::{
    Harts, RunLimits, SemihostAnswer, Semihosting, TrapAt, UnhandledTrap, Vcpu, VcpuConfig, VcpuExit, VcpuStats,
};
pub use trace::{NewCode, TraceMask, TraceSink};
