//! `make bench`, the second table: the dirty memory beside what others do.
//!
//!   dirty [ROW=name|group|prefix|dirty]... [RUNS=n] [--json]

use std::process::ExitCode;

use notdirty_benches::dirty::row::Entry;
use notdirty_benches::dirty::{ROWS, heap, pick, rounds, table};
use notdirty_benches::host::Host;
use notdirty_benches::rows;

/// Rows about memory count what is allocated.
#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

struct Options {
    rows: Vec<Entry>,
    rounds: usize,
    json: bool,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => run(&options),
        Err(why) => {
            eprintln!("dirty: {why}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn options(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { rows: Vec::new(), rounds: 7, json: false };
    let mut asked = false;
    for arg in args {
        match arg.split_once('=') {
            Some(("ROW", words)) => {
                asked = true;
                for word in words.split(',') {
                    let picked = pick(word);
                    // The word may be for the other table, which gets the same ones.
                    if picked.is_empty() && rows::pick(word).is_empty() {
                        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
                        return Err(format!("no row {word}; there are {}", names.join(", ")));
                    }
                    options.rows.extend(picked);
                }
            }
            Some(("RUNS", count)) => {
                options.rounds = count.parse().ok().filter(|&n| n > 0).ok_or(format!("RUNS={count}: not a count"))?;
            }
            None if arg == "--json" => options.json = true,
            _ => return Err(format!("{arg}: not an option (ROW=name RUNS=n --json)")),
        }
    }
    if !asked {
        options.rows = ROWS.to_vec();
    }
    Ok(options)
}

fn run(options: &Options) {
    if options.rows.is_empty() {
        return;
    }
    let host = Host::look();
    if !options.json {
        println!("{}", table::header(&host, options.rounds));
    }
    let mut outcomes = Vec::new();
    for entry in &options.rows {
        let outcome = rounds::measure(entry, options.rounds);
        if !options.json {
            print!("{}", table::row(&outcome));
        }
        outcomes.push(outcome);
    }
    if options.json {
        println!("{}", table::json(&host, options.rounds, &outcomes));
    } else {
        println!("\n{}", table::footer(&outcomes));
    }
}
