//! Which extensions a file asks for that the hart lacks: a warning, as the file may ask before it uses them.
//!
//! Two fields tell: `e_flags` (the calling convention) and the arch string in `.riscv.attributes` (what the compiler was
//! allowed to use). Either may be missing or damaged.

use super::bytes::Bytes;

/// The section's type; `PT_` and `SHT_` share the number.
pub(super) const RISCV_ATTRIBUTES: u32 = 0x7000_0003;
const TAG_FILE: u64 = 1;
const TAG_ARCH: u64 = 5;

/// The hart's ISA, for messages.
pub(super) const PRESENT_NAME: &str = "RV64GC, B, Zbc, Zicond, Zicbom, Zicboz";

/// What runs here, and names that ask for nothing more than that.
const PRESENT: &[&str] = &[
    "i",
    // Fewer registers of the same kind.
    "e",
    "m",
    "a",
    "f",
    "d",
    "c",
    "b",
    "zba",
    "zbb",
    "zbc",
    "zbs",
    "zicond",
    "zicbom",
    "zicboz",
    "zicsr",
    "zifencei",
    "zicntr",
    "zihpm",
    "zmmul",
    "zaamo",
    "zalrsc",
    "zca",
    "zcd",
    // Of the modes.
    "sstc",
    "svinval",
    "svnapot",
    "svpbmt",
    "svade",
    "svadu",
    // Hints: they run as the base instructions that encode them.
    "zihintpause",
    "zihintntl",
    "zicbop",
    // Promises about memory and instructions that are there; none has instructions of its own.
    "zic64b",
    "ziccamoa",
    "ziccif",
    "zicclsm",
    "ziccrse",
    "za64rs",
    "za128rs",
    "zama16b",
    "ztso",
    "zkt",
];

/// The extensions that are asked for and not there, each once.
pub(super) fn lacking(flags: u32, arch: Option<&str>) -> Vec<String> {
    let mut lacking = arch.map_or_else(Vec::new, lacking_of_arch);
    let float = match flags & 0x6 {
        0x2 => "F",
        0x4 => "D",
        0x6 => "Q",
        _ => return lacking,
    };
    if !PRESENT.contains(&float.to_ascii_lowercase().as_str()) && !lacking.iter().any(|name| name == float) {
        lacking.push(float.into());
    }
    lacking
}

/// The arch string of an attributes section, if it has one and is whole up to there.
pub(super) fn arch_of(section: &[u8]) -> Option<String> {
    if section.first() != Some(&b'A') {
        return None;
    }
    let mut pos = 1;
    while pos < section.len() {
        // One vendor's part: length (its own four bytes included), name, then sub-parts.
        let len = length(section, pos)?;
        let part = &section[..pos + len];
        let name = pos + 4;
        let end = part[name..].iter().position(|&b| b == 0)?;
        let mut sub = name + end + 1;
        if &part[name..name + end] == b"riscv" {
            while sub < part.len() {
                let start = sub;
                let tag = uleb(part, &mut sub)?;
                let len = Bytes(part).u32(sub as u64, "").ok()? as usize;
                // This length counts from the tag on.
                let stop = start.checked_add(len).filter(|&s| s <= part.len() && s >= sub + 4)?;
                if tag == TAG_FILE
                    && let Some(arch) = file_arch(&part[..stop], sub + 4)?
                {
                    return Some(arch);
                }
                sub = stop;
            }
        }
        pos += len;
    }
    None
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

/// Names that a warning has room for.
const LISTED: usize = 16;

/// What an arch string such as `rv64i2p1_m2p0_a2p1_c2p0_zicsr2p0` asks for beyond what there is, with or without versions
/// and underscores.
fn lacking_of_arch(arch: &str) -> Vec<String> {
    let lower = arch.to_ascii_lowercase();
    let Some(rest) = lower.strip_prefix("rv64") else {
        return vec![format!("the base of {}", shown(arch))];
    };
    let mut lacking: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if PRESENT.contains(&name) {
            return true;
        }
        let name = if name.chars().count() == 1 { name.to_uppercase() } else { capital(shown(name)) };
        if !lacking.contains(&name) {
            lacking.push(name);
        }
        lacking.len() < LISTED
    };
    for token in rest.split('_').filter(|t| !t.is_empty()) {
        for name in names(token) {
            let more = match name {
                "g" => ["i", "m", "a", "f", "d", "zicsr", "zifencei"].into_iter().all(&mut add),
                name => add(name),
            };
            if !more {
                lacking.push("and more".into());
                return lacking;
            }
        }
    }
    lacking
}

/// The beginning of a name that may be anything.
fn shown(name: &str) -> &str {
    name.char_indices().nth(40).map_or(name, |(end, _)| &name[..end])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lacks(arch: &str) -> String {
        lacking_of_arch(arch).join(" ")
    }

    #[test]
    fn arch_strings_of_every_style_are_read() {
        for good in [
            "rv64i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0",
            "rv64imac",
            "RV64IMAC_Zicsr_Zifencei",
            "rv64imac_zicsr",
            "rv64gc_sstc1p0_svadu1p0_svinval1p0_svnapot1p0_svpbmt1p0",
            "rv64i2p0m2p0a2p0c2p0",
            "rv64imaczicsr2p0",
            "rv64imac_zicclsm1p0_za64rs1p0_ziccif1p0_zic64b1p0_zihpm2p0_ztso1p0",
        ] {
            assert_eq!(lacks(good), "", "{good}");
        }
        assert_eq!(lacks("rv64imac_v1p0"), "V");
        assert_eq!(lacks("rv64i_xtheadba_zvbb"), "Xtheadba Zvbb");
        assert_eq!(lacks("rv64i_v_v_xa_xa"), "V Xa", "each once");
        assert_eq!(lacks("rv32imac"), "the base of rv32imac");
        assert_eq!(lacks("rv64i\u{e9}"), "\u{c9}");
        let many: String = (0..1000).map(|n| format!("_x{}", "a".repeat(n + 1))).collect();
        assert!(lacks(&format!("rv64i{many}")).len() < 1000);
    }

    #[test]
    fn a_calling_convention_asks_for_its_registers_once() {
        assert_eq!(lacking(0x6, None), ["Q"]);
        assert_eq!(lacking(0x7, Some("rv64iq")), ["Q"]);
        assert!(lacking(0x1 | 0x8 | 0x10, None).is_empty(), "C, E and TSO");
    }

    #[test]
    fn attributes_cut_anywhere_are_something_or_nothing_but_never_a_panic() {
        let mut section = b"A".to_vec();
        let mut attributes = vec![4, 16, 5];
        attributes.extend(b"rv64imac\0");
        let part = 1 + 4 + attributes.len();
        section.extend((4 + 6 + part as u32).to_le_bytes());
        section.extend(b"riscv\0");
        section.push(1);
        section.extend((part as u32).to_le_bytes());
        section.extend(&attributes);
        assert_eq!(arch_of(&section).as_deref(), Some("rv64imac"));
        for cut in 0..section.len() {
            let _ = arch_of(&section[..cut]);
            for bit in 0..8 {
                let mut flipped = section.clone();
                flipped[cut] ^= 1 << bit;
                let _ = arch_of(&flipped);
            }
        }
    }
}
