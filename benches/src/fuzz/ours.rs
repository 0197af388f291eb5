//! The loop on ours: a checkpoint, then run to an exit and restore, again and again.

use std::time::Duration;

use notdirty::{Checkpoint, ClockKind, Machine, MachineExit, RunLimits};

use super::Row;
use super::guest::{self, DATA, Guest, OFFSET, RAM};
use crate::dirty::clock::thread_nanos;
use crate::stats::median;

/// How long a batch of runs is, of which the median counts.
const BATCH: Duration = Duration::from_millis(1);
/// Runs before the first one that counts.
const WARM: u64 = 2000;
/// Runs by itself before the guest comes to its end.
const ALONE: u64 = 100;

const NO_LIMITS: RunLimits = RunLimits { max_insns: None, deadline: None };

/// A machine at the start of a run, with a checkpoint of that; and one that has none.
pub struct Loop {
    row: Row,
    done: u64,
    machine: Machine,
    start: Checkpoint,
    baseline: Vec<u8>,
    seed: u64,
    plain: Machine,
}

impl Loop {
    /// Builds them.
    pub fn new(row: &Row, guest: &Guest) -> Result<Loop, String> {
        let mut machine = self::machine(row, guest)?;
        let start = machine.checkpoint().map_err(|e| e.to_string())?;
        let baseline = memory(&machine)?;
        Ok(Loop {
            row: *row,
            done: guest.done,
            machine,
            start,
            baseline,
            seed: 0,
            plain: self::machine(&Row { harts: 1, ..*row }, guest)?,
        })
    }

    /// Nanoseconds of a run and its restore.
    pub fn reset(&mut self, time: Duration) -> Result<f64, String> {
        let once = |looped: &mut Loop| -> Result<(), String> {
            looped.seed += 1;
            looped.machine.set_seed(looped.seed);
            at_end(looped.machine.run(&NO_LIMITS), looped.done)?;
            looped.machine.restore(&looped.start).map_err(|e| e.to_string())?;
            Ok(())
        };
        self.check()?;
        let ns = per_run(time, 1, || once(self))?;
        self.check()?;
        Ok(ns)
    }

    /// Nanoseconds of the guest's own of a run: no checkpoint, no restore, and no exit.
    pub fn alone(&mut self, time: Duration) -> Result<f64, String> {
        let (rounds, done) = (self.row.rounds(), self.done);
        per_run(time, ALONE, || {
            let cpu = self.plain.cpu_mut();
            (cpu.x[10], cpu.x[11], cpu.x[12]) = (self.row.pages, DATA, rounds);
            cpu.x[8] = ALONE - 1;
            at_end(self.plain.run(&NO_LIMITS), done)
        })
    }

    /// Runs once: the result is right, and after the restore all is as before.
    fn check(&mut self) -> Result<(), String> {
        at_end(self.machine.run(&NO_LIMITS), self.done)?;
        let (pages, wanted) = (self.row.pages / self.row.harts, guest::expected(self.row.rounds_of_hart()));
        for hart in 0..self.row.harts {
            let t2 = self.machine.vcpu(hart as usize).map_or(0, |vcpu| vcpu.cpu().x[7]);
            let word = self.word(first_page(pages, hart))?;
            if t2 != wanted || word != pages {
                return Err(format!("{}: ours computes {t2:#x}, and stores {word}", self.row.name));
            }
        }
        self.machine.restore(&self.start).map_err(|e| e.to_string())?;
        self.machine.verify(&self.start).map_err(|e| e.to_string())?;
        if memory(&self.machine)? != self.baseline {
            return Err(format!("{}: ours does not restore all RAM", self.row.name));
        }
        Ok(())
    }

    fn word(&self, page: u64) -> Result<u64, String> {
        let mut word = [0; 8];
        self.machine.read(page + OFFSET, &mut word).map_err(|e| e.to_string())?;
        Ok(u64::from_le_bytes(word))
    }
}

fn machine(row: &Row, guest: &Guest) -> Result<Machine, String> {
    let mut builder = Machine::builder().ram_size(RAM).harts(row.harts as usize);
    if row.harts > 1 {
        builder = builder.turns(0).clock(ClockKind::Insns);
    }
    let mut machine = builder.build().map_err(|e| e.to_string())?;
    machine.write(guest::BASE, &guest.bytes).map_err(|e| e.to_string())?;
    machine.start_at(guest.entry).map_err(|e| e.to_string())?;
    machine.set_exits(&[guest.done]);
    let (pages, rounds) = (row.pages / row.harts, row.rounds_of_hart());
    for hart in 0..row.harts {
        let cpu = machine.vcpu_mut(hart as usize).ok_or("no such hart")?.cpu_mut();
        let first = first_page(pages, hart);
        (cpu.x[10], cpu.x[11], cpu.x[12]) = (pages, first, rounds);
        (cpu.x[18], cpu.x[19], cpu.x[20]) = (pages, first, rounds);
        // In a line that is stored to in any case.
        cpu.x[9] = if row.harts > 1 { DATA + 2 * OFFSET } else { 0 };
    }
    Ok(machine)
}

/// The first page that a hart stores to.
fn first_page(pages: u64, hart: u64) -> u64 {
    DATA + hart * pages * 4096
}

fn memory(machine: &Machine) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; RAM as usize];
    machine.read(guest::BASE, &mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn at_end(exit: MachineExit, done: u64) -> Result<(), String> {
    match exit {
        MachineExit::Pc { pc, .. } if pc == done => Ok(()),
        exit => Err(format!("the fuzz target ended with {exit:?}")),
    }
}

/// The median of batches, in nanoseconds of CPU time of a run; each call of `once` is `runs` of them.
fn per_run(time: Duration, runs: u64, mut once: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
    let start = thread_nanos();
    let warm = (WARM / runs).max(1);
    (0..warm).try_for_each(|_| once())?;
    let calls = (BATCH.as_nanos() as u64 * warm / (thread_nanos() - start).max(1)).max(1);
    let (mut batches, began) = (Vec::new(), thread_nanos());
    let mut last = began;
    while last - began < time.as_nanos() as u64 {
        (0..calls).try_for_each(|_| once())?;
        let now = thread_nanos();
        batches.push((now - last) as f64 / (calls * runs) as f64);
        last = now;
    }
    median(&batches).ok_or_else(|| "no time to measure".into())
}
