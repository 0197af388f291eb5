//! ELF64 RISC-V files, read by hand: a wrong field is reported by its name and its offset in the file.
//!
//! ```text
//!   0x00 e_ident  class, data, version     checked in this order: each later field depends on the earlier
//!   0x12 e_machine  0x18 e_entry  0x20 e_phoff ─▶ program headers ─▶ PT_LOAD segments, by p_paddr
//!   0x30 e_flags    float ABI, RVE         0x28 e_shoff ─▶ sections.rs: symbols, .riscv.attributes
//! ```
//!
//! What is needed to run (header, program headers, segments) must be right. All else is a convenience: sections, symbols
//! and attributes that are missing, cut or damaged refuse no file, nor does an extension that the hart lacks. What is
//! lost by that is a warning.
//!
//! A linker that was given only `-Ttext` puts the ELF header and the program headers into the page before the text, and
//! lets a segment begin there. No bare-metal program reads them, so a part of a segment outside RAM that holds
//! nothing else is left out.

use core::ops::Range;

use super::bytes::Bytes;
use super::frames::FrameTables;
use super::isa;
use super::sections::{self, Sections};
use super::symbols::SymbolTable;

const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
/// `e_phnum`: the number is in `sh_info` of section 0.
const PN_XNUM: u16 = 0xffff;

/// Why a file is not one we can run. Every variant names the field and where in the file it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The magic number is another.
    #[error("not an ELF file: {}", super::magic::describe(.found))]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A field of the header has a value we do not take.
    #[error("{field} at offset {offset:#x} is {found}, expected {expected}")]
    Field {
        /// The field's name in the ELF specification.
        field: String,
        /// Its offset in the file.
        offset: u64,
        /// The value, spelled out where it has a name.
        found: String,
        /// What would be taken.
        expected: &'static str,
    },
    /// The file ends too early.
    #[error("truncated: {what} needs {len:#x} bytes at offset {offset:#x}, the file has {file:#x}")]
    Truncated {
        /// The structure that is cut.
        what: String,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The file's length.
        file: u64,
    },
    /// A segment has no RAM under it.
    #[error(
        "segment {index}: p_paddr {start:#x} + p_memsz {len:#x} (program header at offset {offset:#x}) is outside RAM \
         {:#x}..{:#x} (link it for there, or give more RAM)", ram.start, ram.end
    )]
    SegmentOutsideRam {
        /// Number of the program header.
        index: u64,
        /// Physical address.
        start: u64,
        /// Size in memory.
        len: u64,
        /// Offset of the program header.
        offset: u64,
        /// The RAM there is.
        ram: Range<u64>,
    },
    /// The entry point has no RAM under it.
    #[error("e_entry {entry:#x} at offset 0x18 is outside RAM {:#x}..{:#x} (link it for there)", ram.start, ram.end)]
    EntryOutsideRam {
        /// The entry point.
        entry: u64,
        /// The RAM there is.
        ram: Range<u64>,
    },
}

/// One PT_LOAD segment.
#[derive(Debug)]
pub struct Segment<'f> {
    /// Physical address.
    pub base: u64,
    /// The bytes in the file.
    pub bytes: &'f [u8],
    /// Bytes in memory; those behind `bytes` are zero.
    pub memory: u64,
}

/// A checked file: every segment and the entry lie in RAM.
#[derive(Debug)]
#[non_exhaustive]
pub struct ElfFile<'f> {
    /// Where execution starts (physical).
    pub entry: u64,
    /// What to load, in the order of the program headers.
    pub segments: Vec<Segment<'f>>,
    /// Names for logs.
    pub symbols: SymbolTable,
    /// How frames are undone.
    pub frames: FrameTables,
    /// What the file asks for or should have and does not, a line each.
    pub warnings: Vec<String>,
}

/// Reads and checks a whole file against the RAM it is to be loaded into.
///
/// # Errors
/// [`ElfError`]: it is no ELF64 file for RISC-V, is damaged, or has a segment or entry outside `ram`; field and offset are named.
pub fn parse(file: &[u8], ram: Range<u64>) -> Result<ElfFile<'_>, ElfError> {
    let bytes = Bytes(file);
    if !file.starts_with(b"\x7fELF") {
        return Err(ElfError::Magic { found: file[..file.len().min(64)].to_vec() });
    }
    check_header(bytes)?;
    let mut warnings = Vec::new();
    // First of all, as it may hold the number of program headers.
    let sections = Sections::read(bytes).unwrap_or_else(|why| {
        warnings.push(format!("its sections, and with them its symbols, cannot be read: {why}"));
        Sections::default()
    });
    let (entry, segments) = segments(bytes, &sections, ram.clone())?;
    if !ram.contains(&entry) {
        return Err(ElfError::EntryOutsideRam { entry, ram });
    }
    if entry % 2 != 0 {
        return Err(odd_entry(entry));
    }

    let arch = sections.attributes(bytes).or_else(|| segment_attributes(bytes, &sections)).and_then(isa::arch_of);
    let lacking = isa::lacking(bytes.u32(0x30, "e_flags")?, arch.as_deref());
    if !lacking.is_empty() {
        warnings.push(format!(
            "asks for {}, which this hart ({}) lacks: such instructions trap",
            lacking.join(", "),
            isa::PRESENT_NAME
        ));
    }
    let symbols = sections::symbols(bytes, &sections).unwrap_or_else(|why| {
        warnings.push(format!("its symbols cannot be read: {why}"));
        SymbolTable::default()
    });
    let frames = sections.frames(bytes);
    Ok(ElfFile { entry, segments, symbols, frames, warnings })
}

