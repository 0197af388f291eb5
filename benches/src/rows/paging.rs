//! What page tables cost: a suite of its own, in which they change, and the programs that run under them as they are.

use super::{Bar, Group, Row, row};

const fn paging(name: &'static str, unit: &'static str, times_qemu: f64) -> Row {
    Row { program: "vm", traps: true, ..row(name, Group::Paging, unit, times_qemu) }
}

/// The rows of the suite; those with 1000 read a word of so many pages after each event.
pub const ROWS: &[Row] = &[
    paging("sfence-page", "fence", 10.0),
    paging("satp", "switch", 10.0),
    paging("sfence-page-1000", "fence", 10.0),
    paging("satp-1000", "switch", 10.0),
    Row { bar: Bar::Nanoseconds(100.0), ..paging("walk", "page", 0.0) },
    paging("process-float", "switch", 3.0),
    paging("patch-alone", "patch", 15.0),
    paging("beside-alone", "store", 1.0),
    paging("patch-aliases", "patch", 15.0),
    paging("beside-aliases", "store", 1.0),
];

/// The program of a row takes no traps and touches nothing of machine mode's, so it is built for supervisor mode as well.
pub fn has_paged(row: &Row) -> bool {
    match row.group {
        Group::Compute | Group::Float | Group::Memory => !row.name.starts_with("mmio"),
        Group::SelfModifying | Group::Reference => row.name.starts_with("smc-"),
        Group::NewCode => row.without.is_none(),
        Group::Large => row.program == row.name,
        _ => false,
    }
}

/// A chain of loads on shuffled frames may take so many times the time that it takes without page tables.
pub const CHASE_BAR: f64 = 2.7;
/// The geometric mean of all rows with shuffled frames, likewise.
pub const SHUFFLED_BAR: f64 = 1.5;
/// Each row with its frames in order, likewise.
pub const ORDERED_BAR: f64 = 1.15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_that_is_held_against_machine_mode_is_built_for_both() {
        let makefile = include_str!("../../../guests/programs/Makefile");
        let (_, after) = makefile.split_once("\nPAGED := ").expect("the list");
        let (list, _) = after.split_once("\npaged = ").expect("what is made of it");
        let built: Vec<&str> = list.split([' ', '\n', '\\']).filter(|word| !word.is_empty()).collect();
        let wanted: Vec<&str> = crate::rows::all().iter().filter(|row| has_paged(row)).map(|row| row.program).collect();
        assert!(wanted.len() > 25);
        for name in &wanted {
            assert!(built.contains(name), "{name} is not built");
        }
        assert_eq!(wanted.len(), built.len());
    }
}
