//! The host's end of a serial line: what the guest prints, what it is to read.
//!
//! Output is collected and passed on at a newline, when much has come together, when the guest looks for input, and at
//! the end. A line that is not finished is passed on by a thread a moment later, so that prompts are seen.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// Output that is passed on even without a newline.
const BATCH: usize = 4096;
/// How long a line may stay unfinished before it is passed on as it is.
const PATIENCE: Duration = Duration::from_millis(20);
/// Input that waits for the guest; a feeder waits when there is more.
const BACKLOG: usize = 64 << 10;

struct Out {
    sink: Box<dyn Write + Send>,
    waiting: Vec<u8>,
    error: Option<io::Error>,
}

/// The host's end of a serial line.
pub struct Console {
    out: Mutex<Out>,
    input: Mutex<VecDeque<u8>>,
    /// Length of `input`, to be asked without its lock.
    pending: AtomicUsize,
    room: Condvar,
}

impl Console {
    /// A console that prints to `sink`. Nothing comes in until somebody feeds it.
    pub fn new(sink: Box<dyn Write + Send>) -> Arc<Console> {
        Arc::new(Console {
            out: Mutex::new(Out { sink, waiting: Vec::new(), error: None }),
            input: Mutex::default(),
            pending: AtomicUsize::new(0),
            room: Condvar::new(),
        })
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on unfinished lines in a thread of its own, as long as the console lives.
    pub fn flush_when_idle(self: &Arc<Self>) -> io::Result<()> {
        let console: Weak<Console> = Arc::downgrade(self);
        let flusher = thread::Builder::new().name("console out".into());
        flusher.spawn(move || {
            while let Some(console) = console.upgrade() {
                console.flush();
                drop(console);
                thread::sleep(PATIENCE);
            }
        })?;
        Ok(())
    }

    /// Feeds what `source` gives, in a thread of its own, until its end; that end is silent.
    pub fn feed_from(self: &Arc<Self>, mut source: impl Read + Send + 'static) -> io::Result<()> {
        let console = Arc::downgrade(self);
        thread::Builder::new().name("console in".into()).spawn(move || {
            let mut chunk = [0; 256];
            loop {
                let count = match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(count) => count,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let Some(console) = console.upgrade() else { return };
                console.feed(&chunk[..count]);
            }
        })?;
        Ok(())
    }

    /// Gives the guest something to read; waits for room.
    pub fn feed(&self, bytes: &[u8]) {
        let mut input = self.input();
        while input.len() >= BACKLOG {
            input = self.room.wait(input).unwrap_or_else(PoisonError::into_inner);
        }
        input.extend(bytes);
        self.pending.store(input.len(), Ordering::Release);
    }

    /// Is there something to read?
    pub fn has_input(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// The next byte for the guest.
    pub fn take(&self) -> Option<u8> {
        if !self.has_input() {
            return None;
        }
        let mut input = self.input();
        let byte = input.pop_front();
        self.pending.store(input.len(), Ordering::Release);
        self.room.notify_all();
        byte
    }

    /// Prints what the guest sent.
    pub fn put(&self, bytes: &[u8]) {
        let mut out = self.out();
        out.waiting.extend_from_slice(bytes);
        if out.waiting.len() >= BATCH || bytes.contains(&b'\n') {
            out.pass_on();
        }
    }

    /// Passes on what waits.
    pub fn flush(&self) {
        self.out().pass_on();
    }

    /// The first failure of the sink; what came after it was dropped.
    pub fn take_error(&self) -> Option<io::Error> {
        self.out().error.take()
    }
}

impl Out {
    fn pass_on(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.error.is_none() {
            self.error = self.sink.write_all(&self.waiting).and_then(|()| self.sink.flush()).err();
        }
        self.waiting.clear();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A sink that keeps what was printed, for tests and embedders.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What was printed so far, with anything that is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passed_on_whole_and_the_rest_at_the_end() {
        let seen = Captured::default();
        let console = Console::new(Box::new(seen.clone()));
        console.put(b"one");
        assert_eq!(seen.text(), "");
        console.put(b" line\ntwo");
        assert_eq!(seen.text(), "one line\ntwo");
        console.put(b"!");
        drop(console);
        assert_eq!(seen.text(), "one line\ntwo!");
    }

    #[test]
    fn an_unfinished_line_is_seen_after_a_moment() {
        let seen = Captured::default();
        let console = Console::new(Box::new(seen.clone()));
        console.flush_when_idle().unwrap();
        console.put(b"login: ");
        for _ in 0..500 {
            if seen.text() == "login: " {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the prompt never came");
    }

    #[test]
    fn input_arrives_in_order_and_a_feeder_waits_for_room() {
        let console = Console::new(Box::new(io::sink()));
        let sent: Vec<u8> = (0..3 * BACKLOG).map(|n| n as u8).collect();
        console.feed_from(io::Cursor::new(sent.clone())).unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            match console.take() {
                Some(byte) => got.push(byte),
                None => thread::yield_now(),
            }
            assert!(console.pending.load(Ordering::Relaxed) < BACKLOG + 256);
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_sink_that_fails_is_reported_once() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new(Box::new(Broken));
        console.put(b"x\ny\n");
        assert_eq!(console.take_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
}
