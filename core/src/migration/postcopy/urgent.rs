//! The source's end of the preempt channel: one thread reads requests, and sends the pages itself.
//!
//! ```text
//!   preempt channel ─▶ REQ_PAGES ─▶ bmap: taken, or was it sent? ─▶ be64 place│flags [name, unless CONTINUE] page ─▶ preempt channel
//!                                     └─ the sweep goes on behind it              zero: no bytes
//! ```
//!
//! Each request is answered, also for a page that the sweep took before: it may be far behind in the main channel, and pages do not
//! change. PLACE-1 places one of the two.
//!
//! `busy` is held from the take of a page until its bytes are written. So once `bmap` is empty and `busy` was free, each page went, by
//! one channel or the other ([`settle`](Urgent::settle)).

use super::super::channel::{Channel, write_all_vectors};
use super::super::checksums::Checksums;
use super::super::wire::{Fault, flag};
use super::super::{BlockMigration, DirtyPages};
use super::answers::Answer;
use super::heard::Blocks;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of requests that are read at once.
const REQUESTS: usize = 4 << 10;

struct Part {
    block: Arc<RamBlock>,
    dirty: Arc<DirtyPages>,
    sums: Arc<Checksums>,
}

/// What the sweep and the thread of the preempt channel share.
pub struct Urgent {
    blocks: Blocks,
    parts: Vec<Part>,
    busy: Mutex<()>,
    /// Behind the page that was asked for last: the sweep goes on there.
    at: Mutex<Option<(usize, u64)>>,
    pages: AtomicU64,
    bytes: AtomicU64,
}

