//! Records become RAM.
//!
//! A target's RAM is zero before the first record: what has been written there is cleared. So a page without a record is zero, and a
//! record of a zero page has something to do only if the page came before.

use super::channel::Fill;
use super::checksums::{Checksums, of_page};
use super::multifd::Meeting;
use super::records::{ListedBlock, Record, Records};
use super::straight::Guess;
use super::stream::StreamReader;
use super::wire::{Fault, Result};
use super::xbzrle::decode;
use super::{BlockMigration, Received};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// The RAM of a machine that comes.
pub struct Incoming {
    pub(super) listed: Vec<ListedBlock>,
    blocks: Vec<Arc<RamBlock>>,
    pub(super) sums: Vec<Arc<Checksums>>,
    /// Pages that came: all others are zero.
    pub(super) came: Vec<Arc<Received>>,
    guess: Guess,
    pub(super) records: Records,
    /// What came of a page of the host.
    pub(super) coming: super::postcopy::Coming,
    /// Pages that came.
    pub pages: u64,
    /// Records of pages that are zero.
    pub zero_pages: u64,
    /// Channels beside the stream, and where they meet.
    others: Option<(Arc<Meeting>, usize, Duration)>,
}

/// What a stream says of its RAM at the start: the blocks, by name and length.
///
/// # Errors
/// What is wrong with the stream.
pub fn read_list<R: Read>(reader: &mut StreamReader<R>) -> Result<Vec<ListedBlock>> {
    super::records::read_setup(reader, |_, _, _| Ok(()))
}

impl Incoming {
    /// Into these blocks, which have the lengths of the list. Nothing runs there yet.
    ///
    /// # Errors
    /// [`Fault::Block`] if one has not.
    pub fn new(listed: Vec<ListedBlock>, blocks: Vec<Arc<RamBlock>>) -> core::result::Result<Incoming, Fault> {
        for (listed, block) in listed.iter().zip(&blocks) {
            let refuse = |why: String| Fault::Block { idstr: listed.idstr.clone(), why };
            if block.used_length() != listed.used_length {
                return Err(refuse(format!("{:#x} bytes, {:#x} here", listed.used_length, block.used_length())));
            }
            for run in block.touched(0..listed.used_length >> PAGE_BITS) {
                let done = block.fill_raw(run.start << PAGE_BITS, (run.end - run.start) << PAGE_BITS, 0);
                done.map_err(|why| refuse(why.to_string()))?;
            }
        }
        let sums = blocks.iter().map(|block| BlockMigration::need_checksums(block)).collect();
        let came = blocks.iter().map(|block| BlockMigration::need_received(block)).collect();
        let guess = Guess::default();
        Ok(Incoming {
            sums,
            came,
            guess,
            listed,
            blocks,
            records: Records::default(),
            coming: super::postcopy::Coming::default(),
            pages: 0,
            zero_pages: 0,
            others: None,
        })
    }

    /// Pages come by so many other channels, too, which meet there.
    pub fn meet(&mut self, meeting: Arc<Meeting>, channels: usize, patience: Duration) {
        self.others = Some((meeting, channels, patience));
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// What another thread places pages of this stream by.
    pub(super) fn places(&self) -> super::postcopy::Places {
        let (blocks, sums, came) = (self.blocks.clone(), self.sums.clone(), self.came.clone());
        super::postcopy::Places { blocks, sums, came }
    }

    /// A piece is read up to its footer; of the last one, what came is known now.
    pub(super) fn piece_ended<R: Fill>(&self, reader: &mut StreamReader<R>) -> Result<()> {
        if reader.ram_ended() {
            let idstrs = self.listed.iter().map(|block| block.idstr.clone());
            reader.came(idstrs.zip(self.sums.iter().cloned()));
        }
        reader.footer()
    }

    /// Reads one piece of the RAM section, up to its footer.
    ///
    /// # Errors
    /// What is wrong with the stream.
    pub fn piece<R: Fill>(&mut self, reader: &mut StreamReader<R>) -> Result<()> {
        loop {
            match self.records.next(reader, &self.listed)? {
                Record::End => return self.piece_ended(reader),
                Record::Zero { block, page } => {
                    self.zero_pages += 1;
                    self.sums[block].note_zero([page]);
                    let (block, came) = (&self.blocks[block], &self.came[block]);
                    if came.test(page) {
                        let done = block.fill_raw(page << PAGE_BITS, PAGE_SIZE, 0);
                        done.map_err(|why| reader.source().error(Fault::Order(why.to_string())))?;
                    }
                }
                Record::Page { block, page } => {
                    let (sums, came, block) = (&self.sums[block], &self.came[block], &self.blocks[block]);
                    let from = reader.source();
                    if from.buffered() < PAGE_SIZE as usize {
                        let pages = from.pages(block, page, came, &mut self.guess)?;
                        self.pages += pages.end - pages.start;
                        sums.note_ram(block, pages.clone());
                        pages.for_each(|page| {
                            came.set(page);
                        });
                        continue;
                    }
                    self.pages += 1;
                    let bytes = from.piece(PAGE_SIZE as usize)?;
                    sums.note([(page, of_page(bytes))]);
                    // Inside of the listed length, which is the block's.
                    let done = block.write_raw(page << PAGE_BITS, bytes);
                    done.map_err(|why| from.error(Fault::Order(why.to_string())))?;
                    came.set(page);
                }
                Record::Delta { block, page, len } => {
                    self.pages += 1;
                    let (sums, came, block) = (&self.sums[block], &self.came[block], &self.blocks[block]);
                    let from = reader.source();
                    let refuse = |why: String| Fault::Block { idstr: block.idstr().to_owned(), why };
                    let mut bytes = [0; PAGE_SIZE as usize];
                    let read = block.read_bytes(page << PAGE_BITS, &mut bytes);
                    read.map_err(|why| from.error(refuse(why.to_string())))?;
                    if !decode(&mut bytes, from.piece(len.into())?) {
                        return Err(from.error(refuse(format!("the delta of page {page:#x} is none"))));
                    }
                    sums.note([(page, of_page(&bytes))]);
                    came.set(page);
                    let done = block.write_raw(page << PAGE_BITS, &bytes);
                    done.map_err(|why| from.error(refuse(why.to_string())))?;
                }
                Record::Flush if self.others.is_some() => {
                    let Some((meeting, channels, patience)) = &self.others else { continue };
                    if !meeting.hold(*channels, *patience) {
                        let late = || "a channel did not come to its sync".to_owned();
                        let why = meeting.why().map_or_else(late, |why| format!("a channel failed: {why}"));
                        return Err(reader.source().error(Fault::Order(why)));
                    }
                }
                other => {
                    let why = format!("{other:?}, which was not agreed on");
                    return Err(reader.source().error(Fault::Order(why)));
                }
            }
        }
    }
}
