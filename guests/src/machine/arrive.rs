//! A machine that runs here while its pages come.
//!
//! ```text
//!   receive ── ADVISE ─▶ all RAM is missing, marked as here │ precopy │ RAM_DISCARD: missing │ PACKAGED, read whole
//!     │ LISTEN ─▶ thread "arrival": records ─▶ place ─┐ devices ─▶ RUN ─▶ PONG ─▶ the machine is returned, to be run
//!     ▼                                               │
//!   vCPU ── a missing page ─▶ Line: REQ_PAGES ─▶ source           END ─▶ checksums of all RAM ─▶ SHUT 0
//!     └── by a preempt channel, if the source has one: there the vCPU itself reads its page, and places it
//!
//!   Running ── the channel breaks ─▶ Paused ── recover ─▶ Recovering: bitmaps, RESUME_ACK, all requests once more ─▶ Running ─▶ Complete
//! ```
//!
//! A target that has not all of the message does not run. Once it runs it never says that it does not: what fails then pauses it, and
//! whatever waits for a page waits on.

mod line;
mod reads;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::migration::postcopy::{
    Answer, AskedPages, Command, Inbound, Moment, Name, Notifiers, Outcome, PageSizes, State, Step,
};
use notdirty_core::migration::{Channel, Event, Fault, Incoming, Section, StreamReader, multifd};
use notdirty_core::{Blocktime, FaultKind, FaultSource, MissingPages, PAGE_SIZE, RamBlock, RamList};

use super::migrate::{MigrationError, More};
use line::Line;
use reads::Reads;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a machine is that runs here while its pages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArrivalState {
    /// Pages come.
    Running,
    /// The channel broke: what waits for a page waits until [`Arrival::recover`].
    Paused,
    /// There is another channel, and the source is told what is here.
    Recovering,
    /// All of RAM is here; whether the source knows is [`ArrivalStatus::known`].
    Complete,
    /// The machine was dropped, or what came is not what was sent.
    Failed,
}

/// How its pages come.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ArrivalStatus {
    /// Where it is.
    pub state: ArrivalState,
    /// Since the machine was to be run here, until all of RAM was.
    pub time: Duration,
    /// Pages that are missing still.
    pub left: u64,
    /// Pages that were missing when it began.
    pub missing: u64,
    /// Pages that were asked for.
    pub requests: u64,
    /// Pages that came by themselves or were asked for, zero ones apart.
    pub pages: u64,
    /// Zero ones.
    pub zero_pages: u64,
    /// How often it was paused.
    pub pauses: u64,
    /// How missing pages are noticed.
    pub faults: FaultKind,
    /// How long pages were waited for.
    pub blocktime: Blocktime,
    /// What broke last, or why it failed.
    pub why: Option<String>,
    /// The source knows that all is here. If it is complete and this is not so, the channel broke just then: the source is paused, and
    /// is told by [another one](Arrival::recover).
    pub known: bool,
}

/// Gives the channels of a recovery beside the first, within a time.
pub type MoreChannels = Box<dyn FnMut(Duration) -> io::Result<Channel> + Send>;

/// How long the channels of one recovery wait for each other.
const IN_STEP: Duration = Duration::from_secs(10);

struct Talk {
    state: ArrivalState,
    why: Option<String>,
    next: Option<(Channel, MoreChannels)>,
    pauses: u64,
    pages: u64,
    zero_pages: u64,
    took: Option<Duration>,
    /// The machine is gone: nothing waits for pages.
    dropped: bool,
    /// The source knows that all is here.
    known: bool,
}

impl Talk {
    /// As its guest begins to run.
    fn running() -> Talk {
        Talk {
            state: ArrivalState::Running,
            why: None,
            next: None,
            pauses: 0,
            pages: 0,
            zero_pages: 0,
            took: None,
            dropped: false,
            known: false,
        }
    }
}

struct Shared {
    talk: Mutex<Talk>,
    changed: Condvar,
    line: Arc<Line>,
    pages: Arc<MissingPages>,
    missing: u64,
    began: Instant,
}

/// A machine that runs here while its pages come, for any thread: see [`Machine::arrival`](super::Machine::arrival).
#[derive(Clone)]
pub struct Arrival(Arc<Shared>);

impl Arrival {
    /// How it goes.
    pub fn status(&self) -> ArrivalStatus {
        let (pages, talk) = (&self.0.pages, lock(&self.0.talk));
        ArrivalStatus {
            state: talk.state,
            time: talk.took.unwrap_or_else(|| self.0.began.elapsed()),
            left: pages.left(),
            missing: self.0.missing,
            requests: pages.requests(),
            pages: talk.pages,
            zero_pages: talk.zero_pages,
            pauses: talk.pauses,
            faults: pages.fault_kind(),
            blocktime: pages.blocktime(),
            why: talk.why.clone(),
            known: talk.known,
        }
    }

