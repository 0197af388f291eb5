//! RISC-V in, host code out; and what happens to that code when its bytes are written.
//!
//! ```text
//!   guest bytes ──▶ riscv/decode ──▶ translate ──▶ ir ──▶ jit/x86_64 ──▶ jit/code_cache
//!                        │                                                   │
//!                        ▼                                                   ▼
//!                riscv/interp (oracle), tier0                 tb/{cache,pages,chain,invalidate,provisional}
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
//! A hart that runs four instructions of RISC-V, and a log that hears of its store:
//!
//! ```
//! use notdirty_core::{DirtyClient, RamBlockSpec, RamList};
//! use notdirty_softmmu::{AddressSpace, GuestPhys};
//! use notdirty_tcg::{RunLimits, Vcpu, VcpuConfig, VcpuExit};
//! use std::sync::Arc;
//!
//! let list = Arc::new(RamList::new());
//! let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
//! let space = AddressSpace::new(list.clone());
//! space.map_ram(GuestPhys::new(0x8000_0000), &ram, 0, ram.used_length(), 0)?;
//! // auipc a1, 1; addi a0, zero, 42; sd a0, 0x100(a1); j .
//! for (n, insn) in [0x0000_1597u32, 0x02a0_0513, 0x10a5_b023, 0x0000_006f].into_iter().enumerate() {
//!     list.write(&ram, 4 * n as u64, &insn.to_le_bytes())?;
//! }
//! let log = list.log(DirtyClient::MIGRATION).start()?;
//! let mut hart = Vcpu::new(&space, VcpuConfig::new(0x8000_0000))?;
//! assert_eq!(hart.run(&RunLimits { max_insns: Some(10), deadline: None }), VcpuExit::InsnLimit);
//! assert_eq!(hart.cpu().x[10], 42);
//! assert_eq!(log.sync(None)?.commit().count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Deliberately absent: files, devices, threads (the `notdirty` package has them), and locks around translated code
//! (each vCPU owns its own).

#![warn(clippy::missing_errors_doc)]

mod barrier;
pub mod clock;
pub mod cover;
pub mod cpu;
pub mod engine;
pub mod exec;
mod fetch;
pub mod float;
mod guest;
mod heat;
pub mod hooks;
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

pub use riscv::interp;

pub use engine::{EngineKind, ICache, JitFlags};
pub use exec::{
    Exit, Harts, RunLimits, SemihostAnswer, Semihosting, TrapAt, Turns, UnhandledTrap, Vcpu, VcpuConfig, VcpuExit,
    VcpuState, VcpuStats,
};
pub use trace::{NewCode, TraceMask, TraceSink};
