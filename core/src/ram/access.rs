//! Accesses to memory that a guest may write at any moment.
//!
//! Guest RAM is never a `&[u8]`: a reference would promise that the bytes stand still. Each access is a relaxed
//! atomic one of the widest size its alignment allows, so a race with emitted code, a device or another vCPU gives
//! old or new bytes and nothing worse. An aligned 2, 4 or 8 bytes are never torn; an unaligned access is bytewise.
//!
//! The functions here take raw pointers and check nothing: `block.rs` and `io.rs` are their only callers and check bounds.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Loads `bytes` (1, 2, 4 or 8) little-endian bytes.
///
/// # Safety
/// `at .. at + bytes` is mapped and readable.
#[inline]
pub(super) unsafe fn load(at: *mut u8, bytes: u32) -> u64 {
    if (at as usize).is_multiple_of(bytes as usize) {
        // SAFETY: mapped by contract, and aligned for its size as just checked.
        unsafe {
            match bytes {
                1 => return AtomicU8::from_ptr(at).load(Relaxed).into(),
                2 => return u16::from_le(AtomicU16::from_ptr(at.cast()).load(Relaxed)).into(),
                4 => return u32::from_le(AtomicU32::from_ptr(at.cast()).load(Relaxed)).into(),
                8 => return u64::from_le(AtomicU64::from_ptr(at.cast()).load(Relaxed)),
                _ => {}
            }
        }
    }
    let mut value = 0;
    for n in 0..bytes as usize {
        // SAFETY: mapped by contract; a byte is always aligned.
        let byte = unsafe { AtomicU8::from_ptr(at.add(n)).load(Relaxed) };
        value |= u64::from(byte) << (8 * n);
    }
    value
}

/// Loads an aligned little-endian word, without a look at the alignment: for loops.
///
/// # Safety
/// `at .. at + 8` is mapped and readable, and aligned to eight.
#[inline(always)]
pub(super) unsafe fn word(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    u64::from_le(unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }.load(Relaxed))
}

/// Stores the low `bytes` (1, 2, 4 or 8) bytes of `value`, little-endian.
///
/// # Safety
/// `at .. at + bytes` is mapped and writable.
#[inline]
pub(super) unsafe fn store(at: *mut u8, bytes: u32, value: u64) {
    if (at as usize).is_multiple_of(bytes as usize) {
        // SAFETY: mapped by contract, and aligned for its size as just checked.
        unsafe {
            match bytes {
                1 => return AtomicU8::from_ptr(at).store(value as u8, Relaxed),
                2 => return AtomicU16::from_ptr(at.cast()).store((value as u16).to_le(), Relaxed),
                4 => return AtomicU32::from_ptr(at.cast()).store((value as u32).to_le(), Relaxed),
                8 => return AtomicU64::from_ptr(at.cast()).store(value.to_le(), Relaxed),
                _ => {}
            }
        }
    }
    for n in 0..bytes as usize {
        // SAFETY: mapped by contract; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(at.add(n)).store((value >> (8 * n)) as u8, Relaxed) };
    }
}

/// How many bytes come before the first aligned word of `len` bytes at `at`.
fn head(at: *mut u8, len: usize) -> usize {
    at.align_offset(8).min(len)
}

/// The bytes of the widest aligned access at `at` that has no more than `left`, which is not 0.
fn widest(at: *mut u8, left: usize) -> usize {
    1 << at.addr().trailing_zeros().min(left.ilog2()).min(3)
}

/// Copies guest bytes out. Aligned halves, words and doublewords of them are whole.
///
/// # Safety
/// `from .. from + to.len()` is mapped and readable.
pub(super) unsafe fn copy_out(from: *mut u8, to: &mut [u8]) {
    let (first, rest) = to.split_at_mut(head(from, to.len()));
    let mut at = first.len();
    // SAFETY: these are as many bytes as `first` has.
    unsafe { pieces_out(from, first) };
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: at + 8 <= to.len().
        word.copy_from_slice(&unsafe { load(from.add(at), 8) }.to_le_bytes());
        at += 8;
    }
    // SAFETY: what is left of `to` begins `at` bytes behind its start.
    unsafe { pieces_out(from.add(at), words.into_remainder()) };
}

