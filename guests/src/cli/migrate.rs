//! `--migrate URI@AFTER` and `--incoming URI`: a machine goes to another process while it runs.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notdirty_core::migration::Cancel;
use notdirty_tcg::RunLimits;

use super::args::Args;
use super::plug::{self, After, Plugged};
use super::postcopy::{self, Hears, Looks, Switch};
use super::progress::Show;
use super::snapshot::quoted;
use super::{Code, complain, print, refuse_migration, say};
use crate::machine::{
    Beside, LeaveOptions, Machine, MachineBuilder, MachineExit, Migration, MigrationError, MigrationState,
    MigrationStatus, Migrator, Road, Tls, Uri,
};

/// How long each wait for the other end may be.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a machine did not go: its run was over.
pub(super) const RUN_ENDED: &str = "the run ended before";

/// A place, and when.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Move {
    pub uri: Uri,
    pub after: After,
}

/// Reads `URI@AFTER`.
pub(super) fn parse(text: &str, integer: impl Fn(&str) -> Option<u64>) -> Option<Move> {
    let (uri, after) = text.rsplit_once('@')?;
    Some(Move { uri: uri.parse().ok()?, after: plug::after(after, integer)? })
}

/// Waits for a machine there.
pub(super) fn receive(builder: MachineBuilder, uri: &Uri, args: &Args) -> Result<(Machine, Option<Hears>), ExitCode> {
    let name = uri.to_string();
    let host = |why: crate::machine::UriError| complain(Code::Host, &why.to_string());
    // Before a source can send anything.
    let builder = postcopy::faults(builder, args.postcopy_faults)
        .map_err(|why| complain(Code::Host, &format!("--postcopy-faults userfaultfd: {why}")))?;
    let listener = uri.listen().map_err(host)?;
    if listener.uri() != *uri {
        // A port that the host chose: whoever is to send has to know it.
        say(&format!("waits at {}", listener.uri()));
    }
    let (timeout, tls) = (args.timeout, tls(args)?);
    let cancel = Cancel::default();
    // One that is refused is no reason not to wait for the right one.
    let accept = |within: Option<Duration>| {
        let until = within.and_then(|within| Instant::now().checked_add(within));
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let (channel, end) = listener.accept(left, PATIENCE, &cancel)?;
            let Some(tls) = &tls else { return Ok((channel, end)) };
            match tls.accept(channel) {
                Ok(channel) => return Ok((channel, end)),
                Err(why) => say(&format!("{name}: refused: {why}")),
            }
        }
    };
    let (channel, end) = accept(timeout).map_err(host)?;
    let start = Instant::now();
    let mut more = |within| accept(Some(within)).map(|(channel, _)| channel).map_err(io::Error::other);
    let machine = builder.receive_with(channel, &mut more, |_| Ok(())).map_err(|why| refuse_migration(&name, &why))?;
    end.finish(PATIENCE, &cancel).map_err(host)?;
    log::info!("the machine came in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let hears = Hears::start(&machine, listener, tls, args.json);
    Ok((machine, hears))
}

/// This side's certificate, if it has one.
fn tls(args: &Args) -> Result<Option<Tls>, ExitCode> {
    let (Some(cert), Some(key), Some(ca)) = (&args.tls_cert, &args.tls_key, &args.tls_ca) else { return Ok(None) };
    let tls = Tls::load(cert, key, ca).map_err(|why| complain(Code::Input, &why.to_string()))?;
    Ok(Some(match &args.tls_name {
        Some(name) => tls.named(name),
        None => tls,
    }))
}

/// What became of the migration of a run.
pub(super) struct Outcome {
    pub exit: MachineExit,
    pub plugged: Plugged,
    /// How it went, if it was begun.
    pub status: Option<MigrationStatus>,
    /// Why it did not go.
    pub failed: Option<String>,
}

/// Runs the machine, and moves it when it is time.
pub(super) fn run(machine: &mut Machine, args: &Args, go: &Move, limits: &RunLimits) -> Result<Outcome, ExitCode> {
    let tls = tls(args)?;
    let began = Instant::now();
    let mut plugged = Plugged::default();
    let mut options = LeaveOptions::default();
    options.limits.bandwidth = args.bandwidth;
    options.limits.downtime = args.downtime.unwrap_or(options.limits.downtime);
    options.auto_converge = args.auto_converge;
    options.file = super::options(args);
    options.dirty_limit = args.dirty_limit;
    options.deltas = args.xbzrle;
    options.compression = args.compression;
    options.postcopy = args.postcopy.map(|switch| postcopy::options(switch, args.postcopy_bandwidth, args.release_ram));
    let (multifd, mapped_ram) = (args.multifd, args.mapped_ram);
    let (switch, recover) = (args.postcopy, args.recover);
    let job = Job {
        multifd,
        mapped_ram,
        tls,
        migrator: machine.migrator(),
        go: go.clone(),
        options,
        switch,
        recover,
        state: Arc::default(),
        over: Arc::default(),
    };
    if let After::Insns(_) = go.after {
        let before = go.after.within(began, limits);
        let exit = plug::run(machine, &args.plugs, &before).0;
        let all = limits.max_insns.is_some_and(|max| before.max_insns == Some(max));
        if exit != MachineExit::InsnLimit || all {
            return Ok(Outcome { exit, plugged, status: None, failed: Some(RUN_ENDED.into()) });
        }
    }
    let wait = if let After::Time(time) = go.after { time } else { Duration::ZERO };
    let (exit, failed) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| job.go(wait, args.json));
        let mut exit = match go.after {
            After::Time(_) => {
                let (exit, more) = plug::run(machine, &args.plugs, limits);
                plugged = more;
                exit
            }
            After::Insns(_) => machine.run(limits),
        };
        job.over.store(true, Ordering::Release);
        // The guest cannot go on by itself, and may all the same be elsewhere.
        if !matches!(exit, MachineExit::Migrated)
            && let Some(migration) = job.current()
        {
            migration.cancel();
        }
        let failed = thread.join().unwrap_or_else(|_| Some("the migration's thread panicked".into()));
        if machine.is_gone() {
            exit = MachineExit::Migrated;
        }
        (exit, failed)
    });
    Ok(Outcome { exit, plugged, status: job.current().map(|migration| migration.status()), failed })
}

