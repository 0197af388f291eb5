//! A loop of one block in two: one with its accesses checked in front of it, and one with a check for each.
//!
//! ```text
//!   b1:  check a1 … ; check s2 … ──no──▶ b8    each base that the loop leaves alone or moves by one step, for all its accesses
//!        fork b7, b8
//!   b7:  the block, accesses without checks, so without sites: nothing in it can look at registers
//!        out if … ; while the moving bases stay on their pages b7, else b1    (one of them is compared: the clock)
//!   b8:  the block as it was, and sooner or later back to b1
//! ```
//!
//! Where the turns can be counted as well, b7 is two blocks: see `turns.rs`.
//!
//! A loop of two blocks is made one before, if it is entered in its middle.
//!
//! A check holds as that of a group does (`jit/x86_64/elide.rs`): nothing between two polls serves requests, and what comes back
//! from a poll comes to b1. Where no site is, a chain of ops that makes an address, and nothing else, becomes part of the
//! access: `slli`, `add`, `lw` of one register are one host load.
use super::index::{Indexed, indexed, widen};
use super::reach::{Reach, reaches};
use super::{Ahead, Learned, register, roles, simplify, sink, turns, webs};
use crate::ir::{Alu, Bits, Block, Check, Ir, Kind, Region, Target, Term};
use notdirty_core::PAGE_SIZE;

/// The longest step of a base: a page has a few of them.
const STEP: i64 = PAGE_SIZE as i64 / 4;
/// Instructions of a loop that has a copy for one turn, at most.
const ONCE: u16 = 32;
/// Values that the turns of a loop have from those before, at most.
const CARRIED: usize = 31;
/// Bases that are checked in front of a loop, at most.
pub(crate) const MOST_CHECKS: usize = 6;
/// Instructions of all loops that are split, at most: a TB has room for so many more.
const COPIED: u32 = 176;
/// No displacement of a load that makes its own address is longer.
pub(crate) const DISPLACEMENT: i64 = 1 << 20;
/// Sites of a region, at most: their numbers have eleven bits.
const SITES: usize = 2000;

/// Splits the loops that gain by it; whether there are any.
pub(super) fn split(region: &mut Region, ahead: Ahead) -> bool {
    for number in 0..region.blocks.len() {
        join(region, number);
    }
    let blocks = region.blocks.len() as u16;
    // The busiest first: there is room for so many.
    let mut numbers: Vec<u16> = (0..blocks).collect();
    numbers.sort_by_key(|&number| std::cmp::Reverse(region.weights[usize::from(number)]));
    let mut room =
        (region.insns + COPIED).saturating_sub(region.blocks.iter().map(|block| u32::from(block.insns)).sum());
    numbers.retain(|&number| split_one(region, number, ahead, &mut room));
    if numbers.is_empty() {
        return false;
    }
    // Fast copies are emitted behind their head, cold ones behind all.
    let mut order: Vec<u16> = Vec::with_capacity(region.blocks.len());
    let mut colds = Vec::new();
    for number in 0..blocks {
        order.push(number);
        match region.blocks[usize::from(number)].term {
            Term::Fork { fast, cold, .. } => (order.push(fast), colds.push(cold)),
            Term::Count { fast, cold, .. } => (order.extend(fast..cold), colds.push(cold)),
            _ => continue,
        };
    }
    order.extend(colds);
    reorder(region, &order);
    simplify::sweep(region);
    true
}

/// A loop of two blocks, entered at the second: the first goes on with a copy of it, and is a loop by itself.
fn join(region: &mut Region, number: usize) {
    let block = region.blocks[number];
    let Term::Goto(Target::Block(to)) = block.term else { return };
    let next = region.blocks[usize::from(to)];
    let mut round = false;
    next.term.each_target(|target| round |= target == Target::Block(number as u16));
    let ops = [region.ops_of(&block), region.ops_of(&next)].concat();
    let sites = ops.iter().filter(|ir| roles(ir).site).count();
    let fits = webs::fits_with(region, ops.len(), 0)
        && region.sites.len() + sites < SITES
        && block.insns + next.insns <= COPIED as u16;
    if !round || !matches!(next.term, Term::Branch { .. }) || !fits || ops.iter().any(|ir| ir.kind.may_leave()) {
        return;
    }
    let here = (block.end - block.first) as usize;
    let first = region.ops.len() as u32;
    for (n, mut ir) in ops.into_iter().enumerate() {
        if roles(&ir).site {
            let mut site = region.sites[usize::from(ir.site)];
            // What the second copy has is charged at the head, too.
            site.refund += if n < here { next.insns } else { 0 };
            region.sites.push(site);
            ir.site = region.sites.len() as u16 - 1;
        }
        region.ops.push(ir);
    }
    let end = region.ops.len() as u32;
    let insns = block.insns + next.insns;
    region.blocks[number] = Block { insns, first, end, poll: true, term: next.term, ..block };
    simplify::sweep(region);
}

