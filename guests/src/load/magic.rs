//! What a file is, by its first bytes: looked at before the rest is read.

/// Kinds of program files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Elf,
    IntelHex,
    SRecord,
    Other,
}

/// The first bytes that tell.
pub(super) const LEN: usize = 64;

/// Of a file that starts so.
pub(super) fn kind(head: &[u8]) -> Kind {
    let text = head.trim_ascii_start();
    let digits = |from: usize, count: usize| {
        text.len() >= from + count && text[from..from + count].iter().all(u8::is_ascii_hexdigit)
    };
    if head.starts_with(b"\x7fELF") {
        Kind::Elf
    } else if text.starts_with(b":") && digits(1, 10) {
        Kind::IntelHex
    } else if text.starts_with(b"S") && digits(1, 3) && text[1] <= b'9' {
        Kind::SRecord
    } else {
        Kind::Other
    }
}

/// What it is instead of a program, and what helps.
const KNOWN: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "gzip-compressed (gunzip it first)"),
    (0, b"BZh", "bzip2-compressed (unpack it first)"),
    (0, b"\xfd7zXZ\0", "xz-compressed (unpack it first)"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed (unpack it first)"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed (unpack it first)"),
    (0, b"PK\x03\x04", "a zip archive (unpack it first)"),
    (0, b"!<arch>\n", "an archive of object files (link it first)"),
    (0, b"#!", "a script"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree"),
    (0x38, b"RSC\x05", "a Linux image (raw, its place is 0x80200000: --load-addr)"),
    (0, b"MZ", "a program for Windows or UEFI"),
    (0, b"\xcf\xfa\xed\xfe", "a program for macOS"),
    (0, b"BC\xc0\xde", "LLVM bitcode (compile it first)"),
];

/// What a file that is no program is, for an error.
pub(super) fn describe(head: &[u8]) -> String {
    let known = KNOWN.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    match known {
        Some((.., what)) => format!("it is {what}"),
        None if head.is_empty() => "it is empty".into(),
        None => {
            let found: Vec<_> = head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("it starts with {}, not with 7f 45 4c 46 (raw images need --load-addr)", found.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_unknown_file_are_told_as_those_of_elf_are() {
        assert!(describe(b"type").starts_with("it starts with 74 79 70 65, not with 7f 45 4c 46"));
    }

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        assert_eq!(kind(b"\x7fELF\x02"), Kind::Elf);
        assert_eq!(kind(b":020000048000"), Kind::IntelHex);
        assert_eq!(kind(b"\r\n S315800000"), Kind::SRecord);
        assert_eq!(
            (kind(b":label"), kind(b"SECTIONS {"), kind(b"S"), kind(b"")),
            (Kind::Other, Kind::Other, Kind::Other, Kind::Other)
        );
        assert!(describe(b"\x1f\x8b\x08").contains("gzip"));
        assert!(describe(b"\x13").contains("--load-addr"));
    }
}
