//! An image that several machines lie on: one copy of what no machine has written.
//!
//! ```text
//!   plain     memfd: pages as they are               ◀── private mapping ── RAM of a machine         (mapping.rs)
//!   spread    memfd: pages with 64 bytes between     ◀── private mapping ── its image
//! ```
//!
//! What a machine writes is its own from then on, by the host's copy-on-write: RAM that its guest stores to, and lines of the image that its
//! checkpoints change. The files are not written again. Only stretches with bytes other than zero are mapped: to look at a hole
//! of a file would fill it. A machine has eight at most for each block, as a process has 65,530 mappings.

use super::super::access::{copy_line, copy_page};
use super::super::mapping::{Failure, host_page, memfd};
use super::super::{RamBlock, RamList};
use super::{BlockImage, Image, ImageError, LINE, LINES, STRIDE};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use core::ops::Range;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Stretches of one block.
const MOST: usize = 8;

/// The copy of one block's RAM.
struct Base {
    idstr: String,
    length: u64,
    /// Pages of the block, some of which are not zero.
    stretches: Vec<Range<u64>>,
    plain: Arc<OwnedFd>,
    spread: OwnedFd,
    /// Pages that are not zero.
    used: u64,
}

/// RAM of one moment, for several machines to lie on; see the head of this file.
pub struct Baseline(Vec<Base>);

impl Baseline {
    /// Bytes of RAM that the host keeps once for all machines that lie on it: in two copies, one for RAM and one for images.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|base| base.used * PAGE_SIZE).sum()
    }
}

impl core::fmt::Debug for Baseline {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Baseline").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Joins what lies closest together, until there are few.
fn join(pages: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match all.last_mut() {
            Some(last) if last.end == page => last.end = page + 1,
            _ => all.push(page..page + 1),
        }
    }
    let gap = |two: &[Range<u64>]| two[1].start - two[0].end;
    let mut gaps: Vec<u64> = all.windows(2).map(gap).collect();
    gaps.sort_unstable_by_key(|gap| core::cmp::Reverse(*gap));
    // Gaps as long as the seventh are kept, as far as there is room for them.
    let shortest = gaps.get(MOST - 2).copied().unwrap_or(0);
    let mut few: Vec<Range<u64>> = Vec::new();
    for next in all {
        let full = few.len() == MOST;
        match few.last_mut() {
            Some(last) if full || next.start - last.end < shortest => last.end = next.end,
            _ => few.push(next),
        }
    }
    few
}

impl BlockImage {
    fn host(&self, source: io::Error) -> ImageError {
        ImageError::Host { idstr: self.block.idstr().to_owned(), bytes: self.bytes as u64, source }
    }

    /// Which bytes of the copy pages are.
    fn spread(pages: &Range<u64>) -> Range<u64> {
        let host = host_page();
        pages.start * STRIDE / host * host..(pages.end * STRIDE).next_multiple_of(host)
    }

    /// Writes the copy to files, and lies on one of them itself.
    fn share(&mut self) -> Result<Base, ImageError> {
        let first = self.pages.start;
        let zero = |page: &u64| {
            let (_, copy) = self.at(first + *page);
            // SAFETY: `at`.
            unsafe { self.is_zero(copy) }
        };
        let (count, idstr) = (self.pages.end - first, self.block.idstr().to_owned());
        let pages: Vec<u64> = (0..count).filter(|page| !zero(page)).collect();
        let (used, stretches) = (pages.len() as u64, join(pages.iter().copied()));
        let file = |bytes: u64| {
            memfd("baseline", bytes.max(host_page())).map(File::from).map_err(|failure| {
                self.host(match failure {
                    Failure::Host { source, .. } => source,
                    Failure::ShortFile { .. } => io::ErrorKind::UnexpectedEof.into(),
                })
            })
        };
        let (plain, spread) = (file(count * PAGE_SIZE)?, file(Self::spread(&(0..count)).end)?);
        let mut bytes = [0u8; PAGE_SIZE as usize];
        for page in pages {
            let (_, copy) = self.at(first + page);
            // SAFETY: `at`; no other thread writes the copy.
            unsafe { copy_page(bytes.as_mut_ptr(), copy) };
            plain.write_all_at(&bytes, page * PAGE_SIZE).map_err(|e| self.host(e))?;
            spread.write_all_at(&bytes, page * STRIDE).map_err(|e| self.host(e))?;
        }
        let length = count * PAGE_SIZE;
        let base = Base { idstr, length, stretches, plain: Arc::new(plain.into()), spread: spread.into(), used };
        self.lie_on(&base)?;
        Ok(base)
    }

