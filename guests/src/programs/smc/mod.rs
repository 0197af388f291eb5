//! The self-modifying suite: one program for each way code can change.
//!
//! ```text
//!   place.rs   where the patched code is: another page, this page, the next instruction, this very block, two pages
//!   flow.rs    how it is reached: chained jumps, returns, indirect jumps, loops, a trap
//!   reach.rs   the same, deeper: regions with several exits, back edges, nested returns, many targets; each AMO
//!   store.rs   what wrote it: each width, page-crossing, AMO, SC, an alias, data turned into code and back
//!   edge.rs    stores that meet code in part only, and data beside it
//!   emit.rs    code that emits, copies or decodes code
//!   paged.rs   code under page tables: seen at several addresses, moved, split, taken away; address spaces and modes
//!   shared.rs  the same of two harts
//!   form.rs    what a program is built for: a cache model and a mode
//!   frame.rs   how all of them begin and end
//!   supervisor.rs  the way into supervisor mode, its page tables
//!   cases.rs   the list, a line for each: what it catches, and the public issue that it retells
//! ```
//!
//! A program is built for a cache model. For the coherent one no `fence.i` stands anywhere (but in the case that is
//! about it) and the very next instruction has to see the write. For the model of the ISA a `fence.i` stands between
//! write and use; some cases also use the code before it, and take the old code or the new for an answer.
//!
//! And it is built for a mode: machine mode, or supervisor mode under Sv39, where each page of RAM is mapped by an entry
//! of its own. What is about page tables has no other.

mod cases;
mod edge;
mod emit;
mod flow;
mod form;
mod frame;
mod paged;
mod place;
mod reach;
mod shared;
mod store;
mod supervisor;

use super::GuestImage;

pub use cases::CASES;
pub use flow::{POLL_FLAG, POLL_FUNCTION, polling};
pub use form::{CacheModel, Form, Mode};
pub use frame::{TICKS, TOHOST};

/// What a program does to the translations, as far as it is certain for any sensible translator, in a coherent model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kills {
    /// At least so many die: that code had run before it was patched.
    AtLeast(u64),
    /// At most so many: the stores touch no code.
    AtMost(u64),
}

/// A second address for RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// Where RAM shows up again.
    pub base: u64,
    /// What of it.
    pub target: u64,
    /// How much.
    pub len: u64,
}

/// One case of the suite.
#[derive(Debug, Clone, Copy)]
pub struct SmcCase {
    /// Its name, unique.
    pub name: &'static str,
    /// What it catches, in a line.
    pub about: &'static str,
    /// The public issues that it retells, as `project#number`.
    pub retells: &'static [&'static str],
    /// Builds the program.
    pub build: fn(Form) -> GuestImage,
    /// How often it writes code, or beside it.
    pub patches: u32,
    /// What dies.
    pub kills: Kills,
    /// RAM seen at a second place, when the case needs it in machine mode; page tables do it otherwise.
    pub alias: Option<Alias>,
    /// Whether there is nothing of it in machine mode.
    pub paged: bool,
    /// How many harts it needs.
    pub harts: usize,
}

impl SmcCase {
    /// Whether there is such a program.
    pub fn has(&self, mode: Mode) -> bool {
        mode == Mode::Supervisor || !self.paged
    }
}

/// The case of that name.
pub fn case(name: &str) -> Option<&'static SmcCase> {
    CASES.iter().find(|case| case.name == name)
}