/// Numbers the blocks anew, in this order.
fn reorder(region: &mut Region, order: &[u16]) {
    let mut number = vec![0u16; order.len()];
    for (new, &old) in (0..).zip(order) {
        number[usize::from(old)] = new;
    }
    let now = |old: u16| number[usize::from(old)];
    let to = |target: Target| match target {
        Target::Block(b) => Target::Block(now(b)),
        exit => exit,
    };
    region.blocks = order.iter().map(|&old| region.blocks[usize::from(old)]).collect();
    region.weights = order.iter().map(|&old| region.weights[usize::from(old)]).collect();
    region.entry = now(region.entry);
    region.checks.iter_mut().for_each(|check| check.cold = now(check.cold));
    for block in &mut region.blocks {
        match &mut block.term {
            Term::Goto(target) => *target = to(*target),
            Term::Branch { taken, fall, .. } => (*taken, *fall) = (to(*taken), to(*fall)),
            Term::Again { out, fast, head, .. } => (*out, *fast, *head) = (to(*out), now(*fast), now(*head)),
            Term::Fork { fast, cold, .. } => (*fast, *cold) = (now(*fast), now(*cold)),
            Term::Count { fast, once, cold, .. } => (*fast, *once, *cold) = (now(*fast), now(*once), now(*cold)),
            Term::Turn { fast, last, .. } => (*fast, *last) = (now(*fast), now(*last)),
            Term::Indirect { .. } | Term::System { .. } => {}
        }
    }
}

