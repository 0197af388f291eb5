//! Which TBs were evicted of late, so that an eviction that is regretted is known for one.
//!
//! ```text
//!   evicted ─▶ slots[pc] = pc        made ─ slots[pc] == pc ─▶ regretted += 1
//! ```
//!
//! A cache that forgets: a guess too few makes the code cache grow later, never wrong.

/// Slots: as many as TBs fit the part of the code cache that is looked at, or so.
const SLOTS: usize = 1 << 13;
/// One in this many made again is worth more room.
const WORTH: u64 = 8;

/// The evicted, by pc; 0 is nobody, as the address of code that was evicted is not worth an `Option`.
pub(super) struct Ghosts {
    slots: Box<[u64; SLOTS]>,
    made: u64,
    regretted: u64,
}

impl Default for Ghosts {
    fn default() -> Self {
        let slots = vec![0; SLOTS].into_boxed_slice().try_into();
        Ghosts { slots: slots.expect("of that length"), made: 0, regretted: 0 }
    }
}

impl Ghosts {
    fn slot(&mut self, pc: u64) -> &mut u64 {
        // Functions lie at multiples of small powers of two; the product's upper bits do not.
        &mut self.slots[(pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51) as usize % SLOTS]
    }

    /// A TB at `pc` died for room.
    pub(super) fn evicted(&mut self, pc: u64) {
        *self.slot(pc) = pc;
    }

    /// A TB at `pc` was made.
    pub(super) fn made(&mut self, pc: u64) {
        self.made += 1;
        if *self.slot(pc) == pc {
            *self.slot(pc) = 0;
            self.regretted += 1;
        }
    }

    /// Is more room worth it? Asked once a chunk; counting starts again.
    pub(super) fn regret(&mut self) -> bool {
        let (made, regretted) = (std::mem::take(&mut self.made), std::mem::take(&mut self.regretted));
        regretted * WORTH > made
    }
}
