//! The host's end of a serial line: what the guest prints, what it is to read.
//!
//! Output is collected and passed on at a newline, when much has come together, when the guest looks for input, and at
//! the end.
//!
//! ```text
//!   vCPU: put ─▶ waiting ─▶ sink                                   Console::new: on the vCPU's thread
//!   vCPU: put ─▶ waiting ─▶ thread "console out" ─▶ sink           Console::write_behind
//!           └─ waits while there is too much, but not past `give_up_at`
//! ```
//!
//! With a thread, a sink that blocks holds no vCPU that has something else to do, and an unfinished line is passed on a moment
//! later, so that prompts are seen. A sink that fails gets nothing any more; `on_failure` says so.

use notdirty_softmmu::Stateful;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Output that is passed on even without a newline.
const BATCH: usize = 4096;
/// How long a line may stay unfinished before it is passed on as it is.
const PATIENCE: Duration = Duration::from_millis(20);
/// Output that waits for the thread; a vCPU waits when there is more.
const OUT_BACKLOG: usize = 64 << 10;
/// How long what waits is given to be written when no vCPU may wait any more.
const GRACE: Duration = Duration::from_millis(250);
/// Input that waits for the guest; a feeder waits when there is more.
const BACKLOG: usize = 64 << 10;

/// What was to be fed is more than the guest has left room for by reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bytes} bytes for the console, which has room for {room}: the guest has not read what came before")]
pub struct ConsoleFull {
    /// How many.
    pub bytes: usize,
    /// How many there is room for.
    pub room: usize,
}

type Sink = Box<dyn Write + Send>;

#[derive(Default)]
struct State {
    /// `None`: the thread has it.
    sink: Option<Sink>,
    waiting: Vec<u8>,
    /// What waits shall be passed on now.
    ripe: bool,
    /// The thread writes something it took.
    writing: bool,
    error: Option<io::Error>,
    /// The sink has failed; more is dropped.
    failed: bool,
    /// The console is gone: the thread ends when nothing waits.
    closed: bool,
    give_up_at: Option<Instant>,
    on_failure: Option<Box<dyn Fn() + Send>>,
}

/// The way out, shared with its thread.
#[derive(Default)]
struct Out {
    state: Mutex<State>,
    /// Something came, or is ripe.
    came: Condvar,
    /// Something was written, or time is up.
    went: Condvar,
}

/// The host's end of a serial line.
pub struct Console {
    out: Arc<Out>,
    input: Mutex<VecDeque<u8>>,
    /// Something was printed since the last flush began.
    printed: AtomicBool,
    /// Length of `input`, to be asked without its lock.
    pending: AtomicUsize,
    room: Condvar,
    /// No more will be fed.
    ended: AtomicBool,
}

notdirty_softmmu::fields! {
    /// What the guest has yet to read. What it printed was printed.
    pub struct ConsoleState: "console", version 1 {
        input: Vec<u8>,
    }
}

impl Stateful for Console {
    type State = ConsoleState;

    fn save(&self) -> ConsoleState {
        ConsoleState { input: self.input().iter().copied().collect() }
    }

    fn restore(&self, state: &ConsoleState) {
        if state.input.is_empty() && self.pending.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut input = self.input();
        input.clear();
        input.extend(&state.input);
        self.pending.store(input.len(), Ordering::Release);
        self.room.notify_all();
    }
}

impl Console {
    /// A console that prints to `sink`. Nothing comes in until it is fed.
    pub fn new(sink: Box<dyn Write + Send>) -> Arc<Console> {
        let state = State { sink: Some(sink), ..State::default() };
        Arc::new(Console {
            out: Arc::new(Out { state: Mutex::new(state), ..Out::default() }),
            input: Mutex::default(),
            printed: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            room: Condvar::new(),
            ended: AtomicBool::new(false),
        })
    }

    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a thread of its own does the writing.
    ///
    /// # Errors
    /// The host gives no thread; then what the guest prints is lost.
    pub fn write_behind(&self) -> io::Result<()> {
        let out = self.out.clone();
        let Some(mut sink) = out.state().sink.take() else { return Ok(()) };
        // A builder that fails drops the sink: then nothing can be printed, and the caller says so.
        thread::Builder::new().name("console out".into()).spawn(move || out.write_all(&mut sink))?;
        Ok(())
    }