/// One program header: its offset, `p_type`, `p_offset`, `p_filesz`.
type ProgramHeader = (u64, u32, u64, u64);

/// Offset of the program headers, their size and their number.
fn program_headers(bytes: Bytes<'_>, sections: &Sections) -> Result<(u64, u64, u64), ElfError> {
    let table = bytes.u64(0x20, "e_phoff")?;
    let listed = bytes.u16(0x38, "e_phnum")?;
    let count = if listed == PN_XNUM { sections.extended_phnum().unwrap_or(listed.into()) } else { listed.into() };
    let size = entry_size(bytes, 0x36, "e_phentsize", 56, count)?;
    Ok((table, size, count))
}

fn program_header(bytes: Bytes<'_>, table: u64, size: u64, index: u64) -> Result<ProgramHeader, ElfError> {
    let name = |field: &str| format!("{field} of program header {index}");
    let at = table_entry(bytes, table, index, size, &name("the row"))?;
    let kind = bytes.u32(at, &name("p_type"))?;
    Ok((at, kind, bytes.u64(at + 8, &name("p_offset"))?, bytes.u64(at + 32, &name("p_filesz"))?))
}

/// `.riscv.attributes` by its program header, for files without sections.
fn segment_attributes<'f>(bytes: Bytes<'f>, sections: &Sections) -> Option<&'f [u8]> {
    let (table, size, count) = program_headers(bytes, sections).ok()?;
    let mut headers = (0..count).map_while(|index| program_header(bytes, table, size, index).ok());
    let (_, _, offset, filesz) = headers.find(|&(_, kind, ..)| kind == isa::RISCV_ATTRIBUTES)?;
    bytes.slice(offset, filesz, ".riscv.attributes").ok()
}

/// How much of all segments may lie before RAM: headers.
const BEFORE_RAM: u64 = 1 << 20;

/// The entry, and what to load.
fn segments<'f>(bytes: Bytes<'f>, sections: &Sections, ram: Range<u64>) -> Result<(u64, Vec<Segment<'f>>), ElfError> {
    let e_entry = bytes.u64(0x18, "e_entry")?;
    let mut entry = e_entry;
    let mut segments = Vec::new();
    let (table, size, count) = program_headers(bytes, sections)?;
    // Both tables of numbers that no program needs.
    let headers = table.saturating_add(size.saturating_mul(count)).max(64);
    // Segments that take more than there is lie over each other, and thousands of them would take as many times as long.
    let most = (ram.end - ram.start).saturating_add(BEFORE_RAM);
    let mut all = 0u64;
    for index in 0..count {
        let name = |field: &str| format!("{field} of program header {index}");
        let (at, kind, mut offset, mut filesz) = program_header(bytes, table, size, index)?;
        if kind != PT_LOAD {
            continue;
        }
        let mut memory = bytes.u64(at + 40, &name("p_memsz"))?;
        if memory < filesz {
            return Err(ElfError::Field {
                field: name("p_memsz"),
                offset: at + 40,
                found: format!("{memory:#x}"),
                expected: "at least p_filesz",
            });
        }
        // An empty segment loads nothing; where it points does not matter.
        if memory == 0 {
            continue;
        }
        all = all.saturating_add(memory);
        if all > most && memory <= most {
            return Err(ElfError::Field {
                field: name("p_memsz"),
                offset: at + 40,
                found: format!("{memory:#x}, which makes {all:#x} in all"),
                expected: "segments that do not take more than there is RAM",
            });
        }
        let mut vaddr = bytes.u64(at + 16, &name("p_vaddr"))?;
        let mut base = bytes.u64(at + 24, &name("p_paddr"))?;
        let outside = |base: u64, memory: u64| ElfError::SegmentOutsideRam {
            index,
            start: base,
            len: memory,
            offset: at,
            ram: ram.clone(),
        };
        let end = base.checked_add(memory).ok_or_else(|| outside(base, memory))?;
        if base < ram.start {
            // The whole segment, or what lies before RAM.
            let before = memory.min(ram.start - base);
            if before > filesz || !only_headers(bytes, offset, before, headers) {
                return Err(outside(base, memory));
            }
            if before == memory {
                continue;
            }
            (offset, filesz, memory) = (offset + before, filesz - before, memory - before);
            (vaddr, base) = (vaddr.wrapping_add(before), base + before);
        }
        if end > ram.end || base >= ram.end {
            return Err(outside(base, memory));
        }
        let data = bytes.slice(offset, filesz, &format!("segment {index}"))?;
        // A file linked to run at virtual addresses: start where that code was put.
        if bytes.u32(at + 4, &name("p_flags"))? & PF_X != 0 && e_entry >= vaddr && e_entry - vaddr < memory {
            entry = base + (e_entry - vaddr);
        }
        segments.push(Segment { base, bytes: data, memory });
    }
    if segments.is_empty() {
        return Err(ElfError::Field {
            field: "e_phnum".into(),
            offset: 0x38,
            found: format!("{count} without a PT_LOAD segment in RAM"),
            expected: "something to load",
        });
    }
    Ok((entry, segments))
}

