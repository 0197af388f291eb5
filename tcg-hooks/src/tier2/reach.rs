//! Which bytes an access of a block may touch, as a base register and a range of offsets from it.
//!
//! ```text
//!   srliw t0, a0, 24        t0: 0 ..= 255                       of its own: a range
//!   addi  t0, t0, 64        t0: 64 ..= 319
//!   slli  t0, t0, 2         t0: 256 ..= 1276
//!   add   t0, t0, s2        t0: s2 + 256 ..= s2 + 1276          off a base, as long as nothing writes s2
//!   lw    t1, 0(t0)         bytes s2 + 256 ..= s2 + 1279
//! ```
//!
//! So the look-ups of a table share a check (`jit/x86_64/elide.rs`), whatever their indices. A range holds for all 64 bits of
//! a register; one that is not known to is none.
use super::HOST;
use crate::ir::{Alu, Bits, FIRST_FLOAT, Ir, Kind};

/// Bytes that an access may touch: `base + first ..= base + last`, with the value that `base` has at the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The register, as the ops name it.
    pub(crate) base: u8,
    /// Which of its values: how often it was written before.
    pub(crate) value: u16,
    /// The first byte.
    pub(crate) first: i32,
    /// The last byte.
    pub(crate) last: i32,
    /// Is it all of them, and not some?
    pub(crate) exact: bool,
}

/// No range is longer than this, and no bound larger.
const MOST: i64 = 1 << 24;
/// Registers, as ops name them.
const NAMES: usize = HOST as usize + super::HOSTS;
/// Bases that nothing writes, behind those: what each guest register held at the region's entry; and, in place of that of `x0`,
/// the region's own address.
pub(crate) const ENTRY: u8 = NAMES as u8;
const BASES: usize = NAMES + 32;

/// What is known of a register's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// `lo ..= hi`, as an unsigned number of 64 bits.
    Range(i64, i64),
    /// So much more than a value of another register.
    Off {
        base: u8,
        value: u16,
        lo: i64,
        hi: i64,
    },
}

fn range(lo: i64, hi: i64) -> Known {
    if 0 <= lo && lo <= hi && hi <= MOST { Known::Range(lo, hi) } else { Known::Nothing }
}

/// What is known of all registers at some place in a block.
struct State {
    known: [Known; NAMES],
    values: [u16; BASES],
    /// The region's address, if constants are known as so much more than that.
    pc: Option<u64>,
}

/// What is known of the guest registers at the head of a block, off what they held at the region's entry.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Facts {
    known: [Known; 32],
    /// Does what was checked at the entry hold still?
    checked: bool,
}

impl Facts {
    /// At the entry: each register holds what it holds.
    pub(super) fn at_entry() -> Facts {
        let itself = |g: usize| Known::Off { base: ENTRY + g as u8, value: 0, lo: 0, hi: 0 };
        Facts { known: std::array::from_fn(itself), checked: true }
    }

    /// What holds whichever of two ways led here.
    pub(super) fn meet(&mut self, other: &Facts) {
        for (a, _) in self.known.iter_mut().zip(&other.known).filter(|(a, b)| a != b) {
            *a = Known::Nothing;
        }
        self.checked &= other.checked;
    }

    fn state(&self, pc: u64) -> State {
        let mut state = State { known: [Known::Nothing; NAMES], values: [0; BASES], pc: Some(pc) };
        state.known[..32].copy_from_slice(&self.known);
        if !self.checked {
            state.values[usize::from(ENTRY)..].fill(1);
        }
        state
    }

    /// The reach of each access of a block's ops, off a base from [`ENTRY`] on where what was checked of that at the entry holds
    /// still; and what is known at the block's end.
    pub(super) fn through(&self, pc: u64, ops: &[Ir], out: &mut Vec<Option<Reach>>) -> Facts {
        let mut state = self.state(pc);
        state.go(ops, out);
        let checked = state.values[usize::from(ENTRY)] == 0;
        let lasting = |g: usize| match state.known[g] {
            Known::Off { base, .. } if base < ENTRY || !checked => Known::Nothing,
            known => known,
        };
        Facts { known: std::array::from_fn(lasting), checked }
    }
}

/// The reach of each access of a block's ops.
pub(crate) fn reaches(ops: &[Ir], out: &mut Vec<Option<Reach>>) {
    State { known: [Known::Nothing; NAMES], values: [0; BASES], pc: None }.go(ops, out);
}

