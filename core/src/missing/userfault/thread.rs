//! The thread that reads faults.
//!
//! ```text
//!   poll: bell │ own descriptor │ each peer's            one that had a fault is looked at for 20 us more
//!     bell ─▶ quit, a new peer, one that left, resume
//!     a descriptor ─▶ up to 64 faults at a read, until there are none ─▶ (block, page) of each
//!                       ├─ missing: waits begin, runs of neighbours are asked for; the answer is placed here if it comes at once (hand_over)
//!                       └─ here, also if it came meanwhile: mapped, and what waits goes on
//! ```
//!
//! It never touches RAM itself, and takes no lock that a thread holds while it touches RAM: what it serves may be that thread.

use super::sys::{self, Message, Uffd};
use super::{Inner, Own};
use crate::addr::RamAddr;
use crate::missing::MissingPages;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the next fault is looked for before the thread sleeps: to be woken costs a fault more.
const LOOK: Duration = Duration::from_micros(20);

/// How long between two looks where the kernel does not say that there is something: it has no memory, or a limit on descriptors.
const WITHOUT_POLL: Duration = Duration::from_millis(1);

/// So often one descriptor is read before the others have their turn.
const ROUNDS: usize = 32;

/// Faults that are read at once.
const AT_ONCE: usize = 64;

/// One fault: where its page is in RAM, and in what waits for it.
struct Fault {
    ram: RamAddr,
    at: u64,
    size: u64,
    /// Minor faults are told there.
    minor: bool,
    /// This is one.
    in_file: bool,
}

/// A page that is here, and not mapped, is; what waits for it goes on. `minor`: it may be in its file, and is if that was told.
fn settle(uffd: &Uffd, fault: &Fault) -> io::Result<()> {
    let (at, size) = (fault.at, fault.size);
    if fault.in_file && map(uffd, at, size).is_ok() {
        return Ok(());
    }
    match uffd.zero(at, size) {
        Err(why) if why.raw_os_error() == Some(libc::EEXIST) => match fault.minor {
            true => map(uffd, at, size),
            false => uffd.wake(at, size),
        },
        // A page of hugetlbfs.
        Err(why) if why.raw_os_error() == Some(libc::EINVAL) => uffd.copy(at, &vec![0; size as usize]),
        done => done,
    }
}

/// A page that is in its file is mapped, if it is not; what waits for it goes on.
pub(super) fn map(uffd: &Uffd, at: u64, size: u64) -> io::Result<()> {
    match uffd.go_on(at, size) {
        Err(why) if why.raw_os_error() == Some(libc::EEXIST) => uffd.wake(at, size),
        done => done,
    }
}

impl Inner {
    /// Until it is told to quit, and has no peer.
    pub(super) fn run(&self) {
        let mut messages = [Message::default(); AT_ONCE];
        let (mut failed, mut told) = (false, false);
        // As they were when the bell rang last.
        let (mut peers, mut fds) = (Vec::new(), Vec::new());
        loop {
            if fds.is_empty() {
                peers.clone_from(&self.peers());
                if self.quit.load(Ordering::Acquire) && peers.is_empty() {
                    return;
                }
                let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                fds.extend([readable(self.bell.raw()), readable(if failed { -1 } else { self.uffd.raw() })]);
                fds.extend(peers.iter().map(|peer| readable(if peer.is_broken() { -1 } else { peer.uffd.raw() })));
            }
            if let Err(why) = self.wait(&mut fds) {
                // What waits has no other thread: each is looked at, and read without a wait.
                if !core::mem::replace(&mut told, true) {
                    log::error!(
                        "faults of userfaultfd cannot be waited for, and are looked for every millisecond: {why}"
                    );
                }
                std::thread::sleep(WITHOUT_POLL);
                fds.iter_mut().for_each(|fd| fd.revents = libc::POLLIN);
            }
            let rang = fds[0].revents != 0;
            if rang {
                self.bell.take();
            }
            let pages = super::lock(&self.pages).upgrade();
            if self.resume.swap(false, Ordering::AcqRel)
                && let Some(pages) = &pages
            {
                pages.request_again();
                pages.hand_over(&[]);
            }
            if fds[1].revents != 0 {
                let read = self.serve(&self.uffd, &mut messages, pages.as_ref(), |inner, at| {
                    let all = inner.own();
                    let own = all.get(all.partition_point(|own| own.start <= at).checked_sub(1)?)?;
                    own.fault(at)
                });
                if let Err(why) = read {
                    log::error!("faults of userfaultfd are not read any more: {why}");
                    (failed, fds[1].fd) = (true, -1);
                }
            }
            for (peer, fd) in peers.iter().zip(&mut fds[2..]).filter(|(_, fd)| fd.revents != 0) {
                let of = |_: &Inner, at: u64| {
                    let (ram, start, size) = peer.page_of(at)?;
                    Some(Fault { ram, at: start, size, minor: peer.minor, in_file: false })
                };
                if let Err(why) = self.serve(&peer.uffd, &mut messages, pages.as_ref(), of) {
                    peer.fail(&why);
                    fd.fd = -1;
                }
            }
            if rang {
                fds.clear();
            }
        }
    }

