//! Addresses → names, for logs and exit messages.
//!
//! Names stay in the string table of the file, and a symbol is a place in it: ten thousand symbols may share one name of
//! a megabyte, and cost what the file is long. Absolute symbols are numbers (the size of a stack, say); they are
//! found by name, but no address is called after them.

use core::cmp::Reverse;
use core::fmt::{self, Debug, Formatter};

/// A longer name is cut where it is shown.
const SHOWN: usize = 1024;
/// Bytes after a symbol without a size that are called after it, at most: the last label of a file would name all memory above.
const REACH: u64 = 1 << 20;

#[derive(Clone, Copy)]
struct Symbol {
    addr: u64,
    /// 0 means "up to the next symbol", at most `REACH`.
    size: u64,
    /// Its name in the strings.
    start: usize,
    len: usize,
}

/// The symbols of a loaded file.
#[derive(Clone, Default)]
pub struct SymbolTable {
    strings: Vec<u8>,
    /// Sorted by address.
    entries: Vec<Symbol>,
    absolute: Vec<Symbol>,
}

impl Debug for SymbolTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("SymbolTable").field("symbols", &self.len()).finish_non_exhaustive()
    }
}

impl SymbolTable {
    /// A table of `(address, size, name)` rows in any order.
    pub fn new(rows: Vec<(u64, u64, String)>) -> Self {
        let mut table = SymbolTable::default();
        for (addr, size, name) in rows {
            let (start, len) = (table.strings.len(), name.len());
            table.strings.extend(name.bytes());
            table.entries.push(Symbol { addr, size, start, len });
        }
        table.sort();
        table
    }

    fn sort(&mut self) {
        // Of two names at one address the sized one wins: it is a function, the other a label. Of two that are alike,
        // the first in the file.
        self.entries.sort_by_key(|s| (s.addr, Reverse(s.size)));
    }

    fn name(&self, symbol: &Symbol) -> &[u8] {
        &self.strings[symbol.start..symbol.start + symbol.len]
    }

    /// The address of `name`, or the number that it is.
    pub fn address(&self, name: &str) -> Option<u64> {
        let mut all = self.entries.iter().chain(&self.absolute);
        all.find(|symbol| self.name(symbol) == name.as_bytes()).map(|symbol| symbol.addr)
    }

    /// `name` or `name+0x12` for an address inside a symbol. What a terminal would obey in it is shown as an escape.
    pub fn resolve(&self, addr: u64) -> Option<String> {
        let after = self.entries.partition_point(|symbol| symbol.addr <= addr);
        let start = self.entries[..after].last()?.addr;
        let first = self.entries.partition_point(|symbol| symbol.addr < start);
        let symbol = &self.entries[first];
        let offset = addr - symbol.addr;
        if offset >= if symbol.size != 0 { symbol.size } else { REACH } {
            return None;
        }
        let name = self.name(symbol);
        let mut text = String::new();
        for c in String::from_utf8_lossy(&name[..name.len().min(SHOWN)]).chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        if name.len() > SHOWN {
            text.push_str("...");
        }
        if offset != 0 {
            text.push_str(&format!("+{offset:#x}"));
        }
        Some(text)
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.entries.len() + self.absolute.len()
    }

    /// No symbols at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Symbol tables while they are read.
#[derive(Default)]
pub(super) struct Tables(SymbolTable);

/// Symbols whose names lie in one string table.
pub(super) struct Names<'t> {
    table: &'t mut SymbolTable,
    base: usize,
    /// Where its strings end: all zero bytes, in order.
    ends: Vec<usize>,
}

impl Tables {
    /// The string table for the symbols that follow.
    pub fn strings(&mut self, strings: &[u8]) -> Names<'_> {
        let base = self.0.strings.len();
        self.0.strings.extend_from_slice(strings);
        let zeroes = strings.iter().enumerate().filter(|&(_, &byte)| byte == 0);
        let ends = zeroes.map(|(at, _)| base + at).collect();
        Names { table: &mut self.0, base, ends }
    }

    /// The table of all.
    pub fn finish(self) -> SymbolTable {
        let Tables(mut table) = self;
        table.sort();
        table
    }
}

