//! The thread that reads the stream of a machine that runs here already.
//!
//! ```text
//!   records ─▶ place … END ─▶ checksums of all RAM ─▶ SHUT 0 ─▶ until the source is known to know
//!      └─ the channel breaks ─▶ Paused ─▶ another channel ─▶ its name, bitmaps, RESUME_ACK, all requests again
//! ```

use notdirty_core::MissingPhase;
use notdirty_core::migration::postcopy::{Answer, AskedPages, Bitmap, Command, Inbound, Name, Outcome, State};
use notdirty_core::migration::{Channel, Event, Fault, Incoming, StreamError, StreamReader};

use super::{Arrival, ArrivalState, IN_STEP, MoreChannels, lock, preempt, refused};
use crate::machine::migrate::MigrationError;

/// The thread that reads the stream.
pub(super) struct Reads {
    pub(super) arrival: Arrival,
    pub(super) reader: StreamReader<Channel>,
    pub(super) incoming: Incoming,
    pub(super) name: Name,
    /// This channel has said that name.
    pub(super) named: bool,
    pub(super) more: MoreChannels,
    pub(super) inbound: Inbound,
}

impl Reads {
    pub(super) fn all(mut self) {
        let arrival = self.arrival.clone();
        loop {
            let why = match self.read() {
                Ok(()) => {
                    self.over(Outcome::Complete, None);
                    return self.until_known();
                }
                Err(why) => why,
            };
            arrival.0.line.close_asked();
            arrival.0.line.close();
            if arrival.is_dropped() {
                return self.over(Outcome::Failed, Some("the machine is gone".into()));
            }
            if let MigrationError::Stream(StreamError { fault: Fault::Checksum { .. }, .. }) = &why {
                // It runs on what is wrong: another channel makes nothing right.
                log::error!("postcopy: {why}");
                return self.over(Outcome::Failed, Some(why.to_string()));
            }
            log::warn!("postcopy is paused: {why}");
            arrival.set(ArrivalState::Paused, Some(why.to_string()));
            let Some((channel, more)) = arrival.next() else {
                return self.over(Outcome::Failed, Some("the machine is gone".into()));
            };
            // Without a descriptor it reads, and fails when it is to answer.
            if let Ok(answers) = channel.try_clone() {
                arrival.0.line.open(answers);
            }
            self.reader.replace(channel);
            (self.more, self.named) = (more, false);
            self.incoming.forget_last();
        }
    }

    /// Those that were told of it hear the end before it is seen.
    fn over(&mut self, outcome: Outcome, why: Option<String>) {
        let refused = self.inbound.end(outcome).map_err(|why| why.to_string());
        if matches!(self.arrival.0.pages.phase(), MissingPhase::Complete | MissingPhase::Ended) {
            self.arrival.0.pages.close_faults();
        }
        if let Err(why) = &refused {
            // The source knows that all is here, and has ended: the machine runs on.
            log::error!("postcopy: {why}");
        }
        let why = why.or(refused.err());
        let state =
            if outcome == Outcome::Complete && why.is_none() { ArrivalState::Complete } else { ArrivalState::Failed };
        self.arrival.set(state, why);
    }

