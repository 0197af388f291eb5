//! Sections of an ELF file, as far as they are read: the symbol tables, `.riscv.attributes`, and the tables of frames.
//!
//! ```text
//!   e_shnum, or sh_size of section 0 if that is 0 (0xff00 sections and more)
//!   st_shndx: 0 undefined   0xfff1 absolute: a number, not a place in the program   0xffff, any other: defined
//! ```

use super::bytes::Bytes;
use super::elf::{ElfError, entry_size, table_entry};
use super::frames::{FrameSection, FrameTables};
use super::isa::RISCV_ATTRIBUTES;
use super::symbols::{SymbolTable, Tables};

const SHT_SYMTAB: u32 = 2;
const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;
/// `e_shstrndx`: the number is in `sh_link` of section 0.
const SHN_XINDEX: u16 = 0xffff;
/// `sh_type` of a section without bytes in the file, and `sh_flags` of one that is compressed.
const SHT_NOBITS: u32 = 8;
const SHF_COMPRESSED: u64 = 1 << 11;
/// Bytes of a row of a symbol table.
const SYMBOL: usize = 24;

/// One section header, as far as it is read.
struct Section {
    header: u64,
    name: u32,
    kind: u32,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
}

/// The section headers of a file; none, if it has none.
#[derive(Default)]
pub(super) struct Sections(Vec<Section>);

impl Sections {
    pub fn read(bytes: Bytes<'_>) -> Result<Sections, ElfError> {
        let table = bytes.u64(0x28, "e_shoff")?;
        if table == 0 {
            return Ok(Sections::default());
        }
        let listed = u64::from(bytes.u16(0x3c, "e_shnum")?);
        let size = entry_size(bytes, 0x3a, "e_shentsize", 64, 1)?;
        let count = match listed {
            0 => section(bytes, table, size, 0)?.size,
            listed => listed,
        };
        // Each has its row in the file, so that no number can ask for more memory than that.
        (0..count).map(|index| section(bytes, table, size, index)).collect::<Result<_, _>>().map(Sections)
    }

    /// `.riscv.attributes`, if it is there and whole.
    pub fn attributes<'f>(&self, bytes: Bytes<'f>) -> Option<&'f [u8]> {
        let section = self.0.iter().find(|s| s.kind == RISCV_ATTRIBUTES)?;
        bytes.slice(section.offset, section.size, ".riscv.attributes").ok()
    }

    /// `.eh_frame` and `.debug_frame`. Of what is missing or damaged nothing is known.
    pub fn frames(&self, bytes: Bytes<'_>) -> FrameTables {
        let section = |name: &str| {
            let section = self.named(bytes, name)?;
            let data = bytes.slice(section.offset, section.size, name).ok()?;
            let whole = section.kind != SHT_NOBITS && section.flags & SHF_COMPRESSED == 0;
            whole.then(|| FrameSection { address: section.addr, bytes: data.to_vec() })
        };
        FrameTables {
            eh_frame: section(".eh_frame").unwrap_or_default(),
            debug_frame: section(".debug_frame").unwrap_or_default(),
        }
    }

    fn named(&self, bytes: Bytes<'_>, name: &str) -> Option<&Section> {
        let strings = match bytes.u16(0x3e, "e_shstrndx").ok()? {
            SHN_XINDEX => self.0.first()?.link as usize,
            index => index.into(),
        };
        let strings = self.0.get(strings)?;
        let strings = bytes.slice(strings.offset, strings.size, "the names of sections").ok()?;
        let is = |section: &&Section| {
            let rest = strings.get(section.name as usize..).unwrap_or_default();
            rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
        };
        self.0.iter().find(is)
    }

    /// The number of program headers, where `e_phnum` has no room for it.
    pub fn extended_phnum(&self) -> Option<u64> {
        self.0.first().map(|first| first.info.into())
    }
}

fn section(bytes: Bytes<'_>, table: u64, size: u64, index: u64) -> Result<Section, ElfError> {
    let name = |field: &str| format!("{field} of section header {index}");
    let at = table_entry(bytes, table, index, size, &name("the row"))?;
    Ok(Section {
        header: at,
        name: bytes.u32(at, &name("sh_name"))?,
        flags: bytes.u64(at + 8, &name("sh_flags"))?,
        addr: bytes.u64(at + 16, &name("sh_addr"))?,
        kind: bytes.u32(at + 4, &name("sh_type"))?,
        offset: bytes.u64(at + 24, &name("sh_offset"))?,
        size: bytes.u64(at + 32, &name("sh_size"))?,
        link: bytes.u32(at + 40, &name("sh_link"))?,
        info: bytes.u32(at + 44, &name("sh_info"))?,
    })
}

/// The symbols of the symbol table: a file has one, by the specification. If it has more, they are not read: thousands
/// may claim the same bytes.
pub(super) fn symbols(bytes: Bytes<'_>, sections: &Sections) -> Result<SymbolTable, ElfError> {
    let mut tables = Tables::default();
    let Some(table) = sections.0.iter().find(|s| s.kind == SHT_SYMTAB) else { return Ok(tables.finish()) };
    let names = sections.0.get(table.link as usize).ok_or_else(|| ElfError::Field {
        field: "sh_link of the symbol table".into(),
        offset: table.header + 40,
        found: table.link.to_string(),
        expected: "the number of a section",
    })?;
    let mut names = tables.strings(bytes.slice(names.offset, names.size, "the symbol names")?);
    let table = bytes.slice(table.offset, table.size, "the symbol table")?;
    for row in table.chunks_exact(SYMBOL).map(Bytes) {
        let (info, section) = (row.0[4], row.u16(6, "st_shndx")?);
        // Objects, functions and labels that are defined; no files, no sections, no mapping symbols ($x, $d).
        if info & 0xf > 2 || section == SHN_UNDEF {
            continue;
        }
        let (name, addr, size) = (row.u32(0, "st_name")?, row.u64(8, "st_value")?, row.u64(16, "st_size")?);
        names.add(name, addr, size, section == SHN_ABS);
    }
    Ok(tables.finish())
}
