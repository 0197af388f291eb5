//! The oracle, instruction by instruction, on a hart with RAM and nothing else.
use super::*;
use crate::riscv::csr::num;
use crate::riscv::trap::cause;
use crate::testkit::{Oracle, encode};

const BASE: u64 = 0x8000_0000;
const DATA: u64 = BASE + 0x1000;
const LEN: u64 = 0x3000;

/// These words at the start of RAM, `a0` at the data, the other argument registers as given.
fn hart(code: &[u32], args: &[u64]) -> Oracle {
    let bytes: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut m = Oracle::new(BASE, LEN, BASE, &bytes);
    m.cpu.csr.mtvec = BASE + 0x800;
    m.cpu.x[10] = DATA;
    for (i, &value) in args.iter().enumerate() {
        m.cpu.x[11 + i] = value;
    }
    m
}

fn trapped(m: &mut Oracle) -> (u64, u64) {
    let before = (m.cpu.x, m.cpu.retired, m.cpu.pc);
    match m.step() {
        Step::Trap(t) => {
            assert_eq!(
                (m.cpu.x, m.cpu.retired),
                (before.0, before.1),
                "a trap changes no register and retires nothing"
            );
            assert_eq!((m.cpu.pc, m.cpu.csr.mepc), (BASE + 0x800, before.2));
            (t.cause, t.tval)
        }
        other => panic!("{other:?}"),
    }
}

const A0: u8 = 10;
const A1: u8 = 11;
const A2: u8 = 12;

#[test]
fn loads_extend_by_their_kind() {
    let cases = [
        (Op::Lb, 0xffff_ffff_ffff_fff1),
        (Op::Lbu, 0xf1),
        (Op::Lh, 0xffff_ffff_ffff_f2f1),
        (Op::Lhu, 0xf2f1),
        (Op::Lw, 0xffff_ffff_f4f3_f2f1),
        (Op::Lwu, 0xf4f3_f2f1),
        (Op::Ld, 0xf8f7_f6f5_f4f3_f2f1),
    ];
    // Aligned, misaligned, over a line, over a page.
    for offset in [8, 1, 61, 0xffd] {
        for (op, want) in cases {
            let mut m = hart(&[encode(op, A1, A1, 0, 0)], &[DATA + offset]);
            m.ram.store_raw(0x1000 + offset, 8, 0).ok();
            m.ram.write_raw(0x1000 + offset, &0xf8f7_f6f5_f4f3_f2f1u64.to_le_bytes()).unwrap();
            assert_eq!(m.step(), Step::Next);
            assert_eq!(m.cpu.x[11], want, "{op:?} at {offset:#x}");
        }
    }
}

#[test]
fn stores_write_their_bytes_and_no_others() {
    for (op, n) in [(Op::Sb, 1), (Op::Sh, 2), (Op::Sw, 4), (Op::Sd, 8)] {
        for offset in [16u64, 3, 0xffa] {
            let mut m = hart(&[encode(op, 0, A1, A2, -2)], &[DATA + offset + 2, 0x8877_6655_4433_2211]);
            m.ram.fill_raw(0x1000, 0x2000, 0xee).unwrap();
            assert_eq!(m.step(), Step::Next);
            let mut got = [0; 10];
            m.ram.read_bytes(0x1000 + offset - 1, &mut got).unwrap();
            let mut want = [0xee; 10];
            want[1..=n].copy_from_slice(&0x8877_6655_4433_2211u64.to_le_bytes()[..n]);
            assert_eq!(got, want, "{op:?} at {offset:#x}");
        }
    }
}

#[test]
fn x0_stays_zero_whatever_is_written_to_it() {
    let code = [
        encode(Op::Addi, 0, A0, 0, 5),
        encode(Op::Ld, 0, A0, 0, 0),
        encode(Op::Jal, 0, 0, 0, 4),
        encode(Op::AmoaddW, 0, A0, A1, 0),
        encode(Op::Csrrw, 0, A1, 0, i32::from(num::MSCRATCH)),
        encode(Op::Lui, 0, 0, 0, 0x1000),
    ];
    let mut m = hart(&code, &[7]);
    for _ in code {
        assert_eq!(m.step(), Step::Next);
        assert_eq!(m.cpu.x[0], 0);
    }
    assert_eq!((m.ram.load(0x1000, 4).unwrap(), m.cpu.csr.mscratch, m.cpu.retired), (7, 7, 6));
}

