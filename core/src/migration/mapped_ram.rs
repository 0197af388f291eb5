//! A file with one home for each page: later rounds overwrite, many threads write at once, and a reader finds any page.
//!
//! ```text
//!   in the list of RAM, behind each block's length          all from the start of the file
//!   │ version 1 be32│page size be64│bitmap at be64│pages at be64│ bitmap │ … │ pages, used length of them │ next block
//!                                                                └ bit n of 64-bit words, little endian    └ at a multiple of 1 MiB
//!
//!   write   plan ─▶ Job: threads take runs of pages: not zero ─▶ pwrite home, bit set    zero ─▶ a hole
//!   read    headers, bitmaps ─▶ Job: threads take runs of set bits: pread ≤ 1 MiB; what is a hole is cleared
//! ```
//!
//! A hole means zero also where the target's RAM is not; a bit past the block's end, a bitmap that lies elsewhere than behind its
//! header, pages that overlap anything or lie past the file's end: each is refused before a byte is read.

use super::bits::Bits;
use super::checksums::Checksums;
use super::records::{self, ListedBlock};
use super::stream::{StreamReader, StreamWriter};
use super::through::Through;
use super::wire::{Fault, Result};
use crate::addr::{PAGE_BITS, PAGE_SIZE};
use crate::dirty::PageSet;
use crate::ram::RamBlock;
use core::ops::Range;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Of a block's header.
const VERSION: u32 = 1;
/// Bytes of it.
const HEADER: u64 = 28;
/// Pages begin at a multiple of this, so that a file that is read around the host's cache can be.
const ALIGNMENT: u64 = 1 << 20;
/// Bytes that one call writes or reads at most.
pub(super) const PIECE: u64 = 1 << 20;
/// Pages of a huge page of the host's.
const HUGE: u64 = 512;
/// Pages that a thread takes at once.
const SHARE: u64 = 4096;

/// Where a block lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    bitmap: u64,
    pages: u64,
    length: u64,
}

impl Home {
    fn bitmap_bytes(length: u64) -> u64 {
        (length >> PAGE_BITS).div_ceil(64) * 8
    }

    /// Where the file goes on behind it.
    fn end(&self) -> u64 {
        self.pages + self.length
    }

    /// Where its pages begin.
    pub fn pages_offset(&self) -> u64 {
        self.pages
    }
}

/// A block and its place in the file.
pub(super) struct Placed {
    pub(super) block: Arc<RamBlock>,
    pub(super) home: Home,
    /// The pages that are in the file.
    pub(super) bitmap: Mutex<Bits>,
    pub(super) sums: Arc<Checksums>,
    /// The pages to write, if not all: those that are zero count as pages of the file, and are holes in it.
    changed: Option<Bits>,
}

impl Placed {
    fn new(block: &Arc<RamBlock>, home: Home, bitmap: Bits) -> Placed {
        let sums = super::BlockMigration::need_checksums(block);
        Placed { block: block.clone(), home, bitmap: Mutex::new(bitmap), sums, changed: None }
    }
}

impl Placed {
    /// Writes a piece to its home, and notes its checksums, while it is near.
    pub(super) fn write(&self, file: &File, off: u64, len: u64) -> io::Result<()> {
        self.block.write_to(off, len, file.as_fd(), self.home.pages + off)?;
        self.sums.note_ram(&self.block, off >> PAGE_BITS..(off + len) >> PAGE_BITS);
        Ok(())
    }
}

/// Each block with its checksums.
pub(super) fn checksums(blocks: &[Placed]) -> impl Iterator<Item = (String, Arc<Checksums>)> {
    blocks.iter().map(|placed| (placed.block.idstr().to_owned(), placed.sums.clone()))
}

/// Pages on their way to or from a file, for as many threads as call [`work`](Self::work).
pub struct Job {
    file: File,
    blocks: Vec<Placed>,
    /// The next share, counted over all blocks.
    next: AtomicU64,
    what: What,
    /// Of pages that changed, those that are zero.
    zeroed: AtomicU64,
    failed: AtomicBool,
    why: Mutex<Option<(String, io::Error)>>,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Write,
    /// Pages that the file has not are zero.
    Read,
    /// They stay as they are.
    ReadOver,
}

