//! What the migration's thread does: describe, rounds of pages, the last of them, what comes after, and the end.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use notdirty_core::migration::multifd;
use notdirty_core::migration::{
    Carrier, Channel, MAPPED_RAM, MappedCarrier, Progress, Section, Source, StreamCarrier, StreamWriter,
};
use notdirty_core::{DirtyClient, RamBlock};
use notdirty_softmmu::AddressSpace;

use super::answers::{self, Said, answer, command};
use super::pace::{Pace, on_threads, threads};
use super::{Answer, Ask, LeaveOptions, Migration, MigrationState, MultifdChannels, Road, limit, lock};
use crate::machine::migrate::MigrationError;
use crate::machine::unfinished::Unfinished;
use crate::machine::{Compression, compression, state};

/// How long the reason of a target that has ended the channel is waited for.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long a command that took a machine may take to end.
const COMMAND: Duration = Duration::from_secs(30);

impl Migration {
    /// All of it, on its own thread.
    pub(super) fn leave(&self, road: Road, options: &LeaveOptions, space: &AddressSpace) {
        let (mut stood, mut replaced) = (None, None);
        let done = match road {
            Road::Channels(channel, multifd, urgent) => match options.postcopy {
                Some(how) => self.send_postcopy(channel, multifd, urgent, options, how, space, &mut stood),
                None => self.send(channel, multifd, options, space, &mut stood),
            },
            Road::Ending(channel, end) => {
                let sent = self.send(channel, MultifdChannels::default(), options, space, &mut stood);
                // It is there once the command says so, and the file has its name; until then it is here.
                let end = end.durable(options.file.sync);
                sent.and_then(|()| end.finish(COMMAND, &self.0.cancel).map_err(MigrationError::End))
            }
            Road::File(path, _) => self.write(&path, options, space, &mut stood).map(|before| replaced = before),
        };
        self.0.throttle.store(0, Ordering::Release);
        if let Some(since) = stood {
            lock(&self.0.talk).status.downtime = Instant::now().duration_since(since);
        }
        let state = match &done {
            Ok(()) => MigrationState::Completed,
            Err(MigrationError::Uncertain { .. } | MigrationError::Lost { .. }) => MigrationState::Uncertain,
            Err(_) if self.0.cancel.is_cancelled() => MigrationState::Cancelled,
            Err(_) => MigrationState::Failed,
        };
        // A channel that a cancel ended says so in its own words.
        let done = if state == MigrationState::Cancelled { Err(MigrationError::Cancelled) } else { done };
        self.end(state, done);
        // No guest waits for that.
        drop(replaced);
    }

    /// What comes before RAM, and RAM, all of which is to go.
    #[allow(clippy::type_complexity, reason = "three things, taken apart at once")]
    pub(super) fn describe(
        &self,
        options: &LeaveOptions,
        space: &AddressSpace,
    ) -> Result<(Vec<Section>, Vec<Arc<RamBlock>>, Source), MigrationError> {
        let Answer::Described(before, blocks) = self.ask(Ask::Describe)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        let mut log = space.ram().log(DirtyClient::MIGRATION).blocks(&blocks).timeout(options.limits.sync);
        if let Some(entries) = options.rings.or(options.dirty_limit.map(|_| limit::ENTRIES)) {
            log = log.rings(entries);
        }
        let log = log.start().map_err(MigrationError::Log)?;
        if let (Some(rings), Some(bytes)) = (log.rings(), options.dirty_limit) {
            self.limit(rings.clone(), space, bytes)?;
        }
        let source = Source::new(log, &blocks);
        self.set_state(MigrationState::Active);
        Ok((before, blocks, source))
    }

