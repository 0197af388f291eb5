//! Random programs on the JIT and on the oracle: registers, CSRs, retired instructions and every page of RAM.
//!
//!   NOTDIRTY_PROGRAMS=N   how many (20,000 unless said)
//!   NOTDIRTY_SEED=S       where to start; with NOTDIRTY_PROGRAMS=1 this is the replay of a failure
//!
//! Machines are used again and again, so that a program also meets what the ones before it left in the TLB and in the
//! code cache. A failure is run once more on fresh machines, to find the instruction at which the two part.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use notdirty::{ClockKind, CpuState, EngineKind, JitFlags, Machine, MachineExit, RAM_BASE, RunLimits};
use notdirty_tcg::riscv::csr;
use notdirty_tcg::testkit::{Options, Program};

const RAM: u64 = 0x4_0000;
const PROGRAMS: u64 = 20_000;
/// A page of its own, which the program does not know: where it goes in the end, to be stopped by the finisher. Without
/// it only an exact limit could stop the JIT, and the way to an exact limit is the oracle's.
const EPILOGUE: u64 = RAM_BASE + 0x8_0000;
/// More than the instructions before an exact limit that the JIT leaves to the oracle.
const STRETCH: u64 = 600;
/// Far more than a program takes that ends by itself.
const FAR: u64 = 1_000_000;
/// Small enough that the code cache fills up and starts again a few times.
const SMALL_CACHE: usize = 1 << 20;
const LARGE_CACHE: usize = 16 << 20;

/// How the JIT is set up for a program; derived from its seed, so that a seed is all a replay needs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Setup {
    flags: JitFlags,
    cache: usize,
}

/// Everything on but tier 0, which would keep programs this short out of the translator; everything on; one
/// optimisation off, each in turn, and the same with tier 2 for all code; a small cache.
fn setups() -> Vec<Setup> {
    let tiered = Setup { flags: JitFlags::default(), cache: LARGE_CACHE };
    let eager = Setup { flags: JitFlags { tier0: false, ..tiered.flags }, ..tiered };
    let mut setups = vec![eager, Setup { cache: SMALL_CACHE, ..eager }, tiered];
    for name in JitFlags::NAMES {
        let mut flags = eager.flags;
        assert!(flags.set(name, false));
        setups.push(Setup { flags, ..eager });
        // Programs this short are never sampled.
        setups.push(Setup { flags: JitFlags { samples: false, ..flags }, ..eager });
    }
    setups
}

/// Half of the programs run with everything on but tier 0.
fn setup_of(seed: u64, setups: &[Setup]) -> usize {
    let pick = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    if pick.is_multiple_of(2) { 0 } else { 1 + (pick / 2) as usize % (setups.len() - 1) }
}

fn options() -> Options {
    Options { base: RAM_BASE, ram_len: RAM, ..Options::default() }
}

fn machine(engine: EngineKind, setup: Setup) -> Machine {
    let builder = Machine::builder().ram_size(RAM).clock(ClockKind::Insns).engine(engine);
    let builder = builder.jit_flags(setup.flags).tb_cache_bytes(setup.cache);
    let mut machine = builder.build().expect("the machine is built");
    machine.add_ram("epilogue", EPILOGUE, 0x1000).expect("it fits");
    // lui t5, 0x100; lui t6, 0x5; addi t6, t6, 0x555; sw t6, 0(t5); j .
    let code = [0x0010_0f37u32, 0x0000_5fb7, 0x555f_8f93, 0x01ff_2023, 0x0000_006f];
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.write(EPILOGUE, &bytes).expect("RAM is there");
    machine
}

fn jit(setup: Setup) -> Machine {
    machine(EngineKind::Jit, setup)
}

fn oracle() -> Machine {
    machine(EngineKind::Interp, Setup { flags: JitFlags::default(), cache: LARGE_CACHE })
}

/// RAM is the program's alone, the hart is at its entry.
fn load(machine: &mut Machine, program: &Program) {
    let mut ram = program.bytes.clone();
    ram.resize(RAM as usize, 0);
    // Instead of spinning at its stop, it goes on to the epilogue: jal zero.
    let offset = (EPILOGUE - program.stop) as u32;
    let jump = (offset >> 1 & 0x3ff) << 21 | (offset >> 11 & 1) << 20 | (offset >> 12 & 0xff) << 12 | 0x6f;
    let stop = (program.stop - RAM_BASE) as usize;
    ram[stop..stop + 4].copy_from_slice(&jump.to_le_bytes());
    machine.write(RAM_BASE, &ram).expect("RAM is there");
    machine.start_at(program.entry).expect("the entry is in RAM");
}

fn until(insns: u64) -> RunLimits {
    RunLimits { max_insns: Some(insns), deadline: None }
}

/// What differs between the two harts, if anything does.
fn hart_difference(ours: &CpuState, theirs: &CpuState) -> Option<String> {
    if ours.retired != theirs.retired {
        return Some(format!("retired {} instead of {}", ours.retired, theirs.retired));
    }
    if ours.pc != theirs.pc {
        return Some(format!("pc {:#x} instead of {:#x}", ours.pc, theirs.pc));
    }
    if ours.privilege != theirs.privilege {
        return Some(format!("{} instead of {}", ours.privilege, theirs.privilege));
    }
    if let Some(n) = (0..32).find(|&n| ours.x[n] != theirs.x[n]) {
        return Some(format!("x{n} {:#x} instead of {:#x}", ours.x[n], theirs.x[n]));
    }
    if let Some(n) = (0..32).find(|&n| ours.f[n] != theirs.f[n]) {
        return Some(format!("f{n} {:#x} instead of {:#x}", ours.f[n], theirs.f[n]));
    }
    csr::difference(&ours.csr, &theirs.csr)
}

