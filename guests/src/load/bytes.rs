//! Little-endian fields out of a file, each read checked against the file's end and named in the error.

use super::elf::ElfError;

/// A file's bytes.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'f>(pub &'f [u8]);

impl<'f> Bytes<'f> {
    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.0.len() as u64
    }

    /// `len` bytes at `offset`, which belong to `what`.
    pub fn slice(self, offset: u64, len: u64, what: &str) -> Result<&'f [u8], ElfError> {
        let truncated = || ElfError::Truncated { what: what.into(), offset, len, file: self.len() };
        let end = offset.checked_add(len).filter(|&end| end <= self.len()).ok_or_else(truncated)?;
        Ok(&self.0[offset as usize..end as usize])
    }

    /// A 16-bit field.
    pub fn u16(self, offset: u64, what: &str) -> Result<u16, ElfError> {
        let bytes = self.slice(offset, 2, what)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// A 32-bit field.
    pub fn u32(self, offset: u64, what: &str) -> Result<u32, ElfError> {
        let mut field = [0; 4];
        field.copy_from_slice(self.slice(offset, 4, what)?);
        Ok(u32::from_le_bytes(field))
    }

    /// A 64-bit field.
    pub fn u64(self, offset: u64, what: &str) -> Result<u64, ElfError> {
        let mut field = [0; 8];
        field.copy_from_slice(self.slice(offset, 8, what)?);
        Ok(u64::from_le_bytes(field))
    }
}
