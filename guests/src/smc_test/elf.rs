//! A guest as an ELF64 file: two segments, the program and its `tohost` words, and the symbols of those words.
//!
//! ```text
//!   header │ 2 program headers │ program │ 16 bytes │ .symtab │ .strtab │ .shstrtab │ 6 section headers
//! ```

use crate::programs::GuestImage;
use crate::programs::smc::TOHOST;

/// `tohost` and `fromhost`, eight bytes each.
const WORDS: u64 = 16;
const NAMES: &[u8] = b"\0_start\0tohost\0fromhost\0";
const SECTIONS: &[u8] = b"\0.text\0.tohost\0.symtab\0.strtab\0.shstrtab\0";

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;
const SYMBOL: u64 = 24;
/// The program's offset in the file: congruent with its address, as linkers do it.
const TEXT: u64 = 0x1000;

/// The file of a program that ends through `tohost`, at [`TOHOST`].
pub fn elf(image: &GuestImage) -> Vec<u8> {
    let len = image.bytes.len() as u64;
    let words_at = (TEXT + len).next_multiple_of(0x1000);
    let symbols_at = words_at + WORDS;
    let symbols: [(u32, u16, u64, u64); 4] = [
        (0, 0, 0, 0),
        (at(NAMES, b"_start"), 1, image.entry, 0),
        (at(NAMES, b"tohost"), 2, TOHOST, 8),
        (at(NAMES, b"fromhost"), 2, TOHOST + 8, 8),
    ];
    let names_at = symbols_at + symbols.len() as u64 * SYMBOL;
    let sections_at = names_at + NAMES.len() as u64;
    let table_at = (sections_at + SECTIONS.len() as u64).next_multiple_of(8);

    let mut out = File(Vec::new());
    out.bytes(b"\x7fELF\x02\x01\x01").pad_to(16);
    out.half(2).half(243).word(1); // an executable for RISC-V
    out.double(image.entry).double(HEADER).double(table_at);
    out.word(1); // it has compressed instructions, no floating point
    out.half(HEADER as u16).half(PROGRAM_HEADER as u16).half(2).half(SECTION_HEADER as u16).half(6).half(5);
    for (offset, addr, len) in [(TEXT, image.load_addr, len), (words_at, TOHOST, WORDS)] {
        out.word(1).word(7); // to be loaded; read, written and run
        out.double(offset).double(addr).double(addr).double(len).double(len).double(0x1000);
    }
    out.pad_to(TEXT).bytes(&image.bytes);
    out.pad_to(symbols_at);
    for (name, section, value, size) in symbols {
        let info = if section == 0 { 0 } else { 0x10 }; // global
        out.word(name).half(info).half(section).double(value).double(size);
    }
    out.bytes(NAMES).bytes(SECTIONS).pad_to(table_at);
    out.pad_to(table_at + SECTION_HEADER); // the null section
    let strings = SECTIONS.len() as u64;
    for (name, kind, flags, addr, offset, size, link, info, align, entry) in [
        (".text", 1, 7, image.load_addr, TEXT, len, 0, 0, 4, 0),
        (".tohost", 1, 3, TOHOST, words_at, WORDS, 0, 0, 8, 0),
        (".symtab", 2, 0, 0, symbols_at, symbols.len() as u64 * SYMBOL, 4, 1, 8, SYMBOL),
        (".strtab", 3, 0, 0, names_at, NAMES.len() as u64, 0, 0, 1, 0),
        (".shstrtab", 3, 0, 0, sections_at, strings, 0, 0, 1, 0),
    ] {
        out.word(at(SECTIONS, name.as_bytes())).word(kind).double(flags).double(addr).double(offset).double(size);
        out.word(link).word(info).double(align).double(entry);
    }
    out.0
}

/// Where a whole name starts in a table of names.
fn at(table: &[u8], name: &[u8]) -> u32 {
    let whole = |at: &usize| table[*at..].starts_with(name) && table[at - 1] == 0 && table[at + name.len()] == 0;
    (1..table.len() - name.len()).find(whole).unwrap_or(0) as u32
}

/// Little-endian fields, one after the other.
struct File(Vec<u8>);

impl File {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn half(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn word(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn double(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn pad_to(&mut self, offset: u64) -> &mut Self {
        debug_assert!(self.0.len() as u64 <= offset);
        self.0.resize(offset as usize, 0);
        self
    }
}
