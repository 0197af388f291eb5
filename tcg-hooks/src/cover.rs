//! Edge coverage: which ways control went, as counters of a byte each.
//!
//! ```text
//!   conditional branch   an edge for each way, (pc of the branch, pc gone to): its number is given out when it is first met
//!   jalr                 (pc, target) hashed onto the first INDIRECT counters
//!   jal, straight on     nothing: whoever comes there came by one of the above
//!
//!   a vCPU's counters │ INDIRECT │ numbers in the order of their giving out … │     behind its TLB, so that emitted code has them
//! ```
//!
//! An edge is the guest's alone: which TBs there are, and which tier runs, changes no count. Emitted code counts by one
//! instruction; where the way on is polled, or has other ways to it, in a block of its own in between.

use crate::guest::{Goes, flow};
use crate::hooks::{Plan, Wanted};
use crate::ir::{Block, Does, Ir, Kind, Region, Site, Target, Term};
use hashbrown::HashMap;
use notdirty_softmmu::tlb::COVERAGE_BYTES;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters for indirect jumps, in front of all others.
pub const INDIRECT: usize = 4096;

/// The numbers of edges. Harts of a machine share them, and machines may.
#[derive(Debug, Default)]
pub struct Edges {
    numbers: Mutex<HashMap<(u64, u64), u32>>,
    hashed: bool,
}

/// Counters of the other numbering, and of the places of comparisons.
const HASHED: usize = 1 << 16;

impl Edges {
    fn map(&self) -> MutexGuard<'_, HashMap<(u64, u64), u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other numbering, for tools that share a map of 64 KiB as AFL has it: all edges, direct or not, are hashed by where they come from
    /// and go to, without a table. The same edge has the same counter in each machine and process; different ones may share it.
    pub fn hashed() -> Edges {
        Edges { hashed: true, ..Edges::default() }
    }

    /// The bits of a counter's number that an indirect jump may have.
    pub(crate) fn mask(&self) -> u16 {
        if self.hashed { (HASHED - 1) as u16 } else { (INDIRECT - 1) as u16 }
    }

    /// The counter of an indirect jump.
    pub fn indirect(&self, from: u64, to: u64) -> usize {
        usize::from(((to >> 1) as u16 ^ mix(from)) & self.mask())
    }

    /// The counter of a direct edge. When there is no room for more, edges share counters.
    pub fn number(&self, from: u64, to: u64) -> u32 {
        if self.hashed {
            return self.indirect(from, to) as u32;
        }
        let mut map = self.map();
        let next = map.len() as u32;
        let n = *map.entry((from, to)).or_insert(next);
        (INDIRECT + n as usize % (COVERAGE_BYTES - INDIRECT)) as u32
    }

    /// How many counters are in use, those of indirect jumps among them.
    pub fn counters(&self) -> usize {
        if self.hashed {
            return HASHED;
        }
        (INDIRECT + self.map().len()).min(COVERAGE_BYTES)
    }

    /// Each direct edge, from and to, with its counter; none if they are hashed.
    pub fn all(&self) -> Vec<((u64, u64), u32)> {
        let map = self.map();
        let mut all: Vec<_> = map.keys().copied().collect();
        drop(map);
        all.sort_unstable();
        all.into_iter().map(|(from, to)| ((from, to), self.number(from, to))).collect()
    }
}

