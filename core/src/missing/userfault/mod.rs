//! Missing pages that the host's MMU notices: for RAM that threads reach by pointer, KVM, or other processes.
//!
//! ```text
//!   arm      huge pages off ─▶ each block registered ─▶ what is missing is given back: from here on each access to it waits
//!   a thread touches a page that is not mapped ─▶ thread "userfault" reads many faults at once
//!               ├─ missing  ─▶ its wait begins ─▶ PageSource::request_run, neighbours as one ─▶ … place: COPY │ ZEROPAGE, which wakes
//!               └─ here     ─▶ zero, or in its file: ZEROPAGE │ CONTINUE │ WAKE
//!   disarm   all is here, or none comes: unregistered, and all woken; huge pages as before; the thread ends with its last peer
//! ```
//!
//! vCPUs ask the softmmu's door before they touch a page, so what they wait for is never a fault of the host's. A page that is here and was
//! never written has no memory: its first touch is a fault, too, and answered at once.
//!
//! | memory | told of | a page gets its bytes by |
//! | --- | --- | --- |
//! | anonymous | missing | COPY, ZEROPAGE; EEXIST is an error: nothing else places |
//! | shared, of a memfd or tmpfs | missing, and minor where the kernel can | the same; a stale page in the file is overwritten there, then CONTINUE |
//! | shared, of hugetlbfs | missing | COPY of whole huge pages, of zeros too |
//! | private, of a file | | refused by the kernel, by name |
//!
//! With minor faults a discard of many runs need not punch the file run by run: all of the mapping is dropped at once, and stale pages are minor
//! faults. If a peer is told of missing ones alone, the file is punched.
//!
//! | file | concept |
//! | --- | --- |
//! | `sys.rs` | the system calls |
//! | `thread.rs` | faults are read, asked for, answered |
//! | `peer.rs` | other processes that share the memory |
//! | `why.rs` | why it is not to be had |

mod peer;
mod sys;
mod thread;
mod why;

pub use peer::{PeerFaults, PeerRange, SharedFaults};
pub use why::{NoUserfault, UserfaultLack};

use super::faults::{FaultKind, FaultSource, Placing, SoftwareFaults};
use super::{MissingError, MissingPages, PageBytes};
use crate::ram::{RamBlock, RamFlags};
use peer::Peer;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use sys::{Bell, Uffd};

/// So many runs are punched out of a file, which costs a call for each; if there are more, stale pages stay in it, and each page of the block that
/// is here is a minor fault once.
const MOST_HOLES: usize = 1024;

/// A block that is registered.
struct Own {
    block: Arc<RamBlock>,
    /// The host's address, and how many bytes: whole pages of the host.
    start: u64,
    len: u64,
    /// Minor faults are told, too: a page may be in its file, stale.
    minor: bool,
}

struct Inner {
    uffd: Uffd,
    minor: bool,
    bell: Bell,
    /// By rising address; empty as long as nothing is waited for. Read while a page is placed.
    own: RwLock<Vec<Own>>,
    pages: Mutex<Weak<MissingPages>>,
    peers: RwLock<Vec<Arc<Peer>>>,
    has_peers: AtomicBool,
    /// Its thread is to ask again for all that is waited for.
    resume: AtomicBool,
    /// Its thread is to end with its last peer.
    quit: AtomicBool,
    #[cfg(test)]
    no_poll: AtomicBool,
}

/// Missing pages that the host's MMU notices: see [`RamList::set_missing_by`](crate::RamList::set_missing_by).
pub struct UserFaults {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(block: &RamBlock, doing: &'static str, source: io::Error) -> MissingError {
    MissingError::Userfault { idstr: block.idstr().to_owned(), doing, source }
}

impl UserFaults {
    /// By `/dev/userfaultfd` if it can be opened, else by the system call.
    ///
    /// # Errors
    /// [`NoUserfault`] with the reason: a permission, the kernel, or a feature that it lacks.
    pub fn open() -> Result<Arc<UserFaults>, NoUserfault> {
        Self::open_by(sys::open)
    }

    /// The same, by descriptors that `open` makes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_by(open: impl Fn() -> io::Result<OwnedFd>) -> Result<Arc<UserFaults>, NoUserfault> {
        // The first says what there is, the second is told what is wanted of it.
        let (_, has) = Uffd::agree(open().map_err(NoUserfault::open)?, 0).map_err(NoUserfault::agree)?;
        let wanted = has & (sys::MISSING_SHMEM | sys::MISSING_HUGETLBFS | sys::MINOR_SHMEM);
        let (uffd, has) = Uffd::agree(open().map_err(NoUserfault::open)?, wanted).map_err(NoUserfault::agree)?;
        let inner = Inner {
            uffd,
            minor: has & sys::MINOR_SHMEM != 0,
            bell: Bell::new().map_err(NoUserfault::open)?,
            own: RwLock::default(),
            pages: Mutex::default(),
            peers: RwLock::default(),
            has_peers: AtomicBool::new(false),
            resume: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            #[cfg(test)]
            no_poll: AtomicBool::new(false),
        };
        Ok(Arc::new(UserFaults { inner: Arc::new(inner), thread: Mutex::default() }))
    }

