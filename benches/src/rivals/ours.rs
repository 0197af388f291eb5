//! Our JIT, as the command a user starts.

use std::path::Path;

use super::Rival;
use crate::host;

/// `notdirty run`, built in release; `None` if it is not there.
pub fn find(target: &Path) -> Option<Rival> {
    at(&target.join("notdirty"))
}

/// The same, wherever it is.
pub fn at(binary: &Path) -> Option<Rival> {
    let binary = binary.display().to_string();
    let version = host::first_line(&binary, &["--version"]).unwrap_or_else(|| "notdirty".into());
    Path::new(&binary).is_file().then(|| Rival {
        name: "notdirty",
        version,
        command: vec![binary, "run".into()],
        does_not_count: None,
        takes_traps: true,
        harts_option: Some("--smp"),
    })
}
