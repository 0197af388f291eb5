//! Watch ranges and memory hooks: byte by byte, whatever accesses, by whatever engine and tier.

use dynasmrt::VecAssembler;
use dynasmrt::riscv::RiscvRelocation;
use notdirty::hooks::{HookSpec, Kinds, Watch};
use notdirty::{EngineKind, JitFlags, Machine, MachineExit, Privilege, RunLimits};
use notdirty_tcg::riscv::csr::mstatus;
use notdirty_tcg::testkit::Rng;
use std::sync::{Arc, Mutex};

const RAM: u64 = 0x8000_0000;
const DATA: u64 = RAM + 0x8ff0;
/// A gigapage onto RAM.
const VIRTUAL: u64 = 0x4000_0000;
const TABLE: u64 = RAM + 0x2_0000;

macro_rules! rv {
    ($ops:expr ; $($insn:tt)*) => {
        dynasmrt::dynasm!($ops ; .arch riscv64 ; .feature imafdzicsr ; $($insn)*)
    };
}

fn ways() -> Vec<(EngineKind, JitFlags)> {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let jits = [
        on,
        eager,
        JitFlags { samples: false, ..eager },
        JitFlags { flat_ram: false, ..eager },
        JitFlags { flat_addend: false, regions: false, ..eager },
    ];
    [(EngineKind::Interp, on)].into_iter().chain(jits.map(|flags| (EngineKind::Jit, flags))).collect()
}

/// Accesses of all kinds off a0, in a loop: offset, bytes, loads, stores.
type Access = (u64, u64, bool, bool);
const ACCESSES: [Access; 16] = [
    (0, 8, true, false),
    (8, 8, false, true),
    (13, 2, true, false), // misaligned
    (12, 8, false, true), // over the page's end, and misaligned
    (16, 4, true, false),
    (20, 1, false, true),
    (24, 8, true, true),
    (32, 4, true, true),
    (40, 8, true, false), // LR
    (40, 8, false, true), // SC
    (48, 8, true, false), // floats
    (56, 4, false, true),
    (0, 1, true, false), // three loads and more off one base share a check
    (1, 1, true, false),
    (2, 2, true, false),
    (4, 4, true, false),
];

fn program() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    rv!(ops
        ; ld a1, [a0]
        ; sd a1, [a0, 8]
        ; lhu a1, [a0, 13]
        ; sd a1, [a0, 12]
        ; lw a1, [a0, 16]
        ; sb a1, [a0, 20]
        ; addi a2, a0, 24
        ; amoadd.d a1, a2, [a2]
        ; addi a2, a0, 32
        ; amoor.w a1, a2, [a2]
        ; addi a2, a0, 40
        ; lr.d a1, [a2]
        ; sc.d a1, a2, [a2]
        ; fld f1, [a0, 48]
        ; fsw f1, [a0, 56]
        ; lbu a1, [a0]
        ; lbu a1, [a0, 1]
        ; lhu a1, [a0, 2]
        ; lw a1, [a0, 4]
        ; addi s0, s0, 1
        ; j -80
    );
    ops.finalize().unwrap()
}

/// Where each access is, in instructions from the start.
const PLACES: [u64; 16] = [0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 14, 15, 16, 17, 18];
const TURN: u64 = 21;

fn machine(engine: EngineKind, flags: JitFlags, paged: bool) -> Machine {
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
    machine.write(RAM, &program()).unwrap();
    machine.start_at(RAM).unwrap();
    let offset = if paged { VIRTUAL.wrapping_sub(RAM) } else { 0 };
    if paged {
        machine.write(TABLE + 8, &(RAM >> 2 | 0xcf).to_le_bytes()).unwrap();
    }
    let cpu = machine.cpu_mut();
    cpu.csr.mstatus |= mstatus::FS | mstatus::SD;
    cpu.x[10] = DATA.wrapping_add(offset);
    cpu.pc = RAM.wrapping_add(offset);
    if paged {
        cpu.csr.allow_all_memory();
        cpu.csr.satp = 8 << 60 | TABLE >> 12;
        cpu.privilege = Privilege::S;
    }
    machine
}

