//! QEMU's system emulator with TCG, the peer that the bars are about: version 10 or newer.

use super::Rival;
use crate::host;

const PROGRAM: &str = "qemu-system-riscv64";

/// QEMU as found on the path; an old one runs but does not count.
pub fn find() -> Option<Rival> {
    let version = host::first_line(PROGRAM, &["--version"])?;
    let does_not_count = match major(&version) {
        Some(major) if major >= 10 => None,
        _ => Some(format!("{version}: older than 10, does not count")),
    };
    let command = [PROGRAM, "-M", "virt", "-accel", "tcg", "-m", "128M", "-bios", "none", "-nographic", "-kernel"];
    Some(Rival {
        name: "QEMU",
        version,
        command: command.map(String::from).to_vec(),
        does_not_count,
        takes_traps: true,
        harts_option: Some("-smp"),
    })
}

fn major(version: &str) -> Option<u32> {
    version.strip_prefix("QEMU emulator version ")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_the_banner() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.1"), Some(7));
        assert_eq!(major("something else"), None);
    }
}
