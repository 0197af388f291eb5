//! Bytes that somebody asks about, as the guest names them: watch ranges, poison, canaries, memory hooks.
//!
//! ```text
//!   a page with one of them ─▶ its entries carry ASK, in the comparator that it is about ─▶ no probe matches, each access is slow
//!   slow.rs, atomic.rs      ─▶ Asks::over(first, last): byte by byte ─┬─ watched: the access is not made, FaultCause::Watched
//!                                                                     └─ told: it is made, then Hooks::accessed
//! ```
//!
//! Pages without pay nothing. Beside such bytes an access goes the slow way, and nobody hears of it. Walks of page tables and fetches are
//! no accesses, and neither is what is done within [`LiveMmu::unasked`].
//!
//! Poison and canaries are the program's, so a checkpoint has them ([`Marks`]), and going back costs what changed: see `ask/marks.rs`.

use crate::addr::{GuestVirt, MemSize};
use crate::fault::{AccessKind, FaultCause, MemFault};
use crate::live::LiveMmu;
use crate::mmu::{Hooks, SoftMmu};
use crate::tlb::entry::{BIAS, FLAGS};
use notdirty_core::PAGE_SIZE;
use std::collections::BTreeMap;

mod marks;

use marks::MARKS;
pub use marks::Marks;

/// Pages of a change up to which entries are looked at one by one; of more the TLB is emptied.
const FEW_PAGES: u64 = 256;

/// Why an access is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Watch {
    /// It is watched.
    Watch,
    /// It must not be accessed: a red zone, or memory that was freed.
    Poison,
    /// It must not be written.
    Canary,
}

/// Which accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kinds {
    /// Loads, and what loads to store.
    Loads,
    /// Stores, of all kinds.
    Stores,
    /// Both.
    All,
}

impl Kinds {
    /// Are accesses that load, or that store, among them?
    pub const fn has(self, store: bool) -> bool {
        matches!((self, store), (Kinds::All, _) | (Kinds::Loads, false) | (Kinds::Stores, true))
    }
}

/// An access that was not made, as its bytes are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Watched {
    /// What for.
    pub why: Watch,
    /// Its first byte.
    pub addr: u64,
    /// How many it has.
    pub size: u8,
    /// Would it have stored?
    pub store: bool,
}

/// What is asked about bytes: a pair of bits each, of loads and of stores.
type Bits = u8;
const TELL: u8 = 0;
const fn bit(what: u8, store: bool) -> Bits {
    1 << (2 * what + store as u8)
}
const fn bits(what: u8, kinds: Kinds) -> Bits {
    let mut all = 0;
    if kinds.has(false) {
        all |= bit(what, false);
    }
    if kinds.has(true) {
        all |= bit(what, true);
    }
    all
}
const fn number(why: Watch) -> u8 {
    match why {
        Watch::Watch => 1,
        Watch::Poison => 2,
        Watch::Canary => 3,
    }
}
const OF_LOADS: Bits = 0b0101_0101;
const TOLD: Bits = bits(TELL, Kinds::All);

/// What is asked of an access.
const fn of(store: bool) -> Bits {
    if store { !OF_LOADS } else { OF_LOADS }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// By the first byte: the last one, and what is asked about them. They do not overlap.
    ranges: BTreeMap<u64, (u64, Bits)>,
    /// There are such, and accesses are asked about.
    active: bool,
    /// What is done is nobody's access.
    quiet: bool,
    /// What is watched was told already.
    passes: bool,
    /// What was not made.
    met: Option<Watched>,
    marks: marks::Since,
}

impl Asks {
    /// Need an access be looked at at all?
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    fn settle(&mut self) {
        self.active = !self.ranges.is_empty() && !self.quiet;
    }

