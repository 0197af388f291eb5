//! `make bench ROW=migrate`, the sixth table: a guest moves to another process, beside QEMU's; what that costs, and a snapshot.
//!
//!   migrate [ROW=name|migrate]... [RUNS=n]          ends with 1 if a figure misses its bar

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::host::Host;
use notdirty_benches::migrate::{self, ROWS, Row};
use notdirty_benches::table;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match &words[..] {
        [word, bytes] if word == migrate::BARE_READER => migrate::bare_reader(bytes).map(|()| true),
        _ => {
            let names = ROWS.iter().map(|row| row.name).collect();
            let rows = Rows { all: ROWS.iter().collect(), names, pick: migrate::pick, elsewhere: |_| false };
            match Args::parse(words.into_iter(), rows, 3, &[]) {
                Err(why) => {
                    eprintln!("migrate: {why}");
                    return ExitCode::from(2);
                }
                Ok(args) => run(&args),
            }
        }
    };
    match done {
        Ok(holds) => ExitCode::from(u8::from(!holds)),
        Err(why) => {
            eprintln!("migrate: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args<&Row>) -> Result<bool, String> {
    table::ours()?;
    let Host { cores, cpu, load, commit, .. } = Host::look();
    println!(
        "host: {cores} x {cpu}, load {load} at the start; commit {commit}; of {} rounds in turns the best of each",
        args.rounds
    );
    println!("{}", migrate::heads());
    let mut all = true;
    for row in &args.rows {
        let (text, holds) = migrate::measure(row, &table::target(), args.rounds)?;
        print!("{text}");
        all &= holds;
    }
    Ok(all)
}
