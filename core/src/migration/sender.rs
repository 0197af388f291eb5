//! Pages that go by the stream itself.

use super::channel::{Gather, Sink};
use super::precopy::{Carrier, Progress, Run};
use super::records::{self, ListedBlock};
use super::stream::StreamWriter;
use super::wire::{Fault, RAM, Result, StreamError, flag};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use std::sync::Arc;

/// The RAM section of a stream, whose records are the pages.
pub struct StreamCarrier<'w, W> {
    writer: &'w mut StreamWriter<W>,
    id: u32,
    /// The block of the last record.
    last: Option<usize>,
}

/// The blocks as the list of RAM has them.
pub(super) fn listed(blocks: &[Arc<RamBlock>]) -> Vec<ListedBlock> {
    let listed =
        |block: &Arc<RamBlock>| ListedBlock { idstr: block.idstr().to_owned(), used_length: block.used_length() };
    blocks.iter().map(listed).collect()
}

impl<'w, W: Sink> StreamCarrier<'w, W> {
    /// Begins the RAM section: the list of blocks.
    ///
    /// # Errors
    /// The channel's.
    pub fn begin_ram(writer: &'w mut StreamWriter<W>, blocks: &[Arc<RamBlock>]) -> Result<Self> {
        let id = records::write_setup(writer, &listed(blocks), |_, _| Ok(()))?;
        Ok(Self { writer, id, last: None })
    }

    /// Ends it.
    ///
    /// # Errors
    /// The channel's.
    pub fn end_ram(self) -> Result<()> {
        records::write_empty_piece(self.writer, self.id, true)
    }

    /// Tells the other end to wait for all other channels.
    pub(super) fn flush_others(&mut self) -> Result<()> {
        self.writer.out().u64(flag::MULTIFD_FLUSH)
    }
}

impl<W: Sink> Carrier for StreamCarrier<'_, W> {
    fn batch(&self) -> u64 {
        Gather::PAGES
    }

    fn begin(&mut self) -> Result<()> {
        self.writer.out().enter(RAM);
        self.writer.piece(self.id, false)?;
        // Other channels are read from here on.
        self.writer.out().flush()
    }

    fn end(&mut self, _round: bool) -> Result<()> {
        self.writer.out().u64(flag::EOS)?;
        self.writer.footer(self.id)?;
        // The other end may wait for what is in it.
        self.writer.out().flush()
    }

    fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()> {
        let mut gather = Gather::default();
        for Run { index, block, pages } in runs {
            for page in pages.clone() {
                let zero = block.is_zero(page);
                let mut word = page << PAGE_BITS | if zero { flag::ZERO } else { flag::PAGE };
                if self.last == Some(*index) {
                    word |= flag::CONTINUE;
                    gather.head(&word.to_be_bytes());
                } else {
                    self.last = Some(*index);
                    gather.head(&word.to_be_bytes());
                    gather.head(&[block.idstr().len() as u8]);
                    gather.head(block.idstr().as_bytes());
                }
                if zero {
                    gather.head(&[0]);
                    progress.zero_pages += 1;
                } else {
                    let slice = block.slice(page << PAGE_BITS, PAGE_SIZE);
                    gather.ram(slice.map_err(|why| self.error(Fault::Order(why.to_string())))?);
                    progress.pages += 1;
                }
            }
        }
        let out = self.writer.out();
        match gather.write_to(out.channel()?) {
            Ok(bytes) => {
                out.count(bytes);
                Ok(())
            }
            Err(why) => Err(out.error(why)),
        }
    }

    fn bytes(&self) -> u64 {
        self.writer.offset()
    }

    fn error(&self, fault: Fault) -> StreamError {
        self.writer.error(fault)
    }
}
