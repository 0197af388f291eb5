//! How deep in loops each block of a region is, as an estimate of how often it runs.
use super::{Block, Ir, Region, Target, Term};
use crate::translate::MAX_INSNS;

/// What an instruction counts for, by depth.
const WEIGHTS: [u32; 4] = [1, 8, 64, 512];

/// The weight of an instruction of each block; a region has as many blocks as instructions at most.
pub(crate) type Weights = [u32; MAX_INSNS];

impl Region {
    /// Is this block a loop of its own, and may all its accesses be checked in front of it? Nothing in it serves requests.
    pub(crate) fn is_simple_loop(&self, number: u16) -> bool {
        let (block, here) = (&self.blocks[usize::from(number)], Target::Block(number));
        let round = matches!(block.term, Term::Branch { taken, fall, .. } if (taken == here) != (fall == here));
        round && !self.ops_of(block).iter().any(|ir| ir.kind.may_leave())
    }

    /// A block's ops.
    pub(crate) fn ops_of(&self, block: &Block) -> &[Ir] {
        &self.ops[block.first as usize..block.end as usize]
    }

    /// The weights. An edge back makes a loop of all blocks from its target on.
    pub(crate) fn weights(&self) -> Weights {
        self.weights_if(|_, _| true)
    }

    /// The same, but an edge back that leads to no way round is none: an entry may lie behind what it leads to.
    pub(crate) fn weights_of_cycles(&self) -> Weights {
        self.weights_if(|to, from| self.reaches(to, from))
    }

    fn weights_if(&self, is_loop: impl Fn(u16, u16) -> bool) -> Weights {
        let mut depth = [0u8; MAX_INSNS];
        for (i, block) in self.blocks.iter().enumerate() {
            block.term.each_target(|target| {
                if let Target::Block(b) = target
                    && usize::from(b) <= i
                    && is_loop(b, i as u16)
                {
                    for d in depth.iter_mut().take(i + 1).skip(b.into()) {
                        *d = (*d + 1).min(3);
                    }
                }
            });
        }
        depth.map(|d| WEIGHTS[usize::from(d)])
    }

    /// Is there a way from this block to itself?
    pub(crate) fn goes_round(&self, block: u16) -> bool {
        let mut round = false;
        self.blocks[usize::from(block)].term.each_target(|target| {
            round |= matches!(target, Target::Block(to) if self.reaches(to, block));
        });
        round
    }

    /// Is there a way from one block to another?
    fn reaches(&self, from: u16, to: u16) -> bool {
        let mut seen = [false; MAX_INSNS];
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            if at == to {
                return true;
            }
            if !std::mem::replace(&mut seen[usize::from(at)], true) {
                self.blocks[usize::from(at)].term.each_target(|target| {
                    if let Target::Block(b) = target {
                        open.push(b);
                    }
                });
            }
        }
        false
    }
}
