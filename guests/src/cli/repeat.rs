//! `--checkpoint-at PLACE`: the run from there on, again and again; and `replay`, the same with an input of a fuzzer.
//!
//! ```text
//!   run ──▶ PLACE: checkpoint ──▶ run to its end ─┬─ exit code 0: restore, the next seed, once more
//!                     ▲                           └─ anything else: that is how the run ends
//!                     └ replay: a0 is where the guest wants the input, a1 how much it has room for; a1 becomes its length, and
//!                       the run ends where PLACE returns to
//! ```

use super::args::{Args, Command};
use super::{disas, say};
use crate::machine::{Machine, MachineExit};
use notdirty_tcg::RunLimits;

/// How the last run ended; or what is wrong with what was asked for.
pub(super) fn run(machine: &mut Machine, args: &Args, place: &str, limits: &RunLimits) -> Result<MachineExit, String> {
    let at = disas::find(machine, place).ok_or_else(|| format!("--checkpoint-at {place}: no such symbol"))?;
    machine.set_exits(&[at]);
    let (hart, pc) = match machine.run(limits) {
        MachineExit::Pc { hart, pc } => (hart, pc),
        exit => {
            say(&format!("--checkpoint-at {place}: the run ended before it came there"));
            return Ok(exit);
        }
    };
    let cpu = machine.vcpu(hart).ok_or("no such hart")?.cpu();
    let (x, retired) = (cpu.x, cpu.retired);
    let input = match &args.command {
        Command::Replay(_, input) => Some(std::fs::read(input).map_err(|e| format!("{}: {e}", input.display()))?),
        _ => None,
    };
    machine.set_exits(if input.is_some() { &x[1..2] } else { &[] });
    let start = machine.checkpoint().map_err(|e| format!("--checkpoint-at {place}: {e}"))?;
    say(&format!("checkpoint at {}, after {retired} instructions of hart {hart}", machine.place(pc)));
    if let Some(input) = &input {
        let (room, len) = (x[11], input.len() as u64);
        if len > room {
            return Err(format!("the input has {len} bytes, and the guest has room for {room} (a1 at {place})"));
        }
        machine.write(x[10], input).map_err(|e| format!("the input does not fit where a0 says at {place}: {e}"))?;
        if let Some(vcpu) = machine.vcpu_mut(hart) {
            vcpu.cpu_mut().x[11] = len;
        }
        args.turns.map(|seed| machine.set_seed(seed));
        return Ok(machine.run(limits));
    }
    for round in 0..args.repeat {
        let seed = args.turns.map(|seed| seed.wrapping_add(round));
        if let Some(seed) = seed {
            machine.set_seed(seed);
        }
        let exit = machine.run(limits);
        let last = round + 1 == args.repeat;
        if last || !matches!(exit, MachineExit::Guest(end) if end.code == 0) {
            if args.repeat > 1 {
                let seed = seed.map_or(String::new(), |seed| format!(", --turns {seed}"));
                say(&format!("run {} of {} from the checkpoint{seed}", round + 1, args.repeat));
            }
            return Ok(exit);
        }
        machine.restore(&start).map_err(|e| format!("--checkpoint-at {place}: {e}"))?;
    }
    Err("--repeat 0: nothing is to be run".into())
}
