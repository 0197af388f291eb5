//! Pages that go by the stream itself.

use super::BlockMigration;
use super::channel::{Gather, Sink};
use super::checksums::{Checksums, of_page};
use super::precopy::{Carrier, Progress, Run};
use super::records::{self, ListedBlock};
use super::stream::StreamWriter;
use super::wire::{Fault, RAM, Result, StreamError, XBZRLE_ENCODING, flag};
use super::xbzrle::{Cache, encode};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::ram::RamBlock;
use std::sync::Arc;

/// Pages that are sent at once: they are in the cache for all that is done to them, and one system call takes them.
const PAGES: u64 = if 128 < Gather::PAGES { 128 } else { Gather::PAGES };

/// The RAM section of a stream, whose records are the pages.
pub struct StreamCarrier<'w, W> {
    writer: &'w mut StreamWriter<W>,
    id: u32,
    /// The block of the last record.
    last: Option<usize>,
    blocks: Vec<(String, Arc<Checksums>)>,
    deltas: Option<Deltas>,
    /// Bytes of RAM that went by other channels.
    beside: u64,
}

/// The number of the RAM section in a stream, and how many bytes of RAM went beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamId(u32, u64);

/// What a page is sent as.
enum What {
    /// The other end has it.
    Same,
    Zero,
    /// From RAM, as it is when it is written.
    Ram,
    /// As the cache has it now.
    Copy(Vec<u8>),
    Delta(Vec<u8>),
}

/// Pages that the other end has, from the second round on.
struct Deltas {
    cache: Cache,
    sync: u64,
    /// The page as it is now: the guest may write it while it is compared.
    page: Vec<u8>,
}

impl Deltas {
    fn what(&mut self, block: &RamBlock, page: u64) -> What {
        let key = block.offset().page().get() + page;
        if block.read_bytes(page << PAGE_BITS, &mut self.page).is_err() {
            return What::Ram;
        }
        if let Some(old) = self.cache.get(key) {
            let delta = encode(old, &self.page);
            old.copy_from_slice(&self.page);
            self.cache.put(key, self.sync);
            return match delta {
                Some(delta) if delta.is_empty() => What::Same,
                Some(delta) => What::Delta(delta),
                None => What::Copy(self.page.clone()),
            };
        }
        match self.cache.put(key, self.sync) {
            Some(kept) => {
                kept.copy_from_slice(&self.page);
                What::Copy(self.page.clone())
            }
            None => What::Ram,
        }
    }

    fn is_zero(&mut self, block: &RamBlock, page: u64) {
        if let Some(old) = self.cache.get(block.offset().page().get() + page) {
            old.fill(0);
        }
    }
}

/// Each block with its checksums.
pub(super) fn checksums_of(blocks: &[Arc<RamBlock>]) -> Vec<(String, Arc<Checksums>)> {
    blocks.iter().map(|block| (block.idstr().to_owned(), BlockMigration::need_checksums(block))).collect()
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
        let blocks = checksums_of(blocks);
        Ok(Self { writer, id, last: None, blocks, deltas: None, beside: 0 })
    }

    /// From the second round on pages go as what differs from what was sent before, of which so many bytes are kept.
    pub fn with_deltas(mut self, cache: u64) -> Self {
        let page = vec![0; PAGE_SIZE as usize];
        self.deltas = Some(Deltas { cache: Cache::new(cache), sync: 0, page });
        self
    }

    /// Goes on with a section that was begun, in a state of its own: the next record names its block.
    pub fn go_on(writer: &'w mut StreamWriter<W>, id: RamId, blocks: &[Arc<RamBlock>]) -> Self {
        Self { writer, id: id.0, last: None, blocks: checksums_of(blocks), deltas: None, beside: id.1 }
    }

    /// What it takes to go on with the section later.
    pub fn id(&self) -> RamId {
        RamId(self.id, self.beside)
    }

    /// Ends it.
    ///
    /// # Errors
    /// The channel's.
    pub fn end_ram(self) -> Result<()> {
        self.writer.sent(self.blocks.into_iter());
        records::write_empty_piece(self.writer, self.id, true)
    }

    /// Each block, and its pages as they were sent.
    pub(super) fn checksums(&self) -> &[(String, Arc<Checksums>)] {
        &self.blocks
    }

    /// So many bytes of RAM went by other channels.
    pub(super) fn went_beside(&mut self, bytes: u64) {
        self.beside += bytes;
    }

    /// Tells the other end to wait for all other channels.
    pub(super) fn flush_others(&mut self) -> Result<()> {
        self.writer.out().u64(flag::MULTIFD_FLUSH)
    }
}