/// `room`: instructions that may yet be copied.
fn split_one(region: &mut Region, number: u16, ahead: Ahead, room: &mut u32) -> bool {
    let at = usize::from(number);
    if !region.is_simple_loop(number) {
        return false;
    }
    let block = region.blocks[at];
    let ops = region.ops_of(&block).to_vec();
    let mut checks = Vec::new();
    let fast_ops = unchecked(region, &ops, &mut checks, ahead.learned);
    let copies = if ahead.turns { 3 } else { 1 };
    // All copies must have their place among the positions, and what is done in front of them.
    let fits = webs::fits_with(region, copies * ops.len() + checks.len() + CARRIED, 2 + copies)
        && region.sites.len() + ops.len() < SITES
        && u32::from(block.insns) <= *room;
    if checks.is_empty() || !fits {
        return false;
    }
    *room -= u32::from(block.insns);
    let Term::Branch { cond, a, b, word, taken, fall } = block.term else { return false };
    let (here, weight) = (Target::Block(number), region.weights[at]);
    let turns = if ahead.turns && turns::is_closed(&fast_ops) { turns::turns(region, number) } else { None };
    let fast = region.blocks.len() as u16;
    let (cold, head_term) = if let Some(turns) = turns {
        let silent = Block { insns: 0, poll: false, ..block };
        let apart: Vec<u8> = turns::carried(&fast_ops).filter(|_| ahead.apart).collect();
        let enter = fast;
        let fast = if apart.is_empty() { fast } else { fast + 1 };
        let last = fast + 1;
        // One turn has nothing to hand on. Of a long loop it goes to the copy with checks.
        let once = match fast == enter {
            true => Some(last),
            false => (block.insns <= ONCE).then_some(last + 1),
        };
        let cold = once.unwrap_or(last) + 1;
        if fast != enter {
            // Values of their own: nothing shows them, so they need no place at home, nor more than the bits that turns look at.
            let same = |&id: &u8| Ir { kind: Kind::Imm(Alu::Add), rd: id, a: id, b: 0, site: 0, imm: 0 };
            let ops: Vec<Ir> = apart.iter().map(same).collect();
            push_block(region, Block { term: Term::Goto(Target::Block(fast)), ..silent }, &ops, weight.div_ceil(8));
        }
        let term = Term::Turn { clock: turns.clock, fast, last };
        let made = folded(fast_ops.clone(), turns::renewed(&block, &fast_ops), ahead.sink);
        push_block(region, Block { term, ..silent }, &made, weight);
        let made = folded(fast_ops, 0, ahead.sink);
        for _ in last..cold {
            push_block(region, silent, &made, weight.div_ceil(8));
        }
        (cold, Term::Count { turns, fast: enter, once: once.unwrap_or(cold), cold })
    } else {
        let cold = fast + 1;
        let clock = checks.iter().find(|check| check.step != 0).map(|check| match check.index {
            Some((index, shift)) => (index, check.step >> shift),
            None => (check.base, check.step),
        });
        let term = if let Some((clock, _)) = clock {
            let (cond, out) = if fall == here { (cond, taken) } else { (cond.negate(), fall) };
            Term::Again { cond, a, b, word, out, fast, head: number, clock }
        } else {
            let to = |target: Target| if target == here { Target::Block(fast) } else { target };
            Term::Branch { cond, a, b, word, taken: to(taken), fall: to(fall) }
        };
        let mut fast_ops = folded(fast_ops, 0, ahead.sink);
        // Sites that are left have numbers of their own, as what is where differs from the other copy.
        for ir in fast_ops.iter_mut().filter(|ir| roles(ir).site) {
            region.sites.push(region.sites[usize::from(ir.site)]);
            ir.site = region.sites.len() as u16 - 1;
        }
        push_block(region, Block { term, poll: true, ..block }, &fast_ops, weight);
        (cold, Term::Fork { fast, cold, clock })
    };
    // A check that fails is not done again at once: the clock of the cold copy is the budget.
    let (cond, out) = if fall == here { (cond, taken) } else { (cond.negate(), fall) };
    let term = Term::Again { cond, a, b, word, out, fast: cold, head: number, clock: 0 };
    push_block(region, Block { poll: true, term, ..block }, &ops, weight.div_ceil(16));
    let first = region.checks.len() as i64;
    let heads: Vec<Ir> = (first..)
        .zip(&checks)
        .map(|(imm, check)| {
            let index = check.index.map_or(0, |(index, _)| index);
            Ir { kind: Kind::Check, rd: 0, a: check.base, b: index, site: 0, imm }
        })
        .collect();
    region.checks.extend(checks.into_iter().map(|check| Check { cold, ..check }));
    let from = region.ops.len() as u32;
    region.ops.extend(heads);
    let end = region.ops.len() as u32;
    let head = &mut region.blocks[at];
    *head = Block { insns: 0, first: from, end, poll: false, term: head_term, ..*head };
    region.weights[at] = weight.div_ceil(8);
    true
}

fn push_block(region: &mut Region, block: Block, ops: &[Ir], weight: u32) {
    let first = region.ops.len() as u32;
    region.ops.extend_from_slice(ops);
    region.blocks.push(Block { first, end: region.ops.len() as u32, shares: true, ..block });
    region.weights.push(weight);
}

/// The ops without the checks that are done in front, which are added to `checks`.
fn unchecked(region: &Region, ops: &[Ir], checks: &mut Vec<Check>, learned: &dyn Fn(u64) -> Learned) -> Vec<Ir> {
    let mut reach = Vec::new();
    reaches(ops, &mut reach);
    let mut fast = ops.to_vec();
    for (j, (ir, reach)) in fast.iter_mut().zip(&reach).enumerate() {
        let (store, mem) = match ir.kind {
            Kind::Load(mem) => (false, mem),
            Kind::Store(mem) => (true, mem),
            _ => continue,
        };
        let Some(reach) = reach.filter(|reach| reach.base != 0) else { continue };
        let Learned { odd, beside, elsewhere, beside_run } = learned(region.sites[usize::from(ir.site)].pc);
        // A page with code would fail the check for all.
        if store && beside {
            continue;
        }
        let check = off_base(ops, &reach).or_else(|| off_index(ops, j, mem.bytes()));
        let lone = reach.exact && !odd;
        let Some(number) = check.and_then(|check| add(checks, Check { store, ..check }, lone)) else { continue };
        checks[number].beside_run |= beside_run;
        if elsewhere {
            checks[number].kept = Some(number as u8);
        }
        ir.kind = if store { Kind::StoreFast(mem) } else { Kind::LoadFast(mem, 0) };
        if !store {
            ir.b = 0;
        }
        ir.site = number as u16 + 1;
    }
    for ir in fast.iter_mut().filter(|ir| ir.kept().is_some_and(|check| checks[usize::from(check)].kept.is_none())) {
        ir.site = 0;
    }
    let indices: Vec<u8> = checks.iter().filter_map(|check| Some(check.index?.0)).collect();
    widen(&mut fast, &indices);
    fast
}

