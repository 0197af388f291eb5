//! What can go wrong with RAM, said with the block's name and the numbers.

use std::io;

/// Why a RAM block could not be made, found or accessed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// The name has to fit QEMU's wire format: a length byte, then the name.
    #[error("RAM block name of {len} bytes: must be 1 to 255")]
    IdLength {
        /// Its length in bytes.
        len: usize,
    },
    /// Two blocks of a list cannot have the same name.
    #[error("RAM block {idstr} exists already")]
    DuplicateId {
        /// The name.
        idstr: String,
    },
    /// Its machine has left, and what is written here would be lost.
    #[error("the machine has left: its RAM is written no more")]
    Gone,
    /// A length is zero or not a multiple of the page size.
    #[error("RAM block {idstr}: {what} {length:#x} is not a positive multiple of the page size {page:#x}")]
    OddLength {
        /// The block.
        idstr: String,
        /// Which length.
        what: &'static str,
        /// The length asked for.
        length: u64,
        /// What it must be a multiple of.
        page: u64,
    },
    /// More is to be used than reserved.
    #[error("RAM block {idstr}: used length {used:#x} is over its maximum {max:#x}")]
    UsedOverMax {
        /// The block.
        idstr: String,
        /// The length to be used.
        used: u64,
        /// The length to be reserved.
        max: u64,
    },
    /// The length, or the sum of all lengths, does not fit the address space.
    #[error("RAM block {idstr}: {length:#x} bytes do not fit the address space")]
    Overflow {
        /// The block.
        idstr: String,
        /// Its maximum length.
        length: u64,
    },
    /// The block was not made to be resized.
    #[error("RAM block {idstr} cannot be resized: it was not made resizable")]
    NotResizable {
        /// The block.
        idstr: String,
    },
    /// The block is being added, resized or removed this moment; a notifier that asks is part of it.
    #[error("RAM block {idstr} is being added, resized or removed by another call")]
    Busy {
        /// The block.
        idstr: String,
    },
    /// The file ends before the memory that it should be.
    #[error("RAM block {idstr}: its file has {has:#x} bytes, it needs {needs:#x}")]
    ShortFile {
        /// The block.
        idstr: String,
        /// Where the block ends in the file.
        needs: u64,
        /// Where the file ends.
        has: u64,
    },
    /// The list has given out each of its 2^32 numbers of blocks; none is used twice.
    #[error("RAM block {idstr}: the list is out of block numbers")]
    OutOfSlots {
        /// The block.
        idstr: String,
    },
    /// The host gave no memory.
    #[error("RAM block {idstr}: cannot {doing} {length:#x} bytes")]
    Host {
        /// The block.
        idstr: String,
        /// What was asked of the host.
        doing: &'static str,
        /// For how many bytes.
        length: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The block is not, or no longer, in this list.
    #[error("RAM block {idstr} is not in this list")]
    NotInList {
        /// The block.
        idstr: String,
    },
    /// An access ends outside the used length.
    #[error("RAM block {idstr}: {len:#x} bytes at {off:#x} are outside its {used:#x}")]
    OutOfBounds {
        /// The block.
        idstr: String,
        /// Where the access starts.
        off: u64,
        /// How long it is.
        len: u64,
        /// The block's used length.
        used: u64,
    },
    /// An access is of 1, 2, 4 or 8 bytes.
    #[error("access of {bytes} bytes: must be 1, 2, 4 or 8")]
    Width {
        /// The width asked for.
        bytes: u32,
    },
    /// A guest reaches the block: unmap it first, and wait (RAM-1).
    #[error("RAM block {idstr} is mapped {times} times: unmap it first")]
    Mapped {
        /// The block.
        idstr: String,
        /// How often.
        times: u64,
    },
    /// A guest reaches memory that a shrink would cut off: shorten the mapping first, and wait (RAM-1).
    #[error("RAM block {idstr} is mapped up to {end:#x}: shorten the mapping before it shrinks to {length:#x}")]
    MappedBeyond {
        /// The block.
        idstr: String,
        /// The length that was asked for.
        length: u64,
        /// Where the mapping that reaches furthest ends.
        end: u64,
    },
    /// A write that is made for a log of another list.
    #[error("the log that bytes are written for is of another list")]
    OtherLog,
    /// The bytes are missing, and did not come.
    #[error(transparent)]
    Missing(#[from] crate::missing::MissingError),
    /// The caller may not wait, see [`RamList::before`](super::RamList::before).
    #[error(transparent)]
    Pinned(#[from] super::Pinned),
}
