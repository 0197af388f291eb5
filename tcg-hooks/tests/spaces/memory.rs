//! The memory that programs begin with: where everything lies, page tables, the code that they call, and what handles traps.

use crate::common::*;
use crate::plan::Plan;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::Vcpu;
use notdirty_tcg::riscv::csr::{mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::testkit::rng::Rng;

pub const HANDLER: u64 = RAM + 0x800;
/// `satp` of each space.
pub const SATPS: u64 = RAM + 0x1000;
pub const FIRST: u64 = RAM + 0x4000;
/// Where U-mode's `ecall` leads.
pub const SUPERVISOR: u64 = RAM + 0x5000;
/// What harts tell each other: a lock, a request, its answer, what to fence, which hart is done.
pub const SHARED: u64 = RAM + 0x6000;
/// A word for each hart: a store of one interrupts it.
pub const IPI: u64 = 0x200_0000;
pub const MAIN: u64 = RAM + 0x8000;
/// From one hart's program to the next one's.
pub const MAIN_SIZE: u64 = 0x3_c000;
pub const CODE: u64 = RAM + 0x8_0000;
pub const CODE_PAGES: u64 = 6;
/// From a frame of a code page to the next one for it.
pub const VARIANT: u64 = 0x8000;
pub const VARIANTS: u64 = 3;
pub const DATA: u64 = RAM + 0x10_0000;
pub const DATA_PAGES: u64 = 24;
pub const FRAMES: u64 = 64;
/// Code and data of U-mode, on the same frames.
pub const USER_CODE: u64 = RAM + 0x14_0000;
pub const USER_DATA: u64 = RAM + 0x15_0000;
/// Each space has tables of five levels, and leaves of the first 2 MiB, of these tables, and of `BIG`.
pub const TABLES: u64 = RAM + 0x20_0000;
pub const SPACES: u64 = 40;
pub const BIG: u64 = RAM + 0x40_0000;
pub const BIG_PAGES: u64 = 32;
/// Pages that one leaf of Svnapot maps.
pub const NAPOT: u64 = 16;
pub const SIZE: u64 = 0x80_0000;
/// How far from its physical address RAM is seen, too: beyond 4 GiB, and at the end of the address space.
pub const ALIASES: [u64; 3] = [0, 0x10_0000_0000, 0xffff_ffff_0000_0000];

pub const V: u64 = 0xc1;
pub const RW: u64 = V | 0x06;
pub const RWX: u64 = V | 0x0e;
pub const X: u64 = V | 0x08;
pub const USER: u64 = 0x10;
pub const GLOBAL: u64 = 0x20;
/// The walk is to set A and D, or D.
pub const UNMARKED: u64 = 7;
pub const UNWRITTEN: u64 = 0x47;

pub const A5: u8 = 15;
pub const A6: u8 = 16;
pub const A7: u8 = 17;
pub const S6: u8 = 22;
pub const S7: u8 = 23;
pub const S8: u8 = 24;
pub const S9: u8 = 25;
pub const S10: u8 = 26;
pub const S11: u8 = 27;

pub fn back(asm: &Asm, to: u64) -> i32 {
    (to as i64 - asm.here() as i64) as i32
}

/// `rd` becomes this distance.
pub fn alias(asm: &mut Asm, rd: u8, alias: u64) {
    match alias {
        0 => asm.i(li(rd, 0)),
        0xffff_ffff_0000_0000 => asm.i(li(rd, -1)).op(Op::Slli, rd, rd, 0, 32),
        _ => asm.i(li(rd, 1)).op(Op::Slli, rd, rd, 0, 36),
    };
}

/// `sfence.vma` of all pages, or of the page at `va`, wherever it is seen.
pub fn fence(asm: &mut Asm, va: u8, asid: u8, scratch: u8) {
    asm.op(Op::SfenceVma, 0, va, asid, 0);
    for at in ALIASES[1..].iter().filter(|_| va != ZERO) {
        alias(asm, scratch, *at);
        asm.op(Op::Add, scratch, scratch, va, 0).op(Op::SfenceVma, 0, scratch, asid, 0);
    }
}

/// What follows belongs to a branch over it, which is put in front.
pub fn unless(asm: &mut Asm, op: Op, a: u8, b: u8, body: impl Fn(&mut Asm)) {
    let mut inner = Asm::at(asm.here() + 4);
    body(&mut inner);
    asm.i(encode(op, 0, a, b, 4 + 4 * inner.code.len() as i32));
    asm.code.extend(inner.code);
}

/// Adds up traps and goes on behind them; does what S-mode asks for; answers another hart.
pub fn handler() -> Asm {
    let mut asm = Asm::at(HANDLER);
    asm.op(Op::Csrrs, S8, ZERO, 0, num::MCAUSE.into());
    unless(&mut asm, Op::Bge, S8, ZERO, answer);
    asm.op(Op::Slli, S9, S2, 0, 1).op(Op::Add, S2, S9, S8, 0);
    asm.op(Op::Csrrs, S9, ZERO, 0, num::MTVAL.into()).op(Op::Slli, T5, S3, 0, 1).op(Op::Add, S3, T5, S9, 0);
    asm.op(Op::Csrrs, S9, ZERO, 0, num::MEPC.into()).i(addi(S9, S9, 4)).op(Op::Csrrw, ZERO, S9, 0, num::MEPC.into());
    // Not an `ecall` of S-mode.
    asm.i(li(T5, 9));
    unless(&mut asm, Op::Beq, S8, T5, |asm| {
        asm.op(Op::Mret, 0, 0, 0, 0);
    });
    unless(&mut asm, Op::Bne, A7, ZERO, |asm| {
        asm.op(Op::Csrrw, ZERO, A5, 0, num::PMPADDR0.into()).op(Op::Csrrw, ZERO, A6, 0, num::PMPCFG0.into());
        asm.op(Op::SfenceVma, 0, 0, 0, 0).op(Op::Mret, 0, 0, 0, 0);
    });
    // As S-mode does, or U-mode: a loop by MPRV, in which traps take some registers.
    asm.i(addi(S11, S9, 0)).i(li(T5, 1));
    unless(&mut asm, Op::Beq, A7, T5, |asm| {
        asm.word(T6, mstatus::MPP as u32).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into());
    });
    asm.word(T5, mstatus::MPRV as u32).op(Op::Csrrs, ZERO, T5, 0, num::MSTATUS.into()).i(li(T6, 40));
    let again = asm.here();
    asm.op(Op::Ld, S10, A1, 0, 0).op(Op::Add, S4, S4, S10, 0).op(Op::Sd, 0, A1, S4, 16).i(addi(T6, T6, -1));
    let to = back(&asm, again);
    asm.op(Op::Bne, 0, T6, ZERO, to).word(T5, mstatus::MPRV as u32).op(Op::Csrrc, ZERO, T5, 0, num::MSTATUS.into());
    asm.word(T6, mstatus::MPP as u32).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into());
    asm.word(T6, 1 << mstatus::MPP_SHIFT).op(Op::Csrrs, ZERO, T6, 0, num::MSTATUS.into());
    asm.op(Op::Csrrw, ZERO, S11, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
    assert!(asm.here() < SATPS);
    asm
}

