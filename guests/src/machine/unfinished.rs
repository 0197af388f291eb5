//! Files that are whole or not there, and on their disk where that is asked for.
//!
//! ```text
//!   name.PID.part ── all bytes ──▶ [fsync] ──▶ rename ──▶ [fsync of the directory]        [ ]: SnapshotOptions::sync
//! ```
//!
//! Without the two, a host that loses its power a moment later may have the new name with a part of the bytes, which is refused, and no
//! old file; with them the call takes as long as the disk does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use notdirty_core::migration::Through;

use super::migrate::MigrationError;

/// How snapshots are written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Pages go around the host's page cache (`O_DIRECT`). A file system that cannot do it is an error.
    pub direct_io: bool,
    /// The file and its name are on the disk before it counts as written.
    pub sync: bool,
}

impl SnapshotOptions {
    pub(super) fn through(&self) -> Through {
        if self.direct_io { Through::Direct } else { Through::Cache }
    }
}

/// A file that is not there under its name until it is whole. Dropped before, it is gone.
pub(super) struct Unfinished {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Unfinished {
    pub fn create(path: &Path) -> Result<(Unfinished, File), MigrationError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(|source| MigrationError::File { path: temporary.clone(), source })?;
        Ok((Unfinished { path: path.to_owned(), temporary: Some(temporary) }, file))
    }

    /// It has its name now. The file that had it before is gone when what this returns is dropped, and that takes a while if it was large.
    pub fn finish(mut self, sync: bool) -> Result<Option<File>, MigrationError> {
        let before = File::options().read(true).custom_flags(libc::O_PATH).open(&self.path).ok();
        if let Some(temporary) = &self.temporary {
            let done = put_in_place(temporary, &self.path, sync);
            done.map_err(|source| MigrationError::File { path: self.path.clone(), source })?;
        }
        self.temporary = None;
        Ok(before)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Gives a whole file its name; with `sync` both are on the disk.
pub(super) fn put_in_place(from: &Path, to: &Path, sync: bool) -> io::Result<()> {
    if sync {
        File::open(from)?.sync_all()?;
    }
    fs::rename(from, to)?;
    match to.parent().filter(|_| sync) {
        Some(directory) => {
            let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            File::open(here)?.sync_all()
        }
        None => Ok(()),
    }
}
