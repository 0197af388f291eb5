//! The programs: what a hart does, step by step.

use crate::common::*;
use crate::memory::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::riscv::csr::{mstatus, num};
use notdirty_tcg::testkit::rng::Rng;
use std::collections::HashMap;

/// What the host does at a stop.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    Save,
    Fork,
    Write(u64),
    Plug(u64),
    Unplug,
    End,
}

pub struct Plan {
    /// Each hart's program.
    pub mains: Vec<Asm>,
    pub acts: Vec<Act>,
    pub spaces: Vec<Space>,
}

fn code_leaf(rng: &mut Rng, page: u64) -> u64 {
    (CODE + page * 0x1000 + rng.below(VARIANTS) * VARIANT) >> 2 | RWX
}

fn data_leaf(rng: &mut Rng, page: u64, in_place: bool, user: u64) -> u64 {
    let frame = if rng.chance(if in_place { 95 } else { 10 }) { page } else { rng.below(FRAMES) };
    let rights = match rng.below(if in_place { 60 } else { 16 }) {
        0 => RW | USER ^ user,
        1 => X | user,
        2 => V | 2 | user,
        3 => UNMARKED | user,
        4 => UNWRITTEN | user,
        5 if !in_place => 0,
        _ => RW | user,
    };
    (DATA + frame * 0x1000) >> 2 | rights
}

fn big_leaf(rng: &mut Rng, page: u64, in_place: bool) -> u64 {
    let frame =
        if rng.chance(if in_place { 95 } else { 20 }) { page } else { rng.below(2) * 0x200 + rng.below(BIG_PAGES) };
    (BIG + frame * 0x1000) >> 2 | RW
}

/// Of one leaf that all of a group have.
fn napot_leaf(rng: &mut Rng) -> u64 {
    let group = rng.below(2) * 0x200 + rng.below(BIG_PAGES / NAPOT) * NAPOT;
    1 << 63 | (BIG + group * 0x1000 + 0x8000) >> 2 | RW
}

/// A superpage in place or another, or a table.
fn big(rng: &mut Rng, space: u64) -> u64 {
    match rng.below(4) {
        0 => BIG >> 2 | RW,
        1 => (BIG + 0x20_0000) >> 2 | RW,
        _ => table(space, 3) >> 2 | 1,
    }
}

/// A change of a page table: where, and the page that a fence has to be about, if that is enough.
struct Change {
    at: u64,
    va: Option<u64>,
    leaf: u64,
    count: u64,
}

fn change(rng: &mut Rng, space: u64, place: bool, whole: &mut HashMap<(u64, u64), bool>) -> Change {
    let first = |va: u64| table(space, 2) + (va - RAM) / 512;
    let of = |at: u64, va: u64, leaf: u64| Change { at, va: Some(va), leaf, count: 1 };
    match rng.below(15) {
        0..3 => {
            let page = rng.below(CODE_PAGES);
            of(first(CODE) + page * 8, CODE + page * 0x1000, code_leaf(rng, page))
        }
        3 => {
            let page = rng.below(CODE_PAGES);
            of(first(USER_CODE) + page * 8, USER_CODE + page * 0x1000, code_leaf(rng, page) | USER)
        }
        4..7 => {
            let page = rng.below(DATA_PAGES);
            of(first(DATA) + page * 8, DATA + page * 0x1000, data_leaf(rng, page, place, 0))
        }
        7 => {
            let page = rng.below(DATA_PAGES);
            of(first(USER_DATA) + page * 8, USER_DATA + page * 0x1000, data_leaf(rng, page, place, USER))
        }
        8 | 9 => {
            let page = rng.below(BIG_PAGES);
            let cut = whole.insert((space, page / NAPOT), false) == Some(true);
            let va = (!cut).then_some(BIG + page * 0x1000);
            Change { at: table(space, 3) + page * 8, va, leaf: big_leaf(rng, page, place), count: 1 }
        }
        10 => {
            let group = rng.below(BIG_PAGES / NAPOT);
            let known = whole.insert((space, group), true) == Some(true);
            let va = known.then_some(BIG + (group * NAPOT + rng.below(NAPOT)) * 0x1000);
            Change { at: table(space, 3) + group * NAPOT * 8, va, leaf: napot_leaf(rng), count: NAPOT }
        }
        _ => {
            let was = whole.get(&(space, u64::MAX)) == Some(&true);
            let leaf =
                if was && rng.chance(70) { rng.pick(&[BIG, BIG + 0x20_0000]) >> 2 | RW } else { big(rng, space) };
            let is = leaf & 0xe != 0;
            whole.insert((space, u64::MAX), is);
            // What was a table has many pages.
            let va = (was && is).then(|| BIG + rng.below(BIG_PAGES) * 0x1000);
            Change { at: table(space, 1) + (BIG - RAM) / 0x20_0000 * 8, va, leaf, count: 1 }
        }
    }
}

