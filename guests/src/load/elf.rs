//! ELF64 RISC-V files, read by hand: a wrong field is reported by its name and its offset in the file.
//!
//! ```text
//!   0x00 e_ident  class, data, version     checked in this order: each later field depends on the earlier
//!   0x12 e_machine  0x18 e_entry  0x20 e_phoff ─▶ program headers ─▶ PT_LOAD segments, by p_paddr
//!   0x30 e_flags    float ABI, RVE         0x28 e_shoff ─▶ sections ─▶ symbols, .riscv.attributes
//! ```
//!
//! What is needed to run (header, program headers, segments) must be right. Sections are a convenience, so a missing
//! table is fine; one that points outside the file is not, since the file was cut then.

use core::ops::Range;

use super::bytes::Bytes;
use super::isa::{self, Missing};
use super::symbols::SymbolTable;

const PT_LOAD: u32 = 1;
const RISCV_ATTRIBUTES: u32 = 0x7000_0003; // PT_ and SHT_ share the number.
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SHF_EXECINSTR: u64 = 4;
const PF_X: u32 = 1;

/// Why a file is not one we can run. Every variant names the field and where in the file it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The magic number is another.
    #[error(
        "not an ELF file: e_ident at offset 0x0 starts with {found:02x?}, not with 7f 45 4c 46 (raw images need --load-addr)"
    )]
    Magic {
        /// The first bytes, four at most.
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
         {:#x}..{:#x}", ram.start, ram.end
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
    #[error("e_entry {entry:#x} at offset 0x18 is outside RAM {:#x}..{:#x}", ram.start, ram.end)]
    EntryOutsideRam {
        /// The entry point.
        entry: u64,
        /// The RAM there is.
        ram: Range<u64>,
    },
    /// The program needs an ISA extension that is not there.
    #[error("needs the ISA extension {name}, which is not there ({field}); this machine is RV64IMAC_Zicsr_Zifencei")]
    Extension {
        /// The extension.
        name: String,
        /// The field that says so.
        field: String,
    },
    /// The attributes section is malformed.
    #[error(".riscv.attributes: {what} at offset {offset:#x} is malformed")]
    Attributes {
        /// What is wrong.
        what: &'static str,
        /// Where in the file.
        offset: u64,
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
pub struct ElfFile<'f> {
    /// Where execution starts (physical).
    pub entry: u64,
    /// What to load, in the order of the program headers.
    pub segments: Vec<Segment<'f>>,
    /// Names for logs.
    pub symbols: SymbolTable,
}

/// One section header, as far as we read it.
struct Section {
    header: u64,
    kind: u32,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
    link: u32,
}

/// Reads and checks a whole file against the RAM it is to be loaded into.
pub fn parse(file: &[u8], ram: Range<u64>) -> Result<ElfFile<'_>, ElfError> {
    let bytes = Bytes(file);
    if !file.starts_with(b"\x7fELF") {
        return Err(ElfError::Magic { found: file[..file.len().min(4)].to_vec() });
    }
    check_header(bytes)?;
    let e_entry = bytes.u64(0x18, "e_entry")?;
    isa::check_flags(bytes.u32(0x30, "e_flags")?)?;

    let mut entry = e_entry;
    let mut segments = Vec::new();
    let mut attributes = None;
    let phoff = bytes.u64(0x20, "e_phoff")?;
    let phentsize = entry_size(bytes, 0x36, "e_phentsize", 56, bytes.u16(0x38, "e_phnum")?)?;
    for index in 0..u64::from(bytes.u16(0x38, "e_phnum")?) {
        let name = |field: &str| format!("{field} of program header {index}");
        let at = table_entry(bytes, phoff, index, phentsize, &name("the row"))?;
        let kind = bytes.u32(at, &name("p_type"))?;
        let offset = bytes.u64(at + 8, &name("p_offset"))?;
        let filesz = bytes.u64(at + 32, &name("p_filesz"))?;
        if kind == RISCV_ATTRIBUTES {
            attributes = Some((offset, bytes.slice(offset, filesz, ".riscv.attributes")?));
        }
        if kind != PT_LOAD {
            continue;
        }
        let memory = bytes.u64(at + 40, &name("p_memsz"))?;
        if memory < filesz {
            return Err(ElfError::Field {
                field: name("p_memsz"),
                offset: at + 40,
                found: format!("{memory:#x}"),
                expected: "at least p_filesz",
            });
        }
        let vaddr = bytes.u64(at + 16, &name("p_vaddr"))?;
        let base = bytes.u64(at + 24, &name("p_paddr"))?;
        let inside = base >= ram.start && base.checked_add(memory).is_some_and(|end| end <= ram.end);
        // An empty segment loads nothing; where it points does not matter.
        if memory == 0 {
            continue;
        }
        if !inside {
            return Err(ElfError::SegmentOutsideRam { index, start: base, len: memory, offset: at, ram });
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
            found: format!("{} without a PT_LOAD segment", bytes.u16(0x38, "e_phnum")?),
            expected: "something to load",
        });
    }
    if !ram.contains(&entry) {
        return Err(ElfError::EntryOutsideRam { entry, ram });
    }
    if entry % 2 != 0 {
        return Err(odd_entry(entry));
    }

    let sections = sections(bytes)?;
    if let Some(section) = sections.iter().find(|s| s.kind == RISCV_ATTRIBUTES) {
        attributes = Some((section.offset, bytes.slice(section.offset, section.size, ".riscv.attributes")?));
    }
    if let Some((at, section)) = attributes {
        check_attributes(bytes, at, section, &sections)?;
    }
    Ok(ElfFile { entry, segments, symbols: symbols(bytes, &sections)? })
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
    match bytes.u16(0x12, "e_machine")? {
        243 => {}
        other => {
            let name = match other {
                3 => " (x86)",
                8 => " (MIPS)",
                40 => " (ARM)",
                62 => " (x86-64)",
                183 => " (AArch64)",
                258 => " (LoongArch)",
                _ => "",
            };
            return wrong("e_machine", 0x12, format!("{other}{name}"), "243 (RISC-V)");
        }
    }
    match bytes.u16(0x10, "e_type")? {
        // A static position-independent file runs where its addresses say, like any other.
        2 | 3 => {}
        1 => return wrong("e_type", 0x10, "1 (relocatable)".into(), "2 (executable)"),
        4 => return wrong("e_type", 0x10, "4 (core dump)".into(), "2 (executable)"),
        other => return wrong("e_type", 0x10, other.to_string(), "2 (executable)"),
    }
    match bytes.u32(0x14, "e_version")? {
        1 => Ok(()),
        other => wrong("e_version", 0x14, other.to_string(), "1"),
    }
}