    /// Faults of another process are told and answered here, as long as the result is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] of what is no userfaultfd, of ranges outside of their blocks, and of blocks that no process shares; of a
    /// peer without minor faults that comes once pages are waited for, where its pages would be stale.
    pub fn share(&self, peer: PeerFaults) -> io::Result<SharedFaults> {
        self.inner.share(peer)
    }
}

impl Inner {
    fn own(&self) -> std::sync::RwLockReadGuard<'_, Vec<Own>> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Own>> {
        self.own.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers as much of the block.
    fn register(&self, block: &Arc<RamBlock>, length: u64) -> Result<Own, MissingError> {
        let len = length.next_multiple_of(block.page_size()).min(block.committed());
        let start = block.host().addr() as u64;
        // What lies in a file of hugetlbfs cannot be overwritten by a call: there it is punched, run by run.
        let minor = self.minor && block.flags().contains(RamFlags::SHARED) && !block.is_hugetlb();
        let mode = if minor { sys::MISSING | sys::MINOR } else { sys::MISSING };
        // SAFETY: memory of the block, committed up to `length` in whole pages, which is accessed as raw memory alone. `Own` keeps the block
        // until it is unregistered.
        let can = unsafe { self.uffd.register(start, len, mode) };
        let can = can.map_err(|why| failed(block, "register it with userfaultfd", why))?;
        block.set_flag(RamFlags::UF_ZEROPAGE, can & sys::CAN_ZERO != 0);
        let own = Own { block: block.clone(), start, len, minor };
        let needs = sys::CAN_COPY | sys::CAN_WAKE | if minor { sys::CAN_CONTINUE } else { 0 };
        if can & needs != needs {
            self.unregister(&own);
            return Err(failed(block, "place pages by userfaultfd", io::ErrorKind::Unsupported.into()));
        }
        Ok(own)
    }

    fn unregister(&self, own: &Own) {
        own.block.set_flag(RamFlags::UF_ZEROPAGE, false);
        if let Err(why) = self.uffd.unregister(own.start, own.len) {
            log::error!("RAM block {} stays with userfaultfd: {why}", own.block.idstr());
        }
        // The kernel wakes before it clears the mapping's flag: a fault between the two would sleep for good.
        let _ = self.uffd.wake(own.start, own.len);
    }

    /// What is missing is not there: each touch of it is a fault.
    fn give_back(&self, pages: &MissingPages, own: &Own) -> Result<(), MissingError> {
        let runs = pages.missing_runs(&own.block);
        if own.minor && runs.len() > MOST_HOLES && !self.needs_holes(&own.block) {
            return own.block.drop_mapped(own.len).map_err(|why| MissingError::Ram(Box::new(why)));
        }
        let runs: Vec<_> = runs.into_iter().map(|run| run.start..run.end.min(own.len)).collect();
        own.block.discard_runs(&runs).map_err(|why| MissingError::Ram(Box::new(why)))
    }

    fn place(&self, own: &Own, page: Placing<'_>, bytes: PageBytes<'_>) -> io::Result<()> {
        let (at, size) = (own.start + page.off, own.block.page_size().min(own.len - page.off));
        let padded;
        let whole = match bytes {
            // The last page of a block of 4 KiB pages on a host with larger ones.
            PageBytes::Copy(bytes) if (bytes.len() as u64) < size => {
                padded = [bytes, &vec![0; size as usize - bytes.len()]].concat();
                Some(&*padded)
            }
            PageBytes::Copy(bytes) => Some(bytes),
            PageBytes::Zero if own.block.flags().contains(RamFlags::UF_ZEROPAGE) => None,
            PageBytes::Zero => {
                padded = vec![0; size as usize];
                Some(&*padded)
            }
        };
        let done = whole.map_or_else(|| self.uffd.zero(at, size), |bytes| self.uffd.copy(at, bytes));
        match (done, own.block.fd()) {
            (Err(why), Some(fd)) if own.minor && why.raw_os_error() == Some(libc::EEXIST) => {
                // Stale, in its file, and mapped by nothing that asks for it.
                let zeros = vec![0; if whole.is_none() { size as usize } else { 0 }];
                sys::write_at(fd, own.block.fd_offset() + page.off, whole.unwrap_or(&zeros))?;
                thread::map(&self.uffd, at, size)
            }
            (done, _) => done,
        }
    }
}

impl FaultSource for UserFaults {
    fn kind(&self) -> FaultKind {
        FaultKind::Userfaultfd
    }