/// What a job did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Pages whose bytes are in the file.
    pub pages: u64,
    /// Pages that are zero.
    pub zero: u64,
}

impl Job {
    fn new(file: File, blocks: Vec<Placed>, what: What) -> Job {
        let (next, zeroed, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Job { file, blocks, next, what, zeroed, failed, why: Mutex::new(None) }
    }

    /// Moves pages until there are none left. Several threads share them.
    pub fn work(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            let Some((placed, pages)) = self.share(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            let done = match self.what {
                What::Write => self.write(placed, pages),
                What::Read | What::ReadOver => self.read(placed, pages),
            };
            if let Err(why) = done {
                let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert((placed.block.idstr().to_owned(), why));
                self.failed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Share number `n`.
    fn share(&self, mut n: u64) -> Option<(&Placed, Range<u64>)> {
        self.blocks.iter().find_map(|placed| {
            let pages = placed.home.length >> PAGE_BITS;
            let shares = pages.div_ceil(SHARE);
            match n.checked_sub(shares) {
                Some(left) => {
                    n = left;
                    None
                }
                None => Some((placed, n * SHARE..((n + 1) * SHARE).min(pages))),
            }
        })
    }

    /// Pages that are not zero go to their homes. The file has none of them yet.
    fn write(&self, placed: &Placed, pages: Range<u64>) -> io::Result<()> {
        let mut full: Vec<Range<u64>> = Vec::new();
        let runs = match &placed.changed {
            None => placed.block.touched(pages),
            Some(changed) => runs(changed, pages),
        };
        let count: u64 = runs.iter().map(|run| run.end - run.start).sum();
        for page in placed.block.prefetched(runs.iter().cloned().flatten()).filter(|page| !placed.block.is_zero(*page))
        {
            match full.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => full.push(page..page + 1),
            }
        }
        let mut bitmap = placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = if placed.changed.is_some() { &runs } else { &full };
        listed.iter().for_each(|run| {
            bitmap.set(run.clone());
        });
        drop(bitmap);
        if placed.changed.is_some() {
            let written: u64 = full.iter().map(|run| run.end - run.start).sum();
            self.zeroed.fetch_add(count - written, Ordering::Relaxed);
        }
        each_piece(&full, |off, len| placed.write(&self.file, off, len))
    }

    /// Pages that the file has are read, and the others are made zero.
    fn read(&self, placed: &Placed, pages: Range<u64>) -> io::Result<()> {
        let (mut full, mut holes) = (Vec::new(), Vec::new());
        {
            let bitmap = placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner);
            let mut at = pages.start;
            while at < pages.end {
                let start = bitmap.next_set(at).unwrap_or(pages.end).min(pages.end);
                if start > at {
                    holes.push(at..start);
                }
                let end = bitmap.next_clear(start).min(pages.end);
                if end > start {
                    full.push(start..end);
                }
                at = end;
            }
        }
        if self.what == What::ReadOver {
            holes.clear();
        }
        for hole in holes {
            for run in placed.block.touched(hole) {
                let len = (run.end - run.start) << PAGE_BITS;
                placed.block.fill_raw(run.start << PAGE_BITS, len, 0).map_err(io::Error::other)?;
            }
        }
        each_piece(&full, |off, len| {
            placed.block.read_from_raw(off, len, self.file.as_fd(), placed.home.pages + off)?;
            // While the piece is near.
            placed.sums.note_ram(&placed.block, off >> PAGE_BITS..(off + len) >> PAGE_BITS);
            Ok(())
        })
    }

    /// Whether all went well, and what was moved. After the last thread is done.
    fn outcome(&self) -> core::result::Result<Moved, Fault> {
        if let Some((idstr, why)) = self.why.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(match why.kind() {
                io::ErrorKind::UnexpectedEof => Fault::Block { idstr, why: "the file ends before its pages do".into() },
                kind => Fault::Io(io::Error::new(kind, format!("RAM block {idstr}: {why}"))),
            });
        }
        let mut moved = Moved::default();
        for placed in &self.blocks {
            let pages = placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner).count();
            moved.pages += pages;
            if placed.changed.is_none() {
                moved.zero += (placed.home.length >> PAGE_BITS) - pages;
            }
        }
        let zeroed = self.zeroed.load(Ordering::Relaxed);
        Ok(Moved { pages: moved.pages - zeroed, zero: moved.zero + zeroed })
    }
}

