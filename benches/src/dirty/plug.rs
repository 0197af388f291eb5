//! To add RAM to a machine with many blocks: the caller's time, and what it costs a vCPU to hear of it.
//!
//! The vCPU has run a guest before, so its TLB and its code cache are full. It is timed on its own: what it does at
//! its next safe point, by the clock of its thread.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use notdirty::{Machine, Memory, PlugSpec, Program, RunLimits};

use super::clock::{thread_nanos, wall_nanos};
use super::row::{Bar, Contender, Row, Sample};
use crate::stats::median;

/// Where blocks are plugged, one every 4 MiB, 2 MiB each.
const BASE: u64 = 1 << 40;
const STEP: u64 = 4 << 20;
const SIZE: u64 = 2 << 20;
/// Plugs of one run. They are unplugged afterwards.
const PLUGS: u64 = 32;

struct Fixture {
    machine: Machine,
    memory: Memory,
    present: u64,
    /// What the vCPU spent on each plug of the last run.
    served: Vec<f64>,
}

impl Fixture {
    fn new(present: u64) -> Result<Fixture, String> {
        let mut machine = Machine::builder().ram_size(128 << 20).build().map_err(|e| e.to_string())?;
        let file = super::guest::program("rand-store")?;
        let entry = machine.load(&Program::Elf(file)).map_err(|e| e.to_string())?;
        machine.start_at(entry).map_err(|e| e.to_string())?;
        machine.run(&RunLimits { max_insns: Some(1 << 26), deadline: None });
        let memory = machine.memory();
        let mut fixture = Fixture { machine, memory, present, served: Vec::new() };
        for n in 0..present {
            fixture.plug(n)?;
            fixture.serve();
        }
        Ok(fixture)
    }

    fn plug(&self, n: u64) -> Result<notdirty::Plugged, String> {
        let plugged = self.memory.plug(&format!("dimm{n}"), BASE + n * STEP, SIZE, PlugSpec::default());
        plugged.map_err(|e| format!("plug {n}: {e}"))
    }

    fn serve(&mut self) {
        self.machine.vcpu_mut(0).map(|vcpu| vcpu.serve());
    }

    /// The median of the plugs' times; what the vCPU spent is kept for the others.
    fn run(&mut self) -> Result<Sample, String> {
        let (mut plugs, mut plugged) = (Vec::new(), Vec::new());
        self.served.clear();
        for n in self.present..self.present + PLUGS {
            let start = wall_nanos();
            plugged.push(self.plug(n)?);
            plugs.push((wall_nanos() - start) as f64);
            let start = thread_nanos();
            self.serve();
            self.served.push((thread_nanos() - start) as f64);
        }
        for dimm in plugged {
            self.memory.unplug(&dimm, Duration::from_secs(10)).map_err(|e| e.to_string())?;
            self.serve();
        }
        sample(median(&plugs))
    }
}

fn sample(total: Option<f64>) -> Result<Sample, String> {
    Ok(Sample { total: total.ok_or("nothing was measured")?, units: 1.0, check: 0 })
}

/// `uc_mem_map` by the runner of `make unicorn`, which lies beside this binary if it was built.
fn unicorn(present: u64) -> Contender {
    const NAME: &str = "Unicorn's uc_mem_map";
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("notdirty-unicorn-run")));
    let Some(binary) = beside.filter(|binary| binary.is_file()) else {
        return Contender::absent(NAME, "not built (make unicorn)".into());
    };
    if present > 1000 {
        return Contender::absent(NAME, "not run: to map so many takes it minutes".into());
    }
    Contender::fallible(NAME, move || sample(mem_map(&binary, present)))
}

/// The median of what the runner prints: `mem_map present=N ns=a,b,c`.
fn mem_map(binary: &PathBuf, present: u64) -> Option<f64> {
    let output = Command::new(binary).arg("--bench-map").arg(present.to_string()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let times: Option<Vec<f64>> = text.trim().split_once("ns=")?.1.split(',').map(|ns| ns.parse().ok()).collect();
    median(&times?)
}

fn row(present: u64) -> Result<Row, String> {
    let fixture = Rc::new(RefCell::new(Fixture::new(present)?));
    let plug = {
        let fixture = fixture.clone();
        Contender::fallible("notdirty", move || fixture.borrow_mut().run()).bar(Bar::AtMost(100_000.0))
    };
    // These two look at the last run of the first: before it or after it in a round, it is one of this row's.
    let served = |name, f: fn(&[f64]) -> Option<f64>| {
        let fixture = fixture.clone();
        Contender::fallible(name, move || sample(f(&fixture.borrow().served)))
    };
    let usual = served("a vCPU's CPU time", median);
    let worst = served("the same, the worst of 32", |all| all.iter().copied().reduce(f64::max));
    let contenders = vec![plug, usual, worst.bar(Bar::AtMost(50_000.0)), unicorn(present)];
    Ok(Row::times("plug", contenders).rounds(5))
}

/// Into a machine with its boot RAM only.
pub fn empty() -> Result<Row, String> {
    row(0)
}

/// Into one with 1,000 blocks.
pub fn thousand() -> Result<Row, String> {
    row(1000)
}

/// Into one with 10,000.
pub fn ten_thousand() -> Result<Row, String> {
    row(10_000)
}