/// Size of a table's rows: at least what the specification has, when there are rows.
fn entry_size(bytes: Bytes<'_>, offset: u64, field: &str, least: u16, rows: u16) -> Result<u64, ElfError> {
    let size = bytes.u16(offset, field)?;
    if rows != 0 && size < least {
        let expected = if least == 56 { "at least 56" } else { "at least 64" };
        return Err(ElfError::Field { field: field.into(), offset, found: size.to_string(), expected });
    }
    Ok(u64::from(size))
}

/// Offset of a row, whole inside the file, so that adding a field's offset to it cannot overflow.
fn table_entry(bytes: Bytes<'_>, table: u64, index: u64, size: u64, what: &str) -> Result<u64, ElfError> {
    // index and size come from 16-bit fields: the product fits.
    let at = table.saturating_add(index * size);
    bytes.slice(at, size, what)?;
    Ok(at)
}

fn sections(bytes: Bytes<'_>) -> Result<Vec<Section>, ElfError> {
    let table = bytes.u64(0x28, "e_shoff")?;
    let rows = bytes.u16(0x3c, "e_shnum")?;
    if table == 0 {
        return Ok(Vec::new());
    }
    let size = entry_size(bytes, 0x3a, "e_shentsize", 64, rows)?;
    (0..u64::from(rows))
        .map(|index| {
            let name = |field: &str| format!("{field} of section header {index}");
            let at = table_entry(bytes, table, index, size, &name("the row"))?;
            Ok(Section {
                header: at,
                kind: bytes.u32(at + 4, &name("sh_type"))?,
                flags: bytes.u64(at + 8, &name("sh_flags"))?,
                addr: bytes.u64(at + 16, &name("sh_addr"))?,
                offset: bytes.u64(at + 24, &name("sh_offset"))?,
                size: bytes.u64(at + 32, &name("sh_size"))?,
                link: bytes.u32(at + 40, &name("sh_link"))?,
            })
        })
        .collect()
}

fn check_attributes(file: Bytes<'_>, at: u64, section: &[u8], sections: &[Section]) -> Result<(), ElfError> {
    let Some(arch) = isa::arch_of(section, at)? else { return Ok(()) };
    let listed = format!("arch \"{arch}\" in .riscv.attributes at offset {at:#x}");
    match isa::check_arch(&arch) {
        Missing::Nothing => Ok(()),
        Missing::Extension(name) => Err(ElfError::Extension { name, field: listed }),
        Missing::Float(name) => {
            let mut code = sections.iter().filter(|s| s.flags & SHF_EXECINSTR != 0 && s.kind != SHT_NOBITS).peekable();
            if code.peek().is_none() {
                return Err(ElfError::Extension { name: name.into(), field: listed });
            }
            for section in code {
                let bytes = file.slice(section.offset, section.size, "a section of code")?;
                if let Some(offset) = isa::first_float_insn(bytes) {
                    let addr = section.addr.wrapping_add(offset as u64);
                    let field = format!("{listed}; first used by the instruction at address {addr:#x}");
                    return Err(ElfError::Extension { name: name.into(), field });
                }
            }
            log::info!("the arch string lists {name}, no code uses it");
            Ok(())
        }
    }
}

fn symbols(bytes: Bytes<'_>, sections: &[Section]) -> Result<SymbolTable, ElfError> {
    let mut rows = Vec::new();
    for table in sections.iter().filter(|s| s.kind == SHT_SYMTAB) {
        let names = sections.get(table.link as usize).ok_or_else(|| ElfError::Field {
            field: "sh_link of the symbol table".into(),
            offset: table.header + 40,
            found: table.link.to_string(),
            expected: "the number of a section",
        })?;
        let names = Bytes(bytes.slice(names.offset, names.size, "the symbol names")?);
        let table = Bytes(bytes.slice(table.offset, table.size, "the symbol table")?);
        for row in table.0.chunks_exact(24).map(Bytes) {
            let (info, section) = (row.0[4], row.u16(6, "st_shndx")?);
            // Objects, functions and labels that are defined; no files, no sections, no mapping symbols ($x, $d).
            if info & 0xf > 2 || section == 0 {
                continue;
            }
            let name = names.text(u64::from(row.u32(0, "st_name")?)).unwrap_or("");
            if name.is_empty() || name.starts_with('$') || name.starts_with(".L") {
                continue;
            }
            rows.push((row.u64(8, "st_value")?, row.u64(16, "st_size")?, name.to_owned()));
        }
    }
    Ok(SymbolTable::new(rows))
}
