//! Raw images: the bytes of a file, put at an address.

use std::ops::Range;

/// Why a raw image cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// Not inside RAM.
    #[error("image of {len:#x} bytes at load address {addr:#x} is outside RAM {:#x}..{:#x}", ram.start, ram.end)]
    OutsideRam {
        /// Where it should go.
        addr: u64,
        /// Its length.
        len: u64,
        /// The RAM there is.
        ram: Range<u64>,
    },
    /// Nothing in it.
    #[error("image is empty (file size 0)")]
    Empty,
}

/// `len` bytes at `addr` are something, and inside RAM.
pub(super) fn check(len: u64, addr: u64, ram: Range<u64>) -> Result<(), RawError> {
    if len == 0 {
        return Err(RawError::Empty);
    }
    let inside = addr >= ram.start && addr.checked_add(len).is_some_and(|end| end <= ram.end);
    if inside { Ok(()) } else { Err(RawError::OutsideRam { addr, len, ram }) }
}
