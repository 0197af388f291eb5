//! Which ISA a file asks for, held against the one there is: RV64IMAC_Zicsr_Zifencei.
//!
//! Two fields tell: `e_flags` (the calling convention, binding) and the arch string in `.riscv.attributes` (what the
//! compiler was allowed to use). A soft-float program built for `rv64g` lists F and D and often holds not one of their
//! instructions, so for these two the code is asked; every other unknown name is an error by itself.

use super::bytes::Bytes;
use super::elf::ElfError;

const TAG_FILE: u64 = 1;
const TAG_ARCH: u64 = 5;

/// What runs here, and names that ask for nothing more than that.
const PRESENT: &[&str] = &[
    "i",
    "m",
    "a",
    "c",
    "zicsr",
    "zifencei",
    "zicntr",
    "zmmul",
    "zaamo",
    "zalrsc",
    "zca",
    // Hints: they run as the base instructions that encode them.
    "zihintpause",
    "zihintntl",
];

/// `e_flags` bits of the RISC-V psABI.
pub(super) fn check_flags(flags: u32) -> Result<(), ElfError> {
    let extension = match flags & 0x6 {
        0x2 => Some("F (single-precision float ABI)"),
        0x4 => Some("D (double-precision float ABI)"),
        0x6 => Some("Q (quad-precision float ABI)"),
        _ if flags & 0x8 != 0 => Some("RV64E (base ISA with 16 registers)"),
        _ => None,
    };
    match extension {
        Some(name) => {
            Err(ElfError::Extension { name: name.into(), field: format!("e_flags {flags:#x} at offset 0x30") })
        }
        None => Ok(()),
    }
}

/// The arch string of an attributes section, if it has one.
pub(super) fn arch_of(section: &[u8], at: u64) -> Result<Option<String>, ElfError> {
    let bad =
        |what: &'static str, offset: usize| ElfError::Attributes { what, offset: at.saturating_add(offset as u64) };
    if section.first() != Some(&b'A') {
        return Err(bad("format version is not 'A'", 0));
    }
    let mut pos = 1;
    while pos < section.len() {
        // One vendor's part: length (its own four bytes included), name, then sub-parts.
        let len = length(section, pos).ok_or_else(|| bad("length of a vendor part", pos))?;
        let part = &section[..pos + len];
        let name = pos + 4;
        let end = part[name..].iter().position(|&b| b == 0).ok_or_else(|| bad("vendor name has no end", name))?;
        let mut sub = name + end + 1;
        if &part[name..name + end] == b"riscv" {
            while sub < part.len() {
                let start = sub;
                let tag = uleb(part, &mut sub).ok_or_else(|| bad("tag of a part", start))?;
                let len = Bytes(part).u32(sub as u64, "").map_err(|_| bad("length of a part", sub))? as usize;
                // This length counts from the tag on.
                let stop = start.checked_add(len).filter(|&s| s <= part.len() && s >= sub + 4);
                let stop = stop.ok_or_else(|| bad("length of a part", sub))?;
                if tag == TAG_FILE
                    && let Some(arch) = file_arch(&part[..stop], sub + 4).ok_or_else(|| bad("an attribute", sub + 4))?
                {
                    return Ok(Some(arch));
                }
                sub = stop;
            }
        }
        pos += len;
    }
    Ok(None)
}

/// The attributes of the whole file: even tags hold a number, odd ones a string. `None`: malformed.
fn file_arch(part: &[u8], mut pos: usize) -> Option<Option<String>> {
    while pos < part.len() {
        let tag = uleb(part, &mut pos)?;
        if tag % 2 == 0 {
            uleb(part, &mut pos)?;
            continue;
        }
        let end = part[pos..].iter().position(|&b| b == 0)?;
        if tag == TAG_ARCH {
            return Some(Some(core::str::from_utf8(&part[pos..pos + end]).ok()?.into()));
        }
        pos += end + 1;
    }
    Some(None)
}

/// A 32-bit length at `pos` that stays inside `bytes` and covers itself.
fn length(bytes: &[u8], pos: usize) -> Option<usize> {
    let len = Bytes(bytes).u32(pos as u64, "").ok()? as usize;
    (len >= 4 && len <= bytes.len() - pos).then_some(len)
}

fn uleb(bytes: &[u8], pos: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*pos)?;
        *pos += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What an arch string asks for beyond what there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing.
    Nothing,
    /// Floating point, which the file may list and never use.
    Float(&'static str),
    /// This name.
    Extension(String),
}

/// Reads an arch string such as `rv64i2p1_m2p0_a2p1_c2p0_zicsr2p0`, with or without versions and underscores.
pub(super) fn check_arch(arch: &str) -> Missing {
    let lower = arch.to_ascii_lowercase();
    let Some(rest) = lower.strip_prefix("rv64") else {
        return Missing::Extension(format!("{arch} (not an RV64 base)"));
    };
    let mut float = None;
    for token in rest.split('_').filter(|t| !t.is_empty()) {
        for name in names(token) {
            match name {
                "f" | "g" => float = float.or(Some("F")),
                "d" => float = Some("D"),
                "e" => return Missing::Extension("RV64E (base ISA with 16 registers)".into()),
                // Compressed forms of F and D loads and stores: the same question again.
                "zcf" | "zcd" => float = float.or(Some("D")),
                name if PRESENT.contains(&name) => {}
                name if name.len() == 1 => return Missing::Extension(name.to_ascii_uppercase()),
                name => return Missing::Extension(capital(name)),
            }
        }
    }
    float.map_or(Missing::Nothing, Missing::Float)
}