impl<W: Sink> Carrier for StreamCarrier<'_, W> {
    fn batch(&self) -> u64 {
        PAGES
    }

    fn begin(&mut self) -> Result<()> {
        self.writer.out().enter(RAM);
        self.writer.piece(self.id, false)?;
        // Other channels are read from here on.
        self.writer.out().flush()
    }

    fn end(&mut self, round: bool) -> Result<()> {
        self.writer.out().u64(flag::EOS)?;
        self.writer.footer(self.id)?;
        if let Some(deltas) = self.deltas.as_mut().filter(|_| round) {
            deltas.sync += 1;
        }
        // The other end may wait for what is in it.
        self.writer.out().flush()
    }

    fn command(&mut self, command: u16, data: &[u8]) -> Result<()> {
        self.writer.command(command, data)?;
        self.writer.out().flush()
    }

    fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()> {
        let (mut gather, mut raw) = (Gather::default(), Vec::new());
        runs.iter().for_each(|run| run.pages.clone().for_each(|page| run.block.prefetch(page)));
        for Run { index, block, pages } in runs {
            let sums = &self.blocks[*index].1;
            for page in pages.clone() {
                let what = if block.is_zero(page) {
                    What::Zero
                } else {
                    match self.deltas.as_mut().filter(|deltas| deltas.sync > 0) {
                        Some(deltas) => deltas.what(block, page),
                        None => What::Ram,
                    }
                };
                let flag = match &what {
                    What::Same => continue,
                    What::Zero => flag::ZERO,
                    What::Ram | What::Copy(_) => flag::PAGE,
                    What::Delta(_) => flag::XBZRLE,
                };
                let place = page << PAGE_BITS | flag;
                if self.last == Some(*index) {
                    gather.head(&(place | flag::CONTINUE).to_be_bytes());
                } else {
                    self.last = Some(*index);
                    gather.head(&place.to_be_bytes());
                    gather.head(&[block.idstr().len() as u8]);
                    gather.head(block.idstr().as_bytes());
                }
                match what {
                    What::Same => {}
                    What::Zero => {
                        gather.head(&[0]);
                        sums.note_zero([page]);
                        progress.zero_pages += 1;
                        if let Some(deltas) = &mut self.deltas {
                            deltas.is_zero(block, page);
                        }
                    }
                    What::Ram => {
                        raw.push((*index, page));
                        let slice = block.slice(page << PAGE_BITS, PAGE_SIZE);
                        gather.ram(slice.map_err(|why| self.error(Fault::Order(why.to_string())))?);
                        progress.pages += 1;
                    }
                    What::Copy(bytes) => {
                        gather.head(&bytes);
                        sums.note([(page, of_page(&bytes))]);
                        progress.pages += 1;
                    }
                    What::Delta(delta) => {
                        gather.head(&[XBZRLE_ENCODING]);
                        gather.head(&(delta.len() as u16).to_be_bytes());
                        gather.head(&delta);
                        // The cache has the page as it is now.
                        let bytes = self.deltas.as_ref().map_or(&[][..], |deltas| &deltas.page);
                        sums.note([(page, of_page(bytes))]);
                        progress.deltas += 1;
                    }
                }
            }
        }
        let out = self.writer.out();
        let written = match gather.write_to(out.channel()?) {
            Ok(bytes) => {
                out.count(bytes);
                Ok(())
            }
            // Some of them may have arrived, and are not sent again.
            Err(why) => Err(out.error(why)),
        };
        // The kernel has just had them in the cache, and reads faster than a loop does.
        for pages in raw.chunk_by(|(one, _), (other, _)| one == other) {
            if let Some(run) = runs.iter().find(|run| run.index == pages[0].0) {
                self.blocks[run.index].1.note_ram(run.block, pages.iter().map(|(_, page)| *page));
            }
        }
        written
    }

    fn bytes(&self) -> u64 {
        self.writer.offset() + self.beside
    }

    fn error(&self, fault: Fault) -> StreamError {
        self.writer.error(fault)
    }
}