impl Change {
    /// Stores it and fences it; `shared`: while all other harts wait, which then fence it, too.
    fn put(&self, asm: &mut Asm, rng: &mut Rng, asid: u64, shared: Option<u64>) {
        let by_asid = rng.chance(60);
        let by_va = self.va.filter(|_| rng.chance(75));
        if let Some(other) = shared {
            asm.la(T0, SHARED);
            let lock = asm.here();
            asm.i(li(T1, 1)).op(Op::AmoswapD, T1, T0, T1, 0);
            let to = back(asm, lock);
            asm.op(Op::Bne, 0, T1, ZERO, to);
            asm.i(li(T1, i32::from(by_va.is_some()) + 2 * i32::from(by_asid))).op(Op::Sd, 0, T0, T1, 24);
            asm.la(T1, by_va.unwrap_or(RAM)).op(Op::Sd, 0, T0, T1, 32);
            asm.i(li(T1, asid as i32)).op(Op::Sd, 0, T0, T1, 40).i(li(T1, 1)).op(Op::Sd, 0, T0, T1, 8);
            asm.op(Op::Fence, 0, 0, 0, 0xff).word(T2, IPI as u32).op(Op::Sw, 0, T2, T1, 4 * other as i32);
            let wait = asm.here();
            asm.op(Op::Ld, T1, T0, 0, 16);
            let to = back(asm, wait);
            asm.op(Op::Beq, 0, T1, ZERO, to);
        }
        asm.la(T0, self.at).word(T1, self.leaf as u32);
        if self.leaf >> 63 != 0 {
            asm.op(Op::Slli, T1, T1, 0, 32).op(Op::Srli, T1, T1, 0, 32).i(li(T2, -1)).op(Op::Slli, T2, T2, 0, 63);
            asm.op(Op::Or, T1, T1, T2, 0);
        }
        for n in 0..self.count {
            asm.op(Op::Sd, 0, T0, T1, 8 * n as i32);
        }
        asm.i(li(T1, asid as i32));
        asm.la(T0, by_va.unwrap_or(RAM));
        fence(asm, if by_va.is_some() { T0 } else { ZERO }, if by_asid { T1 } else { ZERO }, T2);
        if shared.is_some() {
            asm.la(T0, SHARED).op(Op::Fence, 0, 0, 0, 0xff).op(Op::Sd, 0, T0, ZERO, 8);
            let wait = asm.here();
            asm.op(Op::Ld, T1, T0, 0, 16);
            let to = back(asm, wait);
            asm.op(Op::Bne, 0, T1, ZERO, to).op(Op::Sd, 0, T0, ZERO, 0);
        }
    }
}

/// Loads from some pages, among them that of `va`, by code that has not learned of any.
fn look(asm: &mut Asm, rng: &mut Rng, va: u64) {
    asm.i(li(S7, 3));
    let round = asm.here();
    for n in 0..8u64 {
        let near = va.wrapping_add(rng.below(5).wrapping_sub(2).wrapping_mul(0x1000));
        let (data, big) = (DATA + rng.below(DATA_PAGES) * 0x1000, BIG + rng.below(BIG_PAGES) * 0x1000);
        asm.la(A1, rng.pick(&[va, va, near, data, big]));
        // Alone, or several at once.
        for m in 0..rng.pick(&[1, 1, 4]) {
            asm.op(rng.pick(&[Op::Ld, Op::Lw, Op::Lbu]), A3, A1, 0, (8 * (n + 9 * m)) as i32).op(
                Op::Xor,
                A0,
                A0,
                A3,
                0,
            );
        }
    }
    asm.i(addi(S7, S7, -1));
    let to = back(asm, round);
    asm.op(Op::Bne, 0, S7, ZERO, to);
}

