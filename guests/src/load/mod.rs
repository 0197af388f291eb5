//! Programs into RAM.
//!
//! ```text
//!   file ─▶ magic.rs: what is it? ─┬─▶ elf.rs   fields checked against the file and the RAM ─┐
//!                                  ├─▶ hex.rs   Intel HEX, S-records ──────────────────────┤
//!   file and an address ───────────┴─▶ raw.rs   the bytes as they are ─────────────────────┤─▶ AddressSpace::write
//!   GuestImage (embedded) ─────────────────────────────────────────────────────────────────┘   ─▶ RAM
//! ```
//!
//! `AddressSpace::write` is the one door: loading over live code is safe. What a file asks for and does not get is
//! logged as a warning.

mod bytes;
pub mod elf;
mod frames;
mod hex;
mod isa;
mod magic;
mod raw;
mod sections;
mod symbols;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use notdirty_softmmu::{AddressSpace, GuestPhys};

pub use elf::ElfError;
pub use frames::FrameTables;
pub use hex::HexError;
use magic::Kind;
pub use raw::RawError;
pub use symbols::SymbolTable;

/// The largest file that is read: more than any RAM image a 64-bit bare-metal program has, less than what hurts the host.
pub const MAX_FILE: u64 = 4 << 30;

/// Why a program could not be loaded. The text starts with the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The file is longer than [`MAX_FILE`].
    #[error("{file}: file size {size:#x} is over the limit of {MAX_FILE:#x}")]
    Size {
        /// The file.
        file: String,
        /// Its size.
        size: u64,
    },
    /// A field of an ELF file is wrong.
    #[error("{file}: {source}")]
    Elf {
        /// The file.
        file: String,
        /// The field.
        source: ElfError,
    },
    /// A line of an Intel HEX or S-record file is wrong.
    #[error("{file}: {source}")]
    Hex {
        /// The file.
        file: String,
        /// The line.
        source: HexError,
    },
    /// A raw image does not fit.
    #[error("{file}: {source}")]
    Raw {
        /// The file.
        file: String,
        /// What does not fit.
        source: RawError,
    },
    /// RAM that was checked to be there could not be written.
    #[error("{file}: writing {addr:#x}: {reason}")]
    Write {
        /// The file.
        file: String,
        /// Guest physical address.
        addr: u64,
        /// The address space's reason.
        reason: String,
    },
}

/// A program as the machine takes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Program {
    /// A file of any of the kinds that say where they go: ELF64, Intel HEX, S-records.
    File(PathBuf),
    /// An ELF64 RISC-V file.
    Elf(PathBuf),
    /// Bytes of an ELF64 RISC-V file, with a name for errors.
    ElfBytes(String, Vec<u8>),
    /// A file of bytes for one address.
    Raw {
        /// The file.
        file: PathBuf,
        /// Physical address of its first byte, and the entry unless another is given.
        load_addr: u64,
    },
    /// A program that is part of the binary.
    Image(crate::programs::GuestImage),
}

/// What a loaded program told about itself.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where to start.
    pub entry: u64,
    /// Names for logs; empty for raw images.
    pub symbols: SymbolTable,
    /// How frames are undone, for crash reports; empty where the file does not say.
    pub frames: FrameTables,
}

/// Loads a program; what is written over live code invalidates it.
///
/// # Errors
/// [`LoadError`]: the file cannot be read, is of a kind that does not run here, or does not lie in `ram`.
pub fn load(program: &Program, space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    match program {
        Program::File(path) => load_file(&mut Source::open(path)?, space, ram),
        Program::Elf(path) => {
            let mut source = Source::open(path)?;
            if source.kind() != Kind::Elf {
                return Err(source.not_elf());
            }
            load_elf(&source.name.clone(), &source.read(MAX_FILE)?, space, ram)
        }
        Program::ElfBytes(name, bytes) => load_elf(name, bytes, space, ram),
        Program::Raw { file, load_addr } => {
            let mut source = Source::open(file)?;
            // What is longer than RAM does not fit, however long it is.
            let bytes = source.read_some(MAX_FILE.min(ram.end - ram.start) + 1)?;
            load_raw(&source.name, &bytes, source.size.max(bytes.len() as u64), *load_addr, space, ram)
        }
        Program::Image(image) => {
            let loaded = load_raw(image.name, &image.bytes, image.bytes.len() as u64, image.load_addr, space, ram)?;
            Ok(Loaded { entry: image.entry, ..loaded })
        }
    }
}

/// What an ELF file tells about itself; nothing of it is loaded.
///
/// # Errors
/// [`LoadError`]: it cannot be read, or does not run in this `ram`.
pub fn names(path: &Path, ram: Range<u64>) -> Result<Loaded, LoadError> {
    let mut source = Source::open(path)?;
    if source.kind() != Kind::Elf {
        return Err(source.not_elf());
    }
    let bytes = source.read(MAX_FILE)?;
    let elf = elf::parse(&bytes, ram).map_err(|error| LoadError::Elf { file: source.name.clone(), source: error })?;
    Ok(Loaded { entry: elf.entry, symbols: elf.symbols, frames: elf.frames })
}

