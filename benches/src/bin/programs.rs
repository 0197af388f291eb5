//! `make bench`, the third table: programs of others beside QEMU and beside themselves, compiled for the host.
//!
//!   programs [ROW=name|group|prefix]... [RUNS=n] [--json]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::dirty;
use notdirty_benches::host::{self, Host};
use notdirty_benches::pairing;
use notdirty_benches::report::Report;
use notdirty_benches::rivals::{native, ours, qemu};
use notdirty_benches::rows::programs::{all, pick};
use notdirty_benches::rows::{self, Row};

fn main() -> ExitCode {
    let names = all().iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| !rows::pick(word).is_empty() || !dirty::pick(word).is_empty();
    let rows = Rows { all: all(), names, pick, elsewhere };
    let args = match Args::parse(std::env::args().skip(1), rows, 3, &["--json"]) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("programs: {why}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("programs: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args<Row>) -> Result<(), String> {
    if args.rows.is_empty() {
        return Ok(());
    }
    let json = args.has("--json");
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/programs/build/beside");
    let elf_of = |row: &Row| programs.join(format!("{}.elf", row.program));
    let (here, absent): (Vec<Row>, Vec<Row>) = args.rows.iter().copied().partition(|row| elf_of(row).is_file());
    if !json && !absent.is_empty() {
        let names: Vec<&str> = absent.iter().map(|row| row.name).collect();
        println!(
            "skipped, not in guests/programs/build/beside (see guests/programs/beside/Makefile): {}",
            names.join(", ")
        );
    }
    if here.is_empty() && !json {
        return Ok(());
    }
    let target: PathBuf =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())).unwrap_or_default();
    let mut rivals = vec![ours::find(&target).ok_or("target/release/notdirty is not there: cargo build --release")?];
    rivals.extend(qemu::find());
    rivals.push(native::rival(&programs));
    let perf = host::perf_counts_instructions();
    let mut report = Report { host: Host::look(), rivals, rounds: args.rounds, rows: Vec::new() };
    if !json {
        print!("{}\n{}\n", report.header(), report.column_heads());
    }
    for row in here {
        let mut rivals = report.rivals.clone();
        if let Some(last) = rivals.last_mut() {
            *last = native::rival(&programs.join(row.program));
        }
        for measured in pairing::measure(&[row], &elf_of(&row), &rivals, args.rounds, perf) {
            if !json {
                println!("{}", report.row(&measured));
            }
            report.rows.push(measured);
        }
    }
    if json {
        println!("{}", report.json());
    } else {
        println!("\n{}", report.footer());
    }
    Ok(())
}