    /// All is here, and was said to be: it is said again by each other channel, until the source knows.
    fn until_known(self) {
        let Reads { arrival, mut reader, incoming, name, .. } = self;
        drop(incoming);
        let line = &arrival.0.line;
        // Channels beside it are not used, and there until it ends.
        let mut _more = None;
        loop {
            // Up to its end: an answer is lost if a channel is closed on what was not read.
            while let Ok(event) = reader.event() {
                let Event::Command(code, data) = event else { break };
                match Command::parse(code, &data) {
                    Ok(Command::Known) => {
                        lock(&arrival.0.talk).known = true;
                        arrival.0.changed.notify_all();
                        // A source that does not know takes the end of this channel for that of both.
                        line.close_asked();
                        return line.close();
                    }
                    Ok(Command::Name(other)) if other == name => {
                        let _ = line.say(&[Answer::Shut(0)]);
                    }
                    Ok(Command::Name(_)) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            line.close_asked();
            line.close();
            let Some((channel, more)) = arrival.next() else { return };
            _more = Some(more);
            if let Ok(answers) = channel.try_clone() {
                line.open(answers);
            }
            reader.replace(channel);
        }
    }

    fn say(&self, answer: Answer) -> Result<(), MigrationError> {
        self.arrival.0.line.say(&[answer]).map_err(MigrationError::Answer)
    }

    /// Reads until the source knows that all is here.
    fn read(&mut self) -> Result<(), MigrationError> {
        let arrival = self.arrival.clone();
        let shared = &arrival.0;
        // A source that names nothing, as QEMU's, is not asked for its name.
        let unnamed = self.name == Name::default();
        let stranger = |what: String| MigrationError::Order(format!("{what} by a channel that has not said its name"));
        loop {
            let event = self.reader.event()?;
            let known = self.named || unnamed;
            match event {
                Event::Command(..) => {}
                other if !known => return Err(stranger(format!("{other:?}"))),
                _ => {}
            }
            match event {
                Event::RamPiece(_) => {
                    let settle = || shared.line.settle(&shared.pages);
                    let done = self.incoming.fetch(&mut self.reader, &shared.pages, settle);
                    let mut talk = lock(&shared.talk);
                    (talk.pages, talk.zero_pages) = (self.incoming.pages, self.incoming.zero_pages);
                    drop(talk);
                    done?;
                }
                Event::Command(code, data) => match Command::parse(code, &data).map_err(refused)? {
                    Command::OpenReturnPath => {}
                    Command::Ping(number) => self.say(Answer::Pong(number))?,
                    Command::Name(name) if name == self.name => self.named = true,
                    Command::Name(_) => {
                        return Err(MigrationError::Order("the channel is of another migration".into()));
                    }
                    other if !known => return Err(stranger(format!("{other:?}"))),
                    Command::Preempt(name) => {
                        let channel = preempt(&name, &mut *self.more, IN_STEP)?;
                        let asked = AskedPages::new(channel, &self.incoming, &shared.pages);
                        asked.and_then(|asked| shared.line.preempt(asked)).map_err(MigrationError::Host)?;
                    }
                    Command::RecvBitmap(idstr) => self.say_received(idstr)?,
                    Command::Resume => self.resume()?,
                    other => {
                        let text = format!("the command {other:?} in the state {} of postcopy", State::Running);
                        return Err(MigrationError::Order(text));
                    }
                },
                Event::End => {
                    self.reader.description()?;
                    if shared.pages.left() != 0 {
                        let text = format!("the stream ends, and {} pages are missing", shared.pages.left());
                        return Err(MigrationError::Order(text));
                    }
                    return self.say(Answer::Shut(0));
                }
                other => return Err(MigrationError::Order(format!("{other:?}, while the machine runs"))),
            }
        }
    }

    fn say_received(&self, idstr: String) -> Result<(), MigrationError> {
        let shared = &self.arrival.0;
        let blocks = self.incoming.blocks();
        let block = blocks.iter().find(|block| block.idstr() == idstr);
        let unknown = || MigrationError::Order(format!("a bitmap of RAM block {idstr}, which is not here"));
        let words =
            shared.pages.received(block.ok_or_else(unknown)?).map_err(|why| MigrationError::Order(why.to_string()))?;
        let mut bytes = Answer::Bitmap(idstr).to_bytes();
        Bitmap(words).write(&mut bytes).map_err(MigrationError::Answer)?;
        shared.line.put(&bytes).map_err(MigrationError::Answer)
    }

    fn resume(&self) -> Result<(), MigrationError> {
        self.say(Answer::ResumeAck(1))?;
        self.arrival.set(ArrivalState::Running, None);
        // What was asked for by a channel that is gone.
        self.arrival.0.pages.resume();
        Ok(())
    }
}