/// Waits until another hart has changed page tables, then fences what it says.
pub fn answer(asm: &mut Asm) {
    asm.op(Op::Csrrs, T5, ZERO, 0, num::MHARTID.into()).op(Op::Slli, T5, T5, 0, 2).word(T6, IPI as u32);
    asm.op(Op::Add, T6, T6, T5, 0).op(Op::Sw, 0, T6, ZERO, 0);
    asm.la(S9, SHARED).i(li(T5, 1)).op(Op::Sd, 0, S9, T5, 16);
    let wait = asm.here();
    asm.op(Op::Ld, T5, S9, 0, 8);
    let to = back(asm, wait);
    asm.op(Op::Bne, 0, T5, ZERO, to);
    asm.op(Op::Ld, T5, S9, 0, 24).op(Op::Ld, S10, S9, 0, 32).op(Op::Ld, S11, S9, 0, 40).i(li(T6, 0));
    for (va, asid) in [(ZERO, ZERO), (S10, ZERO), (ZERO, S11), (S10, S11)] {
        unless(asm, Op::Bne, T5, T6, |asm| fence(asm, va, asid, S8));
        asm.i(addi(T6, T6, 1));
    }
    asm.op(Op::Fence, 0, 0, 0, 0xff).op(Op::Sd, 0, S9, ZERO, 16).op(Op::Mret, 0, 0, 0, 0);
}

