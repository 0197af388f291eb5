//! All vCPUs of an address space: requests to them, and waits for their answers. The RAM list knows it as a
//! [`DirtyListener`].
//!
//! Keeps TLB-1's first half: a request goes to every vCPU, or to every other one. Fewer are told only where a lock says
//! which are concerned ([`CodePages::owners`](notdirty_core::CodePages::owners)).
//!
//! Keeps WRITER-1: translations may do an AMO or SC as a plain load and store, and a fence as nothing, only while the
//! promise stands that one thread stores to guest memory. The promise is made by the owner of the only vCPU, which has
//! given no other thread a way to write; its own writes come while the vCPU is parked or by a device that the vCPU
//! calls. A caller that is about to give such a way takes the promise back first and waits: each vCPU then drops all
//! translations, or is parked and drops them before it runs. A second vCPU takes it back before it exists, of whatever
//! address space over this RAM it is. No promise is made while one is being taken back: the answers that the one waits
//! for say nothing of translations made under the next.

use crate::memmap::FlatView;
use crate::safepoint::{OwnPort, Request, Ticket, VcpuPort, Waited};
use notdirty_core::sync::{AtomicU8, Mutex, MutexGuard, Ordering, lock};
use notdirty_core::{Answers, DirtyListener, NotServed, PageRange, RamAddr, RamList, VcpuId};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Requests on their way to other vCPUs.
#[derive(Debug, Default)]
pub struct Pending {
    acks: Vec<(Ticket, Arc<VcpuPort>)>,
    /// Of vCPUs of other address spaces over the same RAM.
    others: Vec<Box<dyn Answers>>,
}

impl Pending {
    /// Have all of them served it?
    pub fn is_served(&mut self) -> bool {
        self.acks.retain(|(ticket, port)| !port.served(*ticket));
        self.others.retain_mut(|answers| !answers.is_served());
        self.is_empty()
    }

    /// Was there no vCPU to ask?
    pub fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.others.is_empty()
    }

    /// Waits for these answers as well.
    pub(crate) fn with(self, others: Vec<Box<dyn Answers>>) -> Pending {
        Pending { others, ..self }
    }

    /// Waits for what `other` waits for as well.
    pub fn absorb(&mut self, other: Pending) {
        self.acks.extend(other.acks);
        self.others.extend(other.others);
    }

    /// Waits until all have served it; `false` when time ran out, and at once on the thread of one of them that runs.
    /// With no RCU guard and no lock held that one of them may want.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        Answers::wait(self, timeout.and_then(|t| Instant::now().checked_add(t))).is_ok()
    }
}

impl Answers for Pending {
    fn is_served(&mut self) -> bool {
        Pending::is_served(self)
    }

    fn wait(&self, until: Option<Instant>) -> Result<(), NotServed> {
        self.others.iter().try_for_each(|answers| answers.wait(until))?;
        self.acks.iter().try_for_each(|(ticket, port)| match port.wait_served(*ticket, until) {
            Waited::Served => Ok(()),
            Waited::OwnThread => Err(NotServed::OwnThread),
            Waited::Late => Err(NotServed::Late { waited: Duration::ZERO }),
        })
    }
}

/// All vCPUs of an address space.
#[derive(Debug)]
pub struct VcpuRegistry {
    ports: Mutex<Ports>,
    /// What the vCPUs store to: other address spaces over it have vCPUs, too.
    ram: Weak<RamList>,
    /// The promise of WRITER-1: `SHARED`, `ALONE` or `LEAVING`. Changed under the lock of `ports`, so that no second vCPU
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
    /// Callers of `admit` that wait. While there is one, `writers` is `LEAVING`.
    admitting: usize,
    /// One of them has its answers, so no vCPU relies on the promise any more.
    answered: bool,
}

impl Ports {
    /// Posts to the vCPUs that `which` names.
    fn post_if(&self, which: impl Fn(VcpuId) -> bool, post: impl Fn(&VcpuPort) -> Ticket) -> Pending {
        // The usual case, no other vCPU, costs no allocation.
        let them = self.all.iter().filter(|p| which(p.0)).filter_map(|p| p.1.upgrade());
        Pending { acks: them.map(|port| (post(&port), port)).collect(), others: Vec::new() }
    }
}

impl Default for VcpuRegistry {
    /// Of no RAM.
    fn default() -> Self {
        VcpuRegistry { ports: Mutex::new(Ports::default()), ram: Weak::new(), writers: AtomicU8::new(SHARED) }
    }
}

