//! `--plug SIZE@ADDR:AFTER`: RAM that comes while the guest runs.
//!
//! ```text
//!   insns:N   the run is cut at N retired instructions of whichever hart is first, plugged, and gone on with
//!   TIME      a thread beside the run sleeps until then, plugs, and is woken early if the run ends before
//! ```

use std::sync::mpsc::{self, RecvTimeoutError};
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
    let after = if let Some(count) = after.strip_prefix("insns:") {
        After::Insns(integer(count)?)
    } else if let Some(millis) = after.strip_suffix("ms") {
        After::Time(Duration::from_millis(integer(millis)?))
    } else {
        After::Time(Duration::from_secs(integer(after.strip_suffix('s')?)?))
    };
    Some(Plug { text: text.to_owned(), size: size(bytes)?, addr: integer(addr)?, after })
}

/// Runs the machine, with all of `plugs` at their times. Also returned is a line for each that was done; what cannot be
/// done is said on standard error, and the guest goes on without.
pub(super) fn run(machine: &mut Machine, plugs: &[Plug], limits: &RunLimits) -> (MachineExit, Vec<String>) {
    if plugs.is_empty() {
        return (machine.run(limits), Vec::new());
    }
    let start = Instant::now();
    let memory = machine.memory();
    let mut timed: Vec<_> = plugs.iter().enumerate().filter_map(|(n, p)| Some((p.after.time()?, n, p))).collect();
    let mut counted: Vec<_> = plugs.iter().enumerate().filter_map(|(n, p)| Some((p.after.insns()?, n, p))).collect();
    timed.sort_by_key(|(after, n, _)| (*after, *n));
    counted.sort_by_key(|(after, n, _)| (*after, *n));
    let (ended, end) = mpsc::channel::<()>();
    let memory = &memory;
    std::thread::scope(|scope| {
        let timer = scope.spawn(move || {
            let mut done = Vec::new();
            for (after, n, plug) in timed {
                let left = after.saturating_sub(start.elapsed());
                match end.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => done.extend(plug.done(memory, n)),
                    _ => break,
                }
            }
            done
        });
        let mut done = Vec::new();
        let mut counted = counted.into_iter().peekable();
        let exit = loop {
            let next = counted.peek().map(|(at, ..)| *at);
            let cut = next.filter(|at| limits.max_insns.is_none_or(|max| *at < max));
            match machine.run(&RunLimits { max_insns: cut.or(limits.max_insns), ..*limits }) {
                MachineExit::InsnLimit if cut.is_some() => {
                    while let Some((_, n, plug)) = counted.next_if(|(at, ..)| Some(*at) == cut) {
                        done.extend(plug.done(memory, n));
                    }
                }
                exit => break exit,
            }
        };
        drop(ended);
        done.extend(timer.join().unwrap_or_default());
        (exit, done)
    })
}

impl After {
    fn time(self) -> Option<Duration> {
        if let After::Time(time) = self { Some(time) } else { None }
    }

    fn insns(self) -> Option<u64> {
        if let After::Insns(count) = self { Some(count) } else { None }
    }
}

impl Plug {
    fn done(&self, memory: &Memory, n: usize) -> Option<String> {
        let start = Instant::now();
        match memory.plug(&format!("dimm{n}"), self.addr, self.size, PlugSpec::default()) {
            Ok(_) => {
                Some(format!("{} KiB at {:#x}, in {} us", self.size >> 10, self.addr, start.elapsed().as_micros()))
            }
            Err(why) => {
                eprintln!("notdirty: --plug {}: {why}", self.text);
                None
            }
        }
    }
}
