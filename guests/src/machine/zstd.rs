//! Zstandard for the packets of several channels (core `migration/pack.rs`), with the feature `zstd`.
//!
//! ```text
//!   channel   one frame, which never ends │ packet: blocks, flushed │ packet: blocks, flushed │ …
//!              window of 512 KiB: what a target keeps for each channel, whatever comes
//! ```

use std::fmt;
use std::io;

use notdirty_core::migration::{Pack, Unpack};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, ErrorCode, InBuffer, OutBuffer, get_error_name};

/// QEMU's default: more effort makes little less of RAM, and the channel is fast.
const LEVEL: i32 = 1;
/// log2 of the bytes that later ones may repeat; a frame that asks for more is refused.
const WINDOW: u32 = 19;

fn failed(code: ErrorCode) -> io::Error {
    wrong(get_error_name(code))
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {why}"))
}

/// Packs the pages of one channel.
pub(super) struct Packer(CCtx<'static>);

impl Packer {
    pub fn new() -> io::Result<Packer> {
        let mut context = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        context.set_parameter(CParameter::CompressionLevel(LEVEL)).map_err(failed)?;
        context.set_parameter(CParameter::WindowLog(WINDOW)).map_err(failed)?;
        Ok(Packer(context))
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("zstd")
    }
}

impl Pack for Packer {
    fn pack(&mut self, pages: &[u8], to: &mut Vec<u8>) -> io::Result<()> {
        let mut input = InBuffer::around(pages);
        loop {
            let at = to.len();
            to.resize(at + pages.len().max(1 << 12), 0);
            let mut output = OutBuffer::around_pos(to.as_mut_slice(), at);
            let left = self.0.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush);
            let end = output.pos();
            to.truncate(end);
            // Bytes that it holds back still.
            if left.map_err(failed)? == 0 {
                return Ok(());
            }
        }
    }
}

/// Unpacks those of one channel.
pub(super) struct Unpacker(DCtx<'static>);

impl Unpacker {
    pub fn new() -> io::Result<Unpacker> {
        let mut context = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW)).map_err(failed)?;
        Ok(Unpacker(context))
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("zstd")
    }
}

impl Unpack for Unpacker {
    fn unpack(&mut self, packed: &[u8], pages: &mut [u8]) -> io::Result<()> {
        let (mut input, mut done) = (InBuffer::around(packed), 0);
        // Behind the last page there may be bytes of the stream, and none of pages.
        let mut spare = [0];
        loop {
            let before = (input.pos(), done);
            if done < pages.len() {
                let mut output = OutBuffer::around_pos(&mut *pages, done);
                self.0.decompress_stream(&mut output, &mut input).map_err(failed)?;
                done = output.pos();
            } else {
                let mut output = OutBuffer::around(&mut spare[..]);
                self.0.decompress_stream(&mut output, &mut input).map_err(failed)?;
                if output.pos() != 0 {
                    return Err(wrong("more bytes than its pages have"));
                }
            }
            // It may hold bytes back until it is asked once more.
            if (input.pos(), done) == before {
                let all = before == (packed.len(), pages.len());
                return if all { Ok(()) } else { Err(wrong("fewer bytes than its pages have")) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    /// Packets of pages, some of noise, some alike; and what they are packed as.
    fn packets(seed: &mut u64) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let noise: Vec<u8> = (0..1 << 16).map(|_| random(seed) as u8).collect();
        let page = |n: u64, seed: &mut u64| match n % 3 {
            0 => vec![random(seed) as u8; 4096],
            1 => (0..4096).map(|_| random(seed) as u8).collect(),
            _ => noise[(random(seed) % 60_000) as usize..][..4096].to_vec(),
        };
        let pages: Vec<Vec<u8>> =
            [1, 128, 3, 32, 128].iter().map(|count| (0..*count).flat_map(|n| page(n, seed)).collect()).collect();
        let mut packer = Packer::new().unwrap();
        let packed = pages.iter().map(|pages| {
            let mut to = Vec::new();
            packer.pack(pages, &mut to).unwrap();
            to
        });
        let packed = packed.collect();
        (pages, packed)
    }

    #[test]
    fn a_packet_builds_on_those_before_it_and_ends_where_its_pages_do() {
        let (pages, packed) = packets(&mut 0x2545_f491_4f6c_dd1d);
        assert!(packed.iter().map(Vec::len).sum::<usize>() < pages.iter().map(Vec::len).sum::<usize>() / 2);
        let mut unpacker = Unpacker::new().unwrap();
        for (pages, packed) in pages.iter().zip(&packed) {
            assert!(packed.len() <= 2 * pages.len());
            let mut out = vec![0; pages.len()];
            unpacker.unpack(packed, &mut out).unwrap();
            assert!(out == *pages);
        }
        // Neither a page more nor a page less than there are.
        for (count, why) in [(129, "fewer bytes"), (127, "more bytes")] {
            let mut unpacker = Unpacker::new().unwrap();
            unpacker.unpack(&packed[0], &mut [0; 4096]).unwrap();
            let told = unpacker.unpack(&packed[1], &mut vec![0; count * 4096]).unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
        // One that is lost is noticed, or what comes is of another length: never a panic.
        let mut unpacker = Unpacker::new().unwrap();
        assert!(unpacker.unpack(&packed[1], &mut vec![0; 128 * 4096]).is_err());
    }

    #[test]
    fn spoiled_bytes_are_refused_or_unpacked_and_a_large_window_is_refused() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let (pages, packed) = packets(&mut seed);
        for _ in 0..400 {
            let mut unpacker = Unpacker::new().unwrap();
            for (pages, packed) in pages.iter().zip(&packed) {
                let mut spoiled = packed.clone();
                for _ in 0..1 + random(&mut seed) % 3 {
                    let at = random(&mut seed) as usize % spoiled.len().min(64);
                    spoiled[at] ^= 1 << (random(&mut seed) % 8);
                }
                spoiled.truncate(spoiled.len() - random(&mut seed) as usize % 2);
                if unpacker.unpack(&spoiled, &mut vec![0; pages.len()]).is_err() {
                    break;
                }
            }
        }
        // A frame whose header asks for 128 MiB.
        let large = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, (27 - 10) << 3], &[1, 0, 0]].concat();
        let told = Unpacker::new().unwrap().unpack(&large, &mut [0; 4096]).unwrap_err().to_string();
        assert!(told.contains("memory") || told.contains("indow"), "{told}");
    }
}
