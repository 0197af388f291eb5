//! Which options go together, and with which command.

use super::{Args, Command};
use crate::cli::migrate::Move;
use crate::cli::plug::After;
use crate::machine::{Compression, Uri};
use notdirty_tcg::TraceMask;
use notdirty_tcg::riscv::Isa;

/// # Errors
/// A sentence that names the options.
pub(super) fn check(parsed: &Args) -> Result<(), String> {
    if parsed.trace_file.is_some() && parsed.trace == TraceMask::none() {
        return Err("-D needs -d ITEM, for what goes to the file".into());
    }
    let busy = parsed.migrate.is_some() || parsed.checkpoint_at.is_some() || !parsed.plugs.is_empty();
    if parsed.dirty_rate.is_some() && (busy || !parsed.at.is_empty()) {
        return Err("--dirty-rate goes without --migrate, --plug, --checkpoint-at and --at".into());
    }
    if parsed.screenshot.is_some() && parsed.framebuffer.is_none() {
        return Err("--screenshot needs --framebuffer WxH".into());
    }
    if parsed.granularity.is_some() && parsed.signature.is_none() {
        return Err("--signature-granularity needs --signature FILE".into());
    }
    check_snapshot(parsed)?;
    check_migrate(parsed)?;
    check_tls(parsed)?;
    check_files(parsed)?;
    if parsed.signature.is_some() && !matches!(parsed.command, Command::Run(_)) {
        return Err("--signature is for run FILE".into());
    }
    if parsed.isa != Isa::ALL && matches!(parsed.command, Command::Disas(..)) {
        return Err("--isa is for run FILE".into());
    }
    if parsed.checkpoint_at.is_none() && matches!(parsed.command, Command::Replay(..)) {
        return Err("replay needs --checkpoint-at FUNCTION".into());
    }
    if parsed.checkpoint_at.is_none() && parsed.repeat != 1 {
        return Err("--repeat needs --checkpoint-at PLACE".into());
    }
    if parsed.checkpoint_at.is_some() && !parsed.plugs.is_empty() {
        return Err("--plug changes what --checkpoint-at would go back to".into());
    }
    Ok(())
}

/// What is said of snapshots goes with their commands.
fn check_snapshot(parsed: &Args) -> Result<(), String> {
    match (&parsed.command, !parsed.at.is_empty(), parsed.output.is_some()) {
        (Command::Snapshot(_), true, true) | (Command::Squash(_), false, true) => {}
        (Command::Squash(_), _, false) => return Err("squash needs -o SNAPSHOT".into()),
        (Command::Snapshot(_), false, _) => return Err("snapshot needs --at AFTER".into()),
        (Command::Snapshot(_), _, false) => return Err("snapshot needs -o SNAPSHOT".into()),
        (_, true, _) => return Err("--at is for snapshot FILE".into()),
        (_, _, true) => return Err("-o is for snapshot FILE and squash SNAPSHOT".into()),
        _ => {}
    }
    if parsed.json
        && parsed.migrate.is_none()
        && !matches!(
            parsed.command,
            Command::Info(_) | Command::Snapshot(_) | Command::Squash(_) | Command::Incoming(_)
        )
    {
        return Err("--json is for info, snapshot, squash, --incoming and --migrate".into());
    }
    if parsed.postcopy_faults.is_some() && !matches!(parsed.command, Command::Incoming(_)) {
        return Err("--postcopy-faults is for run --incoming: pages are missing there".into());
    }
    if parsed.symbols.is_some() && !matches!(parsed.command, Command::Restore(_) | Command::Incoming(_)) {
        return Err("--symbols is for restore SNAPSHOT and run --incoming: a FILE has its own".into());
    }
    match (&parsed.command, parsed.of_guest.first()) {
        (Command::Restore(_), Some(option)) => Err(format!("{option}: a snapshot has its own")),
        (Command::Incoming(_), Some(option)) => Err(format!("{option}: the machine that comes has its own")),
        _ => Ok(()),
    }
}

