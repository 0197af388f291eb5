//! Snapshots that build on each other: the first has all of RAM, each further one the pages that were written since the one before.
//!
//! ```text
//!   snapshot_chain(a)   a dirty log of all RAM starts ─▶ a: everything
//!   snapshot_next(b)    sync ─▶ b: chain { id, a's id, a's name } … the pages that changed: with bytes, or a hole where they are zero
//!   restore(c)          c says b, b says a ─▶ RAM from a, over it b's pages, over them c's; everything else from c
//!   squash(c, d)        the same machine in one file
//! ```
//!
//! A file that lacks pages says so in a section, so a reader that knows no chains refuses it. RAM that was plugged, unplugged or
//! resized makes the next file a whole one: a chain is of blocks that stay as they are.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::time::Duration;

use notdirty_core::migration::mapped_ram;
use notdirty_core::migration::{Event, ListedBlock, Section, Through};
use notdirty_core::{DirtyLog, RamBlock};
use notdirty_softmmu::{fields, section_of, take_section};

use super::migrate::{MigrationError, Snapshot, on_all_threads, open};
use super::{Checkpoint, Machine, MachineBuilder, SnapshotOptions};

/// How long vCPUs have to answer; none of them runs.
const SYNC: Duration = Duration::from_secs(10);
/// Files of a chain, at most.
const LONGEST: usize = 4096;

fields! {
    /// Which file this is, and on which one it builds: none, if it has everything.
    pub(super) struct Link: "chain", version 1 {
        id: Vec<u8>,
        parent: Vec<u8>,
        /// Its path; a name alone is of a file beside this one.
        parent_file: Vec<u8>,
    }
}

/// The name of [`Link`]'s section.
pub(super) const SECTION: &str = "chain";

/// Files that build on each other, and the log of what the next one has. Dropped, the files stay, and nothing is logged any more.
#[derive(Debug)]
pub struct SnapshotChain {
    log: DirtyLog,
    /// The first is the oldest that is needed.
    files: Vec<PathBuf>,
    id: Vec<u8>,
    /// Blocks and their lengths, as in the last file.
    blocks: Vec<(String, u64)>,
}

impl SnapshotChain {
    /// The files that a restore of the last one reads, the oldest first.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn shape(blocks: &[Arc<RamBlock>]) -> Vec<(String, u64)> {
    blocks.iter().map(|block| (block.idstr().to_owned(), block.used_length())).collect()
}

/// Sixteen digits, twice: no two files have the same.
fn new_id() -> Vec<u8> {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half() ^ u64::from(std::process::id())).into_bytes()
}

impl Machine {
    /// A [snapshot](Machine::snapshot), and a log of what is written from then on, for the [next](Machine::snapshot_next) ones.
    ///
    /// # Errors
    /// As of a snapshot, or the log's.
    pub fn snapshot_chain(&mut self, path: impl AsRef<Path>) -> Result<(SnapshotChain, Snapshot), MigrationError> {
        let list = self.board.space.ram().clone();
        let client = list.add_client("snapshots").map_err(MigrationError::Client)?;
        let log = list.log(client).timeout(SYNC).start()?;
        let (_, blocks) = self.sections_before_ram()?;
        let link = Link { id: new_id(), parent: Vec::new(), parent_file: Vec::new() };
        let (id, files) = (link.id.clone(), vec![path.as_ref().to_owned()]);
        let done = self.write_snapshot(path.as_ref(), Some(link), None)?;
        Ok((SnapshotChain { log, files, id, blocks: shape(&blocks) }, done))
    }

    /// A [snapshot](Machine::snapshot) of the machine as it was at a checkpoint; it is as before afterwards.
    ///
    /// # Errors
    /// As of a restore, a checkpoint, or a snapshot.
    pub fn snapshot_of(&mut self, checkpoint: &Checkpoint, path: impl AsRef<Path>) -> Result<Snapshot, MigrationError> {
        let now = self.checkpoint()?;
        self.restore(checkpoint)?;
        let done = self.snapshot(path);
        self.restore(&now)?;
        done
    }

