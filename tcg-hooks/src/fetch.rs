//! Reading instructions while another hart may be writing them.

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