/// A call of the code, in S-mode or U-mode, on some pages.
fn call(asm: &mut Asm, rng: &mut Rng) {
    let user = rng.chance(25);
    let rounds = if rng.chance(30) { 30 } else { 4 };
    asm.i(li(S7, rounds));
    let round = asm.here();
    let (base, pages) = match rng.below(4) {
        0 if !user => (BIG, BIG_PAGES),
        1 => (USER_DATA, DATA_PAGES),
        _ if user => (USER_DATA, DATA_PAGES),
        _ => (DATA, DATA_PAGES),
    };
    let first = rng.below(pages - 1);
    let count = 1 + rng.below(pages - first);
    let entry = rng.pick(&[0u64, 0, 2, 4]) * 0x1000;
    let [code, data] = [(), ()].map(|()| if rng.chance(60) { ALIASES[0] } else { rng.pick(&ALIASES) });
    asm.la(A1, base + first * 0x1000).i(li(A2, count as i32));
    if data != 0 {
        alias(asm, T2, data);
        asm.op(Op::Add, A1, A1, T2, 0);
    }
    alias(asm, T2, code);
    if user {
        asm.la(T0, USER_CODE + entry).op(Op::Add, T0, T0, T2, 0).op(Op::Csrrw, ZERO, T0, 0, num::SEPC.into());
        asm.la(RA, USER_CODE + 5 * 0x1000 + 0x400).i(li(T1, 0x100)).op(Op::Csrrc, ZERO, T1, 0, num::SSTATUS.into());
        let behind = asm.here() + 16;
        asm.la(T0, behind).op(Op::Csrrw, ZERO, T0, 0, num::SSCRATCH.into()).op(Op::Sret, 0, 0, 0, 0);
    } else if code != 0 || rng.chance(20) {
        asm.la(T0, CODE + entry).op(Op::Add, T0, T0, T2, 0).op(Op::Jalr, RA, T0, 0, 0);
    } else {
        let to = jal(RA, asm.here(), CODE + entry);
        asm.i(to);
    }
    asm.i(addi(S7, S7, -1));
    let to = back(asm, round);
    asm.op(Op::Bne, 0, S7, ZERO, to);
}

