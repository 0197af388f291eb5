//! Reservations that any other store to their set breaks, for RAM that was asked to keep them
//! ([`RamList::break_reservations`]). The set of a cell is the aligned eight bytes that it lies in, by their place in all RAM: every
//! alias of them, and nothing beside them.
//!
//! ```text
//!   Stripe   │ version 43 │ writers 20 │ held 1 │        one word for all sets of a hash
//!
//!   LR       no writer, not held? version seen, then the bytes                     the set is announced, as code is
//!   store    writers + 1 ─ wait while held ─ the bytes ─ writers - 1, version + 1
//!   SC       seen → seen, held: one compare-and-exchange; the bytes ─ not held, version + 1
//! ```
//!
//! An SC writes only if nothing began to write since its LR looked, and what begins meanwhile waits for it: nothing can be
//! written between the two and be put back (ABA). Stores do not wait for one another. Sets of one stripe break each
//! other's reservations, which costs a turn of a loop: one of the harts has got on.
//!
//! For a store to be counted it must be heard. The first LR of a set announces it as a translator announces code, for the
//! owner [`VcpuId::RESERVED`], and gets no reservation before every other vCPU has answered. A vCPU's slow stores then find its
//! line in the page's mask. Writers that are no vCPU name their range under the lock of the table while they write: a set that is
//! announced meanwhile counts them.
//!
//! Announced sets stay so, as locks are few, up to a bound; then the oldest is forgotten. What is reserved there is broken
//! first: `epoch` rises, then the version, and only then its stores go unheard; an LR looks at the version first and at `epoch`
//! second.

use super::RamList;
use crate::addr::{PAGE_SIZE, PageRange, RamAddr};
use crate::dirty::{Answers, CodePages, VcpuId};
use crate::rcu::pin;
use crate::sync::{AtomicU64, MODEL, Mutex, Ordering, lock};
use core::fmt;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};

const HELD: u64 = 1;
const WRITER: u64 = 1 << 1;
const VERSION: u64 = 1 << 21;
/// Bytes of a set.
const SET: u64 = 8;
/// Sets that are announced at most.
const MAX_SETS: usize = 4096;
const STRIPES: usize = if MODEL { 1 } else { 1024 };
/// How often an LR looks whether what writes has done so.
const LOOKS: usize = if MODEL { 1 } else { 64 };

/// What stores to a set are counted by.
#[derive(Debug)]
#[repr(align(64))]
pub struct Stripe(AtomicU64);

impl Default for Stripe {
    fn default() -> Self {
        Stripe(AtomicU64::new(0))
    }
}

/// What an LR saw of a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen(u64);

impl Stripe {
    /// First step of an LR, before it loads; `None` while something writes.
    #[inline]
    pub fn look(&self) -> Option<Seen> {
        // Acquire: what was written by the versions counted here is seen by the load that comes next.
        let quiet = |_| Some(self.0.load(Ordering::Acquire)).filter(|now| now & (VERSION - 1) == 0);
        (0..LOOKS).find_map(quiet).map(Seen)
    }

    /// An SC: nothing began to write since `seen`, and nothing does before the result drops; or `None`.
    #[inline]
    pub fn hold(&self, seen: Seen) -> Option<Held<'_>> {
        let held = self.0.compare_exchange(seen.0, seen.0 | HELD, Ordering::SeqCst, Ordering::Relaxed);
        held.ok().map(|_| Held(self))
    }

    /// A store begins: it breaks each reservation of the stripe, at the latest when the result drops. Waits for an SC that writes.
    #[inline]
    pub fn enter(&self) -> Entered<'_> {
        self.begin();
        Entered(self)
    }

    fn begin(&self) {
        let mut now = self.0.fetch_add(WRITER, Ordering::SeqCst);
        let mut looks = 0;
        while now & HELD != 0 {
            looks += 1;
            // A holder does a few instructions, unless the host took its processor away.
            if MODEL || looks > 200 {
                yield_now()
            } else {
                core::hint::spin_loop()
            }
            now = self.0.load(Ordering::Acquire);
        }
    }

    fn end(&self) {
        self.0.fetch_add(VERSION - WRITER, Ordering::Release);
    }
}

