//! TBs that run for long, to be made anew by tier 2.
//!
//! ```text
//!   a slice ends at a poll ──▶ a sample of its TB     slices are of about as many instructions: a TB that runs long ends many
//!                                │ ENOUGH
//!                                └─▶ the key is noted, the TB dies ──▶ translated anew, for as long as it stands
//! ```
//!
//! Emitted code counts nothing for it. The note is used up: code that is written again and again is cheap to make.
use super::{Tb, TbCache, TbKey};
use crate::jit::x86_64::LOCAL_BITS;
use crate::jit::x86_64::context::Context;
use hashbrown::HashSet;

/// Slices that end in a TB before it is worth a longer translation: some 100 us.
const ENOUGH: u8 = 8;
/// No sample counts.
const DONE: u8 = u8::MAX;
/// Keys noted at most; one that is never looked up again stays noted.
const MOST: usize = 1024;

/// Keys of TBs to be made by tier 2.
#[derive(Debug, Default)]
pub(super) struct HotKeys(HashSet<TbKey>);

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
        if self.hot.0.len() == MOST {
            self.hot.0.clear();
        }
        self.hot.0.insert(key);
        self.kill(id, ctx);
        self.heat.kindle(key.pc);
    }

    /// Shall tier 2 make the TB of this key? Asked once.
    pub(crate) fn take_hot(&mut self, key: &TbKey) -> bool {
        self.flags.optimises_hot() && (!self.flags.samples || self.hot.0.remove(key))
    }
}
