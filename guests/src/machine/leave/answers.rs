//! What a target answers, and the commands that it answers to.
//!
//! ```text
//!   be16 kind, be16 length, bytes       SHUT, PONG: be32 number       WHY: text, before a SHUT that is not 0
//! ```

use std::io::{self, Read};

use notdirty_core::migration::{Carrier, Channel};

use crate::machine::migrate::MigrationError;

/// Commands and answers of QEMU's that are used here.
pub(in crate::machine) mod command {
    pub const OPEN_RETURN_PATH: u16 = 1;
    /// One of ours: so many channels more come (be16), with this uuid.
    pub const MULTIFD: u16 = 0x4e01;
    /// The number of the command (be32) is answered by a PONG.
    pub const PING: u16 = 2;
    pub const RUN: u16 = 5;
    pub const SHUT: u16 = 1;
    pub const PONG: u16 = 2;
    /// An answer of ours: why a SHUT that is not 0 comes next, as text.
    pub const WHY: u16 = 0x4e02;
}

/// An answer of the target.
pub(super) struct Said {
    pub kind: u16,
    pub number: u32,
    /// What it said before.
    pub why: String,
}

/// The number of the PING before the guest is stopped; the PONG of a machine that runs has 0.
const ALIVE: u32 = 1;

/// Asks whether the other end is there, and has read all of it so far.
pub(super) fn ping(carrier: &mut impl Carrier, answers: &mut Channel) -> Result<(), MigrationError> {
    carrier.command(command::PING, &ALIVE.to_be_bytes())?;
    match any_answer(answers)? {
        Said { kind: command::PONG, number: ALIVE, .. } => Ok(()),
        Said { kind: command::SHUT, why, .. } => Err(MigrationError::Refused { why }),
        Said { kind, number, .. } => {
            Err(MigrationError::Order(format!("the target answered {kind} {number}, not PONG {ALIVE}")))
        }
    }
}

/// The next answer to something else than a [`ping`].
pub(super) fn answer(from: &mut Channel) -> Result<Said, MigrationError> {
    loop {
        match any_answer(from)? {
            Said { kind: command::PONG, number: ALIVE, .. } => {}
            said => return Ok(said),
        }
    }
}

fn any_answer(from: &mut Channel) -> Result<Said, MigrationError> {
    let failed = |why: io::Error| match why.kind() {
        io::ErrorKind::UnexpectedEof => MigrationError::Answer(io::Error::new(why.kind(), "it ended the channel")),
        _ => MigrationError::Answer(why),
    };
    let mut why = String::new();
    loop {
        let mut head = [0; 4];
        from.read_exact(&mut head).map_err(failed)?;
        let [kind, len] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        let mut bytes = vec![0; usize::from(len)];
        match (kind, len) {
            (command::WHY, ..=REASON) => {
                from.read_exact(&mut bytes).map_err(failed)?;
                why = String::from_utf8_lossy(&bytes).into_owned();
            }
            (_, 4) => {
                let mut number = [0; 4];
                from.read_exact(&mut number).map_err(failed)?;
                return Ok(Said { kind, number: u32::from_be_bytes(number), why });
            }
            _ => return Err(MigrationError::Order(format!("the target answered {len} bytes, not 4"))),
        }
    }
}

/// The longest reason, in bytes.
const REASON: u16 = 1024;

/// The answer of a target that will not run the machine.
pub(in crate::machine) fn refusal(why: &MigrationError) -> Vec<u8> {
    let text = why.to_string();
    let text = &text.as_bytes()[..text.len().min(REASON.into())];
    let head = [command::WHY, text.len() as u16].map(u16::to_be_bytes).concat();
    [&head[..], text, &answer_bytes(command::SHUT, 1)].concat()
}

/// The same as it is sent.
pub(in crate::machine) fn answer_bytes(kind: u16, number: u32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (kind.to_be_bytes(), number.to_be_bytes());
    [a, b, 0, 4, c, d, e, f]
}
