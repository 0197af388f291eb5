//! The `notdirty` command; all of it is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    notdirty::cli::main(std::env::args_os().skip(1))
}
