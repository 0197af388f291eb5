//! A mapped-ram file that is written while the guest runs: each round overwrites what the one before wrote, so the file stays as large
//! as RAM. A page that became zero leaves a hole.

use super::bits::Bits;
use super::mapped_ram::{Placed, checksums, each_piece, write_bitmaps, write_list};
use super::multifd::OnThreads;
use super::precopy::{Carrier, Progress, Run};
use super::records;
use super::stream::StreamWriter;
use super::through::Through;
use super::wire::{Fault, Result, StreamError};
use crate::addr::PAGE_BITS;
use crate::ram::RamBlock;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages that are shared out among the threads at once.
const BATCH: u64 = 16384;
/// Pages that a thread takes of them.
const SHARE: u64 = 256;

/// The RAM of a file.
pub struct MappedCarrier<'w, 't> {
    writer: &'w mut StreamWriter<File>,
    id: u32,
    file: File,
    /// The same for pages, perhaps around the cache.
    pages: File,
    blocks: Vec<Placed>,
    threads: OnThreads<'t>,
    count: usize,
    bytes: u64,
}

impl<'w, 't> MappedCarrier<'w, 't> {
    /// Begins the RAM section: the list of blocks, each with its place. `threads` runs as many as `count`.
    ///
    /// # Errors
    /// The file's.
    pub fn begin_ram(
        writer: &'w mut StreamWriter<File>,
        blocks: &[Arc<RamBlock>],
        through: Through,
        threads: OnThreads<'t>,
        count: usize,
    ) -> Result<Self> {
        let (id, blocks) = write_list(writer, blocks)?;
        let file = writer.out().channel()?.try_clone().map_err(|why| writer.error(why))?;
        let pages = through.open(&file, true).map_err(|why| writer.error(why))?;
        Ok(Self { writer, id, file, pages, blocks, threads, count: count.max(1), bytes: 0 })
    }

    /// What was written so far is on its disk when this returns.
    ///
    /// # Errors
    /// The file's.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|why| self.writer.error(why))
    }

    /// Ends it; which pages the file has is written now.
    ///
    /// # Errors
    /// The file's.
    pub fn end_ram(self) -> Result<()> {
        records::write_empty_piece(self.writer, self.id, true)?;
        self.writer.sent(checksums(&self.blocks));
        write_bitmaps(&self.file, &self.blocks).map_err(|why| self.writer.error(why))
    }

    /// One share: pages with bytes, and zero ones.
    fn write(&self, run: &Run<'_>) -> io::Result<(u64, u64)> {
        let placed = &self.blocks[run.index];
        let (mut full, mut zero) = (Vec::new(), Vec::new());
        for page in run.block.prefetched(run.pages.clone()) {
            let runs: &mut Vec<core::ops::Range<u64>> = if run.block.is_zero(page) { &mut zero } else { &mut full };
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        placed.sums.note_zero(zero.iter().cloned().flatten());
        let holes = {
            let mut bitmap = placed.bitmap.lock().unwrap_or_else(PoisonError::into_inner);
            for run in &full {
                bitmap.set(run.clone());
            }
            zero.retain(|run| clear(&mut bitmap, run.clone()));
            zero
        };
        each_piece(&holes, |off, len| punch(&self.file, placed.home.pages_offset() + off, len))?;
        each_piece(&full, |off, len| placed.write(&self.pages, off, len))?;
        let pages: u64 = full.iter().map(|run| run.end - run.start).sum();
        Ok((pages, run.pages.end - run.pages.start - pages))
    }
}

/// Whether the file has one of these pages, which it has not any more.
fn clear(bitmap: &mut Bits, run: core::ops::Range<u64>) -> bool {
    run.fold(false, |had, page| bitmap.take(page) | had)
}

/// A file system that makes no holes keeps the bytes; the bitmap says that they are not there.
fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    let (Ok(at), Ok(len)) = (libc::off_t::try_from(at), libc::off_t::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: a plain system call on a descriptor that we hold.
    let done =
        unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, len) };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            why if why.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            why => Err(why),
        },
    }
}

impl Carrier for MappedCarrier<'_, '_> {
    fn batch(&self) -> u64 {
        BATCH
    }

    fn leaves_gaps(&self) -> bool {
        false
    }

    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, runs: &[Run<'_>], progress: &mut Progress) -> Result<()> {
        let mut shares = Vec::new();
        for run in runs {
            for start in run.pages.clone().step_by(SHARE as usize) {
                let pages = start..run.pages.end.min(start + SHARE);
                shares.push(Run { index: run.index, block: run.block, pages });
            }
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Ok((0, 0))));
        (self.threads)(self.count.min(shares.len()), &|_| {
            while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                let written = self.write(share);
                let mut all = done.lock().unwrap_or_else(PoisonError::into_inner);
                match (&mut *all, written) {
                    (Ok((pages, zero)), Ok(more)) => (*pages, *zero) = (*pages + more.0, *zero + more.1),
                    (Ok(_), Err(why)) => *all = Err(why),
                    (Err(_), _) => return,
                }
            }
        });
        let (pages, zero): (u64, u64) = match done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Ok(moved) => moved,
            Err(why) => return Err(self.writer.error(why)),
        };
        self.bytes += pages << PAGE_BITS;
        progress.pages += pages;
        progress.zero_pages += zero;
        Ok(())
    }

    fn end(&mut self, _round: bool) -> Result<()> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn error(&self, fault: Fault) -> StreamError {
        self.writer.error(fault)
    }
}