/// What a variant's page has: it is entered at its start, and in its middle by a jump from the page before.
pub fn code_page(page: u64, variant: u64) -> Vec<(u64, Vec<u32>)> {
    let at = CODE + page * 0x1000;
    let own = (1 + variant * 37 + page * 5) as i32;
    let mut parts = Vec::new();
    match page {
        // A loop over two pages: loads on this one, and its end on the next.
        0 | 2 => {
            let mut asm = Asm::at(at);
            asm.i(addi(T1, A1, 0)).i(addi(T2, A2, 0));
            let top = asm.here();
            asm.op(Op::Ld, A3, T1, 0, 8).op(Op::Add, A0, A0, A3, 0).i(addi(A0, A0, own));
            asm.op(Op::Lw, A4, T1, 0, 0x104).op(Op::Lhu, T3, T1, 0, 0x7fe).op(Op::Xor, A0, A0, A4, 0);
            if page == 2 {
                // Over two mappings.
                asm.op(Op::Ld, A4, T1, 0, -4).op(Op::Add, A0, A0, A4, 0);
                asm.op(Op::Sd, 0, T1, A0, 16).op(Op::Sb, 0, T1, A0, 0x7fe);
            }
            asm.op(Op::Add, A0, A0, T3, 0);
            assert_eq!(top, at + 8);
            let to = jal(ZERO, asm.here(), at + 0x1000 + 0x800);
            asm.i(to);
            parts.push((0, asm.code));
        }
        1 | 3 => {
            let mut asm = Asm::at(at + 0x800);
            asm.i(addi(A0, A0, own))
                .op(Op::Add, T1, T1, S6, 0)
                .i(addi(T2, T2, -1))
                .i(encode(Op::Bne, 0, T2, ZERO, 8))
                .i(ret());
            let to = jal(ZERO, asm.here(), at - 0x1000 + 8);
            asm.i(to);
            parts.push((0x800, asm.code));
        }
        // Over the end of its page.
        4 => {
            let mut asm = Asm::at(at + 0xff4);
            asm.i(addi(A0, A0, own)).op(Op::Ld, A3, A1, 0, 8).op(Op::Add, A0, A0, A3, 0);
            parts.push((0xff4, asm.code));
            let mut asm = Asm::at(at);
            asm.i(addi(A0, A0, own));
            let to = jal(ZERO, asm.here(), at + 0xff4);
            asm.i(to);
            parts.push((0, asm.code));
        }
        _ => {
            let mut asm = Asm::at(at);
            asm.i(addi(A0, A0, own)).i(addi(A2, A2, -1)).i(encode(Op::Bne, 0, A2, ZERO, 8)).i(ret());
            let to = jal(ZERO, asm.here(), at - 0x1000);
            asm.i(to);
            parts.push((0, asm.code));
            // U-mode's way back.
            parts.push((0x400, vec![encode(Op::Ecall, 0, 0, 0, 0)]));
        }
    }
    parts
}

/// A space's leaves as they are at first: of code, data, both of U-mode, and `BIG`; what is at `BIG`; its mode.
#[derive(Clone)]
pub struct Space {
    pub asid: u64,
    pub mode: u64,
    pub code: [u64; CODE_PAGES as usize],
    pub data: [u64; DATA_PAGES as usize],
    pub user_code: [u64; CODE_PAGES as usize],
    pub user_data: [u64; DATA_PAGES as usize],
    pub leaves: [u64; BIG_PAGES as usize],
    pub big: u64,
    /// Are the tables mapped page by page? A fence of one page leaves more where there are no superpages.
    pub cut: bool,
}

impl Space {
    pub fn satp(&self, space: u64) -> u64 {
        let root = match self.mode {
            8 => table(space, 0),
            9 => table(space, 4),
            _ => table(space, 5),
        };
        self.mode << 60 | self.asid << 44 | root >> 12
    }
}

pub fn table(space: u64, n: u64) -> u64 {
    TABLES + (space * 7 + n) * 0x1000
}