/// Floating-point registers, which share numbers with nothing, are not followed; neither is x0.
fn writes_integer(ir: &Ir) -> bool {
    ir.rd != 0 && (ir.rd < FIRST_FLOAT || ir.rd >= HOST) && !matches!(ir.kind, Kind::Store(_))
}

impl State {
    fn go(&mut self, ops: &[Ir], out: &mut Vec<Option<Reach>>) {
        out.clear();
        for ir in ops {
            out.push(match ir.kind {
                Kind::Load(mem) => self.reach(ir.a, ir.imm, mem.bytes()),
                // A page with code somewhere in the range would send all of them the long way round.
                Kind::Store(mem) => self.reach(ir.a, ir.imm, mem.bytes()).filter(|reach| reach.exact),
                _ => None,
            });
            // Rust may write more than the op says.
            if ir.kind.may_leave() {
                self.forget();
            } else if writes_integer(ir) {
                let known = self.result(ir);
                self.write(ir.rd, known);
            }
        }
    }

    /// So much more than the region's address as this constant is, if constants are known so, and it is near.
    fn off_pc(&self, constant: i64) -> Option<i64> {
        let distance = constant.wrapping_sub(self.pc? as i64);
        (-MOST..=MOST).contains(&distance).then_some(distance)
    }

    fn known(&self, name: u8) -> Known {
        match name {
            0 => Known::Range(0, 0),
            _ => self.known.get(usize::from(name)).copied().unwrap_or(Known::Nothing),
        }
    }

    /// The same, of an address: at least what it is itself.
    fn place(&self, name: u8) -> Option<(u8, u16, i64, i64)> {
        match self.known(name) {
            Known::Off { base, value, lo, hi } => {
                (*self.values.get(usize::from(base))? == value).then_some((base, value, lo, hi))
            }
            Known::Range(lo, hi) if self.values[usize::from(ENTRY)] == 0 => {
                self.off_pc(lo).zip(self.off_pc(hi)).map(|(lo, hi)| (ENTRY, 0, lo, hi))
            }
            _ => None,
        }
        .or_else(|| Some((name, *self.values.get(usize::from(name))?, 0, 0)))
    }

    fn off(&self, name: u8, lo: i64, hi: i64) -> Known {
        match self.place(name) {
            Some((base, value, from, to)) if base != 0 && from + lo >= -MOST && to + hi <= MOST => {
                Known::Off { base, value, lo: from + lo, hi: to + hi }
            }
            _ => Known::Nothing,
        }
    }

    fn reach(&self, name: u8, imm: i64, bytes: u32) -> Option<Reach> {
        let (base, value, lo, hi) = self.place(name)?;
        let (first, last) = (lo + imm, hi + imm + i64::from(bytes) - 1);
        let exact = lo == hi;
        Some(Reach { base, value, first: first.try_into().ok()?, last: last.try_into().ok()?, exact })
    }

    fn write(&mut self, name: u8, known: Known) {
        let at = usize::from(name);
        if let (Some(k), Some(v)) = (self.known.get_mut(at), self.values.get_mut(at)) {
            *k = known;
            *v = v.wrapping_add(1);
        }
    }

    fn forget(&mut self) {
        self.known = [Known::Nothing; NAMES];
        self.values.iter_mut().for_each(|v| *v = v.wrapping_add(1));
    }

    /// What the op writes.
    fn result(&self, ir: &Ir) -> Known {
        match ir.kind {
            Kind::Li => match (range(ir.imm, ir.imm), self.off_pc(ir.imm)) {
                (Known::Nothing, Some(off)) => Known::Off { base: ENTRY, value: 0, lo: off, hi: off },
                (known, _) => known,
            },
            Kind::Mov => match self.known(ir.a) {
                Known::Nothing => self.off(ir.a, 0, 0),
                known => known,
            },
            Kind::Load(mem) if mem.bytes() < 4 && !mem.signed() => range(0, (1 << (8 * mem.bytes())) - 1),
            Kind::Imm(op) => self.with_constant(op, ir.a, ir.imm),
            Kind::Reg(op) => self.with_register(op, ir.a, ir.b),
            Kind::Bits(op) => match (op, self.known(ir.a)) {
                (Bits::Sh1add, Known::Range(lo, hi)) => self.off(ir.b, lo * 2, hi * 2),
                (Bits::Sh2add, Known::Range(lo, hi)) => self.off(ir.b, lo * 4, hi * 4),
                (Bits::Sh3add, Known::Range(lo, hi)) => self.off(ir.b, lo * 8, hi * 8),
                (Bits::ZextH, _) => range(0, 0xffff),
                _ => Known::Nothing,
            },
            _ => Known::Nothing,
        }
    }

