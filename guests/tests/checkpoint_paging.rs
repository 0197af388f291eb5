//! Checkpoints under page tables: marks, mappings, roots and code are what they were, and what the hart had kept of them is, too.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};
use notdirty::{EngineKind, JitFlags, Machine, MachineExit, Privilege, RunLimits};

const RAM: u64 = 0x8000_0000;
const DATA: u64 = RAM + 0x8000;

macro_rules! code {
    (; $($insn:tt)*) => {{
        let mut ops = VecAssembler::<RiscvRelocation>::new(0);
        dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei ; $($insn)*);
        ops.finalize().unwrap()
    }};
}

/// The oracle, the JIT, and the JIT that translates at once.
fn ways() -> [(EngineKind, JitFlags); 3] {
    let on = JitFlags::default();
    [(EngineKind::Interp, on), (EngineKind::Jit, on), (EngineKind::Jit, JitFlags { tier0: false, ..on })]
}

fn machine((engine, flags): (EngineKind, JitFlags), code: &[u8]) -> Machine {
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
    machine.write(RAM, code).unwrap();
    machine.start_at(RAM).unwrap();
    machine
}

fn steps(machine: &mut Machine, n: u64) {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None };
    assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
}

fn word(machine: &Machine, at: u64) -> u64 {
    let mut word = [0; 8];
    machine.read(at, &mut word).unwrap();
    u64::from_le_bytes(word)
}

/// Tables of three levels for the first 2 MiB of `VIRTUAL`, page n onto frame n of RAM; root, middle, leaves in three pages from here on.
const TABLES: u64 = RAM + 0x1_0000;
const VIRTUAL: u64 = 0x4000_0000;
const LEAVES: u64 = TABLES + 0x2000;
const V: u64 = 1;
const RWX: u64 = 0xe;
const ACCESSED: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;

fn paged(way: (EngineKind, JitFlags), code: &[u8]) -> Machine {
    let mut machine = machine(way, code);
    machine.write(TABLES + 8, &((TABLES + 0x1000) >> 2 | V).to_le_bytes()).unwrap();
    machine.write(TABLES + 0x1000, &(LEAVES >> 2 | V).to_le_bytes()).unwrap();
    for page in 0..64u64 {
        machine.write(LEAVES + 8 * page, &((RAM >> 12 | page) << 10 | RWX | V).to_le_bytes()).unwrap();
    }
    let cpu = machine.cpu_mut();
    cpu.csr.allow_all_memory();
    // Svadu: the hart sets the marks.
    cpu.csr.menvcfg |= 1 << 61;
    (cpu.csr.satp, cpu.privilege) = (8 << 60 | TABLES >> 12, Privilege::S);
    (cpu.pc, cpu.x[18]) = (VIRTUAL, VIRTUAL + 0x8000);
    machine
}

#[test]
fn marks_of_page_tables_are_taken_back_and_set_again() {
    let code = code!(; ld t0, [s2] ; again: ; sd s0, [s2] ; addi s0, s0, 1 ; li.12 t1, 200 ; bne s0, t1, <again ; end: ; j <end);
    let marks = |machine: &Machine| word(machine, LEAVES + 8 * 8) & (ACCESSED | DIRTY);
    for way in ways() {
        let mut machine = paged(way, &code);
        let clean = machine.checkpoint().unwrap();
        steps(&mut machine, 1);
        assert_eq!(marks(&machine), ACCESSED, "{way:?}");
        let read = machine.checkpoint().unwrap();
        for round in 0..10 {
            steps(&mut machine, if round % 2 == 0 { 1 } else { 700 });
            assert_eq!(marks(&machine), ACCESSED | DIRTY, "{way:?}, round {round}");
            machine.restore(&read).unwrap();
            machine.verify(&read).unwrap();
            assert_eq!(marks(&machine), ACCESSED);
            if round % 3 == 0 {
                machine.restore(&clean).unwrap();
                assert_eq!(marks(&machine), 0);
                steps(&mut machine, 1);
                assert_eq!(marks(&machine), ACCESSED, "{way:?}, round {round}");
            }
        }
    }
}

