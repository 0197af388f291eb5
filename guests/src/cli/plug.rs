//! `--plug SIZE@ADDR:AFTER`: RAM that comes while the guest runs.
//!
//! ```text
//!   insns:N   the run is cut at N retired instructions of whichever hart is first, plugged, and gone on with
//!   TIME      a thread beside the run sleeps until then, plugs, and is woken early if the run ends before
//! ```

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use notdirty_tcg::RunLimits;

use crate::machine::{Machine, MachineExit, Memory, PlugSpec};

/// RAM to come.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plug {
    /// As it was written, for messages.
    pub text: String,
    pub size: u64,
    pub addr: u64,
    pub after: After,
}

/// When it comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum After {
    Time(Duration),
    Insns(u64),
}

/// Reads `SIZE@ADDR:AFTER`.
pub(super) fn parse(
    text: &str,
    size: impl Fn(&str) -> Option<u64>,
    integer: impl Fn(&str) -> Option<u64>,
) -> Option<Plug> {
    let (bytes, place) = text.split_once('@')?;
    let (addr, after) = place.split_once(':')?;
    let after = self::after(after, &integer)?;
    Some(Plug { text: text.to_owned(), size: size(bytes)?, addr: integer(addr)?, after })
}

/// Reads `AFTER`: 100ms, 2s or insns:N.
pub(super) fn after(text: &str, integer: impl Fn(&str) -> Option<u64>) -> Option<After> {
    Some(if let Some(count) = text.strip_prefix("insns:") {
        After::Insns(integer(count)?)
    } else if let Some(millis) = text.strip_suffix("ms") {
        After::Time(Duration::from_millis(integer(millis)?))
    } else {
        After::Time(Duration::from_secs(integer(text.strip_suffix('s')?)?))
    })
}

/// Refuses what can never be plugged: not whole pages, over the limit, where something is or another plug will be.
pub(super) fn check(machine: &Machine, plugs: &[Plug]) -> Result<(), String> {
    if plugs.is_empty() {
        // The memory stays with the machine, which has one writer then (WRITER-1).
        return Ok(());
    }
    let memory = machine.memory();
    let mut sum = memory.blocks().iter().fold(0u64, |sum, block| sum.saturating_add(block.size));
    for (n, plug) in plugs.iter().enumerate() {
        memory.check_plug(plug.addr, plug.size).map_err(|why| format!("--plug {}: {why}", plug.text))?;
        // Neither end overflows, once that is checked.
        let overlaps = |other: &&Plug| plug.addr < other.addr + other.size && other.addr < plug.addr + plug.size;
        if let Some(other) = plugs[..n].iter().find(overlaps) {
            return Err(format!("--plug {}: it overlaps --plug {}", plug.text, other.text));
        }
        sum = sum.saturating_add(plug.size);
        let max = memory.max_ram();
        if sum > max {
            return Err(format!("--plug {}: with it there are {sum:#x} bytes of RAM, and may be {max:#x}", plug.text));
        }
    }
    Ok(())
}

/// What became of the plugs of a run.
#[derive(Debug, Default)]
pub(super) struct Plugged {
    /// A line for each that was done.
    pub done: Vec<String>,
    /// One could not be done; it was said on standard error.
    pub failed: bool,
}

impl Plugged {
    fn add(&mut self, result: Result<String, String>) {
        match result {
            Ok(line) => self.done.push(line),
            Err(why) => {
                super::say(&why);
                self.failed = true;
            }
        }
    }
}

