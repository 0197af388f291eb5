//! All RAM of a list as it was at one moment, and the way back to it at the cost of what was written since.
//!
//! ```text
//!   RAM of a block   │ page 0 │ page 1 │ page 2 │ …         host
//!   its image        │ page 0 │64│ page 1 │64│ page 2 │64│ …     a page is found by its number; zeroes are not memory
//!
//!   put back   LineLog: pages with lines ─▶ each line: code there, and other bytes? its translations die ─▶ copy 64 bytes
//! ```
//!
//! Between the pages of an image lie 64 bytes, so that a line that all pages have at the same place, as stacks and the heads of
//! objects are, does not compete with itself for the same few sets of the host's caches.
//!
//! Memory that was no RAM at a moment is zero in its image: that of blocks that come later, and above a length that grows later. So
//! a moment before and one after it differ like any two.
//!
//! The image is the authority (LINE-1): what [`LineLog`] noted only makes it fast. Where nothing was noted, [`Image::difference`]
//! finds what should have been.

mod baseline;
mod delta;

pub use baseline::Baseline;
pub use delta::Delta;

use super::access::{copy_line, copy_page, line_is_zero, same_line};
use super::{RamBlock, RamList};
use crate::addr::{LINE_BITS, PAGE_BITS, PAGE_SIZE, PageIndex, PageRange, RamAddr};
use crate::dirty::{ClientMask, CodePage, LineLog, LinesTaken, lines_of};
use crate::rcu::pin;
use core::fmt;
use core::ops::Range;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a line.
const LINE: u64 = 1 << LINE_BITS;
/// Lines of a page.
const LINES: u64 = PAGE_SIZE / LINE;
/// From one page of an image to the next.
const STRIDE: u64 = PAGE_SIZE + LINE;

