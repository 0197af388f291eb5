//! What emitted code looks like, and how long it may get.
use super::*;
use crate::ir::{Bits, Term};
use crate::riscv::Op;
use crate::testkit::encode;
use crate::translate::{Limits, MAX_INSNS, Translator};
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, NoHooks};
use std::sync::Arc;

pub(super) unsafe extern "C" fn nobody(_: *mut crate::jit::context::Context, _: u32) -> u64 {
    0
}

const RAM: u64 = 0x8000_0000;

fn translated(code: &[u32]) -> Translator {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x1000)).unwrap();
    for (n, &word) in code.iter().enumerate() {
        block.store_raw(4 * n as u64, 4, word.into()).unwrap();
    }
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x1000, 0).unwrap();
    let mut translator = Translator::default();
    let limits = Limits { insns: MAX_INSNS, regions: true, optimise: true, heads: false };
    translator.translate(&mut crate::testkit::Runs::new(&space, 0), &mut NoHooks, RAM, limits).unwrap();
    translator
}

/// A loop of two fences around `middle`, behind a store; where its fences and the head of its loop are.
fn fences(middle: u32, alone: bool, tier2: bool) -> (Vec<usize>, usize) {
    let fence = 0x0330_000f;
    let ends = [encode(Op::Addi, 15, 15, 0, -1), encode(Op::Bne, 0, 15, 0, -16), encode(Op::Jalr, 0, 1, 0, 0)];
    let code = [&[encode(Op::Sd, 0, 2, 10, 0), fence, middle, fence], &ends[..]].concat();
    let mut translator = translated(&code);
    if tier2 {
        crate::tier2::optimise(&mut translator.region, true, None);
    }
    let (_, thunks) = thunks::assemble(JitFlags::default(), nobody);
    let mut emitter = Emitter::new(JitFlags::default(), thunks, Flat { addend: 0x1_0000, start: 0x8000_0000 });
    emitter.known.alone = alone;
    emitter.emit(&translator.region, 0);
    let code = emitter.place(0);
    let all = |bytes: &[u8]| (0..code.len()).filter(|&at| code[at..].starts_with(bytes)).collect::<Vec<_>>();
    // sub r15, 5
    let heads = all(&[0x49, 0x83, 0xef, 5]);
    assert_eq!(heads.len(), 1);
    (all(&[0xf0, 0x81, 0x0c, 0x24]), heads[0])
}

#[test]
fn a_loop_that_stores_nothing_fences_once_before_it() {
    for tier2 in [false, true] {
        for middle in [encode(Op::Add, 11, 11, 12, 0), encode(Op::Ld, 11, 2, 0, 0)] {
            let (fences, head) = fences(middle, false, tier2);
            assert!(fences.len() == 1 && fences[0] < head, "{fences:x?}, {head:x}");
        }
        for middle in [encode(Op::Sd, 0, 2, 11, 0), encode(Op::ScD, 11, 2, 11, 0)] {
            let (fences, head) = fences(middle, false, tier2);
            assert!(fences.len() == 2 && fences[0] > head, "{fences:x?}, {head:x}");
        }
        assert_eq!(fences(encode(Op::Add, 11, 11, 12, 0), true, tier2).0, []);
    }
}

/// A counter in memory, which its loop loads and stores; where its heads are.
#[test]
fn a_hot_loop_of_one_block_begins_in_a_block_of_32_bytes() {
    let code = [
        encode(Op::Ld, 5, 10, 0, 0),
        encode(Op::Addi, 5, 5, 0, 1),
        encode(Op::Sd, 0, 10, 5, 0),
        encode(Op::Addi, 11, 11, 0, -1),
        encode(Op::Bne, 0, 11, 0, -16),
        encode(Op::Jalr, 0, 1, 0, 0),
    ];
    let mut translator = translated(&code);
    crate::tier2::optimise(
        &mut translator.region,
        true,
        Some(crate::tier2::Ahead {
            learned: &|_| Default::default(),
            turns: false,
            sink: true,
            apart: true,
            share: true,
        }),
    );
    let (_, thunks) = thunks::assemble(JitFlags::default(), nobody);
    let mut emitter = Emitter::new(JitFlags::default(), thunks, Flat { addend: 0x1_0000, start: 0x8000_0000 });
    emitter.emit(&translator.region, 0);
    let code = emitter.place(0);
    // sub r15, 5
    let heads: Vec<usize> = (0..code.len()).filter(|&at| code[at..].starts_with(&[0x49, 0x83, 0xef, 5])).collect();
    assert!(!heads.is_empty() && heads.iter().all(|head| head % 32 == 0), "{heads:x?}");
}

