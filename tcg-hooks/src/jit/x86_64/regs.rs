//! Which guest registers live in which host registers, in all emitted code alike.
//!
//! ```text
//!   rsp  host stack     rbp  Context       r15  budget        rax rcx rdx  scratch
//!   rbx sp   r12 s0   r13 s1   rdi a0   rsi a1   r8 a2   r9 a3   r10 a4   r11 a5   r14 a6
//! ```
//!
//! The map is the same at every border of a TB, so a jump from TB to TB moves nothing; inside, a region with loops may
//! have another (see `remap`). The ten are those that compilers use most;
//! the rest are memory operands one byte away from `rbp`.

use crate::tier2::{HOST, HOSTS, PINNED, SAVED};

/// Scratch.
pub(super) const RAX: u8 = 0;
/// Scratch.
pub(super) const RCX: u8 = 1;
/// Scratch.
pub(super) const RDX: u8 = 2;

/// Guest and host register of each pinned pair.
pub(super) const PINS: [(u8, u8); 10] =
    [(2, 3), (8, 12), (9, 13), (10, 7), (11, 6), (12, 8), (13, 9), (14, 10), (15, 11), (16, 14)];

/// The host register of a guest register, if it has one: a byte for each that can be named, so that nothing is compared but the
/// byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegMap([u8; 256]);

/// In memory.
const NOWHERE: u8 = u8::MAX;

impl RegMap {
    /// The map, or the empty one when pinning is off.
    pub(super) fn new(pinned: bool) -> RegMap {
        let mut map = [NOWHERE; 256];
        if pinned {
            for (guest, host) in PINS {
                map[usize::from(guest)] = host;
            }
        }
        RegMap(map)
    }

    /// Of a region that names host registers itself: guest registers are in memory.
    pub(super) fn named() -> RegMap {
        let mut map = RegMap::new(false);
        for (k, (_, host)) in PINS.into_iter().enumerate() {
            map.0[usize::from(HOST) + k] = host;
        }
        map
    }

    /// Where a guest register lives, if not in memory, as all floating-point ones do.
    #[inline(always)]
    pub(super) fn host(&self, guest: u8) -> Option<u8> {
        let host = self.0[usize::from(guest)];
        (host != NOWHERE).then_some(host)
    }

    /// Gives host register `h` of guest register `g` to `r`.
    pub(super) fn exchange(&mut self, h: u8, g: u8, r: u8) {
        self.0[g as usize & 31] = NOWHERE;
        self.0[r as usize & 31] = h;
    }

    /// The pinned pairs in use.
    pub(super) fn pins(&self) -> impl Iterator<Item = (u8, u8)> + '_ {
        PINS.into_iter().filter(|p| self.host(p.0).is_some())
    }
}

const _: () = {
    let mut k = 0;
    while k < HOSTS {
        assert!(PINS[k].0 == PINNED[k], "one order");
        // rbx and r12 to r14; r15 is the budget's.
        assert!((SAVED >> k & 1 != 0) == matches!(PINS[k].1, 3 | 12 | 13 | 14), "the calling convention");
        k += 1;
    }
};
