//! How a postcopy over a channel with a fault may end, and that one side runs then.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use notdirty::{Cancel, Channel, Machine, MachineExit, RunLimits};

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const RAM: u64 = 0x8000_0000;
pub const SIZE: u64 = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It runs here, and nowhere else.
    Here,
    /// It runs there, and all of it came.
    There,
    /// The same, after a recovery.
    Recovered,
    /// It was written whole and did not arrive: taken back.
    TakenBack,
    /// It runs there, and is known to be spoiled.
    Spoiled,
}

impl End {
    /// The source, which `exit` ended the run of, runs on if the guest did not go; else it does not.
    pub fn check(self, machine: &mut Machine, exit: &MachineExit, what: &str) {
        let wanted = if self == End::Here { MachineExit::Stopped } else { MachineExit::Migrated };
        assert_eq!(*exit, wanted, "{what}");
        if self == End::TakenBack {
            machine.take_back().unwrap();
        }
        match self {
            End::Here | End::TakenBack => runs(machine, what),
            _ => assert!(machine.is_gone(), "{what}"),
        }
    }
}

pub fn channel(socket: UnixStream) -> Channel {
    Channel::new(socket.into(), PATIENCE, Cancel::default()).unwrap()
}

/// It goes on where it is.
pub fn runs(machine: &mut Machine, what: &str) {
    let end = machine.cpu().retired + 20_000;
    let mut exits = (0..2).map(|_| machine.run(&RunLimits { max_insns: Some(end), deadline: None }));
    // A stop of before may be met first.
    let exit = exits.find(|exit| *exit != MachineExit::Stopped);
    assert_eq!(exit, Some(MachineExit::InsnLimit), "{what}");
}
