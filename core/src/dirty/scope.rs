//! Which bits a log uses, and where it listens; what two logs of one client have in common.

use super::{DirtyClient, OwnedClient};
use crate::addr::{PageRange, RamAddr};
use crate::ram::{RamBlock, RamList};
use crate::rcu::Guard;
use std::sync::{Arc, Weak};

/// The client of a log's bits: a client's number, or a client of run time that lives as long as the log.
#[derive(Debug)]
pub enum LogClient {
    /// A fixed client, or one with another owner.
    Number(DirtyClient),
    /// One that nothing else needs. Its bits are freed when the last user stops.
    Owned(OwnedClient),
}

impl From<DirtyClient> for LogClient {
    fn from(client: DirtyClient) -> Self {
        Self::Number(client)
    }
}

impl From<OwnedClient> for LogClient {
    fn from(client: OwnedClient) -> Self {
        Self::Owned(client)
    }
}

/// Where a log listens.
#[derive(Clone, Debug, Default)]
pub enum LogScope {
    /// All RAM, also what is plugged later.
    #[default]
    All,
    /// These regions.
    Regions(Vec<LogRegion>),
}

impl LogScope {
    /// These blocks, each up to its maximum length: what it grows by is logged, too.
    pub fn blocks<'b>(blocks: impl IntoIterator<Item = &'b Arc<RamBlock>>) -> Self {
        Self::Regions(blocks.into_iter().map(|block| LogRegion::bytes(block, 0, block.max_length())).collect())
    }
}

/// Pages of one block.
#[derive(Clone, Debug)]
pub struct LogRegion {
    /// Not kept alive: a log is no reason not to unplug.
    pub(super) block: Weak<RamBlock>,
    pub(super) pages: PageRange,
}

impl LogRegion {
    /// The pages of `len` bytes from `off` on, as far as the block has them.
    pub fn bytes(block: &Arc<RamBlock>, off: u64, len: u64) -> Self {
        let off = off.min(block.max_length());
        let start = RamAddr::new(block.offset().get() + off);
        let pages = PageRange::of_bytes(start, len.min(block.max_length() - off));
        Self { block: Arc::downgrade(block), pages }
    }

    /// The block, if it is in the list.
    pub(super) fn found<'g>(&self, list: &RamList, guard: &'g Guard) -> Option<&'g Arc<RamBlock>> {
        // No `Arc` is made that could be the last. The `Weak` holds the address: whatever block is there is this one.
        let found = list.find(self.pages.start.base(), guard)?;
        core::ptr::eq(Arc::as_ptr(found), self.block.as_ptr()).then_some(found)
    }

    /// The block's name, if it is still alive.
    pub(super) fn idstr(&self) -> String {
        self.block.upgrade().map_or_else(|| "?".to_owned(), |block| block.idstr().to_owned())
    }
}

/// What two scopes have in common.
pub(super) enum Shared {
    Nothing,
    Part,
    All,
}

impl LogScope {
    /// The same pages, in regions that rise, are not empty, and within a block neither overlap nor touch: so two scopes of
    /// the same pages are equal, whatever their order.
    pub(super) fn normal(self) -> Self {
        let Self::Regions(mut regions) = self else { return self };
        regions.retain(|region| !region.pages.is_empty());
        regions.sort_by_key(|region| region.pages.start);
        regions.dedup_by(|next, last| {
            let one = next.pages.start <= last.pages.end && next.block.ptr_eq(&last.block);
            if one {
                last.pages.end = last.pages.end.max(next.pages.end);
            }
            one
        });
        Self::Regions(regions)
    }

    /// Both are normal.
    pub(super) fn compare(&self, other: &Self) -> Shared {
        match (self, other) {
            (Self::All, Self::All) => Shared::All,
            (Self::All, _) | (_, Self::All) => Shared::Part,
            (Self::Regions(a), Self::Regions(b)) => {
                let same = |(x, y): (&LogRegion, &LogRegion)| x.pages == y.pages && x.block.ptr_eq(&y.block);
                if a.len() == b.len() && a.iter().zip(b).all(same) {
                    return Shared::All;
                }
                let meet = |x: &LogRegion, y: &LogRegion| {
                    x.block.ptr_eq(&y.block) && x.pages.start < y.pages.end && y.pages.start < x.pages.end
                };
                if a.iter().any(|x| b.iter().any(|y| meet(x, y))) { Shared::Part } else { Shared::Nothing }
            }
        }
    }
}
