//! A crash of each kind is told with its first trap, on one hart and on two, by both engines.
//!
//! `NOTDIRTY_BLESS=1` writes the golden file anew.

mod common;

use common::Elf;
use notdirty::programs::crash::{Crash, crash};
use notdirty::{CpuState, EngineKind, Machine, MachineExit, Privilege, Program, RAM_BASE, RunLimits};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the guest keeps, and its file says, of its frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frames {
    Pointers,
    Nothing,
    EhFrame,
    DebugFrame,
}

impl Frames {
    const ALL: [(Frames, &str); 4] = [
        (Frames::Pointers, "frame pointers"),
        (Frames::Nothing, "no frame pointers"),
        (Frames::EhFrame, "no frame pointers, .eh_frame"),
        (Frames::DebugFrame, "no frame pointers, .debug_frame"),
    ];
}

/// Where `.eh_frame` says that it is.
const EH_FRAME: u64 = 0x8010_0000;

/// The section for functions that begin with `addi sp, sp, -32` and `sd ra, 24(sp)`, and for one without a caller.
fn frame_section(eh: bool, symbols: &[(&'static str, u64, u64)]) -> Vec<u8> {
    let address = |name: &str| symbols.iter().find(|symbol| symbol.0 == name).expect("a symbol").1;
    let mut out = Vec::new();
    let entry = |out: &mut Vec<u8>, mut body: Vec<u8>| {
        // DW_CFA_nop
        body.resize(body.len().next_multiple_of(8) + 4, 0);
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(body);
    };
    // Version 1; augmentation "zR" (pointers are relative, of 4 bytes) or none; factors 1 and -8; ra is the return
    // address; DW_CFA_def_cfa sp, 0.
    let id = if eh { 0u32 } else { !0 };
    let augmentation: &[u8] = if eh { b"zR\0\x01\x78\x01\x01\x1b" } else { b"\0\x01\x78\x01" };
    entry(&mut out, [&id.to_le_bytes()[..], &[1], augmentation, &[0x0c, 2, 0]].concat());
    // DW_CFA_advance_loc 4, DW_CFA_def_cfa_offset 32, DW_CFA_offset ra at CFA - 8; DW_CFA_undefined ra.
    let framed: &[u8] = &[0x44, 0x0e, 32, 0x81, 1];
    for (name, next, undo) in [("main", "inner", framed), ("inner", "handler", framed), ("_start", "main", &[0x07, 1])]
    {
        let (start, len) = (address(name), address(next) - address(name));
        let cie = if eh { out.len() as u32 + 4 } else { 0 };
        let mut body = cie.to_le_bytes().to_vec();
        if eh {
            let place = EH_FRAME + out.len() as u64 + 8;
            body.extend((start.wrapping_sub(place) as u32).to_le_bytes());
            body.extend((len as u32).to_le_bytes());
            body.push(0);
        } else {
            body.extend(start.to_le_bytes());
            body.extend(len.to_le_bytes());
        }
        body.extend(undo);
        entry(&mut out, body);
    }
    out
}

fn elf(how: Crash, hart: i32, frames: Frames) -> Elf {
    let (image, symbols) = crash(how, hart, frames == Frames::Pointers);
    let mut elf = Elf::new(image.load_addr, image.bytes);
    elf.section = match frames {
        Frames::Pointers | Frames::Nothing => None,
        Frames::EhFrame => Some((".eh_frame", EH_FRAME, frame_section(true, &symbols))),
        Frames::DebugFrame => Some((".debug_frame", 0, frame_section(false, &symbols))),
    };
    elf.symbols = symbols;
    elf
}

fn machine(elf: Vec<u8>, harts: usize, engine: EngineKind) -> Machine {
    let program = Program::ElfBytes("crash.elf".into(), elf);
    Machine::builder().ram_size(4 << 20).harts(harts).engine(engine).program(program).build().expect("a machine")
}

fn report(how: Crash, harts: usize, frames: Frames, engine: EngineKind) -> String {
    let mut machine = machine(elf(how, harts as i32 - 1, frames).bytes(), harts, engine);
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
    let crashed = match machine.run(&limits) {
        MachineExit::Unhandled(crashed) => crashed,
        exit => panic!("{how:?} on {harts} harts by {engine:?}: {exit:?}"),
    };
    assert_eq!(crashed.hart, harts - 1);
    machine.crash_report(crashed.hart).expect("a report")
}

#[test]
fn each_kind_of_crash_is_told_by_its_first_trap() {
    let mut all = String::new();
    for harts in [1, 2] {
        for how in Crash::ALL {
            for (frames, name) in Frames::ALL {
                let text = report(how, harts, frames, EngineKind::Jit);
                all += &format!("--- {how:?}, harts: {harts}, {name}\n{text}");
                let oracle = report(how, harts, frames, EngineKind::Interp);
                assert_eq!(text, oracle, "{how:?} on {harts} harts: JIT, then oracle");
            }
        }
    }
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/crashes.txt");
    if std::env::var_os("NOTDIRTY_BLESS").is_some() {
        std::fs::write(&golden, &all).expect("the golden file");
    }
    let want = std::fs::read_to_string(&golden).expect("the golden file");
    let differs = all.lines().zip(want.lines()).find(|(ours, theirs)| ours != theirs);
    assert!(all == want, "first difference: {differs:?}");
}

#[test]
fn compiled_code_without_frame_pointers_is_unwound_by_either_section() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("programs/build/crash");
    for section in ["eh_frame", "debug_frame"] {
        let file = dir.join(section).with_extension("elf");
        let Ok(elf) = std::fs::read(&file) else {
            println!("SKIPPED {}: not there (make guests needs a cross compiler)", file.display());
            continue;
        };
        for engine in [EngineKind::Jit, EngineKind::Interp] {
            let mut machine = machine(elf.clone(), 1, engine);
            let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
            assert!(matches!(machine.run(&limits), MachineExit::Unhandled(_)), "{section}");
            let report = machine.crash_report(0).expect("a report");
            let (_, callers) = report.split_once("called from, by DWARF:\n").expect(&report);
            let names = callers.lines().map_while(|line| Some(line.split_once('<')?.1.split(['+', '>']).next()));
            let names: Vec<&str> = names.map(|name| name.expect("a name")).collect();
            assert_eq!(names, ["outer", "changing", "twice", "twice", "twice", "twice", "main", "_start"], "{report}");
            assert!(report.contains("<leaf"), "{report}");
        }
    }
}

#[test]
fn tables_of_frames_with_any_byte_spoiled_are_read_to_the_end() {
    for (frames, eh) in [(Frames::EhFrame, true), (Frames::DebugFrame, false)] {
        let mut elf = elf(Crash::Load, 0, frames);
        let good = frame_section(eh, &elf.symbols);
        let symbols = elf.symbols.clone();
        let inner = symbols.iter().find(|symbol| symbol.0 == "inner").expect("a symbol").1;
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                elf.section = elf.section.map(|(name, address, _)| (name, address, bytes));
                let machine = machine(elf.bytes(), 1, EngineKind::Interp);
                let mut x = [0; 32];
                (x[1], x[2]) = (inner, 0x8000_1000);
                for pc in [inner, inner + 4, inner + 12] {
                    assert!(machine.callers((0, Privilege::M), pc, &x).1.len() <= 32);
                }
            }
        }
    }
}