fn yield_now() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}

/// A store is under way.
#[must_use = "the store is counted when it drops"]
#[derive(Debug)]
pub struct Entered<'s>(&'s Stripe);

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.end();
    }
}

/// An SC writes.
#[must_use = "the SC has written when it drops"]
#[derive(Debug)]
pub struct Held<'s>(&'s Stripe);

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.0.fetch_add(VERSION - HELD, Ordering::Release);
    }
}

/// Is a set's every store heard?
enum Heard {
    /// The vCPU that announced it has yet to ask the others.
    Asking,
    /// They were asked.
    Asked(Box<dyn Answers>),
    /// They have answered.
    Yes,
}

#[derive(Default)]
struct Table {
    /// By number. The serial tells a set from what it was before it was forgotten.
    sets: BTreeMap<u64, (u64, Heard)>,
    oldest: VecDeque<u64>,
    /// Sets that vCPUs have yet to answer for.
    asked: Vec<u64>,
    /// Writers that are no vCPU: the numbers of the sets that they may write, and the stripes they are counted in.
    writing: HashMap<u64, (core::ops::RangeInclusive<u64>, Vec<usize>)>,
    serial: u64,
}

/// The reservations of all RAM of a list.
pub struct Reservations {
    stripes: Box<[Stripe]>,
    epoch: AtomicU64,
    table: Mutex<Table>,
    max_sets: usize,
}

/// What an LR has to do about its set.
#[derive(Debug, PartialEq, Eq)]
pub enum Announced {
    /// Nothing: stores to it are heard, as long as the epoch is this one.
    Heard(u64),
    /// Try again later: some may not be.
    NotYet,
    /// Have every vCPU look at the page again, then say so with [`Reservations::asked`] and this.
    Ask(u64),
}

fn number(ram: RamAddr) -> u64 {
    ram.get() / SET
}

