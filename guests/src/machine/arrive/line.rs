//! The way back to the source: what waits for a page asks by it.
//!
//! ```text
//!   a missing page ─▶ request ─┬─ preempt channel ─▶ AskedPages: the one that waits reads its page itself
//!                              └─ else main ───────▶ REQ_PAGES; the page comes in the stream
//!   thread "urgent pages": reads what nothing waits for any more; when that channel breaks the main one is closed, too
//! ```
//!
//! While there is no channel a request is kept in mind, and goes by the next one.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use notdirty_core::migration::postcopy::{Answer, AskedPages};
use notdirty_core::migration::{Channel, Fault};
use notdirty_core::{MissingPages, PAGE_SIZE, PageSource, RamBlock};

use super::lock;

/// The way back to the source: what waits for a page asks by it.
#[derive(Default)]
pub(super) struct Line {
    main: Mutex<Option<Open>>,
    /// The preempt channel, if there is one.
    asked: RwLock<Option<Arc<AskedPages>>>,
}

/// How long a source that has sent all may take with pages that went by the preempt channel.
const SETTLE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };

/// Bytes of one request, which has 32 bits for them: pages of hugetlbfs have 1 GiB, and neighbours are asked for as one.
const MOST: u64 = 1 << 31;

struct Open {
    channel: Channel,
    /// The block that was asked for last.
    last: Option<Arc<RamBlock>>,
}

impl Line {
    pub fn open(&self, channel: Channel) {
        *lock(&self.main) = Some(Open { channel, last: None });
    }

    /// Nothing is said any more; the thread that reads the channel is told.
    pub fn close(&self) {
        if let Some(open) = lock(&self.main).take() {
            open.channel.shut();
        }
    }

    pub fn asked(&self) -> Option<Arc<AskedPages>> {
        self.asked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing is placed by the preempt channel any more when this returns.
    pub fn close_asked(&self) {
        let asked = self.asked.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(asked) = asked {
            asked.close();
        }
    }

    /// Pages that are waited for come by this channel from here on. If it breaks, so does the main one.
    ///
    /// # Errors
    /// The host's; there is one already.
    pub fn preempt(self: &Arc<Self>, asked: AskedPages) -> io::Result<()> {
        let asked = Arc::new(asked);
        let (own, line) = (asked.clone(), Arc::downgrade(self));
        // Until it is there: a channel that breaks at once is found by its thread.
        let mut current = self.asked.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_some() {
            // What was asked for by the first would be read by nothing.
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a channel for urgent pages already"));
        }
        let thread = std::thread::Builder::new().name("urgent pages".into());
        thread.spawn(move || {
            let why = own.serve();
            // One that was replaced, or closed with the main one, breaks nothing.
            let Some(line) = line.upgrade() else { return };
            let mut current = line.asked.write().unwrap_or_else(PoisonError::into_inner);
            if current.take_if(|current| Arc::ptr_eq(current, &own)).is_some() {
                drop(current);
                log::warn!("postcopy: the channel for urgent pages: {why}");
                line.close();
            }
        })?;
        *current = Some(asked);
        Ok(())
    }

    /// All was sent: what went by the preempt channel is read. Nothing is placed by it when this returns well.
    ///
    /// # Errors
    /// The channel does nothing, and pages are missing: they come by the next one.
    pub fn settle(&self, pages: &MissingPages) -> Result<(), Fault> {
        let Some(asked) = self.asked() else { return Ok(()) };
        let until = Instant::now() + SETTLE;
        let late = || Instant::now() >= until;
        // What is missing when all of it was answered is another fault, which the end of the stream tells of.
        while !late() && !asked.is_broken() && !asked.is_answered() {
            if !asked.help(&mut || late() || asked.is_answered()) {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        if asked.is_broken() || asked.is_answered() {
            asked.rest();
            return Ok(());
        }
        // Whatever reads it may do so for ever.
        self.close_asked();
        if pages.left() == 0 {
            return Ok(());
        }
        let text = format!("the channel for urgent pages did nothing for {} s", SETTLE.as_secs_f64());
        Err(Fault::Io(io::Error::new(io::ErrorKind::TimedOut, text)))
    }

    /// At most [`MOST`] bytes of a block.
    fn ask(&self, block: &Arc<RamBlock>, off: u64, len: u32) {
        if let Some(asked) = self.asked() {
            // If it broke, it is asked for again once there is another.
            asked.ask(block, off, len);
            return;
        }
        let mut line = lock(&self.main);
        // While there is no channel it is kept in mind, and asked for by the next one.
        let Some(open) = line.as_mut() else { return };
        let same = open.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, block));
        let idstr = (!same).then(|| block.idstr().to_owned());
        let request = Answer::Request { idstr, start: off, len };
        open.last = Some(block.clone());
        if open.channel.write_all(&request.to_bytes()).is_err() {
            open.channel.shut();
        }
    }

    pub fn say(&self, answers: &[Answer]) -> io::Result<()> {
        let bytes = answers.iter().flat_map(Answer::to_bytes).collect::<Vec<_>>();
        self.put(&bytes)
    }

    pub fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let mut line = lock(&self.main);
        let open = line.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        open.channel.write_all(bytes)
    }
}

