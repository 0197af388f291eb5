//! Intel HEX and Motorola S-records: lines of addresses and bytes, and where to start.

use std::ops::Range;

use ihex::Record as Hex;
use srec::Record as Srec;

/// Why such a file cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HexError {
    /// A line is not a record, or its checksum is wrong.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A record has no RAM under it.
    #[error("line {line}: {len:#x} bytes at {addr:#x} are outside RAM {:#x}..{:#x}", ram.start, ram.end)]
    OutsideRam {
        /// Counted from 1.
        line: usize,
        /// Where it should go.
        addr: u64,
        /// Its length.
        len: u64,
        /// The RAM there is.
        ram: Range<u64>,
    },
    /// There is no last record, so lines may be missing.
    #[error("it ends without a last record: the file was cut")]
    Cut,
    /// No record holds bytes.
    #[error("it holds no bytes")]
    Empty,
}

/// Bytes for addresses, and the entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Records {
    /// In the order of the file; neighbours are joined.
    pub parts: Vec<(u64, Vec<u8>)>,
    /// What the file says, or else its lowest address.
    pub entry: u64,
}

/// One line, understood.
enum Line {
    Bytes(u64, Vec<u8>),
    Start(u64),
    /// The last record, with the start it names.
    End(Option<u64>),
    Nothing,
}

/// Reads Intel HEX.
pub(super) fn intel(text: &[u8], ram: Range<u64>) -> Result<Records, HexError> {
    let mut base = 0;
    records(text, ram, |line| {
        Ok(match Hex::from_record_string(line).map_err(|e| e.to_string())? {
            Hex::Data { offset, value } => Line::Bytes(base + u64::from(offset), value),
            Hex::ExtendedLinearAddress(high) => {
                base = u64::from(high) << 16;
                Line::Nothing
            }
            Hex::ExtendedSegmentAddress(segment) => {
                base = u64::from(segment) << 4;
                Line::Nothing
            }
            Hex::StartLinearAddress(start) => Line::Start(start.into()),
            Hex::StartSegmentAddress { cs, ip } => Line::Start((u64::from(cs) << 4) + u64::from(ip)),
            Hex::EndOfFile => Line::End(None),
        })
    })
}

/// Reads S-records.
pub(super) fn motorola(text: &[u8], ram: Range<u64>) -> Result<Records, HexError> {
    records(text, ram, |line| {
        // A header may hold any bytes, and the reader wants text.
        if line.starts_with("S0") {
            return Ok(Line::Nothing);
        }
        let start = |addr: u32| Line::End((addr != 0).then_some(addr.into()));
        Ok(match line.parse::<Srec>().map_err(|e| format!("not an S-record: {e:?}"))? {
            Srec::S1(data) => Line::Bytes(data.address.0.into(), data.data),
            Srec::S2(data) => Line::Bytes(data.address.0.into(), data.data),
            Srec::S3(data) => Line::Bytes(data.address.0.into(), data.data),
            Srec::S7(at) => start(at.0),
            Srec::S8(at) => start(at.0),
            Srec::S9(at) => start(at.0.into()),
            _ => Line::Nothing,
        })
    })
}

