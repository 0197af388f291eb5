//! `--postcopy[=AFTER]`: the machine runs there before its pages do; what the command does on both sides when the channel breaks.
//!
//! ```text
//!   source   paused ─▶ connects again, twice a second, for at most `--recover TIME` ─▶ goes on │ Uncertain (`--take-back`)
//!   target   paused ─▶ listens at its URI for as long as its guest runs
//!            complete, and the source does not know ─▶ the same, for a minute
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notdirty_core::migration::Cancel;
use notdirty_core::{FaultKind, NoUserfault, UserFaults};

use super::plug::{self, After};
use super::{print, say};
use crate::machine::{
    Arrival, ArrivalState, Beside, Listener, Machine, MachineBuilder, Migration, MigrationState, Postcopy, Road, Tls,
    Uri, UriError,
};

/// How long each wait for the other end may be.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a source looks for its target, if nothing else is said.
pub(super) const RECOVER: Duration = Duration::from_secs(60);
/// How long a guest that has ended waits for a source that is gone.
const FAREWELL: Duration = Duration::from_secs(10);

/// When the machine is to run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// After so many rounds of precopy.
    Rounds(u64),
    /// After so long a precopy.
    Time(Duration),
}

/// Reads what stands behind `--postcopy=`: 2 (rounds), 300ms or 5s.
pub(super) fn parse(text: &str, integer: impl Fn(&str) -> Option<u64>) -> Option<Switch> {
    if let Some(rounds) = integer(text) {
        return Some(Switch::Rounds(rounds));
    }
    match plug::after(text, integer)? {
        After::Time(time) => Some(Switch::Time(time)),
        After::Insns(_) => None,
    }
}

/// The same for the library.
pub(super) fn options(switch: Switch, bandwidth: Option<u64>, release: bool) -> Postcopy {
    let mut how = match switch {
        Switch::Rounds(rounds) => Postcopy::after(rounds),
        Switch::Time(_) => Postcopy::by_command(),
    };
    (how.bandwidth, how.release) = (bandwidth, release);
    how
}

/// Why missing pages are noticed so.
fn why(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Software => "the softmmu needs no privilege",
        FaultKind::Userfaultfd => "as asked for",
    }
}

/// Says how pages will be noticed that are missing once the machine runs here, and why; refused, if that is not to be had.
pub(super) fn faults(builder: MachineBuilder, asked: Option<FaultKind>) -> Result<MachineBuilder, NoUserfault> {
    let kind = asked.unwrap_or_default();
    if kind == FaultKind::Userfaultfd {
        drop(UserFaults::open()?);
    }
    log::info!("pages that are yet to come are noticed by {kind}: {}", why(kind));
    Ok(builder.postcopy_faults(kind))
}

/// A source that looks for its target again.
pub(super) struct Looks {
    uri: Uri,
    tls: Option<Tls>,
    within: Duration,
    switch: Option<Instant>,
    /// Since when it looks.
    since: Option<Instant>,
    last: Instant,
}

impl Looks {
    pub(super) fn new(uri: &Uri, tls: Option<&Tls>, switch: Option<Switch>, within: Option<Duration>) -> Looks {
        let now = Instant::now();
        let switch = switch.and_then(|switch| match switch {
            Switch::Time(time) => now.checked_add(time),
            Switch::Rounds(_) => None,
        });
        Looks { uri: uri.clone(), tls: tls.cloned(), within: within.unwrap_or(RECOVER), switch, since: None, last: now }
    }

    /// From time to time.
    pub(super) fn look(&mut self, migration: &Migration) {
        if self.switch.is_some_and(|switch| Instant::now() >= switch) {
            self.switch = None;
            migration.switch();
        }
        let status = migration.status();
        match status.state {
            MigrationState::PostcopyPaused => {}
            // It tries.
            MigrationState::PostcopyRecover => return,
            _ => {
                self.since = None;
                return;
            }
        }
        let since = *self.since.get_or_insert_with(|| {
            let why = status.paused_by.as_deref().unwrap_or("the channel broke");
            say(&format!("paused, and looks for {} again: {why}", self.uri));
            Instant::now()
        });
        if since.elapsed() > self.within {
            migration.abandon();
        } else if self.last.elapsed() >= AGAIN {
            self.last = Instant::now();
            let beside = Beside::urgent(matches!(self.uri, Uri::Tcp(..) | Uri::Unix(_)));
            let road = Road::connect_by(&self.uri, beside, PATIENCE, &Cancel::default(), self.tls.as_ref());
            if let Ok(road) = road {
                // Refused if it is not paused any more.
                let _ = migration.recover(road);
            }
        }
    }
}