    fn check(&self, block: &Arc<RamBlock>) -> Result<(), MissingError> {
        // Nothing is missing yet: what would wait goes on when it is unregistered.
        self.inner.register(block, block.used_length()).map(|own| self.inner.unregister(&own))
    }

    fn arm(&self, pages: &Arc<MissingPages>) -> Result<(), MissingError> {
        let inner = &self.inner;
        *lock(&inner.pages) = Arc::downgrade(pages);
        let armed = self.start().and_then(|()| {
            for found in &pages.blocks {
                found.block.touch_huge(false);
                // A fault that is read finds its block.
                let mut all = inner.own_mut();
                let own = inner.register(&found.block, found.length())?;
                let at = all.partition_point(|other| other.start < own.start);
                all.insert(at, own);
            }
            inner.own().iter().try_for_each(|own| inner.give_back(pages, own))
        });
        if armed.is_err() {
            self.disarm();
        }
        armed
    }

    fn place(&self, page: Placing<'_>, bytes: PageBytes<'_>) -> Result<(), MissingError> {
        let all = self.inner.own();
        let start = page.block.host().addr() as u64;
        match all.binary_search_by_key(&start, |own| own.start) {
            Ok(at) => {
                let placed = self.inner.place(&all[at], page, bytes);
                placed.map_err(|why| failed(page.block, "place a page by userfaultfd", why))
            }
            // Nothing waits yet.
            Err(_) => SoftwareFaults.place(page, bytes),
        }
    }

    fn placed(&self, page: Placing<'_>) {
        if self.inner.has_peers.load(Ordering::Acquire) {
            self.inner.peers().iter().for_each(|peer| peer.placed(page.block, page.off));
        }
    }

    fn resume(&self) -> bool {
        self.inner.resume.store(true, Ordering::Release);
        self.inner.bell.ring();
        true
    }

    fn disarm(&self) {
        // No page is being placed once this lock is held.
        for own in self.inner.own_mut().drain(..) {
            self.inner.unregister(&own);
            own.block.touch_huge(true);
        }
        self.inner.quit.store(true, Ordering::Release);
        self.inner.bell.ring();
    }

    fn close(&self) {
        self.disarm();
        self.inner.let_go_of_all();
        let thread = lock(&self.thread).take();
        // It may be this thread that held the pages last.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }

    fn as_userfaults(&self) -> Option<&UserFaults> {
        Some(self)
    }
}

impl UserFaults {
    fn start(&self) -> Result<(), MissingError> {
        // Of a `listen` that failed.
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        self.inner.quit.store(false, Ordering::Release);
        let inner = self.inner.clone();
        let thread = std::thread::Builder::new().name("userfault".into()).spawn(move || inner.run());
        let thread = thread.map_err(|source| MissingError::Userfault {
            idstr: "(all)".into(),
            doing: "start the thread that reads faults",
            source,
        })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }
}

impl Drop for UserFaults {
    fn drop(&mut self) {
        self.close();
    }
}

impl core::fmt::Debug for UserFaults {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UserFaults")
            .field("blocks", &self.inner.own().len())
            .field("peers", &self.inner.peers().len())
            .field("minor", &self.inner.minor)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::missing::PageSource;
    use crate::ram::{RamBlockSpec, RamList};
    use std::sync::mpsc;
    use std::time::Duration;

    struct Asked(Mutex<mpsc::Sender<u64>>);

    impl PageSource for Asked {
        fn request(&self, _: &Arc<RamBlock>, off: u64) {
            let _ = lock(&self.0).send(off);
        }
    }

    #[test]
    fn faults_are_read_and_asked_for_again_where_the_kernel_does_not_wait_for_them() {
        let faults = match UserFaults::open() {
            Ok(faults) => faults,
            Err(why) => return println!("SKIPPED: {why}"),
        };
        faults.inner.no_poll.store(true, Ordering::Release);
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 4 << 12)).unwrap();
        let (to, asked) = mpsc::channel();
        let pages = list.set_missing_by(faults, Arc::new(Asked(Mutex::new(to))), [block.clone()]).unwrap();
        pages.listen().unwrap();
        let (tell, told) = mpsc::channel();
        let touches = block.clone();
        // Not joined: without an answer it waits in the kernel.
        std::thread::spawn(move || {
            let mut byte = [0];
            touches.read_bytes(2 << 12, &mut byte).unwrap();
            let _ = tell.send(byte[0]);
        });
        let patience = Duration::from_secs(20);
        assert_eq!(asked.recv_timeout(patience), Ok(2 << 12));
        pages.resume();
        assert_eq!(asked.recv_timeout(patience), Ok(2 << 12), "again");
        pages.place(&block, 2 << 12, PageBytes::Copy(&[7; 1 << 12])).unwrap();
        assert_eq!(told.recv_timeout(patience), Ok(7));
    }
}