/// The runs of set bits among these.
fn runs(bits: &Bits, among: Range<u64>) -> Vec<Range<u64>> {
    let (mut runs, mut at) = (Vec::new(), among.start);
    while let Some(start) = bits.next_set(at).filter(|start| *start < among.end) {
        at = bits.next_clear(start).min(among.end);
        runs.push(start..at);
    }
    runs
}

/// Calls with the bytes of these pages, at most a piece at once.
pub(super) fn each_piece(runs: &[Range<u64>], mut call: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    runs.iter().try_for_each(|run| {
        let (mut off, end) = (run.start << PAGE_BITS, run.end << PAGE_BITS);
        while off < end {
            let len = (end - off).min(PIECE);
            call(off, len)?;
            off += len;
        }
        Ok(())
    })
}

/// Writes the list of blocks, each with its place; the number of the section.
pub(super) fn write_list(writer: &mut StreamWriter<File>, blocks: &[Arc<RamBlock>]) -> Result<(u32, Vec<Placed>)> {
    let listed = super::sender::listed(blocks);
    let mut placed = Vec::new();
    let id = records::write_setup(writer, &listed, |out, n| {
        let (length, bitmap) = (listed[n].used_length, out.offset() + HEADER);
        let pages = (bitmap + Home::bitmap_bytes(length)).next_multiple_of(ALIGNMENT);
        let home = Home { bitmap, pages, length };
        out.u32(VERSION)?;
        out.u64(PAGE_SIZE)?;
        out.u64(home.bitmap)?;
        out.u64(home.pages)?;
        placed.push(Placed::new(&blocks[n], home, Bits::new(home.length >> PAGE_BITS)));
        out.seek(home.end())
    })?;
    Ok((id, placed))
}

/// Written last: until then the file says that all of RAM is zero, and has no end.
pub(super) fn write_bitmaps(file: &File, blocks: &[Placed]) -> io::Result<()> {
    blocks.iter().try_for_each(|placed| {
        let bitmap = placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner).to_bytes();
        std::os::unix::fs::FileExt::write_all_at(file, &bitmap, placed.home.bitmap)
    })
}

/// Writes the list of blocks, each with its place, and runs `threads` over what goes there: all of it, or the pages that `changed`,
/// from RAM that stands still. The RAM section is ended, too.
///
/// # Errors
/// The file's.
pub fn save(
    writer: &mut StreamWriter<File>,
    blocks: &[Arc<RamBlock>],
    changed: Option<&PageSet>,
    through: Through,
    threads: impl FnOnce(&Job),
) -> Result<Moved> {
    let (id, mut placed) = write_list(writer, blocks)?;
    if let Some(changed) = changed {
        for placed in &mut placed {
            let (all, mut bits) = (placed.block.pages(), Bits::new(placed.home.length >> PAGE_BITS));
            for range in changed.within(&[all]).ranges() {
                let first = all.start.get();
                let end = (range.end.get() - first).min(bits.len());
                bits.set((range.start.get() - first).min(end)..end);
            }
            placed.changed = Some(bits);
        }
    }
    records::write_empty_piece(writer, id, true)?;
    let file = writer.out().channel()?.try_clone().map_err(|why| writer.out().error(why))?;
    let pages = through.open(&file, true).map_err(|why| writer.out().error(why))?;
    let job = Job::new(pages, placed, What::Write);
    threads(&job);
    let moved = job.outcome().map_err(|why| writer.out().error(why))?;
    write_bitmaps(&file, &job.blocks).map_err(|why| writer.out().error(why))?;
    writer.sent(checksums(&job.blocks));
    Ok(moved)
}

