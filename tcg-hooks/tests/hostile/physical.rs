//! A guest with physical addresses: random code in any mode, and handlers that give it new wild pointers.
use super::common::{self, Asm, RAM, T5, T6};
use super::world::{ALIAS, Guest, HALF, RAM_LEN, ROM, ROM_LEN, SUPERVISOR, TOP, World};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{self, CsrEffect, mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::{Rng, encode};

pub struct Physical;

impl Guest for Physical {
    const BURST: u64 = 1_500;
    const UNDER_TABLES: u64 = 0;

    /// New wild pointers from a table, and on at some pc from another, in the mode that trapped.
    fn rom(world: &mut World) -> Vec<u8> {
        let mut rom = vec![0; ROM_LEN as usize];
        let csr = |n: u16| i32::from(n);
        for (at, scratch, epc, back) in
            [(ROM, num::MSCRATCH, num::MEPC, Op::Mret), (SUPERVISOR, num::SSCRATCH, num::SEPC, Op::Sret)]
        {
            let mut asm = Asm::at(at);
            asm.op(Op::Csrrs, T6, 0, 0, csr(scratch)).op(Op::Addi, T6, T6, 0, 24).op(Op::Csrrw, 0, T6, 0, csr(scratch));
            asm.op(Op::Andi, T6, T6, 0, 0x7f8).la(T5, ROM + 0x1000).op(Op::Add, T5, T5, T6, 0);
            asm.op(Op::Ld, T6, T5, 0, 0).op(Op::Csrrw, 0, T6, 0, csr(epc)).op(Op::Lui, T6, 0, 0, 0x1000);
            asm.op(Op::Add, T5, T5, T6, 0);
            for (n, x) in [5u8, 8, 10, 11, 13, 15, 18, 22].into_iter().enumerate() {
                asm.op(Op::Ld, x, T5, 0, 8 * n as i32 * 7);
            }
            asm.op(back, 0, 0, 0, 0);
            let (at, code) = ((at - ROM) as usize, common::bytes(&asm.code));
            rom[at..at + code.len()].copy_from_slice(&code);
        }
        for at in (0x1000..rom.len()).step_by(8) {
            let value = if at < 0x1800 { pc(world) } else { world.pointer() };
            rom[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        rom
    }

    fn shuffle(world: &mut World) {
        let code = random_code(world, instruction);
        let ends = [TOP, 0];
        world.space.write(GuestPhys::new(ends[0]), &code[..0x4000.min(code.len())]).expect("RAM is there");
        world.space.write(GuestPhys::new(ends[1]), &code[0x100..0x1100]).expect("RAM is there");
        for hart in 0..world.harts.len() {
            let entry = pc(world);
            world.harts[hart].reset(entry);
            for x in 1..32 {
                let value = world.pointer();
                world.harts[hart].cpu_mut().x[x] = value;
            }
            registers(world, hart);
        }
    }
}

/// Anything, mostly what loads, stores and goes on.
pub fn instruction(rng: &mut Rng) -> u32 {
    use Op::*;
    let x = |rng: &mut Rng| rng.below(32) as u8;
    let (rd, rs1, rs2) = (x(rng), x(rng), x(rng));
    // Small ones keep to the edge that a pointer is at.
    let reach = rng.pick(&[8, 8, 2047]);
    let imm = rng.within(-reach, reach) as i32;
    match rng.below(100) {
        0..=24 => encode(rng.pick(&[Lb, Lbu, Lh, Lhu, Lw, Lwu, Ld]), rd, rs1, 0, imm),
        25..=49 => encode(rng.pick(&[Sb, Sh, Sw, Sd]), 0, rs1, rs2, imm),
        50..=57 => {
            let op = rng.pick(&[
                AmoswapW, AmoaddD, AmoxorW, AmoandD, AmoorW, AmominD, AmomaxW, AmominuD, AmomaxuW, LrW, LrD, ScW, ScD,
                AmoswapD,
            ]);
            encode(op, rd, rs1, rs2, imm & 3)
        }
        58..=69 => encode(rng.pick(&[Add, Sub, Xor, Or, And, Sll, Srl, Sra, Mul, Div, Rem]), rd, rs1, rs2, 0),
        70..=79 => encode(rng.pick(&[Addi, Xori, Ori, Andi, Addiw]), rd, rs1, 0, imm),
        80..=87 => {
            let op = rng.pick(&[Beq, Bne, Blt, Bge, Bltu, Bgeu]);
            encode(op, 0, rs1, rs2, rng.within(-40, 400) as i32 & !1)
        }
        88..=89 => encode(Jal, rd & 1, 0, 0, rng.within(-1000, 9000) as i32 & !1),
        90 => encode(Jalr, rd & 5, rs1, 0, imm),
        91 => encode(rng.pick(&[Csrrw, Csrrs, Csrrc]), rd, rs1, 0, rng.bits() as i32 & 0xfff),
        92 => {
            let op = rng.pick(&[FenceI, Ecall, Ebreak, Lui, Auipc, Mret, Sret, SfenceVma, SinvalVma, CboZero]);
            encode(op, rd, rs1, rs2, imm << 12)
        }
        _ => rng.bits() as u32,
    }
}

fn pc(world: &mut World) -> u64 {
    let at = RAM + 2 * world.rng.below(RAM_LEN / 2);
    let wild = world.pointer() & !1;
    let edge = [RAM + RAM_LEN - 2, 0, TOP + 0x3ffe, TOP, ALIAS + 0xffe, HALF, ROM, 0xffe, wild];
    if world.rng.chance(85) { at } else { world.rng.pick(&edge) }
}

/// Writes code somewhere in RAM, or to all of it; the code.
pub fn random_code(world: &mut World, instruction: impl Fn(&mut Rng) -> u32) -> Vec<u8> {
    let rng = &mut world.rng;
    let mut code = Vec::with_capacity(RAM_LEN as usize);
    let whole = rng.chance(20);
    let (from, len) = if whole { (0, RAM_LEN) } else { (rng.below(RAM_LEN - 0x2000), 0x2000) };
    while code.len() < len as usize {
        let word = instruction(rng);
        if rng.chance(12) {
            code.extend((rng.bits() as u16).to_le_bytes());
        } else {
            code.extend(word.to_le_bytes());
        }
    }
    code.truncate(len as usize);
    world.space.write(GuestPhys::new(RAM + (from & !1)), &code).expect("RAM is there");
    code
}

/// Any mode, and most traps and interrupts go on in a handler that there is.
pub fn registers(world: &mut World, hart: usize) {
    let mode = world.rng.pick(&Privilege::ALL);
    let pc = pc(world);
    let handlers = [SUPERVISOR, SUPERVISOR, SUPERVISOR, SUPERVISOR | 1, ROM, pc];
    let (rng, cpu) = (&mut world.rng, world.harts[hart].cpu_mut());
    (cpu.csr.mtvec, cpu.csr.stvec) = (ROM, rng.pick(&handlers));
    let mut word = || rng.pick(&[0, !0, rng.clone().bits()]);
    for csr in [num::MEDELEG, num::MIDELEG, num::MCOUNTEREN, num::SCOUNTEREN, num::MENVCFG, num::SENVCFG] {
        let _: CsrEffect = csr::csr_write(cpu, csr, word()).expect("M-mode may");
    }
    // Interrupts that do not go away leave the guest in its handler.
    let pending = word() & word() & word();
    for (csr, value) in
        [(num::MIP, pending), (num::STIMECMP, word() & 31), (num::MSTATUS, word() & !mstatus::MIE), (num::MIE, word())]
    {
        let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
    }
    cpu.privilege = mode;
}
