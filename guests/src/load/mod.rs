//! Programs into RAM.
//!
//! ```text
//!   file ─▶ elf.rs   fields checked against the file and the RAM ─┐
//!   file ─▶ raw.rs   bytes and an address ────────────────────────┤─▶ AddressSpace::write ─▶ RAM, code invalidated
//!   GuestImage (embedded) ────────────────────────────────────────┘   (the one door: loading over live code is safe)
//! ```

mod bytes;
pub mod elf;
mod isa;
mod raw;
mod symbols;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use notdirty_softmmu::{AddressSpace, GuestPhys};

pub use elf::ElfError;
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
}

/// Loads a program; what is written over live code invalidates it.
pub fn load(program: &Program, space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    match program {
        Program::Elf(path) => load_elf(&path.display().to_string(), &read(path)?, space, ram),
        Program::ElfBytes(name, bytes) => load_elf(name, bytes, space, ram),
        Program::Raw { file, load_addr } => {
            let bytes = read(file)?;
            load_raw(&file.display().to_string(), &bytes, *load_addr, space, ram)
        }
        Program::Image(image) => {
            let loaded = load_raw(image.name, &image.bytes, image.load_addr, space, ram)?;
            Ok(Loaded { entry: image.entry, ..loaded })
        }
    }
}

fn load_elf(file: &str, bytes: &[u8], space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    let elf = elf::parse(bytes, ram).map_err(|source| LoadError::Elf { file: file.into(), source })?;
    for segment in &elf.segments {
        write(file, space, segment.base, segment.bytes)?;
        zero(file, space, segment.base + segment.bytes.len() as u64, segment.memory - segment.bytes.len() as u64)?;
    }
    Ok(Loaded { entry: elf.entry, symbols: elf.symbols })
}

fn load_raw(file: &str, bytes: &[u8], at: u64, space: &AddressSpace, ram: Range<u64>) -> Result<Loaded, LoadError> {
    raw::check(bytes.len() as u64, at, ram).map_err(|source| LoadError::Raw { file: file.into(), source })?;
    write(file, space, at, bytes)?;
    Ok(Loaded { entry: at, symbols: SymbolTable::default() })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let file = path.display().to_string();
    let fail = |source| LoadError::Read { file: file.clone(), source };
    let handle = File::open(path).map_err(fail)?;
    let size = handle.metadata().map_err(fail)?.len();
    let mut bytes = Vec::new();
    // One byte over the limit is enough to know; the length is not trusted for what is not a regular file.
    handle.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(LoadError::Size { file, size: size.max(bytes.len() as u64) });
    }
    Ok(bytes)
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
