//! Runs one bare-metal RISC-V ELF file in Unicorn: `notdirty-unicorn-run FILE.elf`.
//!
//! Its exit code is the guest's; 125 says that the guest trapped, which Unicorn does not pass on to it.

use std::process::ExitCode;

use notdirty_unicorn::board::{self, End};
use notdirty_unicorn::elf;

fn main() -> ExitCode {
    let Some(file) = std::env::args().nth(1) else {
        eprintln!("usage: notdirty-unicorn-run FILE.elf | --version");
        return ExitCode::from(2);
    };
    if file == "--version" {
        println!("Unicorn 2.1.5 (TCG), GPL-2.0-only");
        return ExitCode::SUCCESS;
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
            ExitCode::from(125)
        }
        Ok(End::Error(error)) | Err(error) => fail(&file, &format!("Unicorn: {error:?}")),
    }
}

fn fail(file: &str, why: &str) -> ExitCode {
    eprintln!("{file}: {why}");
    ExitCode::from(2)
}
