//! `make bench ROW=migrate`, the sixth table: a guest moves to another process, beside QEMU's.
//!
//!   migrate [ROW=name|migrate]... [RUNS=n]

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::host::Host;
use notdirty_benches::migrate::{self, ROWS, Row};
use notdirty_benches::table;

fn main() -> ExitCode {
    let names = ROWS.iter().map(|row| row.name).collect();
    let rows = Rows { all: ROWS.to_vec(), names, pick: migrate::pick, elsewhere: |_| false };
    let (why, code) = match Args::parse(std::env::args().skip(1), rows, 3, &[]) {
        Err(why) => (why, 2),
        Ok(args) => match run(&args) {
            Err(why) => (why, 1),
            Ok(()) => return ExitCode::SUCCESS,
        },
    };
    eprintln!("migrate: {why}");
    ExitCode::from(code)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    table::ours()?;
    let Host { cores, cpu, load, commit, .. } = Host::look();
    println!(
        "host: {cores} x {cpu}, load {load} at the start; commit {commit}; {} rounds in turns, medians",
        args.rounds
    );
    println!("rate: ours over QEMU's; total: QEMU's over ours\n\n{}", migrate::heads());
    for row in &args.rows {
        println!("{}", migrate::measure(row, &table::target(), args.rounds)?);
    }
    Ok(())
}