    fn wait(&self, fds: &mut [libc::pollfd]) -> io::Result<()> {
        #[cfg(test)]
        if self.no_poll.load(Ordering::Acquire) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sys::wait(fds)
    }

    /// Reads, and looks again for so long if there is nothing: a fault often follows the one before.
    fn look(&self, uffd: &Uffd, messages: &mut [Message; AT_ONCE], look: Duration) -> io::Result<usize> {
        let got = uffd.read(messages)?;
        if got != 0 || look.is_zero() {
            return Ok(got);
        }
        let since = Instant::now();
        while since.elapsed() < look && !self.quit.load(Ordering::Acquire) {
            std::thread::yield_now();
            let got = uffd.read(messages)?;
            if got != 0 {
                return Ok(got);
            }
        }
        Ok(0)
    }

    /// Reads what was told by this descriptor, asks for what is missing, and answers the rest.
    fn serve(
        &self,
        uffd: &Uffd,
        messages: &mut [Message; AT_ONCE],
        pages: Option<&Arc<MissingPages>>,
        of: impl Fn(&Inner, u64) -> Option<Fault>,
    ) -> io::Result<()> {
        let mut look = Duration::ZERO;
        for _ in 0..ROUNDS {
            let got = self.look(uffd, messages, look)?;
            let found = |message: &Message| Some(Fault { in_file: message.is_minor(), ..of(self, message.fault()?)? });
            let mut faults: Vec<_> = messages[..got].iter().filter_map(found).collect();
            // Those that are missing wait; the rest is here.
            let mut wanted = Vec::new();
            if let Some(pages) = pages {
                let mut missing = Vec::new();
                faults.retain(|fault| !pages.begin_fault(fault.ram, &mut missing));
                pages.request_all(&mut missing);
                wanted = missing;
            }
            for fault in &faults {
                if let Err(why) = settle(uffd, fault) {
                    // What waits looks again: unregistered meanwhile, or gone.
                    log::debug!("a page at {:#x}: {why}", fault.at);
                    let _ = uffd.wake(fault.at, fault.size);
                }
            }
            if got == 0 {
                return Ok(());
            }
            if let Some(pages) = pages.filter(|_| !wanted.is_empty()) {
                pages.hand_over(&wanted);
            }
            look = LOOK;
        }
        Ok(())
    }
}

impl Own {
    fn fault(&self, at: u64) -> Option<Fault> {
        let size = self.block.mapped_page();
        let off = (at - self.start) / size * size;
        let ram = RamAddr::new(self.block.offset().get() + off);
        (off < self.len).then_some(Fault { ram, at: self.start + off, size, minor: self.minor, in_file: false })
    }
}