impl Names<'_> {
    /// A symbol whose name starts there in the string table. Left out are those without a name or with one of the
    /// assembler's own.
    pub fn add(&mut self, name: u32, addr: u64, size: u64, absolute: bool) {
        let start = self.base.saturating_add(name as usize);
        let Some(&end) = self.ends.get(self.ends.partition_point(|&end| end < start)) else { return };
        let name = &self.table.strings[start..end];
        if name.is_empty() || name.starts_with(b"$") || name.starts_with(b".L") {
            return;
        }
        let symbol = Symbol { addr, size, start, len: end - start };
        if absolute { self.table.absolute.push(symbol) } else { self.table.entries.push(symbol) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_inside_a_symbol_gets_its_name_and_offset() {
        let table = SymbolTable::new(vec![
            (0x200, 0x10, "sized".into()),
            (0x100, 0, "label".into()),
            (0x200, 0, "alias".into()),
        ]);
        assert_eq!(table.resolve(0x0ff), None);
        assert_eq!(table.resolve(0x100).as_deref(), Some("label"));
        assert_eq!(table.resolve(0x1ff).as_deref(), Some("label+0xff"));
        assert_eq!(table.resolve(0x204).as_deref(), Some("sized+0x4"));
        assert_eq!(table.resolve(0x210), None);
        assert_eq!(table.address("alias"), Some(0x200));
    }

    #[test]
    fn an_address_far_above_the_last_label_has_no_name() {
        let table = SymbolTable::new(vec![(0x8000_0000, 0, "end".into())]);
        assert_eq!(table.resolve(0x8000_0010).as_deref(), Some("end+0x10"));
        assert_eq!(table.resolve(0x1_0000_0000), None);
    }

    #[test]
    fn names_are_places_in_the_string_table_and_end_at_its_zeroes() {
        let mut tables = Tables::default();
        let mut names = tables.strings(b"\0main\0\xff\xfe\0open");
        names.add(1, 0x100, 0, false);
        names.add(2, 0x200, 0, false);
        names.add(6, 0x300, 0, false);
        names.add(9, 0x400, 0, false);
        names.add(10, 0x500, 0, false);
        names.add(u32::MAX, 0x600, 0, false);
        let mut second = tables.strings(b"late\0");
        second.add(0, 0x700, 0, true);
        let table = tables.finish();
        let at = |addr| table.resolve(addr);
        assert_eq!((at(0x100).as_deref(), at(0x200).as_deref()), (Some("main"), Some("ain")));
        assert_eq!(table.len(), 4, "no name, no end, outside: no symbol");
        assert_eq!(at(0x700).as_deref(), Some("\u{fffd}\u{fffd}+0x400"), "an absolute symbol names no address");
        assert_eq!(table.address("late"), Some(0x700));
    }

    #[test]
    fn a_name_gives_a_terminal_no_orders() {
        let name = "a\u{1b}[2J\r\n\u{9b}31m\u{e9}";
        let table = SymbolTable::new(vec![(0x100, 0, name.into())]);
        assert_eq!(table.resolve(0x100).as_deref(), Some("a\\u{1b}[2J\\r\\n\\u{9b}31m\u{e9}"));
        assert_eq!(table.address(name), Some(0x100), "it is found by the name that it has");
    }

    #[test]
    fn a_name_that_fills_a_screen_is_cut_where_it_is_shown() {
        let long = "x".repeat(SHOWN + 1);
        let table = SymbolTable::new(vec![(0x100, 0, long.clone())]);
        assert_eq!(table.resolve(0x108), Some("x".repeat(SHOWN) + "...+0x8"));
        assert_eq!(table.address(&long), Some(0x100));
    }
}
