//! Which pages are here: as a precopy marks them, as a discard takes them back, and as bitmaps say it.

use super::states::Bits;
use super::{MissingError, MissingPages, MissingPhase};
use crate::addr::{PAGE_SIZE, RamAddr};
use crate::ram::RamBlock;
use crate::sync::Ordering;
use std::sync::Arc;

impl MissingPages {
    /// All pages that these bytes touch are here: written whole by a precopy, say.
    ///
    /// # Errors
    /// [`MissingError::Phase`] unless gathering, [`MissingError::UnknownBlock`], [`MissingError::OutOfBounds`].
    pub fn mark_received(&self, block: &RamBlock, off: u64, len: u64) -> Result<(), MissingError> {
        self.only_in(MissingPhase::Gathering, "mark pages as received")?;
        let (_, pages) = self.range(block, off, len)?;
        let new = self.states.receive(pages, |_| u64::MAX);
        self.left.fetch_sub(new, Ordering::AcqRel);
        Ok(())
    }

    /// A page of 4 KiB is here if its bit is set; a host page that is larger, if all of its bits are.
    ///
    /// # Errors
    /// [`MissingError::Phase`] unless gathering, [`MissingError::UnknownBlock`].
    pub fn set_received(&self, block: &RamBlock, bitmap: &[u64]) -> Result<(), MissingError> {
        self.only_in(MissingPhase::Gathering, "set received pages")?;
        let found = self.of(block)?;
        let each = found.page / PAGE_SIZE;
        let bit = |page: u64| bitmap.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0);
        let of = |first: u64| {
            let word = (first - found.first) / 64;
            if each == 1 {
                return bitmap.get(word as usize).copied().unwrap_or(0);
            }
            (0..64).filter(|n| (0..each).all(|part| bit((word * 64 + n) * each + part))).fold(0, |all, n| all | 1 << n)
        };
        let new = self.states.receive(found.pages(), of);
        self.left.fetch_sub(new, Ordering::AcqRel);
        Ok(())
    }

    /// Which pages of 4 KiB are here, as a bitmap: what a peer that lost its channel is told.
    ///
    /// # Errors
    /// [`MissingError::UnknownBlock`].
    pub fn received(&self, block: &RamBlock) -> Result<Vec<u64>, MissingError> {
        let found = self.of(block)?;
        let words: Vec<u64> = self.states.received(found.pages()).collect();
        let each = found.page / PAGE_SIZE;
        if each == 1 {
            return Ok(words);
        }
        let pages = found.length().div_ceil(PAGE_SIZE);
        let mut bitmap = vec![0; pages.div_ceil(64) as usize];
        for page in (0..pages).filter(|page| words[(page / each / 64) as usize] >> (page / each % 64) & 1 != 0) {
            bitmap[(page / 64) as usize] |= 1 << (page % 64);
        }
        Ok(bitmap)
    }

    /// Is the host page that `off` lies on here?
    ///
    /// # Errors
    /// [`MissingError::UnknownBlock`], [`MissingError::OutOfBounds`].
    pub fn is_received(&self, block: &RamBlock, off: u64) -> Result<bool, MissingError> {
        let (_, pages) = self.range(block, off, 1)?;
        Ok(self.states.is_received(pages.start))
    }

    /// The first host page from `off` on that is not here, and that nothing is placing: for a sweep behind the requests.
    pub fn next_missing(&self, block: &RamBlock, off: u64) -> Option<u64> {
        let found = self.of(block).ok()?;
        let pages = found.pages();
        let from = (found.first + off / found.page).min(pages.end);
        self.states.next_missing(from..pages.end).map(|page| found.off(page))
    }

    /// The pages that these bytes touch are missing, whatever they were: what precopy sent, and the guest wrote to since. Their memory is
    /// given back to the host. Nothing waits for them before [`listen`](Self::listen), which also sees to it that no vCPU keeps
    /// anything of them.
    ///
    /// # Errors
    /// [`MissingError::Phase`] unless gathering, [`MissingError::UnknownBlock`], [`MissingError::OutOfBounds`], [`MissingError::Ram`].
    pub fn discard(&self, block: &Arc<RamBlock>, off: u64, len: u64) -> Result<(), MissingError> {
        self.only_in(MissingPhase::Gathering, "discard pages")?;
        let (found, pages) = self.range(block, off, len)?;
        if pages.is_empty() {
            return Ok(());
        }
        let (start, end) =
            (found.off(pages.start), found.off(pages.end).min(block.committed()).min(block.max_length()));
        self.left.fetch_add(self.states.forget(pages), Ordering::AcqRel);
        let done = block.discard_raw(start, end - start);
        // Also where the host refused: a part may be gone.
        if let Some(list) = self.list.upgrade() {
            list.after(RamAddr::new(block.offset().get() + start), end - start);
        }
        done.map_err(|why| MissingError::Ram(Box::new(why)))
    }

    /// As [`discard`](Self::discard), of pages to which nothing came since their memory was given back: nothing is to be done with it.
    ///
    /// # Errors
    /// [`MissingError::Phase`] unless gathering, [`MissingError::UnknownBlock`], [`MissingError::OutOfBounds`].
    pub fn forget(&self, block: &RamBlock, off: u64, len: u64) -> Result<(), MissingError> {
        self.only_in(MissingPhase::Gathering, "forget pages")?;
        let (_, pages) = self.range(block, off, len)?;
        self.left.fetch_add(self.states.forget(pages), Ordering::AcqRel);
        Ok(())
    }

    /// As [`discard`](Self::discard), of each page of 4 KiB with a bit in `words`, from page `first` on, a multiple of 64; `written` are those to
    /// which something came. Their memory stays as it is, and is overwritten when they are placed: for many pages far apart.
    ///
    /// # Errors
    /// As of `discard`.
    pub fn discard_map(
        &self,
        block: &Arc<RamBlock>,
        first: u64,
        words: &[u64],
        written: &[u64],
    ) -> Result<(), MissingError> {
        self.only_in(MissingPhase::Gathering, "discard pages")?;
        let Some(last) = words.iter().rposition(|word| *word != 0) else { return Ok(()) };
        let end = first.saturating_add(last as u64 * 64 + 64 - u64::from(words[last].leading_zeros()));
        let (found, _) = self.range(block, 0, end.saturating_mul(PAGE_SIZE))?;
        if found.page != PAGE_SIZE || !first.is_multiple_of(64) {
            let bits = |word: u64| (0..64).filter(move |n| word >> n & 1 != 0);
            let pages = (first..).step_by(64).zip(words).flat_map(|(at, word)| bits(*word).map(move |n| at + n));
            return pages.into_iter().try_for_each(|page| self.discard(block, page * PAGE_SIZE, PAGE_SIZE));
        }
        let at = (found.first + first) / 64;
        let gone = (at..)
            .zip(words)
            .filter(|(_, pages)| **pages != 0)
            .map(|(word, pages)| self.states.forget_word(word, *pages));
        self.left.fetch_add(gone.sum(), Ordering::AcqRel);
        for (word, pages) in (at..).zip(words.iter().zip(written)).map(|(word, (a, b))| (word, a & b)) {
            if pages != 0 {
                self.stale.get_or_init(|| Bits::new(self.states.pages())).or_word(word, pages);
            }
        }
        Ok(())
    }
}
