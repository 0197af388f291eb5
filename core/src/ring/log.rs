//! The rings of one client: one for each vCPU that has marked a page for it, and a list for every other writer.
//!
//! ```text
//!   vCPU 0 ── ring ──┐                      take:  1. every ring is harvested, the list is taken
//!   vCPU 1 ── ring ──┤                             2. every ring is reset: a run's bits are cleared, 64 pages at a
//!   DMA, host ┐      ├─▶ take ─▶ words                time, then its entries are free; the list's bits likewise
//!   full ring ┴ list ┘                      then, by the caller: re-arm, wait for every vCPU, read the pages
//! ```
//!
//! Keeps ONE-1 (the consumers are behind one lock) and the takers' half of HARVEST-1, as `test_and_clear_range` does: bits
//! are cleared by RMW, and a fence follows. A page's bit is 1 from its push until step 2, and no vCPU pushes a page whose
//! bit is 1. Since step 1 is done with all rings before step 2 begins, a page comes out once, whichever vCPU pushed it.
//! What comes out are bits that were taken, so that an entry whose bit another call took in between is reported once.
//!
//! A take costs what is dirty: no bitmap is scanned.

use super::{DirtyRing, RingConsumer, RingError, RingProducer};
use crate::addr::{PAGE_BITS, PageIndex, PageRange};
use crate::dirty::{DirtyClient, VcpuId, fence_after_store};
use crate::ram::RamList;
use crate::rcu::Guard;
use crate::sync::{MODEL, Mutex, lock};
use core::fmt;

/// Entries above the soft limit, as many as the kernel's where there is no hardware log. A vCPU leaves behind the
/// instruction that crosses the limit, so what is needed is what one instruction can dirty: two pages today.
const RESERVED: u32 = if MODEL { 1 } else { 64 };

/// One client's rings.
pub struct RingLog {
    client: DirtyClient,
    entries: u32,
    /// Rings of vCPUs that came since the last take: a vCPU never waits for one.
    joining: Mutex<Vec<RingConsumer>>,
    consumers: Mutex<Vec<RingConsumer>>,
    /// Words of pages marked by writers that have no ring, or a full one. Each bit is there once in an interval, so the list
    /// is bounded by the pages there are.
    list: Mutex<Vec<(PageIndex, u64)>>,
}

impl RingLog {
    pub(super) fn new(client: DirtyClient, entries: u32) -> Result<Self, RingError> {
        // A first ring, to refuse the size here and not when a vCPU comes.
        drop(DirtyRing::new(entries, RESERVED)?);
        let (joining, consumers, list) = Default::default();
        Ok(Self { client, entries, joining, consumers, list })
    }

    /// The client of these rings.
    pub fn client(&self) -> DirtyClient {
        self.client
    }

    /// The size of each.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The entries in use that make a vCPU leave.
    pub fn soft_limit(&self) -> u32 {
        self.entries - RESERVED
    }

    /// A ring for one more vCPU: that of one which has gone since the last take, if there is room in it, so that vCPUs
    /// that come and go need no more rings than there are at once, and as their pages fill.
    pub(super) fn join(&self, vcpu: VcpuId) -> Option<RingProducer> {
        let free = |ring: &mut RingConsumer| {
            let left = ring.adopt().filter(|left| left.ring().used() < self.soft_limit())?;
            ring.vcpu = vcpu;
            Some(left)
        };
        let left = lock(&self.joining).iter_mut().find_map(free);
        if left.is_some() {
            return left;
        }
        // `new` found the size good.
        let (producer, mut consumer) = DirtyRing::new(self.entries, RESERVED).ok()?;
        consumer.vcpu = vcpu;
        lock(&self.joining).push(consumer);
        Some(producer)
    }

    /// Adds pages to the list.
    pub(super) fn add(&self, first: PageIndex, bits: u64) {
        let mut list = lock(&self.list);
        match list.last_mut() {
            Some(last) if last.0 == first => last.1 |= bits,
            _ => list.push((first, bits)),
        }
    }

    /// How many entries are in use in the fullest ring: what a reaper looks at.
    pub fn fullest(&self) -> u32 {
        let mut used = lock(&self.joining).iter().map(|ring| ring.ring().used()).max().unwrap_or(0);
        for ring in lock(&self.consumers).iter() {
            used = used.max(ring.ring().used());
        }
        used
    }

