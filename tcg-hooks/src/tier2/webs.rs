//! Values as webs: the writes of one guest register that may reach the same read are one value.
//!
//! ```text
//!   position:  head of b0 │ its ops … │ its end │ head of b1 │ …          bit p: alive as position p begins
//!   hot:       until its last use by an op        cold: until the last place that may show all registers
//! ```
use super::{leaves, reads_of, roles};
use crate::ir::{Ir, Region, Target};

/// Words of a set of positions. A region of many short blocks, of instructions that become several ops, may have more
/// positions than that: it stays as it is.
const WORDS: usize = 32;
/// All registers but `x0`.
const ALL: u32 = !1;
/// No op, or no web.
pub(super) const NONE: u16 = u16::MAX;

/// A set of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Positions([u64; WORDS]);

impl Positions {
    pub(super) const NONE: Positions = Positions([0; WORDS]);

    fn add(&mut self, p: usize) {
        self.0[p / 64] |= 1 << (p % 64);
    }

    pub(super) fn has(&self, p: usize) -> bool {
        self.0[p / 64] >> (p % 64) & 1 != 0
    }

    pub(super) fn meets(&self, other: &Positions) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    pub(super) fn join(&mut self, other: &Positions) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    pub(super) fn leave_out(&mut self, other: &Positions) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// A value.
#[derive(Debug, Clone)]
pub(super) struct Web {
    pub(super) guest: u8,
    /// Is it the guest register's value at the region's entry, among others?
    pub(super) entry: bool,
    pub(super) hot: Positions,
    pub(super) cold: Positions,
    /// Is there a place that may show it?
    pub(super) shown: bool,
    /// How often it is read and written, by weight.
    pub(super) reads: u32,
    pub(super) writes: u32,
    /// A web that would best be in the same register.
    pub(super) like: u16,
}

/// An op's webs: what it writes, what was in that register, what it reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpWebs {
    pub(super) writes: u16,
    before: u16,
    pub(super) reads: [u16; 2],
}

/// All values of a region.
pub(super) struct Webs {
    pub(super) webs: Vec<Web>,
    /// By op.
    pub(super) ops: Vec<OpWebs>,
    /// By block: those of its end, and those that hold the guest registers at its head and at its end.
    pub(super) terms: Vec<[u16; 2]>,
    pub(super) heads: Vec<[u16; 32]>,
    pub(super) ends: Vec<[u16; 32]>,
    /// The position of each block's head.
    pub(super) positions: Vec<usize>,
}

/// Sets of guest registers that are alive at the borders of a block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Alive {
    hot: u32,
    cold: u32,
}

impl Alive {
    fn any(self) -> u32 {
        self.hot | self.cold
    }

    fn write(&mut self, register: Option<u8>) {
        if let Some(r) = register {
            self.hot &= !(1 << r);
            self.cold &= !(1 << r);
        }
    }

    fn read(&mut self, registers: [Option<u8>; 2]) {
        registers.into_iter().flatten().for_each(|r| self.hot |= 1 << r);
    }
}

struct Union(Vec<u16>);

impl Union {
    fn find(&mut self, mut at: u16) -> u16 {
        while self.0[usize::from(at)] != at {
            let up = self.0[usize::from(self.0[usize::from(at)])];
            self.0[usize::from(at)] = up;
            at = up;
        }
        at
    }

    fn join(&mut self, a: u16, b: u16) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[usize::from(b)] = a;
    }
}

/// What is alive at the end of a block.
fn behind(region: &Region, block: usize, heads: &[Alive]) -> Alive {
    let term = &region.blocks[block].term;
    let mut alive = Alive { hot: 0, cold: if leaves(term) { ALL } else { 0 } };
    term.each_target(|target| {
        if let Target::Block(b) = target {
            alive.hot |= heads[usize::from(b)].hot;
            alive.cold |= heads[usize::from(b)].cold;
        }
    });
    alive
}

