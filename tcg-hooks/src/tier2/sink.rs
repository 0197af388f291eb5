//! Values are made where they are used: what a compiler for 31 registers spreads out needs fewer of them at a time then.
//!
//! ```text
//!   lw s9,0(t0) ; lw s8,0(t1) ; … ; xor a1,a1,s9 ; xor a3,a3,s8        16 look-ups, and a register for each
//!   lw s9,0(t0) ; xor a1,a1,s9 ; lw s8,0(t1) ; xor a3,a3,s8 ; …        one
//! ```
//!
//! The host finds what can be done at once by itself, over more instructions than these.
use super::{HOSTS, roles};
use crate::ir::{Alu, Ir, Kind};

/// Does it nothing but write its register, the same later as now? Divisions are long: they are best begun early.
fn moves(ir: &Ir) -> bool {
    match ir.kind {
        Kind::Li | Kind::Mov | Kind::Imm(_) | Kind::LoadFast(..) | Kind::Bits(_) => !roles(ir).site,
        Kind::Reg(op) => {
            !matches!(op, Alu::Div | Alu::Divu | Alu::Rem | Alu::Remu | Alu::DivW | Alu::DivuW | Alu::RemW | Alu::RemuW)
        }
        _ => false,
    }
}

/// May a load not be done behind it?
fn is_store(ir: &Ir) -> bool {
    ir.kind.may_store() || matches!(ir.kind, Kind::Fence)
}

/// Do they name more registers than the host has? Else there is nothing to gain.
pub(super) fn is_crowded(ops: &[Ir]) -> bool {
    let named = ops.iter().fold(0u32, |named, ir| {
        let roles = roles(ir);
        roles.reads.into_iter().chain([roles.writes]).flatten().fold(named, |named, id| named | 1 << id)
    });
    named.count_ones() as usize > HOSTS
}

/// The ops of a block, each as near to the first op that reads what it writes as it can be, if no more values are alive on
/// the way for it.
pub(super) fn sink(ops: &mut [Ir]) {
    for j in (0..ops.len()).rev() {
        if moves(&ops[j])
            && let Some(to) = place(ops, j)
        {
            ops[j..to].rotate_left(1);
        }
    }
}

/// The op that op `j` goes before.
fn place(ops: &[Ir], j: usize) -> Option<usize> {
    let ir = ops[j];
    let roles_of_it = roles(&ir);
    let result = roles_of_it.writes?;
    let loads = ir.kind.accesses();
    let to = (j + 1..ops.len()).find(|&k| {
        let other = roles(&ops[k]);
        let reads = other.reads.contains(&Some(result));
        let writes =
            other.writes == Some(result) || roles_of_it.reads.iter().any(|r| r.is_some() && *r == other.writes);
        reads || writes || other.site || loads && is_store(&ops[k])
    })?;
    if to == j + 1 || !roles(&ops[to]).reads.contains(&Some(result)) {
        return None;
    }
    // Operands that nothing reads later would live on.
    let dies = |r: u8| {
        for ir in &ops[j + 1..] {
            let roles = roles(ir);
            if roles.reads.contains(&Some(r)) || roles.site {
                return false;
            }
            if roles.writes == Some(r) {
                return true;
            }
        }
        false
    };
    let [a, b] = roles_of_it.reads;
    let ends = [a, b.filter(|_| b != a)].into_iter().flatten().filter(|&r| r != result && dies(r)).count();
    (ends <= 1).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::MemOp;

    fn ir(kind: Kind, rd: u8, a: u8, b: u8) -> Ir {
        Ir { kind, rd, a, b, site: 0, imm: 4 }
    }

    const LOAD: Kind = Kind::LoadFast(MemOp(2), 0);
    const ADD: Kind = Kind::Imm(Alu::Add);
    const XOR: Kind = Kind::Reg(Alu::Xor);
    const STORE: Kind = Kind::StoreFast(MemOp(2));

    fn sunk(ops: &[Ir]) -> Vec<Ir> {
        let mut ops = ops.to_vec();
        sink(&mut ops);
        ops
    }

    #[test]
    fn look_ups_are_done_one_after_the_other_where_each_is_used() {
        let ops = [
            ir(ADD, 5, 10, 0),
            ir(ADD, 6, 11, 0),
            ir(LOAD, 5, 5, 0),
            ir(LOAD, 6, 6, 0),
            ir(XOR, 8, 8, 5),
            ir(XOR, 9, 9, 6),
        ];
        assert_eq!(sunk(&ops), [ops[0], ops[2], ops[4], ops[1], ops[3], ops[5]]);
    }

    #[test]
    fn nothing_goes_behind_what_may_change_or_show_it() {
        let user = ir(XOR, 8, 8, 5);
        for between in [
            ir(ADD, 10, 10, 0),
            ir(ADD, 5, 9, 0),
            ir(STORE, 0, 9, 11),
            ir(Kind::Store(MemOp(2)), 0, 9, 11),
            ir(Kind::Load(MemOp(2)), 6, 9, 0),
            ir(Kind::Rust, 0, 0, 0),
            ir(Kind::Fence, 0, 0, 0),
        ] {
            let ops = [ir(LOAD, 5, 10, 0), between, user];
            assert_eq!(sunk(&ops), ops, "{between:?}");
        }
        // What is no load goes behind a store.
        let ops = [ir(ADD, 5, 10, 0), ir(STORE, 0, 9, 11), user];
        assert_eq!(sunk(&ops), [ops[1], ops[0], ops[2]]);
        // Two operands that end here would live on in its place.
        let ops = [ir(XOR, 5, 10, 11), ir(ADD, 9, 9, 0), user, ir(LOAD, 10, 9, 0), ir(LOAD, 11, 9, 0)];
        assert_eq!(sunk(&ops)[0], ops[0]);
    }
}