    /// From then on no vCPU waits for room: what does not fit is lost. Only a console with a thread can keep this.
    pub fn give_up_at(&self, when: Instant) {
        self.out.state().give_up_at = Some(when);
        self.out.went.notify_all();
    }

    /// Calls this once the sink has failed: the guest is not heard any more. It is called at once if that was before.
    pub fn on_failure(&self, tell: impl Fn() + Send + 'static) {
        let mut state = self.out.state();
        if state.failed {
            drop(state);
            tell();
        } else {
            state.on_failure = Some(Box::new(tell));
        }
    }

    /// Feeds what `source` gives, in a thread of its own, until its end; that end is silent.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn feed_from(self: &Arc<Self>, mut source: impl Read + Send + 'static) -> io::Result<()> {
        let console = Arc::downgrade(self);
        thread::Builder::new().name("console in".into()).spawn(move || {
            let mut chunk = [0; 256];
            loop {
                let count = match source.read(&mut chunk) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(count) => count,
                    Err(_) => 0,
                };
                let Some(console) = console.upgrade() else { return };
                if count == 0 {
                    return console.ended.store(true, Ordering::Release);
                }
                console.feed_slowly(&chunk[..count]);
            }
        })?;
        Ok(())
    }

    /// Gives the guest something to read. Does not wait for it to be read, as the guest may not run yet: what has no room
    /// is refused, all of it.
    ///
    /// # Errors
    /// [`ConsoleFull`]: more bytes than there is room for; none was taken.
    pub fn feed(&self, bytes: &[u8]) -> Result<(), ConsoleFull> {
        let mut input = self.input();
        let room = BACKLOG.saturating_sub(input.len());
        if bytes.len() > room {
            return Err(ConsoleFull { bytes: bytes.len(), room });
        }
        input.extend(bytes);
        self.pending.store(input.len(), Ordering::Release);
        Ok(())
    }

    /// As `feed`, and waits for room: on a thread of its own.
    fn feed_slowly(&self, bytes: &[u8]) {
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

    /// Is nothing left, and nothing more to come? Known only of a source that [`feed_from`](Self::feed_from) read to its
    /// end.
    pub fn input_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) && !self.has_input()
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
        self.printed.store(true, Ordering::Release);
        let mut state = self.out.state();
        while state.sink.is_none() && state.waiting.len() >= OUT_BACKLOG && !state.failed {
            let Some(waited) = self.out.wait(state, Duration::ZERO) else { return };
            state = waited;
        }
        if state.failed {
            return;
        }
        let first = state.waiting.is_empty();
        state.waiting.extend_from_slice(bytes);
        let ripe = state.waiting.len() >= BATCH || bytes.contains(&b'\n');
        self.out.pass_on(state, first, ripe);
    }

    /// Passes on what waits, without waiting for it: the guest looks for input, so it has said what it wanted to say.
    pub fn flush_soon(&self) {
        self.out.pass_on(self.out.state(), false, true);
    }

    /// Passes on what waits, and waits until it is written or has failed; or until no vCPU may wait any more.
    pub fn flush(&self) {
        if !self.printed.load(Ordering::Acquire) {
            return;
        }
        self.printed.store(false, Ordering::Release);
        self.flush_soon();
        let mut state = self.out.state();
        while state.sink.is_none() && (state.writing || !state.waiting.is_empty()) && !state.failed {
            let Some(waited) = self.out.wait(state, GRACE) else { return };
            state = waited;
        }
    }

    /// The first failure of the sink; what came after it was dropped.
    pub fn take_error(&self) -> Option<io::Error> {
        self.out.state().error.take()
    }
}