fn steps(machine: &mut Machine, n: u64) -> MachineExit {
    machine.run(&RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None })
}

fn overlaps((at, len, ..): Access, (from, to): (u64, u64)) -> bool {
    at < to && from < at + len
}

#[test]
fn each_access_to_a_watched_byte_ends_a_run_once_and_those_beside_it_do_not() {
    for (engine, flags) in ways() {
        for paged in [false, true] {
            let mut machine = machine(engine, flags, paged);
            let (base, code) = (machine.cpu().x[10], machine.cpu().pc);
            steps(&mut machine, 1000 * TURN);
            let mut rng = Rng::new(7);
            for round in 0..30 {
                let from = rng.below(64);
                let range = (from, (from + 1 + rng.below(9)).min(64));
                let kinds = [Kinds::Loads, Kinds::Stores, Kinds::All][rng.below(3) as usize];
                machine.watch(base + range.0..base + range.1, kinds, true);
                let start = machine.cpu().retired;
                let what = format!("{engine:?}, {flags:?}, paged {paged}, round {round}: {kinds:?} of {range:?}");
                let mut want = Vec::new();
                for turn in 0..3 {
                    for (access, place) in ACCESSES.into_iter().zip(PLACES) {
                        let hit = overlaps(access, range);
                        // Of what loads and stores, the load is told.
                        let store = access.3 && !(access.2 && kinds != Kinds::Stores);
                        if hit && (access.2 && kinds.has(false) || access.3 && kinds.has(true)) {
                            want.push((
                                start + turn * TURN + place,
                                code + 4 * place,
                                base + access.0,
                                access.1,
                                store,
                            ));
                        }
                    }
                }
                let mut met = Vec::new();
                loop {
                    let left = start + 3 * TURN - machine.cpu().retired;
                    match steps(&mut machine, left) {
                        MachineExit::Watch { hart: 0, pc, access } => {
                            assert!(access.why == Watch::Watch && machine.cpu().pc == pc, "{what}");
                            met.push((machine.cpu().retired, pc, access.addr, access.size.into(), access.store));
                        }
                        other => {
                            assert_eq!(other, MachineExit::InsnLimit, "{what}");
                            break;
                        }
                    }
                }
                assert_eq!(met, want, "{what}");
                machine.watch(base + range.0..base + range.1, kinds, false);
            }
            assert_eq!(steps(&mut machine, 100 * TURN), MachineExit::InsnLimit, "nothing is watched any more");
        }
    }
}

#[test]
fn memory_hooks_hear_each_access_with_its_value() {
    let mut first: Option<Vec<_>> = None;
    for (engine, flags) in ways() {
        for warm in [0, 2000] {
            let mut machine = machine(engine, flags, false);
            steps(&mut machine, warm * TURN);
            machine.write(DATA, &[3; 64]).unwrap();
            let heard = Arc::new(Mutex::new(Vec::new()));
            let tell = heard.clone();
            let hook = HookSpec::memory(DATA..DATA + 64, Kinds::All, move |access| {
                tell.lock().unwrap().push((access.pc, access.addr, access.size, access.value, access.store));
            });
            let hook = machine.add_hook(0, hook).unwrap();
            assert_eq!(steps(&mut machine, 5 * TURN), MachineExit::InsnLimit);
            let calls = heard.lock().unwrap().clone();
            assert_eq!(calls.len(), 5 * (ACCESSES.len() + 2), "{engine:?}, {flags:?}: an AMO is told twice");
            assert_eq!(
                calls[..2],
                [(RAM, DATA, 8, 0x0303_0303_0303_0303, false), (RAM + 4, DATA + 8, 8, 0x0303_0303_0303_0303, true),]
            );
            assert_eq!(first.get_or_insert_with(|| calls.clone()), &calls, "{engine:?}, {flags:?}, {warm}");
            machine.remove_hook(0, hook);
            steps(&mut machine, 5 * TURN);
            assert_eq!(heard.lock().unwrap().len(), calls.len());
        }
    }
}