/// Are these bytes of the file the headers and zeroes behind them?
fn only_headers(bytes: Bytes<'_>, offset: u64, len: u64, headers: u64) -> bool {
    let Ok(part) = bytes.slice(offset, len, "a segment") else { return false };
    let own = headers.saturating_sub(offset).min(len) as usize;
    part[own..].iter().all(|&byte| byte == 0)
}

fn odd_entry(entry: u64) -> ElfError {
    ElfError::Field { field: "e_entry".into(), offset: 0x18, found: format!("{entry:#x}"), expected: "an even address" }
}

/// `e_ident`, `e_type`, `e_machine`, `e_version`: is it ours at all?
fn check_header(bytes: Bytes<'_>) -> Result<(), ElfError> {
    let wrong = |field: &str, offset: u64, found: String, expected: &'static str| {
        Err(ElfError::Field { field: field.into(), offset, found, expected })
    };
    let ident = bytes.slice(0, 16, "e_ident")?;
    let big = ident[5] == 2;
    // What it is for comes first: the other differences follow from it. Both classes have the field in one place.
    let machine = bytes.u16(0x12, "e_machine")?;
    let machine = if big && machine != EM_RISCV { machine.swap_bytes() } else { machine };
    if machine != EM_RISCV {
        let name = MACHINES.iter().find(|(number, _)| *number == machine).map_or("", |(_, name)| name);
        let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
        return wrong("e_machine", 0x12, format!("{machine}{name}"), "243 (RISC-V)");
    }
    match ident[4] {
        2 => {}
        1 => return wrong("e_ident[EI_CLASS]", 4, "1 (ELF32)".into(), "2 (ELF64)"),
        other => return wrong("e_ident[EI_CLASS]", 4, other.to_string(), "2 (ELF64)"),
    }
    match ident[5] {
        1 => {}
        2 => return wrong("e_ident[EI_DATA]", 5, "2 (big-endian)".into(), "1 (little-endian)"),
        other => return wrong("e_ident[EI_DATA]", 5, other.to_string(), "1 (little-endian)"),
    }
    if ident[6] != 1 {
        return wrong("e_ident[EI_VERSION]", 6, ident[6].to_string(), "1");
    }
    match bytes.u16(0x10, "e_type")? {
        // A static position-independent file runs where its addresses say, like any other.
        2 | 3 => {}
        1 => return wrong("e_type", 0x10, "1 (relocatable: link it first)".into(), "2 (executable)"),
        4 => return wrong("e_type", 0x10, "4 (core dump)".into(), "2 (executable)"),
        other => return wrong("e_type", 0x10, other.to_string(), "2 (executable)"),
    }
    match bytes.u32(0x14, "e_version")? {
        1 => Ok(()),
        other => wrong("e_version", 0x14, other.to_string(), "1"),
    }
}

const EM_RISCV: u16 = 243;

/// Machines whose programs come by now and then.
const MACHINES: &[(u16, &str)] = &[
    (0, "none"),
    (2, "SPARC"),
    (3, "x86"),
    (4, "Motorola 68000"),
    (8, "MIPS"),
    (20, "PowerPC"),
    (21, "64-bit PowerPC"),
    (22, "IBM S/390"),
    (40, "ARM"),
    (42, "SuperH"),
    (43, "SPARC V9"),
    (50, "IA-64"),
    (62, "x86-64"),
    (83, "AVR"),
    (92, "OpenRISC"),
    (93, "ARC"),
    (94, "Xtensa"),
    (105, "MSP430"),
    (164, "Hexagon"),
    (183, "AArch64"),
    (189, "MicroBlaze"),
    (195, "ARC v2"),
    (224, "AMD GPU"),
    (247, "BPF"),
    (252, "C-SKY"),
    (258, "LoongArch"),
];

/// Size of a table's rows: at least what the specification has, when there are rows.
pub(super) fn entry_size(bytes: Bytes<'_>, offset: u64, field: &str, least: u16, rows: u64) -> Result<u64, ElfError> {
    let size = bytes.u16(offset, field)?;
    if rows != 0 && size < least {
        let expected = if least == 56 { "at least 56" } else { "at least 64" };
        return Err(ElfError::Field { field: field.into(), offset, found: size.to_string(), expected });
    }
    Ok(u64::from(size))
}

/// Offset of a row, whole inside the file, so that adding a field's offset to it cannot overflow.
pub(super) fn table_entry(bytes: Bytes<'_>, table: u64, index: u64, size: u64, what: &str) -> Result<u64, ElfError> {
    let at = table.saturating_add(index.saturating_mul(size));
    bytes.slice(at, size, what)?;
    Ok(at)
}