fn records(
    text: &[u8],
    ram: Range<u64>,
    mut read: impl FnMut(&str) -> Result<Line, String>,
) -> Result<Records, HexError> {
    let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
    let (mut entry, mut ended) = (None, false);
    for (n, bytes) in text.split(|&byte| byte == b'\n').enumerate() {
        let (line, bytes) = (n + 1, bytes.trim_ascii());
        if bytes.is_empty() {
            continue;
        }
        let fail = |reason: String| HexError::Line { line, reason };
        if ended {
            return Err(fail("there is more behind the last record".into()));
        }
        // The readers cut lines between bytes, and take a sign for a digit.
        let plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'+');
        let text = std::str::from_utf8(bytes).ok().filter(plain);
        let bytes = text.ok_or_else(|| fail("it holds what no record does".into()))?;
        match read(bytes).map_err(fail)? {
            Line::Bytes(addr, value) => {
                let len = value.len() as u64;
                if addr < ram.start || addr.checked_add(len).is_none_or(|end| end > ram.end) {
                    return Err(HexError::OutsideRam { line, addr, len, ram });
                }
                match parts.last_mut() {
                    Some((at, part)) if *at + part.len() as u64 == addr => part.extend(value),
                    _ => parts.push((addr, value)),
                }
            }
            Line::Start(addr) => entry = Some(addr),
            Line::End(start) => (entry, ended) = (start.or(entry), true),
            Line::Nothing => {}
        }
    }
    if !ended {
        return Err(HexError::Cut);
    }
    let lowest = parts.iter().filter(|(_, part)| !part.is_empty()).map(|(at, _)| *at).min();
    let lowest = lowest.ok_or(HexError::Empty)?;
    Ok(Records { parts, entry: entry.unwrap_or(lowest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: Range<u64> = 0x8000_0000..0x8010_0000;
    const HEX: &str = ":0200000480007A\r\n:0400000013000000E9\n:040004006F000000 89\n";

    #[test]
    fn intel_hex_has_its_upper_addresses_in_records_of_their_own() {
        let text = HEX.replace("000000 89", "00000089") + ":040000058000000077\n\n:00000001FF\n";
        let read = intel(text.as_bytes(), RAM).unwrap();
        assert_eq!(
            read,
            Records { parts: vec![(0x8000_0000, vec![0x13, 0, 0, 0, 0x6f, 0, 0, 0])], entry: 0x8000_0000 }
        );
        let error = |text: &str| intel(text.as_bytes(), RAM).unwrap_err().to_string();
        assert!(error(HEX).starts_with("line 3: "), "{}", error(HEX));
        assert!(error(":0400000013000000E9\n").contains("outside RAM"));
        assert!(error(":0200000480007A\n:0400000013000000E9\n").contains("cut"));
        assert!(error(":00000001FF\n").contains("no bytes"));
        assert!(error(":00000001FF\n:00000001FF\n").contains("behind the last"));
        assert!(error(":0400000013000000E8\n").starts_with("line 1: "), "the checksum is wrong");
    }

    #[test]
    fn s_records_name_the_entry_in_the_last() {
        let text = "S00600004844521B\nS309800000001300000063\nS705800000007A\n";
        let read = motorola(text.as_bytes(), RAM).unwrap();
        assert_eq!(read, Records { parts: vec![(0x8000_0000, vec![0x13, 0, 0, 0])], entry: 0x8000_0000 });
        let error = |text: &str| motorola(text.as_bytes(), RAM).unwrap_err().to_string();
        assert!(error("S309800000001300000064\n").starts_with("line 1: "), "the checksum is wrong");
        assert!(error("S309800000001300000063\n").contains("cut"));
        assert!(error("S1070000130000 00E5\n").starts_with("line 1: "));
    }

    #[test]
    fn a_line_with_letters_of_other_alphabets_is_refused_wherever_they_are() {
        for (at, letter) in (0..22).flat_map(|at| [(at, "\u{e9}"), (at, "\u{20ac}"), (at, "\u{1d11e}"), (at, "+")]) {
            for (line, read) in
                [("S309800000001300000063", motorola as fn(&[u8], _) -> _), (":0400000013000000E9xxxx", intel)]
            {
                let mut text = line.to_string();
                text.replace_range(at..at + 1, letter);
                let error = read(text.as_bytes(), RAM).unwrap_err().to_string();
                assert!(error.starts_with("line 1: "), "{text}: {error}");
            }
        }
        let error = motorola("S30980000000+3000000".as_bytes(), RAM).unwrap_err().to_string();
        assert!(error.starts_with("line 1: "), "{error}");
    }
}
