//! `make bench`, the fifth table: a fuzzer's loop beside the best one known on Unicorn.
//!
//!   fuzz [ROW=name|prefix|fuzz]... [RUNS=n] [--costs]
//!
//! Behind all rows, or with `--costs` alone, stands what hooks cost by the call, and what a checkpoint and edges cost programs.

use std::process::ExitCode;
use std::time::Duration;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::fuzz::{self, ROWS, Row};
use notdirty_benches::host::Host;
use notdirty_benches::{dirty, rows, table};

/// How long a contender runs in each round.
const TIME: Duration = Duration::from_millis(150);

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|word| word == "--costs") {
        return match costs(3) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("fuzz: {why}");
                ExitCode::FAILURE
            }
        };
    }
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
    if args.rows.len() == ROWS.len() { costs(args.rounds) } else { Ok(()) }
}

/// What hooks cost, and what nobody uses.
fn costs(rounds: usize) -> Result<(), String> {
    println!("\n{:32} {:>7} {:>6}", "a hook", "ns each", "must");
    fuzz::costs::hooks(rounds)?.iter().for_each(|line| println!("{line}"));
    println!("\n{:16} {:24} edges counted, and at most", "times alone", "a checkpoint, at most");
    fuzz::costs::programs(rounds)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
