//! `make bench`, the second table: the dirty memory beside what others do.
//!
//!   dirty [ROW=name|group|prefix|dirty]... [RUNS=n] [--json]

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::dirty::row::Entry;
use notdirty_benches::dirty::{ROWS, heap, pick, rounds, table};
use notdirty_benches::host::Host;
use notdirty_benches::{fuzz, rows};

/// Rows about memory count what is allocated.
#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

fn main() -> ExitCode {
    let names = ROWS.iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| {
        !rows::pick(word).is_empty() || !rows::programs::pick(word).is_empty() || !fuzz::pick(word).is_empty()
    };
    let rows = Rows { all: ROWS.to_vec(), names, pick, elsewhere };
    match Args::parse(std::env::args().skip(1), rows, 7, &["--json"]) {
        Ok(args) => run(&args),
        Err(why) => {
            eprintln!("dirty: {why}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn run(args: &Args<Entry>) {
    if args.rows.is_empty() {
        return;
    }
    let json = args.has("--json");
    let host = Host::look();
    if !json {
        println!("{}", table::header(&host, args.rounds));
    }
    let mut outcomes = Vec::new();
    for entry in &args.rows {
        let outcome = rounds::measure(entry, args.rounds);
        if !json {
            print!("{}", table::row(&outcome));
        }
        outcomes.push(outcome);
    }
    if json {
        println!("{}", table::json(&host, args.rounds, &outcomes));
    } else {
        println!("\n{}", table::footer(&outcomes));
    }
}
