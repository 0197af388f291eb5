use super::*;
use crate::ir::Kind;
use crate::riscv::Op;
use crate::testkit::{Rng, Runs, encode};
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::SoftMmu;
use notdirty_softmmu::{AddressSpace, GuestPhys, NoHooks};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const RAM: u64 = 0x8000_0000;

/// The entry is the last halfword of RAM. Another vCPU makes it by turns a `c.nop` and the first half of an
/// instruction whose second half nobody has, so a translation now and then announces its line, finds other bytes, and
/// faults. It waits for nobody then: a port that it kept would look like somebody who may wake that vCPU.
#[test]
fn a_translation_that_faults_after_its_announcement_keeps_nobodys_port() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x1000)).unwrap();
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x1000, 0).unwrap();
    let mut mmu = Runs::new(&space, 0);
    let other = SoftMmu::new(&space, 0).unwrap();
    let alone = Arc::strong_count(other.port());
    let done = AtomicBool::new(false);
    let limits = Limits { insns: MAX_INSNS, regions: true, optimise: true, heads: false };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for half in [0x0001, 0x0013] {
                    block.store_raw(0xffe, 2, half).unwrap();
                }
            }
        });
        let mut translator = Translator::default();
        for tries in 1.. {
            let made = translator.translate(&mut mmu, &mut NoHooks, RAM + 0xffe, limits);
            match made {
                Ok(_) => drop(translator.doubts()),
                Err(_) if translator.overannounced().next().is_some() => {
                    println!("after {tries} translations");
                    break;
                }
                Err(_) => {}
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(other.port()), alone);
    });
}

/// Two threads store anything, most of it around the ends of pages.
#[test]
fn whatever_is_stored_meanwhile_a_translation_is_no_fault_and_leaves_nothing_noted() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x3000)).unwrap();
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x3000, 0).unwrap();
    let mut mmu = Runs::new(&space, 0);
    let done = AtomicBool::new(false);
    let (mut translator, mut rng) = (Translator::default(), Rng::new(1));
    let mut fault = None;
    std::thread::scope(|scope| {
        for seed in 2..4 {
            let (block, done) = (&block, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::Relaxed) {
                    let at = 0x1000 * rng.below(2) + 0xff8 + 2 * rng.below(8);
                    block.store_raw(at, 2, rng.bits() & 0xffff).unwrap();
                    block.store_raw(4 * rng.below(0xc00), 4, rng.bits() & 0xffff_ffff).unwrap();
                }
            });
        }
        for _ in 0..50_000 {
            let pc = RAM + if rng.chance(50) { 0xffe } else { 2 * rng.below(0x1000) };
            let limits = Limits { insns: rng.pick(&[1, 5, MAX_INSNS]), regions: true, optimise: true, heads: false };
            let made = translator.translate(&mut mmu, &mut NoHooks, pc, limits);
            fault = fault.or(made.err());
            drop(translator.doubts());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fault, None);
    translator.forget();
    assert!(translator.slots.iter().all(|slot| (slot.at, slot.block) == (NONE, NONE)));
}

/// The region at `pc` of this code, which returns at its end.
fn translated(code: &[u32], pc: u64, limits: Limits) -> Translator {
    translated_among(code, pc, limits, |_| false)
}

fn translated_among(code: &[u32], pc: u64, limits: Limits, known: impl Fn(u64) -> bool) -> Translator {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x1000)).unwrap();
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x1000, 0).unwrap();
    for (n, &word) in code.iter().chain(&[encode(Op::Jalr, 0, 1, 0, 0)]).enumerate() {
        block.store_raw(4 * n as u64, 4, word.into()).unwrap();
    }
    let mut translator = Translator::default();
    translator.translate_among(&mut Runs::new(&space, 0), &mut NoHooks, pc, limits, |_, pc| known(pc)).unwrap();
    translator
}