#[test]
fn a_mapping_that_came_after_a_checkpoint_is_gone_after_a_restore() {
    // s3: its own leaf, through page 48 of the map; s4: another one. With a fence or without.
    for (fence, host) in [(true, false), (false, false), (true, true), (false, true)] {
        let code = match (fence, host) {
            (true, false) => {
                code!(; again: ; ld s0, [s2] ; sd s4, [s3] ; .u32 0x1200_0073 ; ld s1, [s2] ; sd s1, [s2, 8] ; j <again)
            }
            (false, false) => {
                code!(; again: ; ld s0, [s2] ; sd s4, [s3] ; nop ; ld s1, [s2] ; sd s1, [s2, 8] ; j <again)
            }
            // The guest writes nothing: what the host writes is all there is to tell of tables.
            (true, true) => code!(; again: ; ld s0, [s2] ; nop ; .u32 0x1200_0073 ; ld s1, [s2] ; nop ; j <again),
            // Nor does it fence, and it comes to the page later.
            (false, true) => code!(; nop ; again: ; ld s0, [s2] ; nop ; nop ; ld s1, [s2] ; j <again),
        };
        for way in ways() {
            let mut machine = paged(way, &code);
            // Page 18 of RAM holds the leaves: page 48 of the map shows it.
            machine.write(LEAVES + 8 * 48, &(LEAVES >> 2 | RWX | V).to_le_bytes()).unwrap();
            machine.write(DATA, &1u64.to_le_bytes()).unwrap();
            machine.write(DATA + 0x1000, &2u64.to_le_bytes()).unwrap();
            let other = ((DATA + 0x1000) >> 12) << 10 | RWX | V | ACCESSED | DIRTY;
            let cpu = machine.cpu_mut();
            (cpu.x[19], cpu.x[20]) = (VIRTUAL + 48 * 0x1000 + 8 * 8, other);
            steps(&mut machine, 1);
            let node = machine.checkpoint().unwrap();
            for round in 0..40 {
                if host {
                    machine.write(LEAVES + 8 * 8, &other.to_le_bytes()).unwrap();
                }
                steps(&mut machine, if round % 2 == 0 { 5 } else { 600 });
                if fence {
                    assert_eq!(machine.cpu().x[9], 2, "{way:?}, host {host}, round {round}");
                }
                machine.restore(&node).unwrap();
                machine.verify(&node).unwrap();
                // Back to the load: it sees the page from before.
                machine.cpu_mut().pc = VIRTUAL;
                steps(&mut machine, 2);
                assert_eq!(machine.cpu().x[8], 1, "{way:?}, fence {fence}, host {host}, round {round}");
                machine.restore(&node).unwrap();
            }
        }
    }
}

/// Where the tables put frame n of RAM for page n of `VIRTUAL`.
fn leaf(frame: u64) -> u64 {
    (RAM >> 12 | frame) << 10 | RWX | V | ACCESSED | DIRTY
}

