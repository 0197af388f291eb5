//! Reading instructions while another hart may be writing them, and asking for memory ahead of its use.

use notdirty_core::hint::{self, Soon};

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

/// Appends the `len` bytes at `at`. Each is as it was at some time during the call.
///
/// # Safety
/// They are live guest RAM. Others may write them meanwhile.
pub(crate) unsafe fn copy(at: *const u8, len: usize, to: &mut Vec<u8>) {
    #[repr(C, packed)]
    struct Anywhere(u64);
    to.reserve(len);
    let into = to.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    let whole = len & !7;
    // SAFETY: the caller's promise, and `reserve` made room for `len` bytes, all of which are written; the type needs no
    // alignment.
    unsafe {
        for n in (0..whole).step_by(8) {
            into.add(n).cast::<Anywhere>().write(Anywhere(at.add(n).cast::<Anywhere>().read_volatile().0));
        }
        for n in whole..len {
            into.add(n).write(at.add(n).read_volatile());
        }
        to.set_len(to.len() + len);
    }
}

/// Asks for the lines of `len` bytes at `at`: a hint, wherever they are.
#[inline]
pub(crate) fn prefetch(at: *const u8, len: usize) {
    (0..len).step_by(64).for_each(|off| hint::expect(at.wrapping_add(off), Soon::Read));
}

/// The same for lines that will be written.
#[inline]
pub(crate) fn prefetch_to_write(at: *const u8, len: usize) {
    (0..len).step_by(64).for_each(|off| hint::expect(at.wrapping_add(off), Soon::Written));
}
