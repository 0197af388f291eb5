//! TBs that run for long, to be made anew by tier 2.
//!
//! ```text
//!   a slice ends at a poll ──▶ a sample of its TB     slices are of about as many instructions: a TB that runs long ends many
//!                                │ ENOUGH
//!                                └─▶ the key is noted, the TB dies ──▶ translated anew, for as long as it stands
//! ```
//!
//! What refuses often, as a check at its entry fails (`tier2/share.rs`), is made anew, too, without those.
//!
//! Emitted code counts nothing for it. The note is used up: code that is written again and again is cheap to make.
use super::{Tb, TbCache, TbId, TbKey};
use crate::jit::LOCAL_BITS;
use crate::jit::context::Context;
use hashbrown::{HashMap, HashSet};

/// Slices that end in a TB before it is worth a longer translation: some 600 us at full speed.
const ENOUGH: u8 = 5;
/// No sample counts.
const DONE: u8 = u8::MAX;
/// Keys noted at most; one that is never looked up again stays noted.
const MOST: usize = 1024;

/// Refusals that are looked at together, and in how many instructions they are too many.
const REFUSALS: u32 = 16;
const OFTEN: u64 = REFUSALS as u64 * 8192;

/// Keys of TBs to be made by tier 2.
#[derive(Debug, Default)]
pub(super) struct HotKeys {
    keys: HashSet<TbKey>,
    /// TBs that were refused: how often, and since when, by instructions retired. Those that were too often are made without
    /// checks at their entry.
    refused: HashMap<TbKey, (u32, u64)>,
}

impl Tb {
    /// Samples count, or were counted.
    pub(super) fn sampled(&mut self, done: bool) {
        self.samples = if done { DONE } else { 0 };
    }
}

impl TbCache {
    /// A slice ended at exit `number`.
    pub(crate) fn sample(&mut self, number: u32, ctx: &mut Context) {
        if !self.flags.optimises_hot() {
            return;
        }
        let id = number >> LOCAL_BITS;
        let Some(tb) = self.tbs.get_mut(id as usize).and_then(|tb| tb.as_mut()).filter(|tb| tb.samples != DONE) else {
            return;
        };
        tb.samples += 1;
        if tb.samples < ENOUGH {
            return;
        }
        let key = tb.key;
        self.make_again(id, key, ctx);
    }

    /// The TB dies, and is made by tier 2 when it is run next.
    fn make_again(&mut self, id: TbId, key: TbKey, ctx: &mut Context) {
        if self.hot.keys.len() == MOST {
            self.hot.keys.clear();
        }
        self.hot.keys.insert(key);
        self.kill(id, ctx);
        self.heat.kindle(key.pc);
    }

    /// What the TB of exit `number` checks at its entry did not hold.
    pub(crate) fn refuse(&mut self, number: u32, ctx: &mut Context) {
        let id = number >> LOCAL_BITS;
        let Some(tb) = self.get(id) else { return };
        let (key, now) = (tb.key, ctx.cpu.retired);
        if self.hot.refused.len() == MOST {
            self.hot.refused.clear();
        }
        let (count, since) = self.hot.refused.entry(key).or_insert((0, now));
        *count += 1;
        if *count < REFUSALS {
            return;
        }
        if now.wrapping_sub(*since) > OFTEN {
            (*count, *since) = (0, now);
        } else {
            self.make_again(id, key, ctx);
        }
    }

    /// May tier 2 check anything at the entry of the TB of this key?
    pub(crate) fn may_share(&self, key: &TbKey) -> bool {
        self.hot.refused.get(key).is_none_or(|refused| refused.0 < REFUSALS)
    }

    /// Shall tier 2 make the TB of this key? Asked once.
    pub(crate) fn take_hot(&mut self, key: &TbKey) -> bool {
        self.flags.optimises_hot() && (!self.flags.samples || self.hot.keys.remove(key))
    }
}
