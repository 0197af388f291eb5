//! `make bench`, the first table: every row on every contender that is here, one table.
//!
//!   side_by_side [ROW=name|group|prefix]... [RUNS=n] [--quick] [--json]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use notdirty_benches::dirty;
use notdirty_benches::host::{self, Host};
use notdirty_benches::pairing;
use notdirty_benches::report::Report;
use notdirty_benches::rivals::{ours, qemu, unicorn};
use notdirty_benches::rows::{ROWS, Row, pick};

struct Options {
    rows: Vec<Row>,
    rounds: usize,
    /// The small builds of the guests: to see that everything runs, not to measure.
    quick: bool,
    json: bool,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("side_by_side: {why}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("side_by_side: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { rows: Vec::new(), rounds: 3, quick: false, json: false };
    let mut asked = false;
    for arg in args {
        match arg.split_once('=') {
            Some(("ROW", words)) => {
                asked = true;
                for word in words.split(',') {
                    let rows = pick(word);
                    // The word may be for the other table, which gets the same ones.
                    if rows.is_empty() && dirty::pick(word).is_empty() {
                        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
                        return Err(format!("no row {word}; there are {}", names.join(", ")));
                    }
                    options.rows.extend(rows);
                }
            }
            Some(("RUNS", count)) => {
                options.rounds = count.parse().ok().filter(|&n| n > 0).ok_or(format!("RUNS={count}: not a count"))?;
            }
            None if arg == "--json" => options.json = true,
            None if arg == "--quick" => options.quick = true,
            _ => return Err(format!("{arg}: not an option (ROW=name RUNS=n --quick --json)")),
        }
    }
    if !asked {
        options.rows = ROWS.to_vec();
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), String> {
    if options.rows.is_empty() {
        return Ok(());
    }
    let build = if options.quick { "quick" } else { "full" };
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/programs/build").join(build);
    // The other binaries of this build lie beside this one.
    let target: PathBuf =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())).unwrap_or_default();
    let mut rivals = vec![ours::find(&target).ok_or("target/release/notdirty is not there: cargo build --release")?];
    rivals.extend(qemu::find());
    rivals.extend(unicorn::find(&target));
    let perf = host::perf_counts_instructions();
    let mut report = Report { host: Host::look(), rivals, rounds: options.rounds, rows: Vec::new() };
    if !options.json {
        print!("{}", report.header());
        for (name, how) in [("QEMU", "make deps"), ("Unicorn", "make unicorn")] {
            if !report.rivals.iter().any(|rival| rival.name == name) {
                println!("{name:9} is not here ({how})");
            }
        }
        if !perf {
            println!("perf stat counts no instructions on this host");
        }
        println!("\n{}", report.column_heads());
    }
    for &row in &options.rows {
        let elf = programs.join(row.name).with_extension("elf");
        if !elf.is_file() {
            return Err(format!("{} is not there: make guests, which needs a cross compiler", elf.display()));
        }
        let measured = pairing::measure(row, &elf, &report.rivals, options.rounds, perf);
        if !options.json {
            println!("{}", report.row(&measured));
        }
        report.rows.push(measured);
    }
    if options.json {
        println!("{}", report.json());
    } else {
        println!("\n{}", report.footer());
    }
    Ok(())
}
