//! `make bench-against`: rows of the first table on this build and on an earlier one.
//!
//!   AGAINST=path/to/earlier/notdirty against [ROW=name|group|prefix]... [RUNS=n]
//!
//! The earlier one is a `target/release/notdirty` of another commit. Fails if a row takes longer than it may.

use std::path::Path;
use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::host::Host;
use notdirty_benches::rivals::ours;
use notdirty_benches::rows::{self, Group, Row, pick};
use notdirty_benches::{against, pairing, table};

fn main() -> ExitCode {
    // What page tables cost is another question.
    let all: Vec<Row> = rows::all().into_iter().filter(|row| !matches!(row.group, Group::Paging)).collect();
    let names = rows::all().iter().map(|row| row.name).collect();
    table::main("against", Rows { all, names, pick, elsewhere: |_| false }, &[], run)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    let path = std::env::var("AGAINST").map_err(|_| "AGAINST=FILE: which earlier notdirty?")?;
    let earlier = ours::at(Path::new(&path)).ok_or_else(|| format!("AGAINST={path}: no such file"))?;
    let rivals = [table::ours()?, earlier];
    let host = Host::look();
    println!(
        "host: {} x {}, load {} at the start; commit {}; the shortest of {} paired rounds",
        host.cores, host.cpu, host.load, host.commit, args.rounds
    );
    println!("against {path}, {}\n\n{}", rivals[1].version, against::heads());
    let mut done = Vec::new();
    for rows in args.rows.chunk_by(Row::same_run) {
        let elf = table::programs("full").join(rows[0].program).with_extension("elf");
        let with = match rows[0].without {
            Some(switch) => rivals.clone().map(|rival| rival.without(switch)),
            None => rivals.clone(),
        };
        for row in pairing::measure(rows, &elf, &with, args.rounds, false) {
            println!("{}", against::line(&row));
            done.push(row);
        }
    }
    println!("\n{}", against::footer(&done));
    match done.iter().filter_map(against::ratio).all(|ratio| ratio <= against::BAR) {
        true => Ok(()),
        false => {
            Err("some rows take longer than they may; again with ROW= and more RUNS= tells noise from loss".into())
        }
    }
}
