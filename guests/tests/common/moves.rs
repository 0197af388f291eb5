//! A guest that moves while it runs, as tests of migration run it.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notdirty::{Machine, MachineExit, Migration, MigrationStatus, RunLimits};

/// Waits until the migration has ended, and says how. Once the guest is `over` it is cancelled, and may fail; before that it may not.
pub fn to_its_end(migration: &Migration, over: &AtomicBool, what: impl Debug) -> MigrationStatus {
    loop {
        if let Some(ended) = migration.wait(Duration::from_millis(5)) {
            if let Err(why) = ended
                && !over.load(Ordering::Acquire)
            {
                // Else the guest would run on until the deadline.
                panic!("{what:?}: {why}, {:?}", migration.status());
            }
            return migration.status();
        }
        if over.load(Ordering::Acquire) {
            migration.cancel();
        }
    }
}

/// Runs until it ends or has left. With `slice` it rests after so many instructions, each time behind `looks`, so that a short program is
/// still under way when its pages are.
pub fn run(machine: &mut Machine, slice: Option<u64>, deadline: Instant, looks: impl Fn()) -> MachineExit {
    loop {
        let furthest = (0..machine.harts()).map(|hart| machine.vcpu(hart).unwrap().cpu().retired).max();
        let max_insns = slice.zip(furthest).map(|(slice, furthest)| furthest + slice);
        match machine.run(&RunLimits { max_insns, deadline: Some(deadline) }) {
            MachineExit::InsnLimit => {
                looks();
                std::thread::sleep(Duration::from_micros(300));
            }
            exit => return exit,
        }
    }
}