    /// All of RAM; what comes after it.
    fn ram<C: Carrier>(
        &self,
        mut source: Source,
        carrier: &mut C,
        options: &LeaveOptions,
        before: impl FnOnce(&mut C) -> Result<(), MigrationError>,
        stood: &mut Option<Instant>,
    ) -> Result<Vec<Section>, MigrationError> {
        let (mut pace, mut least) = (Pace::default(), u64::MAX);
        let mut tell = |progress: &Progress, round: bool| {
            let mut talk = lock(&self.0.talk);
            let expected = talk.status.progress.expected_downtime;
            talk.status.progress = *progress;
            if !round && progress.rounds > 1 {
                // Of what is dirty when it is looked at, not of what has yet to go in this round.
                talk.status.progress.expected_downtime = expected;
            }
            if round {
                // A little less is no way to the end.
                let nearer = progress.left < least - least / 8;
                least = least.min(progress.left);
                talk.status.stuck = if nearer { 0 } else { talk.status.stuck + 1 };
                talk.status.dirtied.push(progress.dirtied);
            }
            if round && (options.auto_converge || options.dirty_limit.is_some()) {
                let percent = pace.round(progress);
                talk.status.throttled = percent != 0;
                if options.auto_converge {
                    self.0.throttle.store(percent, Ordering::Release);
                }
            }
            drop(talk);
            !self.0.cancel.is_cancelled()
        };
        source.rounds(carrier, &options.limits, &mut tell)?;
        // A target that is dead, or a disk that is far behind, is known before the guest stands still for it.
        let asked = Instant::now();
        before(carrier)?;
        if asked.elapsed() > options.limits.downtime {
            source.rounds(carrier, &options.limits, &mut tell)?;
        }
        *stood = Some(Instant::now());
        self.set_state(MigrationState::Device);
        let Answer::StandsStill(after) = self.ask(Ask::StandStill)? else {
            return Err(MigrationError::Order("the machine answered something else".into()));
        };
        source.last(carrier, &options.limits)?;
        let mut talk = lock(&self.0.talk);
        talk.status.progress = *source.progress();
        talk.status.dirtied.push(source.progress().dirtied);
        drop(talk);
        // The source drops here: nothing is logged from now on, so nothing is paid for any more.
        Ok(after)
    }

