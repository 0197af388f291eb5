//! What a checkpoint and instrumentation cost: hooks by the call, the rest by programs of the first table.
//!
//! ```text
//!   a hook       a loop in registers with it, less without it; a closure that counts
//!   a memory hook, a watched page    the same of a loop that stores; beside the bytes, and to them
//!   a program    to its end: as it is, with a checkpoint that nobody restores, with edges counted     in turns, CPU time, minima
//! ```

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use notdirty::hooks::{HookSpec, Kinds};
use notdirty::{Edges, Machine, MachineExit, Program, RunLimits};

use super::guest::{BASE, DATA};
use crate::dirty::clock::thread_nanos;
use crate::dirty::guest::program;

/// Programs of the first table that end within a second, and their kinds: stores, arithmetic, jumps, chases.
const PROGRAMS: [&str; 15] = [
    "rand-store",
    "seq-store",
    "seq-load",
    "memcpy",
    "crc32",
    "sha256",
    "intmix",
    "fib",
    "fft",
    "matrix",
    "icall-16",
    "switch",
    "vm",
    "chase-1M",
    "huffman",
];
/// Turns of the loops, and instructions of a turn.
const TURNS: u64 = 2_000_000;

/// What a hook costs by the call, in nanoseconds; how it is put there, and what it may cost.
type Hooked = (&'static str, fn(&mut Machine), Option<f64>);

const HOOKS: [Hooked; 7] = [
    ("block, the pc alone", |m| add(m, HookSpec::block(BASE, counting())), Some(3.0)),
    (
        "block, with a view",
        |m| {
            add(
                m,
                HookSpec::block_with(BASE, |view| {
                    let _ = black_box(view.x(10));
                }),
            )
        },
        Some(8.0),
    ),
    ("instruction, the pc alone", |m| add(m, HookSpec::insn(BASE + 4, counting())), Some(3.0)),
    (
        "instruction, with a view",
        |m| {
            add(
                m,
                HookSpec::insn_with(BASE + 4, |view| {
                    let _ = black_box(view.x(10));
                }),
            )
        },
        Some(8.0),
    ),
    (
        "memory",
        |m| {
            add(
                m,
                HookSpec::memory(DATA..DATA + 8, Kinds::All, |access| {
                    let _ = black_box(access.value);
                }),
            )
        },
        None,
    ),
    ("beside a memory hook's bytes", |m| add(m, HookSpec::memory(DATA + 8..DATA + 16, Kinds::All, |_| {})), None),
    ("operands of a branch", |m| m.set_compares(Some(Arc::default())), None),
];

fn add(machine: &mut Machine, hook: HookSpec) {
    machine.add_hook(0, hook);
}

fn counting() -> impl FnMut(u64) -> ControlFlow<()> + Send + 'static {
    let count = Arc::new(AtomicU64::new(0));
    move |_| {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        ControlFlow::Continue(())
    }
}

/// A loop of six instructions, of which one stores.
fn machine() -> Result<Machine, String> {
    // addi t0, t0, 1; sd t0, 0(a0); add t1, t1, t0; xor t2, t2, t1; addi a1, a1, -1; bne a1, zero, .-20
    let code = [0x0012_8293u32, 0x0055_3023, 0x0053_0333, 0x0063_c3b3, 0xfff5_8593, 0xfe05_96e3];
    let mut machine = Machine::builder().ram_size(16 << 20).build().map_err(|e| e.to_string())?;
    machine.write(BASE, &code.map(u32::to_le_bytes).concat()).map_err(|e| e.to_string())?;
    machine.start_at(BASE).map_err(|e| e.to_string())?;
    machine.cpu_mut().x[10] = DATA;
    Ok(machine)
}

/// Nanoseconds of a turn.
fn turn(machine: &mut Machine) -> Result<f64, String> {
    let cpu = machine.cpu_mut();
    (cpu.pc, cpu.x[11]) = (BASE, u64::MAX);
    let limit = RunLimits { max_insns: Some(cpu.retired + 6 * TURNS), deadline: None };
    let start = thread_nanos();
    match machine.run(&limit) {
        MachineExit::InsnLimit => Ok((thread_nanos() - start) as f64 / TURNS as f64),
        exit => Err(format!("the loop ended with {exit:?}")),
    }
}

