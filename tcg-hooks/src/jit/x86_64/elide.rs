//! Several accesses off one base register share one check.
//!
//! ```text
//!   check: first and last byte on one page, the page's entry matches ──no──▶ cold copy
//!   ld a, 0(b) ; … ; ld c, 8(b) ; … ; ld d, 24(b)         host loads, no more checks │
//!   back: ◀───────────────────── the same ops, each with its own check ◀─────────────┘
//! ```
//!
//! In the cold copy a load or store is a call of its routine, which looks for the entry (`again.rs`), unless something was learned of
//! the TB's.
//!
//! The check holds until the last of them: nothing in between serves requests (TLB-1), an entry that is evicted
//! meanwhile leaves its page where it was, and only a translation makes a page NOTDIRTY. Groups that overlap are one
//! cluster with one cold copy, entered where a check failed and left behind the cluster.
use super::asm::Hole;
use super::mem::Taken;
use super::regs::{RAX, RDX};
use super::{Addend, Cold, Emitter};
use crate::ir::{Block, Ir, Kind, MemOp, SHARED};
use crate::jit::context::KEPT;
use crate::tier2::MOST_CHECKS;
use crate::tier2::reach::{self, Reach};
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::tlb::entry::{READ, WRITE};

/// Fewer accesses than this are cheaper with a check each.
const WORTH: usize = SHARED as usize;
/// The same where the check keeps an addend: a pair's loads may guess theirs (`guess.rs`).
const WORTH_KEEPING: usize = 3;
/// The same where the check is for two pages.
const WORTH_TWO_PAGES: usize = 4;
/// How far ahead of its first access a group looks, in ops.
const REACH: usize = 40;
/// The same in tier 2.
const FAR: usize = 160;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// As ever.
    Plain,
    /// The first of a group, which it checks for.
    Lead(usize),
    /// Covered by the check of this group.
    Member(usize),
}

#[derive(Debug, Clone, Copy)]
struct Group {
    base: u8,
    comparator: i32,
    /// Offset from the base of the first byte.
    first: i32,
    /// Offset of the last byte.
    last: i32,
    /// Are the first and the last byte looked for each on a page of its own, and not both on one?
    two_pages: bool,
    /// Where its check keeps the addend, if that may be any.
    kept: Option<u8>,
    /// Its loads were seen to be outside the run of pages.
    beside_run: bool,
    /// One past the last member.
    end: usize,
}

/// A cluster's cold copy, in terms of the region's ops.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    from: u32,
    to: u32,
    /// Its entries: `entries[first..]`, as many as lie before `to`.
    first: u32,
    back: u32,
}

/// What this file knows of the region, and its memory.
#[derive(Default)]
pub(super) struct Elide {
    /// Of the block.
    marks: Vec<Mark>,
    groups: Vec<Group>,
    /// In tier 2.
    reaches: Vec<Option<Reach>>,
    clusters: Vec<Cluster>,
    /// Where cold copies may be entered: before this op, from this check.
    entries: Vec<(u32, Hole)>,
}

impl Elide {
    pub(super) fn clear(&mut self) {
        self.clusters.clear();
        self.entries.clear();
    }
}

fn access(ir: &Ir) -> Option<(i32, MemOp)> {
    match ir.kind {
        Kind::Load(mem) => Some((READ, mem)),
        Kind::Store(mem) => Some((WRITE, mem)),
        _ => None,
    }
}

/// How many accesses each base has in a block, by direction.
struct Counts([u8; 64]);

impl Counts {
    /// All are worth a look.
    const ALL: Counts = Counts([u8::MAX; 64]);

    fn slot(ir: &Ir, comparator: i32) -> usize {
        usize::from(ir.a & 31) + if comparator == READ { 0 } else { 32 }
    }

    /// The counts, if any is worth a look.
    fn of(ops: &[Ir]) -> Option<Counts> {
        let (mut counts, mut most) = ([0u8; 64], 0);
        for ir in ops {
            if let Some((comparator, _)) = access(ir) {
                let count = &mut counts[Self::slot(ir, comparator)];
                *count = count.saturating_add(1);
                most = most.max(*count);
            }
        }
        (usize::from(most) >= WORTH).then_some(Counts(counts))
    }