/// The ops with addresses made by the loads themselves, and values where they are used, if it `sinks` them. The next turn writes the registers in `renewed` before it reads them.
fn folded(mut ops: Vec<Ir>, renewed: u32, sinks: bool) -> Vec<Ir> {
    for j in (0..ops.len()).rev() {
        if simplify::is_pure(&ops[j]) && is_unread(&ops[j + 1..], ops[j].rd, renewed) {
            drop_op(&mut ops[j]);
        }
    }
    (0..ops.len()).for_each(|j| fold(&mut ops, j, renewed));
    ops.retain(|ir| !is_dropped(ir));
    if sinks && sink::is_crowded(&ops) {
        sink::sink(&mut ops);
    }
    ops
}

/// What is to be checked for an access off a base that the loop leaves alone or moves by one step.
fn off_base(ops: &[Ir], reach: &Reach) -> Option<Check> {
    let step = step(ops, reach.base)?;
    // Off a base that was moved already: as from the head.
    let moved = step * i32::from(reach.value);
    let (first, last) = (reach.first + moved, reach.last + moved);
    Some(Check { base: reach.base, first, last, step, ..Check::default() })
}

/// The same for an access with an index.
fn off_index(ops: &[Ir], j: usize, bytes: u32) -> Option<Check> {
    let Indexed { base, index, shift, offset, step } = indexed(ops, j)?;
    let first = i32::try_from(offset).ok().filter(|offset| i64::from(*offset).abs() < DISPLACEMENT)?;
    let last = first + bytes as i32 - 1;
    Some(Check { base, index: Some((index, shift)), first, last, step, ..Check::default() })
}

/// Adds the bytes of an access to what is checked, if they can be: to which check. `lone`: if it is the only one, its alignment says
/// that it is on one page.
fn add(checks: &mut Vec<Check>, new: Check, lone: bool) -> Option<usize> {
    let Check { first, last, .. } = new;
    let lone = lone.then_some((last - first + 1) as u8);
    let is_same = |check: &Check| (check.base, check.index, check.store) == (new.base, new.index, new.store);
    let Some(known) = checks.iter().position(is_same) else {
        let room = last - first < PAGE_SIZE as i32 && checks.len() < MOST_CHECKS;
        checks.extend(room.then_some(Check { lone, ..new }));
        return room.then(|| checks.len() - 1);
    };
    let check = &mut checks[known];
    let (from, to) = (check.first.min(first), check.last.max(last));
    if to - from >= PAGE_SIZE as i32 {
        return None;
    }
    if (check.first, check.last, check.lone) != (first, last, lone) {
        check.lone = None;
    }
    (check.first, check.last) = (from, to);
    Some(known)
}

/// How far a block moves a register each time: not at all, or by one addition of a constant.
fn step(block: &[Ir], register: u8) -> Option<i32> {
    let mut found = 0;
    for ir in block.iter().filter(|ir| roles(ir).writes == Some(register)) {
        match ir.kind {
            Kind::Imm(Alu::Add) if ir.a == register && found == 0 && (1..=STEP).contains(&ir.imm.abs()) => {
                found = ir.imm as i32;
            }
            _ => return None,
        }
    }
    Some(found)
}

