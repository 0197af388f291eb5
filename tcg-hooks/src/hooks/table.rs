//! A vCPU's hooks, and which of them are compiled in.
//!
//! ```text
//!   slots   every hook that was added, by its number, for ever: a removed one leaves an empty slot
//!   insns, blocks, …   those that are on, by kind, in the order of their numbers
//!   sets    which of `insns` and `blocks` there were together: the number of that is in the key of TBs
//! ```

use super::{HookId, HookSpec, Kinds, Places, What};
use crate::guest::{Insn, flow};
use std::any::Any;
use std::sync::Arc;

/// Sets that keep their translations; with one more all begin anew.
const MAX_SETS: usize = 64;

pub(crate) struct Slot {
    pub(super) places: Places,
    pub(super) what: What,
    pub(super) kinds: Kinds,
    on: bool,
}

/// What translations of a set are made by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Number, places, and whether it is light, of hooks of instructions; of calls only if the last is set.
    insns: Vec<(u32, Places, bool, bool)>,
    /// The same of blocks.
    blocks: Vec<(u32, Places, bool)>,
}

/// What is asked for at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Nothing,
    /// Hooks that get the pc alone; one more than the number of the only one, or 0 for several.
    Light(u32),
    /// One with registers among them; one more than its number, if it is the only one, and needs no more than that, or 0.
    Full(u16),
}

impl Wanted {
    fn and(self, number: u32, light: bool) -> Wanted {
        match (self, light) {
            (Wanted::Nothing, true) => Wanted::Light(number + 1),
            (Wanted::Light(_), true) => Wanted::Light(0),
            (Wanted::Nothing, false) => Wanted::Full(u16::try_from(number + 1).unwrap_or(0)),
            _ => Wanted::Full(0),
        }
    }
}

impl Plan {
    /// Is there any?
    pub(crate) fn is_empty(&self) -> bool {
        self.insns.is_empty() && self.blocks.is_empty()
    }

    pub(crate) fn has_insns(&self) -> bool {
        !self.insns.is_empty()
    }

    pub(crate) fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Before this instruction.
    pub(crate) fn insn(&self, pc: u64, insn: &Insn) -> Wanted {
        self.insns.iter().fold(Wanted::Nothing, |wanted, (number, places, light, calls)| {
            match (places.has(pc), calls) {
                (true, false) => wanted.and(*number, *light),
                (true, true) if flow::is_call(insn) => Wanted::Full(0),
                _ => wanted,
            }
        })
    }

    /// Where control went to this address.
    pub(crate) fn block(&self, pc: u64) -> Wanted {
        self.blocks.iter().fold(
            Wanted::Nothing,
            |wanted, (number, places, light)| {
                if places.has(pc) { wanted.and(*number, *light) } else { wanted }
            },
        )
    }

    /// Where it went to an address that is not known.
    pub(crate) fn any_block(&self) -> Wanted {
        match self.blocks.iter().all(|(_, _, light)| *light) {
            _ if self.blocks.is_empty() => Wanted::Nothing,
            true => Wanted::Light(0),
            false => Wanted::Full(0),
        }
    }
}

/// See the head of this file.
pub(crate) struct HookTable {
    pub(super) slots: Vec<Slot>,
    pub(super) insns: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    pub(super) traps: Vec<u32>,
    pub(super) memory: Vec<u32>,
    plan: Arc<Plan>,
    set: u32,
    sets: Vec<Arc<Plan>>,
    /// One asked for the end of the run, and emitted code has yet to say where it is.
    pub(super) stopped: Option<HookId>,
    /// The same, behind an access: the loop looks behind the instruction.
    pub(super) behind: Option<HookId>,
    /// One panicked: the run ends, and that goes on.
    pub(crate) panic: Option<Box<dyn Any + Send>>,
}

impl HookTable {
    pub(crate) fn new() -> HookTable {
        let (plan, (slots, insns, blocks, traps, memory, sets)) = Default::default();
        HookTable { slots, insns, blocks, traps, memory, plan, set: 0, sets, stopped: None, behind: None, panic: None }
    }

