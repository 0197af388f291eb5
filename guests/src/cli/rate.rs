//! `--dirty-rate`: how fast the guest's RAM becomes dirty, told while it runs.
//!
//! ```text
//!   --dirty-rate 2s,for=500ms,by=samples:512
//!     run ─▶ AFTER ─▶ a thread watches for so long, the guest runs ─▶ a line, and the guest runs on
//! ```

use std::time::{Duration, Instant};

use notdirty_core::migration::{DirtyRate, RateBy};
use notdirty_tcg::RunLimits;

use super::plug::{self, After};
use super::say;
use crate::machine::{Machine, MachineExit};

/// Entries of a ring, unless it is said: as many as there may be.
const RING: u32 = 1 << 16;
/// Pages of a GiB, unless it is said.
const SAMPLES: u32 = 512;

/// When it is watched, how long, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    after: After,
    period: Duration,
    by: RateBy,
}

/// What it may look like.
pub(super) const FORM: &str =
    "must be AFTER[,for=TIME][,by=bits|rings[:ENTRIES]|samples[:PAGES]], as in 2s,for=500ms,by=bits";

/// As it is written.
pub(super) fn parse(text: &str, integer: fn(&str) -> Option<u64>) -> Option<Rate> {
    let mut parts = text.split(',');
    let mut rate =
        Rate { after: plug::after(parts.next()?, integer)?, period: Duration::from_secs(1), by: RateBy::Bits };
    for part in parts {
        match part.split_once('=')? {
            ("for", value) => match plug::after(value, integer)? {
                After::Time(period) if !period.is_zero() => rate.period = period,
                _ => return None,
            },
            ("by", value) => {
                let (how, count) = value.split_once(':').map_or((value, None), |(how, count)| (how, Some(count)));
                let count = match count {
                    Some(count) => Some(u32::try_from(integer(count)?).ok().filter(|&count| count > 0)?),
                    None => None,
                };
                rate.by = match (how, count) {
                    ("bits", None) => RateBy::Bits,
                    ("rings", count) => RateBy::Rings(count.unwrap_or(RING)),
                    ("samples", count) => RateBy::Samples(count.unwrap_or(SAMPLES)),
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
    Some(rate)
}

/// Runs the machine, and tells its rate at that time.
pub(super) fn run(machine: &mut Machine, rate: &Rate, limits: &RunLimits) -> MachineExit {
    let start = Instant::now();
    let exit = machine.run(&rate.after.within(start, limits));
    if !rate.after.has_come(machine, exit, start) {
        say("dirty rate: the run ended before it was watched");
        return exit;
    }
    let memory = machine.memory();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| match memory.dirty_rate(rate.by, rate.period) {
            Ok(found) => say(&line(rate.by, &found)),
            Err(why) => say(&format!("dirty rate: {why}")),
        });
        let exit = machine.run(limits);
        if !watch.is_finished() {
            say("dirty rate: the run ended while it was watched");
        }
        exit
    })
}

fn line(by: RateBy, found: &DirtyRate) -> String {
    let by = match by {
        RateBy::Rings(_) => "rings",
        RateBy::Samples(_) => "samples",
        _ => "bits",
    };
    let (pages, seconds, rate) =
        (found.pages, found.period.as_secs_f64(), found.bytes_per_second() / f64::from(1 << 20));
    format!("dirty rate by {by}: {pages} pages in {seconds:.3} s, {rate:.1} MiB/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_how_long_and_how() {
        let integer = |text: &str| text.parse().ok();
        let rate = |after, ms, by| Some(Rate { after, period: Duration::from_millis(ms), by });
        let second = After::Time(Duration::from_secs(2));
        assert_eq!(parse("2s", integer), rate(second, 1000, RateBy::Bits));
        assert_eq!(parse("insns:9,by=rings,for=100ms", integer), rate(After::Insns(9), 100, RateBy::Rings(RING)));
        assert_eq!(parse("2s,by=samples:7", integer), rate(second, 1000, RateBy::Samples(7)));
        for bad in [
            "",
            "soon",
            "2s,",
            "2s,for",
            "2s,for=insns:5",
            "2s,for=0s",
            "2s,by=luck",
            "2s,by=bits:1",
            "2s,by=rings:0",
            "2s,by=samples:x",
        ] {
            assert_eq!(parse(bad, integer), None, "{bad}");
        }
    }
}
