//! The source's RAM goes back to the host as its pages arrive.
//!
//! ```text
//!   sweep ─▶ pages ─▶ … 16 MiB ─▶ PING n ─▶            the target reads the channel in order: by PONG n it has placed all before it
//!                                  ◀─ PONG n ─▶ given back        a channel that broke: what was not answered is kept
//! ```
//!
//! What was only sent is kept: after a cut it is sent again. A page that went by the channel for urgent pages is given back at the end.

use super::super::wire::Fault;
use super::commands::Command;
use crate::addr::PAGE_SIZE;
use crate::ram::RamBlock;
use core::ops::Range;
use std::collections::VecDeque;
use std::sync::Arc;

/// The first number of a PING by which pages are known to be placed; others have lower ones.
pub const FIRST: u32 = 0x1_0000;

/// Pages between two.
const PAGES: u64 = 4096;

/// A block by its number, and pages of it.
type Part = (usize, Range<u64>);

#[derive(Debug)]
pub(super) struct Release {
    /// Sent since the last PING.
    open: Vec<Part>,
    pages: u64,
    /// Sent before each.
    sent: VecDeque<(u32, Vec<Part>)>,
    next: u32,
    released: u64,
    /// By block, a bit for each page that was given back.
    gone: Vec<Vec<u64>>,
}

impl Default for Release {
    fn default() -> Self {
        Release { open: Vec::new(), pages: 0, sent: VecDeque::new(), next: FIRST, released: 0, gone: Vec::new() }
    }
}

/// Whether nothing but this process reads its memory, so that it can be given back: a file or a memfd may be another's RAM.
fn is_own(block: &RamBlock) -> bool {
    block.fd().is_none()
}

impl Release {
    /// Bytes that were given back.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// These pages went; a PING that is to follow.
    pub fn sent(&mut self, index: usize, pages: Range<u64>) {
        self.pages += pages.end - pages.start;
        match self.open.last_mut() {
            Some((last, run)) if *last == index && run.end == pages.start => run.end = pages.end,
            _ => self.open.push((index, pages)),
        }
    }

    /// The PING that is due.
    pub fn ping(&mut self) -> Option<Command> {
        if self.pages < PAGES {
            return None;
        }
        let number = self.next;
        self.next = number.checked_add(1).unwrap_or(FIRST);
        self.sent.push_back((number, core::mem::take(&mut self.open)));
        self.pages = 0;
        Some(Command::Ping(number))
    }