/// The blocks of a file: names, lengths and places. The reader stands behind the list.
///
/// # Errors
/// What is wrong with the file.
pub fn read_list(reader: &mut StreamReader<File>) -> Result<(Vec<ListedBlock>, Vec<Home>)> {
    let file_length = reader.source().channel().metadata().map(|file| file.len());
    let file_length = file_length.map_err(|why| reader.source().error(why))?;
    let mut homes = Vec::new();
    let blocks = records::read_setup(reader, |reader, block, _| {
        let from = reader.source();
        let version = from.u32()?;
        if version != VERSION {
            return Err(from.error(Fault::value("the version of a mapped-ram header", version, VERSION)));
        }
        let page_size = from.u64()?;
        if page_size != PAGE_SIZE {
            return Err(from.error(Fault::value("the page size", page_size, PAGE_SIZE)));
        }
        let (bitmap, pages, length) = (from.u64()?, from.u64()?, block.used_length);
        let behind = from.offset();
        if bitmap != behind {
            return Err(from.error(Fault::value("the place of a bitmap", bitmap, format_args!("{behind:#x}"))));
        }
        let bitmap_end = bitmap.saturating_add(Home::bitmap_bytes(length));
        if pages < bitmap_end || pages - bitmap_end >= ALIGNMENT || !pages.is_multiple_of(ALIGNMENT) {
            let wanted = format!("the first multiple of {ALIGNMENT:#x} from {bitmap_end:#x} on");
            return Err(from.error(Fault::value("the place of the pages", pages, wanted)));
        }
        match pages.checked_add(length) {
            Some(end) if end <= file_length => {}
            _ => {
                let why = format!("its {length:#x} bytes at {pages:#x} are more than the file's {file_length:#x}");
                return Err(from.error(Fault::Block { idstr: block.idstr.clone(), why }));
            }
        }
        let home = Home { bitmap, pages, length };
        homes.push(home);
        reader.seek(home.end())
    })?;
    Ok((blocks, homes))
}

/// Reads pages from a file to blocks, which have the lengths of the list. `threads` runs the job. Pages that the file has not are
/// made zero, or stay as they are if it is read `over` another.
///
/// # Errors
/// What is wrong with the file; then the blocks hold anything.
pub fn load(
    reader: &mut StreamReader<File>,
    blocks: &[Arc<RamBlock>],
    homes: &[Home],
    over: bool,
    through: Through,
    threads: impl FnOnce(&Job),
) -> Result<Moved> {
    let file = reader.source().channel().try_clone().map_err(|why| reader.source().error(why))?;
    let mut placed = Vec::new();
    for (block, home) in blocks.iter().zip(homes) {
        let bitmap = read_bitmap(&file, home).map_err(|why| reader.source().error(why))?;
        if let Some(page) = bitmap.stray() {
            let (idstr, pages) = (block.idstr().to_owned(), home.length >> PAGE_BITS);
            let why = format!("its bitmap has page {page:#x}, and the block {pages:#x}");
            return Err(reader.source().error(Fault::Block { idstr, why }));
        }
        placed.push(Placed::new(block, *home, bitmap));
    }
    let pages = through.open(&file, false).map_err(|why| reader.source().error(why))?;
    let job = Job::new(pages, placed, if over { What::ReadOver } else { What::Read });
    let sparse = |placed: &&Placed| placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner).is_sparse(HUGE);
    let sparse: Vec<_> = job.blocks.iter().filter(sparse).map(|placed| placed.block.clone()).collect();
    sparse.iter().for_each(|block| block.touch_huge(false));
    threads(&job);
    sparse.iter().for_each(|block| block.touch_huge(true));
    reader.came(checksums(&job.blocks));
    job.outcome().map_err(|why| reader.source().error(why))
}

/// Reads the end of a piece, in which there are no pages, and its footer.
///
/// # Errors
/// Something else is there.
pub fn end_piece(reader: &mut StreamReader<File>) -> Result<()> {
    match records::Records::default().next(reader, &[])? {
        records::Record::End => reader.footer(),
        other => {
            let why = format!("{other:?} where pages have fixed places");
            Err(reader.source().error(Fault::Order(why)))
        }
    }
}

/// How many pages of a block the file has, without reading one.
///
/// # Errors
/// The file's.
pub fn pages_in_file(reader: &mut StreamReader<File>, home: &Home) -> Result<u64> {
    let bitmap = read_bitmap(reader.source().channel(), home);
    bitmap.map(|bitmap| bitmap.count()).map_err(|why| reader.source().error(why))
}

fn read_bitmap(file: &File, home: &Home) -> io::Result<Bits> {
    // The file has its pages, so it has this.
    let mut bytes = vec![0; Home::bitmap_bytes(home.length) as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, home.bitmap)?;
    Ok(Bits::from_bytes(home.length >> PAGE_BITS, &bytes))
}