    fn with_constant(&self, op: Alu, a: u8, imm: i64) -> Known {
        let known = self.known(a);
        match (op, known) {
            (Alu::And, Known::Range(_, hi)) if imm >= 0 => range(0, hi.min(imm)),
            (Alu::And, _) if imm >= 0 => range(0, imm),
            (Alu::Add | Alu::AddW, Known::Range(lo, hi)) => range(lo + imm, hi + imm),
            (Alu::Add, _) => self.off(a, imm, imm),
            (Alu::Sll | Alu::SllW, Known::Range(lo, hi)) if (0..24).contains(&imm) => range(lo << imm, hi << imm),
            (Alu::Srl | Alu::Sra | Alu::SrlW | Alu::SraW, Known::Range(lo, hi)) if (0..24).contains(&imm) => {
                range(lo >> imm, hi >> imm)
            }
            (Alu::Srl, _) if (40..64).contains(&imm) => range(0, (1 << (64 - imm)) - 1),
            (Alu::SrlW, _) if (8..32).contains(&imm) => range(0, (1 << (32 - imm)) - 1),
            (Alu::Or | Alu::Xor, Known::Range(_, hi)) if imm >= 0 => range(0, ceiling(hi | imm)),
            (Alu::Slt | Alu::Sltu, _) => range(0, 1),
            _ => Known::Nothing,
        }
    }

    fn with_register(&self, op: Alu, a: u8, b: u8) -> Known {
        match (op, self.known(a), self.known(b)) {
            (Alu::Add | Alu::AddW, Known::Range(p, q), Known::Range(r, s)) => range(p + r, q + s),
            (Alu::Add, Known::Range(lo, hi), _) => self.off(b, lo, hi),
            (Alu::Add, _, Known::Range(lo, hi)) => self.off(a, lo, hi),
            (Alu::And, Known::Range(_, x), Known::Range(_, y)) => range(0, x.min(y)),
            (Alu::And, Known::Range(_, hi), _) | (Alu::And, _, Known::Range(_, hi)) => range(0, hi),
            (Alu::Or | Alu::Xor, Known::Range(_, x), Known::Range(_, y)) => range(0, ceiling(x | y)),
            (Alu::Slt | Alu::Sltu, ..) => range(0, 1),
            _ => Known::Nothing,
        }
    }
}