fn stripe_of(set: u64) -> usize {
    (set.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % STRIPES
}

impl Reservations {
    pub(super) fn new(max_sets: usize) -> Reservations {
        Reservations {
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            epoch: AtomicU64::new(1),
            table: Mutex::default(),
            max_sets: max_sets.clamp(1, MAX_SETS),
        }
    }

    /// Where stores to the set of `ram` are counted.
    #[inline]
    pub fn stripe(&self, ram: RamAddr) -> &Stripe {
        &self.stripes[stripe_of(number(ram))]
    }

    /// It changes when a set is forgotten. Asked by an LR behind [`Stripe::look`]. Never zero.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// An LR of the set of `ram`, of which this vCPU does not know that its stores are heard.
    pub fn announce(&self, list: &RamList, ram: RamAddr) -> Announced {
        let set = number(ram);
        let mut table = lock(&self.table);
        table.settle();
        // Before the look: a set that is forgotten after it has another epoch.
        let epoch = self.epoch();
        match table.sets.get(&set) {
            Some((_, Heard::Yes)) => return Announced::Heard(epoch),
            Some(_) => return Announced::NotYet,
            None => {}
        }
        if table.sets.len() >= self.max_sets {
            self.forget_oldest(&mut table, list);
        }
        table.serial += 1;
        let serial = table.serial;
        table.sets.insert(set, (serial, Heard::Asking));
        table.oldest.push_back(set);
        let stripe = stripe_of(set);
        for (_, stripes) in table.writing.values_mut().filter(|writing| writing.0.contains(&set)) {
            self.stripes[stripe].begin();
            stripes.push(stripe);
        }
        let from = ram.page_offset() / SET * SET;
        let spans = [(from, from + SET)].into_iter();
        list.dirty().announce_spans(ram.page(), spans, VcpuId::RESERVED, &pin());
        Announced::Ask(serial)
    }

    /// Every vCPU but the one that calls was asked to look again at the page of the set that [`announce`](Self::announce) said
    /// this of, and that one has looked.
    pub fn asked(&self, ram: RamAddr, serial: u64, answers: Box<dyn Answers>) {
        let set = number(ram);
        let mut table = lock(&self.table);
        if let Some(entry) = table.sets.get_mut(&set).filter(|entry| entry.0 == serial) {
            entry.1 = Heard::Asked(answers);
            table.asked.push(set);
        }
    }

    /// These pages are to be other memory's: none of their sets is announced.
    pub(super) fn forget_pages(&self, list: &RamList, pages: PageRange) {
        let mut table = lock(&self.table);
        let page_of = |set: u64| RamAddr::new(set * SET).page();
        let sets: Vec<u64> = table.sets.keys().copied().filter(|set| pages.contains(page_of(*set))).collect();
        sets.into_iter().for_each(|set| self.forget(&mut table, list, set));
        let Table { sets, oldest, .. } = &mut *table;
        oldest.retain(|set| sets.contains_key(set));
    }

    fn forget_oldest(&self, table: &mut Table, list: &RamList) {
        if let Some(set) = table.oldest.pop_front() {
            self.forget(table, list, set);
        }
    }

    fn forget(&self, table: &mut Table, list: &RamList, set: u64) {
        table.sets.remove(&set);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.stripes[stripe_of(set)].enter());
        let page = RamAddr::new(set * SET).page();
        let first = page.base().get() / SET;
        let left = table.sets.range(first..first + PAGE_SIZE / SET);
        let lines = left.fold(0, |lines, (set, _)| lines | CodePages::lines_of(set * SET % PAGE_SIZE, SET));
        list.dirty().set_code_lines(page, lines, VcpuId::RESERVED, &pin());
    }

    /// A writer that is no vCPU begins to write `[ram, ram + len)`.
    pub(super) fn writing(&self, ram: RamAddr, len: u64) -> Writing<'_> {
        let mut table = lock(&self.table);
        table.serial += 1;
        let id = table.serial;
        let sets = number(ram)..=number(RamAddr::new(ram.get().saturating_add(len.saturating_sub(1))));
        let stripes: Vec<usize> = table.sets.range(sets.clone()).map(|(set, _)| stripe_of(*set)).collect();
        stripes.iter().for_each(|&stripe| self.stripes[stripe].begin());
        table.writing.insert(id, (sets, stripes));
        Writing { reservations: self, id }
    }
}

impl Table {
    /// Finds out whether what was asked is answered, so that no answer is kept longer than needed.
    fn settle(&mut self) {
        let Table { sets, asked, .. } = self;
        asked.retain(|set| match sets.get_mut(set) {
            Some((_, heard @ Heard::Asked(_))) => {
                let Heard::Asked(answers) = heard else { return false };
                if answers.is_served() {
                    *heard = Heard::Yes;
                }
                matches!(heard, Heard::Asked(_))
            }
            _ => false,
        });
    }
}

/// A writer that is no vCPU writes.
pub(super) struct Writing<'r> {
    reservations: &'r Reservations,
    id: u64,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let stripes = lock(&self.reservations.table).writing.remove(&self.id);
        let stripes = stripes.into_iter().flat_map(|(_, stripes)| stripes);
        stripes.for_each(|stripe| self.reservations.stripes[stripe].end());
    }
}

impl fmt::Debug for Reservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservations").finish_non_exhaustive()
    }
}

impl RamList {
    /// From now on reservations of vCPUs over this RAM are broken by any other store to their sets, not only by one that
    /// changed the value. Call it before there is a vCPU, and before anything else writes. It cannot be taken back.
    pub fn break_reservations(&self) {
        self.break_reservations_of(MAX_SETS);
    }