    /// Waits, at most so long, as long as it is in this state; the state then.
    pub fn wait_while(&self, state: ArrivalState, timeout: Duration) -> ArrivalState {
        let talk = lock(&self.0.talk);
        let same = |talk: &mut Talk| talk.state == state;
        let waited = self.0.changed.wait_timeout_while(talk, timeout, same).unwrap_or_else(PoisonError::into_inner);
        waited.0.state
    }

    /// Goes on by this channel, whose other end the source [was given](super::Migration::recover).
    ///
    /// # Errors
    /// [`MigrationError::Order`] unless it is [paused](ArrivalState::Paused), or complete and the source does not [know](ArrivalStatus::known).
    pub fn recover(&self, channel: Channel) -> Result<(), MigrationError> {
        self.recover_with(channel, Box::new(|_| Err(io::ErrorKind::NotConnected.into())))
    }

    /// The same of a source that has a [preempt channel](super::Road::connect), too, which `more` gives when it is announced.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub fn recover_with(&self, channel: Channel, more: MoreChannels) -> Result<(), MigrationError> {
        let mut talk = lock(&self.0.talk);
        match talk.state {
            ArrivalState::Paused => talk.state = ArrivalState::Recovering,
            ArrivalState::Complete if !talk.known => {}
            state => return Err(MigrationError::Order(format!("{state:?}: nothing is to be recovered"))),
        }
        talk.next = Some((channel, more));
        drop(talk);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Breaks the channel, on purpose: both sides pause.
    pub fn pause(&self) {
        self.0.line.close();
    }

    fn set(&self, state: ArrivalState, why: Option<String>) {
        let mut talk = lock(&self.0.talk);
        talk.state = state;
        talk.pauses += u64::from(state == ArrivalState::Paused);
        talk.why = why.or(talk.why.take());
        if matches!(state, ArrivalState::Complete | ArrivalState::Failed) {
            talk.took.get_or_insert_with(|| self.0.began.elapsed());
        }
        let why = talk.why.clone().unwrap_or_default();
        drop(talk);
        self.0.changed.notify_all();
        if state == ArrivalState::Failed {
            // There is no other channel for it: what waits is told so, in other processes, too.
            self.0.pages.end(&why);
            self.0.pages.close_faults();
        }
    }

    fn is_dropped(&self) -> bool {
        lock(&self.0.talk).dropped
    }

