//! Checksums of what a stream carries: a flipped bit is noticed before a target may run.
//!
//! ```text
//!   source   page ─▶ crc32 ─▶ table[page] = crc           target   the same table, of what arrived
//!                             sum += mix(page, new) − mix(page, old)
//!   stream   … sections, each with its crc32 │ integrity: crc32 of each, sum of each block │ EOF │ description, its crc32
//! ```
//!
//! A block's sum is over its pages as each was sent last, whatever the channel, the encoding or the order. The source reads a page for
//! its checksum apart from the write that sends it, so a guest may store between the two. Then the page is dirty again (HARVEST-1: it was
//! taken and re-armed before) and is sent again; its last version is read twice with no store between. Zero pages count nothing, so
//! pages without a record need none.

use super::section::{Field, FieldValue, Section};
use super::wire::Fault;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::LazyLock;

/// The section that has them; the last one of a stream.
pub(super) const NAME: &str = "integrity";

static ZERO: LazyLock<u32> = LazyLock::new(|| crc32fast::hash(&[0; PAGE_SIZE as usize]));

/// The checksum of a page's bytes; 0 of a page of zeros.
pub(super) fn of_page(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) ^ *ZERO
}

/// What a page adds to its block's sum. One-to-one for pages with bytes: a page that differs from what was sent changes the sum.
fn mix(page: u64, checksum: u32) -> u64 {
    if checksum == 0 {
        return 0;
    }
    // The finalizer of splitmix64.
    let word = page << 32 | u64::from(checksum);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The pages of a block as they were last sent, or as they last came.
pub struct Checksums {
    /// By page; memory is taken as they are set.
    pages: Box<[AtomicU32]>,
    sum: AtomicU64,
}

impl Checksums {
    pub(super) fn new(block: &RamBlock) -> Self {
        let pages = Box::into_raw(vec![0u32; (block.max_length() >> PAGE_BITS) as usize].into_boxed_slice());
        // SAFETY: an AtomicU32 has the size, bits and alignment of a u32; no other reference has the box.
        let pages = unsafe { Box::from_raw(pages as *mut [AtomicU32]) };
        Self { pages, sum: AtomicU64::new(0) }
    }

    /// Notes the checksum of each of these pages. No page is noted by two threads at once.
    pub(super) fn note(&self, pages: impl IntoIterator<Item = (u64, u32)>) {
        let mut change = 0u64;
        for (page, new) in pages {
            if let Some(noted) = self.pages.get(page as usize) {
                let old = noted.swap(new, Ordering::Relaxed);
                change = change.wrapping_add(mix(page, new)).wrapping_sub(mix(page, old));
            }
        }
        if change != 0 {
            self.sum.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Notes these pages as they are in RAM.
    pub(super) fn note_ram(&self, block: &RamBlock, pages: impl IntoIterator<Item = u64>) {
        let mut pages = pages.into_iter().peekable();
        let next = || pages.next().map(|page| (page, pages.peek().copied()));
        let sum = |(page, next)| (page, block.with_page(page, next, of_page).unwrap_or(0));
        self.note(core::iter::from_fn(next).map(sum));
    }

    /// Notes these pages as zero.
    pub(super) fn note_zero(&self, pages: impl IntoIterator<Item = u64>) {
        self.note(pages.into_iter().map(|page| (page, 0)));
    }

    /// Of all pages. Each thread that noted some has ended, or has been met.
    pub(super) fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

const _: () = assert!(align_of::<AtomicU32>() == align_of::<u32>());

/// The checksums of all that a stream has, in its order.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What has been seen, and its checksum.
    parts: Vec<(String, u32)>,
    /// Each block, and its sum; none if pages were not looked at.
    pub ram: Option<Vec<(String, u64)>>,
}

impl Tally {
    /// What it is counts, too. Of a command that comes several times in a row there is one checksum.
    pub fn part(&mut self, what: String, bytes: &[u8]) {
        let mut checksum = crc32fast::Hasher::new();
        if let Some((last, before)) = self.parts.last_mut().filter(|(last, _)| *last == what) {
            checksum.update(&before.to_be_bytes());
            [last.as_bytes(), bytes].into_iter().for_each(|bytes| checksum.update(bytes));
            *before = checksum.finalize();
            return;
        }
        [what.as_bytes(), bytes].into_iter().for_each(|bytes| checksum.update(bytes));
        self.parts.push((what, checksum.finalize()));
    }

    /// The section that says all of it.
    pub fn section(&self) -> Section {
        let field = |name: &str, numbers| Field { name: name.into(), value: FieldValue::U64s(numbers) };
        let parts = self.parts.iter().map(|(_, checksum)| u64::from(*checksum)).collect();
        let ram = self.ram.iter().flatten().map(|(_, sum)| *sum).collect();
        Section {
            name: NAME.into(),
            instance: 0,
            version: 1,
            fields: vec![field("sections", parts), field("ram", ram)],
        }
    }

    fn numbers<'s>(section: &'s Section, name: &str) -> Result<&'s [u64], Fault> {
        match section.get(name) {
            Some(FieldValue::U64s(numbers)) => Ok(numbers),
            _ => Err(Fault::Order(format!("the field {name} is missing"))),
        }
    }

    /// Compares what came with what that section says was sent.
    pub fn check(&self, section: &Section) -> Result<(), Fault> {
        if (section.instance, section.version) != (0, 1) {
            return Err(Fault::value("the version of the checksums", section.version, "1, of instance 0"));
        }
        let parts = Self::numbers(section, "sections")?;
        for ((what, came), sent) in self.parts.iter().zip(parts) {
            compare(what, u64::from(*came), *sent)?;
        }
        if parts.len() != self.parts.len() {
            return Err(Fault::Order(format!("{} sections came of {}", self.parts.len(), parts.len())));
        }
        let (Some(ram), sent) = (&self.ram, Self::numbers(section, "ram")?) else { return Ok(()) };
        if ram.len() != sent.len() {
            return Err(Fault::Order(format!("{} RAM blocks came of {}", ram.len(), sent.len())));
        }
        ram.iter().zip(sent).try_for_each(|((idstr, came), sent)| compare(&format!("RAM block {idstr}"), *came, *sent))
    }
}

pub(super) fn compare(what: &str, came: u64, sent: u64) -> Result<(), Fault> {
    if came == sent { Ok(()) } else { Err(Fault::Checksum { what: what.to_owned(), came, sent }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{RamBlockSpec, RamList};
    use std::sync::Arc;

    fn block() -> Arc<RamBlock> {
        RamList::new().add(RamBlockSpec::new("ram", 8 * PAGE_SIZE)).unwrap()
    }

    #[test]
    fn the_sum_is_of_each_page_as_it_was_noted_last_in_any_order() {
        let block = block();
        let (one, other) = (Checksums::new(&block), Checksums::new(&block));
        one.note([(3, 7), (5, 9)]);
        other.note([(5, 9), (3, 1), (6, 4)]);
        assert_ne!(one.sum(), other.sum());
        other.note([(3, 7)]);
        other.note_zero([6]);
        assert_eq!(one.sum(), other.sum());
        // The same bytes elsewhere are not the same.
        let moved = Checksums::new(&block);
        moved.note([(5, 7), (3, 9)]);
        assert_ne!(one.sum(), moved.sum());
        other.note_zero([3, 5]);
        assert_eq!(other.sum(), 0);
        // A page that the block has not is none.
        other.note([(8, 1), (u64::MAX, 1)]);
        assert_eq!(other.sum(), 0);
    }

    #[test]
    fn each_bit_of_a_page_counts_and_a_page_of_zeros_counts_nothing() {
        let block = block();
        let sums = Checksums::new(&block);
        sums.note_ram(&block, 0..8);
        assert_eq!(sums.sum(), 0);
        let mut seen = std::collections::BTreeSet::from([0]);
        for bit in (0..PAGE_SIZE * 8).step_by(7) {
            block.fill_raw(PAGE_SIZE + bit / 8, 1, 1 << (bit % 8)).unwrap();
            sums.note_ram(&block, [1]);
            assert!(seen.insert(sums.sum()), "{bit}");
            block.fill_raw(PAGE_SIZE + bit / 8, 1, 0).unwrap();
        }
    }
}
