//! Unicorn, through the runner of the package `notdirty-unicorn`; GPL-2.0-only, so a process and never a dependency.

use std::path::Path;

use super::Rival;
use crate::host;

/// The runner, if `make unicorn` built it.
pub fn find(target: &Path) -> Option<Rival> {
    let binary = target.join("notdirty-unicorn-run").display().to_string();
    let version = host::first_line(&binary, &["--version"])?;
    Some(Rival {
        name: "Unicorn",
        version,
        command: vec![binary],
        does_not_count: None,
        takes_traps: false,
        harts_option: None,
    })
}
