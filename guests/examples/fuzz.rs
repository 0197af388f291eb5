//! A small fuzzer, `cargo run --release --example fuzz`: a checkpoint, edges, a corpus that starts with an empty input, random mutation.

use notdirty::programs::targets::{CRASHES, INPUT, MAX_INPUT, Planted, target};
use notdirty::{Edges, Machine, MachineExit, Program, RunLimits};
use std::sync::Arc;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }
}

fn mutated(input: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut new = input.to_vec();
    for _ in 0..1 + rng.below(4) {
        let (at, byte) = (rng.below(new.len() + 1), rng.below(256) as u8);
        match rng.below(4) {
            0 if at < new.len() => new[at] = byte,
            1 if at < new.len() => drop(new.remove(at)),
            2 if at < new.len() => new[at] ^= 1 << (byte % 8),
            _ => new.insert(at, byte),
        }
    }
    new.truncate(MAX_INPUT);
    new
}

/// How many executions it took, and the input.
type Found = Option<(u64, Vec<u8>)>;

/// Looks for an input that crashes the target.
pub fn find(planted: Planted, most: u64) -> Result<Found, Box<dyn std::error::Error>> {
    let target = target(planted);
    let mut machine = Machine::builder().ram_size(1 << 20).program(Program::Image(target.image)).build()?;
    machine.set_exits(&[target.ready]);
    machine.run(&RunLimits::default());
    machine.set_exits(&[target.done]);
    machine.set_trap_exits(CRASHES);
    machine.set_coverage(Some(Arc::new(Edges::default())));
    let start = machine.checkpoint()?;
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + 100_000), deadline: None };
    let (mut corpus, mut seen, mut rng) = (vec![Vec::new()], Vec::new(), Rng(0x9e37_79b9_7f4a_7c15));
    for executions in 1..=most {
        let input = mutated(&corpus[rng.below(corpus.len())], &mut rng);
        machine.write(INPUT, &[&(input.len() as u64).to_le_bytes()[..], &input].concat())?;
        let exit = machine.run(&limits);
        if matches!(exit, MachineExit::Trap { .. }) {
            return Ok(Some((executions, input)));
        }
        let counts = machine.coverage(0);
        seen.resize(counts.len().max(seen.len()), 0u8);
        let mut new = false;
        for (count, seen) in counts.iter_mut().zip(&mut seen) {
            // How often, to a power of two.
            let bit = if *count == 0 { 0 } else { 1 << count.ilog2() };
            new |= bit & !*seen != 0;
            *seen |= bit;
            *count = 0;
        }
        if new {
            corpus.push(input);
        }
        machine.restore(&start)?;
    }
    Ok(None)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for planted in Planted::ALL {
        println!("{planted:?}: {:?}", find(planted, 1_000_000)?);
    }
    Ok(())
}