/// What is said of a migration goes with it.
fn check_migrate(parsed: &Args) -> Result<(), String> {
    let of_postcopy = [
        (parsed.recover.is_some(), "--recover"),
        (parsed.release_ram, "--release-ram"),
        (parsed.postcopy_bandwidth.is_some(), "--postcopy-bandwidth"),
        (parsed.postcopy.is_some(), "--postcopy"),
    ];
    let given = of_postcopy.into_iter().find(|(given, _)| *given).map(|(_, option)| option);
    if let (Command::Incoming(_), None, Some(option)) = (&parsed.command, &parsed.migrate, given) {
        return Err(format!(
            "{option} is for the side that sends (--migrate): a target does as that says, and waits to be found again"
        ));
    }
    let runs = matches!(parsed.command, Command::Run(_) | Command::Restore(_) | Command::Incoming(_) | Command::Demo);
    match &parsed.migrate {
        None if given.is_some() => Err(format!("{} needs --migrate URI@AFTER", given.unwrap_or_default())),
        None if parsed.bandwidth.is_some() => Err("--bandwidth needs --migrate URI@AFTER".into()),
        None if parsed.downtime.is_some() => Err("--downtime needs --migrate URI@AFTER".into()),
        None if parsed.multifd != 0 => Err("--multifd needs --migrate URI@AFTER".into()),
        _ if parsed.compression != Compression::None && parsed.multifd == 0 => {
            Err("--multifd-compression needs --multifd".into())
        }
        None if parsed.xbzrle.is_some() => Err("--xbzrle needs --migrate URI@AFTER".into()),
        Some(_) if parsed.postcopy.is_none() && given.is_some() => {
            Err(format!("{} needs --postcopy", given.unwrap_or_default()))
        }
        Some(_) if parsed.release_ram && parsed.take_back.is_some() => {
            Err("--release-ram and --take-back exclude each other: a machine without its pages is not taken back"
                .into())
        }
        Some(go) if parsed.postcopy.is_some() && !matches!(go.uri, Uri::Tcp(..) | Uri::Unix(_)) => {
            Err("--postcopy is for tcp: and unix:".into())
        }
        Some(_) if parsed.postcopy.is_some() && parsed.mapped_ram => {
            Err("--postcopy and --mapped-ram exclude each other".into())
        }
        Some(_) if parsed.xbzrle.is_some() && (parsed.multifd != 0 || parsed.mapped_ram) => {
            Err("--xbzrle goes with neither --multifd nor --mapped-ram".into())
        }
        None if parsed.mapped_ram => Err("--mapped-ram needs --migrate file:PATH@AFTER".into()),
        None if parsed.take_back.is_some() => Err("--take-back needs --migrate URI@AFTER".into()),
        Some(_) if parsed.dirty_limit.is_some() && parsed.auto_converge => {
            Err("--dirty-limit and --auto-converge exclude each other".into())
        }
        None if parsed.dirty_limit.is_some() => Err("--dirty-limit needs --migrate URI@AFTER".into()),
        None if parsed.auto_converge => Err("--auto-converge needs --migrate URI@AFTER".into()),
        None => Ok(()),
        Some(go) if parsed.multifd != 0 && !matches!(go.uri, Uri::Tcp(..) | Uri::Unix(_)) => {
            Err("--multifd is for tcp: and unix:".into())
        }
        Some(go) if parsed.mapped_ram && !matches!(go.uri, Uri::File(_, None)) => {
            Err("--mapped-ram is for file:PATH, from its start".into())
        }
        Some(_) if !runs || parsed.checkpoint_at.is_some() => Err("--migrate is for run FILE".into()),
        Some(Move { after: After::Insns(_), .. }) if !parsed.plugs.is_empty() => {
            Err("--migrate after instructions and --plug exclude each other: give a time".into())
        }
        Some(_) => Ok(()),
    }
}

/// How files are written is said of files.
fn check_files(parsed: &Args) -> Result<(), String> {
    let writes = matches!(parsed.command, Command::Snapshot(_) | Command::Squash(_)) || parsed.mapped_ram;
    let stream = parsed.migrate.as_ref().is_some_and(|go| matches!(go.uri, Uri::File(_, None)));
    if parsed.direct_io && !writes && !matches!(parsed.command, Command::Restore(_)) {
        return Err("--direct-io is for snapshot, squash, restore and --mapped-ram".into());
    }
    if parsed.sync && !writes && !stream {
        return Err("--sync is for snapshot, squash and --migrate file:PATH@AFTER".into());
    }
    Ok(())
}

/// A certificate goes with its key and an authority, and with a socket.
fn check_tls(parsed: &Args) -> Result<(), String> {
    let given = [&parsed.tls_cert, &parsed.tls_key, &parsed.tls_ca].map(Option::is_some);
    let socket = |uri: &Uri| matches!(uri, Uri::Tcp(..) | Uri::Unix(_));
    let comes = matches!(&parsed.command, Command::Incoming(uri) if socket(uri));
    let goes = parsed.migrate.as_ref().is_some_and(|go| socket(&go.uri));
    match given {
        [false, false, false] if parsed.tls_name.is_none() => Ok(()),
        [true, true, true] if parsed.tls_name.is_some() && !goes => Err("--tls-name needs --migrate URI@AFTER".into()),
        [true, true, true] if comes || goes => Ok(()),
        [true, true, true] => Err("--tls-cert is for --migrate and --incoming, by tcp: or unix:".into()),
        _ => Err("TLS needs --tls-cert, --tls-key and --tls-ca".into()),
    }
}
