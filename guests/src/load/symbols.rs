//! Addresses → names, for logs and exit messages.

/// The symbols of a loaded file, sorted by address.
#[derive(Debug, Clone, Default)]
pub struct SymbolTable {
    /// `(address, size, name)`; size 0 means "up to the next symbol".
    entries: Vec<(u64, u64, String)>,
}

impl SymbolTable {
    /// A table of `(address, size, name)` rows in any order.
    pub fn new(mut entries: Vec<(u64, u64, String)>) -> Self {
        // Of two names at one address the sized one wins: it is a function, the other a label.
        entries.sort_by(|a, b| (a.0, core::cmp::Reverse(a.1), &a.2).cmp(&(b.0, core::cmp::Reverse(b.1), &b.2)));
        entries.dedup_by(|later, first| later.0 == first.0 && later.1 == first.1 && later.2 == first.2);
        SymbolTable { entries }
    }

    /// The address of `name`.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.entries.iter().find(|(_, _, n)| n == name).map(|&(addr, _, _)| addr)
    }

    /// `name` or `name+0x12` for an address inside a symbol.
    pub fn resolve(&self, addr: u64) -> Option<String> {
        let after = self.entries.partition_point(|(start, _, _)| *start <= addr);
        let start = self.entries[..after].last()?.0;
        let first = self.entries.partition_point(|(at, _, _)| *at < start);
        let (start, size, name) = &self.entries[first];
        if *size != 0 && addr - start >= *size {
            return None;
        }
        Some(if addr == *start { name.clone() } else { format!("{name}+{:#x}", addr - start) })
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No symbols at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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
}
