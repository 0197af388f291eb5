//! Every instruction that has a fast form, at every kind of place, on every engine: what is fast ends as what is exact.
//!
//! One long program, generated here, does each access at each place and writes down what it got; the traps on its way
//! are counted by the handler, and their causes and addresses added up. The oracle is right.

mod common;

use common::*;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PageRange, RamBlockSpec, pin};
use notdirty_softmmu::{GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::riscv::csr::num;
use notdirty_tcg::{EngineKind, JitFlags, VcpuStats};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const HANDLER: u64 = RAM + 0x800;
/// Eight bytes in the middle of the program, on lines of its own code.
const INSIDE: u64 = RAM + 0x1010;
/// The places, for a program that goes through them.
const TABLE: u64 = RAM + 0x5_0000;
const DATA: u64 = RAM + 0x6_0000;
const LOG: u64 = RAM + 0x7_0000;
const LOG_END: u64 = RAM + 0xf_0000;
/// RAM that the flat addend does not reach, and the same RAM as [`DATA`] a second time.
const PLUGGED: u64 = 0x9000_0000;
const ALIAS: u64 = 0x9100_0000;
const ROM: u64 = 0x9200_0000;
const DEVICE: u64 = 0x20_0000;
const HOLE: u64 = 0x40_0000;

/// A word that remembers.
#[derive(Default)]
struct Word(AtomicU64);

impl MmioDevice for Word {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn write(&self, _: u64, _: MemSize, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

fn places() -> Vec<u64> {
    let bases = [DATA + 0x40, DATA + 0x1000, PLUGGED + 0x40, PLUGGED + 0x1000, ALIAS + 0x40, ROM + 0x40, INSIDE];
    let mut places = vec![DEVICE, DEVICE + 2, HOLE, DATA + 0x44];
    for base in bases {
        // Aligned, and at every distance before a page's end or a line's.
        places.push(base);
        places.extend((1..8).map(|n| base - n).filter(|_| base != INSIDE));
    }
    places.extend([INSIDE + 1, INSIDE + 4]);
    // Nothing is there, but what empty slots of the TLB look like.
    let last = 0u64.wrapping_sub(0x1000);
    places.extend((0..8).map(|n| last - n).chain([u64::MAX - 7, u64::MAX - 2]));
    places
}

/// What was loaded is written down; s1 is where.
fn note(asm: &mut Asm, register: u8) {
    asm.op(Op::Sd, 0, S1, register, 0).i(addi(S1, S1, 8));
}

fn far(asm: &mut Asm, rd: u8, value: u64) {
    // Of 32 bits, zero-extended, unless it is at the end of the address space.
    asm.word(rd, value as u32);
    if value as i32 as u64 == value {
        return;
    }
    asm.op(Op::Slli, rd, rd, 0, 32).op(Op::Srli, rd, rd, 0, 32);
}

/// Accesses at every place, with destinations in host registers, in memory, in nothing, and in the base.
fn program() -> Asm {
    let mut asm = Asm::at(RAM + 0x1000);
    asm.jump(RAM + 0x1020);
    while asm.here() < RAM + 0x1020 {
        asm.i(0);
    }
    far(&mut asm, S1, LOG);
    let mut n = 0u32;
    for &op in Op::ALL.iter().filter(|op| op.is_memory()) {
        for place in places() {
            n += 1;
            far(&mut asm, A0, place);
            let value = [A1, T0, ZERO][n as usize % 3];
            if value != ZERO {
                asm.word(value, 0x8765_4321u32.rotate_left(n).wrapping_add(n));
            }
            if matches!(op, Op::ScW | Op::ScD) {
                // Reserved, reserved otherwise, written in between by the same value and by another, or not at all.
                let same = if op == Op::ScW { Op::LrW } else { Op::LrD };
                let aligned = encode(Op::Andi, A2, A0, 0, -8);
                match n % 6 {
                    0 => {}
                    1 => drop(asm.i(aligned).op(if same == Op::LrW { Op::LrD } else { Op::LrW }, T1, A2, 0, 0)),
                    2 => drop(asm.i(aligned).op(same, T1, A2, 0, 3).op(Op::Sb, 0, A2, T1, 0)),
                    3 => drop(asm.i(aligned).op(same, T1, A2, 0, 1).i(addi(T1, T1, 1)).op(Op::Sb, 0, A2, T1, 0)),
                    _ => drop(asm.op(same, T1, A0, 0, n as i32 & 3)),
                }
            }
            let rd = if op.is_store() { ZERO } else { [A3, T2, ZERO, A0, value][n as usize % 5] };
            asm.op(op, rd, A0, value, if op.is_amo() { n as i32 & 3 } else { 0 });
            note(&mut asm, rd);
            note(&mut asm, ZERO);
            if n.is_multiple_of(7) {
                // Groups of accesses off one base, some misaligned.
                for imm in [0, 3, 8, 13] {
                    asm.op(Op::Lw, T2, A0, 0, imm).op(Op::Sw, 0, A0, T2, imm + 1);
                    note(&mut asm, T2);
                }
            }
        }
    }
    for csr in [num::MHARTID, num::MINSTRET, num::MCYCLE, num::INSTRET, num::CYCLE, num::MSCRATCH, num::TIME] {
        for rd in [A3, T2, ZERO] {
            asm.op(Op::Csrrs, rd, ZERO, 0, csr.into());
            // What the instruction clock says depends on where slices end.
            note(&mut asm, if csr == num::TIME { ZERO } else { rd });
        }
    }
    // Stopped counters, and written ones; then `x0` as the destination of writes.
    for bits in [1, 4, 5, 0] {
        asm.op(Op::Csrrwi, ZERO, bits, 0, num::MCOUNTINHIBIT.into());
        for csr in [num::MINSTRET, num::MCYCLE] {
            asm.op(Op::Csrrs, A3, ZERO, 0, csr.into());
            note(&mut asm, A3);
            asm.op(Op::Csrrw, ZERO, A1, 0, csr.into()).op(Op::Csrrs, T2, ZERO, 0, csr.into());
            note(&mut asm, T2);
        }
    }
    for csr in [num::MSCRATCH, num::MEPC, num::MCAUSE, num::MTVAL, num::MSTATUS, num::MIE] {
        asm.op(Op::Csrrw, ZERO, A1, 0, csr.into()).op(Op::Csrrsi, ZERO, 3, 0, csr.into());
        note(&mut asm, ZERO);
    }
    for fence in [0x0330_000fu32, 0x8330_000f, 0x8120_000f, 0x0000_100f] {
        asm.i(fence);
        note(&mut asm, ZERO);
    }
    asm.stop();
    assert!(asm.here() < DATA, "{:#x}", asm.here());
    asm
}

/// The same accesses, each kind by one instruction in a loop over all places, so that the instruction is emitted for what
/// it meets, and then meets the rest.
fn program_of_loops() -> Asm {
    let mut asm = Asm::at(RAM + 0x1000);
    asm.jump(RAM + 0x1020);
    while asm.here() < RAM + 0x1020 {
        asm.i(0);
    }
    far(&mut asm, S1, LOG);
    for (n, &op) in Op::ALL.iter().filter(|op| op.is_memory()).enumerate() {
        let value = [A1, T0, ZERO][n % 3];
        let rd = if op.is_store() { ZERO } else { [A3, T2, A0][n % 3] };
        far(&mut asm, S2, TABLE);
        far(&mut asm, S3, TABLE + 8 * places().len() as u64);
        let again = asm.here();
        asm.op(Op::Ld, A0, S2, 0, 0).op(Op::Add, A1, A1, A0, 0).op(Op::Xor, T0, T0, A1, 0);
        asm.op(op, rd, A0, value, 0);
        note(&mut asm, rd);
        asm.i(addi(S2, S2, 8));
        asm.op(Op::Bne, 0, S2, S3, (again as i64 - asm.here() as i64) as i32);
    }
    asm.stop();
    assert!(asm.here() < TABLE, "{:#x}", asm.here());
    asm
}

/// A program on one kind of engine, three times, so that its places are met cold and warm.
fn run(setup: &Setup, alone: bool, program: &Asm) -> (CpuState, Vec<u8>, VcpuStats) {
    let mut vm = Vm::with(setup);
    if alone {
        assert!(vm.space.vcpus().promise_one_writer());
    }
    let plugged = vm.list.add(RamBlockSpec::new("plugged", 0x3000)).unwrap();
    let rom = vm.list.add(RamBlockSpec::new("rom", 0x1000)).unwrap();
    vm.space.map_ram(GuestPhys::new(PLUGGED), &plugged, 0, 0x3000, 0).unwrap();
    vm.space.map_ram(GuestPhys::new(ALIAS), &vm.block, DATA - RAM, 0x1000, 0).unwrap();
    vm.space.map_rom(GuestPhys::new(ROM), &rom, 0, 0x1000, 0).unwrap();
    vm.space.map_mmio(GuestPhys::new(DEVICE), 8, Arc::new(Word::default()), 0).unwrap();
    for (at, len) in [(DATA - 0x1000, 0x3000), (PLUGGED, 0x3000), (ROM, 0x1000)] {
        let bytes: Vec<u8> = (0..len).map(|n: u32| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        vm.space.write(GuestPhys::new(at), &bytes).unwrap();
    }
    let csrrw = |rd, rs1, csr: u16| encode(Op::Csrrw, rd, rs1, 0, csr.into());
    // t5: cause and value of the trap are added to t3, and t4 counts; the instruction is skipped.
    let csrr = |rd, csr: u16| encode(Op::Csrrs, rd, ZERO, 0, csr.into());
    vm.put(
        HANDLER,
        &[
            csrr(T5, num::MCAUSE),
            encode(Op::Add, T3, T3, T5, 0),
            csrr(T5, num::MTVAL),
            encode(Op::Add, T3, T3, T5, 0),
            addi(T4, T4, 1),
            csrr(T5, num::MEPC),
            addi(T5, T5, 4),
            csrw_mepc(csrrw),
            encode(Op::Mret, 0, 0, 0, 0),
        ],
    );
    program.put(&vm);
    let table: Vec<u8> = places().iter().flat_map(|place| place.to_le_bytes()).collect();
    vm.space.write(GuestPhys::new(TABLE), &table).unwrap();
    for _ in 0..3 {
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr = Default::default();
        // What is written to mstatus may have stores done as those of U-mode.
        cpu.csr.allow_all_memory();
        // The floating-point unit is on.
        cpu.csr.mstatus |= 0x2000;
        cpu.csr.mtvec = HANDLER;
        vm.run(RAM + 0x1000);
        assert_eq!(vm.vcpu.cpu().x[0], 0);
    }
    let mut all = Vec::new();
    for (at, len) in [(RAM, LOG_END - RAM), (PLUGGED, 0x3000), (ROM, 0x1000)] {
        let mut bytes = vec![0; len as usize];
        vm.space.read(GuestPhys::new(at), &mut bytes).unwrap();
        all.extend(bytes);
    }
    (vm.vcpu.cpu().clone(), all, vm.vcpu.stats())
}

fn csrw_mepc(csrrw: impl Fn(u8, u8, u16) -> u32) -> u32 {
    csrrw(ZERO, T5, num::MEPC)
}

fn encode(op: Op, rd: u8, rs1: u8, rs2: u8, imm: i32) -> u32 {
    notdirty_tcg::testkit::encode(op, rd, rs1, rs2, imm)
}

#[test]
fn every_form_at_every_place_is_what_the_oracle_says() {
    for flags in same_everywhere(&program(), &[true, false]) {
        assert_eq!(flags.1.tb.odd, 0, "each place has an instruction of its own: {:?}", flags.0);
    }
}

#[test]
fn an_instruction_that_was_emitted_for_misaligned_accesses_is_right_at_every_place() {
    for (flags, stats) in same_everywhere(&program_of_loops(), &[false]) {
        // Integer and floating-point loads and stores of more than a byte.
        assert!(!flags.aligned || stats.tb.odd >= 12, "{} sites: {flags:?}", stats.tb.odd);
        assert!(flags.aligned || stats.tb.odd == 0, "{} sites: {flags:?}", stats.tb.odd);
    }
}

/// Runs a program on the oracle and with each switch off, with one writer or not, and says what the JIT counted.
fn same_everywhere(program: &Asm, alone: &[bool]) -> Vec<(JitFlags, VcpuStats)> {
    let (cpu, ram, _) = run(&Setup { engine: EngineKind::Interp, ..Setup::default() }, false, program);
    assert!(cpu.x[usize::from(T4)] > 300, "traps are part of it: {}", cpu.x[usize::from(T4)]);
    let mut setups = vec![eager(), JitFlags::default()];
    for name in JitFlags::NAMES {
        let mut flags = eager();
        assert!(flags.set(name, false));
        setups.push(flags);
    }
    let mut counted = Vec::new();
    for flags in setups {
        for &alone in alone {
            let (ours, memory, stats) = run(&Setup { flags, ..Setup::default() }, alone, program);
            counted.push((flags, stats));
            let what = format!("one writer: {alone}, {flags:?}");
            if let Some(at) = (0..ram.len()).find(|&at| memory[at] != ram[at]) {
                panic!("{what}: the byte at {:#x} is {:#x}, not {:#x}", RAM + at as u64, memory[at], ram[at]);
            }
            assert_eq!((ours.x, ours.pc, ours.retired), (cpu.x, cpu.pc, cpu.retired), "{what}");
            assert_eq!(ours.csr, cpu.csr, "{what}");
        }
    }
    counted
}

#[test]
fn an_amo_and_an_sc_in_line_are_heard_by_who_listens() {
    for op in [Op::AmoaddD, Op::ScD, Op::Sd] {
        let mut vm = Vm::new();
        let mut main = Asm::at(RAM);
        main.la(T0, DATA + 1 - u64::from(op != Op::Sd)).op(Op::LrD, T1, if op == Op::Sd { SP } else { T0 }, 0, 0);
        main.op(op, if op == Op::Sd { 0 } else { A0 }, T0, T1, 0).stop();
        main.put(&vm);
        vm.vcpu.cpu_mut().x[usize::from(SP)] = DATA;
        vm.run(RAM);
        let (page, guard) = (vm.page(DATA), pin());
        let listens = |vm: &Vm| vm.space.ram().dirty().test(page, DirtyClient::VGA, &guard);
        for _ in 0..3 {
            vm.space.ram().dirty().test_and_clear(page, DirtyClient::VGA, &guard);
            vm.space.ram().rearm(&[PageRange::of_page(page)], None).unwrap();
            assert!(!listens(&vm));
            vm.run(RAM);
            assert!(listens(&vm), "{op:?} is not heard");
        }
    }
}

#[test]
fn an_amo_over_code_kills_it_and_one_beside_it_does_not() {
    let mut vm = Vm::new();
    let f = RAM + 0x2000;
    for (place, dies) in [(f + 8, false), (f, true), (f - 8, false)] {
        vm.put(f, &[li(A0, 1), ret(), 0, 0]);
        vm.vcpu.serve();
        let mut main = Asm::at(RAM);
        // Adds one to the immediate of `li`, which is in the upper bits.
        main.call(f).la(T0, place).word(T1, 1 << 20).op(Op::AmoaddD, ZERO, T0, T1, 0).call(f).stop();
        main.put(&vm);
        vm.vcpu.serve();
        let before = vm.invalidated();
        vm.run(RAM);
        assert_eq!((vm.x(A0), vm.invalidated() - before), if dies { (2, 1) } else { (1, 0) }, "{place:#x}");
    }
}

#[test]
fn a_counter_in_the_line_of_its_own_loop_is_nobodys_business() {
    let mut vm = Vm::new();
    let (cell, rounds) = (RAM + 0x30, 1000);
    let mut main = Asm::at(RAM);
    main.la(T0, cell).i(li(T1, rounds));
    let again = main.here();
    main.op(Op::Ld, T2, T0, 0, 0).i(addi(T2, T2, 1)).op(Op::Sd, 0, T0, T2, 0).i(addi(T1, T1, -1));
    let back = again.wrapping_sub(main.here()) as i32;
    main.op(Op::Bne, 0, T1, ZERO, back).stop();
    assert!(main.here() <= cell && cell & !63 == again & !63);
    main.put(&vm);
    vm.run(RAM);
    let before = vm.vcpu.stats();
    vm.run(RAM);
    let stats = vm.vcpu.stats();
    assert_eq!(vm.x(T2), 2 * rounds as u64);
    assert_eq!(stats.tbs_invalidated, 0);
    let rust = stats.tlb.code_page + stats.tlb.code_hit - before.tlb.code_page - before.tlb.code_hit;
    // Rust looks at one now and then, and learns nothing.
    assert!(rust <= 4, "{rust} of {rounds} stores");
}

#[test]
fn data_where_code_has_been_is_stored_to_in_peace_after_one_look() {
    let mut vm = Vm::new();
    // Two functions on one line: the second dies for good, and its bytes are data from then on.
    let (f, g) = (RAM + 0x2000, RAM + 0x2020);
    vm.put(f, &[li(A0, 1), ret()]);
    vm.put(g, &[li(A1, 2), ret()]);
    let mut main = Asm::at(RAM);
    main.call(f).call(g).la(T0, g).stop();
    let stores = main.here();
    main.op(Op::Sd, 0, T0, ZERO, 0).call(f).op(Op::Sd, 0, T0, RA, 0).stop();
    main.put(&vm);
    vm.run(RAM);
    let invalidated = vm.invalidated();
    vm.run(stores);
    assert_eq!(vm.invalidated() - invalidated, 1);
    let before = vm.vcpu.stats().tlb.code_hit;
    for _ in 0..5 {
        vm.run(stores);
    }
    assert_eq!(vm.vcpu.stats().tlb.code_hit, before, "stores to what was code once");
    // And when it is code again it is heard again.
    vm.put(g, &[li(A1, 3), ret()]);
    vm.run(RAM);
    assert_eq!(vm.x(A1), 3);
    let invalidated = vm.invalidated();
    vm.run(stores);
    assert_eq!(vm.invalidated() - invalidated, 1);
}