#[test]
fn jumps_link_the_next_instruction_and_clear_bit_0() {
    let mut m = hart(&[encode(Op::Jalr, A1, A1, 0, -3)], &[BASE + 0x104]);
    assert_eq!(m.step(), Step::Next);
    assert_eq!((m.cpu.pc, m.cpu.x[11]), (BASE + 0x100, BASE + 4));
    let mut m = hart(&[encode(Op::Jal, A1, 0, 0, -0x100)], &[]);
    assert_eq!(m.step(), Step::Next);
    assert_eq!((m.cpu.pc, m.cpu.x[11]), (BASE - 0x100, BASE + 4));
    // c.jalr a1 links two bytes further.
    let mut m = hart(&[0x9582], &[BASE + 0x103]);
    assert_eq!(m.step(), Step::Next);
    assert_eq!((m.cpu.pc, m.cpu.x[1]), (BASE + 0x102, BASE + 2));
}

#[test]
fn branches_compare_as_they_say() {
    let taken = |op, a, b| {
        let mut m = hart(&[encode(op, 0, A1, A2, 0x40)], &[a, b]);
        assert_eq!(m.step(), Step::Next);
        m.cpu.pc == BASE + 0x40 || {
            assert_eq!(m.cpu.pc, BASE + 4);
            false
        }
    };
    let minus = u64::MAX;
    assert!(taken(Op::Beq, 5, 5) && !taken(Op::Beq, 5, 6));
    assert!(taken(Op::Bne, 5, 6) && !taken(Op::Bne, 5, 5));
    assert!(taken(Op::Blt, minus, 0) && !taken(Op::Blt, 0, minus) && !taken(Op::Blt, 3, 3));
    assert!(taken(Op::Bge, 0, minus) && taken(Op::Bge, 3, 3) && !taken(Op::Bge, minus, 0));
    assert!(taken(Op::Bltu, 0, minus) && !taken(Op::Bltu, minus, 0));
    assert!(taken(Op::Bgeu, minus, 0) && taken(Op::Bgeu, 3, 3) && !taken(Op::Bgeu, 0, minus));
}

#[test]
fn faults_name_the_address_and_leave_no_trace() {
    let mut m = hart(&[encode(Op::Ld, A1, A1, 0, 1)], &[0x1234]);
    assert_eq!(trapped(&mut m), (cause::LOAD_ACCESS, 0x1235));
    let mut m = hart(&[encode(Op::Sd, 0, A1, A1, 0)], &[0x1000]);
    assert_eq!(trapped(&mut m), (cause::STORE_ACCESS, 0x1000));
    let mut m = hart(&[encode(Op::AmoaddD, A2, A1, A1, 0)], &[0x1000]);
    assert_eq!(trapped(&mut m), (cause::STORE_ACCESS, 0x1000));
    let mut m = hart(&[encode(Op::AmoaddD, A2, A1, A1, 0)], &[DATA + 4]);
    assert_eq!(trapped(&mut m), (cause::STORE_MISALIGNED, DATA + 4));
    let mut m = hart(&[encode(Op::LrW, A2, A1, 0, 0)], &[DATA + 2]);
    assert_eq!(trapped(&mut m), (cause::LOAD_MISALIGNED, DATA + 2));
    let mut m = hart(&[encode(Op::ScD, A2, A1, A1, 0)], &[DATA + 4]);
    assert_eq!(trapped(&mut m), (cause::STORE_MISALIGNED, DATA + 4));
    // The first half is RAM, and stays as it was.
    let mut m = hart(&[encode(Op::Sd, 0, A1, A1, 0)], &[BASE + LEN - 4]);
    assert_eq!(trapped(&mut m).0, cause::STORE_ACCESS);
    assert_eq!(m.ram.load(LEN - 4, 4).unwrap(), 0);
}

#[test]
fn a_fetch_over_the_end_names_the_half_that_is_missing() {
    let mut m = hart(&[], &[]);
    m.ram.store_raw(LEN - 2, 2, 0x0013).unwrap();
    m.cpu.pc = BASE + LEN - 2;
    assert_eq!(trapped(&mut m), (cause::FETCH_ACCESS, BASE + LEN));
    // A compressed instruction fits.
    m.ram.store_raw(LEN - 2, 2, 0x0001).unwrap();
    m.cpu.pc = BASE + LEN - 2;
    assert_eq!(m.step(), Step::Next);
    assert_eq!(trapped(&mut m), (cause::FETCH_ACCESS, BASE + LEN));
}

