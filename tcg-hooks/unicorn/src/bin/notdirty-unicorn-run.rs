//! Runs one bare-metal RISC-V ELF file in Unicorn: `notdirty-unicorn-run FILE.elf`; or the self-modifying suite:
//! `notdirty-unicorn-run smc-test DIR`; or, with `--bench-map N`, times `uc_mem_map` with N blocks present.
//!
//! Its exit code is the guest's; 125 says that the guest trapped, which Unicorn does not pass on to it.

use std::process::ExitCode;

use notdirty_unicorn::board::{self, End};
use notdirty_unicorn::{elf, smc_test};

fn main() -> ExitCode {
    let Some(file) = std::env::args().nth(1) else {
        eprintln!("usage: notdirty-unicorn-run FILE.elf | smc-test DIR | --bench-map N | --version");
        return ExitCode::from(2);
    };
    if file == "--version" {
        println!("Unicorn 2.1.5 (TCG), GPL-2.0-only");
        return ExitCode::SUCCESS;
    }
    if file == "smc-test" {
        let Some(dir) = std::env::args_os().nth(2) else {
            eprintln!("usage: notdirty-unicorn-run smc-test DIR");
            return ExitCode::from(2);
        };
        return match smc_test::run(dir.as_ref()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::from(2)
            }
        };
    }
    if file == "--bench-map" {
        let Some(present) = std::env::args().nth(2).and_then(|n| n.parse().ok()) else {
            eprintln!("usage: notdirty-unicorn-run --bench-map N");
            return ExitCode::from(2);
        };
        return match board::time_mem_map(present) {
            Ok(times) => {
                let times: Vec<String> = times.iter().map(u128::to_string).collect();
                println!("mem_map present={present} ns={}", times.join(","));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&file, &format!("Unicorn: {error:?}")),
        };
    }
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) => return fail(&file, &error.to_string()),
    };
    let program = match elf::parse(&bytes) {
        Ok(program) => program,
        Err(why) => return fail(&file, &why),
    };
    match board::run(&program, &mut std::io::stdout()) {
        Ok(End::Finished(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Ok(End::Trap { number, pc }) => {
            eprintln!("{file}: exception {number} near {pc:#x}; Unicorn does not enter mtvec");
            ExitCode::from(smc_test::TRAP)
        }
        Ok(End::Error(error)) | Err(error) => fail(&file, &format!("Unicorn: {error:?}")),
    }
}

fn fail(file: &str, why: &str) -> ExitCode {
    eprintln!("{file}: {why}");
    ExitCode::from(2)
}
