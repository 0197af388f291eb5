//! The pages that are yet to come, by host pages, as commands.
//!
//! ```text
//!   bmap, pages of 4 KiB    │ .1.. │ .... │ ...1 │ 1... │
//!   canonical, by host page │ 1111 │ .... │ 1111 │ 1111 │     one is placed whole, so all of it is sent again
//!   RAM_DISCARD             └──────┘      └─────────────┘     twelve runs a command
//! ```

use super::super::DirtyPages;
use super::commands::{Discard, MOST_RUNS};
use crate::addr::PAGE_BITS;
use core::ops::Range;

/// Each host page with a page that is to be sent is to be sent whole. `pages` is the block's length, `host` the pages of a host page.
pub fn canonical(dirty: &DirtyPages, pages: u64, host: u64) {
    let host = host.max(1);
    let mut from = 0;
    while let Some(run) = dirty.run(from).filter(|run| run.start < pages) {
        let whole = run.start / host * host..run.end.next_multiple_of(host).min(pages);
        from = whole.end;
        if whole != run {
            dirty.set(whole);
        }
    }
}

/// What is to be sent of a block, as commands.
pub fn discards<'d>(dirty: &'d DirtyPages, idstr: &'d str) -> impl Iterator<Item = Discard> + 'd {
    let mut from = 0;
    let mut next = move || {
        let run = dirty.run(from)?;
        from = run.end;
        Some(bytes(run))
    };
    std::iter::from_fn(move || {
        let runs: Vec<_> = std::iter::from_fn(&mut next).take(MOST_RUNS).collect();
        (!runs.is_empty()).then(|| Discard { idstr: idstr.to_owned(), runs })
    })
}

fn bytes(pages: Range<u64>) -> Range<u64> {
    pages.start << PAGE_BITS..pages.end << PAGE_BITS
}

#[cfg(test)]
mod tests {
    use super::super::super::{BlockMigration, ChunkShift};
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ram::{RamBlockSpec, RamList};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

        #[test]
        fn a_host_page_is_to_come_whole_and_the_commands_name_each_page_once(
            some in prop::collection::btree_set(0..1000u64, 0..80),
            host in prop::sample::select(vec![1u64, 2, 16, 512]),
        ) {
            let block = RamList::new().add(RamBlockSpec::new("ram", 1000 * PAGE_SIZE)).unwrap();
            let dirty = BlockMigration::need_dirty(&block, ChunkShift::default());
            some.iter().for_each(|page| { dirty.set(*page..*page + 1); });
            canonical(&dirty, 1000, host);
            let whole: BTreeSet<u64> =
                some.iter().flat_map(|page| page / host * host..(page / host * host + host).min(1000)).collect();
            prop_assert_eq!(dirty.count(), whole.len() as u64);
            let mut named = Vec::new();
            for discard in discards(&dirty, "ram") {
                prop_assert!((1..=MOST_RUNS).contains(&discard.runs.len()) && discard.idstr == "ram");
                named.extend(discard.runs.into_iter().flat_map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE));
            }
            // In order, and no page twice.
            prop_assert_eq!(named, whole.into_iter().collect::<Vec<_>>());
        }
    }
}
