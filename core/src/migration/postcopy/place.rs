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
