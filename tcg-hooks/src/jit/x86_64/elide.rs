//! Several accesses off one base register share one check.
//!
//! ```text
//!   check: first and last byte on one page, the page's entry matches, the base is aligned ──no──▶ cold copy
//!   ld a, 0(b) ; … ; ld c, 8(b) ; … ; ld d, 24(b)         host loads, no more checks               │
//!   back: ◀──────────────────────────────── the same ops, each with its own check ◀────────────────┘
//! ```
//!
//! The check holds until the last of them: nothing in between serves requests (TLB-1), an entry that is evicted
//! meanwhile leaves its page where it was, and only a translation makes a page NOTDIRTY. Groups that overlap are one
//! cluster with one cold copy, entered where a check failed and left behind the cluster.
use super::asm::Label;
use super::context::TABLE;
use super::regs::{RAX, RDX};
use super::{Cold, Emitter};
use crate::ir::{Ir, Kind, MemOp};
use dynasmrt::dynasm;
use notdirty_softmmu::tlb::entry::{BIAS, FLAGS, READ, WRITE};

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
    /// Offset from the base of the first byte, a multiple of `align` from every access.
    first: i32,
    /// Offset of the last byte.
    last: i32,
    align: i32,
    /// One past the last member.
    end: usize,
}

/// A cluster's cold copy.
#[derive(Debug)]
pub(super) struct Cluster {
    ops: Vec<Ir>,
    /// Where it may be entered: before this op.
    entries: Vec<(usize, Label)>,
    back: Label,
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
        if ir.kind == Kind::Rust {
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
    let align = members.iter().map(|&i| size(i)).max()?;
    let anchor = members.iter().copied().find(|&i| size(i) == align).map(imm)?;
    members.retain(|i| (imm(*i) - anchor) % size(*i) == 0);
    if members.len() < WORTH || members[0] != at || base == 0 {
        return None;
    }
    let low = members.iter().map(|&i| imm(i)).min()?;
    let first = anchor - (anchor - low + align - 1).div_euclid(align) * align;
    let last = members.iter().map(|&i| imm(i) + size(i) - 1).max()?;
    for &i in &members[1..] {
        marks[i] = Mark::Member;
    }
    Some(Group { base, comparator, first, last, align, end: members[members.len() - 1] + 1 })
}

impl Emitter {
    /// The ops of one block.
    pub(super) fn ops(&mut self, ops: &[Ir]) {
        let counts = if self.flags.elide && self.flat.is_some() { Counts::of(ops) } else { None };
        let Some(counts) = counts else {
            ops.iter().for_each(|ir| self.op(ir));
            return;
        };
        let mut marks = vec![Mark::Plain; ops.len()];
        let mut groups = Vec::new();
        for at in 0..ops.len() {
            if marks[at] == Mark::Plain
                && counts.worth(&ops[at])
                && let Some(group) = group(ops, &mut marks, at)
            {
                marks[at] = Mark::Lead(groups.len());
                groups.push(group);
            }
        }
        let mut at = 0;
        while at < ops.len() {
            match marks[at] {
                Mark::Lead(group) => at = self.cluster(ops, &marks, &groups, at, groups[group].end),
                _ => {
                    self.op(&ops[at]);
                    at += 1;
                }
            }
        }
    }

    /// From a leader to the end of all groups that overlap; returns that end.
    fn cluster(&mut self, ops: &[Ir], marks: &[Mark], groups: &[Group], start: usize, mut end: usize) -> usize {
        let back = self.ops.new_label();
        let mut cluster = Cluster { ops: Vec::new(), entries: Vec::new(), back };
        let mut at = start;
        while at < end {
            match marks[at] {
                Mark::Plain => self.op(&ops[at]),
                Mark::Member => self.unchecked(&ops[at]),
                Mark::Lead(group) => {
                    let label = self.ops.new_label();
                    cluster.entries.push((at - start, label));
                    end = end.max(groups[group].end);
                    self.check(&groups[group], label);
                    self.unchecked(&ops[at]);
                }
            }
            at += 1;
        }
        dynasm!(self.ops; .arch x64; =>back);
        cluster.ops.extend_from_slice(&ops[start..end]);
        self.clusters.push(cluster);
        self.cold.push(Cold::Cluster(self.clusters.len() - 1));
        end
    }

    /// The same ops with a check each.
    pub(super) fn cold_cluster(&mut self, number: usize) {
        let Cluster { ops, entries, back } = std::mem::replace(
            &mut self.clusters[number],
            Cluster { ops: Vec::new(), entries: Vec::new(), back: self.blocks[0] },
        );
        let mut entries = entries.into_iter().peekable();
        for (i, ir) in ops.iter().enumerate() {
            if let Some((_, label)) = entries.next_if(|entry| entry.0 == i) {
                dynasm!(self.ops; .arch x64; =>label);
            }
            self.op(ir);
        }
        dynasm!(self.ops; .arch x64; jmp =>back);
    }

    fn check(&mut self, group: &Group, cold: Label) {
        let base = self.source(group.base, RDX);
        self.probe(base, group.first, group.align as u32, group.comparator, cold);
        dynasm!(self.ops; .arch x64
            ; lea rax, [Rq(base) + (group.last + BIAS as i32)]
            ; and rax, DWORD !(FLAGS as i32)
            ; cmp rax, [rbp + rcx + (TABLE + group.comparator)]
            ; jne =>cold);
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
