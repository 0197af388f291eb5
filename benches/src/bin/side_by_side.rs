//! `make bench`, the first table: every row on every contender that is here, one table.
//!
//!   side_by_side [ROW=name|group|prefix]... [RUNS=n] [--quick] [--json]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::dirty;
use notdirty_benches::host::{self, Host};
use notdirty_benches::pairing;
use notdirty_benches::report::Report;
use notdirty_benches::rivals::{ours, qemu, unicorn};
use notdirty_benches::rows::{self, Row, pick};

fn main() -> ExitCode {
    let all = rows::all();
    let names = all.iter().map(|row| row.name).collect();
    let elsewhere = |word: &str| !dirty::pick(word).is_empty() || !rows::programs::pick(word).is_empty();
    let rows = Rows { all, names, pick, elsewhere };
    let args = match Args::parse(std::env::args().skip(1), rows, 3, &["--quick", "--json"]) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("side_by_side: {why}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("side_by_side: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args<Row>) -> Result<(), String> {
    if args.rows.is_empty() {
        return Ok(());
    }
    let json = args.has("--json");
    // The small builds of the guests are to see that everything runs, not to measure.
    let build = if args.has("--quick") { "quick" } else { "full" };
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/programs/build").join(build);
    // The other binaries of this build lie beside this one.
    let target: PathBuf =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())).unwrap_or_default();
    let mut rivals = vec![ours::find(&target).ok_or("target/release/notdirty is not there: cargo build --release")?];
    rivals.extend(qemu::find());
    rivals.extend(unicorn::find(&target));
    let perf = host::perf_counts_instructions();
    let mut report = Report { host: Host::look(), rivals, rounds: args.rounds, rows: Vec::new() };
    if !json {
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
    for rows in args.rows.chunk_by(Row::same_run) {
        let row = rows[0];
        let elf = programs.join(row.program).with_extension("elf");
        if !elf.is_file() {
            return Err(format!("{} is not there: make guests, which needs a cross compiler", elf.display()));
        }
        let mut rivals = report.rivals.clone();
        if let (Some(switch), Some(ours)) = (row.without, rivals.first_mut()) {
            *ours = ours.without(switch);
        }
        for measured in pairing::measure(rows, &elf, &rivals, args.rounds, perf) {
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
