//! How missing pages are noticed, and how their bytes come to be there at once.
//!
//! ```text
//!               what reaches RAM                  notices a missing page            its bytes
//!   software    vCPUs, host calls, devices        the softmmu's door (one flag)     stored, then the page's bit
//!   userfault   the same, and by raw pointer:     the same door, and the host's     UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_CONTINUE:
//!               threads, KVM, other processes     MMU, told by a descriptor         mapped whole, then the page's bit
//! ```
//!
//! Either way a page is claimed first and has its bit last (PLACE-1): that decides which of two placements counts, not the source.

use super::userfault::UserFaults;
use super::{MissingError, MissingPages, PageBytes};
use crate::ram::RamBlock;
use core::fmt;
use std::sync::Arc;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FaultKind {
    /// By the softmmu and the host calls of this crate: no privilege, any host. What follows a raw pointer finds zeros.
    #[default]
    Software,
    /// By the host's MMU, too.
    Userfaultfd,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::Software => "software",
            FaultKind::Userfaultfd => "userfaultfd",
        })
    }
}

/// A page that was claimed, and is to have its bytes.
#[derive(Clone, Copy)]
pub struct Placing<'p> {
    /// Its block.
    pub block: &'p RamBlock,
    /// Where in it.
    pub off: u64,
    /// How long it is.
    pub len: u64,
    /// Whether its memory is zero as long as nothing is placed.
    pub is_zero: bool,
}

/// A source of faults: [`SoftwareFaults`], [`UserFaults`].
pub trait FaultSource: Send + Sync {
    /// Which it is.
    fn kind(&self) -> FaultKind;

    /// Can it be done for this block? Asked before anything is missing.
    ///
    /// # Errors
    /// [`MissingError::Userfault`].
    fn check(&self, block: &Arc<RamBlock>) -> Result<(), MissingError>;

    /// Pages are waited for from here on.
    ///
    /// # Errors
    /// [`MissingError::Userfault`], [`MissingError::Ram`]: then nothing is waited for.
    fn arm(&self, pages: &Arc<MissingPages>) -> Result<(), MissingError>;

    /// The page gets its bytes, all at once for what it tells of.
    ///
    /// # Errors
    /// [`MissingError::Userfault`].
    fn place(&self, page: Placing<'_>, bytes: PageBytes<'_>) -> Result<(), MissingError>;

    /// The page is known to be here: what else shares it is told.
    fn placed(&self, page: Placing<'_>) {
        let _ = page;
    }

    /// There is another channel: does it ask for the pages that are waited for by itself?
    fn resume(&self) -> bool {
        false
    }

    /// All pages are here, or none comes any more: what waits in the host goes on. Returns at once.
    fn disarm(&self);

    /// Its thread has ended when this returns, and nothing of it is left.
    fn close(&self) {}

    /// If it is that one.
    fn as_userfaults(&self) -> Option<&UserFaults> {
        None
    }
}

/// The softmmu's door alone.
#[derive(Clone, Copy, Default, Debug)]
pub struct SoftwareFaults;

impl FaultSource for SoftwareFaults {
    fn kind(&self) -> FaultKind {
        FaultKind::Software
    }

    fn check(&self, _block: &Arc<RamBlock>) -> Result<(), MissingError> {
        Ok(())
    }

    fn arm(&self, _pages: &Arc<MissingPages>) -> Result<(), MissingError> {
        Ok(())
    }

    fn place(&self, page: Placing<'_>, bytes: PageBytes<'_>) -> Result<(), MissingError> {
        match bytes {
            PageBytes::Copy(bytes) => page.block.place_raw(page.off, bytes),
            PageBytes::Zero if page.is_zero => {}
            PageBytes::Zero => page.block.place_raw(page.off, &vec![0; page.len as usize]),
        }
        Ok(())
    }

    fn disarm(&self) {}
}
