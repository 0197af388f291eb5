//! How pages go to a file and come from it: by the host's page cache, or around it.
//!
//! ```text
//!   the file itself   header, list, bitmaps, sections          by the cache: they are of any length
//!   pages             │ at multiples of 1 MiB, of 4 KiB each   the same, or by a second descriptor with O_DIRECT
//! ```
//!
//! Around the cache a page goes once over memory, and throws out nothing that the host would rather keep. By the cache a file that is
//! read soon is read from there.

use crate::addr::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// By which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Through {
    /// By the host's page cache.
    #[default]
    Cache,
    /// Around it. A file system that cannot do it, or not for pages, is an error.
    Direct,
}

impl Through {
    /// What the pages of this file are written to, or read from.
    pub(super) fn open(self, file: &File, write: bool) -> io::Result<File> {
        if self == Through::Cache {
            return file.try_clone();
        }
        let failed =
            |why: io::Error| io::Error::new(why.kind(), format!("direct I/O to this file cannot be done: {why}"));
        let mut options = File::options();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        // The same file, whatever its name is by now; flags of the first descriptor are its own.
        let direct = options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
        match alignment(&direct) {
            Some(bytes) if bytes > PAGE_SIZE => {
                Err(failed(io::Error::other(format!("its blocks are of {bytes} bytes, and pages of {PAGE_SIZE}"))))
            }
            _ => Ok(direct),
        }
    }
}

/// What direct I/O has to be aligned to, in memory and in the file, if the kernel tells.
fn alignment(file: &File) -> Option<u64> {
    // SAFETY: zeros are one.
    let mut about: libc::statx = unsafe { core::mem::zeroed() };
    let (fd, flags, empty) = (file.as_raw_fd(), libc::AT_EMPTY_PATH, c"");
    // SAFETY: the kernel writes one `statx` to `about`; the path is a string.
    let done = unsafe { libc::statx(fd, empty.as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut about) };
    let known = done == 0 && about.stx_mask & libc::STATX_DIOALIGN != 0;
    known.then(|| u64::from(about.stx_dio_mem_align.max(about.stx_dio_offset_align)))
}