/// What is alive at the head of a block, of what is behind it.
fn through(region: &Region, block: usize, mut alive: Alive) -> Alive {
    let block = &region.blocks[block];
    alive.read(reads_of(&block.term));
    for ir in region.ops[block.first as usize..block.end as usize].iter().rev() {
        let roles = roles(ir);
        alive.write(roles.writes);
        alive.read(roles.reads);
        if roles.site {
            alive.cold = ALL;
        }
    }
    if block.poll {
        alive.cold = ALL;
    }
    alive
}

/// What is alive at each head. A block passes on each register or does not, whatever the others are, so it is gone through
/// twice, and not each time that something is alive behind it.
fn heads_alive(region: &Region) -> Vec<Alive> {
    let all = Alive { hot: ALL, cold: ALL };
    let ways: Vec<_> =
        (0..region.blocks.len()).map(|b| (through(region, b, Alive::default()), through(region, b, all))).collect();
    let mut heads = vec![Alive::default(); region.blocks.len()];
    loop {
        let mut changed = false;
        for (b, (none, all)) in ways.iter().enumerate().rev() {
            let out = behind(region, b, &heads);
            let alive = Alive { hot: none.hot | out.hot & all.hot, cold: none.cold | out.cold & all.cold };
            changed |= heads[b] != alive;
            heads[b] = alive;
        }
        if !changed {
            return heads;
        }
    }
}

/// The ops of which only the value counts, and nothing ever asks for it.
pub(super) fn dead(region: &Region, is_pure: impl Fn(&Ir) -> bool) -> Vec<bool> {
    let heads = heads_alive(region);
    let mut dead = vec![false; region.ops.len()];
    for (b, block) in region.blocks.iter().enumerate() {
        let mut alive = behind(region, b, &heads);
        alive.read(reads_of(&block.term));
        for j in (block.first as usize..block.end as usize).rev() {
            let ir = &region.ops[j];
            let roles = roles(ir);
            if is_pure(ir) && roles.writes.is_some_and(|g| alive.any() >> g & 1 == 0) {
                dead[j] = true;
                continue;
            }
            alive.write(roles.writes);
            alive.read(roles.reads);
            if roles.site {
                alive.cold = ALL;
            }
        }
    }
    dead
}

/// Has it so few positions that a set holds them?
pub(super) fn fits(region: &Region) -> bool {
    fits_with(region, 0, 0)
}

/// And with so many more?
pub(super) fn fits_with(region: &Region, ops: usize, blocks: usize) -> bool {
    region.ops.len() + ops + 2 * (region.blocks.len() + blocks) < 64 * WORDS
}

