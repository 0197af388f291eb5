//! What the tables of programs share: a command line, then row after row measured on every rival that is here, and printed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::args::{Args, Rows};
use crate::host::{self, Host};
use crate::pairing;
use crate::report::Report;
use crate::rivals::{Rival, ours};
use crate::rows::Row;

/// The `main` of a table called `name`: 2 for a command line that cannot be read, 1 for a run that fails.
pub fn main(
    name: &str,
    rows: Rows<Row>,
    switches: &[&'static str],
    run: fn(&Args<Row>) -> Result<(), String>,
) -> ExitCode {
    let tell = |why: String, code: u8| {
        eprintln!("{name}: {why}");
        ExitCode::from(code)
    };
    match Args::parse(std::env::args().skip(1), rows, 3, switches) {
        Err(why) => tell(why, 2),
        Ok(args) if args.rows.is_empty() => ExitCode::SUCCESS,
        Ok(args) => run(&args).map_or_else(|why| tell(why, 1), |()| ExitCode::SUCCESS),
    }
}

/// Where the guest programs of the build `name` lie.
pub fn programs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/programs/build").join(name)
}

/// The directory of this binary, where the other binaries of its build lie too.
pub fn target() -> PathBuf {
    std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())).unwrap_or_default()
}

/// Our own command, or how to build it.
pub fn ours() -> Result<Rival, String> {
    ours::find(&target()).ok_or_else(|| "target/release/notdirty is not there: cargo build --release".into())
}

/// Measures `rows` in `rounds` rounds and prints them as they come, or all at the end as JSON. `notes` stand below the header;
/// `on` gives the file of a row, and may change the rivals for it.
pub fn measure(
    args: &Args<Row>,
    rows: &[Row],
    rivals: Vec<Rival>,
    notes: &[String],
    on: impl Fn(&Row, &mut [Rival]) -> Result<PathBuf, String>,
) -> Result<(), String> {
    let json = args.has("--json");
    let perf = host::perf_counts_instructions();
    let mut report = Report { host: Host::look(), rivals, rounds: args.rounds, rows: Vec::new() };
    if !json {
        print!("{}", report.header());
        notes.iter().for_each(|note| println!("{note}"));
        if !perf {
            println!("perf stat counts no instructions on this host");
        }
        println!("\n{}", report.column_heads());
    }
    for together in rows.chunk_by(Row::same_run) {
        let mut rivals = report.rivals.clone();
        let elf = on(&together[0], &mut rivals)?;
        for measured in pairing::measure(together, &elf, &rivals, args.rounds, perf) {
            if !json {
                println!("{}", report.row(&measured));
            }
            report.rows.push(measured);
        }
    }
    match json {
        true => println!("{}", report.json()),
        false => println!("\n{}", report.footer()),
    }
    Ok(())
}
