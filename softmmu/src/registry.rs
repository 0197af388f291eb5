//! All vCPUs of an address space: who posts to whom, and waits for it.
//!
//! Keeps TLB-1's first half: a request goes to every vCPU, or to every other one. Fewer are told only where a lock says
//! who is concerned ([`CodePages::owners`](crate::CodePages::owners)).

use crate::memmap::FlatView;
use crate::safepoint::{OwnPort, Request, Ticket, VcpuId, VcpuPort};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Requests on their way to other vCPUs.
#[derive(Debug, Default)]
pub struct Pending {
    acks: Vec<(Ticket, Arc<VcpuPort>)>,
}

impl Pending {
    /// Have all of them served it?
    pub fn is_served(&mut self) -> bool {
        self.acks.retain(|(ticket, port)| !port.served(*ticket));
        self.acks.is_empty()
    }

    /// Was there nobody to ask?
    pub fn is_empty(&self) -> bool {
        self.acks.is_empty()
    }

    /// Waits for what `other` waits for as well.
    pub fn absorb(&mut self, other: Pending) {
        self.acks.extend(other.acks);
    }

    /// Waits until all have served it; `false` when time ran out. Never on the thread of one of them, and with no RCU
    /// guard and no lock held that one of them may want.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        self.acks.iter().all(|(ticket, port)| {
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            port.wait_served(*ticket, left)
        })
    }
}

/// All vCPUs of an address space.
#[derive(Debug, Default)]
pub struct VcpuRegistry {
    ports: Mutex<Ports>,
}

#[derive(Debug, Default)]
struct Ports {
    all: Vec<(VcpuId, Weak<VcpuPort>)>,
    next: u64,
}

impl VcpuRegistry {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port for one more vCPU; it is forgotten when the last `Arc` goes.
    pub(crate) fn register(&self) -> OwnPort {
        let mut ports = self.ports();
        let id = VcpuId::new(ports.next);
        ports.next += 1;
        let port = OwnPort::new(VcpuPort::new(id));
        ports.all.retain(|p| p.1.strong_count() > 0);
        ports.all.push((id, Arc::downgrade(port.shared())));
        port
    }

    /// The ports of all vCPUs alive now.
    pub fn all(&self) -> Vec<Arc<VcpuPort>> {
        self.ports().all.iter().filter_map(|p| p.1.upgrade()).collect()
    }

    /// Posts to the vCPUs that `whom` says. A port that goes away meanwhile is dropped after the lock.
    fn post_if(&self, whom: impl Fn(VcpuId) -> bool, post: impl Fn(&VcpuPort) -> Ticket) -> Pending {
        let ports = self.ports();
        // The usual case, nobody else, costs no allocation.
        let them = ports.all.iter().filter(|p| whom(p.0)).filter_map(|p| p.1.upgrade());
        Pending { acks: them.map(|port| (post(&port), port)).collect() }
    }

    /// Posts to every vCPU.
    pub fn post_all(&self, request: Request) -> Pending {
        self.post_if(|_| true, |port| port.post(request))
    }

    /// Posts to every vCPU but the one of `own`, which acts at once.
    pub fn post_others(&self, own: &VcpuPort, request: Request) -> Pending {
        self.post_if(|id| id != own.id(), |port| port.post(request))
    }

    /// Posts to these vCPUs. For who knows under a lock that nobody else is concerned; a hint does not do (TLB-1).
    pub(crate) fn post_to(&self, ids: &[VcpuId], request: Request) -> Pending {
        self.post_if(|id| ids.contains(&id), |port| port.post(request))
    }

    /// Posts several requests to every vCPU, with the view after the remaps among them.
    pub(crate) fn post_each(
        &self,
        requests: impl Iterator<Item = Request> + Clone,
        view: Option<&Arc<FlatView>>,
    ) -> Pending {
        self.post_if(|_| true, |port| port.post_each(requests.clone(), view))
    }

    /// Posts to every vCPU and waits until all have served it; `false` when time ran out. Do not call it on a vCPU's
    /// own thread while that runs.
    pub fn post_all_and_wait(&self, request: Request, timeout: Option<Duration>) -> bool {
        self.post_all(request).wait(timeout)
    }
}
