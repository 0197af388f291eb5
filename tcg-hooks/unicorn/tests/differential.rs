//! Random programs on Unicorn and on our oracle, compared up to the first trap: registers and all of RAM.
//!
//! Without what Unicorn is known to get wrong (the crate's page lists it): no self-modification, no CSRs, and no
//! program whose first trap is a floating-point encoding, which Unicorn runs on harts that have no floating point. Nor an SC
//! of another size than its LR: ours fails, as the ISA allows; Unicorn's compares values, and may succeed.
//! `NOTDIRTY_PROGRAMS` sets how many; a failure prints the seed and the program.

use std::cell::Cell;
use std::rc::Rc;

use notdirty_tcg::interp::Step;
use notdirty_tcg::riscv::Isa;
use notdirty_tcg::testkit::{Options, Oracle, Program, Smc};
use unicorn_engine::{Arch, Mode, Prot, RegisterRISCV, Riscv64CpuModel, Unicorn};

const ILLEGAL_INSTRUCTION: u64 = 2;
const STORE_MISALIGNED: u64 = 6;
const STORE_ACCESS_FAULT: u64 = 7;

/// How a program ended, and what it left behind.
struct Outcome {
    trapped: bool,
    x: Vec<u64>,
    ram: Vec<u8>,
}

/// What Unicorn executes whatever the hart has: 16-bit loads and stores of D, `fsgnj.d`, `sfence.vma`. The reserved
/// 16-bit encodings that became Zcb's loads it steps over.
fn unicorn_runs_it_anyway(bits: u64) -> bool {
    match bits & 3 {
        0 => matches!(bits >> 13 & 7, 1 | 4 | 5),
        2 => matches!(bits >> 13 & 7, 1 | 5),
        1 => false,
        _ => (bits & 0x7f == 0x53 && bits >> 25 == 0x11) || bits & 0xfe00_7fff == 0x1200_0073,
    }
}

fn is_sc(bits: u64) -> bool {
    bits & 0x7f == 0x2f && bits >> 27 == 3
}

fn is_lr(bits: u64) -> bool {
    bits & 0x7f == 0x2f && bits >> 27 == 2
}

/// Runs to the stop address or the first trap; `None` if it came to neither, or where no comparison is fair.
fn on_the_oracle(program: &Program, ram_len: u64) -> Option<Outcome> {
    let mut oracle = Oracle::with_program(program, ram_len);
    oracle.cpu.isa = Isa::parse("rv64imac_zifencei").expect("extensions that there are");
    let (mut trapped, mut reserved) = (false, None);
    while oracle.cpu.pc != program.stop && !trapped {
        if oracle.cpu.retired > program.max_insns {
            return None;
        }
        let pc = oracle.cpu.pc;
        let bits = oracle.ram.load(pc.wrapping_sub(program.base), 4).unwrap_or(0);
        let size = bits >> 12 & 7;
        if is_lr(bits) {
            reserved = Some(size);
        } else if is_sc(bits) && reserved.take().is_some_and(|reserved| reserved != size) {
            return None;
        }
        if let Step::Trap(trap) = oracle.step() {
            let fair = match trap.cause {
                ILLEGAL_INSTRUCTION => !unicorn_runs_it_anyway(trap.tval),
                // A store over the end of RAM: Unicorn has written the half that fits. The ISA allows both.
                STORE_ACCESS_FAULT if trap.tval == program.base + ram_len => false,
                // An SC without a reservation fails there before it looks at its address.
                STORE_MISALIGNED | STORE_ACCESS_FAULT => !is_sc(bits),
                _ => true,
            };
            if !fair {
                return None;
            }
            trapped = true;
        }
    }
    Some(Outcome { trapped, x: oracle.cpu.x.to_vec(), ram: oracle.memory() })
}

fn on_unicorn(program: &Program, ram_len: u64) -> Outcome {
    let mut uc = Unicorn::new(Arch::RISCV, Mode::RISCV64).expect("a hart");
    // Of its models this one has RV64IMAC, as the oracle here; others take floating point where the oracle traps.
    uc.ctl_set_cpu_model(Riscv64CpuModel::SIFIVE_E51 as i32).expect("a model");
    uc.mem_map(program.base, ram_len, Prot::ALL).expect("RAM");
    uc.mem_write(program.base, &program.bytes).expect("the image fits");
    let trapped = Rc::new(Cell::new(false));
    let seen = trapped.clone();
    uc.add_intr_hook(move |uc, _| {
        seen.set(true);
        uc.emu_stop().ok();
    })
    .expect("a hook");
    // An address nobody mapped ends the run with an error and not with an exception.
    if uc.emu_start(program.entry, program.stop, 0, 0).is_err() {
        trapped.set(true);
    }
    let x = (0..32).map(|n| uc.reg_read(RegisterRISCV::X0 as i32 + n).expect("a register")).collect();
    let ram = uc.mem_read_as_vec(program.base, ram_len as usize).expect("RAM");
    Outcome { trapped: trapped.get(), x, ram }
}

#[test]
fn unicorn_agrees_with_the_oracle_up_to_the_first_trap() {
    let programs: u64 = std::env::var("NOTDIRTY_PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let seed = 0x5eed_0000;
    let (mut compared, mut with_traps) = (0, 0);
    for seed in seed..seed + programs {
        let options = Options {
            smc: Smc::Never,
            csrs: false,
            modes: false,
            wild: false,
            floats: false,
            bits: false,
            traps: seed % 4 == 0,
            ..Options::default()
        };
        let program = Program::generate(seed, &options);
        let Some(ours) = on_the_oracle(&program, options.ram_len) else { continue };
        let theirs = on_unicorn(&program, options.ram_len);
        let listing = || program.listing();
        assert_eq!(ours.trapped, theirs.trapped, "seed {seed:#x}: only one trapped\n{}", listing());
        for (n, (ours, theirs)) in ours.x.iter().zip(&theirs.x).enumerate() {
            assert_eq!(ours, theirs, "seed {seed:#x}: x{n} is {ours:#x} here, {theirs:#x} there\n{}", listing());
        }
        if let Some(at) = ours.ram.iter().zip(&theirs.ram).position(|(ours, theirs)| ours != theirs) {
            let at = program.base + at as u64;
            panic!("seed {seed:#x}: RAM differs at {at:#x}\n{}", listing());
        }
        compared += 1;
        with_traps += u64::from(ours.trapped);
    }
    println!("{compared} of {programs} programs from seed {seed:#x} compared with Unicorn, {with_traps} up to a trap");
    assert!(compared > programs / 2, "most programs should end");
}