fn verdict(value: f64, must: Option<f64>) -> String {
    must.map_or(String::new(), |must| format!("{must:>6} {}", if value <= must { "ok" } else { "MISSED" }))
}

/// The lines of hooks.
///
/// # Errors
/// A sentence: what went wrong.
pub fn hooks(rounds: usize) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for (name, put, must) in HOOKS {
        // What is hooked is not made by tier 2: neither is what it is compared with.
        let (mut plain, mut hooked) = (machine()?, machine()?);
        plain.add_hook(0, HookSpec::insn(DATA, |_| ControlFlow::Continue(())));
        put(&mut hooked);
        let mut least = [f64::MAX; 2];
        for _ in 0..rounds.max(1) + 1 {
            least = [least[0].min(turn(&mut plain)?), least[1].min(turn(&mut hooked)?)];
        }
        let cost = least[1] - least[0];
        lines.push(format!("{name:32} {cost:>7.2} {}", verdict(cost, must)));
    }
    Ok(lines)
}

/// CPU time of a program from its start to its end, in seconds.
fn run(name: &str, put: impl FnOnce(&mut Machine) -> Result<(), String>) -> Result<f64, String> {
    let program = Program::Elf(program(name)?);
    let mut machine = Machine::builder().ram_size(128 << 20).program(program).build().map_err(|e| e.to_string())?;
    put(&mut machine)?;
    let start = thread_nanos();
    match machine.run(&RunLimits::default()) {
        MachineExit::Guest(_) => Ok((thread_nanos() - start) as f64 / 1e9),
        exit => Err(format!("{name} ended with {exit:?}")),
    }
}

/// The lines of programs: what a checkpoint costs that nobody restores, and edges that are counted.
///
/// # Errors
/// A sentence: what went wrong.
pub fn programs(rounds: usize) -> Result<Vec<String>, String> {
    let (mut lines, mut all) = (Vec::new(), [Vec::new(), Vec::new()]);
    for name in PROGRAMS {
        let mut least = [f64::MAX; 3];
        for _ in 0..rounds.max(1) {
            let checkpoint = |machine: &mut Machine| {
                // It stays current for as long as the machine lives.
                machine.checkpoint().map(drop).map_err(|e| e.to_string())
            };
            let count = |machine: &mut Machine| {
                machine.set_coverage(Some(Arc::new(Edges::default())));
                Ok(())
            };
            let times = [run(name, |_| Ok(()))?, run(name, checkpoint)?, run(name, count)?];
            least.iter_mut().zip(times).for_each(|(least, time)| *least = least.min(time));
        }
        let ratios = [least[1] / least[0], least[2] / least[0]];
        all.iter_mut().zip(ratios).for_each(|(all, ratio)| all.push(ratio));
        lines.push(line(name, ratios, [1.08, 1.30]));
    }
    let mean = |all: &[f64]| (all.iter().map(|ratio| ratio.ln()).sum::<f64>() / all.len().max(1) as f64).exp();
    lines.push(line("geometric mean", [mean(&all[0]), mean(&all[1])], [1.03, 1.12]));
    Ok(lines)
}

fn line(name: &str, ratios: [f64; 2], most: [f64; 2]) -> String {
    let [checkpoint, coverage] = [0, 1].map(|n| format!("{:>7.3} {}", ratios[n], verdict(ratios[n], Some(most[n]))));
    format!("{name:16} {checkpoint:24} {coverage}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hook_is_called_by_its_loop() {
        for (name, put, _) in HOOKS {
            let mut machine = machine().unwrap();
            put(&mut machine);
            let calls = Arc::new(AtomicU64::new(0));
            let count = calls.clone();
            machine.add_hook(
                0,
                HookSpec::block(BASE, move |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                    ControlFlow::Continue(())
                }),
            );
            turn(&mut machine).unwrap();
            assert_eq!(calls.load(Ordering::Relaxed), TURNS, "{name}");
        }
    }

    #[test]
    fn a_cost_above_its_bar_is_missed() {
        assert!(
            line("x", [1.081, 1.0], [1.08, 1.3]).contains("MISSED")
                && !line("x", [1.0, 1.3], [1.08, 1.3]).contains("MISSED")
        );
    }
}