    unsafe fn is_zero(&self, copy: *mut u8) -> bool {
        // SAFETY: a page of the copy, by the caller.
        (0..LINES).all(|line| unsafe { super::line_is_zero(copy.add((line * LINE) as usize)) })
    }

    /// The copy is that of `base`, which it equals or is not in use yet.
    fn lie_on(&mut self, base: &Base) -> Result<(), ImageError> {
        for pages in &base.stretches {
            let Range { start, end } = Self::spread(pages);
            let end = end.min((self.bytes as u64).next_multiple_of(host_page()));
            let at = self.base.as_ptr().wrapping_add(start as usize);
            // SAFETY: `bytes` has these pages, of our own mapping, and nothing points into it while `&mut self` is held.
            unsafe { super::super::mapping::lie_on(at, (end - start) as usize, &base.spread, start) }
                .map_err(|e| self.host(e))?;
        }
        Ok(())
    }
}

impl Image {
    /// The image as something for other machines to lie on, as this one does from now on.
    ///
    /// # Errors
    /// [`ImageError::Host`].
    pub fn share(&mut self) -> Result<Baseline, ImageError> {
        let list = self.list().clone();
        let here = |image: &&mut BlockImage| list.find_slot(image.block.slot(), &crate::rcu::pin()).is_some();
        self.blocks.iter_mut().filter(here).map(BlockImage::share).collect::<Result<_, _>>().map(Baseline)
    }

    /// Makes the RAM of a list, whose vCPUs are parked, what it is in `base`, and takes the image of it. What is mapped from a file keeps its
    /// own memory, and gets the bytes. The caller arms the vCPUs.
    ///
    /// # Errors
    /// [`ImageError`]: the list has an image, or other blocks, or the host no memory.
    pub fn take_on(list: &Arc<RamList>, base: &Baseline) -> Result<Image, ImageError> {
        Image::check_whole(list)?;
        let log = crate::dirty::LineLog::start(list)?;
        let all: Vec<Arc<RamBlock>> = list.blocks(&crate::rcu::pin()).cloned().collect();
        let mut blocks = Vec::new();
        for block in &all {
            let mut image = BlockImage::zero(block, block.used_length())?;
            let unlike = || ImageError::Unlike { idstr: block.idstr().to_owned() };
            let base = base.0.iter().find(|base| base.idstr == block.idstr()).ok_or_else(unlike)?;
            if base.length != image.pages.end * PAGE_SIZE - image.pages.start * PAGE_SIZE {
                return Err(unlike());
            }
            image.lie_on(base)?;
            let mut shared = true;
            for pages in &base.stretches {
                shared &= block
                    .lie_on(pages.start << PAGE_BITS..pages.end << PAGE_BITS, &base.plain)
                    .map_err(|e| image.host(e))?;
            }
            if !shared {
                for page in image.pages.clone() {
                    let (ram, copy) = image.at(page);
                    for off in (0..LINES).map(|line| (line * LINE) as usize) {
                        // SAFETY: `at`.
                        unsafe {
                            if !super::same_line(ram.add(off), copy.add(off)) {
                                copy_line(ram.add(off), copy.add(off));
                            }
                        }
                    }
                }
            }
            list.after(block.offset(), block.used_length());
            blocks.push(image);
        }
        match base.0.len() == blocks.len() {
            true => Ok(Image { blocks, log, fresh: Vec::new(), last: 0 }),
            false => Err(ImageError::Unlike { idstr: base.0.last().map_or(String::new(), |base| base.idstr.clone()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_stretches_are_joined_where_the_gaps_are_short() {
        let pages = |of: &[Range<u64>]| of.iter().cloned().flatten().collect::<Vec<_>>();
        assert_eq!(join(pages(&[0..3, 5..6]).into_iter()), [0..3, 5..6]);
        assert_eq!(join(core::iter::empty()), []);
        let many: Vec<_> = (0..100).map(|n| 10 * n + 100 * (n / 20)..10 * n + 100 * (n / 20) + 2).collect();
        let few = join(pages(&many).into_iter());
        assert!(
            few.len() <= MOST
                && many.iter().all(|one| few.iter().any(|few| few.start <= one.start && one.end <= few.end))
        );
        assert!(few.windows(2).all(|two| two[0].end < two[1].start));
    }
}
