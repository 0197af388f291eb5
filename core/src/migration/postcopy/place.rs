//! A record that comes while the machine runs: its page is placed, whole and once, and noted.
//!
//! ```text
//!   record ─▶ the channel's temporary page ─▶ whole? ─▶ MissingPages::place ─▶ was it the first? its checksums are noted, and that it came
//! ```

use super::super::Received;
use super::super::checksums::{Checksums, of_page};
use super::super::wire::Fault;
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::missing::{MissingPages, PageBytes, Part, TemporaryPage};
use crate::ram::RamBlock;
use std::sync::Arc;

/// The blocks of a stream, and what is noted of a page that was placed.
#[derive(Clone)]
pub(in super::super) struct Places {
    pub blocks: Vec<Arc<RamBlock>>,
    pub sums: Vec<Arc<Checksums>>,
    pub came: Vec<Arc<Received>>,
}

/// What came of a page of the host by one channel.
#[derive(Default)]
pub(in super::super) struct Coming {
    page: TemporaryPage,
    /// The checksums of its records.
    sums: Vec<(u64, u32)>,
}

impl Coming {
    /// What came of a page by a channel that broke comes again.
    pub fn reset(&mut self) {
        self.page.reset();
        self.sums.clear();
    }
}

impl Places {
    pub fn place(
        &self,
        pages: &MissingPages,
        coming: &mut Coming,
        index: usize,
        page: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(), Fault> {
        let given = bytes.map_or(PageBytes::Zero, PageBytes::Copy);
        let part = coming.page.add(pages, &self.blocks[index], page << PAGE_BITS, given);
        match part.map_err(|why| Fault::Order(why.to_string()))? {
            Part::Kept => coming.sums.push((page, bytes.map_or(0, of_page))),
            // The host's pages are no larger.
            Part::Placed(placed) if placed.end - placed.start == PAGE_SIZE => {
                self.came[index].set(page);
                self.sums[index].note([(page, bytes.map_or(0, of_page))]);
            }
            Part::Placed(placed) => {
                (placed.start >> PAGE_BITS..placed.end >> PAGE_BITS).for_each(|page| {
                    self.came[index].set(page);
                });
                let last = [(page, bytes.map_or(0, of_page))];
                self.sums[index].note(coming.sums.drain(..).chain(last));
            }
            Part::Here => coming.sums.clear(),
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use super::super::super::{Incoming, ListedBlock};
    use super::*;
    use crate::missing::PageSource;
    use crate::ram::{RamBlockSpec, RamList};
    use core::ops::Range;

    struct Nothing;

    impl PageSource for Nothing {
        fn request(&self, _: &Arc<RamBlock>, _: u64) {}
    }

    #[test]
    fn of_a_page_that_came_in_parts_each_is_noted_once_it_is_placed_and_no_part_of_another() {
        const HOST: u64 = 16 << 10;
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("a", 4 * HOST).page_size(HOST)).unwrap();
        let pages = list.set_missing(Arc::new(Nothing), [block.clone()]).unwrap();
        let listed = ListedBlock { idstr: "a".into(), used_length: 4 * HOST };
        let mut incoming = Incoming::new(vec![listed], vec![block.clone()]).unwrap();
        let places = incoming.places();
        let bytes = |page: u64| vec![page as u8 + 1; PAGE_SIZE as usize];
        let place = |incoming: &mut Incoming, page: u64, bytes: &[u8]| {
            places.place(&pages, &mut incoming.coming, 0, page, Some(bytes)).map_err(|fault| fault.to_string())
        };
        let expected = Checksums::new(&block);
        let same = |noted: Range<u64>| {
            expected.note(noted.map(|page| (page, of_page(&bytes(page)))));
            assert_eq!(places.sums[0].sum(), expected.sum());
        };
        // A channel that breaks in the middle of a page.
        for page in [4, 5] {
            place(&mut incoming, page, &bytes(100)).unwrap();
        }
        assert!(place(&mut incoming, 0, &bytes(0)).unwrap_err().contains("of that at 0x4000 came"));
        incoming.forget_last();
        (0..4).for_each(|page| place(&mut incoming, page, &bytes(page)).unwrap());
        same(0..4);
        assert!((0..4).all(|page| places.came[0].test(page)) && !places.came[0].test(4));
        // By another channel before, with bytes that are not these: they are not noted.
        (0..4).for_each(|page| place(&mut incoming, page, &bytes(50)).unwrap());
        same(0..4);
        (8..12).for_each(|page| place(&mut incoming, page, &bytes(page)).unwrap());
        same(8..12);
        assert_eq!(pages.left(), 2);
    }
}