/// The largest number of as many bits.
fn ceiling(n: i64) -> i64 {
    (1 << (64 - n.leading_zeros())) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::MemOp;
    use crate::ir::fold_alu;
    use crate::testkit::rng::Rng;

    fn ir(kind: Kind, rd: u8, a: u8, b: u8, imm: i64) -> Ir {
        Ir { kind, rd, a, b, site: 0, imm }
    }

    const WORD: Kind = Kind::Load(MemOp(2));

    fn reach_of_last(ops: &[Ir]) -> Option<Reach> {
        let mut out = Vec::new();
        reaches(ops, &mut out);
        out.last().copied().flatten()
    }

    #[test]
    fn a_look_up_reaches_its_table_whatever_the_index() {
        let ops = [
            ir(Kind::Imm(Alu::SrlW), 5, 10, 0, 24),
            ir(Kind::Imm(Alu::Add), 5, 5, 0, 64),
            ir(Kind::Imm(Alu::Sll), 5, 5, 0, 2),
            ir(Kind::Reg(Alu::Add), 5, 5, 18, 0),
            ir(WORD, 6, 5, 0, 0),
        ];
        let reach = Reach { base: 18, value: 0, first: 256, last: 1279, exact: false };
        assert_eq!(reach_of_last(&ops), Some(reach));
        // What is added to a base that is no more says nothing of the one that is.
        let mut late = ops.to_vec();
        late.insert(4, ir(Kind::Imm(Alu::Add), 18, 18, 0, 8));
        assert_eq!(reach_of_last(&late), Some(Reach { base: 5, value: 4, first: 0, last: 3, exact: true }));
    }

    #[test]
    fn bits_that_are_added_to_a_range_may_make_more_than_they_make_of_its_end() {
        // 3 ..= 9, and 7 | 8 is 15, where 9 | 8 is 9.
        for op in [Alu::Or, Alu::Xor] {
            let ops = [
                ir(Kind::Imm(Alu::And), 5, 10, 0, 6),
                ir(Kind::Imm(Alu::Add), 5, 5, 0, 3),
                ir(Kind::Imm(op), 5, 5, 0, 8),
                ir(Kind::Reg(Alu::Add), 5, 5, 18, 0),
                ir(WORD, 6, 5, 0, 0),
            ];
            assert_eq!(reach_of_last(&ops).map(|r| (r.base, r.first, r.last)), Some((18, 0, 15 + 3)));
        }
    }

    /// What the ops do, on values: each address lies where its reach says.
    #[test]
    fn every_address_of_random_ops_lies_in_its_reach() {
        use Alu::*;
        const OPS: [Alu; 16] = [Add, Sub, Xor, Or, And, Sll, Srl, Sra, Slt, Sltu, AddW, SubW, SllW, SrlW, SraW, Mul];
        let mut rng = Rng::new(0x5eed);
        let (mut ranged, mut out) = (0, Vec::new());
        for _ in 0..20_000 {
            let mut x: [u64; 32] = std::array::from_fn(|_| rng.value());
            x[0] = 0;
            let name = |rng: &mut Rng| rng.below(8) as u8;
            let (mut ops, mut seen) = (Vec::new(), Vec::new());
            for _ in 0..30 {
                let (rd, a, b) = (name(&mut rng), name(&mut rng), name(&mut rng));
                let imm = rng.pick(&[0, 1, 2, 3, 8, 24, 31, 40, 56, 63, 255, 1020, 2047, -1, -8, -2048]);
                let any = rng.value();
                let (kind, value) = match rng.below(9) {
                    0 => (Kind::Li, imm as u64),
                    1 => (Kind::Mov, x[usize::from(a)]),
                    2..5 => {
                        let op = rng.pick(&OPS);
                        (Kind::Imm(op), fold_alu(op, x[usize::from(a)], imm as u64).unwrap_or(any))
                    }
                    5..7 => {
                        let op = rng.pick(&OPS);
                        (Kind::Reg(op), fold_alu(op, x[usize::from(a)], x[usize::from(b)]).unwrap_or(any))
                    }
                    7 => {
                        let (op, n) = rng.pick(&[(Bits::Sh1add, 1), (Bits::Sh2add, 2), (Bits::Sh3add, 3)]);
                        (Kind::Bits(op), (x[usize::from(a)] << n).wrapping_add(x[usize::from(b)]))
                    }
                    _ => {
                        let mem = MemOp(rng.below(8) as u8);
                        let bits = 8 * mem.bytes();
                        let low = any & u64::MAX >> (64 - bits);
                        let value =
                            if mem.signed() { ((low << (64 - bits)) as i64 >> (64 - bits)) as u64 } else { low };
                        (Kind::Load(mem), value)
                    }
                };
                ops.push(ir(kind, rd, a, b, imm));
                seen.push(x);
                if rd != 0 {
                    x[usize::from(rd)] = value;
                }
            }
            reaches(&ops, &mut out);
            for ((ir, x), reach) in ops.iter().zip(&seen).zip(&out) {
                let (Kind::Load(mem), Some(reach)) = (ir.kind, reach) else { continue };
                let at = x[usize::from(ir.a)].wrapping_add_signed(ir.imm);
                let off = at.wrapping_sub(x[usize::from(reach.base)]) as i64;
                let end = off + i64::from(mem.bytes()) - 1;
                assert!(
                    i64::from(reach.first) <= off && end <= i64::from(reach.last),
                    "{ir:?} {reach:?} {off}\n{ops:#?}"
                );
                assert!(!reach.exact || i64::from(reach.first) == off);
                ranged += usize::from(reach.base != ir.a);
            }
        }
        assert!(ranged > 1_000, "{ranged} addresses were found off another base");
    }

    #[test]
    fn nothing_is_known_of_a_register_that_rust_may_have_written() {
        let ops = [ir(Kind::Imm(Alu::And), 5, 10, 0, 15), ir(Kind::Rust, 0, 0, 0, 0), ir(WORD, 6, 5, 0, 0)];
        assert_eq!(reach_of_last(&ops).map(|r| (r.base, r.exact)), Some((5, true)));
    }
}