impl Urgent {
    pub(super) fn new<'b>(blocks: impl Iterator<Item = (&'b Arc<RamBlock>, &'b Arc<DirtyPages>, u64)>) -> Urgent {
        let (mut sizes, mut parts) = (Vec::new(), Vec::new());
        for (block, dirty, pages) in blocks {
            sizes.push((block.idstr().to_owned(), pages));
            let sums = BlockMigration::need_checksums(block);
            parts.push(Part { block: block.clone(), dirty: dirty.clone(), sums });
        }
        Urgent {
            blocks: Blocks(sizes),
            parts,
            busy: Mutex::new(()),
            at: Mutex::new(None),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Answers requests until the channel ends, or something is wrong with it.
    pub fn serve(&self, channel: &mut Channel) -> Fault {
        let (mut buffer, mut end) = (vec![0; REQUESTS], 0);
        let (mut asked, mut answered) = (None, None);
        loop {
            match channel.read_once(&mut buffer[end..]) {
                Ok(None) => continue,
                Ok(Some(0)) => return Fault::Ended,
                Ok(Some(count)) => end += count,
                Err(why) => return Fault::Io(why),
            }
            let mut left = &buffer[..end];
            let done = loop {
                let before = left;
                match Answer::read(&mut left) {
                    Ok(Answer::Request { idstr, start, len }) => {
                        let sent = self.blocks.asked(idstr, start, len, &mut asked).and_then(|(block, mut pages)| {
                            pages.try_for_each(|page| self.send(channel, block, page, &mut answered).map_err(Fault::Io))
                        });
                        if let Err(fault) = sent {
                            break Err(fault);
                        }
                    }
                    // The rest of it is to come.
                    Err(Fault::Ended) => break Ok(before.len()),
                    Ok(other) => break Err(Fault::Order(format!("{other:?} by the channel for urgent pages"))),
                    Err(fault) => break Err(fault),
                }
            };
            match done {
                Ok(rest) => {
                    buffer.copy_within(end - rest..end, 0);
                    end = rest;
                }
                Err(fault) => return fault,
            }
        }
    }

    fn send(&self, to: &mut Channel, index: usize, page: u64, last: &mut Option<usize>) -> io::Result<()> {
        let part = &self.parts[index];
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let first = part.dirty.take(page);
        let next = (page + 1).next_multiple_of(part.block.page_size() >> PAGE_BITS);
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, next));
        let zero = part.block.is_zero(page);
        let place = page << PAGE_BITS | if zero { flag::ZERO } else { flag::PAGE };
        let (mut head, mut len) = ([0; 8 + 256], 8);
        if last.replace(index) == Some(index) {
            head[..8].copy_from_slice(&(place | flag::CONTINUE).to_be_bytes());
        } else {
            head[..8].copy_from_slice(&place.to_be_bytes());
            let name = part.block.idstr().as_bytes();
            let name = &name[..name.len().min(255)];
            head[8] = name.len() as u8;
            len += 1 + name.len();
            head[9..len].copy_from_slice(name);
        }
        let ram = part.block.slice(page << PAGE_BITS, if zero { 0 } else { PAGE_SIZE }).map_err(io::Error::other)?;
        let mut vectors = [libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: len }, ram.iovec()];
        // SAFETY: the head is borrowed, and the block of the slice is.
        unsafe { write_all_vectors(to, &mut vectors, false)? };
        let bytes = len as u64 + ram.len();
        if first {
            // The page does not change, and the target goes on meanwhile.
            match zero {
                true => part.sums.note_zero([page]),
                false => part.sums.note_ram(&part.block, [page]),
            }
        }
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// When `bmap` is empty: each page that was taken for a request was written when this returns.
    pub(super) fn settle(&self) {
        drop(self.busy.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Where the sweep goes on, if something was asked for since.
    pub(super) fn take_at(&self) -> Option<(usize, u64)> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Pages that went because they were asked for.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// What they were on the channel.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::super::{Cancel, ChunkShift, Incoming, ListedBlock};
    use super::super::asked::AskedPages;
    use super::*;
    use crate::missing::{MissingError, PageSource, WaitToken};
    use crate::ram::{RamBlockSpec, RamList};
    use std::os::unix::net::UnixStream;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    const PAGES: u64 = 400;
    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Default)]
    struct Line(OnceLock<Arc<AskedPages>>);

    impl PageSource for Line {
        fn request(&self, block: &Arc<RamBlock>, off: u64) {
            assert!(self.0.get().unwrap().ask(block, off, PAGE_SIZE as u32));
        }
        fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
            self.0.get().unwrap().help(over)
        }
    }

    fn channel(socket: UnixStream) -> Channel {
        Channel::new(socket.into(), PATIENCE, Cancel::default()).unwrap()
    }

    /// What serves ends, also if an assertion fails: a scope waits for its threads.
    struct Closed<'a>(&'a AskedPages);

    impl Drop for Closed<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }

    /// Bytes of a page; of each seventh none.
    fn value(page: u64) -> u64 {
        if page.is_multiple_of(7) { 0 } else { page * 0x1_0001 + 1 }
    }

    #[test]
    fn pages_that_several_threads_wait_for_at_once_come_once_also_if_a_thread_gives_up() {
        let names = ["a", "b"];
        let (ours, theirs) = (Arc::new(RamList::new()), Arc::new(RamList::new()));
        let add = |list: &RamList| names.map(|name| list.add(RamBlockSpec::new(name, PAGES * PAGE_SIZE)).unwrap());
        let (from, to) = (add(&ours), add(&theirs));
        let dirty = from.each_ref().map(|block| BlockMigration::need_dirty(block, ChunkShift::default()));
        for (block, dirty) in from.iter().zip(&dirty) {
            (0..PAGES).for_each(|page| ours.write(block, page * PAGE_SIZE + 16, &value(page).to_le_bytes()).unwrap());
            dirty.set(0..PAGES);
        }
        let urgent = Urgent::new(from.iter().zip(&dirty).map(|(block, dirty)| (block, dirty, PAGES)));
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, b) = (channel(a), channel(b));
        let line = Arc::new(Line::default());
        let pages = theirs.set_missing(line.clone(), to.iter().cloned()).unwrap();
        let listed = names.map(|name| ListedBlock { idstr: name.into(), used_length: PAGES * PAGE_SIZE });
        let incoming = Incoming::new(listed.to_vec(), to.to_vec()).unwrap();
        let asked = Arc::new(AskedPages::new(b, &incoming, &pages).unwrap());
        assert!(line.0.set(asked.clone()).is_ok());
        pages.listen().unwrap();
        a.set_blocking(Duration::from_millis(50), Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| urgent.serve(&mut a));
            scope.spawn(|| asked.serve());
            let _closed = Closed(&asked);
            let readers: Vec<_> = (0..4u64)
                .map(|thread| {
                    let (to, pages) = (&to, &pages);
                    scope.spawn(move || {
                        let token = WaitToken::default();
                        for n in 0..2 * PAGES {
                            // Half of the pages are waited for by two threads.
                            let (block, page) = (&to[(n % 2) as usize], (n * 37 + thread / 2 * 11) % (PAGES - 1));
                            let at = block.offset().get() + page * PAGE_SIZE + 16;
                            let brief = (n % 5 == thread).then(Instant::now);
                            match pages.wait(crate::addr::RamAddr::new(at), 8, &token, brief) {
                                Ok(()) => {}
                                Err(MissingError::Late) => continue,
                                Err(why) => panic!("{why}"),
                            }
                            let mut word = [0; 8];
                            block.read_bytes(page * PAGE_SIZE + 16, &mut word).unwrap();
                            assert_eq!(u64::from_le_bytes(word), value(page));
                        }
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            // What was given up comes without a waiter.
            let last = crate::addr::RamAddr::new(to[0].offset().get() + (PAGES - 1) * PAGE_SIZE);
            let gone = pages.wait(last, 8, &WaitToken::default(), Some(Instant::now()));
            // On a busy host it may come before this thread looks.
            assert!(matches!(gone, Ok(()) | Err(MissingError::Late)), "{gone:?}");
            let until = Instant::now() + PATIENCE;
            while !pages.requested().is_empty() {
                assert!(Instant::now() < until, "{:?}", pages.requested());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        urgent.settle();
        assert_eq!(urgent.pages(), pages.requests());
        assert_eq!(dirty.iter().map(|dirty| dirty.count()).sum::<u64>(), pages.left());
        let sums = |blocks: &[Arc<RamBlock>]| {
            blocks.iter().map(|b| BlockMigration::need_checksums(b).sum()).collect::<Vec<_>>()
        };
        assert_eq!(sums(&from), sums(&to));
        assert_ne!(sums(&from)[0], 0);
    }

    #[test]
    fn what_is_no_request_ends_the_channel_and_what_is_no_page_ends_the_other_end() {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("a", 8 * PAGE_SIZE)).unwrap();
        let dirty = BlockMigration::need_dirty(&block, ChunkShift::default());
        let urgent = Urgent::new([(&block, &dirty, 8)].into_iter());
        let request = |start, len| Answer::Request { idstr: Some("a".into()), start, len }.to_bytes();
        for (bytes, text) in [
            (request(8 * PAGE_SIZE, 4096), "RAM block a"),
            (Answer::Pong(1).to_bytes(), "by the channel for urgent pages"),
            (vec![0xff; 8], "the answer"),
            (request(0, 4096)[..5].to_vec(), "ends"),
        ] {
            let (a, b) = UnixStream::pair().unwrap();
            io::Write::write_all(&mut &b, &bytes).unwrap();
            drop(b);
            let why = urgent.serve(&mut channel(a)).to_string();
            assert!(why.contains(text), "{why}");
        }
        let line = Arc::new(Line::default());
        let pages = list.set_missing(line, [block.clone()]).unwrap();
        let listed = vec![ListedBlock { idstr: "a".into(), used_length: 8 * PAGE_SIZE }];
        let incoming = Incoming::new(listed, vec![block.clone()]).unwrap();
        pages.listen().unwrap();
        let word = |place: u64| place.to_be_bytes().to_vec();
        for (bytes, text) in [
            (word(flag::ZERO | flag::CONTINUE), "there is none"),
            (word(flag::XBZRLE), "the flags of an urgent page"),
            ([word(8 << PAGE_BITS | flag::ZERO), b"\x01a".to_vec()].concat(), "a"),
            ([word(flag::ZERO), b"\x01b".to_vec()].concat(), "a RAM block"),
            (word(flag::PAGE), "ends"),
        ] {
            let (a, b) = UnixStream::pair().unwrap();
            let asked = AskedPages::new(channel(a), &incoming, &pages).unwrap();
            assert!(asked.ask(&block, 0, 4096));
            io::Write::write_all(&mut &b, &bytes).unwrap();
            b.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(asked.help(&mut || false) && asked.is_broken());
            let why = asked.serve();
            assert!(why.contains(text), "{why}");
            assert!(!asked.ask(&block, 0, 4096) && !asked.help(&mut || false));
            assert!(pages.is_missing(block.offset()));
        }
    }

    /// While there is no channel nothing is asked for.
    #[derive(Default)]
    struct Late(OnceLock<Arc<AskedPages>>);

    impl PageSource for Late {
        fn request(&self, block: &Arc<RamBlock>, off: u64) {
            assert!(self.0.get().is_none_or(|asked| asked.ask(block, off, PAGE_SIZE as u32)));
        }
    }

    #[test]
    fn all_that_is_asked_for_again_comes_by_a_channel_that_holds_a_part_of_it_either_way() {
        const MANY: u64 = 2000;
        let (ours, theirs) = (Arc::new(RamList::new()), Arc::new(RamList::new()));
        let add = |list: &RamList| list.add(RamBlockSpec::new("a", MANY * PAGE_SIZE)).unwrap();
        let (from, to) = (add(&ours), add(&theirs));
        let dirty = BlockMigration::need_dirty(&from, ChunkShift::default());
        (0..MANY).for_each(|page| ours.write(&from, page * PAGE_SIZE, &[1]).unwrap());
        dirty.set(0..MANY);
        let urgent = Urgent::new([(&from, &dirty, MANY)].into_iter());
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, b) = (channel(a), channel(b));
        for end in [&a, &b] {
            let small: libc::c_int = 8 << 10;
            let (at, len) = ((&raw const small).cast(), size_of_val(&small) as libc::socklen_t);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(end));
            // SAFETY: the kernel reads `len` bytes of `small`.
            assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, at, len) }, 0);
        }
        let line = Arc::new(Late::default());
        let pages = theirs.set_missing(line.clone(), [to.clone()]).unwrap();
        let listed = ListedBlock { idstr: "a".into(), used_length: MANY * PAGE_SIZE };
        let incoming = Incoming::new(vec![listed], vec![to.clone()]).unwrap();
        let asked = Arc::new(AskedPages::new(b, &incoming, &pages).unwrap());
        pages.listen().unwrap();
        a.set_blocking(Duration::from_millis(50), Duration::ZERO).unwrap();
        for page in 0..MANY {
            let at = crate::addr::RamAddr::new(to.offset().get() + page * PAGE_SIZE);
            let gone = pages.wait(at, 8, &WaitToken::default(), Some(Instant::now()));
            assert!(matches!(gone, Err(MissingError::Late)));
        }
        assert!(line.0.set(asked.clone()).is_ok());
        std::thread::scope(|scope| {
            scope.spawn(|| urgent.serve(&mut a));
            scope.spawn(|| asked.serve());
            let _closed = Closed(&asked);
            // It sleeps, most likely.
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(pages.request_again(), MANY as usize);
            let until = Instant::now() + PATIENCE;
            while pages.left() != 0 {
                assert!(Instant::now() < until, "{} are missing", pages.left());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    /// So many pages that are to come, what asks for them, and the other end of its channel.
    fn missing(count: u64) -> (AskedPages, Arc<RamBlock>, Arc<crate::MissingPages>, UnixStream) {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("a", count * PAGE_SIZE)).unwrap();
        let pages = list.set_missing(Arc::new(Line::default()), [block.clone()]).unwrap();
        let listed = vec![ListedBlock { idstr: "a".into(), used_length: count * PAGE_SIZE }];
        let incoming = Incoming::new(listed, vec![block.clone()]).unwrap();
        pages.listen().unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        (AskedPages::new(channel(a), &incoming, &pages).unwrap(), block, pages, b)
    }

    #[test]
    fn pages_that_nothing_asked_for_are_placed_and_answer_nothing_that_is_asked_for_later() {
        let (asked, block, pages, b) = missing(4);
        let send = |page: u64| {
            let record = [&(page << PAGE_BITS | flag::ZERO).to_be_bytes()[..], b"\x01a"].concat();
            io::Write::write_all(&mut &b, &record).unwrap();
        };
        let at = |page: u64| crate::addr::RamAddr::new(block.offset().get() + page * PAGE_SIZE);
        assert!(asked.ask(&block, 0, PAGE_SIZE as u32));
        [0, 0, 1].into_iter().for_each(send);
        assert!(asked.help(&mut || !pages.is_missing(at(1))));
        assert!(asked.is_answered() && pages.left() == 2);
        assert!(asked.ask(&block, 2 * PAGE_SIZE, PAGE_SIZE as u32) && !asked.is_answered());
        send(2);
        assert!(asked.help(&mut || !pages.is_missing(at(2))) && asked.is_answered());
    }

    #[test]
    fn pages_that_are_asked_for_in_bulk_are_read_though_the_thread_that_asks_does_not_read_yet() {
        let (asked, block, pages, b) = missing(64);
        let record = |page: u64| match page {
            0 => [&flag::ZERO.to_be_bytes()[..], b"\x01a"].concat(),
            _ => (page << PAGE_BITS | flag::ZERO | flag::CONTINUE).to_be_bytes().to_vec(),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| asked.serve());
            let _closed = Closed(&asked);
            // It sleeps, most likely.
            std::thread::sleep(Duration::from_millis(50));
            for page in 0..40 {
                assert!(asked.ask(&block, page * PAGE_SIZE, PAGE_SIZE as u32));
                io::Write::write_all(&mut &b, &record(page)).unwrap();
            }
            let until = Instant::now() + PATIENCE;
            while pages.left() > 64 - 20 {
                assert!(Instant::now() < until, "{} are missing", pages.left());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
