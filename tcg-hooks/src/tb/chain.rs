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
use crate::jit::context::{Context, NO_MAPPINGS};
use crate::jit::{Backend, Host, LOCAL_BITS, Link};
use notdirty_core::PAGE_BITS;

impl TbCache {
    /// Points the jump of exit `number` to TB `to`, which was found in the set of jumps in use, if both still fit together.
    pub(crate) fn link(&mut self, ctx: &Context, number: u32, to: TbId) {
        let Some(target) = self.get(to) else { return };
        let (entry, key) = (target.entry, target.key);
        let lone = target.pages.1.is_none();
        let Some(from) = self.get(number >> LOCAL_BITS) else { return };
        // A direct jump stays in its mode, and among what was made with the same hooks and exits: an exit that is linked late, as its link
        // was found not to hold, may be of another regime or an earlier run.
        let alike = (from.key.flags, from.key.instrumentation) == (key.flags, key.instrumentation);
        let stays = !key.is_translated() || from.maps(&key) && lone;
        let (chaining, lasts) = (self.flags.chaining, ctx.mappings < NO_MAPPINGS - 1);
        let Some(exit) = self.exit_mut(number) else { return };
        let (way, was) = (exit.way, exit.to);
        if !chaining || !alike || way.field == 0 || way.pc != key.pc {
            return;
        }
        let link = match was {
            _ if stays && !way.guarded => Link::To(entry),
            _ if way.via != 0 && lasts => Link::While(entry, ctx.mappings),
            None if way.via != 0 => Link::Jump,
            _ => return,
        };
        match (link, was) {
            (Link::To(_), Some(_)) => return,
            (Link::While(..), Some(was)) if was != to => self.unlink_exit(number),
            _ => {}
        }
        Host::link(&mut self.code, &self.shared, &way, link);
        if link != Link::Jump && was != Some(to) {
            self.note_link(number, to);
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
                let way = exit.way;
                Host::link(&mut self.code, &self.shared, &way, Link::Stub);
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
