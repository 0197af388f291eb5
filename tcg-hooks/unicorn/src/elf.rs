//! As much of ELF64 as a bare-metal guest needs: where its segments go and where it starts.

/// What a program wants in memory.
#[derive(Debug)]
pub struct Program<'f> {
    /// The first pc.
    pub entry: u64,
    /// Physical address, bytes from the file, and the size in memory; what the bytes do not fill is zero.
    pub segments: Vec<(u64, &'f [u8], u64)>,
}

const PT_LOAD: u32 = 1;

/// Reads the headers; an error is a sentence.
pub fn parse(file: &[u8]) -> Result<Program<'_>, String> {
    let riscv = file.get(18..20) == Some(&[243, 0]);
    if file.get(..6) != Some(b"\x7fELF\x02\x01") || !riscv {
        return Err("not a little-endian ELF64 file for RISC-V".into());
    }
    let word = |at: u64| -> Result<u64, String> {
        let at = usize::try_from(at).ok();
        let bytes = at.and_then(|at| file.get(at..at.checked_add(8)?)).ok_or("a header lies outside the file")?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| "eight bytes")?))
    };
    let entry = word(24)?;
    let (table, sizes) = (word(32)?, word(54)?);
    // e_phentsize and e_phnum follow each other at 54 and 56.
    let (size, count) = (sizes & 0xffff, sizes >> 16 & 0xffff);
    let mut segments = Vec::new();
    for index in 0..count {
        let header = table.checked_add(index * size).ok_or("the program headers lie outside the file")?;
        if word(header)? as u32 != PT_LOAD {
            continue;
        }
        let (offset, physical) = (word(header + 8)?, word(header + 24)?);
        let (in_file, in_memory) = (word(header + 32)?, word(header + 40)?);
        let range =
            usize::try_from(offset).ok().zip(offset.checked_add(in_file).and_then(|end| usize::try_from(end).ok()));
        let bytes = range.and_then(|(start, end)| file.get(start..end)).ok_or("a segment lies outside the file")?;
        segments.push((physical, bytes, in_memory));
    }
    Ok(Program { entry, segments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_riscv_elf_is_refused() {
        assert!(parse(b"").is_err());
        assert!(parse(&[0x7f; 64]).is_err());
    }

    #[test]
    fn headers_outside_the_file_are_an_error_and_no_panic() {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[18] = 243;
        file[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        file[54] = 56;
        file[56] = 1;
        assert!(parse(&file).is_err());
    }
}