#[test]
fn an_instruction_over_two_pages_is_one() {
    let mut m = hart(&[], &[]);
    let bits = encode(Op::Addi, A1, 0, 0, 77);
    m.ram.write_raw(0xffe, &bits.to_le_bytes()).unwrap();
    m.cpu.pc = BASE + 0xffe;
    assert_eq!(m.step(), Step::Next);
    assert_eq!((m.cpu.x[11], m.cpu.pc), (77, BASE + 0x1002));
}

#[test]
fn exceptions_show_what_the_manual_says_in_mtval() {
    assert_eq!(trapped(&mut hart(&[encode(Op::Ecall, 0, 0, 0, 0)], &[])), (11, 0));
    assert_eq!(trapped(&mut hart(&[encode(Op::Ebreak, 0, 0, 0, 0)], &[])), (cause::BREAKPOINT, BASE));
    assert_eq!(trapped(&mut hart(&[0x9002], &[])), (cause::BREAKPOINT, BASE), "c.ebreak");
    assert_eq!(trapped(&mut hart(&[0xffff_ffff], &[])), (cause::ILLEGAL, 0xffff_ffff));
    assert_eq!(trapped(&mut hart(&[0xdead_0000], &[])), (cause::ILLEGAL, 0), "two bytes of zeros");
    assert_eq!(trapped(&mut hart(&[0xdead_8002], &[])), (cause::ILLEGAL, 0x8002), "c.jr zero");
    let absent = encode(Op::Csrrw, A1, A2, 0, 0x280);
    assert_eq!(trapped(&mut hart(&[absent], &[])), (cause::ILLEGAL, u64::from(absent)));
    let read_only = encode(Op::Csrrsi, 0, 31, 0, i32::from(num::CYCLE));
    assert_eq!(trapped(&mut hart(&[read_only], &[])), (cause::ILLEGAL, u64::from(read_only)));
}

#[test]
fn atomics_return_the_old_value_with_its_sign() {
    let run = |op, memory: u64, operand: u64| {
        let mut m = hart(&[encode(op, A2, A0, A1, 3)], &[operand]);
        m.ram.store_raw(0x1000, 8, memory).unwrap();
        assert_eq!(m.step(), Step::Next);
        (m.cpu.x[12], m.ram.load(0x1000, 8).unwrap())
    };
    let m = 0x1111_1111_8000_0001;
    let old = 0xffff_ffff_8000_0001;
    assert_eq!(run(Op::AmoswapW, m, 0x5_0000_0002), (old, 0x1111_1111_0000_0002));
    assert_eq!(run(Op::AmoaddW, m, 0x8000_0000), (old, 0x1111_1111_0000_0001));
    assert_eq!(run(Op::AmomaxW, m, 0xffff_ffff_0000_0005), (old, 0x1111_1111_0000_0005));
    assert_eq!(run(Op::AmomaxuW, m, 5), (old, m));
    assert_eq!(run(Op::AmominW, m, 5), (old, m));
    assert_eq!(run(Op::AmominuW, m, 5), (old, 0x1111_1111_0000_0005));
    assert_eq!(run(Op::AmoxorW, m, 1), (old, 0x1111_1111_8000_0000));
    assert_eq!(run(Op::AmoswapD, m, 2), (m, 2));
    assert_eq!(run(Op::AmoaddD, u64::MAX, 2), (u64::MAX, 1));
    assert_eq!(run(Op::AmominD, u64::MAX, 2), (u64::MAX, u64::MAX));
    assert_eq!(run(Op::AmominuD, u64::MAX, 2), (u64::MAX, 2));
    assert_eq!(run(Op::AmoandD, 6, 3), (6, 2));
    assert_eq!(run(Op::AmoorD, 6, 3), (6, 7));
}