/// Splits one token: a name of several letters, or single letters with versions between them.
fn names(token: &str) -> Vec<&str> {
    if token.starts_with(['z', 's', 'x']) {
        return vec![without_version(token)];
    }
    let bytes = token.as_bytes();
    let (mut found, mut pos) = (Vec::new(), 0);
    while pos < bytes.len() {
        if matches!(bytes[pos], b'z' | b's' | b'x') {
            found.push(without_version(&token[pos..]));
            break;
        }
        let width = token[pos..].chars().next().map_or(1, char::len_utf8);
        found.push(&token[pos..pos + width]);
        pos += width;
        while bytes.get(pos).is_some_and(u8::is_ascii_digit) {
            pos += 1;
        }
        // "2p1": this p parts the digits of a version; a bare p would be an extension.
        let minor = bytes.get(pos) == Some(&b'p') && bytes.get(pos + 1).is_some_and(u8::is_ascii_digit);
        if minor && bytes[pos - 1].is_ascii_digit() {
            pos += 1;
            while bytes.get(pos).is_some_and(u8::is_ascii_digit) {
                pos += 1;
            }
        }
    }
    found
}

/// `zicsr2p0` → `zicsr`.
fn without_version(name: &str) -> &str {
    let digits = |s: &str| s.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let minor = digits(name);
    if minor == name.len() {
        return name;
    }
    match name[..minor].strip_suffix('p') {
        Some(head) if digits(head) < head.len() => &head[..digits(head)],
        _ => &name[..minor],
    }
}

fn capital(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// The first floating-point instruction in a run of code: its offset.
pub(super) fn first_float_insn(code: &[u8]) -> Option<usize> {
    let mut pos = 0;
    while let Some(&[lo, hi]) = code.get(pos..pos + 2) {
        let half = u16::from_le_bytes([lo, hi]);
        if half & 3 == 3 {
            // LOAD-FP, STORE-FP, the four fused multiply-adds, OP-FP.
            if matches!(half & 0x7f, 0x07 | 0x27 | 0x43 | 0x47 | 0x4b | 0x4f | 0x53) {
                return Some(pos);
            }
            pos += 4;
            continue;
        }
        // c.fld, c.fsd, c.fldsp, c.fsdsp.
        if matches!((half & 3, half >> 13), (0 | 2, 1 | 5)) {
            return Some(pos);
        }
        pos += 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arch_strings_of_every_style_are_read() {
        for good in [
            "rv64i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0",
            "rv64imac",
            "RV64IMAC_Zicsr_Zifencei",
            "rv64imac_zicsr",
            "rv64i2p0m2p0a2p0c2p0",
            "rv64imaczicsr2p0",
        ] {
            assert_eq!(check_arch(good), Missing::Nothing, "{good}");
        }
        assert_eq!(check_arch("rv64i2p1_m2p0_a2p1_f2p2_d2p2"), Missing::Float("D"));
        assert_eq!(check_arch("rv64imafc"), Missing::Float("F"));
        assert_eq!(check_arch("rv64imac_v1p0"), Missing::Extension("V".into()));
        assert_eq!(check_arch("rv64i_zba1p0"), Missing::Extension("Zba".into()));
        assert_eq!(check_arch("rv64i_xtheadba"), Missing::Extension("Xtheadba".into()));
        assert!(matches!(check_arch("rv32imac"), Missing::Extension(_)));
        assert!(matches!(check_arch("rv64e"), Missing::Extension(_)));
        assert!(matches!(check_arch("rv64i\u{e9}"), Missing::Extension(_)));
    }

    #[test]
    fn attributes_cut_anywhere_are_an_error_or_nothing_but_never_a_panic() {
        let mut section = b"A".to_vec();
        let mut attributes = vec![4, 16, 5];
        attributes.extend(b"rv64imac\0");
        let part = 1 + 4 + attributes.len();
        section.extend((4 + 6 + part as u32).to_le_bytes());
        section.extend(b"riscv\0");
        section.push(1);
        section.extend((part as u32).to_le_bytes());
        section.extend(&attributes);
        assert_eq!(arch_of(&section, 0).unwrap().as_deref(), Some("rv64imac"));
        for cut in 0..section.len() {
            let _ = arch_of(&section[..cut], 0);
            for bit in 0..8 {
                let mut flipped = section.clone();
                flipped[cut] ^= 1 << bit;
                let _ = arch_of(&flipped, 0);
            }
        }
    }

    #[test]
    fn float_instructions_are_found_where_they_start() {
        // nop; c.nop; fld fa0, 0(sp)
        let code = [0x13, 0, 0, 0, 0x01, 0, 0x07, 0x35, 0x01, 0x00];
        assert_eq!(first_float_insn(&code), Some(6));
        assert_eq!(first_float_insn(&code[..6]), None);
        // The upper half of this lui looks like an OP-FP opcode; it is not one.
        assert_eq!(first_float_insn(&[0x37, 0x05, 0x53, 0x00]), None);
    }
}