    /// The target has all that went before this PING.
    pub fn placed(&mut self, number: u32, blocks: &[&Arc<RamBlock>]) {
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            let (_, parts) = self.sent.pop_front().unwrap_or_default();
            self.give_back(parts, blocks);
        }
    }

    fn give_back(&mut self, mut parts: Vec<Part>, blocks: &[&Arc<RamBlock>]) {
        parts.sort_by_key(|(index, run)| (*index, run.start));
        parts.dedup_by(|(index, run), (before, wide)| {
            let joins = index == before && run.start == wide.end;
            if joins {
                wide.end = run.end;
            }
            joins
        });
        for (index, run) in parts {
            let Some(block) = blocks.get(index).filter(|block| is_own(block)) else { continue };
            let unit = block.page_size();
            let (start, end) = ((run.start * PAGE_SIZE).next_multiple_of(unit), run.end * PAGE_SIZE / unit * unit);
            // A host that does not take it keeps it.
            if start < end && block.discard_raw(start, end - start).is_ok() {
                self.released += end - start;
                self.note(index, start / PAGE_SIZE..end / PAGE_SIZE);
            }
        }
    }

    fn note(&mut self, index: usize, pages: Range<u64>) {
        if self.gone.len() <= index {
            self.gone.resize(index + 1, Vec::new());
        }
        let words = &mut self.gone[index];
        words.resize(words.len().max(pages.end.div_ceil(64) as usize), 0);
        pages.for_each(|page| words[(page / 64) as usize] |= 1 << (page % 64));
    }

    /// The target has these pages of a block, after a channel broke.
    ///
    /// # Errors
    /// [`Fault::Block`]: it lacks one that it had, which was given back here: no zeros are sent in its place.
    pub fn check(&self, index: usize, block: &RamBlock, received: &[u64]) -> Result<(), Fault> {
        let gone = self.gone.get(index).map_or(&[][..], Vec::as_slice);
        let lost = |(word, gone): (usize, &u64)| (word as u64, gone & !received.get(word).copied().unwrap_or(0));
        let lost: Vec<_> = gone.iter().enumerate().map(lost).filter(|(_, lost)| *lost != 0).collect();
        let Some((word, bits)) = lost.first() else { return Ok(()) };
        let first = word * 64 + u64::from(bits.trailing_zeros());
        let count: u32 = lost.iter().map(|(_, bits)| bits.count_ones()).sum();
        let why = format!(
            "{count} pages from page {first:#x} on went back to the host as the target said that it has them, and it lacks them now"
        );
        Err(Fault::Block { idstr: block.idstr().to_owned(), why })
    }

    /// The channel broke: what was not answered may be lost.
    pub fn forget(&mut self) {
        self.open.clear();
        self.sent.clear();
        self.pages = 0;
    }

    /// The target has all of it.
    pub fn all(&mut self, blocks: &[&Arc<RamBlock>]) {
        self.forget();
        self.released = 0;
        let all = blocks.iter().enumerate().map(|(index, block)| (index, 0..block.pages().len())).collect();
        self.give_back(all, blocks);
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::ram::{RamBlockSpec, RamList};

    #[test]
    fn what_the_target_has_is_given_back_and_nothing_else() {
        let list = RamList::new();
        let own = list.add(RamBlockSpec::new("own", 3 * PAGES * PAGE_SIZE)).unwrap();
        let shared = list.add(RamBlockSpec::new("shared", PAGES * PAGE_SIZE).shared(true)).unwrap();
        let blocks = [&own, &shared];
        let is_there = |block: &RamBlock, page: u64| {
            let mut byte = [0];
            block.read_bytes(page * PAGE_SIZE, &mut byte).unwrap();
            byte == [1]
        };
        for block in blocks {
            (0..block.pages().len()).for_each(|page| list.write(block, page * PAGE_SIZE, &[1]).unwrap());
        }
        let mut release = Release::default();
        release.sent(0, 0..PAGES - 1);
        assert_eq!(release.ping(), None);
        release.sent(1, 0..1);
        assert_eq!(release.ping(), Some(Command::Ping(FIRST)));
        release.sent(0, PAGES..2 * PAGES);
        assert_eq!(release.ping(), Some(Command::Ping(FIRST + 1)));
        assert!((0..3 * PAGES).all(|page| is_there(&own, page)));
        release.placed(FIRST, &blocks);
        assert_eq!(release.released(), (PAGES - 1) * PAGE_SIZE);
        for page in 0..3 * PAGES {
            assert_eq!(is_there(&own, page), page >= PAGES - 1, "{page}");
        }
        // Others read it.
        assert!(is_there(&shared, 0));
        // The target may have more, and not less.
        let mut has = vec![u64::MAX; (PAGES / 64) as usize];
        assert!(release.check(0, &own, &has).is_ok() && release.check(1, &shared, &[]).is_ok());
        has[1] &= !0b101;
        has.pop();
        let why = release.check(0, &own, &has).unwrap_err().to_string();
        // The last page was not given back.
        assert!(why.contains("RAM block own: 65 pages from page 0x40 on went back"), "{why}");
        // What may be lost is kept.
        release.forget();
        release.placed(FIRST + 1, &blocks);
        assert!(is_there(&own, PAGES));
        release.all(&blocks);
        assert!((0..3 * PAGES).all(|page| !is_there(&own, page)) && (0..PAGES).all(|page| is_there(&shared, page)));
        assert_eq!(release.released(), own.used_length());
    }
}
