//! `smc-test`: the self-modifying suite as a product, for our engines and for others.
//!
//! ```text
//!   programs/smc ─▶ guests ──┬─▶ mod.rs    run on the JIT or the oracle, in this process
//!   host.rs      ─▶ the rest │             (host API, loader, address map: no guest can do those)
//!                            └─▶ elf.rs ─▶ files for any emulator or board; qemu.rs runs them in QEMU
//!   report.rs    a table, or JSON
//! ```
//!
//! Every guest judges itself and tells its own time, by `mtime`, so all contenders are measured in the same way. What
//! is counted is the whole guest, so the figure for a patch holds the calls and checks around it, too.

mod elf;
mod host;
mod qemu;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notdirty_tcg::{EngineKind, ICache, RunLimits};

use crate::load::Program;
use crate::machine::{BuildError, Machine, MachineBuilder, MachineExit};
use crate::programs::GuestImage;
use crate::programs::smc::{self, CacheModel, Form, Mode, SmcCase, TICKS};

pub use elf::elf;
pub use report::{json, table};

/// Who runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// An engine of ours.
    Ours(EngineKind),
    /// QEMU, the board `virt`, as a process.
    Qemu,
}

/// How the suite is run.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Who runs it.
    pub contender: Contender,
    /// By which model it is judged, and the mode that it runs in.
    pub form: Form,
    /// How often each case is run while it passes; the shortest time counts, as the host has other things to do.
    pub runs: u32,
}

/// How long a case may take before it counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(20);
/// Enough for every case.
const RAM: u64 = 8 << 20;
/// How a guest ends that trapped where it was not meant to.
const TRAPPED: u64 = 99;

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All was right.
    Pass,
    /// The check of that number saw a wrong value.
    WrongValue(u64),
    /// It ended in another way than it should.
    Fail(String),
    /// It did not end.
    Timeout,
    /// The emulator broke down.
    Crash(String),
    /// It cannot be asked of this contender; why.
    NotApplicable(&'static str),
}

impl Outcome {
    /// By the exit code of a guest.
    fn by_code(code: u64) -> Outcome {
        match code {
            0 => Outcome::Pass,
            TRAPPED => Outcome::Fail("a trap that nobody meant".into()),
            check => Outcome::WrongValue(check),
        }
    }
}

/// A case: a guest, or a guest that the host changes.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, unique.
    pub name: &'static str,
    /// What it catches, in a line.
    pub about: &'static str,
    /// The public issues that it retells, as `project#number`.
    pub retells: &'static [&'static str],
    patches: u32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Guest(&'static SmcCase),
    Host(host::Host),
}

/// What came of a case, and how long it took.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which.
    pub case: Case,
    /// What came of it.
    pub outcome: Outcome,
    /// From its first instruction to its last, by the guest's clock; for host cases by the host's. None if it failed.
    pub time: Option<Duration>,
}

impl Report {
    /// Nanoseconds for each write to code; none where there are too few of them to make out their share.
    pub fn ns_a_patch(&self) -> Option<f64> {
        let time = self.time.filter(|_| self.case.patches >= 20)?;
        Some(time.as_nanos() as f64 / f64::from(self.case.patches))
    }
}

/// All cases: guests first, then those that the host does.
pub fn catalogue() -> impl Iterator<Item = Case> {
    let guests = smc::CASES.iter().map(|case| Case {
        name: case.name,
        about: case.about,
        retells: case.retells,
        patches: case.patches,
        kind: Kind::Guest(case),
    });
    guests.chain(host::CASES.iter().copied())
}

const BOARD: &str = "needs RAM at a second address, which the board has not";
const API: &str = "the host writes, through an API that only our own engines have";
const PAGED: &str = "needs page tables, which machine mode has not";
const PHYSICAL: &str = "the host changes what is at physical addresses that no page shows";

/// Runs one case, as often as it is to be run.
pub fn run(case: &Case, setup: &Setup) -> Report {
    let (mut outcome, mut time) = once(case, setup);
    for _ in 1..setup.runs {
        if outcome != Outcome::Pass {
            break;
        }
        let (next, took) = once(case, setup);
        outcome = next;
        time = time.min(took);
    }
    Report { case: *case, outcome, time }
}

