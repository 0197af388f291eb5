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
const SETTLE: Duration = Duration::from_secs(5);

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
    pub fn preempt(self: &Arc<Self>, asked: AskedPages) -> io::Result<()> {
        let asked = Arc::new(asked);
        let (own, line) = (asked.clone(), Arc::downgrade(self));
        // Until it is there: a channel that breaks at once is found by its thread.
        let mut current = self.asked.write().unwrap_or_else(PoisonError::into_inner);
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
    pub fn settle(&self, pages: &MissingPages) -> Result<(), Fault> {
        let Some(asked) = self.asked() else { return Ok(()) };
        let until = Instant::now() + SETTLE;
        let late = || Instant::now() >= until;
        // What is missing when all of it was answered is another fault, which the end of the stream tells of.
        while pages.left() != 0 && !late() && !asked.is_broken() && !asked.is_idle() {
            if !asked.help(&mut || pages.left() == 0 || late()) {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        if late() {
            // A thread that waits for a page may read it for ever: without this channel it asks by the next one.
            asked.close();
        } else {
            asked.rest();
        }
        Ok(())
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

impl PageSource for Line {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        self.request_run(block, off, block.page_size());
    }

    fn request_run(&self, block: &Arc<RamBlock>, off: u64, len: u64) {
        let len = len.min(block.used_length() - off.min(block.used_length())) as u32;
        let len = len.max(PAGE_SIZE as u32);
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

    fn hand_over(&self, over: &mut dyn FnMut() -> bool) {
        if let Some(asked) = self.asked() {
            asked.hand_over(over);
        }
    }

    fn help(&self, over: &mut dyn FnMut() -> bool) -> bool {
        self.asked().is_some_and(|asked| asked.help(over))
    }
}
