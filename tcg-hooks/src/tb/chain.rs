//! Direct jumps from TB to TB.
//!
//! Keeps CHAIN-1: a link is followed only while its target lives. A kill points every incoming jump back to its own
//! stub before the target's bytes can be used again; a change of the memory map kills the TBs of the pages that it takes away.
use super::{TbCache, TbId};
use crate::jit::x86_64::LOCAL_BITS;

impl TbCache {
    /// Points the jump of exit `number` to TB `to`, if both still fit together.
    pub(crate) fn link(&mut self, number: u32, to: TbId) {
        let (from, slot) = (number >> LOCAL_BITS, number % (1 << LOCAL_BITS));
        let Some((entry, pc)) = self.get(to).map(|t| (t.entry, t.key.pc)) else { return };
        let Some(exit) = self.tbs.get_mut(from as usize).and_then(|t| t.as_mut()?.exits.get_mut(slot as usize)) else {
            return;
        };
        if !self.flags.chaining || exit.field == 0 || exit.to.is_some() || exit.pc != pc {
            return;
        }
        exit.to = Some(to);
        let field = exit.field;
        self.code.patch_rel32(field, entry);
        self.stats.linked += 1;
        if let Some(target) = self.tbs[to as usize].as_mut() {
            target.incoming.push((from, slot as u16));
        }
    }

    /// Points every jump that is linked to `tb` back to its stub. Costs what there is to unlink.
    pub(super) fn unlink_incoming(&mut self, tb: TbId) {
        let Some(dead) = self.tbs[tb as usize].as_mut() else { return };
        for (from, slot) in std::mem::take(&mut dead.incoming) {
            let exit = self.tbs[from as usize].as_mut().and_then(|t| t.exits.get_mut(usize::from(slot)));
            // Patching the place of a poll, or of somebody else's link, would be worse than a link too many.
            if let Some(exit) = exit.filter(|exit| exit.to == Some(tb)) {
                exit.to = None;
                let (field, stub) = (exit.field, exit.stub);
                self.code.patch_rel32(field, stub);
            }
        }
    }

    /// Takes the exits of a dying TB off the lists of those they are linked to.
    pub(super) fn unlink_outgoing(&mut self, tb: TbId) {
        let Some(dying) = self.tbs[tb as usize].as_ref() else { return };
        let targets: smallvec::SmallVec<[TbId; 8]> = dying.exits.iter().filter_map(|e| e.to).collect();
        for to in targets {
            if let Some(target) = self.tbs[to as usize].as_mut() {
                target.incoming.retain(|i| i.0 != tb);
            }
        }
    }
}
