//! The dirty memory's own table: one question a row, each reference in the same process, in turns with ours.
//!
//! ```text
//!  bin/dirty.rs ─▶ ROWS ─▶ a function builds the row's contenders ─▶ rounds.rs  a check round, then A B C, C B A, …
//!                              │                                         │
//!       read set take sync ring plug memory logging                  table.rs   values, paired ratios, bars; or JSON
//!                              │
//!       flat.rs  the plain designs: one array of words, a mutex around a tree        patterns.rs  which pages are dirty
//!       kvm.rs   the kernel's ring, with a guest that stores                         guest.rs     machines of ours
//!       clock.rs CPU time of a thread: what other processes do to the machine is not in it
//! ```
//!
//! Results are compared in the check round, which is not timed; a contender that differs from ours has no figure.

pub mod clock;
pub mod flat;
pub(crate) mod guest;
pub mod heap;
mod kvm;
mod logging;
mod memory;
pub mod patterns;
mod plug;
mod read;
mod ring;
pub mod rounds;
pub mod row;
mod set;
mod sync;
pub mod table;
mod take;

use row::{Entry, Group};

/// Every row, in the order of the table. What it takes to build one is built when it is its turn.
pub const ROWS: &[Entry] = &[
    Entry { name: "read-guarded", group: Group::Read, build: read::guarded },
    Entry { name: "read-pinning", group: Group::Read, build: read::pinning },
    Entry { name: "read-chained", group: Group::Read, build: read::chained },
    Entry { name: "set-again", group: Group::Set, build: set::again },
    Entry { name: "set-again-2t", group: Group::Set, build: set::again_two_threads },
    Entry { name: "set-new", group: Group::Set, build: set::new },
    Entry { name: "set-new-2t", group: Group::Set, build: set::new_two_threads },
    Entry { name: "set-2MiB", group: Group::Set, build: set::huge },
    Entry { name: "take-full", group: Group::Take, build: take::full },
    Entry { name: "take-half", group: Group::Take, build: take::half },
    Entry { name: "take-runs", group: Group::Take, build: take::runs },
    Entry { name: "take-random", group: Group::Take, build: take::random },
    Entry { name: "sync-full", group: Group::Sync, build: sync::full },
    Entry { name: "sync-half", group: Group::Sync, build: sync::half },
    Entry { name: "sync-runs", group: Group::Sync, build: sync::runs },
    Entry { name: "sync-random", group: Group::Sync, build: sync::random },
    Entry { name: "sync-blocks", group: Group::Sync, build: sync::blocks },
    Entry { name: "rearm", group: Group::Sync, build: sync::rearm },
    Entry { name: "rearm-page", group: Group::Sync, build: sync::rearm_page },
    Entry { name: "rearm-answer", group: Group::Sync, build: sync::answer },
    Entry { name: "ring-push", group: Group::Ring, build: ring::push },
    Entry { name: "ring-harvest", group: Group::Ring, build: ring::harvest },
    Entry { name: "plug-0", group: Group::Plug, build: plug::empty },
    Entry { name: "plug-1000", group: Group::Plug, build: plug::thousand },
    Entry { name: "plug-10000", group: Group::Plug, build: plug::ten_thousand },
    Entry { name: "bytes", group: Group::Memory, build: memory::per_gib },
    Entry { name: "unplugged", group: Group::Memory, build: memory::unplugged },
    Entry { name: "log-rand-store", group: Group::Logging, build: logging::rand_store },
    Entry { name: "log-memcpy", group: Group::Logging, build: logging::memcpy },
];

/// The rows that a word names: a row by its name, a group, `dirty` for all, or else every row whose name starts with it.
pub fn pick(word: &str) -> Vec<Entry> {
    let all = |matches: &dyn Fn(&Entry) -> bool| ROWS.iter().filter(|row| matches(row)).copied().collect::<Vec<_>>();
    let exact = all(&|row| word == "dirty" || row.name == word || row.group.name() == word);
    if exact.is_empty() { all(&|row| row.name.starts_with(word)) } else { exact }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_picked_by_name_group_or_prefix_and_all_of_them_as_dirty() {
        let names = |word| pick(word).iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(names("take-full"), ["take-full"]);
        assert_eq!(names("read").len(), 3);
        assert_eq!(names("set-again"), ["set-again"]);
        assert_eq!(names("take-r"), ["take-runs", "take-random"]);
        assert_eq!(names("dirty").len(), ROWS.len());
        assert!(names("no-such-row").is_empty());
    }

    #[test]
    fn no_name_stands_for_rows_of_two_tables() {
        use crate::rows::{self, programs};
        let here = ROWS.iter().flat_map(|row| [row.name, row.group.name()]);
        let first = rows::all().into_iter().flat_map(|row| [row.name, row.group.name()]);
        let third = programs::all().into_iter().flat_map(|row| [row.name, row.group.name()]);
        let fifth = crate::fuzz::ROWS.iter().map(|row| row.name);
        for name in here.chain(first).chain(third).chain(fifth) {
            let fuzz = !crate::fuzz::pick(name).is_empty();
            let tables = [!pick(name).is_empty(), !rows::pick(name).is_empty(), !programs::pick(name).is_empty(), fuzz];
            assert_eq!(tables.iter().filter(|&&has| has).count(), 1, "{name}");
        }
    }
}