    /// How many pages each vCPU has pushed, wrapping: what a limit on each looks at. A page counts once between two takes. One of which
    /// nothing has come yet is not among them.
    pub fn pushed(&self) -> Vec<(VcpuId, u32)> {
        let of = |ring: &RingConsumer| (ring.vcpu, ring.ring().pushed());
        let mut all: Vec<_> = lock(&self.joining).iter().map(of).collect();
        all.extend(lock(&self.consumers).iter().map(of));
        all
    }

    /// Takes what is dirty: words of pages whose bits were set and are clear now, those of a vCPU in the order in which
    /// it dirtied them. No page is in them twice. Before they are read, every vCPU must have been re-armed (HARVEST-1).
    ///
    /// With `within`, ranges that rise and do not overlap, pages outside of them are forgotten and their bits left alone:
    /// another take has them.
    pub(crate) fn take(&self, list: &RamList, within: Option<&[PageRange]>, guard: &Guard) -> Vec<(PageIndex, u64)> {
        let mut words = Words { log: self, ram: list, within, guard, words: Vec::new() };
        let mut consumers = lock(&self.consumers);
        consumers.append(&mut lock(&self.joining));
        let mut gone = Vec::new();
        for ring in consumers.iter_mut() {
            // Before the harvest: a vCPU that is gone pushes no more.
            gone.push(ring.is_abandoned());
            ring.harvest(|_, _| ());
        }
        let others = core::mem::take(&mut *lock(&self.list));
        for ring in consumers.iter_mut() {
            ring.reset(|slot, base, mask| words.run(slot, base, mask));
        }
        for (first, bits) in others {
            words.word(first, bits);
        }
        let mut gone = gone.into_iter();
        consumers.retain(|_| !gone.next().unwrap_or(false));
        // Orders what was cleared before what the caller reads: MARK-1.
        fence_after_store();
        words.words
    }
}

/// What a take has found so far.
struct Words<'a> {
    log: &'a RingLog,
    ram: &'a RamList,
    within: Option<&'a [PageRange]>,
    guard: &'a Guard,
    words: Vec<(PageIndex, u64)>,
}

impl Words<'_> {
    /// Pages of the block of `slot`.
    fn run(&mut self, slot: u32, base: u64, mask: u64) {
        // No block's slot is used again: if it is gone, so are its pages.
        let Some(block) = self.ram.find_slot(slot, self.guard) else { return };
        let pages = block.max_length() >> PAGE_BITS;
        if base >= pages {
            return;
        }
        let left = pages - base;
        let mask = if left < 64 { mask & ((1 << left) - 1) } else { mask };
        let first = block.offset().page().get() + base;
        let (into, aligned) = (first % 64, first - first % 64);
        self.word(PageIndex::new(aligned), mask << into);
        if into != 0 {
            self.word(PageIndex::new(aligned + 64), mask >> (64 - into));
        }
    }

    /// Takes bits of one word.
    fn word(&mut self, first: PageIndex, bits: u64) {
        let bits = self.within.map_or(bits, |ranges| bits & within(ranges, first));
        if bits == 0 {
            return;
        }
        let taken = self.ram.dirty().take_word(first, bits, self.log.client, self.guard);
        match self.words.last_mut() {
            _ if taken == 0 => {}
            Some(last) if last.0 == first => last.1 |= taken,
            _ => self.words.push((first, taken)),
        }
    }
}

/// Which pages of a word lie in `ranges`.
fn within(ranges: &[PageRange], first: PageIndex) -> u64 {
    let (start, end) = (first.get(), first.get() + 64);
    let from = ranges.partition_point(|range| range.end.get() <= start);
    let meeting = ranges[from..].iter().take_while(|range| range.start.get() < end);
    meeting.fold(0, |bits, range| {
        let (from, to) = (range.start.get().max(start) - start, range.end.get().min(end) - start);
        if from < to { bits | !0 >> (64 - (to - from)) << from } else { bits }
    })
}