fn once(case: &Case, setup: &Setup) -> (Outcome, Option<Duration>) {
    let form = setup.form;
    match (case.kind, setup.contender) {
        (Kind::Guest(guest), _) if !guest.has(form.mode) => (Outcome::NotApplicable(PAGED), None),
        (Kind::Guest(guest), Contender::Ours(engine)) => ours(guest, engine, form),
        (Kind::Guest(guest), Contender::Qemu) if needs_board(guest, form) => (Outcome::NotApplicable(BOARD), None),
        (Kind::Guest(guest), Contender::Qemu) => qemu::run(&(guest.build)(form), guest.harts),
        (Kind::Host(..), Contender::Qemu) => (Outcome::NotApplicable(API), None),
        (Kind::Host(host), Contender::Ours(_)) if !host.has(form.mode) => (Outcome::NotApplicable(PHYSICAL), None),
        (Kind::Host(host), Contender::Ours(engine)) => by_host(host, engine, form),
    }
}

/// Whether a guest wants RAM at two physical addresses.
fn needs_board(case: &SmcCase, form: Form) -> bool {
    case.alias.is_some() && form.mode == Mode::Machine
}

/// Why a contender cannot be asked at all.
pub fn missing(contender: Contender) -> Option<String> {
    match contender {
        Contender::Ours(_) => None,
        Contender::Qemu => qemu::missing(),
    }
}

/// A machine for one case, with the cache that the model is about.
fn board(image: GuestImage, engine: EngineKind, form: Form) -> MachineBuilder {
    let icache = match form.cache {
        CacheModel::Coherent => ICache::Coherent,
        CacheModel::FenceI => ICache::FenceI,
    };
    Machine::builder().ram_size(RAM).engine(engine).icache(icache).program(Program::Image(image))
}

fn unbuilt(e: BuildError) -> Outcome {
    Outcome::Crash(format!("no machine: {e}"))
}

fn limits() -> RunLimits {
    RunLimits { max_insns: None, deadline: Instant::now().checked_add(PATIENCE) }
}

/// The verdict in how a machine ended.
fn judge(exit: MachineExit) -> Outcome {
    match exit {
        MachineExit::Guest(exit) => Outcome::by_code(exit.code),
        MachineExit::Deadline => Outcome::Timeout,
        other => Outcome::Fail(format!("{other:?}")),
    }
}

fn ours(case: &SmcCase, engine: EngineKind, form: Form) -> (Outcome, Option<Duration>) {
    let mut machine = match board((case.build)(form), engine, form).harts(case.harts).build() {
        Ok(machine) => machine,
        Err(e) => return (unbuilt(e), None),
    };
    if let Some(alias) = case.alias
        && needs_board(case, form)
        && let Err(e) = machine.map_alias(alias.base, alias.target, alias.len)
    {
        return (Outcome::Crash(format!("no alias: {e}")), None);
    }
    let outcome = judge(machine.run(&limits()));
    let time = (outcome == Outcome::Pass).then(|| ticks(machine.cpu().x[TICKS]));
    (outcome, time)
}

fn by_host(host: host::Host, engine: EngineKind, form: Form) -> (Outcome, Option<Duration>) {
    let mut machine = match board((host.image)(form), engine, form).build() {
        Ok(machine) => machine,
        Err(e) => return (unbuilt(e), None),
    };
    let start = Instant::now();
    match (host.run)(&mut machine, form) {
        Ok(()) => (Outcome::Pass, Some(start.elapsed())),
        Err(outcome) => (outcome, None),
    }
}

/// `mtime` goes at 10 MHz.
fn ticks(count: u64) -> Duration {
    Duration::from_nanos(count.saturating_mul(100))
}

/// What became of a case that was to be a file.
#[derive(Debug)]
pub enum Emitted {
    /// It is here.
    File(PathBuf),
    /// It cannot be one; why.
    NotApplicable(&'static str),
}

/// Writes the cases as ELF files into a directory, which is made if it is not there.
///
/// # Errors
/// The directory or a file in it cannot be written; what was written before stays.
pub fn emit<'c>(
    dir: &Path,
    cases: impl IntoIterator<Item = &'c Case>,
    form: Form,
) -> std::io::Result<Vec<(Case, Emitted)>> {
    std::fs::create_dir_all(dir)?;
    let mut emitted = Vec::new();
    for case in cases {
        let what = match case.kind {
            Kind::Host(..) => Emitted::NotApplicable(API),
            Kind::Guest(guest) if !guest.has(form.mode) => Emitted::NotApplicable(PAGED),
            Kind::Guest(guest) if needs_board(guest, form) => Emitted::NotApplicable(BOARD),
            Kind::Guest(guest) => {
                let path = dir.join(format!("{}.elf", case.name));
                std::fs::write(&path, elf(&(guest.build)(form)))?;
                Emitted::File(path)
            }
        };
        emitted.push((*case, what));
    }
    Ok(emitted)
}
