//! A guest under page tables: every mode, and `satp`, `mstatus`, PMP, delegation and tables of random bits.
//!
//! ```text
//!   RAM   [ code and data, any of it written and executed .... | eight pages of tables, entries that lead anywhere ]
//!   ROM   handler of M-mode:  next record ─▶ MPRV off ─▶ its routine: satp, mstatus, PMP, fences, an entry ... ─▶ mret
//!         handler of S-mode:  the same with what S-mode may write; found if the tables of this moment show it
//!         records             routine, its operands, where to go on, and in which mode
//! ```
//!
//! Tables lead to themselves, ROM, a device, holes, half a page, and what no address names; so do fetches, loads, stores and marks.
use super::common::{self, Asm, RAM, T3, T4, T5, T6, ZERO};
use super::physical::{self, random_code};
use super::world::{ALIAS, DEVICE, Guest, HALF, RAM_LEN, ROM, ROM_LEN, SUPERVISOR, TOP_56, World};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{self, CsrEffect, irq, mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::{Rng, encode};

pub struct Paged;

const TABLES: u64 = RAM + 0x3_0000;
const TABLE_PAGES: u64 = 8;
/// Of these the first are roots.
const ROOTS: u64 = 3;
/// Where the records are, up to the end of ROM; a power of two of bytes.
const RECORDS: u64 = ROM + 0x4000;
const RECORD: u64 = 64;
/// The words of a record.
const ROUTINE: i32 = 0;
const FIRST: i32 = 8;
const SECOND: i32 = 16;
const PC: i32 = 24;
const CLEARED: i32 = 32;
const SET: i32 = 40;
const REGISTER: i32 = 48;
const _: () = assert!(ROM + ROM_LEN - RECORDS == 1 << 14 && REGISTER + 16 == RECORD as i32);

impl Guest for Paged {
    const BURST: u64 = 3_000;
    const UNDER_TABLES: u64 = 1;

    fn rom(world: &mut World) -> Vec<u8> {
        let mut rom = vec![0; ROM_LEN as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = (at - ROM) as usize;
            rom[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let (machine, of_machine) = handler(ROM, Privilege::M);
        let (supervisor, of_supervisor) = handler(SUPERVISOR, Privilege::S);
        assert!(machine.here() <= SUPERVISOR && supervisor.here() <= RECORDS);
        for asm in [&machine, &supervisor] {
            put(asm.base, &common::bytes(&asm.code));
        }
        // Every other record is for S-mode, which sees its routines where it sees itself.
        for n in 0..(ROM + ROM_LEN - RECORDS) / RECORD {
            let routines = if n % 2 == 0 { &of_machine } else { &of_supervisor };
            let (routine, kind) = world.rng.pick(routines);
            for (word, value) in record(world, routine, kind).into_iter().enumerate() {
                put(RECORDS + n * RECORD + 8 * word as u64, &value.to_le_bytes());
            }
        }
        rom
    }

    fn shuffle(world: &mut World) {
        random_code(world, instruction);
        let changed = if world.rng.chance(25) { TABLE_PAGES * 512 } else { 64 };
        for _ in 0..changed {
            let n = world.rng.below(TABLE_PAGES * 512);
            let value = entry(&mut world.rng, n % 512);
            world.space.write(GuestPhys::new(TABLES + 8 * n), &value.to_le_bytes()).expect("RAM is there");
        }
        for hart in 0..world.harts.len() {
            world.harts[hart].reset(RAM);
            physical::registers(world, hart);
            let rng = &mut world.rng;
            let mut x = [0; 32];
            for x in &mut x[1..] {
                *x = value(rng, &world.wild);
            }
            let cpu = world.harts[hart].cpu_mut();
            let mode = cpu.privilege;
            (cpu.x, cpu.privilege) = (x, Privilege::M);
            let mut set = |csr, value| {
                let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
            };
            set(num::SATP, satp(rng));
            if rng.chance(90) {
                // What waits for a device waits for ever.
                set(num::MIE, rng.bits() & (irq::STI | irq::MTI | irq::SSI));
            }
            set(num::MSCRATCH, rng.below(1 << 14) & !(2 * RECORD - 1));
            set(num::SSCRATCH, rng.below(1 << 14) & !(2 * RECORD - 1) | RECORD);
            if rng.chance(80) {
                set(num::MEDELEG, rng.pick(&[0, 0x100, 0xb1ff]));
            }
            // Locks seldom: those that refuse the handler end the burst.
            let (addresses, config) = pmp(rng);
            let locks = if rng.chance(3) { !0 } else { !0x8080_8080_8080_8080 };
            for (n, address) in (0..).zip(addresses) {
                set(num::PMPADDR0 + n, address);
            }
            set(num::PMPCFG0, config & locks);
            cpu.privilege = mode;
            cpu.pc = pc(rng, mode);
        }
    }
}

#[derive(Clone, Copy)]
enum Routine {
    Nothing,
    Satp,
    SatpAndFence,
    Fence,
    Status,
    Protect,
    Open,
    Delegate,
    Enable,
    Store,
    Stream,
}

/// A handler, and its routines by their addresses.
fn handler(at: u64, mode: Privilege) -> (Asm, Vec<(u64, Routine)>) {
    use Routine::*;
    let machine = mode == Privilege::M;
    let (scratch, epc, status, back) = if machine {
        (num::MSCRATCH, num::MEPC, num::MSTATUS, Op::Mret)
    } else {
        (num::SSCRATCH, num::SEPC, num::SSTATUS, Op::Sret)
    };
    let mut asm = Asm::at(at);
    let write = |asm: &mut Asm, csr: u16, op: Op, word: i32| {
        asm.op(Op::Ld, T6, T5, 0, word).op(op, ZERO, T6, 0, i32::from(csr));
    };
    // On by two records, as each mode has every other one; it may have been written, so it is cut to what there is.
    asm.op(Op::Csrrs, T6, ZERO, 0, i32::from(scratch)).op(Op::Addi, T6, T6, 0, 2 * RECORD as i32);
    asm.op(Op::Csrrw, ZERO, T6, 0, i32::from(scratch)).op(Op::Slli, T6, T6, 0, 50).op(Op::Srli, T6, T6, 0, 50);
    asm.op(Op::Andi, T6, T6, 0, -(RECORD as i32)).la(T5, RECORDS).op(Op::Add, T5, T5, T6, 0);
    if machine {
        asm.word(T6, mstatus::MPRV as u32).op(Op::Csrrc, ZERO, T6, 0, i32::from(status));
    }
    // By its distance, as S-mode may see all of it anywhere.
    asm.op(Op::Ld, T6, T5, 0, ROUTINE).la(T4, ROM).op(Op::Add, T6, T6, T4, 0).op(Op::Jalr, ZERO, T6, 0, 0);
    let tail = asm.here();
    write(&mut asm, epc, Op::Csrrw, PC);
    write(&mut asm, status, Op::Csrrc, CLEARED);
    write(&mut asm, status, Op::Csrrs, SET);
    for (n, x) in [8, 10, 11, 13, 15, 18, 22].into_iter().enumerate() {
        asm.op(Op::Ld, x, T5, 0, REGISTER + 8 * (n as i32 & 1) + (n as i32 >> 1) * RECORD as i32);
    }
    asm.op(back, 0, 0, 0, 0);
    let kinds: &[Routine] = if machine {
        &[Nothing, Satp, SatpAndFence, Fence, Fence, Status, Status, Protect, Open, Delegate, Enable, Store, Stream]
    } else {
        &[Nothing, Satp, SatpAndFence, Fence, Fence, Status, Store, Stream]
    };
    let mut routines = Vec::new();
    for &kind in kinds {
        routines.push((asm.here() - ROM, kind));
        match kind {
            Nothing => {}
            Satp => write(&mut asm, num::SATP, Op::Csrrw, FIRST),
            SatpAndFence => {
                write(&mut asm, num::SATP, Op::Csrrw, FIRST);
                asm.op(Op::SfenceVma, 0, ZERO, ZERO, 0);
            }
            Fence => {
                asm.op(Op::Ld, T3, T5, 0, FIRST).op(Op::Ld, T4, T5, 0, SECOND);
                let (va, asid) = [(T3, ZERO), (T3, T4), (ZERO, T4)][routines.len() % 3];
                asm.op(Op::SfenceVma, 0, va, asid, 0);
            }
            Status => {
                write(&mut asm, status, Op::Csrrs, FIRST);
                write(&mut asm, status, Op::Csrrc, SECOND);
            }
            Protect => {
                write(&mut asm, num::PMPADDR0 + 1, Op::Csrrw, FIRST);
                write(&mut asm, num::PMPCFG0, Op::Csrrw, SECOND);
            }
            Open => {
                asm.op(Op::Addi, T6, ZERO, 0, -1).op(Op::Csrrw, ZERO, T6, 0, i32::from(num::PMPADDR0));
                asm.op(Op::Addi, T6, ZERO, 0, 0x1f).op(Op::Csrrs, ZERO, T6, 0, i32::from(num::PMPCFG0));
            }
            Delegate => {
                write(&mut asm, num::MEDELEG, Op::Csrrw, FIRST);
                write(&mut asm, num::MIDELEG, Op::Csrrw, SECOND);
            }
            Enable => {
                write(&mut asm, num::MENVCFG, Op::Csrrw, FIRST);
                write(&mut asm, num::MCOUNTEREN, Op::Csrrw, SECOND);
            }
            Store => {
                asm.op(Op::Ld, T3, T5, 0, FIRST).op(Op::Ld, T4, T5, 0, SECOND).op(Op::Sd, 0, T3, T4, 0);
            }
            Stream => {
                asm.op(Op::FenceI, 0, 0, 0, 0);
            }
        }
        asm.jump(tail);
    }
    (asm, routines)
}

/// The words of a record.
fn record(world: &mut World, routine: u64, kind: Routine) -> [u64; 8] {
    use Routine::*;
    let rng = &mut world.rng;
    let (first, second) = match kind {
        Satp | SatpAndFence => (satp(rng), 0),
        Fence => (virt(rng), rng.below(3)),
        Status => (rng.bits() & !mstatus::MIE, rng.bits()),
        Protect => (pmp(rng).0[1], pmp(rng).1 & !0x8080_8080_8080_8080),
        Delegate => (rng.pick(&[0, 0x100, 0xb1ff, rng.clone().bits()]), rng.bits()),
        Enable => (rng.bits(), rng.bits()),
        Store => {
            let n = rng.below(TABLE_PAGES * 512);
            (TABLES + 8 * n, entry(rng, n % 512))
        }
        Nothing | Open | Stream => (0, 0),
    };
    let mode = rng.pick(&[Privilege::M, Privilege::S, Privilege::S, Privilege::U, Privilege::U]);
    let mprv = if mode == Privilege::M { rng.bits() & mstatus::MPRV } else { 0 };
    let spp = if mode == Privilege::S { mstatus::SPP } else { 0 };
    let set = mode.bits() << mstatus::MPP_SHIFT | mprv | spp;
    let pc = pc(rng, mode);
    let registers = [value(rng, &world.wild), value(rng, &world.wild)];
    [routine, first, second, pc, mstatus::MPP | mstatus::SPP, set, registers[0], registers[1]]
}

/// A register: where tables lead something, physical and host addresses, entries.
fn value(rng: &mut Rng, wild: &[u64]) -> u64 {
    match rng.below(10) {
        0 => rng.pick(wild).wrapping_add(rng.within(-24, 24) as u64),
        1 => rng.clone().bits(),
        2 => entry(rng, 1),
        3..6 => RAM + rng.below(RAM_LEN),
        _ => virt(rng),
    }
}

/// Where to go on: where RAM is, which the tables often show as it is, or wherever they lead.
fn pc(rng: &mut Rng, mode: Privilege) -> u64 {
    let physical = mode == Privilege::M || rng.chance(60);
    let at = if physical { RAM + rng.below(RAM_LEN) } else { virt(rng) };
    at & !1
}

/// An address that random tables often lead somewhere: few numbers at each level.
fn virt(rng: &mut Rng) -> u64 {
    let bits = rng.pick(&[39, 39, 48, 57]);
    let mut va = rng.pick(&[rng.clone().below(4096), rng.clone().below(64) * 64, 0xff8 + rng.clone().below(8)]);
    for shift in [12, 21, 30, 39, 48] {
        let vpn = rng.pick(&[0, 1, 2, 2, 3, 511, rng.clone().below(512)]);
        va |= vpn << shift;
    }
    let unused = 64 - bits;
    let high = ((va << unused) as i64 >> unused) as u64;
    // A few with high bits that are no sign.
    if rng.chance(95) { high } else { va | rng.bits() << 57 }
}

fn satp(rng: &mut Rng) -> u64 {
    let mode = rng.pick(&[8u64, 8, 8, 9, 9, 10, 10, 0, 5]);
    let root = if rng.chance(90) { TABLES + 0x1000 * rng.below(ROOTS) } else { place(rng) };
    mode << 60 | rng.below(3) << 44 | (root >> 12 & ((1 << 44) - 1))
}

/// A physical page: of RAM mostly.
fn place(rng: &mut Rng) -> u64 {
    match rng.below(16) {
        0 => ROM + 0x1000 * rng.below(ROM_LEN >> 12),
        1 => rng.pick(&[HALF & !0xfff, DEVICE, DEVICE + 0x1000, RAM + RAM_LEN, TOP_56, TOP_56 + 0x3000, 0, 0x4000]),
        2 => ALIAS + 0x1000 * rng.below(0x22),
        3 => rng.bits() & ((1 << 56) - 0x1000),
        4 => TABLES + 0x1000 * rng.below(TABLE_PAGES),
        _ => RAM + 0x1000 * rng.below(RAM_LEN >> 12),
    }
}

/// An entry of a page table, which is number `n` of its table.
fn entry(rng: &mut Rng, n: u64) -> u64 {
    let ppn = |at: u64| at >> 12 << 10;
    let table = ppn(TABLES + 0x1000 * rng.below(TABLE_PAGES));
    let leaf = |rng: &mut Rng| rng.pick(&[0xcf, 0xcf, 0xdf, 0xdf, 0xef, 0xc7, 0xcb, 0x5b, 0x1f, 0xd3, 0xd9]);
    // The handlers and RAM where they are, as a huge page or a large one.
    if n == 2 && rng.chance(70) {
        return ppn(RAM) | rng.pick(&[0xcf, 0xcf, 0xef, 0xdf]);
    }
    match rng.below(20) {
        0..7 => table | 1,
        7..14 => ppn(place(rng)) | leaf(rng),
        14 => ppn(place(rng)) | rng.below(1024) | 1,
        // Pages of 2 MiB and 1 GiB, at places where something is and where nothing is.
        15 | 16 => ppn(rng.pick(&[RAM, 0, ROM, 0xc000_0000, rng.clone().bits() << 30 & ((1 << 56) - 1)])) | leaf(rng),
        17 => 1 << 63 | ppn(place(rng)) & !(15 << 10) | 8 << 10 | leaf(rng),
        18 => rng.below(4) << 61 | ppn(place(rng)) | leaf(rng),
        _ => rng.bits(),
    }
}

/// Addresses and configuration of eight entries of PMP: mostly the last allows what none before it decides.
fn pmp(rng: &mut Rng) -> ([u64; 8], u64) {
    let all = rng.chance(50);
    let mut addresses = [0; 8];
    let mut config = [0u8; 8];
    for (address, config) in addresses.iter_mut().zip(&mut config) {
        let size = rng.below(16);
        *address = ((place(rng) + rng.below(4096)) >> 2) | ((1 << size) - 1);
        *config = if all || rng.chance(50) { 0 } else { rng.bits() as u8 };
    }
    if rng.chance(90) {
        (addresses[7], config[7]) = (!0, 0x1f);
    }
    if all {
        (addresses[0], config[0]) = (!0, 0x1f);
    }
    (addresses, u64::from_le_bytes(config))
}

/// What a guest with physical addresses does, and more of what has to do with modes.
fn instruction(rng: &mut Rng) -> u32 {
    use Op::*;
    let x = |rng: &mut Rng| rng.below(32) as u8;
    let (rd, rs1, rs2) = (x(rng), x(rng), x(rng));
    match rng.below(100) {
        0 | 1 => {
            let csr = rng.pick(&[
                num::SATP,
                num::MSTATUS,
                num::SSTATUS,
                num::PMPADDR0 + rng.clone().below(8) as u16,
                num::PMPCFG0,
                num::MENVCFG,
                num::MEPC,
                num::SEPC,
                num::STVEC,
                num::MIDELEG,
            ]);
            encode(rng.pick(&[Csrrw, Csrrs, Csrrc]), rd, rs1, 0, i32::from(csr))
        }
        2 => encode(rng.pick(&[SfenceVma, SinvalVma]), 0, rs1 * (rs2 & 1), rs2 * (rs1 & 1), 0),
        3 => encode(
            rng.pick(&[Mret, Sret, Sret, Ecall, FenceI, Sret, Ecall, FenceI, Wfi, FenceI, SfenceWInval, SfenceInvalIr]),
            0,
            0,
            0,
            0,
        ),
        _ => physical::instruction(rng),
    }
}
