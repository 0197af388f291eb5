//! Runs of pages: what a reset hands out, 64 pages of one slot at a time.
//!
//! ```text
//!   entries   7 8 9 | 300 299 298 | 7          a run grows upwards, and downwards as stacks do
//!   runs      (7, 0b111)  (298, 0b111)  (7, 1)
//! ```

/// Pages of one slot, at most 64 apart: page `base + n` for each bit n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) slot: u32,
    pub(super) base: u64,
    pub(super) mask: u64,
}

impl Run {
    /// A run of one page.
    pub(super) fn new(slot: u32, offset: u64) -> Self {
        Self { slot, base: offset, mask: 1 }
    }

    /// Takes the page in, if it fits.
    pub(super) fn add(&mut self, slot: u32, offset: u64) -> bool {
        if slot != self.slot {
            return false;
        }
        if let Some(up) = offset.checked_sub(self.base) {
            let fits = up < 64;
            if fits {
                self.mask |= 1 << up;
            }
            return fits;
        }
        let down = self.base - offset;
        // No page may fall off the upper end.
        let fits = down <= u64::from(self.mask.leading_zeros());
        if fits {
            // A mask has its bit 0, so there are at most 63 zeros.
            (self.base, self.mask) = (offset, self.mask << down | 1);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages of `offsets` in runs.
    fn runs(offsets: &[u64]) -> Vec<(u64, u64)> {
        let mut runs: Vec<Run> = Vec::new();
        for &offset in offsets {
            if !runs.last_mut().is_some_and(|run| run.add(3, offset)) {
                runs.push(Run::new(3, offset));
            }
        }
        runs.iter().map(|run| (run.base, run.mask)).collect()
    }

    #[test]
    fn a_run_grows_in_both_directions_up_to_64_pages() {
        assert_eq!(runs(&[10, 12, 11]), [(10, 0b111)]);
        assert_eq!(runs(&[10, 9, 7]), [(7, 0b1101)]);
        assert_eq!(runs(&(0..64).rev().collect::<Vec<_>>()), [(0, !0)]);
        assert_eq!(runs(&(100..164).collect::<Vec<_>>()), [(100, !0)]);
        assert_eq!(runs(&(100..165).collect::<Vec<_>>()), [(100, !0), (164, 1)]);
    }

    #[test]
    fn no_page_falls_off_the_upper_end() {
        assert_eq!(runs(&[100, 163, 99]), [(100, 1 | 1 << 63), (99, 1)]);
        assert_eq!(runs(&[100, 162, 99]), [(99, 2 | 1 << 63 | 1)]);
        assert_eq!(runs(&[100, 36]), [(100, 1), (36, 1)]);
        assert_eq!(runs(&[100, 37]), [(37, 1 | 1 << 63)]);
    }

    #[test]
    fn pages_at_the_ends_of_the_space_are_far_apart() {
        assert_eq!(runs(&[u64::MAX, 0, u64::MAX - 1]), [(u64::MAX, 1), (0, 1), (u64::MAX - 1, 1)]);
    }

    #[test]
    fn another_slot_is_another_run() {
        assert!(!Run::new(3, 5).add(4, 5));
    }
}