/// What hart `hart` of so many does; one that is alone is stopped now and then.
fn main(rng: &mut Rng, steps: u32, (hart, harts): (u64, u64), spaces: &[Space], in_place: &[bool]) -> (Asm, Vec<Act>) {
    let count = spaces.len() as u64;
    let asid = |space: u64| spaces[space as usize].asid;
    let mut owner = HashMap::from([(asid(0), 0u64)]);
    // Which groups and superpages have one leaf: none that another hart may have changed.
    let mut whole = HashMap::new();
    let (mut now, mut acts, mut plugged, mut over) = (0u64, Vec::new(), false, DATA);
    let mut asm = Asm::at(MAIN + hart * MAIN_SIZE);
    asm.i(li(A0, 1 + hart as i32)).word(S6, 0x1000);
    for _ in 0..steps {
        match rng.below(30) {
            0..5 => {
                now = if rng.chance(60) { rng.below(count) } else { (now + 1) % count };
                asm.la(T0, SATPS + 8 * now).op(Op::Ld, T0, T0, 0, 0).op(Op::Csrrw, ZERO, T0, 0, num::SATP.into());
                if owner.insert(asid(now), now).is_some_and(|before| before != now) {
                    let by = if rng.chance(70) { T1 } else { ZERO };
                    asm.i(li(T1, asid(now) as i32)).op(Op::SfenceVma, 0, ZERO, by, 0);
                }
            }
            5..12 => {
                let space = if rng.chance(80) { now } else { rng.below(count) };
                for _ in 0..if rng.chance(20) { 6 } else { 1 } {
                    if harts > 1 {
                        whole.clear();
                    }
                    // What is in place goes elsewhere, and comes back.
                    let place = in_place[space as usize] && rng.chance(50);
                    let mut change = change(rng, space, place, &mut whole);
                    if harts > 1 && (BIG..BIG + BIG_PAGES * 0x1000).contains(&change.va.unwrap_or(0)) {
                        change.va = None;
                    }
                    if rng.chance(30) {
                        look(&mut asm, rng, change.va.unwrap_or(BIG));
                    }
                    change.put(&mut asm, rng, asid(space), (harts > 1).then_some(1 - hart));
                    if rng.chance(60) {
                        look(&mut asm, rng, change.va.unwrap_or(BIG));
                    }
                }
            }
            12 => {
                asm.word(T0, (mstatus::SUM | mstatus::MXR) as u32 & rng.bits() as u32);
                asm.op(rng.pick(&[Op::Csrrs, Op::Csrrc]), ZERO, T0, 0, num::SSTATUS.into());
            }
            13 => {
                let (address, config) = if rng.chance(50) {
                    ((1 << 54) - 1, 0x1f)
                } else {
                    (
                        ((DATA + rng.below(DATA_PAGES) * 0x1000) >> 2) | ((1 << rng.within(5, 11)) - 1),
                        0x18 | rng.below(2),
                    )
                };
                asm.la(T0, SATPS + 0x800).op(Op::Ld, A5, T0, 0, 0);
                if config != 0x1f {
                    asm.word(A5, address as u32).op(Op::Slli, A5, A5, 0, 32).op(Op::Srli, A5, A5, 0, 32);
                }
                asm.word(A6, 0x1f00 | config as u32).i(li(A7, 0)).op(Op::Ecall, 0, 0, 0, 0);
            }
            14 => {
                let base = rng.pick(&[DATA, USER_DATA]);
                asm.la(A1, base + rng.below(DATA_PAGES) * 0x1000);
                asm.i(li(A7, 1 + rng.below(2) as i32)).op(Op::Ecall, 0, 0, 0, 0);
            }
            15 => {
                // A frame that is seen at another address, too, in all spaces.
                let (page, variant) = (rng.pick(&[1u64, 3]), 1 + rng.below(VARIANTS - 1));
                asm.la(T0, CODE + page * 0x1000 + variant * VARIANT + 0x800)
                    .word(T1, addi(A0, A0, rng.within(-99, 99) as i32));
                asm.op(Op::Sw, 0, T0, T1, 0).op(Op::FenceI, 0, 0, 0, 0);
            }
            16 if harts == 1 => {
                let act = match rng.below(5) {
                    0 => Act::Save,
                    1 => Act::Write(DATA + rng.below(FRAMES * 0x200) * 8),
                    2 => Act::Fork,
                    _ if plugged => Act::Unplug,
                    _ if rng.chance(50) => Act::Plug(DATA + rng.below(DATA_PAGES - 1) * 0x1000),
                    _ => Act::Plug(CODE + rng.below(CODE_PAGES - 1) * 0x1000),
                };
                plugged = match act {
                    Act::Plug(_) => true,
                    Act::Unplug => false,
                    _ => plugged,
                };
                acts.push(act);
                if let Act::Plug(at) = act {
                    over = at;
                }
                look(&mut asm, rng, over);
                asm.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0);
                look(&mut asm, rng, over);
            }
            _ => call(&mut asm, rng),
        }
    }
    acts.push(Act::End);
    if hart == 0 {
        if harts > 1 {
            asm.la(T0, SHARED + 56);
            let wait = asm.here();
            asm.op(Op::Ld, T1, T0, 0, 0);
            let to = back(&asm, wait);
            asm.op(Op::Beq, 0, T1, ZERO, to);
        }
        asm.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0);
    } else {
        asm.la(T0, SHARED + 56).i(li(T1, 1)).op(Op::Sd, 0, T0, T1, 0);
    }
    asm.i(jal(ZERO, 0, 0));
    assert!(asm.here() < MAIN + (hart + 1) * MAIN_SIZE, "{:#x}", asm.here());
    (asm, acts)
}

pub fn plan(rng: &mut Rng, steps: u32, harts: u64) -> Plan {
    let few = harts > 1 || rng.chance(50);
    let count = if few { 3 } else { SPACES };
    let mostly = rng.pick(&[0, 50, 100, 100]);
    let in_place: Vec<bool> = (0..count).map(|_| rng.chance(mostly)).collect();
    let spaces: Vec<Space> = (0..count)
        .map(|space| {
            let place = in_place[space as usize];
            Space {
                asid: if space % 8 == 7 { space - 1 } else { space + 1 },
                mode: rng.pick(&[8, 8, 9, 10]),
                code: std::array::from_fn(|page| code_leaf(rng, page as u64)),
                data: std::array::from_fn(|page| data_leaf(rng, page as u64, place, 0)),
                user_code: std::array::from_fn(|page| code_leaf(rng, page as u64) | USER),
                user_data: std::array::from_fn(|page| data_leaf(rng, page as u64, place, USER)),
                leaves: std::array::from_fn(|page| big_leaf(rng, page as u64, place)),
                big: big(rng, space),
                cut: rng.chance(70),
            }
        })
        .collect();
    let mut mains = Vec::new();
    let mut acts = Vec::new();
    for hart in 0..harts {
        let (asm, own) = main(rng, steps, (hart, harts), &spaces, &in_place);
        mains.push(asm);
        acts = if hart == 0 { own } else { acts };
    }
    Plan { mains, acts, spaces }
}
