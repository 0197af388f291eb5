//! Harts that run side by side: the first to end ends the run, and all that wait in vain have hung.
//!
//! ```text
//!   thread of hart n:   Harts::run(vcpu, limits)    ─ exit ─▶ the first one counts; all ports are kicked, and the
//!                                                             other loops see `stopping` at their next safe point
//!   wfi, nothing that wakes it but another hart:    idle + 1 ─▶ all idle, nobody kicked: hung
//! ```
//!
//! A hart that was woken is counted idle until it has looked, but then its kick still stands: it is taken later, by the
//! `serve` that follows. So whoever finds all idle and no kick knows that no hart can wake another.
use super::{RunLimits, Vcpu, VcpuExit};
use notdirty_softmmu::VcpuPort;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Several harts of one machine.
#[derive(Debug, Default)]
pub struct Harts {
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ports: Vec<Weak<VcpuPort>>,
    first: Option<VcpuExit>,
    /// Harts that nothing but another hart, or somebody outside, can wake.
    idle: usize,
    /// Of these, the ones that somebody outside may wake.
    reachable: usize,
}

impl Harts {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change below is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, port: &Arc<VcpuPort>) {
        self.state().ports.push(Arc::downgrade(port));
    }

    /// Before the harts are started: nobody has ended.
    pub fn start(&self) {
        let mut state = self.state();
        // Who is idle counts itself out, also should it be idle now.
        state.first = None;
        self.stopping.store(false, Ordering::Release);
    }

    /// Runs one of them, on the caller's thread. When it ends, by a panic too, so do the others.
    pub fn run(&self, vcpu: &mut Vcpu, limits: &RunLimits) {
        struct Ended<'a>(&'a Harts, VcpuExit);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.ended(self.1);
            }
        }
        let mut ended = Ended(self, VcpuExit::Stopped);
        ended.1 = vcpu.run(limits);
    }

    fn ended(&self, exit: VcpuExit) {
        let mut state = self.state();
        state.first.get_or_insert(exit);
        self.stopping.store(true, Ordering::Release);
        state.ports.iter().filter_map(Weak::upgrade).for_each(|port| port.kick());
    }

    /// Why the first of them ended.
    pub fn first_exit(&self) -> VcpuExit {
        self.state().first.unwrap_or(VcpuExit::Stopped)
    }

    /// Has one of them ended?
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// A hart is about to sleep until it is kicked. `None`: no hart can ever kick another again.
    pub(super) fn fall_idle(self: &Arc<Self>, reachable: bool) -> Option<Idle> {
        let mut state = self.state();
        state.idle += 1;
        state.reachable += usize::from(reachable);
        let idle = Idle(self.clone(), reachable);
        let kicked = || state.ports.iter().filter_map(Weak::upgrade).any(|port| port.kicked());
        let hung = state.idle == state.ports.len() && state.reachable == 0 && !kicked();
        drop(state);
        (!hung).then_some(idle)
    }
}

/// A hart that is counted idle until this is dropped.
pub(super) struct Idle(Arc<Harts>, bool);

impl Drop for Idle {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.idle -= 1;
        state.reachable -= usize::from(self.1);
    }
}