/// Runs the machine, with all of `plugs` at their times. When one cannot be done, the guest goes on without.
pub(super) fn run(machine: &mut Machine, plugs: &[Plug], limits: &RunLimits) -> (MachineExit, Plugged) {
    if plugs.is_empty() {
        return (machine.run(limits), Plugged::default());
    }
    let start = Instant::now();
    let memory = machine.memory();
    let mut timed: Vec<_> = plugs.iter().enumerate().filter_map(|(n, p)| Some((p.after.time()?, n, p))).collect();
    let mut counted: Vec<_> = plugs.iter().enumerate().filter_map(|(n, p)| Some((p.after.insns()?, n, p))).collect();
    timed.sort_by_key(|(after, n, _)| (*after, *n));
    counted.sort_by_key(|(after, n, _)| (*after, *n));
    let (ended, end) = mpsc::channel::<()>();
    let (came, coming) = mpsc::channel::<()>();
    let memory = &memory;
    std::thread::scope(|scope| {
        let timer = scope.spawn(move || {
            let mut plugged = Plugged::default();
            for (after, n, plug) in timed {
                let left = after.saturating_sub(start.elapsed());
                match end.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => plugged.add(plug.done(memory, n)),
                    _ => break,
                }
                // Unless the run is over.
                let _ = came.send(());
            }
            plugged
        });
        let mut plugged = Plugged::default();
        let mut counted = counted.into_iter().peekable();
        let exit = loop {
            let next = counted.peek().map(|(at, ..)| *at);
            let cut = next.filter(|at| limits.max_insns.is_none_or(|max| *at < max));
            match machine.run(&RunLimits { max_insns: cut.or(limits.max_insns), ..*limits }) {
                MachineExit::InsnLimit if cut.is_some() => {
                    while let Some((_, n, plug)) = counted.next_if(|(at, ..)| Some(*at) == cut) {
                        plugged.add(plug.done(memory, n));
                    }
                }
                // A handler in RAM that is still to come, say. The next plug may change that; the last one does not.
                exit @ (MachineExit::Hung | MachineExit::Unhandled(_)) => match wait(&coming, limits.deadline) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout) => break MachineExit::Deadline,
                    Err(RecvTimeoutError::Disconnected) => break exit,
                },
                exit => break exit,
            }
        };
        drop(ended);
        let timed = timer.join().unwrap_or_default();
        plugged.done.extend(timed.done);
        plugged.failed |= timed.failed;
        (exit, plugged)
    })
}

/// Waits for the next plug that has a time.
fn wait(coming: &Receiver<()>, deadline: Option<Instant>) -> Result<(), RecvTimeoutError> {
    match deadline {
        Some(deadline) => coming.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        None => coming.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}

impl After {
    /// These limits, or an earlier one.
    pub(super) fn within(self, start: Instant, limits: &RunLimits) -> RunLimits {
        let mut within = *limits;
        match self {
            After::Insns(count) => within.max_insns = Some(limits.max_insns.map_or(count, |max| max.min(count))),
            After::Time(time) => {
                let end = start.checked_add(time);
                within.deadline = limits.deadline.into_iter().chain(end).min();
            }
        }
        within
    }

    /// Did a run with these limits end because it is time, and not by a limit of the user's?
    pub(super) fn has_come(self, machine: &Machine, exit: MachineExit, start: Instant) -> bool {
        match (self, exit) {
            (After::Insns(count), MachineExit::InsnLimit) => {
                (0..machine.harts()).any(|hart| machine.vcpu(hart).is_some_and(|vcpu| vcpu.cpu().retired >= count))
            }
            (After::Time(time), MachineExit::Deadline) => start.elapsed() >= time,
            // It sleeps, and is as it will be then.
            (_, MachineExit::Hung) => true,
            _ => false,
        }
    }

    fn time(self) -> Option<Duration> {
        if let After::Time(time) = self { Some(time) } else { None }
    }

    fn insns(self) -> Option<u64> {
        if let After::Insns(count) = self { Some(count) } else { None }
    }
}

impl Plug {
    fn done(&self, memory: &Memory, n: usize) -> Result<String, String> {
        let start = Instant::now();
        match memory.plug(&format!("dimm{n}"), self.addr, self.size, PlugSpec::default()) {
            Ok(_) => Ok(format!("{} KiB at {:#x}, in {} us", self.size >> 10, self.addr, start.elapsed().as_micros())),
            Err(why) => Err(format!("--plug {}: {why}", self.text)),
        }
    }
}
