//! What differs between two moments, by lines, with the bytes of both: a step from one node of a tree of checkpoints to the next, and
//! back.
//!
//! ```text
//!   advance   what was noted since the image ─▶ lines that differ ─▶ Delta { old, new }   the image is the new moment now
//!   step      forth: new ─▶ RAM and image      back: old ─▶ RAM and image                RAM is the image's moment before and after
//! ```

use super::super::access::{copy_line, same_line};
use super::{Image, LINE, PutBack};
use crate::addr::{LINE_BITS, PageIndex, PageRange, RamAddr};
use crate::dirty::CodePage;

/// See the head of this file.
#[derive(Default)]
pub struct Delta {
    /// Addresses of lines.
    lines: Vec<u64>,
    /// Of each line the old bytes, then the new ones.
    bytes: Vec<[u8; 2 * LINE as usize]>,
}

impl Delta {
    /// How many lines differ.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of the host's memory that it takes.
    pub fn memory(&self) -> usize {
        self.lines.capacity() * size_of::<u64>() + self.bytes.capacity() * 2 * LINE as usize
    }
}

impl Image {
    /// RAM is a new moment: of a page that a vCPU noted, adds what differs to `delta`. Are the page's entries to be armed?
    pub fn advance(&mut self, page: &CodePage, delta: &mut Delta) -> bool {
        let (lines, arm) = self.log.take(page);
        self.advance_lines(page.index(), lines, delta);
        arm
    }

    /// The same of what others wrote, and of pages that count as written whole; as [`put_back_rest`](Self::put_back_rest).
    pub fn advance_rest(&mut self, delta: &mut Delta, mut arm: impl FnMut(PageIndex)) {
        for page in self.log.take_whole() {
            let list = self.list().clone();
            let Some(noted) = list.dirty().code().page(page) else { continue };
            if self.advance(noted, delta) {
                arm(page);
            }
        }
        for pages in core::mem::take(&mut self.fresh) {
            pages.for_each(|page| self.advance_lines(PageIndex::new(page), u64::MAX, delta));
        }
        for range in self.log.take_others() {
            for page in PageRange::of_bytes(RamAddr::new(range.start), range.end - range.start).iter() {
                self.advance_lines(page, super::lines_within(page, &range), delta);
            }
        }
        delta.lines.shrink_to_fit();
        delta.bytes.shrink_to_fit();
    }

    fn advance_lines(&mut self, page: PageIndex, mut lines: u64, delta: &mut Delta) {
        let Some(at) = self.find(page.get()) else { return };
        let (ram, copy) = self.blocks[at].at(page.get());
        while lines != 0 {
            let line = u64::from(lines.trailing_zeros());
            let off = (line * LINE) as usize;
            lines &= lines - 1;
            // SAFETY: `at`, and the entry of `bytes` is two lines of its own.
            unsafe {
                if same_line(ram.add(off), copy.add(off)) {
                    continue;
                }
                let mut both = [0; 2 * LINE as usize];
                let old = both.as_mut_ptr();
                copy_line(old, copy.add(off));
                copy_line(old.add(LINE as usize), ram.add(off));
                // What a racing writer stores meanwhile is noted again.
                copy_line(copy.add(off), old.add(LINE as usize));
                delta.lines.push(page.base().get() + line * LINE);
                delta.bytes.push(both);
            }
        }
    }

    /// Goes from one end of `delta` to the other; RAM and image are at the one that is left.
    pub fn step(&mut self, delta: &Delta, forth: bool, done: &mut PutBack) {
        let off = if forth { LINE as usize } else { 0 };
        for (line, both) in delta.lines.iter().zip(&delta.bytes) {
            let page = RamAddr::new(*line).page();
            let Some(at) = self.find(page.get()) else { continue };
            let (_, copy) = self.blocks[at].at(page.get());
            // SAFETY: `at`, and that `bytes` are of whole lines.
            unsafe { copy_line(copy.add(RamAddr::new(*line).page_offset() as usize), both.as_ptr().add(off)) };
            let known = self.list().dirty().code().page(page);
            done.tables |= known.is_some_and(CodePage::has_tables);
            let code = known.map_or(0, |code| code.mask.load(std::sync::atomic::Ordering::Relaxed));
            let line = (line >> LINE_BITS) & 63;
            self.put_back_lines(page, 1 << line, code, done);
        }
    }
}

impl core::fmt::Debug for Delta {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Delta").field("lines", &self.lines.len()).finish_non_exhaustive()
    }
}
