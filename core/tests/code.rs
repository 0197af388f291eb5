//! Where translated code lies, against naive sets; and which vCPUs a write through the door kills translations of.
#![cfg(not(loom))]

use notdirty_core::{
    Answers, CodePage, DirtyListener, PAGE_SIZE, PageIndex, PageRange, RamAddr, RamBlockSpec, RamList, VcpuId,
    lines_of, pin,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const HALVES: usize = PAGE_SIZE as usize / 2;
const VCPUS: usize = 3;

/// One page as its contract has it: the lines of each vCPU, and each half.
struct Model {
    lines: [u64; VCPUS],
    halves: Vec<bool>,
}

fn line_of(half: usize) -> u64 {
    1 << (half / 32)
}

impl Model {
    fn new() -> Self {
        Self { lines: [0; VCPUS], halves: vec![false; HALVES] }
    }

    fn mask(&self) -> u64 {
        self.lines.iter().fold(0, |mask, lines| mask | lines)
    }

    fn halves_of(from: u64, to: u64) -> std::ops::Range<usize> {
        (from / 2) as usize..to.min(PAGE_SIZE).div_ceil(2) as usize
    }

    fn announce(&mut self, vcpu: usize, spans: &[(u64, u64)]) {
        for &(from, to) in spans {
            self.lines[vcpu] |= lines_of(from, to - from);
            self.halves[Self::halves_of(from, to)].fill(true);
        }
    }

    fn set_halves(&mut self, vcpu: usize, lines: u64, spans: &[(u64, u64)]) {
        if (0..VCPUS).any(|other| other != vcpu && self.lines[other] & lines != 0) {
            return;
        }
        for half in (0..HALVES).filter(|half| line_of(*half) & lines != 0) {
            self.halves[half] = spans.iter().any(|&(from, to)| Self::halves_of(from, to).contains(&half));
        }
    }

    fn set_lines(&mut self, vcpu: usize, own: u64) {
        let was = self.mask();
        self.lines[vcpu] = own;
        let mask = self.mask();
        for half in 0..HALVES {
            match (was & line_of(half) != 0, mask & line_of(half) != 0) {
                (false, true) => self.halves[half] = true,
                (true, false) => self.halves[half] = false,
                _ => {}
            }
        }
    }

    /// Of `len` bytes on this page: how many halves there are, and how many are set.
    fn count(&self, offset: u64, len: u64) -> (usize, usize) {
        let halves = if len == 0 { 0..0 } else { Self::halves_of(offset, offset.saturating_add(len)) };
        (halves.len(), self.halves[halves].iter().filter(|half| **half).count())
    }

    fn is_hit(&self, offset: u64, len: u64) -> bool {
        self.mask() & lines_of(offset, len) != 0 && self.count(offset, len).1 != 0
    }
}

#[derive(Clone, Debug)]
enum Step {
    Announce(usize, Vec<(u64, u64)>),
    SetHalves(usize, u64, Vec<(u64, u64)>),
    SetLines(usize, u64),
    Forget(usize),
}

/// Bytes of a page: few or many, at ends of lines and of words of two lines.
fn span() -> impl Strategy<Value = (u64, u64)> {
    let place = prop_oneof![0..PAGE_SIZE, (0..64u64, 0..5u64).prop_map(|(line, n)| (line * 64 + n).saturating_sub(2))];
    (place, prop_oneof![1..9u64, 1..200u64, Just(PAGE_SIZE)])
        .prop_map(|(from, len)| (from, (from + len).min(PAGE_SIZE)))
}

/// Lines that a part of the page has: dense and sparse, alone and as both of a word.
fn lines() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b),
        (0..64u32).prop_map(|n| 1 << n),
        (0..63u32).prop_map(|n| 3 << n),
        Just(0),
        Just(u64::MAX),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let spans = || prop::collection::vec(span(), 1..5);
    prop_oneof![
        4 => (0..VCPUS, spans()).prop_map(|(vcpu, spans)| Step::Announce(vcpu, spans)),
        3 => (0..VCPUS, lines(), spans()).prop_map(|(vcpu, lines, spans)| Step::SetHalves(vcpu, lines, spans)),
        3 => (0..VCPUS, lines()).prop_map(|(vcpu, lines)| Step::SetLines(vcpu, lines)),
        1 => (0..VCPUS).prop_map(Step::Forget),
    ]
}

