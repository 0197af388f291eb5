//! Postcopy: the target runs first, and its pages come later.
//!
//! ```text
//!   source  OPEN_RETURN_PATH, NAME, ADVISE │ list of RAM │ rounds of precopy, or none │ harts stop, last sync
//!           PACKAGED (RAM_DISCARD …: what is yet to come, LISTEN, devices, RUN)    requested pages first, the sweep behind them │ END
//!   target  NONE ─▶ ADVISE ─▶ DISCARD ─▶ LISTENING ─▶ RUNNING ─▶ END
//!           ◀── PONG, REQ_PAGES … ── SHUT 0 ──                  the same channel, the other way
//!   broken  both sides keep all they have │ new channel: NAME, RECV_BITMAP ◀── what came ── RESUME ◀── RESUME_ACK, requests once more
//! ```
//!
//! | file | concept |
//! | --- | --- |
//! | `commands.rs` | what the source says between sections |
//! | `answers.rs` | what the target says: the return path |
//! | `state.rs` | the target's states, and which command leads from one to the next |
//! | `discard.rs` | the pages that are yet to come, by host pages, as commands |
//! | `send.rs` | the source's loop: pages that are waited for first, the sweep behind them |
//! | `fetch.rs` | the target's: records are placed, each page whole and once |
//! | `place.rs` | a record becomes a page, or waits for the rest of it |
//! | `heard.rs` | what the source hears of the target, by a thread of its own |
//! | `requests.rs` | pages that the target waits for, in the order in which it asked |
//! | `notify.rs` | what is told of the target's steps, and may stop them |
//! | `release.rs` | the source's RAM goes back to its host as its pages arrive |
//! | `asked.rs`, `urgent.rs` | the two ends of the preempt channel, on which pages that are waited for come without a hand-over |
//!
//! The source of a machine of ours names each page that is yet to come by RAM_DISCARD: a page without a name is there, and zero unless
//! it came. So a page that was never written is never waited for.

mod answers;
mod asked;
mod commands;
mod discard;
mod fetch;
mod heard;
mod notify;
mod place;
mod release;
mod requests;
mod send;
mod state;
mod urgent;

pub use answers::{Answer, Bitmap};
pub use asked::AskedPages;
pub use commands::{Command, Discard, DiscardMap, MOST_RUNS, MOST_WORDS, Name, PageSizes};
pub use discard::{Named, canonical, discards};
pub use fetch::Runs;
pub use heard::{Heard, ReturnPath};
pub use notify::{Answered, Inbound, Moment, Notice, NotifierGuard, Notifiers, Outcome, Refusal};
pub(super) use place::{Coming, Places};
pub use requests::Requests;
pub use send::Rest;
pub use state::{State, Step};
pub use urgent::Urgent;
