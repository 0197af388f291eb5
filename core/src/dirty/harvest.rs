//! What a harvester needs of the vCPUs: that they listen again to pages whose bits were taken.
//!
//! ```text
//!   take the bits ─▶ DirtyListener::rearm: every vCPU drops its write permission, and answers ─▶ read the pages
//! ```
//!
//! Keeps HARVEST-1: bits are taken before the re-arm is posted; pages are read after the last answer.

use crate::addr::PageRange;
use std::time::Duration;

/// Who can make every vCPU drop its write permission for pages. Softmmu's address space is one.
pub trait DirtyListener: Send + Sync {
    /// Every vCPU re-arms these pages and has answered when this returns: its stores before are visible to this
    /// thread, its stores after are heard. With `None` it waits for as long as it takes. The caller holds no guard
    /// and no lock that a vCPU might wait for (SAFE-1).
    fn rearm(&self, pages: &[PageRange], timeout: Option<Duration>) -> Result<(), NotServed>;
}

/// A vCPU has not answered in time. The pages may be written unheard until it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a vCPU has not re-armed its pages within {waited:?}")]
pub struct NotServed {
    /// How long was waited.
    pub waited: Duration,
}

/// Nobody runs, nobody has a TLB: a listener for RAM without vCPUs.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoVcpus;

impl DirtyListener for NoVcpus {
    fn rearm(&self, _pages: &[PageRange], _timeout: Option<Duration>) -> Result<(), NotServed> {
        Ok(())
    }
}
