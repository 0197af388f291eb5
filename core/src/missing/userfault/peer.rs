//! Other processes that share the memory: each has a userfaultfd of its own, and has handed it over.
//!
//! ```text
//!   peer       maps the memfd, registers its mapping, sends the descriptor (SCM_RIGHTS) and where its ranges lie
//!   share ───▶ thread "userfault" reads its faults, too: client address ─▶ (block, page) ─▶ asked for as any other
//!   placed ──▶ in each peer's ranges: CONTINUE where it is told of minor faults, else WAKE
//! ```
//!
//! A page of shared memory that is placed is there for all processes, but what sleeps sleeps by its own descriptor.

use super::Inner;
use super::sys::Uffd;
use super::thread::map;
use crate::addr::RamAddr;
use crate::ram::{RamBlock, RamFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLockReadGuard};

/// A part of a block, and where another process has it.
#[derive(Clone)]
pub struct PeerRange {
    /// Which block: a shared one.
    pub block: Arc<RamBlock>,
    /// Where in it; whole pages of the host.
    pub off: u64,
    /// How many bytes.
    pub len: u64,
    /// Where the peer mapped it.
    pub address: u64,
}

/// The faults of another process.
pub struct PeerFaults {
    /// For messages.
    pub name: String,
    /// Its userfaultfd, which has agreed on its features, and with which it has registered its mapping.
    pub fd: OwnedFd,
    /// What it registered.
    pub ranges: Vec<PeerRange>,
    /// It registered for minor faults, too, and has dropped what it had mapped (`MADV_DONTNEED`) behind that.
    pub minor: bool,
}

pub(super) struct Peer {
    name: String,
    pub(super) uffd: Uffd,
    ranges: Vec<PeerRange>,
    pub(super) minor: bool,
    broken: AtomicBool,
}

/// A peer's faults are answered as long as this is there; then what waits in it looks again.
#[must_use = "dropped, the peer's faults are not answered"]
pub struct SharedFaults {
    inner: Arc<Inner>,
    peer: Arc<Peer>,
}

impl Peer {
    /// The page of an address of its own, as the host's MMU has it: in RAM, where it starts there, and its size.
    pub(super) fn page_of(&self, at: u64) -> Option<(RamAddr, u64, u64)> {
        let range = self.ranges.iter().find(|range| range.address <= at && at - range.address < range.len)?;
        let size = range.block.mapped_page();
        let off = (at - range.address) / size * size;
        let ram = RamAddr::new(range.block.offset().get() + range.off + off);
        Some((ram, range.address + off, size))
    }

    /// This page is here.
    pub(super) fn placed(&self, block: &RamBlock, off: u64) {
        let of =
            |range: &&PeerRange| core::ptr::eq(&*range.block, block) && range.off <= off && off - range.off < range.len;
        for range in self.ranges.iter().filter(of) {
            let (at, size) = (range.address + (off - range.off), block.page_size());
            let done = if self.minor { map(&self.uffd, at, size) } else { self.uffd.wake(at, size) };
            // Where it has unmapped that, or is gone, nothing waits.
            if let Err(why) = done {
                log::debug!("{}: a page at {at:#x}: {why}", self.name);
                let _ = self.uffd.wake(at, size);
            }
        }
    }

    fn wake_all(&self) {
        for range in &self.ranges {
            let _ = self.uffd.wake(range.address, range.len);
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(super) fn fail(&self, why: &io::Error) {
        log::warn!("the faults of {} are not read any more: {why}", self.name);
        self.broken.store(true, Ordering::Release);
    }
}

impl Inner {
    pub(super) fn peers(&self) -> RwLockReadGuard<'_, Vec<Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_peers(&self, change: impl FnOnce(&mut Vec<Arc<Peer>>)) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut peers);
        self.has_peers.store(!peers.is_empty(), Ordering::Release);
        drop(peers);
        self.bell.ring();
    }

    /// Is something told of missing pages alone, for which a stale one in the file is one that is here?
    pub(super) fn needs_holes(&self, block: &Arc<RamBlock>) -> bool {
        let has = |peer: &Arc<Peer>| peer.ranges.iter().any(|range| Arc::ptr_eq(&range.block, block));
        self.peers().iter().any(|peer| !peer.minor && has(peer))
    }

    pub(super) fn share(self: &Arc<Self>, peer: PeerFaults) -> io::Result<SharedFaults> {
        let PeerFaults { name, fd, ranges, minor } = peer;
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: {why}"));
        for range in &ranges {
            let (block, page) = (&range.block, range.block.page_size());
            if !block.flags().contains(RamFlags::SHARED) {
                return Err(wrong(format!("RAM block {} is shared with no process", block.idstr())));
            }
            let odd = [range.off, range.len, range.address].iter().any(|n| !n.is_multiple_of(page));
            let ends = range.off.checked_add(range.len).is_none_or(|end| end > block.max_length());
            if odd || ends || range.len == 0 || range.address.checked_add(range.len).is_none() {
                let (off, len, address) = (range.off, range.len, range.address);
                let text = format!("{len:#x} bytes at {off:#x}, there at {address:#x}");
                return Err(wrong(format!("RAM block {}: {text}: not whole pages of it", block.idstr())));
            }
            let stale = |own: &super::Own| own.minor && Arc::ptr_eq(&own.block, block) && !self.needs_holes(block);
            if !minor && self.own().iter().any(stale) {
                return Err(wrong("without minor faults it must come before pages are waited for".into()));
            }
        }
        let uffd = Uffd::of_peer(fd)?;
        let peer = Arc::new(Peer { name, uffd, ranges, minor, broken: AtomicBool::new(false) });
        self.change_peers(|peers| peers.push(peer.clone()));
        // What it waits for, and was placed before it was here.
        peer.wake_all();
        Ok(SharedFaults { inner: self.clone(), peer })
    }

    pub(super) fn let_go_of_all(&self) {
        let mut gone = Vec::new();
        self.change_peers(|peers| gone = core::mem::take(peers));
        gone.iter().for_each(|peer| peer.wake_all());
    }
}

impl Drop for SharedFaults {
    fn drop(&mut self) {
        self.inner.change_peers(|peers| peers.retain(|other| !Arc::ptr_eq(other, &self.peer)));
        self.peer.wake_all();
    }
}