#[test]
fn a_hart_that_crashes_beside_one_that_goes_on_is_told_at_the_deadline() {
    // Hart 1 crashes at once; hart 0 spins.
    let mut machine = machine(elf(Crash::Load, 1, Frames::Pointers).bytes(), 2, EngineKind::Jit);
    // An idle loop in place of wfi.
    let wfi = (0..0x40).step_by(2).map(|at| machine.ram_range().start + at);
    let mut word = [0; 4];
    let at = wfi.into_iter().find(|&at| machine.read(at, &mut word).is_ok() && word == 0x1050_0073u32.to_le_bytes());
    machine.write(at.expect("the wfi"), &0x0000_006fu32.to_le_bytes()).expect("RAM");
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_millis(300)) };
    assert_eq!(machine.run(&limits), MachineExit::Deadline);
    let crashed = machine.crashed().expect("hart 1");
    assert_eq!(crashed.hart, 1);
    let places = machine.places();
    assert!(places.contains("hart 0: pc 0x800000") && places.contains("in a loop of one instruction"), "{places}");
    assert!(places.lines().nth(1).is_some_and(|line| line.contains("stuck in its trap handler")), "{places}");
}

#[test]
fn callers_are_looked_for_wherever_the_stack_and_frame_pointers_point() {
    let machine = machine(elf(Crash::Load, 0, Frames::EhFrame).bytes(), 1, EngineKind::Interp);
    let ram = machine.ram_range();
    let hostile: Vec<u64> = [0, ram.start, ram.end, 1 << 63, 0x1000_0000]
        .into_iter()
        .flat_map(|at: u64| (0..=17).flat_map(move |n| [at.wrapping_sub(n), at.wrapping_add(n)]))
        .collect();
    for &sp in &hostile {
        for &fp in &hostile {
            let mut x = [0; 32];
            (x[1], x[2], x[8]) = (fp, sp, fp);
            let (_, callers) = machine.callers((0, Privilege::M), sp, &x);
            assert!(callers.len() <= 32, "sp {sp:#x}, fp {fp:#x}");
        }
    }
}