/// The same of fewer than eight bytes, or so.
///
/// # Safety
/// As [`copy_out`].
unsafe fn pieces_out(from: *mut u8, to: &mut [u8]) {
    let mut at = 0;
    while at < to.len() {
        // SAFETY: at < to.len(), and `widest` is no more than what is left.
        let from = unsafe { from.add(at) };
        let bytes = widest(from, to.len() - at);
        // SAFETY: as above.
        let value = unsafe { load(from, bytes as u32) }.to_le_bytes();
        to[at..at + bytes].copy_from_slice(&value[..bytes]);
        at += bytes;
    }
}

/// Copies bytes into guest memory. Aligned halves, words and doublewords of them are stored whole: a hart that executes them meanwhile
/// finds no instruction in pieces.
///
/// # Safety
/// `to .. to + from.len()` is mapped and writable.
pub(super) unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    let (first, rest) = from.split_at(head(to, from.len()));
    let mut at = first.len();
    // SAFETY: these are as many bytes as `first` has.
    unsafe { pieces_in(to, first) };
    let (words, tail) = rest.as_chunks::<8>();
    for word in words {
        // SAFETY: at + 8 <= from.len().
        unsafe { store(to.add(at), 8, u64::from_le_bytes(*word)) };
        at += 8;
    }
    // SAFETY: what is left of `from` begins `at` bytes behind its start.
    unsafe { pieces_in(to.add(at), tail) };
}

/// The same of fewer than eight bytes, or so.
///
/// # Safety
/// As [`copy_in`].
unsafe fn pieces_in(to: *mut u8, from: &[u8]) {
    let mut at = 0;
    while at < from.len() {
        // SAFETY: at < from.len(), and `widest` is no more than what is left.
        let to = unsafe { to.add(at) };
        let bytes = widest(to, from.len() - at);
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&from[at..at + bytes]);
        // SAFETY: as above.
        unsafe { store(to, bytes as u32, u64::from_le_bytes(value)) };
        at += bytes;
    }
}

/// Sets `len` bytes to `value`.
///
/// # Safety
/// `to .. to + len` is mapped and writable.
pub(super) unsafe fn fill(to: *mut u8, len: usize, value: u8) {
    let word = u64::from_ne_bytes([value; 8]);
    let first = head(to, len);
    let words_end = first + (len - first) / 8 * 8;
    for n in (0..first).chain(words_end..len) {
        // SAFETY: n < len.
        unsafe { store(to.add(n), 1, value.into()) };
    }
    for n in (first..words_end).step_by(8) {
        // SAFETY: n + 8 <= words_end <= len.
        unsafe { store(to.add(n), 8, word) };
    }
}

