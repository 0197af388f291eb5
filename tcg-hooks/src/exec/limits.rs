//! When a run ends.
use super::Exit;
use std::time::Instant;

/// When to stop by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunLimits {
    /// Stop when this many instructions have retired since reset; exact. Each hart counts its own.
    pub max_insns: Option<u64>,
    /// Stop at this time, or a little later (looked at between slices).
    pub deadline: Option<Instant>,
}

/// Why [`super::Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuExit {
    /// `max_insns` have retired.
    InsnLimit,
    /// The deadline has passed.
    Deadline,
    /// A device or the host asked for it, by `VcpuPort::request_stop`.
    Stopped,
    /// A dirty ring is at its soft limit. The instruction that crossed it has retired, and none behind it; each further run
    /// ends in this way at once, until the ring was harvested and reset (`DirtyLog::sync`).
    RingFull,
    /// A page of RAM was yet to come, and does not come any more (core's `MissingPages::end`). The instruction that needs it is next.
    MissingPage,
    /// An exit that was asked for: [`Vcpu::set_exits`](super::Vcpu::set_exits), [`Vcpu::set_trap_exits`](super::Vcpu::set_trap_exits).
    Exit(Exit),
    /// Of harts that take turns ([`Turns`](super::Turns)): it has nothing to do until another hart, a timer or a device wakes it.
    Waiting,
    /// In `wfi` with nothing that could ever wake it, or in a handler that traps into itself; of several harts, all.
    Hung,
}
