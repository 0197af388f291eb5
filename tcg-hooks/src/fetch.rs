//! Reading instructions while another hart may be writing them, and asking for memory ahead of its use.

/// Four bytes, low halfword first.
///
/// It is one access of the host, so that an instruction which another hart stores with one aligned store is read whole:
/// the old one or the new one, not a half of each. (x86 promises that inside a cache line.)
///
/// # Safety
/// Four bytes at `at` are live guest RAM. Others may write them meanwhile.
#[inline(always)]
pub(crate) unsafe fn word(at: *const u8) -> u32 {
    #[repr(C, packed)]
    struct Anywhere(u32);
    // SAFETY: the caller's promise; the type needs no alignment.
    u32::from_le(unsafe { at.cast::<Anywhere>().read_volatile() }.0)
}

/// Asks for the lines of `len` bytes at `at`: a hint, wherever they are.
#[inline]
pub(crate) fn prefetch(at: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for off in (0..len).step_by(64) {
        // SAFETY: it touches no memory.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.wrapping_add(off).cast()) };
    }
}

/// The same for lines that will be written.
#[inline]
pub(crate) fn prefetch_to_write(at: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for off in (0..len).step_by(64) {
        // SAFETY: it touches no memory.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(at.wrapping_add(off).cast()) };
    }
}