impl fmt::Debug for RingLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingLog").field("client", &self.client).field("entries", &self.entries).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring::Pushed;

    #[test]
    fn rings_of_vcpus_that_are_gone_are_used_again_until_they_are_at_their_soft_limit() {
        let log = RingLog::new(DirtyClient::MIGRATION, 128).unwrap();
        let mut stays = log.join(VcpuId::default()).unwrap();
        assert_eq!(stays.push(0, 1000), Pushed::Ok);
        let mut pushed = 0;
        while pushed < 128 {
            let mut goes = log.join(VcpuId::default()).unwrap();
            assert!(!goes.is_soft_full());
            for _ in 0..4 {
                let _ = goes.push(0, pushed);
                pushed += 1;
            }
        }
        let rings: Vec<_> = lock(&log.joining).iter().map(|ring| ring.ring().used()).collect();
        assert_eq!(rings, [1, 64, 64]);
        let mut harvested = Vec::new();
        for ring in lock(&log.joining).iter_mut() {
            ring.harvest(|_, page| harvested.push(page));
        }
        assert_eq!(harvested, [1000].into_iter().chain(0..pushed).collect::<Vec<_>>());
    }

    #[test]
    fn marks_of_a_word_one_after_the_other_are_one_entry_of_the_list() {
        let log = RingLog::new(DirtyClient::MIGRATION, 128).unwrap();
        for (first, bits) in [(0, 1), (0, 4), (64, 1), (0, 2)] {
            log.add(PageIndex::new(first), bits);
        }
        let list = lock(&log.list).clone();
        assert_eq!(list, [(0, 5), (64, 1), (0, 2)].map(|(first, bits)| (PageIndex::new(first), bits)));
    }

    #[test]
    fn the_pages_of_a_word_that_lie_in_ranges_are_those_that_a_search_finds() {
        let range = |(start, end)| PageRange { start: PageIndex::new(start), end: PageIndex::new(end) };
        let at = [(3, 5), (5, 6), (64, 65), (100, 128), (128, 200), (255, 257), (320, 384), (400, 448)].map(range);
        for count in 0..=at.len() {
            for first in (0..512).step_by(64) {
                let lies = |page: &u64| at[..count].iter().any(|range| range.contains(PageIndex::new(*page)));
                let naive = (first..first + 64).filter(lies).fold(0, |bits, page| bits | 1 << (page - first));
                assert_eq!(within(&at[..count], PageIndex::new(first)), naive, "{count} ranges, word {first}");
            }
        }
    }

    #[test]
    fn a_run_takes_its_pages_and_none_past_the_end_of_its_block() {
        use crate::dirty::ClientMask;
        use crate::ram::{RamBlockSpec, RamList};
        use crate::{PAGE_SIZE, pin};
        const PAGES: u64 = 130;
        let client = DirtyClient::MIGRATION;
        for (base, mask) in
            [(0, !0), (0, 1), (1, !0), (63, 0b101), (66, !0), (67, !0), (100, !0), (129, !0), (130, !0), (200, 1)]
        {
            let list = RamList::new();
            let block = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE)).unwrap();
            let next = list.add(RamBlockSpec::new("next", PAGES * PAGE_SIZE)).unwrap();
            for pages in [block.pages(), next.pages()] {
                list.dirty().test_and_clear_range(pages, client, &pin(), |_, _| ());
                list.dirty().set(pages, ClientMask::of(client), &pin());
            }
            let log = RingLog::new(client, 128).unwrap();
            let guard = pin();
            let mut words = Words { log: &log, ram: &list, within: None, guard: &guard, words: Vec::new() };
            words.run(block.slot(), base, mask);
            let start = block.pages().start.get();
            let bits = |(first, bits): &(PageIndex, u64)| {
                let (first, bits) = (first.get(), *bits);
                (0..64).filter(move |n| bits >> n & 1 != 0).map(move |n| first + n - start)
            };
            let taken: Vec<u64> = words.words.iter().flat_map(bits).collect();
            let naive: Vec<u64> =
                (0..64).filter(|n| mask >> n & 1 != 0 && base + n < PAGES).map(|n| base + n).collect();
            assert_eq!(taken, naive, "from {base} on, {mask:#x}");
        }
    }
}
