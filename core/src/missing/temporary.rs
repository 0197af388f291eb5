//! The temporary page of a channel: records of 4 KiB become one page of the host, which is placed whole.
//!
//! ```text
//!   host 4 KiB     record ─▶ place
//!   host 16 KiB    record ─▶ │ 4 KiB │ 4 KiB │ . │ 4 KiB │     all parts there? ─▶ place: once, atomically; none has bytes: a page of zeros
//!                            └ of one host page at a time, in any order
//! ```
//!
//! A source sends each host page whole, and nothing between its parts by the same channel. What another channel placed meanwhile stays
//! (PLACE-1).

use super::{MissingError, MissingPages, PageBytes};
use crate::addr::PAGE_SIZE;
use crate::ram::RamBlock;
use core::ops::Range;

/// What became of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// It waits for the rest of its page.
    Kept,
    /// Its page is whole, and was placed: these bytes of the block.
    Placed(Range<u64>),
    /// Its page is whole, and was here before.
    Here,
}

/// A page that comes in parts.
#[derive(Default, Debug)]
pub struct TemporaryPage {
    /// Which: where its block is in RAM, and where it begins there.
    at: Option<(u64, u64)>,
    bytes: Vec<u8>,
    /// Of each part whether it came, and whether it has bytes.
    came: Vec<(bool, bool)>,
}

impl TemporaryPage {
    /// One record of 4 KiB at `off`.
    ///
    /// # Errors
    /// [`MissingError::PartOfAnother`] while another page is not whole; those of [`MissingPages::place`].
    pub fn add(
        &mut self,
        pages: &MissingPages,
        block: &RamBlock,
        off: u64,
        bytes: PageBytes<'_>,
    ) -> Result<Part, MissingError> {
        let page = block.page_size();
        let start = off / page * page;
        let end = if page == PAGE_SIZE { off + page } else { (start + page).min(pages.length_of(block)?) };
        if end.saturating_sub(start) <= PAGE_SIZE {
            let placed = pages.place(block, off, bytes)?;
            return Ok(if placed { Part::Placed(off..off + PAGE_SIZE) } else { Part::Here });
        }
        let given = if let PageBytes::Copy(bytes) = bytes { bytes.len() as u64 } else { PAGE_SIZE };
        if !off.is_multiple_of(PAGE_SIZE) || given != PAGE_SIZE || off >= end {
            return Err(MissingError::OddPage { idstr: block.idstr().to_owned(), off, len: given, page: PAGE_SIZE });
        }
        let at = (block.offset().get(), start);
        if let Some((_, other)) = self.at.filter(|other| *other != at) {
            let came = self.came.iter().filter(|(came, _)| *came).count() as u64 * PAGE_SIZE;
            return Err(MissingError::PartOfAnother { idstr: block.idstr().to_owned(), off, other, came });
        }
        self.at = Some(at);
        let len = (end - start) as usize;
        self.came.resize(len / PAGE_SIZE as usize, (false, false));
        if let PageBytes::Copy(bytes) = bytes {
            if self.bytes.len() < len {
                self.bytes.resize(len, 0);
            }
            self.bytes[(off - start) as usize..][..PAGE_SIZE as usize].copy_from_slice(bytes);
        }
        self.came[((off - start) / PAGE_SIZE) as usize] = (true, matches!(bytes, PageBytes::Copy(_)));
        if !self.came.iter().all(|(came, _)| *came) {
            return Ok(Part::Kept);
        }
        let is_zero = self.came.iter().all(|(_, bytes)| !bytes);
        if !is_zero {
            // Its block may have grown since the last part that has bytes.
            self.bytes.resize(self.bytes.len().max(len), 0);
            // Of a page before.
            let parts = self.bytes.chunks_mut(PAGE_SIZE as usize);
            parts.zip(&self.came).filter(|(_, (_, bytes))| !bytes).for_each(|(part, _)| part.fill(0));
        }
        let whole = if is_zero { PageBytes::Zero } else { PageBytes::Copy(&self.bytes[..len]) };
        let placed = pages.place(block, start, whole);
        self.reset();
        Ok(if placed? { Part::Placed(start..end) } else { Part::Here })
    }