impl Webs {
    pub(super) fn of(region: &Region) -> Webs {
        let blocks = &region.blocks;
        let heads = heads_alive(region);
        // Elements: each guest register at each head, then each op's write.
        let first_op = 32 * blocks.len();
        let mut union = Union((0..(first_op + region.ops.len()) as u16).collect());
        let mut ends = Vec::with_capacity(blocks.len());
        for (b, block) in blocks.iter().enumerate() {
            let mut now: [u16; 32] = std::array::from_fn(|g| (32 * b + g) as u16);
            for j in block.first as usize..block.end as usize {
                if let Some(g) = roles(&region.ops[j]).writes {
                    now[usize::from(g)] = (first_op + j) as u16;
                }
            }
            ends.push(now);
        }
        for (b, block) in blocks.iter().enumerate() {
            block.term.each_target(|target| {
                if let Target::Block(to) = target {
                    let alive = heads[usize::from(to)].any();
                    for g in (1..32).filter(|g| alive >> g & 1 != 0) {
                        union.join(ends[b][g], 32 * to + g as u16);
                    }
                }
            });
        }
        let mut webs = Webs {
            webs: Vec::new(),
            ops: Vec::with_capacity(region.ops.len()),
            terms: Vec::new(),
            heads: Vec::new(),
            ends: Vec::new(),
            positions: Vec::new(),
        };
        let mut numbers = vec![NONE; union.0.len()];
        let mut web_of = |webs: &mut Vec<Web>, element: u16, guest: u8| {
            let number = &mut numbers[usize::from(union.find(element))];
            if *number == NONE {
                *number = webs.len() as u16;
                let (hot, cold) = (Positions::NONE, Positions::NONE);
                webs.push(Web { guest, entry: false, hot, cold, shown: false, reads: 0, writes: 0, like: NONE });
            }
            *number
        };
        let mut at = 0;
        for (b, block) in blocks.iter().enumerate() {
            let mut now: [u16; 32] = std::array::from_fn(|g| match g {
                0 => NONE,
                _ => web_of(&mut webs.webs, (32 * b + g) as u16, g as u8),
            });
            webs.heads.push(now);
            webs.positions.push(at);
            let weight = region.weights[b];
            for j in block.first as usize..block.end as usize {
                let roles = roles(&region.ops[j]);
                let reads = roles.reads.map(|r| r.map_or(NONE, |r| now[usize::from(r)]));
                reads.into_iter().filter(|&w| w != NONE).for_each(|w| webs.webs[usize::from(w)].reads += weight);
                let (mut writes, mut before) = (NONE, NONE);
                if let Some(g) = roles.writes {
                    writes = web_of(&mut webs.webs, (first_op + j) as u16, g);
                    before = std::mem::replace(&mut now[usize::from(g)], writes);
                    webs.webs[usize::from(writes)].writes += weight;
                    // The first operand is often its last use.
                    if reads[0] != NONE && webs.webs[usize::from(writes)].like == NONE {
                        webs.webs[usize::from(writes)].like = reads[0];
                        let like = &mut webs.webs[usize::from(reads[0])].like;
                        if *like == NONE {
                            *like = writes;
                        }
                    }
                }
                webs.ops.push(OpWebs { writes, before, reads });
            }
            let term = reads_of(&block.term).map(|r| r.map_or(NONE, |r| now[usize::from(r)]));
            term.into_iter().filter(|&w| w != NONE).for_each(|w| webs.webs[usize::from(w)].reads += weight);
            webs.terms.push(term);
            webs.ends.push(now);
            at += (block.end - block.first) as usize + 2;
        }
        for &web in &webs.heads[usize::from(region.entry)][1..] {
            webs.webs[usize::from(web)].entry = true;
        }
        webs.live(region, &heads);
        webs
    }

    /// Where each value is alive.
    fn live(&mut self, region: &Region, heads: &[Alive]) {
        for (b, block) in region.blocks.iter().enumerate() {
            let mut alive = behind(region, b, heads);
            let mut now = self.ends[b];
            let head = self.positions[b];
            alive.read(reads_of(&block.term));
            self.mark(alive, &now, head + (block.end - block.first) as usize + 1);
            for j in (block.first as usize..block.end as usize).rev() {
                let p = head + 1 + j - block.first as usize;
                let roles = roles(&region.ops[j]);
                if let Some(g) = roles.writes {
                    // What it is written to is not another's, though no op reads it.
                    self.webs[usize::from(self.ops[j].writes)].hot.add(p + 1);
                    now[usize::from(g)] = self.ops[j].before;
                }
                alive.write(roles.writes);
                alive.read(roles.reads);
                if roles.site {
                    alive.cold = ALL;
                }
                self.mark(alive, &now, p);
            }
            if block.poll {
                alive.cold = ALL;
            }
            self.mark(alive, &now, head);
        }
    }

    fn mark(&mut self, alive: Alive, now: &[u16; 32], p: usize) {
        for g in (1..32).filter(|g| alive.any() >> g & 1 != 0) {
            let web = &mut self.webs[usize::from(now[g])];
            if alive.hot >> g & 1 != 0 {
                web.hot.add(p);
            }
            web.cold.add(p);
            web.shown |= alive.cold >> g & 1 != 0;
        }
    }
}
