//! `make bench`, the first table: every row on every contender that is here, one table.
//!
//!   side_by_side [ROW=name|group|prefix]... [RUNS=n] [--quick] [--json]

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::rivals::{qemu, unicorn};
use notdirty_benches::rows::{self, Row, pick};
use notdirty_benches::{dirty, fuzz, table};

fn main() -> ExitCode {
    let all = rows::all();
    let names = all.iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| {
        !dirty::pick(word).is_empty() || !rows::programs::pick(word).is_empty() || !fuzz::pick(word).is_empty()
    };
    table::main("side_by_side", Rows { all, names, pick, elsewhere }, &["--quick", "--json"], run)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    // The small builds of the guests are to see that everything runs, not to measure.
    let programs = table::programs(if args.has("--quick") { "quick" } else { "full" });
    let mut rivals = vec![table::ours()?];
    let mut notes = Vec::new();
    for (rival, name, how) in
        [(qemu::find(), "QEMU", "make deps"), (unicorn::find(&table::target()), "Unicorn", "make unicorn")]
    {
        match rival {
            Some(rival) => rivals.push(rival),
            None => notes.push(format!("{name:9} is not here ({how})")),
        }
    }
    table::measure(args, &args.rows, rivals, &notes, |row, rivals| {
        let elf = programs.join(row.program).with_extension("elf");
        if !elf.is_file() {
            return Err(format!("{} is not there: make guests, which needs a cross compiler", elf.display()));
        }
        if let (Some(switch), Some(ours)) = (row.without, rivals.first_mut()) {
            *ours = ours.without(switch);
        }
        Ok(elf)
    })
}
