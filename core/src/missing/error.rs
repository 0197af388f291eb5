//! What can go wrong with pages that are yet to come.

use crate::dirty::NotServed;
use crate::ram::RamError;
use core::fmt;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum MissingPhase {
    /// What is here is being found out; nothing waits yet.
    Gathering,
    /// What is not here is waited for.
    Missing,
    /// All is here.
    Complete,
    /// No page comes any more.
    Ended,
}

impl fmt::Display for MissingPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gathering => "pages are being gathered",
            Self::Missing => "missing pages are waited for",
            Self::Complete => "all pages are here",
            Self::Ended => "no page comes any more",
        })
    }
}

/// A page is not here, or was not placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MissingError {
    /// This thread holds an RCU guard, and a page must be waited for: drop the guard, and ask again.
    #[error("this thread holds an RCU guard, and a page of RAM must be waited for: drop the guard first")]
    Pinned,
    /// By [`WaitToken::interrupt`](super::WaitToken::interrupt).
    #[error("the wait for a page of RAM was interrupted")]
    Interrupted,
    /// Time ran out.
    #[error("a page of RAM did not come in time")]
    Late,
    /// No page comes any more.
    #[error("a page of RAM does not come any more: {why}")]
    Ended {
        /// What [`MissingPages::end`](super::MissingPages::end) was called with.
        why: String,
    },
    /// Nothing of this block was ever missing.
    #[error("RAM block {idstr} has no missing pages")]
    UnknownBlock {
        /// The block.
        idstr: String,
    },
    /// Beyond what may be missing of the block.
    #[error("RAM block {idstr}: {len:#x} bytes at {off:#x} are outside the {length:#x} that may be missing")]
    OutOfBounds {
        /// The block.
        idstr: String,
        /// Where.
        off: u64,
        /// How many bytes.
        len: u64,
        /// What may be missing.
        length: u64,
    },
    /// Pages are placed whole.
    #[error("RAM block {idstr}: {len:#x} bytes at {off:#x} are not one page of {page:#x}")]
    OddPage {
        /// The block.
        idstr: String,
        /// Where.
        off: u64,
        /// How many bytes.
        len: u64,
        /// The page's.
        page: u64,
    },
    /// A record of a page, while another one of the same channel is not whole.
    #[error("RAM block {idstr}: a record at {off:#x}, and {came:#x} bytes of that at {other:#x} came")]
    PartOfAnother {
        /// The block.
        idstr: String,
        /// Where.
        off: u64,
        /// Where the other page begins.
        other: u64,
        /// What came of it.
        came: u64,
    },
    /// Not at this time.
    #[error("cannot {doing}: {phase}")]
    Phase {
        /// What was asked for.
        doing: &'static str,
        /// How far it is.
        phase: MissingPhase,
    },
    /// Pages of this RAM list are missing already.
    #[error("pages of this RAM are missing already")]
    AlreadyMissing,
    /// A vCPU did not drop what it has of pages that are to be missing.
    #[error("a vCPU keeps pages that are to be missing")]
    NotServed(#[source] NotServed),
    /// By userfaultfd.
    #[error("RAM block {idstr}: cannot {doing}: {source}")]
    Userfault {
        /// The block.
        idstr: String,
        /// What.
        doing: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// The memory was not given back.
    #[error(transparent)]
    Ram(Box<RamError>),
}
