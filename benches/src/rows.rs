//! The rows of the table: guest programs of `guests/programs/bench`, by group, and the bars of each.
//!
//! A program has one row, or prints a line for each of several: rows/large.rs, rows/ops.rs, rows/paging.rs. Programs
//! of others have a table of their own: rows/programs.rs.

mod large;
mod ops;
pub mod paging;
pub mod programs;

/// What a row is about; each group has a geometric mean of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Work in registers and in the first cache.
    Compute,
    /// Floating point.
    Float,
    /// Work for the TLB.
    Memory,
    /// Device accesses, traps, interrupts.
    Event,
    /// Code that is written while it runs.
    SelfModifying,
    /// Code that is run once: what tier 0 makes of it, and what the translator does where there is no tier 0.
    NewCode,
    /// Much code, or code at addresses that collide in a table of 2^n places.
    Large,
    /// One instruction over and over, on one hart or on two at once.
    Ops,
    /// Page tables that change.
    Paging,
    /// Programs of others, whose sources lie beside the project.
    Programs,
    /// What another row is held against.
    Reference,
}

impl Group {
    /// All groups, in the order of the table.
    pub const ALL: [Group; 11] = [
        Group::Compute,
        Group::Float,
        Group::Memory,
        Group::Event,
        Group::SelfModifying,
        Group::NewCode,
        Group::Large,
        Group::Ops,
        Group::Paging,
        Group::Programs,
        Group::Reference,
    ];

    /// The group's name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Group::Compute => "compute",
            Group::Float => "float",
            Group::Memory => "memory",
            Group::Event => "event",
            Group::SelfModifying => "self-modifying",
            Group::NewCode => "new-code",
            Group::Large => "large",
            Group::Ops => "ops",
            Group::Paging => "paging",
            Group::Programs => "programs",
            Group::Reference => "reference",
        }
    }

    /// The bar for the geometric mean of QEMU's time over ours.
    pub fn mean_bar(self) -> Option<f64> {
        match self {
            Group::Compute => Some(1.7),
            Group::Memory => Some(2.5),
            _ => None,
        }
    }
}

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// QEMU's time over ours, at least.
    TimesQemu(f64),
    /// Our nanoseconds for one event, at most.
    Nanoseconds(f64),
}

/// One line of the table: a guest program, or one of the kernels in it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name; a program with several rows prints it.
    pub name: &'static str,
    /// Its ELF file, without the ending.
    pub program: &'static str,
    /// What our JIT does without in it, as for `--jit-off`.
    pub without: Option<&'static str>,
    /// How many harts the machine has.
    pub harts: usize,
    /// Where it counts.
    pub group: Group,
    /// One event, as a word: what the guest's `n=` counts.
    pub unit: &'static str,
    /// What it has to reach.
    pub bar: Bar,
    /// Whether Unicorn can run it: it never enters `mtvec`, so a row with traps is beyond it.
    pub traps: bool,
}

const fn row(name: &'static str, group: Group, unit: &'static str, times_qemu: f64) -> Row {
    Row { name, program: name, without: None, harts: 1, group, unit, bar: Bar::TimesQemu(times_qemu), traps: false }
}

const fn new_code(name: &'static str, without: Option<&'static str>) -> Row {
    let bar = Bar::Nanoseconds(50.0);
    Row { program: "translate", without, bar, ..row(name, Group::NewCode, "insn", 0.0) }
}

const fn trapping(row: Row) -> Row {
    Row { traps: true, ..row }
}

/// A loop that stores into code: at most so many ns a store.
const fn storing(name: &'static str, program: &'static str, harts: usize) -> Row {
    let bar = Bar::Nanoseconds(20.0);
    Row { program, harts, bar, ..row(name, Group::SelfModifying, "store", 0.0) }
}

