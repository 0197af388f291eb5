//! `make bench`, the third table: programs of others beside QEMU and beside themselves, compiled for the host.
//!
//!   programs [ROW=name|group|prefix]... [RUNS=n] [--json]

use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::rivals::{native, qemu};
use notdirty_benches::rows::programs::{all, pick};
use notdirty_benches::rows::{self, Row};
use notdirty_benches::{dirty, fuzz, table};

fn main() -> ExitCode {
    let names = all().iter().map(|row| row.name).collect();
    let elsewhere =
        |word: &str| !rows::pick(word).is_empty() || !dirty::pick(word).is_empty() || !fuzz::pick(word).is_empty();
    table::main("programs", Rows { all: all(), names, pick, elsewhere }, &["--json"], run)
}

fn run(args: &Args<Row>) -> Result<(), String> {
    let programs = table::programs("beside");
    let elf_of = |row: &Row| programs.join(format!("{}.elf", row.program));
    let (here, absent): (Vec<Row>, Vec<Row>) = args.rows.iter().copied().partition(|row| elf_of(row).is_file());
    if !args.has("--json") && !absent.is_empty() {
        let names: Vec<&str> = absent.iter().map(|row| row.name).collect();
        println!(
            "skipped, not in guests/programs/build/beside (see guests/programs/beside/Makefile): {}",
            names.join(", ")
        );
        if here.is_empty() {
            return Ok(());
        }
    }
    let mut rivals = vec![table::ours()?];
    rivals.extend(qemu::find());
    rivals.push(native::rival(&programs));
    table::measure(args, &here, rivals, &[], |row, rivals| {
        if let Some(last) = rivals.last_mut() {
            *last = native::rival(&programs.join(row.program));
        }
        Ok(elf_of(row))
    })
}