    /// The same, with at most so many sets announced at once; for tests.
    #[doc(hidden)]
    pub fn break_reservations_of(&self, max_sets: usize) {
        self.reservations.get_or_init(|| Box::new(Reservations::new(max_sets)));
    }

    /// The reservations, if they are broken by other stores.
    #[inline]
    pub fn reservations(&self) -> Option<&Reservations> {
        self.reservations.get().map(|all| &**all)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::dirty::NotServed;
    use crate::ram::{RamBlock, RamBlockSpec};
    use std::sync::Arc;
    use std::time::Instant;

    /// Answers that are there, or are not.
    #[derive(Debug)]
    struct Given(bool);

    impl Answers for Given {
        fn is_served(&mut self) -> bool {
            self.0
        }

        fn wait(&self, _: Option<Instant>) -> Result<(), NotServed> {
            Ok(())
        }
    }

    fn ram(max_sets: usize) -> (RamList, Arc<RamBlock>) {
        let list = RamList::new();
        list.break_reservations_of(max_sets);
        let block = list.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
        (list, block)
    }

    fn ask(all: &Reservations, list: &RamList, at: RamAddr) -> u64 {
        let Announced::Ask(serial) = all.announce(list, at) else { panic!("it was announced") };
        serial
    }

    #[test]
    fn a_host_write_that_is_under_way_when_its_set_is_announced_is_waited_for() {
        let (list, block) = ram(8);
        let all = list.reservations().unwrap();
        let at = |off: u64| RamAddr::new(block.offset().get() + off);
        // From the middle of a set to the first byte of another.
        let writing = all.writing(at(0x104), 0x105);
        for off in [0x100, 0x180, 0x208] {
            all.asked(at(off), ask(all, &list, at(off)), Box::new(Given(true)));
            assert_eq!(all.stripe(at(off)).look(), None, "{off:#x}");
        }
        for off in [0xf8, 0x210] {
            ask(all, &list, at(off));
            assert!(all.stripe(at(off)).look().is_some(), "{off:#x}");
        }
        drop(writing);
        let seen = all.stripe(at(0x180)).look().expect("it is over");
        drop(all.writing(at(0x187), 1));
        assert!(all.stripe(at(0x180)).hold(seen).is_none(), "it wrote");
        drop(all.writing(at(0), 0x100));
        let seen = all.stripe(at(0x180)).look().unwrap();
        drop(all.writing(at(0x188), 0x100));
        assert!(all.stripe(at(0x180)).hold(seen).is_some(), "they wrote beside it");
    }

    #[test]
    fn a_set_that_was_forgotten_meanwhile_is_not_heard_by_what_was_asked_for_it_before() {
        let (list, block) = ram(1);
        let all = list.reservations().unwrap();
        let (one, other) = (block.offset(), RamAddr::new(block.offset().get() + 64));
        let (old, epoch) = (ask(all, &list, one), all.epoch());
        ask(all, &list, other);
        assert_ne!(all.epoch(), epoch);
        let new = ask(all, &list, one);
        all.asked(one, old, Box::new(Given(true)));
        assert_eq!(all.announce(&list, one), Announced::NotYet);
        all.asked(one, new, Box::new(Given(false)));
        assert_eq!(all.announce(&list, one), Announced::NotYet);
    }

    #[test]
    fn what_an_lr_saw_is_held_once_and_not_beside_a_store() {
        let stripe = Stripe::default();
        let seen = stripe.look().unwrap();
        let held = stripe.hold(seen).unwrap();
        assert!(stripe.look().is_none() && stripe.hold(seen).is_none());
        drop(held);
        assert!(stripe.hold(seen).is_none());
        let seen = stripe.look().unwrap();
        let entered = [stripe.enter(), stripe.enter()];
        assert!(stripe.look().is_none() && stripe.hold(seen).is_none());
        drop(entered);
        assert!(stripe.hold(seen).is_none() && stripe.look().is_some());
    }
}
