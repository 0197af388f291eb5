//! Poison and canaries of one moment, and the way back to it.
//!
//! ```text
//!   save     Marks { version, ranges }        the same version: the same ranges, so nothing is copied twice
//!   changed  version + 1, and the bytes it was about                      as many as LISTED, then only that it was more
//!   restore  the version is that of now: nothing │ of the last save: the listed bytes │ of another: all of them
//! ```

use super::{Asks, Bits, OF_LOADS, bits};
use crate::ask::{Kinds, Watch, number};
use crate::mmu::SoftMmu;
use std::sync::Arc;

/// What belongs to a checkpoint.
pub(super) const MARKS: Bits = bits(number(Watch::Poison), Kinds::All) | bits(number(Watch::Canary), Kinds::All);
const _: () = assert!(MARKS & OF_LOADS != 0);
/// Changes since a save that are undone one by one.
const LISTED: usize = 4096;

/// Poison and canaries of one vCPU at one moment.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    version: u64,
    /// First byte, last byte, and what they are; sorted.
    ranges: Arc<[(u64, u64, Bits)]>,
}

impl PartialEq for Marks {
    fn eq(&self, other: &Self) -> bool {
        self.ranges == other.ranges
    }
}

impl Marks {
    /// The part of them that lies in these bytes.
    fn within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64, Bits)> {
        let from = self.ranges.partition_point(|(_, end, _)| *end < first);
        let inside = self.ranges[from..].iter().take_while(move |(start, ..)| *start <= last);
        inside.map(move |(start, end, bits)| (first.max(*start), last.min(*end), *bits))
    }
}

/// What changed since a save.
#[derive(Debug, Default)]
pub(super) struct Since {
    /// No two moments of a vCPU with different marks have one version.
    version: u64,
    next: u64,
    saved: Marks,
    listed: Vec<(u64, u64)>,
}

impl Since {
    pub(super) fn changed(&mut self, first: u64, last: u64) {
        self.next += 1;
        self.version = self.next;
        // One more than are undone says that it is not all of them.
        if self.listed.len() <= LISTED {
            self.listed.push((first, last));
        }
    }

    fn is_at(&mut self, marks: Marks) {
        self.version = marks.version;
        self.saved = marks;
        self.listed.clear();
    }
}

impl Asks {
    fn save_marks(&mut self) -> Marks {
        if self.marks.version != self.marks.saved.version {
            let mut ranges: Vec<(u64, u64, Bits)> = Vec::new();
            for (start, (end, bits)) in &self.ranges {
                match (bits & MARKS, ranges.last_mut()) {
                    (0, _) => {}
                    (bits, Some(last)) if last.1 + 1 == *start && last.2 == bits => last.1 = *end,
                    (bits, _) => ranges.push((*start, *end, bits)),
                }
            }
            self.marks.is_at(Marks { version: self.marks.version, ranges: ranges.into() });
        }
        self.marks.saved.clone()
    }
}

impl SoftMmu {
    /// Poison and canaries as they are now.
    pub fn marks(&mut self) -> Marks {
        self.parked_mut().tlb.asks.save_marks()
    }

    /// They are what they were. They may be of another vCPU, if `other` says so.
    #[inline]
    pub fn set_marks(&mut self, marks: &Marks, other: bool) {
        if other || self.parked_mut().tlb.asks.marks.version != marks.version {
            self.go_back_to_marks(marks, other);
        }
    }

    #[cold]
    #[inline(never)]
    fn go_back_to_marks(&mut self, marks: &Marks, other: bool) {
        let mmu = self.parked_mut();
        let since = &mut mmu.tlb.asks.marks;
        let few = !other && since.saved.version == marks.version && since.listed.len() <= LISTED;
        let listed = if few { std::mem::take(&mut since.listed) } else { vec![(0, u64::MAX)] };
        for (first, last) in listed {
            // What is marked now, and no gap between.
            let asks = &mmu.tlb.asks;
            let before = asks.ranges.range(..first).next_back();
            let there = before.into_iter().chain(asks.ranges.range(first..=last));
            let off: Vec<_> = there
                .filter(|(_, (end, bits))| bits & MARKS != 0 && *end >= first)
                .map(|(start, (end, _))| (first.max(*start), last.min(*end)))
                .collect();
            off.into_iter().for_each(|range| mmu.change_asks(range, (0, MARKS)));
            for (start, end, bits) in marks.within(first, last) {
                mmu.change_asks((start, end), (bits, 0));
            }
        }
        let since = &mut mmu.tlb.asks.marks;
        let mut marks = marks.clone();
        if other {
            since.next += 1;
            marks.version = since.next;
        }
        since.is_at(marks);
    }
}