impl VcpuRegistry {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        // Nothing in this file panics with the lock held; if an allocation did, no port is lost.
        lock(&self.ports)
    }

    pub(crate) fn new(ram: &Arc<RamList>) -> VcpuRegistry {
        VcpuRegistry { ram: Arc::downgrade(ram), ..VcpuRegistry::default() }
    }

    /// A port for one more vCPU; it is forgotten when the last `Arc` goes.
    pub(crate) fn register(&self) -> OwnPort {
        let mut ports = self.ports();
        let id = VcpuId::fresh();
        let port = OwnPort::new(VcpuPort::new(id));
        ports.all.retain(|p| p.1.strong_count() > 0);
        ports.all.push((id, Arc::downgrade(port.shared())));
        port
    }

    /// Promises that only the one vCPU there is, and host calls while it is parked or calls a device, will store to guest
    /// memory (WRITER-1), until [`admit_writers`](Self::admit_writers) or a second vCPU. A promise that is not kept loses
    /// stores of the other writer, no more. `false`, and no promise, if there is not exactly one vCPU, or while a writer is
    /// being admitted.
    pub fn promise_one_writer(&self) -> bool {
        let ports = self.ports();
        let alone = ports.all.iter().filter(|p| p.1.strong_count() > 0).count() == 1;
        if !alone || self.writers.load(Ordering::SeqCst) == LEAVING {
            return false;
        }
        self.writers.store(ALONE, Ordering::SeqCst);
        drop(ports);
        // After the promise: a vCPU of another address space is either seen here, or takes it back.
        let others = self.ram.upgrade().is_some_and(|ram| ram.others_may_store(self));
        if others {
            let _ = self.admit_writers(Some(Duration::ZERO));
        }
        !others
    }

    /// Does the promise stand? A translator asks for each translation, and serves requests before it runs one.
    #[inline]
    pub fn one_writer(&self) -> bool {
        self.writers.load(Ordering::SeqCst) == ALONE
    }

    /// Takes the promise back, and waits until no vCPU runs a translation that relies on it; `false` when time ran out.
    /// Then another thread may store. Never call it on the thread of a vCPU that runs, nor with a lock held that one may
    /// want (SAFE-1).
    #[must_use = "until this is true, no other vCPU may store"]
    pub fn admit_writers(&self, timeout: Option<Duration>) -> bool {
        self.admit(|_| true, timeout)
    }

    /// The same for a vCPU that has just been registered, and runs nothing yet.
    pub(crate) fn admit_vcpu(&self, new: &VcpuPort, timeout: Duration) -> bool {
        self.admit(|id| id != new.id(), Some(timeout))
    }

    fn admit(&self, which: impl Fn(VcpuId) -> bool, timeout: Option<Duration>) -> bool {
        let mut ports = self.ports();
        if self.writers.load(Ordering::SeqCst) == SHARED {
            return true;
        }
        // Several at once each post and wait; none goes on because another was first.
        self.writers.store(LEAVING, Ordering::SeqCst);
        ports.admitting += 1;
        let pending = ports.post_if(which, |port| port.post(Request::FlushAll));
        drop(ports);
        let served = pending.wait(timeout);
        let mut ports = self.ports();
        ports.admitting -= 1;
        ports.answered |= served;
        // The last one out, so that a promise made from here on is overtaken by none of them.
        if ports.admitting == 0 && std::mem::take(&mut ports.answered) {
            self.writers.store(SHARED, Ordering::SeqCst);
        }
        served
    }

    /// The ports of all vCPUs alive now.
    pub fn all(&self) -> Vec<Arc<VcpuPort>> {
        self.ports().all.iter().filter_map(|p| p.1.upgrade()).collect()
    }

    /// Posts to the vCPUs that `which` names. A port that goes away meanwhile is dropped after the lock.
    fn post_if(&self, which: impl Fn(VcpuId) -> bool, post: impl Fn(&VcpuPort) -> Ticket) -> Pending {
        self.ports().post_if(which, post)
    }

    /// Posts to every vCPU.
    pub(crate) fn post_all(&self, request: Request) -> Pending {
        self.post_if(|_| true, |port| port.post(request))
    }

    /// Posts to every vCPU but the one of `own`, which acts at once.
    pub(crate) fn post_others(&self, own: &VcpuPort, request: Request) -> Pending {
        self.post_if(|id| id != own.id(), |port| port.post(request))
    }

    /// Posts several requests to every vCPU, with the view after the remaps among them.
    pub(crate) fn post_each(
        &self,
        requests: impl Iterator<Item = Request> + Clone,
        view: Option<&Arc<FlatView>>,
    ) -> Pending {
        self.post_if(|_| true, |port| port.post_each(requests.clone(), view))
    }
}

impl DirtyListener for VcpuRegistry {
    fn rearm(&self, pages: &[PageRange]) -> Option<Box<dyn Answers>> {
        let pending = self.post_each(pages.iter().copied().map(Request::Rearm), None);
        (!pending.is_empty()).then(|| Box::new(pending) as Box<dyn Answers>)
    }

    fn flush(&self) -> Option<Box<dyn Answers>> {
        let pending = self.post_all(Request::FlushAll);
        (!pending.is_empty()).then(|| Box::new(pending) as Box<dyn Answers>)
    }

    /// A lock of the code pages says that no other vCPU is concerned; a hint would not do (TLB-1).
    fn kill_code(&self, owners: &[VcpuId], ram: RamAddr, len: u64) {
        drop(self.post_if(|id| owners.contains(&id), |port| port.post(Request::KillCode { ram, len })));
    }

    fn may_store(&self) -> bool {
        self.ports().all.iter().any(|port| port.1.strong_count() > 0)
    }

    fn admit_writer(&self, timeout: Duration) -> bool {
        self.admit_writers(Some(timeout))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_promise_of_one_writer_needs_one_vcpu_and_ends_when_each_has_answered() {
        let vcpus = VcpuRegistry::default();
        assert!(!vcpus.promise_one_writer(), "there is no vCPU");
        let one = vcpus.register();
        assert!(vcpus.promise_one_writer() && vcpus.one_writer());
        // It runs, and does not answer.
        let running = one.start();
        assert!(!vcpus.admit_writers(Some(Duration::ZERO)));
        assert!(!vcpus.one_writer(), "what is translated from here on relies on nothing");
        assert!(!vcpus.promise_one_writer(), "not while it may run what relies on it");
        let two = vcpus.register();
        assert!(!vcpus.admit_vcpu(&two, Duration::ZERO), "and the second waits as the first did");
        // Parked, it drains before it runs.
        drop(running);
        assert!(vcpus.admit_vcpu(&two, Duration::ZERO) && one.kicked());
        assert!(vcpus.admit_writers(Some(Duration::ZERO)));
        assert!(!vcpus.promise_one_writer(), "there are two");
        drop(two);
        assert!(vcpus.promise_one_writer());
    }
}
