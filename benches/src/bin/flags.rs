//! `make bench-flags`: what each optimisation of the JIT is worth, by switching it off.
//!
//!   flags [ROW=name|group]... [RUNS=n]
//!
//! One line a row, one column a switch: guest-measured time without it / with everything on, the median of paired runs.

use std::path::Path;
use std::process::{Command, ExitCode};

use notdirty_benches::args::{Args, Rows};
use notdirty_benches::pairing::{self, Measured};
use notdirty_benches::rows::{self, Row, pick};
use notdirty_benches::{stats, table};

/// Rows that say something about a switch, and are over soon. Those of one program are next to each other.
const ROWS: [&str; 14] = [
    "intmix",
    "fib",
    "icall-16",
    "switch",
    "sha256",
    "nbody",
    "memcpy",
    "rand-store",
    "smc-same",
    "smc-emit",
    "amoadd.d",
    "lrsc.d",
    "ld-odd",
    "fence",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("flags: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let all: Vec<Row> = ROWS.iter().flat_map(|name| pick(name)).collect();
    let names = rows::all().iter().map(|row| row.name).collect();
    let rows = Rows { all, names, pick, elsewhere: |_| false };
    let Args { rows, rounds, .. } = Args::parse(std::env::args().skip(1), rows, 3, &[])?;
    let all = table::ours()?;
    let mut rivals = vec![all.clone()];
    let switches = switches(&table::target())?;
    rivals.extend(switches.iter().map(|name| all.without(name)));
    let programs = table::programs("full");
    println!("time without / time with everything on, median of {rounds} paired runs; {}\n", all.version);
    println!("| without | {} |", switches.join(" | "));
    println!("|---|{}", "---|".repeat(switches.len()));
    for rows in rows.chunk_by(Row::same_run) {
        let elf = programs.join(rows[0].program).with_extension("elf");
        for (row, measured) in rows.iter().zip(pairing::measure(rows, &elf, &rivals, rounds, false)) {
            let cells: Vec<String> = (1..rivals.len()).map(|rival| cell(&measured, rival)).collect();
            println!("| {} | {} |", row.name, cells.join(" | "));
        }
    }
    Ok(())
}

/// The switches that the program itself names.
fn switches(target: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(target.join("notdirty"))
        .args(["run", "--jit-off", "help"])
        .output()
        .map_err(|e| format!("notdirty does not run: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(String::from).collect())
}

fn cell(measured: &Measured, rival: usize) -> String {
    match &measured.runs[rival] {
        Err(why) => why.clone(),
        Ok(_) => stats::median(&measured.ratios(rival, 0)).map_or("-".into(), |ratio| format!("{ratio:.2}")),
    }
}
