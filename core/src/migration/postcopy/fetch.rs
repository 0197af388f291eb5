//! The target: records that come while the machine runs are placed, each whole and once.
//!
//! ```text
//!   record ─▶ bytes of the page, in the channel's buffer ─▶ the temporary page of this channel ─▶ whole? it is placed, and its checksums noted
//! ```

use super::super::Incoming;
use super::super::channel::Fill;
use super::super::checksums::of_page;
use super::super::records::Record;
use super::super::stream::StreamReader;
use super::super::wire::{Fault, Result};
use crate::addr::PAGE_SIZE;
use crate::missing::MissingPages;
use core::ops::Range;

/// Runs of pages, and whether something had come to each.
pub type Runs = Vec<(Range<u64>, bool)>;

impl Incoming {
    /// Reads one piece of the RAM section, up to its footer, while the machine runs. `settle` is called when this was the last piece: pages that
    /// went by another channel are here when it returns.
    ///
    /// # Errors
    /// What is wrong with the stream, or [`MissingPages::place`]'s.
    pub fn fetch<R: Fill>(
        &mut self,
        reader: &mut StreamReader<R>,
        pages: &MissingPages,
        settle: impl FnOnce() -> core::result::Result<(), Fault>,
    ) -> Result<()> {
        let (places, mut coming) = (self.places(), core::mem::take(&mut self.coming));
        // It is noted there.
        let place = |block: usize, page: u64, bytes: Option<&[u8]>| {
            places.place(pages, &mut coming, block, page, bytes).map(|()| false)
        };
        let done = self.fetch_by(reader, place, settle);
        self.coming = coming;
        done
    }

    /// The same of pages that are placed in another way. `place` gets block, page and bytes, of a page of zeros
    /// none, and says whether the page was yet to come, and is to be noted.
    ///
    /// # Errors
    /// What is wrong with the stream, or `place`'s.
    pub fn fetch_by<R: Fill>(
        &mut self,
        reader: &mut StreamReader<R>,
        mut place: impl FnMut(usize, u64, Option<&[u8]>) -> core::result::Result<bool, Fault>,
        settle: impl FnOnce() -> core::result::Result<(), Fault>,
    ) -> Result<()> {
        loop {
            let (block, page, sum, placed) = match self.records.next(reader, &self.listed)? {
                Record::End => {
                    if reader.ram_ended() {
                        settle().map_err(|fault| reader.source().error(fault))?;
                    }
                    return self.piece_ended(reader);
                }
                Record::Zero { block, page } => {
                    self.zero_pages += 1;
                    (block, page, 0, place(block, page, None))
                }
                Record::Page { block, page } => {
                    self.pages += 1;
                    let bytes = reader.source().piece(PAGE_SIZE as usize)?;
                    (block, page, of_page(bytes), place(block, page, Some(bytes)))
                }
                other => {
                    let why = format!("{other:?}, once the machine runs");
                    return Err(reader.source().error(Fault::Order(why)));
                }
            };
            if placed.map_err(|fault| reader.source().error(fault))? {
                self.came[block].set(page);
                self.sums[block].note([(page, sum)]);
            }
        }
    }

    /// These bytes of a block are yet to come: whatever is there is none of it. Its number, and each run of pages with whether something had
    /// come to it.
    ///
    /// # Errors
    /// [`Fault::Block`]: no such block, or they lie outside of it.
    pub fn discard(&mut self, discard: &super::Discard) -> core::result::Result<(usize, Runs), Fault> {
        let (index, length) = self.named(&discard.idstr)?;
        let mut pages = Vec::with_capacity(discard.runs.len());
        for run in &discard.runs {
            if run.end > length {
                let why = format!("pages up to {:#x} of its {length:#x} bytes", run.end);
                return Err(Fault::Block { idstr: discard.idstr.clone(), why });
            }
            let run = run.start / PAGE_SIZE..run.end / PAGE_SIZE;
            let came = self.came[index].clear(run.clone()) != 0;
            if came {
                self.sums[index].note_zero(run.clone());
            }
            pages.push((run, came));
        }
        Ok((index, pages))
    }

    /// The same of a map; its words of pages to which something had come.
    ///
    /// # Errors
    /// [`Fault::Block`]: no such block, or a page lies outside of it.
    pub fn discard_map(&mut self, map: &super::DiscardMap) -> core::result::Result<(usize, Vec<u64>), Fault> {
        let (index, length) = self.named(&map.idstr)?;
        let last = map.words.iter().rposition(|word| *word != 0);
        let end = last.map_or(0, |last| map.first + last as u64 * 64 + 64 - u64::from(map.words[last].leading_zeros()));
        if end > length / PAGE_SIZE {
            let why = format!("a map up to page {end:#x} of its {length:#x} bytes");
            return Err(Fault::Block { idstr: map.idstr.clone(), why });
        }
        let words = map.first / 64..;
        let came = words.zip(&map.words).map(|(word, bits)| {
            let mut came = self.came[index].clear_word(word, *bits);
            let all = came;
            while came != 0 {
                self.sums[index].note_zero([word * 64 + u64::from(came.trailing_zeros())]);
                came &= came - 1;
            }
            all
        });
        Ok((index, came.collect()))
    }

    /// The number of a block, and its bytes.
    fn named(&self, idstr: &str) -> core::result::Result<(usize, u64), Fault> {
        let known = self.listed.iter().position(|block| block.idstr == idstr);
        let why = || "it is not in the list that RAM began with".to_owned();
        let index = known.ok_or_else(|| Fault::Block { idstr: idstr.to_owned(), why: why() })?;
        Ok((index, self.listed[index].used_length))
    }

    /// The record before was on a channel that is gone: the next one names its block, and begins a page.
    pub fn forget_last(&mut self) {
        self.coming.reset();
        self.records = super::super::records::Records::default();
    }
}