    /// What changed since the last file of the chain, in a file of its own; the machine stays as it is. Pages that were written count,
    /// whatever with. All of it, if there is other RAM than then.
    ///
    /// # Errors
    /// As of a snapshot: then the chain is as it was. Or the chain is another machine's, or needs the file at `path`.
    pub fn snapshot_next(
        &mut self,
        chain: &mut SnapshotChain,
        path: impl AsRef<Path>,
    ) -> Result<Snapshot, MigrationError> {
        let path = path.as_ref();
        if !Arc::ptr_eq(chain.log.list(), self.board.space.ram()) {
            return Err(MigrationError::OtherMachine);
        }
        let here = |file: &Path| absolute(file).unwrap_or_else(|_| file.to_owned());
        if chain.files.iter().any(|file| here(file) == here(path)) {
            return Err(MigrationError::Order(format!("{}: the chain builds on this file", path.display())));
        }
        let (_, blocks) = self.sections_before_ram()?;
        let same = shape(&blocks) == chain.blocks;
        let harvest = chain.log.sync(Some(SYNC))?;
        let mut link = Link { id: new_id(), parent: Vec::new(), parent_file: Vec::new() };
        if let Some(last) = chain.files.last().filter(|_| same) {
            link.parent = chain.id.clone();
            let beside = here(last).parent() == here(path).parent();
            let name = last.file_name().filter(|_| beside).map_or_else(|| here(last), PathBuf::from);
            link.parent_file = name.into_os_string().into_encoded_bytes();
        }
        let id = link.id.clone();
        let done = self.write_snapshot(path, Some(link), same.then(|| harvest.pages()))?;
        harvest.commit();
        if !same {
            chain.files.clear();
        }
        chain.files.push(path.to_owned());
        (chain.id, chain.blocks) = (id, shape(&blocks));
        Ok(done)
    }
}

/// One file with what the last file of a chain and those before it have. A machine with devices of one's own is restored and
/// saved instead ([`restore_with`](MachineBuilder::restore_with), [`snapshot`](Machine::snapshot)).
///
/// # Errors
/// As of a restore or a snapshot.
pub fn squash(last: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Snapshot, MigrationError> {
    squash_by(last, to, SnapshotOptions::default())
}

/// The same, with options.
///
/// # Errors
/// As above.
pub fn squash_by(
    last: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: SnapshotOptions,
) -> Result<Snapshot, MigrationError> {
    MachineBuilder::default().snapshot_options(options).restore(last)?.snapshot(to)
}

/// The files that a restore of this one needs beside it, the newest first.
pub(super) fn ancestors(path: &Path) -> Result<Vec<PathBuf>, MigrationError> {
    let mut files = Vec::new();
    let mut at = path.to_owned();
    let mut wanted: Option<Vec<u8>> = None;
    loop {
        // A parent's name comes from a file: what is no file might never answer.
        if wanted.is_some() && !fs::metadata(&at).is_ok_and(|data| data.is_file()) {
            return Err(MigrationError::Parent { path: at, why: "it is no file" });
        }
        let link = match open(&at)?.event()? {
            Event::Section(section) => link(&section)?,
            _ => None,
        };
        if let Some(id) = wanted
            && link.as_ref().is_none_or(|link| link.id != id)
        {
            return Err(MigrationError::Parent { path: at, why: "it is another file than the one that was built on" });
        }
        let Some(link) = link.filter(|link| !link.parent.is_empty()) else { return Ok(files) };
        if files.len() == LONGEST {
            return Err(MigrationError::Parent { path: at, why: "the chain is too long" });
        }
        let name = PathBuf::from(os_string(link.parent_file));
        at = at.parent().map_or_else(|| name.clone(), |beside| beside.join(&name));
        files.push(at.clone());
        wanted = Some(link.parent);
    }
}

fn os_string(bytes: Vec<u8>) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

/// What a section says of the chain, if it is that one.
pub(super) fn link(section: &Section) -> Result<Option<Link>, MigrationError> {
    if section.name != SECTION {
        return Ok(None);
    }
    let mut link = Link { id: Vec::new(), parent: Vec::new(), parent_file: Vec::new() };
    take_section(&mut link, section)?;
    Ok(Some(link))
}

/// Reads the RAM of a file that others build on: into these blocks, listed so in the newest.
pub(super) fn read_ram(
    path: &Path,
    over: bool,
    through: Through,
    listed: &[ListedBlock],
    blocks: &[Arc<RamBlock>],
) -> Result<(), MigrationError> {
    let mut reader = open(path)?;
    loop {
        match reader.event()? {
            Event::Section(_) | Event::Command(..) => {}
            Event::RamStart => {
                let (theirs, homes) = mapped_ram::read_list(&mut reader)?;
                if theirs != listed {
                    return Err(MigrationError::Parent { path: path.to_owned(), why: "it has other RAM blocks" });
                }
                mapped_ram::load(&mut reader, blocks, &homes, over, through, on_all_threads)?;
                mapped_ram::end_piece(&mut reader)?;
            }
            Event::RamPiece(_) => mapped_ram::end_piece(&mut reader)?,
            Event::End => break,
        }
    }
    if !reader.ram_ended() {
        return Err(MigrationError::Order(format!("{} ends before its RAM does", path.display())));
    }
    reader.description()?;
    Ok(())
}

/// The link's section.
pub(super) fn section(link: &mut Link) -> Section {
    section_of(link, 0)
}