    fn worth(&self, ir: &Ir) -> bool {
        access(ir).is_some_and(|(comparator, _)| usize::from(self.0[Self::slot(ir, comparator)]) >= WORTH)
    }
}

/// What an access touches, off a base that has its value still.
fn plain(ir: &Ir, value: u16) -> Option<Reach> {
    let (_, mem) = access(ir)?;
    let first = ir.imm as i32;
    Some(Reach { base: ir.a, value, first, last: first + mem.bytes() as i32 - 1, exact: true })
}

/// The group that the access at `at` leads, by this number, if it is worth it; its members are marked. `reach` tells what each touches.
fn group(
    ops: &[Ir],
    marks: &mut [Mark],
    (at, number): (usize, usize),
    (far, worth): (usize, usize),
    reach: impl Fn(usize) -> Option<Reach>,
) -> Option<Group> {
    let (comparator, _) = access(&ops[at])?;
    let lead = reach(at).filter(|lead| lead.base != 0)?;
    let (mut first, mut last, mut exact) = (lead.first, lead.last, lead.exact);
    let mut members: smallvec::SmallVec<[usize; 16]> = smallvec::SmallVec::new();
    for (i, ir) in ops.iter().enumerate().skip(at).take(far) {
        if ir.kind.may_leave() {
            break;
        }
        if marks[i] == Mark::Plain
            && access(ir).is_some_and(|(c, _)| c == comparator)
            && let Some(found) = reach(i).filter(|found| (found.base, found.value) == (lead.base, lead.value))
        {
            let (from, to) = (first.min(found.first), last.max(found.last));
            if to - from < PAGE_SIZE as i32 {
                (first, last, exact) = (from, to, exact && found.exact);
                members.push(i);
            }
        }
        if ir.rd == lead.base {
            break;
        }
    }
    if members.len() < if exact { worth } else { WORTH_TWO_PAGES } || members[0] != at {
        return None;
    }
    for &i in &members[1..] {
        marks[i] = Mark::Member(number);
    }
    let end = members[members.len() - 1] + 1;
    Some(Group { base: lead.base, comparator, first, last, two_pages: !exact, kept: None, beside_run: false, end })
}

impl Emitter {
    /// The ops of one block.
    pub(super) fn ops(&mut self, ops: &[Ir], &Block { first, end, shares, .. }: &Block) {
        let block = &ops[first as usize..end as usize];
        let named = self.is_named();
        if !(named || shares) || !self.flags.elide || self.addend == Addend::Entry {
            return block.iter().for_each(|ir| self.op(ir));
        }
        self.sharing(block, first, named);
    }

    /// The same where accesses may share checks.
    #[inline(never)]
    fn sharing(&mut self, block: &[Ir], first: u32, named: bool) {
        let (elsewhere, beside_run) = (&self.known.elsewhere, &self.known.beside_run);
        // A group is of accesses that all take the assumed addend, or all their check's; and that all look for entries, or none does.
        let what = |n: usize| [elsewhere, beside_run].map(|set| set.has(block[n].site));
        let like = |n: usize, at: usize| what(n) == what(at);
        let Elide { marks, groups, reaches, .. } = &mut self.elide;
        if named {
            reach::reaches(block, reaches);
        }
        let Some(counts) = (if named { Some(Counts::ALL) } else { Counts::of(block) }) else {
            return block.iter().for_each(|ir| self.op(ir));
        };
        marks.clear();
        marks.resize(block.len(), Mark::Plain);
        groups.clear();
        for at in 0..block.len() {
            let [own, beside_run] = what(at);
            let kept = own.then_some((MOST_CHECKS + groups.len()) as u8);
            if marks[at] != Mark::Plain
                || !counts.worth(&block[at])
                || kept.is_some_and(|kept| usize::from(kept) >= KEPT)
            {
                continue;
            }
            let worth = if own { WORTH_KEEPING } else { WORTH };
            let found = if named {
                group(block, marks, (at, groups.len()), (FAR, worth), |n| reaches[n].filter(|_| like(n, at)))
            } else {
                group(block, marks, (at, groups.len()), (REACH, worth), |n| plain(&block[n], 0).filter(|_| like(n, at)))
            };
            if let Some(group) = found {
                marks[at] = Mark::Lead(groups.len());
                groups.push(Group { kept, beside_run, ..group });
            }
        }
        let mut at = 0;
        while at < block.len() {
            match self.elide.marks[at] {
                Mark::Lead(group) => at = self.cluster(block, first, at, self.elide.groups[group].end),
                _ => {
                    self.op(&block[at]);
                    at += 1;
                }
            }
        }
    }

