//! `make bench`, the fifth table: a fuzzer's loop beside the best one known on Unicorn.
//!
//!   fuzz [ROW=name|prefix|fuzz]... [RUNS=n]

use std::process::ExitCode;
use std::time::Duration;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::fuzz::{self, ROWS, Row};
use notdirty_benches::host::Host;
use notdirty_benches::{dirty, rows, table};

/// How long a contender runs in each round.
const TIME: Duration = Duration::from_millis(150);

fn main() -> ExitCode {
    let names = ROWS.iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| {
        !rows::pick(word).is_empty() || !dirty::pick(word).is_empty() || !rows::programs::pick(word).is_empty()
    };
    let rows = Rows { all: ROWS.to_vec(), names, pick: fuzz::pick, elsewhere };
    let (why, code) = match Args::parse(std::env::args().skip(1), rows, 5, &[]) {
        Err(why) => (why, 2),
        Ok(args) => match run(&args) {
            Err(why) => (why, 1),
            Ok(()) => return ExitCode::SUCCESS,
        },
    };
    eprintln!("fuzz: {why}");
    ExitCode::from(code)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    if args.rows.is_empty() {
        return Ok(());
    }
    let Host { cores, cpu, load, commit, .. } = Host::look();
    println!(
        "host: {cores} x {cpu}, load {load} at the start; commit {commit}; {} rounds in turns, medians",
        args.rounds
    );
    println!("Unicorn's column needs `make unicorn`\n\n{}", fuzz::heads());
    for row in &args.rows {
        println!("{}", fuzz::measure(row, &table::target(), args.rounds, TIME)?.line());
    }
    Ok(())
}
