//! ELF files as tests want them: a good one, and every way to spoil it.

/// A section header table needs all of its parts; this is what a file can have.
#[derive(Clone)]
pub struct Elf {
    /// `e_entry`.
    pub entry: u64,
    /// `e_flags`.
    pub flags: u32,
    /// `(p_vaddr, p_paddr, bytes, p_memsz)` of each PT_LOAD.
    pub segments: Vec<(u64, u64, Vec<u8>, u64)>,
    /// `(name, address, size)`.
    pub symbols: Vec<(&'static str, u64, u64)>,
    /// The arch string of `.riscv.attributes`.
    pub arch: Option<&'static str>,
    /// `(name, sh_addr, bytes)` of one more section.
    pub section: Option<(&'static str, u64, Vec<u8>)>,
}

impl Elf {
    /// One segment with this code, entered at its start.
    pub fn new(base: u64, code: Vec<u8>) -> Elf {
        let len = code.len() as u64;
        Elf {
            entry: base,
            flags: 1,
            segments: vec![(base, base, code, len)],
            symbols: Vec::new(),
            arch: None,
            section: None,
        }
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; 64 + 56 * self.segments.len()];
        let mut segments = Vec::new();
        for (vaddr, paddr, bytes, memsz) in &self.segments {
            segments.push((out.len(), *vaddr, *paddr, bytes.len(), *memsz));
            out.extend(bytes);
        }
        let mut sections: Vec<[u64; 7]> = vec![[0; 7]]; // type, flags, addr, offset, size, link, entsize
        if let Some((offset, vaddr, _, len, _)) = segments.first() {
            sections.push([1, 6, *vaddr, *offset as u64, *len as u64, 0, 0]);
        }
        if let Some(arch) = self.arch {
            let section = attributes(arch);
            sections.push([0x7000_0003, 0, 0, out.len() as u64, section.len() as u64, 0, 0]);
            out.extend(section);
        }
        if !self.symbols.is_empty() {
            let mut names = vec![0u8];
            let table_at = out.len() as u64;
            out.extend([0; 24]);
            for (name, addr, size) in &self.symbols {
                out.extend((names.len() as u32).to_le_bytes());
                out.extend([0x12, 0]); // global, function
                out.extend(1u16.to_le_bytes());
                out.extend(addr.to_le_bytes());
                out.extend(size.to_le_bytes());
                names.extend(name.bytes());
                names.push(0);
            }
            let link = sections.len() as u64 + 1;
            sections.push([2, 0, 0, table_at, out.len() as u64 - table_at, link, 24]);
            sections.push([3, 0, 0, out.len() as u64, names.len() as u64, 0, 0]);
            out.extend(names);
        }
        let (mut names, mut shstrndx) = (vec![0; sections.len()], 0);
        if let Some((name, addr, bytes)) = &self.section {
            sections.push([1, 0, *addr, out.len() as u64, bytes.len() as u64, 0, 0]);
            out.extend(bytes);
            shstrndx = sections.len();
            sections.push([3, 0, 0, out.len() as u64, name.len() as u64 + 2, 0, 0]);
            names.extend([1, 0]);
            out.push(0);
            out.extend(name.bytes());
            out.push(0);
        }
        names.resize(sections.len(), 0u32);
        let table = out.len() as u64;
        for ([kind, flags, addr, offset, size, link, entsize], name) in sections.iter().zip(names) {
            out.extend(name.to_le_bytes());
            out.extend((*kind as u32).to_le_bytes());
            for field in [flags, addr, offset, size] {
                out.extend(field.to_le_bytes());
            }
            out.extend((*link as u32).to_le_bytes());
            out.extend(0u32.to_le_bytes());
            out.extend(1u64.to_le_bytes());
            out.extend(entsize.to_le_bytes());
        }

        put(&mut out, 0, b"\x7fELF\x02\x01\x01");
        put(&mut out, 0x10, &2u16.to_le_bytes());
        put(&mut out, 0x12, &243u16.to_le_bytes());
        put(&mut out, 0x14, &1u32.to_le_bytes());
        put(&mut out, 0x18, &self.entry.to_le_bytes());
        put(&mut out, 0x20, &64u64.to_le_bytes());
        put(&mut out, 0x28, &table.to_le_bytes());
        put(&mut out, 0x30, &self.flags.to_le_bytes());
        for (at, value) in
            [(0x34, 64), (0x36, 56), (0x38, segments.len()), (0x3a, 64), (0x3c, sections.len()), (0x3e, shstrndx)]
        {
            put(&mut out, at, &(value as u16).to_le_bytes());
        }
        for (n, (offset, vaddr, paddr, len, memsz)) in segments.into_iter().enumerate() {
            let at = 64 + 56 * n;
            put(&mut out, at, &1u32.to_le_bytes());
            put(&mut out, at + 4, &7u32.to_le_bytes());
            for (n, field) in [offset as u64, vaddr, paddr, len as u64, memsz, 1].into_iter().enumerate() {
                put(&mut out, at + 8 + 8 * n, &field.to_le_bytes());
            }
        }
        out
    }
}

/// Overwrites bytes of a file.
pub fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn attributes(arch: &str) -> Vec<u8> {
    let mut body = vec![4, 16, 5];
    body.extend(arch.bytes());
    body.push(0);
    let part = 5 + body.len() as u32;
    let mut out = b"A".to_vec();
    out.extend((part + 10).to_le_bytes());
    out.extend(b"riscv\0\x01");
    out.extend(part.to_le_bytes());
    out.extend(body);
    out
}