/// Takes the ops that make the address of load `j`, and nothing else, into it.
fn fold(ops: &mut [Ir], j: usize, renewed: u32) {
    let Kind::LoadFast(mem, 0) = ops[j].kind else { return };
    // `base + imm`, where the base was added up.
    let Some(k) = maker_for(ops, j, ops[j].a, j, renewed) else { return };
    let (base, index, mut shift) = match ops[k] {
        Ir { kind: Kind::Reg(Alu::Add), a, b, .. } => {
            // The one that was shifted is the index.
            let is_shifted = |r: u8| {
                register(r)
                    .and_then(|r| last_write(ops, k, r))
                    .is_some_and(|m| matches!(ops[m].kind, Kind::Imm(Alu::Sll)))
            };
            if is_shifted(a) { (b, a, 0) } else { (a, b, 0) }
        }
        Ir { kind: Kind::Bits(op @ (Bits::Sh1add | Bits::Sh2add | Bits::Sh3add)), a, b, .. } => (
            b,
            a,
            match op {
                Bits::Sh1add => 1,
                Bits::Sh2add => 2,
                _ => 3,
            },
        ),
        _ => return,
    };
    if register(base).is_none() || register(index).is_none() || !stays(ops, k, j, base) || !stays(ops, k, j, index) {
        return;
    }
    drop_op(&mut ops[k]);
    let mut load = Ir { a: base, b: index, ..ops[j] };
    // The index was shifted, and a constant was added to it before.
    while let Some(m) = maker_for(ops, j, load.b, k, renewed).filter(|_| load.b != load.a) {
        let Ir { a: from, imm, .. } = ops[m];
        if register(from).is_none() || !stays(ops, m, j, from) {
            break;
        }
        match ops[m].kind {
            Kind::Imm(Alu::Sll) if shift == 0 && (1..=3).contains(&imm) => shift = imm as u8,
            Kind::Imm(Alu::Add) if (load.imm + (imm << shift)).abs() < DISPLACEMENT => {
                load.imm += imm << shift;
            }
            _ => break,
        }
        load.b = from;
        drop_op(&mut ops[m]);
    }
    load.kind = Kind::LoadFast(mem, shift);
    ops[j] = load;
}

/// The op is not there any more.
fn drop_op(ir: &mut Ir) {
    *ir = Ir { kind: Kind::Mov, a: ir.rd, b: 0, imm: 0, ..*ir };
}

fn is_dropped(ir: &Ir) -> bool {
    ir.kind == Kind::Mov && ir.rd == ir.a
}

/// Is the register written, here or by the next turn, before anything may read it?
fn is_unread(behind: &[Ir], id: u8, renewed: u32) -> bool {
    let Some(id) = register(id) else { return false };
    for ir in behind.iter().filter(|ir| !is_dropped(ir)) {
        let roles = roles(ir);
        if roles.site || roles.reads.contains(&Some(id)) {
            return false;
        }
        if roles.writes == Some(id) {
            return true;
        }
    }
    renewed >> id & 1 != 0
}

/// The op before `end` that wrote this register last.
fn last_write(ops: &[Ir], end: usize, register: u8) -> Option<usize> {
    (0..end).rev().find(|&i| roles(&ops[i]).writes == Some(register) && !is_dropped(&ops[i]))
}

/// Does nothing write the register between two ops?
fn stays(ops: &[Ir], from: usize, to: usize, register: u8) -> bool {
    ops[from + 1..to].iter().all(|ir| roles(ir).writes != Some(register) || is_dropped(ir))
}

/// The op before `end` that wrote `from` for load `j` alone: nothing else reads it, no site may show it, and it is gone
/// behind the load, or at the next turn.
fn maker_for(ops: &[Ir], j: usize, from: u8, end: usize, renewed: u32) -> Option<usize> {
    let from = register(from)?;
    let k = last_write(ops, end, from)?;
    let reads = |ir: &Ir| roles(ir).reads.contains(&Some(from)) && !is_dropped(ir);
    if ops[k + 1..j].iter().any(|ir| reads(ir) || roles(ir).site) {
        return None;
    }
    if roles(&ops[j]).writes == Some(from) {
        return Some(k);
    }
    for ir in &ops[j + 1..] {
        if reads(ir) || roles(ir).site {
            return None;
        }
        if roles(ir).writes == Some(from) && !is_dropped(ir) {
            return Some(k);
        }
    }
    (renewed >> from & 1 != 0).then_some(k)
}