/// A machine whose hart 0 runs these words from the start of RAM.
fn running(words: &[u32]) -> Machine {
    let mut machine = Machine::builder().ram_size(1 << 20).build().expect("a machine");
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.write(notdirty::RAM_BASE, &bytes).expect("RAM is there");
    machine
}

/// Goes on in U-mode with what follows.
const TO_U_MODE: [u32; 7] = [
    0x0000_22b7,
    0x8002_829b, // li t0, 0x1800
    0x3002_b073, // csrc mstatus, t0
    0x0000_0297,
    0x0102_8293, // la t0, behind
    0x3412_9073, // csrw mepc, t0
    0x3020_0073, // mret
];

#[test]
fn a_trap_that_is_delegated_is_told_with_its_modes_and_the_handler_of_s_mode() {
    // medeleg = -1; stvec = 0x40; to U-mode, behind the mret; a load from 0.
    let delegate = [
        0xfff0_0293,
        0x3022_9073, // li t0, -1; csrw medeleg, t0
        0x0400_0293,
        0x1052_9073, // li t0, 64; csrw stvec, t0
    ];
    // ld a0, 0(zero)
    let mut machine = running(&[&delegate[..], &TO_U_MODE, &[0x0000_3503]].concat());
    machine.start_at(notdirty::RAM_BASE).expect("RAM");
    machine.cpu_mut().csr.allow_all_memory();
    let exit = machine.run(&RunLimits { max_insns: Some(100_000), deadline: None });
    let MachineExit::Unhandled(crash) = exit else { panic!("{exit:?}") };
    assert_eq!((crash.vector, crash.first.trap.cause), (64, 5));
    let report = machine.crash_report(0).expect("a report");
    assert!(report.contains("load access fault (scause 5), stval 0x0, at pc 0x8000002c in U-mode"), "{report}");
    assert!(report.contains("its trap handler at 0x40 (stvec) is not RAM: instruction access fault"), "{report}");
    assert!(report.contains("hart 0: pc 0x40 in S-mode, stuck in its trap handler"), "{report}");
    assert!(report.contains("\n  satp 0000000000000000 (addresses are physical)\n"), "{report}");
}

#[test]
fn a_hart_below_m_mode_does_not_spin_in_vain_while_m_mode_has_an_interrupt_enabled() {
    for (enabled, spins) in [(0x80, false), (0, true)] {
        // mie; to U-mode; j .
        // li t0, enabled; csrw mie, t0
        let enable = [0x0000_0293 | enabled << 20, 0x3042_9073];
        // j .
        let mut machine = running(&[&enable[..], &TO_U_MODE, &[0x0000_006f]].concat());
        machine.start_at(notdirty::RAM_BASE).expect("RAM");
        machine.cpu_mut().csr.allow_all_memory();
        assert_eq!(machine.run(&RunLimits { max_insns: Some(10_000), deadline: None }), MachineExit::InsnLimit);
        assert_eq!(machine.spins(0), spins, "{}", machine.places());
        assert!(machine.places().contains("in U-mode"), "{}", machine.places());
    }
}

