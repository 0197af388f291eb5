//! Pages that are seen at their physical addresses: code made for such a map has the addend of flat RAM for a constant, and is not run
//! any more once most pages are elsewhere.
//!
//! ```text
//!   page n ─▶ frame n, where it is seen      ─▶ frame 64 + n      ─▶ frame 96 + n      ─▶ …      all is fenced between, or each page
//! ```

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, JitFlags};

const CODE: u64 = RAM + 0x1000;
/// S-mode's `ecall` goes to M-mode, which stops.
const HANDLER: u64 = RAM + 0x800;
const TABLES: u64 = RAM + 0x4_0000;
const LEAVES: u64 = TABLES + 0x2000;
const FRAMES: u64 = RAM + 0x8_0000;
const PAGES: u64 = 32;
/// Where the pages are in each phase, in pages from where they are seen: long enough there, and elsewhere, for most to have been so.
const SHIFTS: [u64; 26] =
    [0, 64, 96, 64, 96, 64, 96, 64, 96, 64, 96, 64, 96, 64, 96, 64, 96, 64, 96, 64, 0, 0, 96, 0, 64, 64];
/// For each phase what changes in the entries behind it, and the function of the next: that of the first has learned nothing when most are elsewhere.
const PLAN: u64 = RAM + 0x3_0000;
const FUNCTIONS: [u64; 2] = [RAM + 0x2000, RAM + 0x3000];
const ROUNDS: u64 = 30;

/// All of RAM, page by page, where it lies, for S-mode.
fn flat(setup: &Setup) -> Vm {
    let mut vm = Vm::with(setup);
    let write = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
    write(TABLES + 2 * 8, (TABLES + 0x1000) >> 2 | 1);
    write(TABLES + 0x1000, LEAVES >> 2 | 1);
    for page in 0..512 {
        write(LEAVES + page * 8, (RAM + (page << 12)) >> 2 | 0xcf);
    }
    for page in 0..PAGES {
        write(FRAMES + (page << 12), 1);
        write(FRAMES + (64 << 12) + (page << 12), 1000);
        write(FRAMES + (96 << 12) + (page << 12), 1_000_000);
    }
    for (n, shift) in (0..).zip(SHIFTS) {
        let next = SHIFTS.get(n as usize + 1).copied().unwrap_or(0);
        write(PLAN + 16 * n, (shift ^ next) << 10);
        write(PLAN + 16 * n + 8, FUNCTIONS[usize::from((0..11).contains(&n))]);
    }
    let mut end = Asm::at(HANDLER);
    end.stop().put(&vm);
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    (cpu.csr.mtvec, cpu.csr.satp, cpu.privilege) = (HANDLER, 8 << 60 | TABLES >> 12, Privilege::S);
    vm
}

fn back(asm: &Asm, to: u64) -> i32 {
    (to as i64 - asm.here() as i64) as i32
}

/// A function that adds up the first words of all pages, and adds one to the second of each.
fn visit(at: u64) -> Asm {
    let mut asm = Asm::at(at);
    asm.i(addi(T1, S1, 0)).i(li(T2, PAGES as i32));
    let page = asm.here();
    asm.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, A0, A0, A1, 0);
    asm.op(Op::Ld, A2, T1, 0, 8).i(addi(A2, A2, 1)).op(Op::Sd, 0, T1, A2, 8);
    asm.op(Op::Add, T1, T1, S2, 0).i(addi(T2, T2, -1));
    let to_page = back(&asm, page);
    asm.op(Op::Bne, 0, T2, ZERO, to_page).i(ret());
    asm
}

/// Calls the phase's function, then maps the pages to other frames, with one fence for `all` or one for each.
fn program(all: bool) -> Asm {
    let mut asm = Asm::at(CODE);
    asm.i(li(A0, 0)).i(li(S0, SHIFTS.len() as i32)).la(S1, FRAMES).word(S2, 0x1000).la(S4, PLAN);
    asm.la(S3, LEAVES + (FRAMES - RAM) / 4096 * 8).la(A4, FUNCTIONS[0]);
    let phase = asm.here();
    asm.i(li(S5, ROUNDS as i32));
    let round = asm.here();
    asm.op(Op::Jalr, RA, A4, 0, 0).i(addi(S5, S5, -1));
    let to_round = back(&asm, round);
    asm.op(Op::Bne, 0, S5, ZERO, to_round).i(addi(T0, S3, 0)).i(addi(T1, S1, 0)).i(li(T2, PAGES as i32));
    asm.op(Op::Ld, A3, S4, 0, 0).op(Op::Ld, A4, S4, 0, 8).i(addi(S4, S4, 16));
    let entry = asm.here();
    asm.op(Op::Ld, A1, T0, 0, 0).op(Op::Xor, A1, A1, A3, 0).op(Op::Sd, 0, T0, A1, 0).i(addi(T0, T0, 8));
    if !all {
        asm.op(Op::SfenceVma, 0, T1, ZERO, 0);
    }
    asm.op(Op::Add, T1, T1, S2, 0).i(addi(T2, T2, -1));
    let to_entry = back(&asm, entry);
    asm.op(Op::Bne, 0, T2, ZERO, to_entry);
    if all {
        asm.op(Op::SfenceVma, 0, ZERO, ZERO, 0);
    }
    asm.i(addi(S0, S0, -1));
    let to_phase = back(&asm, phase);
    asm.op(Op::Bne, 0, S0, ZERO, to_phase).i(encode(Op::Ecall, 0, 0, 0, 0));
    asm
}