#[test]
fn another_root_of_the_same_space_is_left_behind() {
    // s3: the other root, s5: the first one. A fence behind the switch, as the ISA asks for.
    let code = code!(; again: ; ld s0, [s2] ; csrw satp, s3 ; .u32 0x1200_0073 ; ld s1, [s2] ; csrw satp, s5 ; .u32 0x1200_0073 ; j <again);
    for way in ways() {
        let mut machine = paged(way, &code);
        let other = TABLES + 0x3000;
        for (at, entry) in [(8, (other + 0x1000) >> 2 | V), (0x1000, (other + 0x2000) >> 2 | V)] {
            machine.write(other + at, &entry.to_le_bytes()).unwrap();
        }
        for page in 0..64 {
            machine.write(LEAVES + 8 * page, &leaf(page).to_le_bytes()).unwrap();
            machine.write(other + 0x2000 + 8 * page, &leaf(if page == 8 { 9 } else { page }).to_le_bytes()).unwrap();
        }
        machine.write(DATA, &1u64.to_le_bytes()).unwrap();
        machine.write(DATA + 0x1000, &2u64.to_le_bytes()).unwrap();
        let cpu = machine.cpu_mut();
        (cpu.x[19], cpu.x[21]) = (8 << 60 | other >> 12, cpu.csr.satp);
        steps(&mut machine, 7 * 100);
        let node = machine.checkpoint().unwrap();
        for round in 0..20 {
            steps(&mut machine, if round % 2 == 0 { 4 } else { 7 * 100 + 4 });
            assert_eq!(machine.cpu().x[9], 2, "{way:?}");
            machine.restore(&node).unwrap();
            steps(&mut machine, 1);
            assert_eq!(machine.cpu().x[8], 1, "{way:?}, round {round}");
            machine.restore(&node).unwrap();
        }
    }
}

#[test]
fn code_that_was_mapped_after_a_checkpoint_is_not_run_after_a_restore() {
    // Calls page 32 of the map for ever; s4 not zero: s4 into the leaf at s3, and a fence.
    let code = code!(; again: ; jalr ra, s6, 0 ; slli t0, s0, 1 ; add s0, s0, t0 ; add s0, s0, a0 ; beqz s4, <again
        ; sd s4, [s3] ; .u32 0x1200_0073 ; li.12 s4, 0 ; j <again);
    for way in ways() {
        let mut machine = paged(way, &code);
        machine.write(LEAVES + 8 * 48, &(LEAVES >> 2 | RWX | V | ACCESSED | DIRTY).to_le_bytes()).unwrap();
        for page in 32..36u64 {
            machine.write(RAM + 0x1000 * page, &((page as u32) << 20 | 0x513).to_le_bytes()).unwrap();
            machine.write(RAM + 0x1000 * page + 4, &0x8067u32.to_le_bytes()).unwrap();
        }
        machine.cpu_mut().x[22] = VIRTUAL + 32 * 0x1000;
        steps(&mut machine, 6000);
        let node = machine.checkpoint().unwrap();
        let mut sums = Vec::new();
        for round in 0..12 {
            steps(&mut machine, 6000);
            sums.push(machine.cpu().x[8]);
            let cpu = machine.cpu_mut();
            (cpu.x[19], cpu.x[20]) = (VIRTUAL + 48 * 0x1000 + 8 * 32, leaf(33 + round % 3));
            steps(&mut machine, 6000 + round);
            machine.restore(&node).unwrap();
            machine.verify(&node).unwrap();
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{way:?}: {sums:x?}");
    }
}

#[test]
fn a_mapping_that_waits_for_its_fence_is_the_same_before_and_after() {
    let code = code!(; ld s0, [s2] ; sd s4, [s3] ; again: ; ld s1, [s2] ; slli t0, s5, 1 ; add s5, s5, t0 ; add s5, s5, s1 ; j <again);
    for way in ways() {
        let mut machine = paged(way, &code);
        machine.write(LEAVES + 8 * 48, &(LEAVES >> 2 | RWX | V | ACCESSED | DIRTY).to_le_bytes()).unwrap();
        machine.write(DATA, &1u64.to_le_bytes()).unwrap();
        machine.write(DATA + 0x1000, &2u64.to_le_bytes()).unwrap();
        let cpu = machine.cpu_mut();
        (cpu.x[19], cpu.x[20]) = (VIRTUAL + 48 * 0x1000 + 8 * 8, leaf(9));
        let _first = machine.checkpoint().unwrap();
        steps(&mut machine, 2);
        // The hart may see its own store to the table late.
        let node = machine.checkpoint().unwrap();
        let mut sums = Vec::new();
        for _ in 0..4 {
            steps(&mut machine, 500);
            sums.push(machine.cpu().x[21]);
            machine.restore(&node).unwrap();
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{way:?}: {sums:x?}");
    }
}