/// No image can be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The list has an image already.
    #[error(transparent)]
    Taken(#[from] LinesTaken),
    /// A baseline is of other blocks, or of other lengths.
    #[error("the baseline is not of this RAM: {idstr}")]
    Unlike {
        /// The block.
        idstr: String,
    },
    /// Pages of RAM are yet to come: nothing is known of what they will be.
    #[error("{pages} pages of RAM are yet to come")]
    Missing {
        /// How many.
        pages: u64,
    },
    /// The host has no memory for it.
    #[error("{bytes:#x} bytes for an image of {idstr}: {source}")]
    Host {
        /// The block.
        idstr: String,
        /// How much address space.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
}

/// The copy of one block.
struct BlockImage {
    block: Arc<RamBlock>,
    /// The pages that are in it: of its used length when it was taken.
    pages: Range<u64>,
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: address space of its own, tied to no thread; accesses are raw and atomic, and changes need `&mut Image`.
unsafe impl Send for BlockImage {}
// SAFETY: as above.
unsafe impl Sync for BlockImage {}

impl BlockImage {
    /// All zero.
    fn zero(block: &Arc<RamBlock>, length: u64) -> Result<BlockImage, ImageError> {
        let pages = PageRange::of_bytes(block.offset(), length);
        let pages = pages.start.get()..pages.end.get();
        // Room for all that it may become.
        let bytes = (block.max_length().div_ceil(PAGE_SIZE) * STRIDE).max(STRIDE) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address of the host's choice.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        let base = if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) };
        let Some(base) = base else {
            let source = io::Error::last_os_error();
            return Err(ImageError::Host { idstr: block.idstr().to_owned(), bytes: bytes as u64, source });
        };
        Ok(BlockImage { block: block.clone(), pages, base, bytes })
    }

    fn new(block: &Arc<RamBlock>) -> Result<BlockImage, ImageError> {
        let image = Self::zero(block, block.used_length())?;
        for page in image.pages.clone() {
            let (ram, copy) = image.at(page);
            for line in 0..LINES {
                let off = (line * LINE) as usize;
                // SAFETY: `at`: a page of both is memory, all of it; the copy is still private to this call.
                unsafe {
                    if !line_is_zero(ram.add(off)) {
                        copy_line(copy.add(off), ram.add(off));
                    }
                }
            }
        }
        Ok(image)
    }

    /// The block is this long, and may have been shorter: the pages that came, zero in the copy.
    fn grow(&mut self, length: u64) -> Range<u64> {
        let end = PageRange::of_bytes(self.block.offset(), length).end.get();
        let new = self.pages.end..end.max(self.pages.end);
        self.pages.end = new.end;
        new
    }

    /// Where a page of it is, in RAM and in the copy.
    #[inline]
    fn at(&self, page: u64) -> (*mut u8, *mut u8) {
        let n = page - self.pages.start;
        // SAFETY: the caller's page is one of `pages`: inside the block's memory, which is whole pages of the host and never unmapped
        // while the block lives, and inside the copy.
        unsafe { (self.block.host().add((n << PAGE_BITS) as usize), self.base.as_ptr().add((n * STRIDE) as usize)) }
    }
}

impl Drop for BlockImage {
    fn drop(&mut self) {
        // SAFETY: from `new`, and nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// RAM as it was; see the head of this file.
pub struct Image {
    /// By rising pages.
    blocks: Vec<BlockImage>,
    log: LineLog,
    /// Pages that came since, to be compared with the zeros that they are in the copy.
    fresh: Vec<Range<u64>>,
    /// The block that was looked up last.
    last: usize,
}

/// What a restore did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PutBack {
    /// Pages that had something written.
    pub pages: u64,
    /// Lines of 64 bytes that were copied.
    pub lines: u64,
    /// Page tables lay on one of the pages.
    pub tables: bool,
}

impl Image {
    /// Copies all RAM of the list, whose vCPUs are parked; from here on what is written is noted. The caller arms the vCPUs.
    ///
    /// # Errors
    /// [`ImageError`]: the list has an image, or the host no memory.
    pub fn take(list: &Arc<RamList>) -> Result<Image, ImageError> {
        Image::check_whole(list)?;
        let log = LineLog::start(list)?;
        let all: Vec<Arc<RamBlock>> = list.blocks(&pin()).cloned().collect();
        let blocks = all.iter().map(BlockImage::new).collect::<Result<Vec<_>, _>>()?;
        Ok(Image { blocks, log, fresh: Vec::new(), last: 0 })
    }

    /// Is all RAM of the list here, so that it can be copied, or put back?
    ///
    /// # Errors
    /// [`ImageError::Missing`].
    pub fn check_whole(list: &RamList) -> Result<(), ImageError> {
        match list.missing() {
            Some(missing) => Err(ImageError::Missing { pages: missing.left() }),
            None => Ok(()),
        }
    }

    /// These are the blocks now, and their lengths: new ones, and what others have more, come into the image as zeros, before the
    /// next [`advance`](Self::advance). Copies of blocks that only the image still has are dropped.
    ///
    /// # Errors
    /// [`ImageError::Host`]. Another call goes on from there.
    pub fn cover(&mut self, blocks: &[(Arc<RamBlock>, u64)]) -> Result<(), ImageError> {
        self.drop_gone();
        for (block, length) in blocks {
            let first = block.offset().page().get();
            let at = self.blocks.partition_point(|image| image.pages.start < first);
            let new = match self.blocks.get_mut(at).filter(|image| Arc::ptr_eq(&image.block, block)) {
                Some(image) => image.grow(*length),
                None => {
                    self.blocks.insert(at, BlockImage::zero(block, *length)?);
                    self.blocks[at].pages.clone()
                }
            };
            if !new.is_empty() {
                self.fresh.push(new);
            }
        }
        Ok(())
    }

    /// Drops the copies of blocks that nothing else has.
    pub fn drop_gone(&mut self) {
        // Nothing gives out another one of the last.
        self.blocks.retain(|image| Arc::strong_count(&image.block) > 1);
    }

    /// The list.
    pub fn list(&self) -> &Arc<RamList> {
        self.log.list()
    }

    /// The blocks that are in it.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<RamBlock>> {
        self.blocks.iter().map(|image| &image.block)
    }

    #[inline]
    fn find(&mut self, page: u64) -> Option<usize> {
        if self.blocks.get(self.last).is_some_and(|image| image.pages.contains(&page)) {
            return Some(self.last);
        }
        let at = self.blocks.partition_point(|image| image.pages.end <= page);
        self.blocks.get(at).filter(|image| image.pages.contains(&page))?;
        self.last = at;
        Some(at)
    }

    /// Puts back what was written to a page that a vCPU noted. Are the page's entries to be armed? All that may store there are
    /// parked.
    #[inline]
    pub fn put_back(&mut self, page: &CodePage, done: &mut PutBack) -> bool {
        let (lines, arm) = self.log.take(page);
        if lines != 0 {
            done.tables |= page.has_tables();
            self.put_back_lines(page.index(), lines, page.mask.load(Ordering::Relaxed), done);
        }
        arm
    }

    /// Puts back what was written by others than vCPUs, and the pages that count as written whole; `arm` is called with those
    /// whose entries are to be armed.
    pub fn put_back_rest(&mut self, done: &mut PutBack, mut arm: impl FnMut(PageIndex)) {
        for page in self.log.take_whole() {
            let list = self.list().clone();
            let Some(noted) = list.dirty().code().page(page) else { continue };
            if self.put_back(noted, done) {
                arm(page);
            }
        }
        for range in self.log.take_others() {
            let pages = PageRange::of_bytes(RamAddr::new(range.start), range.end - range.start);
            for page in pages.iter() {
                let lines = lines_within(page, &range);
                let known = self.list().dirty().code().page(page);
                done.tables |= known.is_some_and(CodePage::has_tables);
                let code = known.map_or(0, |code| code.mask.load(Ordering::Relaxed));
                if lines != u64::MAX || self.differs(page) {
                    self.put_back_lines(page, lines, code, done);
                }
            }
        }
    }

    /// Is a whole page other than it was? What was given back to the host, and is zero in the copy, stays there.
    fn differs(&mut self, page: PageIndex) -> bool {
        let Some(at) = self.find(page.get()) else { return false };
        let (ram, copy) = self.blocks[at].at(page.get());
        // SAFETY: `at`.
        !(0..LINES).all(|line| unsafe { same_line(ram.add((line * LINE) as usize), copy.add((line * LINE) as usize)) })
    }

    #[inline]
    fn put_back_lines(&mut self, page: PageIndex, lines: u64, code: u64, done: &mut PutBack) {
        let Some(at) = self.find(page.get()) else { return };
        let image = &self.blocks[at];
        let (ram, copy) = image.at(page.get());
        done.pages += 1;
        if code & lines != 0 || self.is_logged() {
            return self.put_back_slowly(page, lines, code, done);
        }
        done.lines += u64::from(lines.count_ones());
        if lines == u64::MAX {
            // SAFETY: `at`.
            return unsafe { copy_page(ram, copy) };
        }
        let mut left = lines;
        while left != 0 {
            let off = (u64::from(left.trailing_zeros()) * LINE) as usize;
            left &= left - 1;
            // SAFETY: `at`.
            unsafe { copy_line(ram.add(off), copy.add(off)) };
        }
    }

    /// Does any client but the translator track what is written?
    #[inline]
    fn is_logged(&self) -> bool {
        !self.list().dirty().tracks_nothing()
    }

    #[inline(never)]
    fn put_back_slowly(&mut self, page: PageIndex, lines: u64, code: u64, done: &mut PutBack) {
        let Some(at) = self.find(page.get()) else { return };
        let image = &self.blocks[at];
        let (ram, copy) = image.at(page.get());
        let (mut left, mut killed) = (lines, 0);
        while left != 0 {
            let line = left.trailing_zeros();
            let off = (u64::from(line) * LINE) as usize;
            left &= left - 1;
            // SAFETY: `at`.
            unsafe {
                if code >> line & 1 != 0 {
                    if same_line(ram.add(off), copy.add(off)) {
                        continue;
                    }
                    killed |= 1u64 << line;
                }
                copy_line(ram.add(off), copy.add(off));
            }
            done.lines += 1;
        }
        let list = self.list();
        while killed != 0 {
            let line = killed.trailing_zeros();
            killed &= killed - 1;
            list.kill_written(RamAddr::new(page.base().get() + u64::from(line) * LINE), LINE);
        }
        if self.is_logged() {
            list.dirty().set(PageRange::of_page(page), ClientMask::ALL, &pin());
        }
    }

    /// The first byte of RAM that is not what it was, whether it was noted or not.
    pub fn difference(&self) -> Option<RamAddr> {
        self.blocks.iter().find_map(|image| {
            image.pages.clone().find_map(|page| {
                let (ram, copy) = image.at(page);
                let differs = |line: &u64| {
                    let off = (line * LINE) as usize;
                    // SAFETY: `at`.
                    unsafe { !same_line(ram.add(off), copy.add(off)) }
                };
                let line = (0..LINES).find(differs)?;
                Some(RamAddr::new(PageIndex::new(page).base().get() + line * LINE))
            })
        })
    }
}

/// The lines of a page that a range of bytes touches.
fn lines_within(page: PageIndex, range: &Range<u64>) -> u64 {
    let base = page.base().get();
    let (from, to) = (range.start.max(base), range.end.min(base + PAGE_SIZE));
    lines_of(from - base, to - from)
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}