impl Drop for Line {
    /// An arrival that is refused has no other end: the thread of the preempt channel, and its descriptors, go with it. The main channel is left
    /// open: the source hears of the refusal by it.
    fn drop(&mut self) {
        self.close_asked();
    }
}

impl PageSource for Line {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        self.request_run(block, off, block.page_size());
    }

    fn request_run(&self, block: &Arc<RamBlock>, off: u64, len: u64) {
        let len = len.min(block.used_length() - off.min(block.used_length())).max(PAGE_SIZE);
        (0..len).step_by(MOST as usize).for_each(|at| self.ask(block, off + at, (len - at).min(MOST) as u32));
    }

    fn hand_over(&self, over: &mut dyn FnMut() -> bool) {
        if let Some(asked) = self.asked() {
            asked.hand_over(over);
        }
    }

    fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
        self.asked().is_some_and(|asked| asked.help(over))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_core::migration::{Cancel, Incoming, ListedBlock};
    use notdirty_core::{PageBytes, RamBlockSpec, RamList, WaitToken};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// Two pages of RAM that are to come, what asks for them, and the reader of those that come by a channel of their own.
    fn missing() -> (Arc<Line>, Arc<MissingPages>, Incoming) {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 2 * PAGE_SIZE)).unwrap();
        let line = Arc::new(Line::default());
        let pages = list.set_missing(line.clone(), [block.clone()]).unwrap();
        let listed = ListedBlock { idstr: "ram".into(), used_length: 2 * PAGE_SIZE };
        let incoming = Incoming::new(vec![listed], vec![block]).unwrap();
        (line, pages, incoming)
    }

    #[test]
    fn an_arrival_that_is_refused_leaves_no_thread_and_no_descriptor_of_its_preempt_channel() {
        let (line, pages, incoming) = missing();
        let (here, mut there) = UnixStream::pair().unwrap();
        let here = Channel::new(here.into(), SETTLE, Cancel::default()).unwrap();
        line.preempt(AskedPages::new(here, &incoming, &pages).unwrap()).unwrap();
        drop((incoming, pages, line));
        there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(there.read(&mut [0]).unwrap(), 0, "the thread has its end still");
    }

    #[test]
    fn a_second_channel_for_urgent_pages_is_refused_while_the_first_is_there() {
        let (line, pages, incoming) = missing();
        let preempt = || {
            let (here, there) = UnixStream::pair().unwrap();
            let here = Channel::new(here.into(), SETTLE, Cancel::default()).unwrap();
            (line.preempt(AskedPages::new(here, &incoming, &pages).unwrap()), there)
        };
        let ((first, mut there), (second, mut other)) = (preempt(), preempt());
        let (why, first) = (second.unwrap_err(), first.is_ok() && line.asked().is_some());
        assert!(first && why.to_string().contains("already"), "{why}");
        for end in [&mut other, &mut there] {
            // The first has no end before it is closed.
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(end.read(&mut [0]).unwrap(), 0);
            line.close_asked();
        }
    }

    #[test]
    fn a_run_of_4_gib_of_pages_is_asked_for_whole() {
        const GIB: u64 = 1 << 30;
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 5 * GIB)).unwrap();
        let line = Line::default();
        let (here, mut there) = UnixStream::pair().unwrap();
        line.open(Channel::new(here.into(), SETTLE, Cancel::default()).unwrap());
        line.request_run(&block, GIB, 4 * GIB);
        line.close();
        let mut runs = Vec::new();
        while let Ok(Answer::Request { start, len, .. }) = Answer::read(&mut there) {
            runs.push((start, u64::from(len)));
        }
        assert_eq!(runs, [(GIB, 2 * GIB), (3 * GIB, 2 * GIB)]);
    }

    #[test]
    fn a_channel_for_urgent_pages_that_stands_still_is_given_up_when_all_else_has_come() {
        for last in [false, true] {
            let list = Arc::new(RamList::new());
            let block = list.add(RamBlockSpec::new("ram", 2 * PAGE_SIZE)).unwrap();
            let line = Arc::new(Line::default());
            let pages = list.set_missing(line.clone(), [block.clone()]).unwrap();
            let listed = ListedBlock { idstr: "ram".into(), used_length: 2 * PAGE_SIZE };
            let incoming = Incoming::new(vec![listed], vec![block.clone()]).unwrap();
            let (here, _there) = UnixStream::pair().unwrap();
            let here = Channel::new(here.into(), SETTLE, Cancel::default()).unwrap();
            line.preempt(AskedPages::new(here, &incoming, &pages).unwrap()).unwrap();
            pages.listen().unwrap();
            let token = WaitToken::default();
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| pages.wait(block.offset(), 8, &token, None));
                while pages.requests() == 0 {
                    std::thread::yield_now();
                }
                pages.place(&block, PAGE_SIZE, PageBytes::Zero).unwrap();
                if last {
                    // By the main channel, too: what was asked for is never answered.
                    pages.place(&block, 0, PageBytes::Zero).unwrap();
                }
                let settled = line.settle(&pages).map_err(|fault| fault.to_string());
                let text = "the channel for urgent pages did nothing for 0.2 s";
                let right = settled.as_ref().map_or_else(|why| !last && why.contains(text), |()| last);
                pages.place(&block, 0, PageBytes::Zero).unwrap();
                assert!(right && line.asked().is_none(), "{settled:?}");
                waits.join().unwrap().unwrap();
            });
        }
    }
}