fn load_file(source: &mut Source, space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    let read = match source.kind() {
        Kind::Other => return Err(source.not_elf()),
        Kind::Elf => return load_elf(&source.name.clone(), &source.read(MAX_FILE)?, space, ram),
        Kind::IntelHex => hex::intel(&source.read(MAX_FILE)?, ram),
        Kind::SRecord => hex::motorola(&source.read(MAX_FILE)?, ram),
    };
    let records = read.map_err(|error| LoadError::Hex { file: source.name.clone(), source: error })?;
    for (addr, bytes) in &records.parts {
        write(&source.name, space, *addr, bytes)?;
    }
    Ok(Loaded { entry: records.entry, ..Loaded::default() })
}

fn load_elf(file: &str, bytes: &[u8], space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    let elf = elf::parse(bytes, ram).map_err(|source| LoadError::Elf { file: file.into(), source })?;
    for warning in &elf.warnings {
        log::warn!("{file}: {warning}");
    }
    for segment in &elf.segments {
        write(file, space, segment.base, segment.bytes)?;
        zero(file, space, segment.base + segment.bytes.len() as u64, segment.memory - segment.bytes.len() as u64)?;
    }
    Ok(Loaded { entry: elf.entry, symbols: elf.symbols, frames: elf.frames })
}

/// `len` is the file's, which may be longer than what was read of it.
fn load_raw(
    file: &str,
    bytes: &[u8],
    len: u64,
    at: u64,
    space: &AddressSpace,
    ram: Range<u64>,
) -> Result<Loaded, LoadError> {
    raw::check(len, at, ram).map_err(|source| LoadError::Raw { file: file.into(), source })?;
    write(file, space, at, bytes)?;
    Ok(Loaded { entry: at, ..Loaded::default() })
}

/// A file of which the first bytes are read: they say whether the rest is worth it.
struct Source {
    name: String,
    file: File,
    head: Vec<u8>,
    /// What the host says; 0 for what is not a regular file.
    size: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Source, LoadError> {
        let name = path.display().to_string();
        let fail = |source| LoadError::Read { file: name.clone(), source };
        let file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let mut head = Vec::new();
        (&file).take(magic::LEN as u64).read_to_end(&mut head).map_err(fail)?;
        Ok(Source { name, file, head, size })
    }

    fn kind(&self) -> Kind {
        magic::kind(&self.head)
    }

    fn not_elf(&self) -> LoadError {
        LoadError::Elf { file: self.name.clone(), source: ElfError::Magic { found: self.head.clone() } }
    }

    /// All of it, but not more than `limit` bytes.
    fn read(&mut self, limit: u64) -> Result<Vec<u8>, LoadError> {
        let too_long = |size| LoadError::Size { file: self.name.clone(), size };
        if self.size > limit {
            return Err(too_long(self.size));
        }
        // One byte over the limit is enough to know; the length is not trusted for what is not a regular file.
        let bytes = self.read_some(limit.saturating_add(1))?;
        let len = bytes.len() as u64;
        if len > limit {
            return Err(LoadError::Size { file: self.name.clone(), size: self.size.max(len) });
        }
        Ok(bytes)
    }

    /// The first `most` bytes, or all there are.
    fn read_some(&mut self, most: u64) -> Result<Vec<u8>, LoadError> {
        let mut bytes = std::mem::take(&mut self.head);
        let rest = (&self.file).take(most.saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes);
        rest.map_err(|source| LoadError::Read { file: self.name.clone(), source })?;
        Ok(bytes)
    }
}

fn write(file: &str, space: &AddressSpace, addr: u64, bytes: &[u8]) -> Result<(), LoadError> {
    space.write(GuestPhys::new(addr), bytes).map_err(|e| LoadError::Write {
        file: file.into(),
        addr,
        reason: e.to_string(),
    })
}

/// Zeroes what is not zero yet: fresh RAM is, and stays unbacked by host memory then.
fn zero(file: &str, space: &AddressSpace, mut addr: u64, mut len: u64) -> Result<(), LoadError> {
    let mut chunk = [0u8; 4096];
    while len != 0 {
        let part = len.min(chunk.len() as u64) as usize;
        space.read(GuestPhys::new(addr), &mut chunk[..part]).map_err(|e| LoadError::Write {
            file: file.into(),
            addr,
            reason: e.to_string(),
        })?;
        if chunk[..part].iter().any(|&byte| byte != 0) {
            chunk[..part].fill(0);
            write(file, space, addr, &chunk[..part])?;
        }
        addr += part as u64;
        len -= part as u64;
    }
    Ok(())
}