/// What the target of an indirect jump at `from` is mixed with.
pub(crate) const fn mix(from: u64) -> u16 {
    ((from >> 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

/// The places of comparisons: branches, and `slt` and its like. Harts of a machine share the numbers, and machines may. What was compared
/// last at each is kept by the vCPU: see [`Vcpu::operands`](crate::Vcpu::operands).
#[derive(Debug, Default)]
pub struct Compares(Mutex<HashMap<u64, u16>>);

impl Compares {
    fn map(&self) -> MutexGuard<'_, HashMap<u64, u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of the instruction at `pc`. When there is no room for more, some share one.
    pub fn number(&self, pc: u64) -> u16 {
        let mut map = self.map();
        let next = (map.len() % HASHED) as u16;
        *map.entry(pc).or_insert(next)
    }

    /// Each instruction that was met, with its place.
    pub fn all(&self) -> Vec<(u64, u16)> {
        let mut all: Vec<_> = self.map().iter().map(|(pc, at)| (*pc, *at)).collect();
        all.sort_unstable();
        all
    }
}

/// One way out of a block: what to do on it.
#[derive(Default)]
struct Way {
    counts: Vec<(u32, u8)>,
    hook: Option<Ir>,
}

/// Counts the edges of a region, if they are, and calls hooks of blocks; `lasts`: where the last instruction of each block is, and what.
/// The polls are known.
pub(crate) fn cover(region: &mut Region, lasts: &[(u64, Option<Goes>)], edges: Option<&Edges>, hooks: &Plan) {
    let old = std::mem::take(&mut region.blocks);
    let mut comes = vec![0u32; old.len()];
    for block in &old {
        block.term.each_target(|target| {
            if let Target::Block(to) = target {
                comes[usize::from(to)] += 1;
            }
        });
    }
    let pc_of = |target: Target| match target {
        Target::Block(to) => old[usize::from(to)].pc,
        Target::Exit(pc) => pc,
    };
    // May what is counted on the way there be counted at its head?
    let at_head = |target: Target| match target {
        Target::Block(to) => comes[usize::from(to)] == 1 && to != region.entry && !old[usize::from(to)].poll,
        Target::Exit(_) => false,
    };
    let sites = &mut region.sites;
    let mut hook = |pc: u64| -> Option<Ir> {
        let (kind, which, only) = match hooks.block(pc) {
            Wanted::Nothing => return None,
            Wanted::Light(one) => (Kind::Tell, i64::from(one) << 1 | 1, 0),
            Wanted::Full(only) => (Kind::Hook, 0, only),
        };
        // The branch has retired, and nothing behind it was charged for.
        sites.push(Site { pc, insn: flow::NOTHING, refund: 0, does: Does::Arrive { only }, learned: 0 });
        Some(Ir { kind, rd: 0, a: 0, b: 0, site: (sites.len() - 1) as u16, imm: which })
    };
    let mut heads: Vec<Vec<(u32, u8)>> = vec![Vec::new(); old.len()];
    let mut ends: Vec<Way> = Vec::with_capacity(old.len());
    // By block: what is done between it and where it goes when its condition fails, and holds.
    let mut between: Vec<[Option<Way>; 2]> = Vec::with_capacity(old.len());
    for (n, block) in old.iter().enumerate() {
        let (mut ways, mut end) = ([None, None], Way::default());
        let (from, goes) = lasts[n];
        match block.term {
            Term::Branch { taken, fall, .. } => {
                let own = Target::Block(n as u16);
                let ids = [fall, taken].map(|to| edges.map(|edges| edges.number(from, pc_of(to))));
                let hooked = [fall, taken].map(|to| hook(pc_of(to)));
                // A loop of one block stays one: its way round is counted in front of the branch, and taken back on the way out.
                let round = [fall, taken].iter().position(|to| *to == own).filter(|_| fall != taken);
                let round = round.filter(|way| hooked[*way].is_none());
                let back = round.and_then(|way| ids[way]);
                end.counts.extend(back.map(|id| (id, 1)));
                for (way, to) in [fall, taken].into_iter().enumerate().filter(|(way, _)| round != Some(*way)) {
                    let mut counts: Vec<_> = ids[way].map(|id| (id, 1)).into_iter().collect();
                    counts.extend(back.map(|id| (id, u8::MAX)));
                    match to {
                        Target::Block(b) if at_head(to) && hooked[way].is_none() => heads[usize::from(b)] = counts,
                        _ if counts.is_empty() && hooked[way].is_none() => {}
                        _ => ways[way] = Some(Way { counts, hook: hooked[way] }),
                    }
                }
            }
            Term::Goto(to) => {
                if goes == Some(Goes::Indirect) {
                    // An indirect jump to where it is known to go.
                    end.counts.extend(edges.map(|edges| (edges.indirect(from, pc_of(to)) as u32, 1)));
                }
                if matches!(goes, Some(Goes::Jump | Goes::Indirect)) {
                    end.hook = hook(pc_of(to));
                }
            }
            _ => {}
        }
        ends.push(end);
        between.push(ways);
    }
    // Where blocks come to lie.
    let mut place = Vec::with_capacity(old.len());
    let mut next = 0u16;
    for ways in &between {
        place.push(next);
        next += 1 + ways.iter().flatten().count() as u16;
    }
    let moved = |target: Target| match target {
        Target::Block(to) => Target::Block(place[usize::from(to)]),
        exit => exit,
    };
    let old_ops = std::mem::take(&mut region.ops);
    let count = |(id, by): (u32, u8)| Ir { kind: Kind::Cover, rd: 0, a: 0, b: by, site: 0, imm: id.into() };
    // Tier 2 may poll there, between an edge and its count.
    let at_the_head = |counted| Ir { a: 1, ..count(counted) };
    for (n, ((mut block, ways), end)) in old.iter().copied().zip(between).zip(ends).enumerate() {
        let first = region.ops.len() as u32;
        region.ops.extend(heads[n].iter().copied().map(at_the_head));
        region.ops.extend_from_slice(&old_ops[block.first as usize..block.end as usize]);
        region.ops.extend(end.counts.into_iter().map(count));
        region.ops.extend(end.hook);
        (block.first, block.end) = (first, region.ops.len() as u32);
        let mut added: Vec<(Target, Way)> = Vec::new();
        match &mut block.term {
            Term::Branch { taken, fall, .. } => {
                for (to, way) in [fall, taken].into_iter().zip(ways) {
                    match way {
                        Some(way) => {
                            let at = place[n] + 1 + added.len() as u16;
                            added.push((std::mem::replace(to, Target::Block(at)), way));
                        }
                        None => *to = moved(*to),
                    }
                }
            }
            Term::Goto(to) => *to = moved(*to),
            Term::Indirect { cover, .. } => *cover = edges.map(|edges| (mix(lasts[n].0), edges.mask())),
            _ => {}
        }
        region.blocks.push(block);
        for (to, way) in added {
            let first = region.ops.len() as u32;
            region.ops.extend(way.counts.into_iter().map(at_the_head));
            region.ops.extend(way.hook);
            let (end, pc) = (region.ops.len() as u32, pc_of(to));
            let term = Term::Goto(moved(to));
            region.blocks.push(Block { pc, insns: 0, first, end, poll: false, shares: false, term });
        }
    }
    region.entry = place[usize::from(region.entry)];
}