    /// Another channel, if it is to go on.
    fn next(&self) -> Option<(Channel, MoreChannels)> {
        let mut talk = lock(&self.0.talk);
        loop {
            if talk.dropped {
                return None;
            }
            if let Some(next) = talk.next.take() {
                return Some(next);
            }
            talk = self.0.changed.wait(talk).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl super::Machine {
    /// What is not here cannot be saved, and does not leave.
    pub(super) fn check_whole(&self) -> Result<(), MigrationError> {
        self.check_kept()?;
        match self.board.space.ram().missing() {
            Some(pages) if pages.left() != 0 => Err(MigrationError::Arriving { left: pages.left() }),
            _ => Ok(()),
        }
    }
}

/// The machine's hold on its arrival: without it no page is waited for any more.
pub(super) struct Owner(pub Arrival);

impl Drop for Owner {
    fn drop(&mut self) {
        let Arrival(shared) = &self.0;
        lock(&shared.talk).dropped = true;
        shared.changed.notify_all();
        shared.pages.end("the machine is gone");
        shared.line.close_asked();
        shared.line.close();
    }
}

/// What is known of a postcopy before the machine runs.
pub(super) struct Advised {
    inbound: Inbound,
    faults: Arc<dyn FaultSource>,
    state: State,
    name: Name,
    sizes: Option<PageSizes>,
    line: Arc<Line>,
    pages: Option<Arc<MissingPages>>,
    preempt: Option<Channel>,
}

/// The channel that a source announced by this name.
fn preempt(name: &Name, more: More<'_>, within: Duration) -> Result<Channel, MigrationError> {
    let mut channel = more(within).map_err(MigrationError::Answer)?;
    multifd::read_hello(&mut channel, name, 1)?;
    Ok(channel)
}

/// What leads on from a command.
pub(super) enum Next {
    /// More of the stream.
    Read,
    /// A message of so many bytes, with which the machine begins to run.
    Packaged(u32),
}

fn refused(fault: Fault) -> MigrationError {
    MigrationError::Order(fault.to_string())
}

impl Advised {
    /// These are told of it, and its faults come from there.
    pub(super) fn new(notifiers: &Notifiers, faults: Arc<dyn FaultSource>) -> Advised {
        Advised {
            inbound: Inbound::new(notifiers),
            faults,
            state: State::default(),
            name: Name::default(),
            sizes: None,
            line: Arc::default(),
            pages: None,
            preempt: None,
        }
    }

    /// It is over before the machine runs.
    pub(super) fn end(mut self, outcome: Outcome) -> Result<(), MigrationError> {
        Ok(self.inbound.end(outcome)?)
    }

    /// All of RAM came before it ran.
    pub(super) fn not_needed(&self) -> Result<(), MigrationError> {
        match self.pages.as_ref().map_or(0, |pages| pages.left()) {
            0 => Ok(()),
            left => Err(MigrationError::Order(format!("the stream ends, and {left} pages are missing"))),
        }
    }

    /// RAM has begun: these blocks.
    pub(super) fn ram(&mut self, list: &Arc<RamList>, blocks: &[Arc<RamBlock>]) -> Result<(), MigrationError> {
        if self.state == State::None {
            return Ok(());
        }
        let ours = blocks.iter().fold(0, |all, block| all | block.page_size());
        if let Some(sizes) = self.sizes.filter(|sizes| sizes.summary != ours) {
            let text =
                format!("its blocks have pages of {:#x}, ours of {ours:#x}: postcopy needs the same", sizes.summary);
            return Err(MigrationError::Order(text));
        }
        let missing = |why: notdirty_core::MissingError| MigrationError::Order(why.to_string());
        let pages =
            list.set_missing_by(self.faults.clone(), self.line.clone(), blocks.iter().cloned()).map_err(missing)?;
        for block in blocks {
            // The source names what is yet to come.
            pages.mark_received(block, 0, block.used_length()).map_err(missing)?;
        }
        self.inbound.tell(Moment::Advise, Some(self.pages.insert(pages)))?;
        Ok(())
    }

    /// A command that is no other's.
    pub(super) fn command(
        &mut self,
        code: u16,
        data: &[u8],
        incoming: Option<&mut Incoming>,
        more: More<'_>,
    ) -> Result<Next, MigrationError> {
        let command = Command::parse(code, data).map_err(refused)?;
        let early = || MigrationError::Order(format!("{command:?} before the list of RAM"));
        match &command {
            Command::Name(name) => self.name = *name,
            Command::Preempt(name) if self.preempt.is_none() => self.preempt = Some(preempt(name, more, IN_STEP)?),
            Command::Advise(sizes) => {
                self.state = self.state.after(Step::Advise).map_err(refused)?;
                if incoming.is_some() {
                    return Err(MigrationError::Order("ADVISE behind the list of RAM".into()));
                }
                self.inbound.tell(Moment::Probe, None)?;
                self.sizes = *sizes;
            }
            Command::Discard(_) | Command::DiscardMap(_) => self.discard(&command, incoming.ok_or_else(early)?)?,
            Command::Packaged(len) => {
                if self.pages.is_none() {
                    return Err(early());
                }
                return Ok(Next::Packaged(*len));
            }
            Command::SwitchoverStart => {}
            other => {
                let text = format!("the command {other:?} in the state {} of postcopy", self.state);
                return Err(MigrationError::Order(text));
            }
        }
        Ok(Next::Read)
    }

    /// Pages are yet to come.
    fn discard(&mut self, command: &Command, incoming: &mut Incoming) -> Result<(), MigrationError> {
        self.state = self.state.after(Step::Discard).map_err(refused)?;
        let early = || MigrationError::Order(format!("{command:?} before the list of RAM"));
        let pages = self.pages.as_ref().ok_or_else(early)?;
        let done = match command {
            Command::Discard(discard) => {
                let (index, runs) = incoming.discard(discard).map_err(refused)?;
                let block = &incoming.blocks()[index];
                runs.into_iter().try_for_each(|(run, came)| {
                    let (off, len) = (run.start * PAGE_SIZE, (run.end - run.start) * PAGE_SIZE);
                    if came { pages.discard(block, off, len) } else { pages.forget(block, off, len) }
                })
            }
            Command::DiscardMap(map) => {
                let (index, came) = incoming.discard_map(map).map_err(refused)?;
                pages.discard_map(&incoming.blocks()[index], map.first, &map.words, &came)
            }
            _ => Ok(()),
        };
        done.map_err(|why| MigrationError::Order(why.to_string()))
    }

    /// The message was read: pages are waited for from here on, and come. Its sections.
    pub(super) fn listen(
        mut self,
        events: Vec<Event>,
        mut incoming: Incoming,
        reader: StreamReader<Channel>,
        answers: &Channel,
        harts: usize,
    ) -> Result<(Vec<Section>, Starting), MigrationError> {
        let (mut sections, mut pings) = (Vec::new(), Vec::new());
        let order = |why: String| MigrationError::Order(format!("{why} in the message that the machine begins with"));
        for event in events {
            match event {
                Event::Section(section) if self.state == State::Listening => sections.push(section),
                Event::Command(code, data) => match Command::parse(code, &data).map_err(refused)? {
                    Command::Listen => self.state = self.state.after(Step::Listen).map_err(refused)?,
                    Command::Ping(number) => pings.push(Answer::Pong(number)),
                    Command::Run => self.state = self.state.after(Step::Run).map_err(refused)?,
                    command @ (Command::Discard(_) | Command::DiscardMap(_)) => {
                        self.discard(&command, &mut incoming)?
                    }
                    other => return Err(order(format!("{other:?}"))),
                },
                other => return Err(order(format!("{other:?} in the state {}", self.state))),
            }
        }
        let Some(pages) = self.pages.filter(|_| self.state == State::Running) else {
            return Err(order("no command to run".into()));
        };
        pages.set_vcpus(harts as u32);
        self.line.open(answers.try_clone().map_err(MigrationError::Host)?);
        if let Some(channel) = self.preempt {
            let asked = AskedPages::new(channel, &incoming, &pages).map_err(MigrationError::Host)?;
            self.line.preempt(asked).map_err(MigrationError::Host)?;
        }
        pages.listen().map_err(|why| MigrationError::Order(why.to_string()))?;
        self.inbound.tell(Moment::Listen, Some(&pages))?;
        let shared = Shared {
            talk: Mutex::new(Talk::running()),
            changed: Condvar::new(),
            line: self.line,
            missing: pages.left(),
            pages,
            began: Instant::now(),
        };
        let arrival = Arrival(Arc::new(shared));
        let owner = Owner(arrival.clone());
        let name = self.name;
        let more: MoreChannels = Box::new(|_| Err(io::ErrorKind::NotConnected.into()));
        let reads = Reads { arrival, reader, incoming, name, named: true, more, inbound: self.inbound };
        let thread = std::thread::Builder::new().name("arrival".into());
        thread.spawn(move || reads.all()).map_err(MigrationError::Host)?;
        Ok((sections, Starting { owner, pings }))
    }
}

/// A machine whose pages come, and whose devices are not restored yet.
pub(super) struct Starting {
    owner: Owner,
    pings: Vec<Answer>,
}

impl Starting {
    /// It runs: the source is told.
    pub(super) fn run(self) -> Owner {
        // Should this not arrive, the source is paused, and knows by the next channel.
        let _ = self.owner.0.0.line.say(&self.pings);
        self.owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_core::migration::ListedBlock;
    use notdirty_core::migration::postcopy::Discard;
    use notdirty_core::{MissingError, RamBlockSpec, SoftwareFaults, WaitToken};

    fn ram() -> (Arc<RamList>, Arc<RamBlock>) {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 4 * PAGE_SIZE)).unwrap();
        (list, block)
    }

    #[test]
    fn what_waits_for_a_page_of_an_arrival_that_failed_is_told_why() {
        let (list, block) = ram();
        let line = Arc::new(Line::default());
        let pages = list.set_missing(line.clone(), [block.clone()]).unwrap();
        pages.listen().unwrap();
        let (talk, changed, began) = (Mutex::new(Talk::running()), Condvar::new(), Instant::now());
        let arrival = Arrival(Arc::new(Shared { talk, changed, line, missing: 4, pages: pages.clone(), began }));
        let wait = || {
            let late = Some(Instant::now() + Duration::from_millis(1));
            pages.wait(block.offset(), 8, &WaitToken::default(), late).unwrap_err()
        };
        arrival.set(ArrivalState::Paused, Some("a cut".into()));
        assert!(matches!(wait(), MissingError::Late));
        arrival.set(ArrivalState::Failed, Some("wrong bytes".into()));
        assert!(matches!(wait(), MissingError::Ended { why } if why == "wrong bytes"));
    }

    #[test]
    fn a_stream_that_ends_with_pages_that_are_yet_to_come_is_no_machine() {
        let (list, block) = ram();
        let listed = ListedBlock { idstr: "ram".into(), used_length: 4 * PAGE_SIZE };
        let mut incoming = Incoming::new(vec![listed], vec![block.clone()]).unwrap();
        let mut advised = Advised::new(&Notifiers::default(), Arc::new(SoftwareFaults));
        let mut more = |_: Duration| Err(io::ErrorKind::NotConnected.into());
        let advise = Command::Advise(None);
        advised.command(advise.code(), &advise.data(), None, &mut more).unwrap();
        advised.ram(&list, &[block]).unwrap();
        advised.not_needed().unwrap();
        let discard =
            Command::Discard(Discard { idstr: "ram".into(), runs: vec![0..PAGE_SIZE, PAGE_SIZE..2 * PAGE_SIZE] });
        advised.command(discard.code(), &discard.data(), Some(&mut incoming), &mut more).unwrap();
        let why = advised.not_needed().unwrap_err().to_string();
        assert!(why.contains("2 pages are missing"), "{why}");
    }
}
