//! Advice to the host's cache: which line is used soon. Nothing happens where there is no memory, or no such instruction.

/// What is soon done with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Soon {
    /// It is read.
    Read,
    /// It is written.
    Written,
}

/// The line at `at` is soon used. Any address will do.
#[inline(always)]
pub fn expect<T>(at: *const T, soon: Soon) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the instruction is in every x86-64, takes any address, and has no effect that a thread could see.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        match soon {
            Soon::Read => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
            Soon::Written => _mm_prefetch::<_MM_HINT_ET0>(at.cast()),
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (at, soon);
}
