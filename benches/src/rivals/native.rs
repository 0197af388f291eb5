//! The same program compiled for the host: what there is to reach.

use std::path::Path;

use super::Rival;

/// `binary`, which takes no notice of the ELF file it is given.
pub fn rival(binary: &Path) -> Rival {
    Rival {
        name: "native",
        version: "the host's cc -O2".into(),
        command: vec![binary.display().to_string()],
        does_not_count: None,
        takes_traps: true,
        harts_option: None,
    }
}