/// Copies a line of 64 bytes, both aligned to that.
///
/// # Safety
/// Both are mapped, `from` readable, `to` writable, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn copy_line(to: *mut u8, from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise. To the compiler an asm is some access of unknown order, as a volatile one is; the host does each
    // of the four in one piece or in aligned halves.
    unsafe {
        core::arch::asm!(
            "movups {a}, [{from}]",
            "movups {b}, [{from} + 16]",
            "movups {c}, [{from} + 32]",
            "movups {d}, [{from} + 48]",
            "movups [{to}], {a}",
            "movups [{to} + 16], {b}",
            "movups [{to} + 32], {c}",
            "movups [{to} + 48], {d}",
            from = in(reg) from, to = in(reg) to,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for n in (0..64).step_by(8) {
        // SAFETY: the caller's promise.
        unsafe { store(to.add(n), 8, load(from.cast_mut().add(n), 8)) };
    }
}

/// Copies 4,096 bytes.
///
/// # Safety
/// As [`copy_line`].
#[inline(always)]
pub(super) unsafe fn copy_page(to: *mut u8, from: *const u8) {
    for off in (0..4096).step_by(64) {
        // SAFETY: the caller's promise.
        unsafe { copy_line(to.add(off), from.add(off)) };
    }
}

/// Are two lines the same?
///
/// # Safety
/// Both are mapped and readable, and aligned to eight.
#[inline]
pub(super) unsafe fn same_line(a: *mut u8, b: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    (0..64).step_by(8).all(|n| unsafe { load(a.add(n), 8) == load(b.add(n), 8) })
}

/// Is a line all zeroes?
///
/// # Safety
/// It is mapped and readable, and aligned to eight.
#[inline]
pub(super) unsafe fn line_is_zero(at: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    (0..64).step_by(8).fold(0, |all, n| all | unsafe { load(at.add(n), 8) }) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of our own to play guest RAM.
    fn ram() -> [u64; 8] {
        core::array::from_fn(|n| u64::from_le_bytes(core::array::from_fn(|b| (n * 8 + b) as u8)))
    }

    #[test]
    fn each_width_reads_and_writes_little_endian_at_every_alignment() {
        for bytes in [1u32, 2, 4, 8] {
            for off in 0..16 {
                let mut ram = ram();
                let at = ram.as_mut_ptr().cast::<u8>();
                let expected = (0..bytes).rev().fold(0, |v, n| v << 8 | u64::from(off as u32 + n));
                // SAFETY: off + bytes <= 24 of 64 bytes.
                unsafe {
                    assert_eq!(load(at.add(off), bytes), expected);
                    store(at.add(off), bytes, 0xf7f6_f5f4_f3f2_f1f0);
                    for n in 0..24 {
                        let inside = (off..off + bytes as usize).contains(&n);
                        let byte = if inside { 0xf0 + (n - off) as u64 } else { n as u64 };
                        assert_eq!(load(at.add(n), 1), byte, "{bytes} at {off}: byte {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn copies_and_fills_touch_exactly_their_bytes() {
        for off in 0..16usize {
            for len in 0..40usize {
                let mut ram = ram();
                let at = ram.as_mut_ptr().cast::<u8>();
                let mut out = vec![0; len];
                let mut all = [0; 64];
                // SAFETY: off + len <= 55 of 64 bytes.
                unsafe {
                    copy_out(at.add(off), &mut out);
                    assert!(out.iter().enumerate().all(|(n, b)| *b as usize == off + n));
                    copy_in(at.add(off), &vec![0xaa; len]);
                    copy_out(at, &mut all);
                    let inside = |n: usize| (off..off + len).contains(&n);
                    assert!((0..64).all(|n| all[n] == if inside(n) { 0xaa } else { n as u8 }));
                    fill(at.add(off), len, 0x55);
                    copy_out(at, &mut all);
                    assert!((0..64).all(|n| all[n] == if inside(n) { 0x55 } else { n as u8 }));
                }
            }
        }
    }

    #[test]
    fn what_is_aligned_goes_in_and_out_whole() {
        let mut ram = ram();
        let at = ram.as_mut_ptr().cast::<u8>();
        let widths = |off: usize, len: usize| {
            let (mut done, mut widths) = (0, Vec::new());
            while done < len {
                widths.push(widest(at.wrapping_add(off + done), len - done));
                done += widths[widths.len() - 1];
            }
            widths
        };
        assert_eq!(widths(0, 8), [8]);
        assert_eq!(widths(4, 4), [4]);
        assert_eq!(widths(2, 2), [2]);
        assert_eq!(widths(1, 15), [1, 2, 4, 8]);
        assert_eq!(widths(8, 7), [4, 2, 1]);
        // Seen by another thread: of a word that counts up, each is at least as much as the one before.
        let at = Shared(at);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let at = at.get();
                // SAFETY: inside of `ram`, which nothing else accesses but by atomics.
                (0u32..100_000).for_each(|n| unsafe { copy_in(at.add(12), &n.to_le_bytes()) });
            });
            let (at, mut last) = (at.get(), 0);
            while last < 99_999 {
                let mut bytes = [0; 4];
                // SAFETY: as above.
                unsafe { copy_out(at.add(12), &mut bytes) };
                let now = u32::from_le_bytes(bytes);
                assert!(now >= last, "{now:#x} behind {last:#x}");
                last = now;
            }
        });
    }

    #[derive(Clone, Copy)]
    struct Shared(*mut u8);

    impl Shared {
        fn get(self) -> *mut u8 {
            self.0
        }
    }

    // SAFETY: the test's memory outlives the threads that access it, by atomics.
    unsafe impl Send for Shared {}
}