/// A kernel at the top of the address space: its text and its stack are frames in no order, and their own addresses are in no RAM.
mod paged {
    use super::*;
    use notdirty_tcg::riscv::csr::{CsrEffect, csr_write, num};

    const TEXT: u64 = 0xffff_ffff_c000_0000;
    const STACK: u64 = TEXT + 0x10_0000;
    const TABLES: u64 = RAM_BASE + 0x1_0000;
    const TEXT_FRAMES: [u64; 2] = [RAM_BASE + 0x5000, RAM_BASE + 0x3000];
    const STACK_FRAMES: [u64; 2] = [RAM_BASE + 0x9000, RAM_BASE + 0x7000];
    /// `inner` is called by `middle` on the first page, and that by `outer` on the second.
    const INNER: u64 = TEXT + 0x10;
    const IN_MIDDLE: u64 = TEXT + 0x104;
    const IN_OUTER: u64 = TEXT + 0x1008;

    fn write(machine: &mut Machine, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        machine.write(at, &bytes).expect("RAM");
    }

    /// Before `inner`, which loads from `s1`, in S-mode. Frames lie over the border of the stack's pages.
    fn machine(fp: bool) -> Machine {
        let mut machine = Machine::builder().ram_size(1 << 20).build().expect("a machine");
        let m = &mut machine;
        let table = |at: u64| at >> 2 | 1;
        let page = |at: u64, rights: u64| at >> 2 | rights | 0xc1;
        write(m, TABLES + 511 * 8, &[table(TABLES + 0x1000)]);
        write(m, TABLES + 0x1000, &[table(TABLES + 0x2000)]);
        write(m, TABLES + 0x2000, &TEXT_FRAMES.map(|at| page(at, 0xa)));
        write(m, TABLES + 0x2000 + 256 * 8, &STACK_FRAMES.map(|at| page(at, 6)));
        // ld a0, 0(s1); jal ra before each return address.
        m.write(TEXT_FRAMES[0] + 0x10, &0x0004_b503u32.to_le_bytes()).expect("RAM");
        m.write(TEXT_FRAMES[0] + 0x100, &0x0100_00efu32.to_le_bytes()).expect("RAM");
        m.write(TEXT_FRAMES[1] + 4, &0x0100_00efu32.to_le_bytes()).expect("RAM");
        // The frame of middle ends on the first page, that of outer on the second: saved fp, then ra, below each.
        let (first, second) = (STACK + 0x1000, STACK + 0x1020);
        write(m, STACK_FRAMES[0] + 0xff0, &[second, IN_MIDDLE]);
        write(m, STACK_FRAMES[1] + 0x10, &[0, IN_OUTER]);
        m.start_at(RAM_BASE).expect("RAM");
        let cpu: &mut CpuState = m.cpu_mut();
        cpu.csr.allow_all_memory();
        (cpu.privilege, cpu.pc, cpu.csr.satp) = (Privilege::S, INNER, 8 << 60 | TABLES >> 12);
        (cpu.csr.medeleg, cpu.csr.stvec) = (0xb1ff, TEXT + 0x20_0000);
        (cpu.x[1], cpu.x[2], cpu.x[8]) = (IN_MIDDLE, first - 0x10, if fp { first } else { 0 });
        cpu.x[9] = 0x10;
        machine
    }

    fn report(machine: &mut Machine) -> String {
        let exit = machine.run(&RunLimits { max_insns: Some(100_000), deadline: None });
        assert!(matches!(exit, MachineExit::Unhandled(_)), "{exit:?}");
        machine.crash_report(0).expect("a report")
    }