    /// Is there anything that is asked about?
    pub(crate) fn any(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// What is asked about these bytes, which may wrap.
    fn over(&self, first: u64, last: u64) -> Bits {
        if first > last {
            return self.over(first, u64::MAX) | self.over(0, last);
        }
        let mut all = 0;
        for (_, (end, bits)) in self.ranges.range(..=last).rev() {
            if *end < first {
                break;
            }
            all |= bits;
        }
        all
    }

    /// Begins a range at this byte, if one goes over it.
    fn cut(&mut self, at: u64) {
        if let Some((&start, (end, bits))) = self.ranges.range_mut(..at).next_back()
            && *end >= at
        {
            let (last, bits) = (*end, *bits);
            *end = at - 1;
            debug_assert!(start < at);
            self.ranges.insert(at, (last, bits));
        }
    }

    /// Asks `on` about these bytes too, and `off` no more.
    fn change(&mut self, first: u64, last: u64, on: Bits, off: Bits) {
        self.cut(first);
        if last != u64::MAX {
            self.cut(last + 1);
        }
        let inside: Vec<_> =
            self.ranges.range(first..=last).map(|(start, (end, bits))| (*start, *end, *bits)).collect();
        let mut next = Some(first);
        for (start, end, bits) in inside {
            if let Some(gap) = next.filter(|gap| *gap < start && on != 0) {
                self.ranges.insert(gap, (start - 1, on));
            }
            match bits & !off | on {
                0 => drop(self.ranges.remove(&start)),
                bits => drop(self.ranges.insert(start, (end, bits))),
            }
            next = end.checked_add(1);
        }
        if let Some(gap) = next.filter(|gap| *gap <= last && on != 0) {
            self.ranges.insert(gap, (last, on));
        }
        self.join(first, last);
        self.settle();
    }

    /// Ranges that touch and are asked the same become one.
    fn join(&mut self, first: u64, last: u64) {
        let from = self.ranges.range(..first).next_back().map_or(first, |(start, _)| *start);
        let mut starts: Vec<u64> = self.ranges.range(from..=last.saturating_add(1)).map(|(start, _)| *start).collect();
        while let [.., before, start] = starts[..] {
            let (a, b) = (self.ranges[&before], self.ranges[&start]);
            if a.0.checked_add(1) == Some(start) && a.1 == b.1 {
                self.ranges.remove(&start);
                self.ranges.insert(before, (b.0, b.1));
            }
            starts.pop();
        }
    }

    /// What the comparators of a page carry.
    pub(crate) fn flags(&self, page: u64) -> (bool, bool) {
        if self.ranges.is_empty() {
            return (false, false);
        }
        let bits = self.over(page, page | (PAGE_SIZE - 1));
        // An AMO loads, too, and probes as a store does.
        (bits & of(false) != 0, bits != 0)
    }
}

impl LiveMmu {
    /// Is an access of these bytes watched, or to be told of? Asked before it is made, and only where there are such bytes.
    #[cold]
    #[inline(never)]
    pub(crate) fn asked(&mut self, va: GuestVirt, size: u64, store: bool) -> Result<bool, MemFault> {
        let asks = &mut self.tlb.asks;
        let bits = asks.over(va.get(), va.get().wrapping_add(size - 1)) & of(store);
        if bits & !TOLD != 0 && !asks.passes {
            let met = |why: &Watch| bits & bit(number(*why), store) != 0;
            let why = [Watch::Poison, Watch::Canary, Watch::Watch].into_iter().find(met).unwrap_or(Watch::Watch);
            asks.met = Some(Watched { why, addr: va.get(), size: size as u8, store });
            let kind = if store { AccessKind::Store } else { AccessKind::Load };
            return Err(MemFault { kind, cause: FaultCause::Watched, addr: va });
        }
        Ok(bits & TOLD != 0)
    }

    /// An access that is to be told of was made.
    pub(crate) fn tell<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize, value: u64, store: bool) {
        let quiet = Quiet::new(self);
        if hooks.accessed(va, size, value & size.mask(), store) {
            quiet.0.port.kick();
        }
    }

    /// The access that ended in [`FaultCause::Watched`].
    pub fn take_watched(&mut self) -> Option<Watched> {
        self.tlb.asks.met.take()
    }

    /// An instruction is about to store to all of these bytes, piece by piece.
    ///
    /// # Errors
    /// They are watched: none shall be stored.
    pub fn before_stores(&mut self, va: GuestVirt, len: u64) -> Result<(), MemFault> {
        if self.tlb.asks.is_active() { self.asked(va, len, true).map(|_| ()) } else { Ok(()) }
    }

    /// Are accesses looked at, as bytes are watched, or told of?
    #[inline]
    pub fn asks(&self) -> bool {
        self.tlb.asks.is_active()
    }

    /// Are bytes watched, or told of, now or else? Then loads need entries: see [`Selected::whole`](crate::tlb::entry::Selected).
    pub fn has_asks(&self) -> bool {
        self.tlb.asks.any()
    }

    /// Accesses in there are nobody's: they are not told of, and not watched.
    pub fn unasked<R>(&mut self, f: impl FnOnce(&mut LiveMmu) -> R) -> R {
        f(Quiet::new(self).0)
    }

