//! Host memory that no guest may touch, and the addresses that might lead there.
use super::common::RAM;
use super::world::{ALIAS, DEVICE, HALF, RAM_LEN, ROM, ROM_LEN, TOP};
use notdirty_core::RamBlock;
use std::sync::Arc;

/// Host memory that no guest may touch, full of a pattern.
pub struct Canary {
    start: *mut u64,
    words: usize,
    /// From the heap, or mapped.
    _heap: Option<Box<[u64]>>,
}

impl Canary {
    /// At this very address, if nothing is there.
    pub fn at(address: u64, len: usize) -> Option<Canary> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping. It stays mapped to the end of the process.
        let at = unsafe { libc::mmap(address as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if at == libc::MAP_FAILED || at as u64 != address {
            return None;
        }
        Some(Canary { start: at.cast(), words: len / 8, _heap: None }.filled())
    }

    pub fn heap(len: usize) -> Canary {
        let mut words = vec![0u64; len / 8].into_boxed_slice();
        let canary = Canary { start: words.as_mut_ptr(), words: words.len(), _heap: Some(words) };
        canary.filled()
    }

    pub fn pattern(n: usize) -> u64 {
        (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn filled(self) -> Canary {
        for n in 0..self.words {
            // SAFETY: inside memory of this canary's own.
            unsafe { self.start.add(n).write_volatile(Canary::pattern(n)) };
        }
        self
    }

    pub fn check(&self) {
        for n in 0..self.words {
            // SAFETY: as in `filled`.
            let word = unsafe { self.start.add(n).read_volatile() };
            assert_eq!(word, Canary::pattern(n), "host memory at {:p} was written", self.start.wrapping_add(n));
        }
    }
}

/// Addresses worth trying.
pub fn wild(blocks: &[(u64, &Arc<RamBlock>)], canaries: &[Canary]) -> Vec<u64> {
    let mut wild = Vec::new();
    let guest = [
        (RAM, RAM_LEN),
        (ROM, ROM_LEN),
        (ALIAS, 0x2_0000),
        (HALF, 0x900),
        (DEVICE, 0x1800),
        (0, 0x4000),
        (TOP, 0x4000),
    ];
    for (start, len) in guest {
        let end = start.wrapping_add(len);
        wild.extend([start, end, end.wrapping_sub(8), start + 0x1000, end.wrapping_sub(0x1000), start | 1 << 63]);
        // The bias: a page before and behind, and with the sign's bits.
        wild.extend([start.wrapping_sub(0x1000), end.wrapping_add(0x1000), start | 0xffff_ffff_0000_0000]);
    }
    wild.extend([0, 1, u64::MAX, u64::MAX - 0xfff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 47, 1 << 63, !0 << 47]);
    // What the host has, as it is, and as a guest address that the displacement would lead there.
    let local = 0u64;
    let mut host = vec![&raw const local as u64, wild.as_ptr() as u64, wild.len() as u64];
    host.extend(canaries.iter().flat_map(|c| [c.start as u64, c.start as u64 + 8 * c.words as u64 - 8]));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        if let Some((from, to)) = range {
            host.extend([from, to].iter().filter_map(|h| u64::from_str_radix(h, 16).ok()));
        }
    }
    for h in host {
        wild.push(h);
        wild.extend(blocks.iter().map(|(base, block)| h.wrapping_sub((block.host() as u64).wrapping_sub(*base))));
    }
    wild
}