    /// To a file, in which each page has its place; what had its name before.
    fn write(
        &self,
        path: &Path,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<Option<File>, MigrationError> {
        let (before, blocks, source) = self.describe(options, space)?;
        let (unfinished, file) = Unfinished::create(path)?;
        let mut writer = StreamWriter::new(file, state::TYPE, &[MAPPED_RAM])?;
        before.iter().try_for_each(|section| writer.full(section))?;
        let mut carrier =
            MappedCarrier::begin_ram(&mut writer, &blocks, options.file.through(), &on_threads, threads())?;
        let settle = |carrier: &mut MappedCarrier<'_, '_>| match options.file.sync {
            true => carrier.sync().map_err(MigrationError::from),
            false => Ok(()),
        };
        let after = self.ram(source, &mut carrier, options, settle, stood)?;
        carrier.end_ram()?;
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        drop(writer.into_inner()?);
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        unfinished.finish(options.file.sync)
    }

    fn send(
        &self,
        channel: Channel,
        multifd: MultifdChannels,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let mut answers =
            if channel.is_duplex() { Some(channel.try_clone().map_err(MigrationError::Host)?) } else { None };
        let done = self.send_all(channel, &mut answers, multifd, options, space, stood);
        let (Err(MigrationError::Stream(_)), Some(answers)) = (&done, &mut answers) else { return done };
        // A target that refuses ends the channel, and has said why before.
        answers.set_patience(LAST_WORD);
        match answer(answers) {
            Ok(Said { kind: command::SHUT, number: 1.., why }) => Err(MigrationError::Refused { why }),
            _ => done,
        }
    }

    fn send_all(
        &self,
        channel: Channel,
        answers: &mut Option<Channel>,
        multifd: MultifdChannels,
        options: &LeaveOptions,
        space: &AddressSpace,
        stood: &mut Option<Instant>,
    ) -> Result<(), MigrationError> {
        let (before, blocks, source) = self.describe(options, space)?;
        let mut writer = StreamWriter::new(channel, state::TYPE, &[])?;
        if answers.is_some() {
            writer.command(command::OPEN_RETURN_PATH, &[])?;
        }
        multifd.announce(&mut writer)?;
        before.iter().try_for_each(|section| writer.full(section))?;
        let mut main = StreamCarrier::begin_ram(&mut writer, &blocks)?;
        if let Some(cache) = options.deltas.filter(|_| multifd.channels.is_empty()) {
            main = main.with_deltas(cache);
        }
        let mut alive = answers.as_mut();
        let after = if multifd.channels.is_empty() {
            let after = self.ram(source, &mut main, options, |main| ping(main, &mut alive), stood)?;
            main.end_ram()?;
            after
        } else {
            let mut carrier = multifd.carrier(main, options)?;
            let after = self.ram(source, &mut carrier, options, |all| ping(all, &mut alive), stood)?;
            carrier.end_ram()?;
            after
        };
        after.iter().try_for_each(|section| writer.full(section))?;
        writer.finish()?;
        let mut talk = lock(&self.0.talk);
        talk.status.progress.bytes = talk.status.progress.bytes.max(writer.offset());
        drop(talk);
        let Some(answers) = answers else { return Ok(()) };
        match answer(answers)? {
            Said { kind: command::SHUT, number: 0, .. } => {}
            Said { kind: command::SHUT, why, .. } => return Err(MigrationError::Refused { why }),
            Said { kind, .. } => return Err(MigrationError::Order(format!("the target answered {kind}, not SHUT"))),
        }
        if self.0.cancel.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        // The only step that cannot be taken back.
        let told = writer.command(command::RUN, &[]).and_then(|()| writer.out().flush());
        let uncertain = |why: String| MigrationError::Uncertain { why };
        told.map_err(|why| uncertain(why.to_string()))?;
        let said = match answer(answers) {
            // The same once more says no more.
            Ok(Said { kind: command::SHUT, number: 0, .. }) => answer(answers),
            said => said,
        };
        match said {
            Ok(Said { kind: command::PONG, .. }) => Ok(()),
            // It will not run: it says so.
            Ok(Said { kind: command::SHUT, number: 1.., why }) => Err(MigrationError::Refused { why }),
            Ok(Said { kind, .. }) => Err(uncertain(format!("it answered {kind}, not PONG"))),
            Err(why) => Err(uncertain(why.to_string())),
        }
    }
}

impl MultifdChannels {
    /// The target takes these channels, as they were connected, if there are any.
    pub(super) fn announce(&self, writer: &mut StreamWriter<Channel>) -> Result<(), MigrationError> {
        if self.channels.is_empty() {
            return Ok(());
        }
        let count = (self.channels.len() as u16).to_be_bytes();
        writer.command(command::MULTIFD, &[&count[..], &self.uuid].concat())?;
        writer.out().flush()?;
        self.channels.iter().try_for_each(Channel::settle).map_err(MigrationError::Channel)
    }

    /// What pages go by that go by them.
    pub(super) fn carrier<'w>(
        self,
        main: StreamCarrier<'w, Channel>,
        options: &LeaveOptions,
    ) -> Result<multifd::Multifd<'w, 'static, Channel>, MigrationError> {
        let count = self.channels.len();
        let carrier = multifd::Multifd::new(main, self.channels, &on_threads);
        if options.compression == Compression::None {
            return Ok(carrier);
        }
        let packers = (0..count).map(|_| compression::packer()).collect::<io::Result<Vec<_>>>();
        Ok(carrier.packed(packers.map_err(MigrationError::Host)?))
    }
}

/// Asks for a sign of life, of a target that can give one.
fn ping(carrier: &mut impl Carrier, answers: &mut Option<&mut Channel>) -> Result<(), MigrationError> {
    answers.as_mut().map_or(Ok(()), |answers| answers::ping(carrier, answers))
}