#[test]
fn a_memory_hook_ends_the_run_behind_the_instruction() {
    for (engine, flags) in ways() {
        for (access, place) in ACCESSES.into_iter().zip(PLACES) {
            let mut machine = machine(engine, flags, false);
            steps(&mut machine, 50 * TURN);
            let kinds = if access.2 { Kinds::Loads } else { Kinds::Stores };
            // No other access is of these bytes in this way.
            let only = ACCESSES.iter().filter(|other| overlaps(**other, (access.0, access.0 + access.1)));
            let only = only.filter(|other| if access.2 { other.2 } else { other.3 }).count() == 1;
            let pc = RAM + 4 * place;
            let hook = HookSpec::memory(DATA + access.0..DATA + access.0 + access.1, kinds, move |told| {
                if told.pc == pc {
                    told.stop();
                }
            });
            let hook = machine.add_hook(0, hook).unwrap();
            for turn in 0..3 {
                let what = format!("{engine:?}, {flags:?}: {access:?}, alone {only}");
                let exit = steps(&mut machine, 10 * TURN);
                assert_eq!(exit, MachineExit::Hook { hart: 0, pc: pc + 4, hook }, "{what}");
                assert_eq!(machine.cpu().retired, (50 + turn) * TURN + place + 1, "{what}");
            }
        }
    }
}

#[test]
fn devices_are_watched_as_well() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags, false);
        // The uart's scratch register: sb a1, 7(a0); lbu a1, 7(a0); lbu a1, 5(a0); j .-12
        let code = [0x00b5_03a3u32, 0x0075_4583, 0x0055_4583, 0xff5f_f06f];
        machine.write(RAM, &code.map(u32::to_le_bytes).concat()).unwrap();
        machine.cpu_mut().x[10] = 0x1000_0000;
        steps(&mut machine, 4000);
        machine.watch(0x1000_0007..0x1000_0008, Kinds::Loads, true);
        for _ in 0..3 {
            let exit = steps(&mut machine, 1000);
            assert!(matches!(exit, MachineExit::Watch { pc, .. } if pc == RAM + 4), "{engine:?}, {flags:?}: {exit:?}");
        }
        machine.watch(0x1000_0007..0x1000_0008, Kinds::Loads, false);
        assert_eq!(steps(&mut machine, 4000), MachineExit::InsnLimit);
    }
}

#[test]
fn walks_of_page_tables_and_fetches_are_not_told() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags, true);
        machine.watch(TABLE..TABLE + 4096, Kinds::All, true);
        machine.watch(RAM..RAM + 4096, Kinds::All, true);
        machine.watch(VIRTUAL..VIRTUAL + 4096, Kinds::All, true);
        assert_eq!(steps(&mut machine, 200 * TURN), MachineExit::InsnLimit, "{engine:?}, {flags:?}");
    }
}

#[test]
fn what_is_watched_stays_so_when_a_page_is_tracked_and_restored() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags, false);
        steps(&mut machine, 100 * TURN);
        machine.watch(DATA + 8..DATA + 9, Kinds::Stores, true);
        let at = machine.checkpoint().unwrap();
        for round in 0..40 {
            let exit = steps(&mut machine, 1000);
            assert!(
                matches!(exit, MachineExit::Watch { pc, .. } if pc == RAM + 4),
                "{engine:?}, {flags:?}, {round}: {exit:?}"
            );
            // Beside it, often enough for the page to count as written whole.
            for _ in 0..round {
                steps(&mut machine, 1000);
            }
            machine.restore(&at).unwrap();
            machine.verify(&at).unwrap();
        }
    }
}
