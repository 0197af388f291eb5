//! The guest's wish to end: the first one counts, and every vCPU hears of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use notdirty_softmmu::{Stateful, VcpuPort};

/// Through which door a guest ended its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitBy {
    /// The test finisher: pass or fail.
    Finisher,
    /// The test finisher's reset request. There is nothing to boot again, so the run ends well.
    Reset,
    /// HTIF: `tohost` with its lowest bit set.
    Tohost,
    /// HTIF: the `exit` system call.
    HtifSyscall,
    /// Semihosting: an exit call.
    Semihosting,
}

impl core::fmt::Display for ExitBy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ExitBy::Finisher => "test finisher",
            ExitBy::Reset => "reset request (treated as an exit)",
            ExitBy::Tohost => "tohost",
            ExitBy::Semihosting => "semihosting exit call",
            ExitBy::HtifSyscall => "HTIF exit call",
        })
    }
}

/// A guest's own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestExit {
    /// The code it gave; 0 is success.
    pub code: u64,
    /// How it said so.
    pub by: ExitBy,
}

impl GuestExit {
    /// The code for a process, which has eight bits: larger ones become 255, so that no failure looks like success.
    pub fn process_code(&self) -> u8 {
        u8::try_from(self.code).unwrap_or(u8::MAX)
    }
}

/// Holds the first exit, and stops the vCPUs.
#[derive(Default)]
pub struct ExitLatch {
    state: Mutex<State>,
    /// Is there an exit? To be asked without the lock.
    ended: AtomicBool,
}

#[derive(Default)]
struct State {
    exit: Option<GuestExit>,
    /// Weak, so that the latch does not look like a device that may wake a waiting hart.
    ports: Vec<Weak<VcpuPort>>,
}

impl ExitLatch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics half-way: a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This vCPU is to be stopped as well.
    pub fn attach(&self, port: &Arc<VcpuPort>) {
        self.state().ports.push(Arc::downgrade(port));
    }

    /// Ends the run. A later call changes nothing.
    pub fn set(&self, exit: GuestExit) {
        let mut state = self.state();
        if state.exit.is_none() {
            state.exit = Some(exit);
            self.ended.store(true, Ordering::Release);
            state.ports.iter().filter_map(Weak::upgrade).for_each(|port| port.request_stop());
        }
    }

    /// Stops the vCPUs without an end: the machine is to look at something, and to run them on.
    pub fn look(&self) {
        self.state().ports.iter().filter_map(Weak::upgrade).for_each(|port| port.request_stop());
    }

    /// The exit, if there was one.
    pub fn get(&self) -> Option<GuestExit> {
        if self.ended.load(Ordering::Acquire) { self.state().exit } else { None }
    }

    /// Forgets the exit: the machine is to be run again.
    pub fn clear(&self) {
        let mut state = self.state();
        state.exit = None;
        self.ended.store(false, Ordering::Release);
    }
}

notdirty_softmmu::fields! {
    /// How the guest ended, if it did: a number for the way, from 1 on.
    pub struct ExitState: "exit", version 1 {
        by: u8,
        code: u64,
    }
}

/// In the order of their numbers.
const WAYS: [ExitBy; 5] = [ExitBy::Finisher, ExitBy::Reset, ExitBy::Tohost, ExitBy::HtifSyscall, ExitBy::Semihosting];

impl Stateful for ExitLatch {
    type State = ExitState;

    fn save(&self) -> ExitState {
        let way = |by| WAYS.iter().position(|way| *way == by).map_or(0, |at| at as u8 + 1);
        self.get().map_or(ExitState::default(), |exit| ExitState { by: way(exit.by), code: exit.code })
    }

    fn restore(&self, state: &ExitState) {
        let by = usize::from(state.by).checked_sub(1).and_then(|at| WAYS.get(at));
        let mut own = self.state();
        own.exit = by.map(|by| GuestExit { code: state.code, by: *by });
        self.ended.store(by.is_some(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_exit_wins_until_it_is_cleared() {
        let latch = ExitLatch::default();
        latch.set(GuestExit { code: 3, by: ExitBy::Tohost });
        latch.set(GuestExit { code: 0, by: ExitBy::Finisher });
        assert_eq!(latch.get(), Some(GuestExit { code: 3, by: ExitBy::Tohost }));
        latch.clear();
        assert_eq!(latch.get(), None);
    }

    #[test]
    fn a_large_code_never_becomes_success() {
        let code = |code| GuestExit { code, by: ExitBy::Finisher }.process_code();
        assert_eq!((code(0), code(255), code(256), code(1 << 40)), (0, 255, 255, 255));
    }
}