/// Puts all of it into memory.
pub fn put(vm: &Vm, plan: &Plan) {
    handler().put(vm);
    plan.mains.iter().for_each(|main| main.put(vm));
    let mut asm = Asm::at(SUPERVISOR);
    asm.op(Op::Csrrs, T0, ZERO, 0, num::SSCRATCH.into()).op(Op::Jalr, ZERO, T0, 0, 0).put(vm);
    let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
    for page in 0..CODE_PAGES {
        for variant in 0..VARIANTS {
            for (offset, words) in code_page(page, variant) {
                vm.put(CODE + page * 0x1000 + variant * VARIANT + offset, &words);
            }
        }
    }
    let mut rng = Rng::new(1);
    let words: Vec<u32> = (0..FRAMES * 0x400).map(|_| rng.bits() as u32).collect();
    vm.put(DATA, &words);
    vm.put(BIG, &words[..BIG_PAGES as usize * 0x400]);
    vm.put(BIG + 0x20_0000, &words[0x7000..0x7000 + BIG_PAGES as usize * 0x400]);
    for (n, one) in plan.spaces.iter().enumerate() {
        let space = n as u64;
        write(SATPS + 8 * space, one.satp(space));
        write(table(space, 0), RW | GLOBAL);
        // The upper levels lead to the root of Sv39 from both ends.
        for (from, to) in [(5, 4), (4, 0)] {
            for entry in [0, 511] {
                write(table(space, from) + entry * 8, table(space, to) >> 2 | 1);
            }
        }
        for alias in ALIASES {
            let entry = RAM.wrapping_add(alias) >> 30 & 511;
            write(table(space, 0) + entry * 8, table(space, 1) >> 2 | 1);
        }
        write(table(space, 1), table(space, 2) >> 2 | 1);
        write(table(space, 1) + 8, if one.cut { table(space, 6) >> 2 | 1 } else { TABLES >> 2 | RW | GLOBAL });
        write(table(space, 1) + (BIG - RAM) / 0x20_0000 * 8, one.big);
        for page in 0..512 {
            write(table(space, 2) + page * 8, (RAM + (page << 12)) >> 2 | RWX | GLOBAL);
            write(table(space, 6) + page * 8, (TABLES + (page << 12)) >> 2 | RW | GLOBAL);
        }
        let put = |at: u64, leaves: &[u64]| {
            for (page, leaf) in leaves.iter().enumerate() {
                write(table(space, 2) + (at - RAM) / 512 + page as u64 * 8, *leaf);
            }
        };
        put(CODE, &one.code);
        put(DATA, &one.data);
        put(USER_CODE, &one.user_code);
        put(USER_DATA, &one.user_data);
        for (page, leaf) in one.leaves.iter().enumerate() {
            write(table(space, 3) + page as u64 * 8, *leaf);
        }
    }
    write(SATPS + 0x800, (1 << 54) - 1);
    let mut first = Asm::at(FIRST);
    first.la(T0, SATPS + 0x800).op(Op::Ld, T1, T0, 0, 0);
    for address in [num::PMPADDR0, num::PMPADDR0 + 1] {
        first.op(Op::Csrrw, ZERO, T1, 0, address.into());
    }
    first.word(T2, 0x1f1f).op(Op::Csrrw, ZERO, T2, 0, num::PMPCFG0.into());
    first.i(li(T2, 0x100)).op(Op::Csrrw, ZERO, T2, 0, num::MEDELEG.into());
    first.i(li(T2, 1)).op(Op::Slli, T2, T2, 0, 61).op(Op::Csrrw, ZERO, T2, 0, num::MENVCFG.into());
    first.i(li(T2, 8)).op(Op::Csrrw, ZERO, T2, 0, num::MIE.into()).op(Op::Mret, 0, 0, 0, 0);
    first.put(vm);
}

/// A hart before its program.
pub fn begin(vcpu: &mut Vcpu, plan: &Plan, hart: u64) {
    let cpu = vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    (cpu.pc, cpu.privilege) = (FIRST, Privilege::M);
    (cpu.csr.mtvec, cpu.csr.stvec) = (HANDLER, SUPERVISOR);
    cpu.csr.mepc = plan.mains[hart as usize].base;
    cpu.csr.satp = plan.spaces[0].satp(0);
    cpu.csr.mstatus = cpu.csr.mstatus & !mstatus::MPP | 1 << mstatus::MPP_SHIFT;
}