/// The rows of programs that have one each, and a few more.
const ROWS: &[Row] = &[
    row("intmix", Group::Compute, "round", 1.5),
    row("fib", Group::Compute, "call", 1.0),
    row("icall-1", Group::Compute, "call", 1.0),
    row("icall-16", Group::Compute, "call", 1.0),
    row("switch", Group::Compute, "start", 1.0),
    row("crc32", Group::Compute, "byte", 1.0),
    row("sha256", Group::Compute, "byte", 1.0),
    row("lookups", Group::Compute, "look-up", 2.0),
    row("huffman", Group::Compute, "symbol", 2.5),
    row("matrix", Group::Compute, "mul-add", 1.0),
    row("nbody", Group::Float, "step", 1.5),
    row("stats", Group::Float, "value", 1.5),
    row("dmatrix", Group::Float, "mul-add", 1.5),
    row("whet", Group::Float, "loop", 1.5),
    row("fft", Group::Float, "butterfly", 1.5),
    row("memcpy", Group::Memory, "byte", 1.0),
    row("seq-load", Group::Memory, "load", 1.0),
    row("seq-store", Group::Memory, "store", 1.0),
    row("rand-store", Group::Memory, "store", 8.0),
    row("chase-4K", Group::Memory, "load", 1.0),
    row("chase-1M", Group::Memory, "load", 1.0),
    row("chase-64M", Group::Memory, "load", 1.0),
    row("mmio-read", Group::Event, "read", 4.0),
    row("mmio-write", Group::Event, "write", 4.0),
    row("mtime-read", Group::Event, "read", 4.0),
    trapping(row("ecall", Group::Event, "trap", 4.0)),
    trapping(row("illegal", Group::Event, "trap", 4.0)),
    trapping(row("timer", Group::Event, "interrupt", 4.0)),
    row("smc-other", Group::SelfModifying, "patch", 15.0),
    row("smc-same", Group::SelfModifying, "patch", 15.0),
    row("smc-emit", Group::SelfModifying, "64 insns", 8.0),
    row("smc-beside", Group::SelfModifying, "store", 20.0),
    row("smc-toggle", Group::SelfModifying, "KiB", 10.0),
    storing("line-own", "line", 1),
    storing("line-hart-page", "line-2h", 2),
    storing("line-hart", "line-2h", 2),
    new_code("translate", None),
    new_code("translate-jit", Some("tier0")),
    // smc-beside with its data in a page without code.
    row("smc-apart", Group::Reference, "store", 1.0),
];

/// Pairs of rows: the first may take this many times the second, in our own time.
pub const PAIRS: &[(&str, &str, f64)] =
    &[("smc-beside", "smc-apart", 1.5), ("patch-aliases", "patch-alone", 1.1), ("beside-aliases", "beside-alone", 1.1)];

/// Every row, in the order of the table.
pub fn all() -> Vec<Row> {
    [ROWS, large::ROWS, ops::ROWS, paging::ROWS].concat()
}

impl Row {
    /// Whether one run of a program has both rows.
    pub fn same_run(&self, other: &Row) -> bool {
        (self.program, self.without, self.harts) == (other.program, other.without, other.harts)
    }
}

/// The rows a word on the command line picks: a row by name, a whole group, or all rows whose name starts with it.
pub fn pick(word: &str) -> Vec<Row> {
    pick_from(all(), word)
}

fn pick_from(all: Vec<Row>, word: &str) -> Vec<Row> {
    let exact: Vec<Row> = all.iter().filter(|row| row.name == word || row.group.name() == word).copied().collect();
    if exact.is_empty() { all.into_iter().filter(|row| row.name.starts_with(word)).collect() } else { exact }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_picked_by_name_group_or_prefix() {
        let names = |word| pick(word).iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(names("fib"), ["fib"]);
        assert_eq!(names("chase"), ["chase-4K", "chase-1M", "chase-64M"]);
        assert_eq!(names("event").len(), 6);
        assert!(names("no-such-row").is_empty());
    }

    #[test]
    fn names_are_unique_and_rows_of_one_run_lie_together() {
        let all = all();
        for (at, row) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other.name != row.name), "{} twice", row.name);
        }
        let runs: Vec<&[Row]> = all.chunk_by(Row::same_run).collect();
        for (at, rows) in runs.iter().enumerate() {
            assert!(
                runs[..at].iter().all(|other| !other[0].same_run(&rows[0])),
                "{} is in two places",
                rows[0].program
            );
        }
    }
}
