//! Harts that take turns on one thread, by a seed: a run of several harts that repeats exactly.
//!
//! ```text
//!   seed ─▶ who, and for how many instructions ─▶ Vcpu::run, to the instruction ─┬─ they are done ─▶ the next draw
//!           1 to 65,536, as often few as many                                    ├─ it sleeps ─────▶ the next hart
//!                                                                                └─ anything else ends the run
//!   all sleep:  the instruction clock jumps to the first timer │ a device may wake one │ nobody can: hung
//! ```
//!
//! What is left of a turn when a run ends belongs to the next run, so a run in pieces is the run as a whole. The clock of
//! instructions counts those of all harts.

use super::{RunLimits, Vcpu, VcpuExit};
use std::time::Duration;

/// The longest turn is of two to the power of this many instructions, the shortest kind of two to that of `LEAST`.
const MOST: u64 = 16;
const LEAST: u64 = 4;
/// Harts that can take turns.
const MAX_HARTS: usize = 64;
/// How long all harts sleep before they look again for what a device did.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Whose turn it is, and what comes of the seed next. See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    first: u64,
    seed: u64,
    hart: usize,
    left: u64,
}

impl Turns {
    /// The turns that this seed stands for.
    pub fn new(seed: u64) -> Turns {
        Turns { first: seed, seed, hart: 0, left: 0 }
    }

    /// Back to the first of them.
    pub fn restart(&mut self) {
        *self = Turns::new(self.first);
    }

    /// The hart that runs, or ran last.
    pub fn hart(&self) -> usize {
        self.hart
    }

    /// All of it, to be kept.
    pub fn words(&self) -> [u64; 4] {
        [self.first, self.seed, self.hart as u64, self.left]
    }

    /// As [`words`](Self::words) gave it, if there are so many harts.
    pub fn from_words([first, seed, hart, left]: [u64; 4], harts: usize) -> Option<Turns> {
        let hart = usize::try_from(hart).ok().filter(|hart| *hart < harts)?;
        Some(Turns { first, seed, hart, left })
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Another turn, for one of the harts that do not sleep, a bit for each that does.
    fn next(&mut self, harts: usize, asleep: u64) {
        let drawn = self.draw();
        let awake = (0..harts).filter(|hart| asleep >> hart & 1 == 0);
        self.hart = awake.clone().nth((drawn >> 32) as usize % awake.count().max(1)).unwrap_or(0);
        let bits = LEAST + (drawn & 0xffff) % (MOST - LEAST + 1);
        self.left = 1 + (drawn >> 16 & ((1 << bits) - 1));
    }

    /// Runs the harts, 64 of them at most, until one of them ends the run, each to its limit of instructions at most. With
    /// `until`, also once that hart has retired so many, or sleeps: that too is [`VcpuExit::InsnLimit`].
    pub fn run(&mut self, harts: &mut [Vcpu], limits: &RunLimits, until: Option<(usize, u64)>) -> VcpuExit {
        harts.iter_mut().for_each(Vcpu::forget_exit);
        let count = harts.len().min(MAX_HARTS);
        let mut asleep = 0;
        loop {
            if self.left == 0 {
                self.next(count, asleep);
            }
            let Some(vcpu) = harts.get_mut(self.hart) else { return VcpuExit::Hung };
            let (before, until) = (vcpu.cpu().retired, until.filter(|(hart, _)| *hart == self.hart));
            let most = limits.max_insns.unwrap_or(u64::MAX).min(until.map_or(u64::MAX, |(_, end)| end));
            let part = RunLimits { max_insns: Some(most.min(before.saturating_add(self.left))), ..*limits };
            let exit = vcpu.run_turn(&part);
            let done = vcpu.cpu().retired.wrapping_sub(before);
            self.left = self.left.saturating_sub(done);
            match exit {
                VcpuExit::InsnLimit if vcpu.cpu().retired >= most => return exit,
                VcpuExit::InsnLimit => asleep = 0,
                // It sleeps, or its handler traps into itself, which only another hart may end.
                VcpuExit::Waiting => {
                    if until.is_some() {
                        return VcpuExit::InsnLimit;
                    }
                    self.left = 0;
                    // What it did before may have woken others.
                    asleep = if done == 0 || !vcpu.is_waiting() { asleep } else { 0 } | 1 << self.hart;
                    if asleep == u64::MAX >> (64 - count) {
                        if !wake_one(harts, limits) {
                            return VcpuExit::Hung;
                        }
                        asleep = 0;
                    }
                }
                _ => return exit,
            }
        }
    }
}

/// All harts sleep. `false`: for ever.
fn wake_one(harts: &mut [Vcpu], limits: &RunLimits) -> bool {
    let first = harts.iter().map(Vcpu::wakes_at).min().unwrap_or(u64::MAX);
    if first != u64::MAX && harts[0].skip_to(first) {
        return true;
    }
    let heard = harts.iter().any(|vcpu| vcpu.hears(limits) || vcpu.port().kicked());
    if first == u64::MAX && !heard {
        return false;
    }
    harts[0].sleep(LOOK_AGAIN);
    true
}