    /// From a leader to the end of all groups that overlap; returns that end.
    fn cluster(&mut self, block: &[Ir], first: u32, start: usize, mut end: usize) -> usize {
        let entries = self.elide.entries.len() as u32;
        let mut at = start;
        while at < end {
            let ir = &block[at];
            match self.elide.marks[at] {
                Mark::Plain => self.op(ir),
                Mark::Member(group) => self.unchecked(ir, self.elide.groups[group].kept),
                Mark::Lead(group) => {
                    let group = self.elide.groups[group];
                    end = end.max(group.end);
                    self.check(&group, first + at as u32);
                    self.unchecked(ir, group.kept);
                }
            }
            at += 1;
        }
        let (from, to) = (first + start as u32, first + end as u32);
        self.elide.clusters.push(Cluster { from, to, first: entries, back: self.here() });
        self.cold.push(Cold::Cluster(self.elide.clusters.len() - 1));
        end
    }

    /// The same ops with a check each.
    pub(super) fn cold_cluster(&mut self, ops: &[Ir], number: usize) {
        let Cluster { from, to, first, back } = self.elide.clusters[number];
        let mut entry = first as usize;
        for n in from..to {
            while let Some(&(_, check)) = self.elide.entries.get(entry).filter(|e| e.0 == n) {
                self.ops.close(check);
                entry += 1;
            }
            if !self.by_routine(&ops[n as usize]) {
                self.op(&ops[n as usize]);
            }
        }
        self.ops.jump_to(back);
    }

    fn check(&mut self, group: &Group, op: u32) {
        let base = self.source(group.base, RDX);
        let own = group.kept.is_some();
        if group.comparator == READ
            && !own
            && let Some(whole) = self.whole_for(Taken::Assumed, group.beside_run)
        {
            let (from, other) = self.probe_whole_group(base, (group.first, group.last), whole);
            self.elide.entries.push((op, from));
            self.elide.entries.extend(other.map(|other| (op, other)));
            return;
        }
        let from = if group.two_pages {
            self.probe_first(base, group.first, group.comparator, own)
        } else {
            self.probe_span(base, (group.first, group.last), group.comparator, own)
        };
        self.elide.entries.push((op, from));
        if let Some(slot) = group.kept {
            self.keep_addend(slot);
        }
        if !group.two_pages {
            return;
        }
        let last = self.probe_first(base, group.last, group.comparator, own);
        self.elide.entries.push((op, last));
        if let Some(slot) = group.kept {
            let other = self.compare_addend(slot);
            self.elide.entries.push((op, other));
        }
    }

    /// An access behind its check, which kept the addend here, if it kept it.
    fn unchecked(&mut self, ir: &Ir, kept: Option<u8>) {
        let base = self.source(ir.a, RDX);
        let addend = kept.map_or(Taken::Assumed, Taken::Kept);
        match ir.kind {
            Kind::Load(mem) => self.load_at(base, ir, mem, addend),
            Kind::Store(mem) => self.store_at(base, ir, mem, addend),
            _ => self.op(ir),
        }
    }
}

const _: () = assert!(RAX != RDX);
const _: () = assert!(MOST_CHECKS < KEPT, "groups keep their addends behind those of the checks in front of a loop");