    /// Watches bytes, or no more: accesses of these kinds to them are not made, and end in [`FaultCause::Watched`].
    pub fn watch(&mut self, (first, last): (u64, u64), why: Watch, kinds: Kinds, on: bool) {
        let bits = bits(number(why), kinds);
        self.change_asks((first, last), if on { (bits, 0) } else { (0, bits) });
    }

    fn change_asks(&mut self, (first, last): (u64, u64), (on, off): (Bits, Bits)) {
        if first > last {
            return;
        }
        let asks = &mut self.tlb.asks;
        if (on | off) & MARKS != 0 {
            asks.marks.changed(first, last);
        }
        asks.change(first, last, on, off);
        self.tlb.show_selected();
        let pages = (last / PAGE_SIZE - first / PAGE_SIZE).saturating_add(1);
        if pages > FEW_PAGES {
            return self.flush_tlb();
        }
        for page in 0..pages {
            self.tlb.ask_page((first & !FLAGS) + page * PAGE_SIZE);
        }
    }
}

/// Accesses are nobody's while this lives, also if something panics.
struct Quiet<'m>(&'m mut LiveMmu, bool);

impl Quiet<'_> {
    fn new(mmu: &mut LiveMmu) -> Quiet<'_> {
        let was = std::mem::replace(&mut mmu.tlb.asks.quiet, true);
        mmu.tlb.asks.settle();
        Quiet(mmu, was)
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.tlb.asks.quiet = self.1;
        self.0.tlb.asks.settle();
    }
}

impl SoftMmu {
    /// See [`LiveMmu::watch`].
    pub fn watch(&mut self, range: (u64, u64), why: Watch, kinds: Kinds, on: bool) {
        self.parked_mut().watch(range, why, kinds, on);
    }

    /// Nothing is watched for this any more.
    pub fn watch_nothing(&mut self, why: Watch) {
        let off = bits(number(why), Kinds::All);
        self.forget_asks(off);
    }

    /// [`Hooks::accessed`] is called for accesses to these bytes, and to no others.
    pub fn tell_of(&mut self, ranges: impl Iterator<Item = ((u64, u64), Kinds)>) {
        self.forget_asks(TOLD);
        for (range, kinds) in ranges {
            self.parked_mut().change_asks(range, (bits(TELL, kinds), 0));
        }
    }

    fn forget_asks(&mut self, off: Bits) {
        let mmu = self.parked_mut();
        let asked: Vec<_> = mmu
            .tlb
            .asks
            .ranges
            .iter()
            .filter(|(_, range)| range.1 & off != 0)
            .map(|(first, range)| (*first, range.0))
            .collect();
        for range in asked {
            mmu.change_asks(range, (0, off));
        }
    }

    /// What is watched was told already: the next accesses are made.
    pub fn pass_watched(&mut self, passes: bool) {
        self.parked_or_live().tlb.asks.passes = passes;
    }
}

impl crate::tlb::Tlb {
    /// The entries of a page say what is asked about it now.
    fn ask_page(&mut self, page: u64) {
        let (loads, stores) = self.asks.flags(page);
        self.set_asks(page.wrapping_add(BIAS), loads, stores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_are_asked_what_their_bytes_are(
            top in any::<bool>(),
            steps in prop::collection::vec((0..40u64, 0..12u64, any::<u8>(), any::<u8>()), 1..60),
        ) {
            let base = if top { u64::MAX - 63 } else { 0 };
            let (mut asks, mut model) = (Asks::default(), [0u8; 64]);
            for (first, len, on, off) in steps {
                let last = first + len;
                asks.change(base + first, base + last, on, off);
                model[first as usize..=last as usize].iter_mut().for_each(|byte| *byte = *byte & !off | on);
                for from in 0..64u64 {
                    for to in [from, (from + 7).min(63), 63] {
                        let want = model[from as usize..=to as usize].iter().fold(0, |all, byte| all | byte);
                        prop_assert_eq!(asks.over(base + from, base + to), want, "from {} to {}", from, to);
                    }
                }
                let mut before: Option<(u64, u8)> = None;
                for (start, (end, bits)) in &asks.ranges {
                    prop_assert!(start <= end && *bits != 0);
                    prop_assert!(before.is_none_or(|(last, _)| last < *start), "they do not overlap");
                    prop_assert!(before.is_none_or(|(last, asked)| last + 1 < *start || asked != *bits), "they are joined");
                    before = Some((*end, *bits));
                }
            }
            prop_assert_eq!(asks.is_active(), model.iter().any(|byte| *byte != 0));
        }
    }
}
