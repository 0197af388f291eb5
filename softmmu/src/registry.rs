//! All vCPUs of an address space: who posts to whom, and waits for it.
//!
//! Keeps TLB-1's first half: a request goes to every vCPU, or to every other one. Fewer are told only where a lock says
//! who is concerned ([`CodePages::owners`](crate::CodePages::owners)).
//!
//! Keeps WRITER-1: translations may do an AMO or SC as a plain load and store, and a fence as nothing, only while the
//! promise stands that one thread stores to guest memory. The promise is made by the owner of the only vCPU, which has
//! given no other thread a way to write; its own writes come while the vCPU is parked or by a device that the vCPU
//! calls. Whoever is about to give such a way takes the promise back first and waits: each vCPU then drops all
//! translations, or is parked and drops them before it runs. A second vCPU takes it back before it exists.

use crate::memmap::FlatView;
use crate::safepoint::{OwnPort, Request, Ticket, VcpuId, VcpuPort};
use std::sync::atomic::{AtomicU8, Ordering};
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
    /// The promise of WRITER-1: `SHARED`, `ALONE` or `LEAVING`. Made under the lock of `ports`, so that no second vCPU
    /// comes meanwhile.
    writers: AtomicU8,
}

/// No promise.
const SHARED: u8 = 0;
/// The promise stands.
const ALONE: u8 = 1;
/// It was taken back, and a vCPU may still run what relies on it.
const LEAVING: u8 = 2;

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

    /// Promises that only the one vCPU there is, and host calls while it is parked or calls a device, will store to guest
    /// memory (WRITER-1), until [`admit_writers`](Self::admit_writers) or a second vCPU. A promise that is not kept loses
    /// stores of the other writer, no more. `false`, and no promise, if there is not exactly one vCPU.
    pub fn promise_one_writer(&self) -> bool {
        let ports = self.ports();
        let alone = ports.all.iter().filter(|p| p.1.strong_count() > 0).count() == 1;
        alone && self.writers.compare_exchange(SHARED, ALONE, Ordering::SeqCst, Ordering::SeqCst) != Err(LEAVING)
    }

    /// Does the promise stand? A translator asks for each translation, and serves requests before it runs one.
    #[inline]
    pub fn one_writer(&self) -> bool {
        self.writers.load(Ordering::SeqCst) == ALONE
    }

    /// Takes the promise back, and waits until no vCPU runs a translation that relies on it; `false` when time ran out.
    /// Then another thread may store. Never call it on the thread of a vCPU that runs, nor with a lock held that one may
    /// want (SAFE-1).
    #[must_use = "until this is true, nobody else may store"]
    pub fn admit_writers(&self, timeout: Option<Duration>) -> bool {
        self.admit(|_| true, timeout)
    }

    /// The same for a vCPU that has just been registered, and runs nothing yet.
    pub(crate) fn admit_vcpu(&self, new: &VcpuPort, timeout: Duration) -> bool {
        self.admit(|id| id != new.id(), Some(timeout))
    }

    fn admit(&self, whom: impl Fn(VcpuId) -> bool, timeout: Option<Duration>) -> bool {
        if self.writers.load(Ordering::SeqCst) == SHARED {
            return true;
        }
        // Several at once each post and wait; none goes on because another was first.
        self.writers.store(LEAVING, Ordering::SeqCst);
        let served = self.post_if(whom, |port| port.post(Request::FlushAll)).wait(timeout);
        if served {
            self.writers.store(SHARED, Ordering::SeqCst);
        }
        served
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_of_one_writer_needs_one_vcpu_and_ends_when_each_has_answered() {
        let vcpus = VcpuRegistry::default();
        assert!(!vcpus.promise_one_writer(), "nobody is there");
        let one = vcpus.register();
        assert!(vcpus.promise_one_writer() && vcpus.one_writer());
        // It runs, and does not answer.
        let running = one.running();
        assert!(!vcpus.admit_writers(Some(Duration::ZERO)));
        assert!(!vcpus.one_writer(), "what is translated from here on relies on nothing");
        assert!(!vcpus.promise_one_writer(), "not while it may run what relies on it");
        let two = vcpus.register();
        assert!(!vcpus.admit_vcpu(&two, Duration::ZERO), "and who comes second waits as the first did");
        // Parked, it drains before it runs.
        drop(running);
        assert!(vcpus.admit_vcpu(&two, Duration::ZERO) && one.kicked());
        assert!(vcpus.admit_writers(Some(Duration::ZERO)));
        assert!(!vcpus.promise_one_writer(), "there are two");
        drop(two);
        assert!(vcpus.promise_one_writer());
    }
}