    /// The channel is another one: what came of a page by the last one comes again.
    pub fn reset(&mut self) {
        self.at = None;
        self.came.clear();
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::*;
    use crate::missing::{PageSource, WaitToken};
    use crate::ram::{RamBlockSpec, RamList};
    use std::sync::Arc;

    struct Asked(std::sync::Mutex<Vec<(u64, u64)>>);

    impl PageSource for Asked {
        fn request(&self, block: &Arc<RamBlock>, off: u64) {
            self.request_run(block, off, block.page_size());
        }
        fn request_run(&self, _: &Arc<RamBlock>, off: u64, len: u64) {
            self.0.lock().unwrap().push((off, len));
        }
    }

    #[test]
    fn on_a_host_with_larger_pages_one_is_placed_once_when_all_its_records_are_there() {
        const HOST: u64 = 16 << 10;
        let list = Arc::new(RamList::new());
        // The last page has two parts alone.
        let spec = RamBlockSpec::new("large", 3 * HOST - 2 * PAGE_SIZE).max_length(3 * HOST).page_size(HOST);
        let large = list.add(spec).unwrap();
        let small = list.add(RamBlockSpec::new("small", 4 * PAGE_SIZE)).unwrap();
        let asked = Arc::new(Asked(Default::default()));
        let pages = list.set_missing(asked.clone(), [large.clone(), small.clone()]).unwrap();
        pages.listen().unwrap();
        assert_eq!(pages.left(), 3 + 4);
        let token = WaitToken::default();
        let late = Some(std::time::Instant::now());
        assert!(matches!(pages.wait(large.offset(), 2 * HOST, &token, late), Err(MissingError::Late)));
        assert_eq!(*asked.0.lock().unwrap(), [(0, HOST), (HOST, HOST)]);

        let mut page = TemporaryPage::default();
        let byte = |n: u8| vec![n; PAGE_SIZE as usize];
        let mut add = |block: &RamBlock, part: u64, bytes: Option<&[u8]>| {
            page.add(&pages, block, part * PAGE_SIZE, bytes.map_or(PageBytes::Zero, PageBytes::Copy))
        };
        // In any order, and one of them twice; a record of another block is placed by itself only where that has small pages.
        for (part, bytes) in [(6, Some(byte(6))), (4, Some(byte(4))), (6, Some(byte(7))), (5, None)] {
            assert_eq!(add(&large, part, bytes.as_deref()).unwrap(), Part::Kept);
            assert!(pages.is_missing(large.offset()) && pages.left() == 7);
        }
        let other = add(&large, 0, None).unwrap_err().to_string();
        assert!(other.contains("0x3000 bytes of that at 0x4000 came"), "{other}");
        // Refused, it is no part of either page.
        let other = add(&large, 1, None).unwrap_err().to_string();
        assert!(other.contains("0x3000 bytes of that at 0x4000 came"), "{other}");
        let mut page = TemporaryPage::default();
        let mut add = |block: &RamBlock, part: u64, bytes: Option<&[u8]>| {
            page.add(&pages, block, part * PAGE_SIZE, bytes.map_or(PageBytes::Zero, PageBytes::Copy)).unwrap()
        };
        for part in [7, 5, 4] {
            assert_eq!(add(&large, part, Some(&byte(part as u8))), Part::Kept);
        }
        assert_eq!(add(&large, 6, None), Part::Placed(HOST..2 * HOST));
        let mut found = vec![9; HOST as usize];
        large.read_bytes(HOST, &mut found).unwrap();
        assert_eq!(found, [byte(4), byte(5), byte(0), byte(7)].concat());
        // The tail, then one of zeros, which comes a second time.
        assert_eq!(add(&large, 8, Some(&byte(8))), Part::Kept);
        assert_eq!(add(&large, 9, None), Part::Placed(2 * HOST..2 * HOST + 2 * PAGE_SIZE));
        for end in [Part::Placed(0..HOST), Part::Here] {
            assert!((0..3).all(|part| add(&large, part, None) == Part::Kept));
            assert_eq!(add(&large, 3, None), end);
        }
        assert_eq!(add(&small, 2, Some(&byte(2))), Part::Placed(2 * PAGE_SIZE..3 * PAGE_SIZE));
        assert_eq!(pages.left(), 3);
        assert_eq!(pages.received(&large).unwrap(), [(1 << 10) - 1]);
    }

    #[test]
    fn a_page_is_whole_by_the_length_that_its_block_has_when_its_last_part_comes() {
        const HOST: u64 = 16 << 10;
        let list = Arc::new(RamList::new());
        let spec = RamBlockSpec::new("grows", 2 * PAGE_SIZE).max_length(HOST).page_size(HOST).resizable(true);
        let block = list.add(spec).unwrap();
        let pages = list.set_missing(Arc::new(Asked(Default::default())), [block.clone()]).unwrap();
        let mut page = TemporaryPage::default();
        assert_eq!(page.add(&pages, &block, 0, PageBytes::Copy(&[7; PAGE_SIZE as usize])).unwrap(), Part::Kept);
        list.resize(&block, HOST).unwrap();
        for (part, became) in [(1, Part::Kept), (2, Part::Kept), (3, Part::Placed(0..HOST))] {
            assert_eq!(page.add(&pages, &block, part * PAGE_SIZE, PageBytes::Zero).unwrap(), became);
        }
        let mut found = vec![9; HOST as usize];
        block.read_bytes(0, &mut found).unwrap();
        assert!(found[..PAGE_SIZE as usize].iter().all(|byte| *byte == 7));
        assert!(found[PAGE_SIZE as usize..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_of_a_page_is_a_part_of_the_next_one() {
        const HOST: u64 = 16 << 10;
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("a", 2 * HOST).page_size(HOST)).unwrap();
        let pages = list.set_missing(Arc::new(Asked(Default::default())), [block.clone()]).unwrap();
        let mut page = TemporaryPage::default();
        let mut add = |part: u64, byte: u8| {
            let bytes = [byte; PAGE_SIZE as usize];
            let bytes = if byte == 0 { PageBytes::Zero } else { PageBytes::Copy(&bytes) };
            page.add(&pages, &block, part * PAGE_SIZE, bytes).unwrap()
        };
        for (part, byte) in [(0, 9), (1, 9), (2, 9), (5, 0), (7, 3), (6, 0)] {
            if part == 5 {
                assert_eq!(add(3, 9), Part::Placed(0..HOST));
            }
            assert_eq!(add(part, byte), Part::Kept, "{part}");
        }
        assert_eq!(add(4, 1), Part::Placed(HOST..2 * HOST));
        let mut found = vec![8; HOST as usize];
        block.read_bytes(HOST, &mut found).unwrap();
        let parts = [1, 0, 0, 3].map(|byte| vec![byte; PAGE_SIZE as usize]);
        assert!(found == parts.concat());
    }
}