impl Out {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to be written; `None` if it is `grace` past the time to give up.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, grace: Duration) -> Option<MutexGuard<'a, State>> {
        let Some(when) = state.give_up_at else {
            return Some(self.went.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = when.checked_add(grace)?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(self.went.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Something waits. Writes it, if it is ripe and no thread does.
    fn pass_on(&self, mut state: MutexGuard<'_, State>, first: bool, ripe: bool) {
        if state.waiting.is_empty() {
            return;
        }
        let Some(sink) = &mut state.sink else {
            // The thread sleeps until the first bytes, and then until it is ripe or old enough.
            let news = ripe && !state.ripe;
            state.ripe |= ripe;
            drop(state);
            if first || news {
                self.came.notify_one();
            }
            return;
        };
        if ripe {
            let mut sink = std::mem::replace(sink, Box::new(io::sink()));
            let bytes = std::mem::take(&mut state.waiting);
            let done = sink.write_all(&bytes).and_then(|()| sink.flush());
            state.sink = Some(sink);
            self.done(state, done);
        }
    }

    /// Something was written, or not.
    fn done(&self, mut state: MutexGuard<'_, State>, done: io::Result<()>) {
        let tell = match done {
            Ok(()) => None,
            Err(e) => {
                state.error = Some(e);
                state.failed = true;
                state.waiting.clear();
                state.on_failure.take()
            }
        };
        drop(state);
        if let Some(tell) = tell {
            tell();
        }
    }

    /// The thread: writes what comes until the console is gone.
    fn write_all(&self, sink: &mut Sink) {
        loop {
            let mut state = self.state();
            let mut came = None;
            while !state.ripe || state.waiting.is_empty() {
                if state.waiting.is_empty() {
                    if state.closed {
                        return;
                    }
                    (state.ripe, came) = (false, None);
                    state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                let since = *came.get_or_insert_with(Instant::now);
                let Some(left) = PATIENCE.checked_sub(since.elapsed()).filter(|_| !state.closed) else { break };
                state = self.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            let bytes = std::mem::take(&mut state.waiting);
            (state.ripe, state.writing) = (false, true);
            drop(state);
            // There is room again.
            self.went.notify_all();
            let done = sink.write_all(&bytes).and_then(|()| sink.flush());
            let failed = done.is_err();
            let mut state = self.state();
            state.writing = false;
            self.done(state, done);
            self.went.notify_all();
            if failed {
                return;
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush();
        self.out.state().closed = true;
        self.out.came.notify_all();
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
        console.write_behind().unwrap();
        // The thread sleeps by then, most likely: it is woken by several bytes at once as by one.
        thread::sleep(Duration::from_millis(20));
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

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_fails_is_reported_once_and_told() {
        for behind in [false, true] {
            let console = Console::new(Box::new(Broken));
            if behind {
                console.write_behind().unwrap();
            }
            let told = Arc::new(AtomicUsize::new(0));
            let tell = || {
                let told = told.clone();
                move || {
                    told.fetch_add(1, Ordering::Relaxed);
                }
            };
            console.on_failure(tell());
            console.put(b"x\n");
            console.flush();
            console.put(b"y\n");
            console.flush();
            assert_eq!(console.take_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
            assert!(console.take_error().is_none());
            console.on_failure(tell());
            let told = || told.load(Ordering::Relaxed);
            let start = Instant::now();
            while told() < 2 && start.elapsed() < Duration::from_secs(20) {
                thread::yield_now();
            }
            assert_eq!(told(), 2, "once when it failed, and once for a later call");
        }
    }

    #[test]
    fn a_sink_that_blocks_holds_nobody_past_the_time_to_give_up() {
        struct Blocked;
        impl Write for Blocked {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                loop {
                    thread::park();
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let console = Console::new(Box::new(Blocked));
        console.write_behind().unwrap();
        let start = Instant::now();
        console.give_up_at(start + Duration::from_millis(100));
        for _ in 0..100_000 {
            console.put(b"spam\n");
        }
        assert!(start.elapsed() >= Duration::from_millis(100), "until then it waits for room");
        drop(console);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn all_that_was_printed_is_written_in_order_by_the_thread() {
        let seen = Captured::default();
        let console = Console::new(Box::new(seen.clone()));
        console.write_behind().unwrap();
        let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        for byte in text.bytes() {
            console.put(&[byte]);
        }
        console.flush();
        assert!(seen.text() == text);
    }

    #[test]
    fn what_is_fed_before_a_run_is_taken_or_refused_at_once() {
        let console = Console::new(Box::new(io::sink()));
        console.feed(&vec![b'a'; BACKLOG - 3]).unwrap();
        assert_eq!(console.feed(b"four"), Err(ConsoleFull { bytes: 4, room: 3 }));
        console.feed(b"two").unwrap();
        assert_eq!(console.feed(b"x"), Err(ConsoleFull { bytes: 1, room: 0 }));
        assert_eq!(console.take(), Some(b'a'));
        console.feed(b"x").unwrap();
    }
}
