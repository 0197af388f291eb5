//! How deep in loops each block of a region is, as an estimate of how often it runs.
use super::{Region, Target};
use crate::translate::MAX_INSNS;

/// What an instruction counts for, by depth.
const WEIGHTS: [u32; 4] = [1, 8, 64, 512];

/// The weight of an instruction of each block; a region has as many blocks as instructions at most.
pub(crate) type Weights = [u32; MAX_INSNS];

impl Region {
    /// The weights. An edge back makes a loop of all blocks from its target on.
    pub(crate) fn weights(&self) -> Weights {
        let mut depth = [0u8; MAX_INSNS];
        for (i, block) in self.blocks.iter().enumerate() {
            block.term.each_target(|target| {
                if let Target::Block(b) = target
                    && usize::from(b) <= i
                {
                    for d in depth.iter_mut().take(i + 1).skip(b.into()) {
                        *d = (*d + 1).min(3);
                    }
                }
            });
        }
        depth.map(|d| WEIGHTS[usize::from(d)])
    }
}