fn check(code: &CodePage, model: &Model, offset: u64, len: u64) -> Result<(), TestCaseError> {
    let (all, set) = model.count(offset, len);
    prop_assert_eq!(code.has_halves(offset, len), set != 0, "any of {}..+{}", offset, len);
    prop_assert_eq!(code.has_all_halves(offset, len), set == all, "all of {}..+{}", offset, len);
    prop_assert_eq!(code.hit(offset, len), model.is_hit(offset, len), "a store to {}..+{}", offset, len);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Beside it is a page that one vCPU has code on all the time, and which nothing of this changes.
    #[test]
    fn the_halves_and_lines_of_a_page_are_those_that_its_vcpus_announced_and_did_not_give_up(
        steps in prop::collection::vec(step(), 1..25),
        probes in prop::collection::vec(span(), 8),
    ) {
        let list = RamList::new();
        list.add(RamBlockSpec::new("ram", 16 * PAGE_SIZE)).unwrap();
        let (dirty, guard, page) = (list.dirty(), pin(), PageIndex::new(3));
        let (vcpus, bystander) = ([(); VCPUS].map(|()| VcpuId::fresh()), VcpuId::fresh());
        let beside = dirty.announce_spans(PageIndex::new(4), [(62, 66)].into_iter(), bystander, &guard);
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Announce(vcpu, spans) => {
                    dirty.announce_spans(page, spans.iter().copied(), vcpus[vcpu], &guard);
                    model.announce(vcpu, &spans);
                }
                Step::SetHalves(vcpu, lines, spans) => {
                    dirty.code().set_halves(page, lines, spans.iter().copied(), vcpus[vcpu]);
                    if dirty.code().page(page).is_some() {
                        model.set_halves(vcpu, lines, &spans);
                    }
                }
                Step::SetLines(vcpu, lines) => {
                    dirty.set_code_lines(page, lines, vcpus[vcpu], &guard);
                    model.set_lines(vcpu, lines);
                }
                Step::Forget(vcpu) => {
                    dirty.forget_code_of(vcpus[vcpu], &guard);
                    model.set_lines(vcpu, 0);
                }
            }
            let code = dirty.code().page_or_insert(page);
            prop_assert_eq!(code.mask.load(Ordering::SeqCst), model.mask());
            prop_assert_eq!(dirty.is_code_protected(page, &guard), model.mask() != 0);
            prop_assert_eq!(vcpus.map(|vcpu| dirty.code().lines_of_vcpu(page, vcpu)), model.lines);
            for half in 0..HALVES {
                prop_assert_eq!(code.has_halves(2 * half as u64, 2), model.halves[half], "half {}", half);
            }
            for &(from, to) in &probes {
                check(code, &model, from, to - from)?;
                let ram = RamAddr::new(page.base().get() + from);
                prop_assert_eq!(dirty.code().hit(ram, to - from), model.is_hit(from, to - from));
            }
            for (offset, len) in [(0, 0), (0, PAGE_SIZE), (0, u64::MAX), (PAGE_SIZE - 1, 64)] {
                check(code, &model, offset, len)?;
            }
        }
        prop_assert!(beside.hit(62, 1) && beside.hit(65, 1) && !beside.hit(0, 62) && !beside.hit(66, 100));
        prop_assert_eq!(dirty.code().lines_of_vcpu(PageIndex::new(4), bystander), 0b11);
    }
}

/// The bytes that were written, and the vCPUs with translations of them.
type Killed = (u64, u64, Vec<VcpuId>);

/// Remembers the kills that it was asked for.
#[derive(Default)]
struct Kills(Mutex<Vec<Killed>>);

impl DirtyListener for Kills {
    fn rearm(&self, _: &[PageRange]) -> Option<Box<dyn Answers>> {
        None
    }
    fn kill_code(&self, owners: &[VcpuId], ram: RamAddr, len: u64) {
        self.0.lock().unwrap().push((ram.get(), len, owners.to_vec()));
    }
}

/// The first pages with code are the first ones of all RAM, the last ones lie around the border of two rows of dirty blocks.
const ROW: u64 = 2 << 20;
const FIRSTS: [u64; 2] = [0, ROW - 3];

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_write_kills_the_translations_of_the_bytes_that_it_wrote_for_the_vcpus_that_have_them(
        code in prop::collection::vec((0..2usize, 0..6u64, 0..VCPUS, span()), 0..12),
        writes in prop::collection::vec((0..2usize, 0..6 * PAGE_SIZE, prop_oneof![1..9u64, 1..6 * PAGE_SIZE]), 1..8),
    ) {
        let list = RamList::new();
        let block = list.add(RamBlockSpec::new("ram", (ROW + 10) * PAGE_SIZE)).unwrap();
        let kills = Arc::new(Kills::default());
        list.add_listener(Arc::downgrade(&kills));
        let (vcpus, guard) = ([(); VCPUS].map(|()| VcpuId::fresh()), pin());
        // The vCPUs of a page are named in the order in which they came, so that is how the model has them.
        let mut pages: BTreeMap<u64, (Model, Vec<usize>)> = BTreeMap::new();
        for (place, page, vcpu, span) in code {
            let page = FIRSTS[place] + page;
            list.dirty().announce_spans(PageIndex::new(page), [span].into_iter(), vcpus[vcpu], &guard);
            let (model, order) = pages.entry(page).or_insert_with(|| (Model::new(), Vec::new()));
            model.announce(vcpu, &[span]);
            if !order.contains(&vcpu) {
                order.push(vcpu);
            }
        }
        drop(guard);
        for (place, start, len) in writes {
            let start = FIRSTS[place] * PAGE_SIZE + start;
            let mut wanted: Vec<Killed> = Vec::new();
            for (page, (model, order)) in &pages {
                let from = start.max(page * PAGE_SIZE);
                let end = (start + len).min((page + 1) * PAGE_SIZE);
                if from >= end || !model.is_hit(from % PAGE_SIZE, end - from) {
                    continue;
                }
                let lines = lines_of(from % PAGE_SIZE, end - from);
                let owners: Vec<_> = order.iter().filter(|n| model.lines[**n] & lines != 0).map(|n| vcpus[*n]).collect();
                match wanted.last_mut() {
                    Some(last) if last.0 + last.1 == from && last.2 == owners => last.1 += end - from,
                    _ => wanted.push((from, end - from, owners)),
                }
            }
            block.write_raw(start, &vec![1; len as usize]).unwrap();
            list.after(RamAddr::new(block.offset().get() + start), len);
            prop_assert_eq!(core::mem::take(&mut *kills.0.lock().unwrap()), wanted);
        }
    }
}
