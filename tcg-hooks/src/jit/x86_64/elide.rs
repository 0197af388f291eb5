//! Several accesses off one base register share one check.
//!
//! ```text
//!   check: first and last byte on one page, the page's entry matches ──no──▶ cold copy
//!   ld a, 0(b) ; … ; ld c, 8(b) ; … ; ld d, 24(b)         host loads, no more checks │
//!   back: ◀───────────────────── the same ops, each with its own check ◀─────────────┘
//! ```
//!
//! The check holds until the last of them: nothing in between serves requests (TLB-1), an entry that is evicted
//! meanwhile leaves its page where it was, and only a translation makes a page NOTDIRTY. Groups that overlap are one
//! cluster with one cold copy, entered where a check failed and left behind the cluster.
use super::asm::Hole;
use super::regs::{RAX, RDX};
use super::{Cold, Emitter};
use crate::ir::{Ir, Kind, MemOp};
use notdirty_softmmu::tlb::entry::{READ, WRITE};

/// Fewer accesses than this are cheaper with a check each.
const WORTH: usize = 3;
/// How far ahead of its first access a group looks, in ops.
const REACH: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// As ever.
    Plain,
    /// The first of a group, which it checks for.
    Lead(usize),
    /// Covered by a check.
    Member,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    base: u8,
    comparator: i32,
    /// Offset from the base of the first byte.
    first: i32,
    /// Offset of the last byte.
    last: i32,
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

/// The group that the access at `at` leads, if it is worth it; its members are marked.
fn group(ops: &[Ir], marks: &mut [Mark], at: usize) -> Option<Group> {
    let (comparator, _) = access(&ops[at])?;
    let base = ops[at].a;
    let mut members: smallvec::SmallVec<[usize; 16]> = smallvec::SmallVec::new();
    for (i, ir) in ops.iter().enumerate().skip(at).take(REACH) {
        if ir.kind.may_leave() {
            break;
        }
        if ir.a == base && marks[i] == Mark::Plain && access(ir).is_some_and(|(c, _)| c == comparator) {
            members.push(i);
        }
        if ir.rd == base {
            break;
        }
    }
    let size = |i: usize| access(&ops[i]).map_or(1, |(_, mem)| mem.bytes() as i32);
    let imm = |i: usize| ops[i].imm as i32;
    if members.len() < WORTH || members[0] != at || base == 0 {
        return None;
    }
    let first = members.iter().map(|&i| imm(i)).min()?;
    let last = members.iter().map(|&i| imm(i) + size(i) - 1).max()?;
    for &i in &members[1..] {
        marks[i] = Mark::Member;
    }
    Some(Group { base, comparator, first, last, end: members[members.len() - 1] + 1 })
}

impl Emitter {
    /// The ops of one block, `first..end` of the region's.
    pub(super) fn ops(&mut self, ops: &[Ir], first: u32, end: u32) {
        let block = &ops[first as usize..end as usize];
        let counts = if self.flags.elide && self.flat.is_some() { Counts::of(block) } else { None };
        let Some(counts) = counts else {
            block.iter().for_each(|ir| self.op(ir));
            return;
        };
        let Elide { marks, groups, .. } = &mut self.elide;
        marks.clear();
        marks.resize(block.len(), Mark::Plain);
        groups.clear();
        for at in 0..block.len() {
            if marks[at] == Mark::Plain
                && counts.worth(&block[at])
                && let Some(group) = group(block, marks, at)
            {
                marks[at] = Mark::Lead(groups.len());
                groups.push(group);
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
                Mark::Member => self.unchecked(ir),
                Mark::Lead(group) => {
                    let group = self.elide.groups[group];
                    end = end.max(group.end);
                    self.check(&group, first + at as u32);
                    self.unchecked(ir);
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
            self.op(&ops[n as usize]);
        }
        self.ops.jump_to(back);
    }

    fn check(&mut self, group: &Group, op: u32) {
        let base = self.source(group.base, RDX);
        let first = self.probe_first(base, group.first, group.comparator);
        let last = self.probe_last(base, group.last, group.comparator);
        self.elide.entries.extend([(op, first), (op, last)]);
    }

    /// An access whose check was done.
    fn unchecked(&mut self, ir: &Ir) {
        let base = self.source(ir.a, RDX);
        match ir.kind {
            Kind::Load(mem) => self.load_from_ram(base, ir, mem),
            Kind::Store(mem) => self.store_from(base, ir, mem),
            _ => self.op(ir),
        }
    }
}

const _: () = assert!(RAX != RDX);