    pub(crate) fn add(&mut self, spec: HookSpec) -> HookId {
        let id = HookId(self.slots.len() as u32);
        self.slots.push(Slot { places: spec.places, what: spec.what, kinds: spec.kinds, on: true });
        id
    }

    /// Removes one; was it there?
    pub(crate) fn remove(&mut self, id: HookId) -> bool {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return false };
        slot.on = false;
        !matches!(std::mem::replace(&mut slot.what, What::Gone), What::Gone)
    }

    /// Switches one on or off; is it there?
    pub(crate) fn switch(&mut self, id: HookId, on: bool) -> bool {
        match self.slots.get_mut(id.0 as usize) {
            Some(slot) if !matches!(slot.what, What::Gone) => {
                slot.on = on;
                true
            }
            _ => false,
        }
    }

    /// Another hook was added, removed or switched. What that means for translations: `None` if they are as they were, else whether
    /// their numbers of sets mean something else now.
    pub(crate) fn settle(&mut self) -> Option<bool> {
        let of = |slots: &[Slot], kind: fn(&What) -> bool| -> Vec<u32> {
            slots.iter().enumerate().filter(|(_, slot)| slot.on && kind(&slot.what)).map(|(n, _)| n as u32).collect()
        };
        self.insns = of(&self.slots, |what| matches!(what, What::Insn(_) | What::InsnWith(_) | What::Calls(_)));
        self.blocks = of(&self.slots, |what| matches!(what, What::Block(_) | What::BlockWith(_)));
        self.traps = of(&self.slots, |what| matches!(what, What::Traps(_)));
        self.memory = of(&self.slots, |what| matches!(what, What::Memory(_)));
        let slot = |n: u32| &self.slots[n as usize];
        let insn = |&n: &u32| {
            let light = matches!(slot(n).what, What::Insn(_));
            (n, slot(n).places.clone(), light, matches!(slot(n).what, What::Calls(_)))
        };
        let block = |&n: &u32| (n, slot(n).places.clone(), matches!(slot(n).what, What::Block(_)));
        let plan =
            Plan { insns: self.insns.iter().map(insn).collect(), blocks: self.blocks.iter().map(block).collect() };
        if plan == *self.plan {
            return None;
        }
        let known = if plan.is_empty() {
            Some(0)
        } else {
            self.sets.iter().position(|set| **set == plan).map(|n| n as u32 + 1)
        };
        self.plan = Arc::new(plan);
        let full = known.is_none() && self.sets.len() >= MAX_SETS;
        if full {
            self.sets.clear();
        }
        self.set = known.unwrap_or_else(|| {
            self.sets.push(self.plan.clone());
            self.sets.len() as u32
        });
        Some(full)
    }

    pub(crate) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Part of the key of TBs, seven bits.
    pub(crate) fn number(&self) -> u32 {
        self.set
    }

    #[inline]
    pub(crate) fn has_traps(&self) -> bool {
        !self.traps.is_empty()
    }

    #[inline]
    pub(crate) fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// May an instruction there be hooked?
    #[inline]
    pub(crate) fn has_insn(&self, pc: u64) -> bool {
        !self.insns.is_empty() && self.insns.iter().any(|&n| self.slots[n as usize].places.has(pc))
    }

    /// May one on that page be?
    #[inline]
    pub(crate) fn has_insn_on_page(&self, pc: u64) -> bool {
        !self.insns.is_empty() && self.insns.iter().any(|&n| self.slots[n as usize].places.has_on_page(pc))
    }

    /// Who asked for the end of the run behind an access.
    #[inline]
    pub(crate) fn take_behind(&mut self) -> Option<HookId> {
        self.behind.take()
    }

    /// The ranges of memory hooks, with their kinds.
    pub(crate) fn memory_ranges(&self) -> impl Iterator<Item = ((u64, u64), Kinds)> + '_ {
        self.memory.iter().filter_map(|&n| match &self.slots[n as usize] {
            Slot { places: Places::Span { first, last }, kinds, .. } => Some(((*first, *last), *kinds)),
            _ => None,
        })
    }
}