/// The fences among the ops of a block, between letters for its accesses: `s`, `l`, `a` (an AMO), `r` (an SC), `x` (Rust).
fn barriers(code: &[u32], optimise: bool) -> String {
    let limits = Limits { insns: MAX_INSNS, regions: true, optimise, heads: false };
    let translator = translated(code, RAM, limits);
    let letter = |kind| match kind {
        Kind::Fence => Some('F'),
        Kind::Store(_) => Some('s'),
        Kind::Load(_) => Some('l'),
        Kind::Amo(..) => Some('a'),
        Kind::StoreConditional(_) => Some('r'),
        Kind::Rust => Some('x'),
        _ => None,
    };
    translator.region.ops.iter().filter_map(|ir| letter(ir.kind)).collect()
}

#[test]
fn a_fence_stands_only_between_a_store_and_what_comes_next() {
    const FENCE: u32 = 0x0330_000f;
    const IORW: u32 = 0x0ff0_000f;
    const W_R: u32 = 0x0120_000f;
    const RESERVED: u32 = 0x8120_000f;
    const TSO: u32 = 0x8330_000f;
    let of = |op, imm| encode(op, 10, 11, 12, imm);
    let (store, load, add) = (of(Op::Sd, 0), of(Op::Ld, 0), of(Op::Add, 0));
    let (amo, sc, csr) = (of(Op::AmoaddD, 0), of(Op::ScD, 0), of(Op::Csrrw, 0x304));
    let cases: [(&[u32], &str); 15] = [
        (&[store, FENCE, load], "sFl"),
        (&[store, FENCE, add, IORW, W_R, RESERVED, add, load], "sFl"),
        // What may have been stored before the block, and loaded behind it.
        (&[FENCE, FENCE], "F"),
        (&[FENCE, load, FENCE, load], "Fll"),
        (&[FENCE, store, FENCE, load], "FsFl"),
        (&[store, FENCE, store, load], "sFsl"),
        // Every other order is the host's own.
        (&[store, TSO, 0x0230_000f, 0x0310_000f, 0x0110_000f, 0x0220_000f, load], "sl"),
        (&[store, TSO, W_R, TSO, load], "sFl"),
        (&[store, FENCE, amo, load], "sal"),
        (&[store, amo, FENCE, load], "sal"),
        (&[amo, store, FENCE, load], "asFl"),
        // An SC need not be one.
        (&[store, FENCE, sc, load], "sFrl"),
        (&[store, sc, FENCE, load], "srFl"),
        (&[store, FENCE, csr, FENCE], "sFxF"),
        (&[store, of(Op::LrD, 1), load], "sFl"),
    ];
    for (code, wanted) in cases {
        assert_eq!(barriers(code, true), wanted, "{code:x?}");
    }
    assert_eq!(barriers(&[store, FENCE, FENCE, amo, FENCE, load], false), "sFFaFl");
}

/// Is each change of one bit of the code at `at` noticed, and nothing where nothing changed? `overlap`: instructions do.
fn notices_each_bit(at: u64, code: &[u32], overlap: bool) {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x2000)).unwrap();
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x2000, 0).unwrap();
    for (n, &word) in code.iter().enumerate() {
        block.store_raw(at + 4 * n as u64, 4, word.into()).unwrap();
    }
    let mut translator = Translator::default();
    let limits = Limits { insns: MAX_INSNS, regions: true, optimise: true, heads: false };
    translator.translate(&mut Runs::new(&space, 0), &mut NoHooks, RAM + at, limits).unwrap();
    let read: u32 = translator.runs.iter().map(|&(start, end)| end - start).sum();
    let spans = translator.region.spans.clone();
    let bytes: Vec<u64> = (spans.iter())
        .flat_map(|s| (s.start..s.end).map(|byte| 0x1000 * u64::from(s.page) + u64::from(byte)))
        .collect();
    assert_eq!(read as usize > bytes.len(), overlap, "{read} bytes were read of {}", bytes.len());
    assert!(translator.still, "nobody stores");
    let mut unchanged = || {
        translator.copy_spans();
        translator.unchanged()
    };
    assert!(unchanged());
    for byte in bytes {
        let old = block.load(byte, 1).unwrap();
        for bit in 0..8 {
            block.store_raw(byte, 1, old ^ 1 << bit).unwrap();
            assert!(!unchanged(), "bit {bit} of the byte at {byte:#x}");
        }
        block.store_raw(byte, 1, old).unwrap();
        assert!(unchanged());
    }
    // Of two instructions that share bytes, the first was read before a store, and the second after it.
    for n in 0..if overlap { translator.found.len() } else { 0 } {
        translator.found[n].bits ^= 1 << 7;
        translator.copy_spans();
        assert!(!translator.unchanged(), "the instruction at {:#x}", translator.found[n].off);
        translator.found[n].bits ^= 1 << 7;
    }
}

