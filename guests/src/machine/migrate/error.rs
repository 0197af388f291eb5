//! What can go wrong as a machine leaves or comes, and where.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use notdirty_core::migration::StreamError;
use notdirty_core::migration::postcopy::Refusal;
use notdirty_core::{NoRoom, NoUserfault};
use notdirty_softmmu::{MapError, SectionError};

use crate::machine::{BuildError, CheckpointError, PlugError, UriError, state};

/// Why a machine did not leave or come. One that was to leave is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The file that is to be read cannot be.
    #[error("{}: {source}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be made or renamed.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The channel failed, or what came is no stream of ours.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A section does not fit its part.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A part has no section.
    #[error("the stream has no section {name} {instance}")]
    Missing {
        /// What is it called.
        name: String,
        /// Which of that name.
        instance: u32,
    },
    /// A section has no part.
    #[error("the stream has a section {name} {instance}, and nothing here is called so")]
    Unknown {
        /// What is it called.
        name: String,
        /// Which of that name.
        instance: u32,
    },
    /// A RAM block is not as in the stream.
    #[error("RAM block {idstr}: {why}")]
    Block {
        /// Which.
        idstr: String,
        /// How it differs.
        why: String,
    },
    /// RAM is mapped where the board has none: `map_again`, `map_alias`, or by an embedder.
    #[error("RAM block {idstr} is mapped at {at:#x}, where the board does not: such a machine cannot be saved")]
    Mapped {
        /// Where.
        at: u64,
        /// What.
        idstr: String,
    },
    /// The stream is of another kind of machine.
    #[error("the stream is of a machine {theirs:?}, this is {:?}", state::TYPE)]
    Machine {
        /// What it says.
        theirs: String,
    },
    /// The file has its sections in another order, or lacks one.
    #[error("{0}")]
    Order(String),
    /// The host gives no thread, or no descriptor.
    #[error("the host: {0}")]
    Host(#[source] io::Error),
    /// A channel beside the stream is refused.
    #[error("a channel beside the stream: {0}")]
    Channel(#[source] io::Error),
    /// The target's answer did not come.
    #[error("no answer of the target: {0}")]
    Answer(#[source] io::Error),
    /// The target could not make a machine of what came.
    #[error("the target refused the machine: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
    /// The target was told to run, and no answer came: it may run, or not. See [`Machine::take_back`](crate::Machine::take_back).
    #[error("the target was told to run and did not answer ({why}): it may run, so this side does not")]
    Uncertain {
        /// What came instead.
        why: String,
    },
    /// The target runs it, and lacks pages that went back to the host here: see [`Postcopy::release`](crate::Postcopy::release).
    #[error("the machine cannot go on there: {why}")]
    Lost {
        /// Which.
        why: String,
    },
    /// All was sent, and its end did not go well.
    #[error(transparent)]
    End(UriError),
    /// Somebody ended it.
    #[error("the migration was cancelled")]
    Cancelled,
    /// What was asked for does not go together.
    #[error("{0}")]
    Options(&'static str),
    /// The machine has a migration already.
    #[error("the machine is leaving already")]
    UnderWay,
    /// The machine has left.
    #[error("the machine has left")]
    Gone,
    /// The machine runs here, and pages of its RAM are yet to come: see [`Machine::arrival`](crate::Machine::arrival).
    #[error("{left} pages of the machine's RAM are yet to come")]
    Arriving {
        /// How many.
        left: u64,
    },
    /// Missing pages were to be noticed by the host's MMU: see [`MachineBuilder::postcopy_faults`](crate::MachineBuilder::postcopy_faults).
    #[error(transparent)]
    Userfault(#[from] NoUserfault),
    /// A step of a postcopy was refused at its target: see [`MachineBuilder::postcopy_notifiers`](crate::MachineBuilder::postcopy_notifiers).
    #[error(transparent)]
    Notifier(#[from] Refusal),
    /// No run of the machine took notice.
    #[error("the machine was not run for {:.0} s, so it could not be asked", waited.as_secs_f64())]
    NotRun {
        /// How long it was waited for.
        waited: Duration,
    },
    /// A file on which another builds is not what it was.
    #[error("{}, on which the snapshot builds: {why}", path.display())]
    Parent {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The chain of snapshots is another machine's.
    #[error("the chain of snapshots is of another machine")]
    OtherMachine,
    /// No client is left for another dirty log.
    #[error(transparent)]
    Client(NoRoom),
    /// The dirty log does not start.
    #[error(transparent)]
    Log(#[from] notdirty_core::LogError),
    /// A device does not say what it remembers.
    #[error(transparent)]
    Device(#[from] CheckpointError),
    /// No machine can be made as the stream says.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// RAM cannot be plugged as the stream says.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// HTIF cannot be where the stream says.
    #[error(transparent)]
    Map(#[from] MapError),
}