    fn callers(report: &str) -> Vec<String> {
        let Some((_, callers)) = report.split_once("called from, ") else { return Vec::new() };
        let lines = callers.lines().skip(1).map_while(|line| line.trim().strip_prefix("pc "));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn callers_are_found_through_the_page_tables_of_the_trapped_hart() {
        for (fp, how) in [(true, "frame pointers"), (false, "what looks like return addresses")] {
            let mut machine = machine(fp);
            let before = machine.stats().tlb;
            let mut ram = vec![0; 1 << 20];
            machine.read(RAM_BASE, &mut ram).expect("RAM");
            let report = report(&mut machine);
            assert!(report.contains(&format!("stval 0x10, at pc {INNER:#x} in S-mode")), "{report}");
            let handler =
                format!("its trap handler at {:#x} (stvec) is not mapped: instruction page fault", TEXT + 0x20_0000);
            assert!(report.contains(&handler), "{report}");
            assert!(report.contains(&format!("called from, by {how}")), "{report}");
            assert_eq!(callers(&report), [format!("{IN_MIDDLE:#x}"), format!("{IN_OUTER:#x}")], "{report}");
            assert!(!report.contains("the stack at"), "{report}");
            let satp = format!("  satp {:016x} (Sv39, ASID 0, root at {TABLES:#x})\n", 8 << 60 | TABLES >> 12);
            assert!(report.contains(&satp), "{report}");
            // Looked up, and nothing else: no entry, no mark.
            let after = machine.stats().tlb;
            let looked = machine.crash_report(0);
            assert_eq!(looked.as_deref(), Some(&*report));
            assert_eq!(machine.stats().tlb, after);
            assert!(after.load_miss <= before.load_miss + 4, "{after:?}");
            let mut now = vec![0; 1 << 20];
            machine.read(RAM_BASE, &mut now).expect("RAM");
            assert!(now == ram, "RAM is as it was");
        }
    }

    #[test]
    fn a_stack_that_is_not_mapped_or_not_for_this_mode_is_told() {
        // Nothing is there; a physical address is none here; PMP refuses the page; the pages are those of S-mode.
        for (sp, mode, protect, told) in [
            (STACK + 0x5000, Privilege::S, false, "not mapped in S-mode"),
            (STACK_FRAMES[0], Privilege::S, false, "not mapped in S-mode"),
            (STACK, Privilege::S, true, "refused by PMP, or has no page table in S-mode"),
            (STACK, Privilege::U, false, "not mapped in U-mode"),
        ] {
            let mut machine = machine(true);
            if mode == Privilege::U {
                // Its text is for U-mode.
                write(&mut machine, TABLES + 0x2000, &TEXT_FRAMES.map(|at| at >> 2 | 0xdb));
            }
            let cpu = machine.cpu_mut();
            (cpu.x[2], cpu.x[8], cpu.privilege) = (sp, sp + 0x20, mode);
            if protect {
                for (csr, value) in
                    [(num::PMPADDR0, STACK_FRAMES[0] >> 2 | 0x1ff), (num::PMPADDR0 + 1, !0), (num::PMPCFG0, 0x1f18)]
                {
                    let mode = std::mem::replace(&mut cpu.privilege, Privilege::M);
                    let _: CsrEffect = csr_write(cpu, csr, value).expect("M-mode may");
                    cpu.privilege = mode;
                }
            }
            let report = report(&mut machine);
            assert!(report.contains(&format!("  the stack at {sp:#x} is {told}\n")), "{report}");
            // The register is still right, if code is there.
            let of_ra = if mode == Privilege::S { vec![format!("{IN_MIDDLE:#x}")] } else { callers(&report) };
            assert_eq!(callers(&report), of_ra, "{report}");
        }
    }

    #[test]
    fn a_loop_of_one_instruction_is_looked_for_where_the_code_is_mapped() {
        let mut machine = machine(true);
        // j .
        machine.write(TEXT_FRAMES[0] + 0x10, &0x0000_006fu32.to_le_bytes()).expect("RAM");
        assert_eq!(machine.run(&RunLimits { max_insns: Some(1000), deadline: None }), MachineExit::InsnLimit);
        assert!(machine.spins(0), "{}", machine.places());
    }
}
