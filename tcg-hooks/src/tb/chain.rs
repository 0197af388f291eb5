//! Direct jumps from TB to TB.
//!
//! Keeps CHAIN-1: a link is followed only while its target lives. A kill points every incoming jump back to its own
//! stub before the target's bytes can be used again; a change of the memory map kills the TBs of the pages that it takes away.
//! Where addresses are translated, a link is followed only while its target is where it was: what runs the one runs the other's page,
//! as long as it stays on the pages that it was entered by. A link to another page, or to a TB that reaches over its page's end, asks
//! first whether the mappings are those by which it was found, all of them, by one number (`regimes.rs`). Where it is known to be one,
//! as the code is made, the guard is in the jump's place; else it lies behind, for what turns out to be one:
//!
//! ```text
//!   cmp [mappings],number ; jne via ; jmp TB     via: call via ; exit, pc       [links_not] = exit ; rax = pc ; jmp jump cache
//!   jmp guard     guard: cmp [mappings],number ; jne via ; jmp TB              (call unlinked, before there is a link)
//! ```
//!
//! A jump that the jump cache does not know either renews the link on its way.
use super::{Exit, TbCache, TbId, TbKey};
use crate::jit::code_cache::CodeOffset;
use crate::jit::x86_64::LOCAL_BITS;
use crate::jit::x86_64::context::{Context, NO_MAPPINGS};
use crate::jit::x86_64::thunks::Thunks;
use notdirty_core::PAGE_BITS;

/// Bytes of a guard that lies behind: `cmp dword [rbp+disp32], imm32` ; `jne` ; `jmp`.
const BEHIND: u32 = 10 + 2 + 5;

impl Exit {
    /// Where the number of its guard is.
    pub(super) fn number(&self) -> CodeOffset {
        if self.guarded { self.field - 2 - 4 } else { self.via - 5 - 2 - 4 }
    }

    /// Where the displacement of the jump behind its guard is.
    pub(super) fn jump(&self) -> CodeOffset {
        if self.guarded { self.field + 4 + 1 } else { self.via - 4 }
    }

    /// Where its jump leads while it has a guarded link.
    pub(super) fn guard(&self) -> CodeOffset {
        if self.guarded { self.via } else { self.via - BEHIND }
    }
}

impl TbCache {
    /// Points the jump of exit `number` to TB `to`, which was found in the set of jumps in use, if both still fit together.
    pub(crate) fn link(&mut self, ctx: &Context, number: u32, to: TbId) {
        let Some(target) = self.get(to) else { return };
        let (entry, key) = (target.entry, target.key);
        let lone = target.pages.1.is_none();
        let Some(from) = self.get(number >> LOCAL_BITS) else { return };
        // A direct jump stays in its mode.
        let alike = from.key.flags == key.flags;
        let stays = !key.is_translated() || from.maps(&key) && lone;
        let (chaining, lasts) = (self.flags.chaining, ctx.mappings < NO_MAPPINGS - 1);
        let Some(exit) = self.exit_mut(number) else { return };
        if !chaining || !alike || exit.field == 0 || exit.pc != key.pc {
            return;
        }
        let (exit, was) = (*exit, exit.to);
        let (field, via) = (exit.field, exit.via);
        if stays && !exit.guarded {
            if was.is_none() {
                self.code.patch_rel32(field, entry);
                self.note_link(number, to);
            }
        } else if via != 0 && lasts {
            if was.is_some_and(|was| was != to) {
                self.unlink_exit(number);
            }
            self.code.patch_u32(exit.number(), ctx.mappings);
            self.code.patch_rel32(exit.jump(), entry);
            self.code.patch_rel32(field, exit.guard());
            self.know_way(&exit, true);
            if was != Some(to) {
                self.note_link(number, to);
            }
        } else if via != 0 && was.is_none() {
            self.code.patch_rel32(field, via);
            self.know_way(&exit, true);
        }
    }

    /// Where an exit goes that its guard, in front of the jump, does not let by: on by the jump cache, or to the exec loop, to be linked.
    fn know_way(&mut self, exit: &Exit, by_jump_cache: bool) {
        if exit.guarded {
            let Thunks { via, unlinked, .. } = self.thunks;
            self.code.patch_rel32(exit.via + 1, if by_jump_cache { via[Thunks::via_of(exit.pc)] } else { unlinked });
        }
    }

    fn note_link(&mut self, number: u32, to: TbId) {
        let Some(target) = self.tbs[to as usize].as_mut() else { return };
        let place = target.incoming.len() as u32;
        target.incoming.push(number);
        if let Some(exit) = self.exit_mut(number) {
            (exit.to, exit.place) = (Some(to), place);
        }
        self.stats.linked += 1;
    }

    fn exit_mut(&mut self, number: u32) -> Option<&mut Exit> {
        let tb = self.tbs.get_mut((number >> LOCAL_BITS) as usize)?.as_mut()?;
        tb.exits.get_mut(number as usize % (1 << LOCAL_BITS))
    }

    /// Points every jump that is linked to `tb` back to its stub. A step for each.
    pub(super) fn unlink_incoming(&mut self, tb: TbId) {
        let Some(dead) = self.tbs[tb as usize].as_mut() else { return };
        let incoming = std::mem::take(&mut dead.incoming);
        self.stats.steps += incoming.len() as u64;
        for number in incoming {
            // Patching the place of a poll, or of another link, would be worse than a link too many.
            if let Some(exit) = self.exit_mut(number).filter(|exit| exit.to == Some(tb)) {
                exit.to = None;
                let exit = *exit;
                if exit.guarded {
                    self.code.patch_u32(exit.number(), NO_MAPPINGS);
                    self.know_way(&exit, false);
                }
                self.code.patch_rel32(exit.field, exit.stub);
            }
        }
    }

    /// Takes the exits of a dying TB off the lists of the TBs that they are linked to. A step for each: an exit knows
    /// its place in the list, and the last of the list takes that place.
    pub(super) fn unlink_outgoing(&mut self, tb: TbId) {
        let exits = self.tbs[tb as usize].as_ref().map_or(0, |dying| dying.exits.len() as u32);
        for number in (0..exits).map(|slot| tb << LOCAL_BITS | slot) {
            self.unlink_exit(number);
        }
    }

    /// The same of one exit, if it is linked; its jump goes where it went.
    fn unlink_exit(&mut self, number: u32) {
        let Some((to, place)) = self.exit_mut(number).and_then(|exit| Some((exit.to.take()?, exit.place))) else {
            return;
        };
        self.stats.steps += 1;
        let Some(target) = self.tbs[to as usize].as_mut() else { return };
        target.incoming.swap_remove(place as usize);
        let moved = target.incoming.get(place as usize).copied();
        if let Some(exit) = moved.and_then(|moved| self.exit_mut(moved)) {
            exit.place = place;
        }
    }
}

impl super::Tb {
    /// Does it run only where `key`'s first page is mapped as it is for `key`?
    pub(super) fn maps(&self, key: &TbKey) -> bool {
        let ahead = (key.pc >> PAGE_BITS).wrapping_sub(self.key.pc >> PAGE_BITS);
        let page = match ahead {
            0 => Some(self.pages.0),
            1 => self.pages.1,
            _ => None,
        };
        page == Some(key.ram.page())
    }
}
