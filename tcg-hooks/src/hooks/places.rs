//! Which addresses a hook is about.

use notdirty_core::PAGE_SIZE;
use std::ops::{Range, RangeFull, RangeInclusive};

/// Addresses: a range, or some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// From the first to the last one; none if that is the lesser.
    Span {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// These, in rising order: made by `From`.
    Some(Vec<u64>),
}

impl Places {
    /// Is this one of them?
    #[inline]
    pub fn has(&self, at: u64) -> bool {
        match self {
            Places::Span { first, last } => *first <= at && at <= *last,
            Places::Some(all) => all.binary_search(&at).is_ok(),
        }
    }

    /// Is one of them on the page of this address?
    pub(crate) fn has_on_page(&self, at: u64) -> bool {
        let start = at & !(PAGE_SIZE - 1);
        let end = start | (PAGE_SIZE - 1);
        match self {
            Places::Span { first, last } => *first <= end && start <= *last && first <= last,
            Places::Some(all) => all.get(all.partition_point(|at| *at < start)).is_some_and(|at| *at <= end),
        }
    }
}

impl From<RangeFull> for Places {
    fn from(_: RangeFull) -> Places {
        Places::Span { first: 0, last: u64::MAX }
    }
}

impl From<Range<u64>> for Places {
    fn from(Range { start, end }: Range<u64>) -> Places {
        if start < end { Places::Span { first: start, last: end - 1 } } else { Places::Some(Vec::new()) }
    }
}

impl From<RangeInclusive<u64>> for Places {
    fn from(range: RangeInclusive<u64>) -> Places {
        Places::Span { first: *range.start(), last: *range.end() }
    }
}

impl From<u64> for Places {
    fn from(at: u64) -> Places {
        Places::Span { first: at, last: at }
    }
}

impl From<Vec<u64>> for Places {
    fn from(mut all: Vec<u64>) -> Places {
        all.sort_unstable();
        all.dedup();
        Places::Some(all)
    }
}

impl From<&[u64]> for Places {
    fn from(all: &[u64]) -> Places {
        all.to_vec().into()
    }
}

impl<const N: usize> From<[u64; N]> for Places {
    fn from(all: [u64; N]) -> Places {
        all.to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_what_they_are_made_of() {
        let all: [(Places, &[u64], &[u64]); 5] = [
            ((..).into(), &[0, u64::MAX], &[]),
            ((4..8).into(), &[4, 7], &[3, 8]),
            (Range { start: 8, end: 4 }.into(), &[], &[4, 6, 8]),
            (6.into(), &[6], &[5, 7]),
            ([9, 3, 9].into(), &[3, 9], &[4, 8]),
        ];
        for (places, some, none) in all {
            assert!(some.iter().all(|at| places.has(*at)) && !none.iter().any(|at| places.has(*at)), "{places:?}");
            assert_eq!(places.has_on_page(0xffe), !some.is_empty(), "{places:?}");
        }
        assert!(!Places::from(0x1000..0x1004).has_on_page(0xfff) && Places::from([0x1ffe]).has_on_page(0x1000));
        assert!(!Places::from([0x1ffe, 5]).has_on_page(0x2000));
    }
}