#[test]
fn sc_succeeds_once_and_only_after_its_own_lr() {
    let (lr, sc) = (encode(Op::LrW, A2, A0, 0, 0), encode(Op::ScW, 13, A0, A1, 0));
    let run = |code: &[u32]| {
        let mut m = hart(code, &[9, 0, 77]);
        m.ram.store_raw(0x1000, 4, 0x8000_0000).unwrap();
        for _ in code {
            assert_eq!(m.step(), Step::Next);
        }
        (m.cpu.x[13], m.ram.load(0x1000, 4).unwrap(), m.cpu.x[12])
    };
    assert_eq!(run(&[lr, sc]), (0, 9, 0xffff_ffff_8000_0000));
    assert_eq!(run(&[sc]), (1, 0x8000_0000, 0));
    assert_eq!(run(&[lr, sc, sc]), (1, 9, 0xffff_ffff_8000_0000));
    assert_eq!(run(&[lr, encode(Op::Addi, A0, A0, 0, 8), sc]).0, 1, "another address");
    assert_eq!(run(&[lr, encode(Op::ScD, 13, A0, A1, 0)]).0, 1, "another size");
    assert_eq!(run(&[lr, encode(Op::Sw, 0, A0, A1, 0), sc]).0, 1, "somebody stored");
}

#[test]
fn a_store_to_the_next_instruction_is_seen_by_it() {
    let new = encode(Op::Addi, A2, 0, 0, 42);
    let mut m = hart(&[encode(Op::Sw, 0, A1, A2, 0), encode(Op::Addi, A2, 0, 0, 1)], &[BASE + 4, u64::from(new)]);
    assert_eq!(m.step(), Step::Next);
    assert_eq!(m.step(), Step::Next);
    assert_eq!(m.cpu.x[12], 42);
}

#[test]
fn fence_i_and_wfi_tell_the_caller_and_retire() {
    let mut m = hart(&[0x0000_100f, 0x1050_0073, 0x0ff0_000f], &[]);
    assert_eq!([m.step(), m.step(), m.step()], [Step::FenceI, Step::Wfi, Step::Next]);
    assert_eq!((m.cpu.retired, m.cpu.pc), (3, BASE + 12));
}

#[test]
fn a_trap_handler_returns_by_mret_and_sees_the_counts() {
    let mut m = hart(&[encode(Op::Ecall, 0, 0, 0, 0), encode(Op::Csrrs, A2, 0, 0, i32::from(num::MINSTRET))], &[]);
    let code = [
        encode(Op::Csrrs, A1, 0, 0, i32::from(num::MEPC)),
        encode(Op::Addi, A1, A1, 0, 4),
        encode(Op::Csrrw, 0, A1, 0, i32::from(num::MEPC)),
        encode(Op::Mret, 0, 0, 0, 0),
    ];
    for (i, word) in code.into_iter().enumerate() {
        m.ram.store_raw(0x800 + 4 * i as u64, 4, u64::from(word)).unwrap();
    }
    for _ in 0..6 {
        let _ = m.step();
    }
    assert_eq!(m.cpu.x[12], 4, "the ecall did not retire, the handler's four did");
    assert_eq!(m.cpu.pc, BASE + 8);
}

#[test]
fn an_interrupt_comes_between_two_instructions() {
    let mut m = hart(&[encode(Op::Csrrsi, 0, 8, 0, i32::from(num::MSTATUS)), encode(Op::Addi, A1, A1, 0, 1)], &[0]);
    m.cpu.csr.mie = 1 << 7;
    m.mip = 1 << 7;
    assert_eq!(m.step(), Step::Next);
    assert_eq!(m.step(), Step::Trap(Trap::interrupt(cause::MTI)));
    assert_eq!((m.cpu.csr.mepc, m.cpu.x[11], m.cpu.pc), (BASE + 4, 0, BASE + 0x800));
}

#[test]
fn the_pc_wraps_with_the_address_space() {
    let mut m = hart(&[], &[]);
    m.cpu.pc = u64::MAX - 1;
    assert_eq!(trapped_anywhere(&mut m), (cause::FETCH_ACCESS, u64::MAX - 1));
    let mut m = hart(&[encode(Op::Ld, A2, A1, 0, 0)], &[u64::MAX - 3]);
    assert_eq!(trapped_anywhere(&mut m), (cause::LOAD_ACCESS, u64::MAX - 3));
}

fn trapped_anywhere(m: &mut Oracle) -> (u64, u64) {
    match m.step() {
        Step::Trap(t) => (t.cause, t.tval),
        other => panic!("{other:?}"),
    }
}
