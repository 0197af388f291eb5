//! What was posted to one vCPU and not taken yet. However much is posted, it stays bounded: by limits past which re-arms
//! become one of everything and changes of the map a flush, and kills by the lines that hold code.

use super::port::Ticket;
use super::{Drained, Request};
use crate::addr::GuestPhys;
use crate::memmap::FlatView;
use notdirty_core::{MAX_REARM_RANGES, PageIndex, PageRange, RamAddr};
use std::sync::Arc;

/// Changes of the map that pile up before they become a flush.
const MAX_REMAPS: usize = 64;
/// Kills that pile up before neighbours are merged.
const MAX_KILLS: usize = 64;
/// Every page there can be.
const ALL_PAGES: PageRange = PageRange { start: PageIndex::new(0), end: PageIndex::new(u64::MAX >> 12) };

#[derive(Debug, Default)]
pub(super) struct Queue {
    kills: Vec<(u64, u64)>,
    rearms: Vec<PageRange>,
    remaps: Vec<(GuestPhys, GuestPhys)>,
    /// The view after the last of `remaps`. A view that is merely the newest may be past a change that is not in the
    /// queue yet, and no safe point would drop its entries.
    pub(super) view: Option<Arc<FlatView>>,
    flush: bool,
    /// Merge kills again when there are this many.
    merge_at: usize,
    pub(super) posted: u64,
}

impl Queue {
    pub(super) fn add(&mut self, request: Request) {
        match request {
            Request::KillCode { ram, len } => self.add_kill(ram.get(), len),
            Request::Rearm(range) => self.add_rearm(range),
            Request::Remap { start, last } => self.add_remap(start, last),
            Request::FlushAll => self.flush = true,
        }
    }

    /// All that is in it, in the order in which it is to be done.
    pub(super) fn drain(&mut self) -> Drained {
        self.merge_at = 0;
        let mut requests = Vec::with_capacity(self.kills.len() + self.rearms.len() + self.remaps.len() + 1);
        for (ram, len) in self.kills.drain(..) {
            requests.push(Request::KillCode { ram: RamAddr::new(ram), len });
        }
        // A flush re-arms everything.
        let view = self.view.take();
        if core::mem::take(&mut self.flush) {
            self.rearms.clear();
            self.remaps.clear();
            requests.push(Request::FlushAll);
        }
        requests.extend(self.remaps.drain(..).map(|(start, last)| Request::Remap { start, last }));
        requests.extend(self.rearms.drain(..).map(Request::Rearm));
        Drained { requests, view, ticket: Ticket(self.posted) }
    }

    fn add_rearm(&mut self, range: PageRange) {
        if self.flush || range.is_empty() {
            return;
        }
        if self.rearms.len() < MAX_REARM_RANGES {
            self.rearms.push(range);
        } else {
            self.rearms.clear();
            self.rearms.push(ALL_PAGES);
        }
    }

    fn add_remap(&mut self, start: GuestPhys, last: GuestPhys) {
        if self.flush {
            return;
        }
        self.remaps.push((start, last));
        if self.remaps.len() > MAX_REMAPS {
            self.remaps.clear();
            self.flush = true;
        }
    }

    /// A parked vCPU must not make its queue grow with every DMA: kills that share or touch a line are merged, so
    /// that the queue is bounded by the lines that hold code.
    fn add_kill(&mut self, ram: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.kills.push((ram, len));
        if self.kills.len() < self.merge_at.max(MAX_KILLS) {
            return;
        }
        self.kills.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.kills.len());
        for &(ram, len) in &self.kills {
            let end = ram.saturating_add(len);
            match merged.last_mut() {
                // Within 64 bytes of each other: at worst a TB between them dies for nothing.
                Some(last) if ram <= last.0.saturating_add(last.1).saturating_add(64) => {
                    last.1 = last.1.max(end - last.0);
                }
                _ => merged.push((ram, end - ram)),
            }
        }
        self.kills = merged;
        self.merge_at = 2 * self.kills.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::OwnPort;
    use super::*;

    #[test]
    fn too_many_rearms_become_one_of_everything() {
        let port = OwnPort::default();
        let post = |count: usize| {
            for n in 0..count {
                port.post(Request::Rearm(PageRange::of_page(PageIndex::new(2 * n as u64))));
            }
            port.drain().requests
        };
        assert_eq!(post(MAX_REARM_RANGES).len(), MAX_REARM_RANGES, "as many as one re-arm may name stay what they are");
        assert_eq!(post(MAX_REARM_RANGES + 1), [Request::Rearm(ALL_PAGES)]);
    }

    #[test]
    fn too_many_changes_of_the_map_become_one_flush() {
        let port = OwnPort::default();
        for n in 0..1000 {
            port.post(Request::Remap { start: GuestPhys::new(n << 20), last: GuestPhys::new((n << 20) + 1) });
        }
        assert_eq!(port.drain().requests, [Request::FlushAll]);
    }

    #[test]
    fn kills_of_a_parked_vcpu_are_merged_and_none_is_lost() {
        let port = OwnPort::default();
        for round in 0..10 {
            for n in 0..100u64 {
                port.post(Request::KillCode { ram: RamAddr::new(n * 4096 + round * 8), len: 8 });
            }
        }
        let kills = port.drain().requests;
        assert!(kills.len() <= 300, "{}", kills.len());
        for n in 0..100u64 {
            for byte in 0..80 {
                let at = n * 4096 + byte;
                assert!(kills.iter().any(|r| matches!(r, Request::KillCode { ram, len }
                    if (ram.get()..ram.get() + len).contains(&at))));
            }
        }
    }
}
