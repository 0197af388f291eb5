//! The pages that are yet to come, by host pages, as commands.
//!
//! ```text
//!   bmap, pages of 4 KiB    │ .1.. │ .... │ ...1 │ 1... │
//!   canonical, by host page │ 1111 │ .... │ 1111 │ 1111 │     one is placed whole, so all of it is sent again
//!   RAM_DISCARD             └──────┘      └─────────────┘     twelve runs a command
//!   DISCARD_MAP             1111 0000 1111 1111               where there are many: a word for 64 pages
//! ```

use super::super::DirtyPages;
use super::commands::{Command, Discard, DiscardMap, MOST_RUNS, MOST_WORDS};
use crate::addr::PAGE_BITS;
use core::ops::Range;

/// Each host page with a page that is to be sent is to be sent whole. `pages` is the block's length, `host` the pages of a host page.
pub fn canonical(dirty: &DirtyPages, pages: u64, host: u64) {
    if host <= 1 {
        return;
    }
    let mut from = 0;
    while let Some(run) = dirty.run(from).filter(|run| run.start < pages) {
        let whole = run.start / host * host..run.end.next_multiple_of(host).min(pages);
        from = whole.end;
        if whole != run {
            dirty.set(whole);
        }
    }
}

/// As many runs of 1 GiB are named one by one: they are fewer bytes than its map.
const FEW: u64 = 16 * MOST_RUNS as u64;

/// Pages that were named as yet to come while the machine ran: of each block a bit for each page.
#[derive(Debug, Default)]
pub struct Named(pub(super) Vec<Vec<u64>>);

/// What is to be sent of a block with so many pages, as commands; but for what was `named`.
pub fn discards<'d>(
    dirty: &'d DirtyPages,
    idstr: &'d str,
    pages: u64,
    named: &'d [u64],
) -> impl Iterator<Item = Command> + 'd {
    let words = pages.div_ceil(64);
    (0..words).step_by(MOST_WORDS).flat_map(move |first| {
        let mut words = dirty.words(first, MOST_WORDS.min((words - first) as usize));
        let named = named.get(first as usize..).unwrap_or_default();
        words.iter_mut().zip(named).for_each(|(word, named)| *word &= !named);
        // Most often, once the rest was named: then this is all that takes as long as RAM is large.
        if words.iter().fold(0, |all, word| all | word) == 0 {
            return Vec::new();
        }
        let idstr = idstr.to_owned();
        let mut before = 0;
        let runs: u64 = words
            .iter()
            .map(|word| {
                // A page whose page before is none of it begins a run.
                let begin = word & !(word << 1 | before);
                before = word >> 63;
                u64::from(begin.count_ones())
            })
            .sum();
        if runs > FEW {
            return vec![Command::DiscardMap(DiscardMap { idstr, first: first * 64, words })];
        }
        let runs: Vec<_> = runs_of(&words).map(|run| bytes(first * 64 + run.start..first * 64 + run.end)).collect();
        let command = |runs: &[Range<u64>]| Command::Discard(Discard { idstr: idstr.clone(), runs: runs.to_vec() });
        runs.chunks(MOST_RUNS).map(command).collect()
    })
}

/// The runs of ones in these words.
pub(in super::super) fn runs_of(words: &[u64]) -> impl Iterator<Item = Range<u64>> {
    let all = words.len() as u64 * 64;
    // The first bit from there on that is not like `flip`.
    let next = move |from: u64, flip: u64| {
        let mut at = from;
        while at < all {
            let word = (words[(at / 64) as usize] ^ flip) >> (at % 64);
            if word != 0 {
                return at + u64::from(word.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        all
    };
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = next(from, 0);
        from = next(start, u64::MAX);
        (start < all).then_some(start..from)
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
            some in prop::sample::select(vec![80usize, 800])
                .prop_flat_map(|most| prop::collection::btree_set(0..1000u64, 0..most)),
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
            for command in discards(&dirty, "ram", 1000, &[]) {
                prop_assert_eq!(&Command::parse(command.code(), &command.data()).unwrap(), &command);
                match command {
                    Command::Discard(Discard { idstr, runs }) => {
                        prop_assert!((1..=MOST_RUNS).contains(&runs.len()) && idstr == "ram");
                        named.extend(runs.into_iter().flat_map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE));
                    }
                    Command::DiscardMap(DiscardMap { first, words, .. }) => {
                        named.extend((first..).zip(0..words.len() * 64).filter(|(_, n)| words[n / 64] >> (n % 64) & 1 != 0).map(|(page, _)| page));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            // In order, and no page twice.
            prop_assert_eq!(named, whole.into_iter().collect::<Vec<_>>());
        }
    }
}
