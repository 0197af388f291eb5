//! `make bench`, the fourth table: programs under page tables against themselves without.
//!
//!   paged [ROW=name|group|prefix]... [RUNS=n] [--quick]
//!
//! Fails if a bar is missed, and says which; of `--quick`, whose programs are too short for that, only says it.

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::host::Host;
use notdirty_benches::rivals::qemu;
use notdirty_benches::rows::{self, Row, paging};
use notdirty_benches::{dirty, fuzz, paged, table};

fn all() -> Vec<Row> {
    rows::all().into_iter().filter(paging::has_paged).collect()
}

fn pick(word: &str) -> Vec<Row> {
    rows::pick(word).into_iter().filter(paging::has_paged).collect()
}

fn main() -> ExitCode {
    let names = all().iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| {
        !rows::pick(word).is_empty()
            || !dirty::pick(word).is_empty()
            || !rows::programs::pick(word).is_empty()
            || !fuzz::pick(word).is_empty()
    };
    table::main("paged", Rows { all: all(), names, pick, elsewhere }, &["--quick"], run)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    let build = table::programs(if args.has("--quick") { "quick" } else { "full" });
    let (ours, qemu) = (table::ours()?, qemu::find());
    let Host { cores, cpu, load, commit, .. } = Host::look();
    println!(
        "host: {cores} x {cpu}, load {load} at the start; commit {commit}; {} paired rounds, medians",
        args.rounds
    );
    println!("time in S-mode under Sv39, pages of 4 KiB, over that in M-mode; the same programs\n\n{}", paged::heads());
    let mut done = Vec::new();
    for row in &args.rows {
        let measured = paged::measure(row, &build, &ours, qemu.as_ref(), args.rounds)?;
        println!("{}", measured.line());
        done.push(measured);
    }
    print!("\n{}", paged::footer(&done));
    let misses = paged::misses(&done, done.len() == all().len());
    match misses.is_empty() || args.has("--quick") {
        true => Ok(()),
        false => Err(format!("{} bars are missed: {}", misses.len(), misses.join("; "))),
    }
}
