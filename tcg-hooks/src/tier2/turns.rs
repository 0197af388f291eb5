//! How many turns a loop of one block will take, as far as registers tell in front of it.
//!
//! ```text
//!   head:   check …                                   turns = the fewest that the condition, the pages and the budget allow
//!           budget -= turns * insns ; none ──▶ cold
//!   apart:  what a turn has from the one before it      values of their own: no place can show them, so they have no way home
//!   fast:   the block, turns - 1 times; one compare    nothing looks at registers between two turns, so what the next turn
//!   last:   the block, once, with its own branch       writes anew before it is read is not made at all: only `last` makes it
//! ```
use super::{reads_of, register, roles};
use crate::ir::{Alu, Block, Cond, Ir, Kind, Region, Target, Term, Turns};

/// The longest step of a clock.
const STEP: i64 = 2048;

/// The clock of a loop of one block, if its condition is one.
pub(super) fn turns(region: &Region, number: u16) -> Option<Turns> {
    let block = region.blocks[usize::from(number)];
    let Term::Branch { cond, a, b, taken, .. } = block.term else { return None };
    // It goes on as long as this holds.
    let cond = if taken == Target::Block(number) { cond } else { cond.negate() };
    let ops = region.ops_of(&block);
    let moved = |r: u8| ops.iter().any(|ir| roles(ir).writes == Some(r));
    let (clock, bound, swapped) = match (moved(a), moved(b)) {
        (true, false) => (a, b, false),
        (false, true) => (b, a, true),
        _ => return None,
    };
    let (step, word) = step(ops, register(clock)?)?;
    let up = step > 0;
    let ends = match cond {
        Cond::Eq => false,
        Cond::Ne => true,
        Cond::Lt => up != swapped,
        Cond::Ge => up == swapped,
        // A wrap on 32 bits is not one of the comparison.
        Cond::Ltu => up != swapped && !word,
        Cond::Geu => up == swapped && !word,
    };
    ends.then_some(Turns { clock, step, bound, cond, word, insns: block.insns })
}

/// How far a block moves a register each turn, by one addition, of 32 bits or 64.
fn step(ops: &[Ir], clock: u8) -> Option<(i32, bool)> {
    let mut writes = ops.iter().filter(|ir| roles(ir).writes == Some(clock));
    let (ir, None) = (writes.next()?, writes.next()) else { return None };
    let fits = ir.a == clock && (1..=STEP).contains(&ir.imm.abs());
    match ir.kind {
        Kind::Imm(op @ (Alu::Add | Alu::AddW)) if fits => Some((ir.imm as i32, op == Alu::AddW)),
        _ => None,
    }
}

/// May nothing in it look at registers, or at the budget, and is it no more than its ops?
pub(super) fn is_closed(ops: &[Ir]) -> bool {
    !ops.iter().any(|ir| roles(ir).site || matches!(ir.kind, Kind::Fence | Kind::SwapState | Kind::Rust))
}

/// The registers that each turn writes before it reads them, a bit each.
pub(super) fn renewed(block: &Block, ops: &[Ir]) -> u32 {
    let (written, read) = written_and_read(ops);
    let bits = |ids: [Option<u8>; 2]| ids.into_iter().flatten().fold(0u32, |bits, id| bits | 1 << id);
    written & !read & !bits(reads_of(&block.term))
}

/// The registers that each turn has from the one before it.
pub(super) fn carried(ops: &[Ir]) -> impl Iterator<Item = u8> {
    let (written, read) = written_and_read(ops);
    (1..32).filter(move |id| (written & read) >> id & 1 != 0)
}

/// The registers that are written, and those that are read before that.
fn written_and_read(ops: &[Ir]) -> (u32, u32) {
    let (mut written, mut read) = (0u32, 0u32);
    let bits = |ids: [Option<u8>; 2]| ids.into_iter().flatten().fold(0u32, |bits, id| bits | 1 << id);
    for ir in ops {
        let roles = roles(ir);
        read |= bits(roles.reads) & !written;
        written |= roles.writes.map_or(0, |id| 1 << id);
    }
    (written, read)
}