fn ram_difference(ours: &Machine, theirs: &Machine) -> Option<String> {
    let (mut a, mut b) = (vec![0; RAM as usize], vec![0; RAM as usize]);
    ours.read(RAM_BASE, &mut a).expect("RAM is there");
    theirs.read(RAM_BASE, &mut b).expect("RAM is there");
    if a == b {
        return None;
    }
    let at = (0..a.len()).find(|&at| a[at] != b[at])?;
    Some(format!("RAM at {:#x} is {:#04x} instead of {:#04x}", RAM_BASE + at as u64, a[at], b[at]))
}

/// Runs a program on both, with a halt on the way, and compares. `Err`: what differs.
fn compare(jit: &mut Machine, oracle: &mut Machine, program: &Program) -> Result<u64, String> {
    load(jit, program);
    load(oracle, program);
    // Any instruction may be the last before a limit; some programs halt on their way.
    if program.seed.is_multiple_of(4) {
        let halt = until(1 + program.seed / 4 % 1_500);
        let (ours, theirs) = (jit.run(&halt), oracle.run(&halt));
        if ours != theirs {
            return Err(format!("at the halt: ended by {ours:?} instead of {theirs:?}"));
        }
        if let Some(what) = hart_difference(jit.cpu(), oracle.cpu()) {
            return Err(format!("at the halt: {what}"));
        }
    }
    let theirs = oracle.run(&until(program.max_insns));
    // One that went astray stops at the same limit; one that ended does so by itself.
    let limit = if theirs == MachineExit::InsnLimit { program.max_insns } else { FAR };
    let ours = jit.run(&until(limit));
    if ours != theirs {
        return Err(format!("ended by {ours:?} instead of {theirs:?}"));
    }
    match hart_difference(jit.cpu(), oracle.cpu()).or_else(|| ram_difference(jit, oracle)) {
        Some(what) => Err(what),
        None => Ok(oracle.cpu().retired),
    }
}

/// The first limit at which fresh machines differ: by halving, as each try starts over. The last stretch before an
/// exact limit is the oracle's on both, so the JIT went wrong in the few hundred instructions before it.
fn first_difference(program: &Program, setup: Setup, end: u64) -> String {
    let differ = |insns: u64| {
        let (mut ours, mut theirs) = (jit(setup), oracle());
        load(&mut ours, program);
        load(&mut theirs, program);
        let _ = (ours.run(&until(insns)), theirs.run(&until(insns)));
        hart_difference(ours.cpu(), theirs.cpu()).or_else(|| ram_difference(&ours, &theirs))
    };
    // Where the end was met natively, the limit that leaves it native is a stretch further on.
    let (mut same, mut other) = (0, end + STRETCH);
    let Some(mut what) = differ(other) else {
        return "fresh machines agree: it needs what earlier programs left behind".into();
    };
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        match differ(middle) {
            Some(difference) => (other, what) = (middle, difference),
            None => same = middle,
        }
    }
    let mut before = oracle();
    load(&mut before, program);
    let mut path = Vec::new();
    for insns in other.saturating_sub(STRETCH)..other {
        let _ = before.run(&until(insns));
        let pc = before.cpu().pc - RAM_BASE;
        path.push(format!("{pc:x}"));
    }
    format!(
        "fresh machines differ from limit {other} on: {what}\nthe oracle's way there (pc - base): {}",
        path.join(" ")
    )
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn random_programs_end_alike_on_the_jit_and_on_the_oracle() {
    let programs = number("NOTDIRTY_PROGRAMS").unwrap_or(PROGRAMS);
    let first = number("NOTDIRTY_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64 & 0xffff_ffff_ffff)
    });
    println!("{programs} programs from NOTDIRTY_SEED={first:#x} on");
    let start = Instant::now();
    let (next, retired, interpreted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failure: Mutex<Option<String>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let setups = setups();
                // An oracle for each: what a program leaves in devices, as one does that goes astray, is there for the next one.
                let mut pairs: Vec<(Machine, Machine)> = setups.iter().map(|&setup| (jit(setup), oracle())).collect();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= programs || failure.lock().is_ok_and(|f| f.is_some()) {
                        break;
                    }
                    let seed = first.wrapping_add(n);
                    let program = Program::generate(seed, &options());
                    let pick = setup_of(seed, &setups);
                    let (jit, oracle) = &mut pairs[pick];
                    match compare(jit, oracle, &program) {
                        Ok(count) => drop(retired.fetch_add(count, Ordering::Relaxed)),
                        Err(what) => {
                            let end = oracle.cpu().retired.max(jit.cpu().retired).max(1);
                            let part = first_difference(&program, setups[pick], end);
                            let text = format!(
                                "seed {seed:#x} with {:?}: {what}\n{part}\nreplay: NOTDIRTY_SEED={seed:#x} \
                                 NOTDIRTY_PROGRAMS=1 cargo test -p notdirty --test differential\n{}",
                                setups[pick],
                                program.listing()
                            );
                            failure.lock().expect("no panic under it").get_or_insert(text);
                        }
                    }
                }
                let by_oracle: u64 = pairs.iter().map(|(jit, _)| jit.stats().interpreted).sum();
                interpreted.fetch_add(by_oracle, Ordering::Relaxed);
            });
        }
    });
    if let Some(text) = failure.into_inner().expect("no panic under it") {
        panic!("{text}");
    }
    let (insns, interpreted) = (retired.load(Ordering::Relaxed), interpreted.load(Ordering::Relaxed));
    println!(
        "{programs} programs, {insns} instructions ({interpreted} of the JIT's by the oracle), {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert!(insns > programs * 50, "the programs ended too early to tell anything");
    assert!(programs < 100 || interpreted < insns / 2, "the JIT left too much to the oracle to tell anything");
}
