//! `--signature`: the words that a test left between two symbols, as the architecture test tools compare them.
//!
//! ```text
//!   begin_signature ─▶ 78 56 34 12 ef cd ab 89 ..  ─▶ 12345678      --signature-granularity 4
//!   end_signature   ─▶                                89abcdef      one little-endian word a line
//! ```
//!
//! The names of the flags, the symbols and the format are Spike's and riscof's; a last word that is not whole is padded
//! with zeros above.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

use super::emptied;
use crate::machine::Machine;

/// Bytes of a word unless another number is given: Spike's.
pub(super) const GRANULARITY: u64 = 16;
/// The longest word: more than any tool asks for.
pub(super) const LONGEST_WORD: u64 = 1024;

/// Where the loaded program keeps its signature, or what is wrong with its symbols.
pub(super) fn range(machine: &Machine) -> Result<Range<u64>, String> {
    let at = |name: &str| machine.symbol_address(name).ok_or_else(|| format!("--signature: no symbol {name}"));
    let (begin, end) = (at("begin_signature")?, at("end_signature")?);
    if end < begin {
        return Err(format!("--signature: end_signature {end:#x} is below begin_signature {begin:#x}"));
    }
    // Both ends now, so that a symbol that is not in RAM is told before the run and not behind it.
    for byte in [begin, end.saturating_sub(1)].into_iter().filter(|_| begin < end) {
        machine.read(byte, &mut [0]).map_err(|e| format!("--signature: {e}"))?;
    }
    Ok(begin..end)
}

/// Writes it to `file`.
pub(super) fn write(machine: &Machine, range: Range<u64>, granularity: u64, file: File) -> io::Result<()> {
    let mut out = emptied(file)?;
    let mut word = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let len = granularity.min(range.end - at);
        word.clear();
        word.resize(granularity as usize, 0);
        machine.read(at, &mut word[..len as usize]).map_err(io::Error::other)?;
        for byte in word.iter().rev() {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)?;
        at += len;
    }
    out.flush()
}
