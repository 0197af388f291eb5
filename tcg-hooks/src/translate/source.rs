//! The instructions that a region was made from, for listings.
use super::{Found, Translator};
use crate::guest::Insn;

/// An instruction of the guest where it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) pc: u64,
    /// Its own bits; a halfword for a short one.
    pub(crate) bits: u32,
    pub(crate) insn: Insn,
}

impl Translator {
    /// The instructions of the last region, ascending.
    pub(crate) fn source(&self) -> Vec<Source> {
        let place = |found: &Found| {
            let pc = self.base.wrapping_add(found.off.into());
            Source { pc, bits: found.bits, insn: found.insn.insn() }
        };
        let mut all: Vec<Source> = self.found.iter().map(place).collect();
        all.sort_unstable_by_key(|s| s.pc);
        all
    }
}