/// Loops over what becomes the most code: accesses that share checks and overlap, calls, divisions, sites.
#[test]
fn the_longest_code_leaves_room_to_spare() {
    let shapes: [fn(i32) -> u32; 7] = [
        // Rounded by frm, of singles with boxes that are not known.
        |n| encode([Op::FmaddS, Op::FcvtDL][n as usize % 2], n as u8 & 15, 16 + n as u8 % 16, 16, 0x7000),
        |n| encode([Op::FcvtSD, Op::FminD, Op::Fsd][n as usize % 3], n as u8 & 15, 16, 17, 0x7000),
        |n| encode([Op::Sd, Op::Ld][n as usize % 2], 27, 28 + (n / 2 % 4) as u8, 27, 1024 + 8 * (n % 100)),
        |n| if n % 2 == 0 { encode(Op::Bne, 0, 29, 30, 8) } else { encode(Op::Jalr, 1, 5, 0, 444) },
        |n| encode([Op::Mulhsu, Op::Div, Op::Remw][n as usize % 3], 29, 29, 31, 0),
        |_| encode(Op::AmoaddD, 29, 30, 31, 0),
        // Loops of their own; their turns are counted.
        |n| match n % 16 {
            0..4 => encode(Op::Ld, 29, 27, 0, 8 * (n % 16)),
            14 => encode(Op::Addi, 30, 30, 0, -1),
            15 => encode(Op::Bne, 0, 30, 0, -60),
            _ => encode([Op::Mulhsu, Op::Div, Op::Remw][n as usize % 3], 28, 29, 31, 0),
        },
    ];
    let mut slow = JitFlags { count: true, ..JitFlags::default() };
    for name in ["plain_index", "base_register", "budget_register", "bmi2"] {
        assert!(slow.set(name, false));
    }
    for shape in shapes {
        let last = MAX_INSNS as i32 - 1;
        let mut code: Vec<u32> = (0..last).map(shape).collect();
        code.push(encode(Op::Beq, 0, 0, 0, -4 * last));
        let mut translator = translated(&code);
        assert_eq!(translator.region.insns as usize, MAX_INSNS);
        let mut lengths = Vec::new();
        for tier2 in [false, true] {
            if tier2 {
                crate::tier2::optimise(
                    &mut translator.region,
                    true,
                    Some(crate::tier2::Ahead {
                        learned: &|_| Default::default(),
                        turns: true,
                        sink: true,
                        apart: true,
                        share: true,
                    }),
                );
            }
            for flags in [JitFlags::default(), slow] {
                let (_, thunks) = thunks::assemble(flags, nobody);
                lengths.push(
                    Emitter::new(flags, thunks, Flat { addend: 0x1_0000, start: 0x8000_0000 })
                        .emit(&translator.region, 0)
                        .0,
                );
            }
        }
        // Tier 2 adds to each site ten registers' ways home and back.
        for (n, len) in lengths.iter().enumerate() {
            let room = if n < 2 { asm::CAPACITY / 2 } else { asm::CAPACITY * 11 / 16 };
            assert!((4 * MAX_INSNS..room).contains(len), "{lengths:?}");
        }
    }
}

/// Fourteen values that turns hand on, of which nothing asks for more than 32 bits, and ten host registers.
#[test]
fn a_value_that_lives_in_memory_is_extended_though_no_place_may_show_it() {
    let mut code = vec![encode(Op::Lw, 5, 10, 0, 0)];
    for r in 16..30 {
        let next = if r == 29 { 16 } else { r + 1 };
        code.extend([encode(Op::Xor, r, r, 5, 0), encode(Op::Addw, r, r, next, 0), encode(Op::Roriw, r, r, 0, 7)]);
    }
    code.push(encode(Op::Addi, 11, 11, 0, -1));
    let back = -4 * code.len() as i32;
    code.extend([encode(Op::Bne, 0, 11, 0, back), encode(Op::Jalr, 0, 1, 0, 0)]);
    let mut translator = translated(&code);
    let ahead =
        crate::tier2::Ahead { learned: &|_| Default::default(), turns: true, sink: true, apart: true, share: true };
    crate::tier2::optimise(&mut translator.region, true, Some(ahead));
    let region = &translator.region;
    let turn =
        region.blocks.iter().find(|block| matches!(block.term, Term::Turn { .. })).expect("its turns are counted");
    let made = |kind: Kind, named: bool| {
        let is = |ir: &&Ir| ir.kind == kind && (ir.rd >= crate::tier2::HOST) == named;
        region.ops_of(turn).iter().filter(is).count()
    };
    let roriw = Kind::Bits(Bits::Roriw);
    let [narrow, narrow_home, home] =
        [(Kind::NarrowRotate, true), (Kind::NarrowRotate, false), (roriw, false)].map(|(k, n)| made(k, n));
    assert!(narrow > 0 && home > 0 && narrow_home == 0, "{narrow} in registers, {narrow_home} and {home} in memory");
}