struct Job {
    migrator: Migrator,
    go: Move,
    options: LeaveOptions,
    switch: Option<Switch>,
    recover: Option<Duration>,
    multifd: usize,
    mapped_ram: bool,
    tls: Option<Tls>,
    state: Arc<Mutex<Option<Migration>>>,
    /// The run has ended.
    over: Arc<AtomicBool>,
}

impl Job {
    /// Channels beside the first: those of a multifd, and that for urgent pages.
    fn beside(&self, uri: &Uri) -> Beside {
        let urgent = self.options.postcopy.is_some() && matches!(uri, Uri::Tcp(..) | Uri::Unix(_));
        Beside { multifd: self.multifd, urgent }
    }

    fn current(&self) -> Option<Migration> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits, moves, and tells how it goes. Why it did not go.
    fn go(&self, wait: Duration, json: bool) -> Option<String> {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if self.over.load(Ordering::Acquire) {
                return Some(RUN_ENDED.into());
            }
            std::thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(10)));
        }
        let cancel = Cancel::default();
        let road = match (&self.go.uri, self.mapped_ram) {
            (Uri::File(path, _), true) => Road::File(path.clone(), false),
            (uri, _) => match Road::connect_by(uri, self.beside(uri), PATIENCE, &cancel, self.tls.as_ref()) {
                Ok(road) => road,
                Err(why) => return Some(why.to_string()),
            },
        };
        let migration = match self.migrator.start(road, cancel, self.options) {
            Ok(migration) => migration,
            Err(why) => return Some(why.to_string()),
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(migration.clone());
        if self.over.load(Ordering::Acquire) {
            migration.cancel();
        }
        let mut show = Show::new(json, &self.options);
        let mut looks = Looks::new(&self.go.uri, self.tls.as_ref(), self.switch, self.recover);
        let ended = loop {
            if let Some(ended) = migration.wait(Duration::from_millis(100)) {
                break ended;
            }
            show.tell(&migration.status());
            looks.look(&migration);
        };
        show.end();
        match ended {
            Ok(_) => None,
            Err(why) => Some(match &*why {
                MigrationError::Cancelled if self.over.load(Ordering::Acquire) => RUN_ENDED.into(),
                why => why.to_string(),
            }),
        }
    }
}

/// Says how the migration went.
pub(super) fn report(name: &str, go: &Move, status: &MigrationStatus, json: bool) -> ExitCode {
    let MigrationStatus { total, downtime, progress, dirtied, .. } = status;
    let (total, downtime) = (total.as_secs_f64() * 1e3, downtime.as_secs_f64() * 1e3);
    let rate = progress.bytes as f64 / 1e6 / (total / 1e3).max(1e-6);
    if json {
        return print(&format!(
            "{{\"moved\":true,\"total_ms\":{total:.1},\"downtime_ms\":{downtime:.2},\"rounds\":{},\"bytes\":{},\"pages\":{},\
             \"zero_pages\":{},\"dirtied\":{dirtied:?},\"released\":{},\"mb_per_s\":{rate:.0}}}\n",
            progress.rounds, progress.bytes, progress.pages, progress.zero_pages, status.released
        ));
    }
    say(&format!(
        "{name}: moved to {}: {total:.1} ms, of which the guest stood still {downtime:.2} ms; {} rounds, {} pages, {} of zeros, {rate:.0} MB/s",
        go.uri, progress.rounds, progress.pages, progress.zero_pages
    ));
    Code::Success.into()
}

/// Keeps a machine that may run elsewhere, or not, in a file.
pub(super) fn keep(name: &str, machine: &mut Machine, file: &Path) -> ExitCode {
    match machine.snapshot(file) {
        Ok(_) => complain(
            Code::Host,
            &format!("{name}: if it does not run there, it goes on by: notdirty restore {}", file.display()),
        ),
        Err(why) => refuse_migration(name, &why),
    }
}

/// What is said of a machine that should have moved and did not: also by `--json`. Whether that is a failure: not if its run had ended.
pub(super) fn not_moved(name: &str, go: &Move, status: Option<&MigrationStatus>, why: &str, json: bool) -> bool {
    let state = status.map_or(MigrationState::Setup, |status| status.state);
    say(&format!("{name}: not moved to {} ({state:?}): {why}", go.uri));
    if json {
        print(&format!("{{\"moved\":false,\"state\":\"{state:?}\",\"why\":{}}}\n", quoted(why)));
    }
    why != RUN_ENDED
}
