//! The target: records that come while the machine runs are placed, each whole and once.
//!
//! ```text
//!   record ─▶ bytes of the page, in the channel's buffer ─▶ place(block, page, bytes) ─▶ was it the first? its checksum is noted
//! ```

use super::super::Incoming;
use super::super::channel::Fill;
use super::super::checksums::of_page;
use super::super::records::Record;
use super::super::stream::StreamReader;
use super::super::wire::{Fault, Result};
use crate::addr::PAGE_SIZE;

impl Incoming {
    /// Reads one piece of the RAM section, up to its footer, while the machine runs. `place` gets block, page and bytes, of a page of zeros
    /// none, and says whether the page was yet to come. `settle` is called when this was the last piece: pages that went by another channel
    /// are here when it returns.
    ///
    /// # Errors
    /// What is wrong with the stream, or `place`'s.
    pub fn fetch<R: Fill>(
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

    /// These bytes of a block are yet to come: whatever is there is none of it.
    ///
    /// # Errors
    /// [`Fault::Block`]: no such block, or they lie outside of it.
    pub fn discard(
        &mut self,
        discard: &super::Discard,
    ) -> core::result::Result<(usize, Vec<core::ops::Range<u64>>), Fault> {
        let refuse = |why: String| Fault::Block { idstr: discard.idstr.clone(), why };
        let known = self.listed.iter().position(|block| block.idstr == discard.idstr);
        let index = known.ok_or_else(|| refuse("it is not in the list that RAM began with".into()))?;
        let length = self.listed[index].used_length;
        let mut pages = Vec::with_capacity(discard.runs.len());
        for run in &discard.runs {
            if run.end > length {
                return Err(refuse(format!("pages up to {:#x} of its {length:#x} bytes", run.end)));
            }
            let run = run.start / PAGE_SIZE..run.end / PAGE_SIZE;
            self.came[index].clear(run.clone());
            self.sums[index].note_zero(run.clone());
            pages.push(run);
        }
        Ok((index, pages))
    }

    /// The record before was on a channel that is gone: the next one names its block.
    pub fn forget_last(&mut self) {
        self.records = super::super::records::Records::default();
    }
}