/// A target that hears its source again, as long as this is there.
pub(super) struct Hears {
    arrival: Arrival,
    over: Arc<AtomicBool>,
    listener: Arc<Listener>,
    json: bool,
}

impl Drop for Hears {
    /// The process may end before its thread does.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.listener.remove_file();
    }
}

impl Hears {
    /// On a thread of its own; nothing, if all of the machine is here.
    pub(super) fn start(machine: &Machine, listener: Listener, tls: Option<Tls>, json: bool) -> Option<Hears> {
        let arrival = machine.arrival()?;
        let over = Arc::new(AtomicBool::new(false));
        let (own, ends) = (arrival.clone(), over.clone());
        let at = listener.uri();
        let listener = Arc::new(listener);
        let own_listener = listener.clone();
        let accept = Arc::new(move |within| {
            let (channel, _) = listener.accept(Some(within), PATIENCE, &Cancel::default())?;
            // By the same way as the first.
            let Some(tls) = &tls else { return Ok(channel) };
            tls.accept(channel).map_err(|source| UriError::Host { uri: listener.uri().to_string(), source })
        });
        let thread = std::thread::Builder::new().name("recover".into());
        let started = thread.spawn(move || {
            let (mut told, mut until) = (0, None);
            while !ends.load(Ordering::Acquire) {
                let state = own.wait_while(ArrivalState::Running, AGAIN);
                match state {
                    ArrivalState::Complete if own.status().known => return,
                    ArrivalState::Complete
                        if Instant::now() >= *until.get_or_insert_with(|| Instant::now() + RECOVER) =>
                    {
                        return;
                    }
                    ArrivalState::Paused | ArrivalState::Complete => {
                        let status = own.status();
                        if told < status.pauses {
                            told = status.pauses;
                            let why = status.why.as_deref().unwrap_or("the channel broke");
                            say(&format!("paused, and waits at {at} for its source: {why}"));
                        }
                        if let Ok(channel) = accept(AGAIN) {
                            let accept = accept.clone();
                            let more = move |within| accept(within).map_err(io::Error::other);
                            let _ = own.recover_with(channel, Box::new(more));
                        }
                    }
                    ArrivalState::Running => {}
                    ArrivalState::Recovering => std::thread::sleep(AGAIN / 10),
                    _ => return,
                }
            }
        });
        if let Err(why) = started {
            say(&format!("no thread that waits for the source again: {why}"));
        }
        Some(Hears { arrival, over, listener: own_listener, json })
    }

    /// The guest has ended: the source is to know that all is here, and how it went is told.
    pub(super) fn finish(self) {
        let until = Instant::now() + FAREWELL;
        loop {
            match self.arrival.wait_while(ArrivalState::Running, AGAIN) {
                ArrivalState::Running => {}
                ArrivalState::Failed => break,
                ArrivalState::Complete if self.arrival.status().known => break,
                _ if Instant::now() < until => std::thread::sleep(AGAIN / 100),
                _ => break,
            }
        }
        self.over.store(true, Ordering::Release);
        let status = self.arrival.status();
        let blocked = &status.blocktime;
        let ms = |ns: u64| ns as f64 / 1e6;
        if self.json {
            let vcpus: Vec<_> = blocked.vcpus.iter().map(|vcpu| vcpu.ns).collect();
            let last = blocked.distribution.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
            print(&format!(
                "{{\"arrival_ms\":{:.1},\"missing\":{},\"left\":{},\"faults\":{},\"pages\":{},\"zero_pages\":{},\"pauses\":{},\"faults_by\":\"{}\",\"faults_why\":\"{}\",\
                 \"waits\":{},\"mean_wait_ns\":{},\"vcpu_blocked_ns\":{vcpus:?},\"overlapped_ns\":{},\"waits_by_log2_ns\":{:?}}}\n",
                status.time.as_secs_f64() * 1e3,
                status.missing,
                status.left,
                status.requests,
                status.pages,
                status.zero_pages,
                status.pauses,
                status.faults,
                why(status.faults),
                blocked.waits,
                blocked.mean_ns(),
                blocked.overlapped_ns,
                &blocked.distribution[..last],
            ));
        }
        match status.state {
            ArrivalState::Complete => log::info!(
                "its pages came in {:.1} ms: {} of them missing at first, {} waited for, {:.3} ms each, {:.1} ms with all harts waiting",
                status.time.as_secs_f64() * 1e3,
                status.missing,
                status.requests,
                ms(blocked.mean_ns()),
                ms(blocked.overlapped_ns),
            ),
            _ => {
                let why = status.why.as_deref().unwrap_or("the guest ended before");
                say(&format!("{} pages never came: {why}", status.left));
            }
        }
    }
}