#[test]
fn pages_that_go_elsewhere_are_found_there_by_code_that_was_made_for_where_they_were() {
    let engines = [
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }),
        ("translated", Setup::default()),
        ("entries only", Setup { flags: JitFlags { whole: false, ..eager() }, ..Setup::default() }),
        ("none is flat", Setup { flags: JitFlags { flat_ram: false, ..eager() }, ..Setup::default() }),
    ];
    for (name, setup) in &engines {
        for all in [true, false] {
            let mut vm = flat(setup);
            program(all).put(&vm);
            FUNCTIONS.iter().for_each(|&at| visit(at).put(&vm));
            vm.run(CODE);
            let phases = |pages: u64| SHIFTS.iter().filter(|&&shift| shift == pages).count() as u64;
            let sum = phases(0) + phases(64) * 1000 + phases(96) * 1_000_000;
            assert_eq!(vm.x(A0), ROUNDS * PAGES * sum, "{name}, all {all}");
            for (shift, page) in [0, 64, 96].iter().flat_map(|shift| (0..PAGES).map(move |page| (shift, page))) {
                let mut stores = [0; 8];
                vm.space.read(GuestPhys::new(FRAMES + ((shift + page) << 12) + 8), &mut stores).unwrap();
                assert_eq!(u64::from_le_bytes(stores), phases(*shift) * ROUNDS, "{name}, all {all}, {shift} {page}");
            }
        }
    }
}

/// A function whose two loads are in TBs of their own, of the first page.
fn in_halves() -> Asm {
    let mut asm = Asm::at(FUNCTIONS[0]);
    asm.op(Op::Ld, A1, S1, 0, 0).op(Op::Add, A0, A0, A1, 0).i(encode(Op::Bne, 0, S1, ZERO, 8)).i(ret());
    asm.op(Op::Ld, A1, S1, 0, 0).op(Op::Add, A0, A0, A1, 0).i(ret());
    asm
}

#[test]
fn code_for_any_map_is_not_linked_to_code_that_was_made_for_a_flat_one() {
    let block_by_block = Setup { flags: JitFlags { regions: false, ..eager() }, ..Setup::default() };
    for (name, setup) in [("translated", Setup::default()), ("block by block", block_by_block)] {
        let mut vm = flat(&setup);
        in_halves().put(&vm);
        // The first load of all is the first half's: behind it the map is flat, and the second half is made for that.
        let mut asm = Asm::at(CODE);
        asm.i(li(A0, 0)).la(S1, FRAMES).word(S2, 0x1000).call(FUNCTIONS[0]);
        // Most pages are elsewhere from here on.
        asm.la(S3, LEAVES + (FRAMES - RAM) / 4096 * 8).word(A3, 64 << 10).i(li(T2, PAGES as i32)).i(addi(T0, S3, 0));
        let entry = asm.here();
        asm.op(Op::Ld, A1, T0, 0, 0)
            .op(Op::Xor, A1, A1, A3, 0)
            .op(Op::Sd, 0, T0, A1, 0)
            .i(addi(T0, T0, 8))
            .i(addi(T2, T2, -1));
        let to_entry = back(&asm, entry);
        asm.op(Op::Bne, 0, T2, ZERO, to_entry)
            .op(Op::SfenceVma, 0, ZERO, ZERO, 0)
            .i(li(T2, PAGES as i32))
            .i(addi(T1, S1, 0));
        let page = asm.here();
        asm.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, T1, T1, S2, 0).i(addi(T2, T2, -1));
        let to_page = back(&asm, page);
        // The map is flat no more, and again the first load is the first half's.
        asm.op(Op::Bne, 0, T2, ZERO, to_page).op(Op::SfenceVma, 0, ZERO, ZERO, 0).call(FUNCTIONS[0]);
        asm.i(encode(Op::Ecall, 0, 0, 0, 0)).put(&vm);
        vm.run(CODE);
        assert_eq!(vm.x(A0), 2 + 2000, "{name}");
    }
}