#[test]
fn bytes_that_changed_before_they_were_announced_are_noticed_one_and_all() {
    let ret = encode(Op::Jalr, 0, 1, 0, 0);
    let beq = |to| encode(Op::Beq, 0, 10, 11, to);
    // lui a0, whose upper half is c.addi a1, 1.
    let within = 0x0585_0537;
    // Back, over what is no code.
    let hole = [beq(16), ret, 0, 0, within, ret];
    for at in [0x100, 0xff0, 0xff4, 0xff8, 0xff6, 0xffa] {
        notices_each_bit(at, &[beq(8), within, ret], false);
        notices_each_bit(at, &hole, false);
        // Into the middle of lui, from before it and from behind.
        notices_each_bit(at, &[beq(10), ret, within, ret], false);
        notices_each_bit(at, &[beq(10), encode(Op::Addi, 12, 12, 0, 1), within, ret], true);
        notices_each_bit(at, &[within, beq(-2), ret], true);
        notices_each_bit(at, &[beq(16), within, beq(-2), ret, within, beq(-2), ret], true);
    }
}

/// A loop of 40 instructions, entered at its last 10. Straight on from there it is 241 to the end, so there is room for 15 at the
/// head; or less, and the loop is whole.
#[test]
fn a_hot_region_that_is_cut_ends_at_the_head_of_the_loop_that_it_is_in() {
    const MOST: usize = 256;
    for (end, cut) in [(270, true), (100, false)] {
        let mut code = vec![encode(Op::Addi, 10, 10, 0, 1); end];
        code[39] = encode(Op::Bne, 0, 10, 11, -4 * 39);
        for heads in [false, true] {
            let limits = Limits { insns: MOST, regions: true, optimise: true, heads };
            let translator = translated(&code, RAM + 4 * 30, limits);
            let mut targets = Vec::new();
            translator.region.blocks.iter().for_each(|block| block.term.each_target(|to| targets.push(to)));
            assert_eq!(targets.contains(&Target::Exit(RAM)), heads && cut, "{end} {heads}");
            assert_eq!(translator.region.insns, if cut && heads { 241 } else { MOST.min(end + 1) as u32 });
        }
    }
}

/// A branch over one instruction after every nine, with a loop in the middle.
#[test]
fn a_hot_region_that_is_cut_ends_where_another_begins_but_not_within_a_loop_of_its_own() {
    let mut code = vec![encode(Op::Addi, 10, 10, 0, 1); 400];
    (8..400).step_by(10).for_each(|n| code[n] = encode(Op::Beq, 0, 10, 11, 8));
    // From the head at 100 to its end at 139.
    code[139] = encode(Op::Bne, 0, 10, 11, -4 * 39);
    let at = |n: u64| RAM + 4 * n;
    for (known, insns) in [(9, 256), (50, 50), (120, 256), (140, 140), (300, 256)] {
        let limits = Limits { insns: 256, regions: true, optimise: true, heads: true };
        let translator = translated_among(&code, RAM, limits, |pc| pc == at(known));
        assert_eq!(translator.region.insns, insns, "{known}");
        let cold = Limits { heads: false, ..limits };
        assert_eq!(translated_among(&code, RAM, cold, |pc| pc == at(known)).region.insns, 256);
    }
}
