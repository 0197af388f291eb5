//! Command line: read by hand, since there is little of it and every error should name its flag and its value.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notdirty_tcg::riscv::Isa;
use notdirty_tcg::{EngineKind, ICache, JitFlags, TraceMask};

use super::logging;
use super::migrate::{self, Move};
use super::plug::{self, After, Plug};
use super::postcopy::{self, Switch};
use super::rate::{self, Rate};
use super::signature;
use crate::machine::{ClockKind, Compression, DEFAULT_RAM, LrSc, MAX_CHANNELS, Uri};
use notdirty_core::FaultKind;

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    /// Print this and be done.
    Print(String),
    /// Run a guest, or show its code.
    Run(Box<Args>),
}

/// Which guest.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    /// The embedded one.
    Demo,
    /// This file.
    Run(PathBuf),
    /// This file, with the bytes of another as its input.
    Replay(PathBuf, PathBuf),
    /// Not run, but list this file's code there: a symbol, an address, or a symbol and an offset.
    Disas(PathBuf, String),
    /// Run up to a moment, and written to a file.
    Snapshot(PathBuf),
    /// Such a file, to go on with.
    Restore(PathBuf),
    /// What such a file holds.
    Info(PathBuf),
    /// The last of several that build on each other, to be one.
    Squash(PathBuf),
    /// A machine that comes from there.
    Incoming(Uri),
}

/// How to run it.
#[derive(Debug, PartialEq)]
pub(super) struct Args {
    pub command: Command,
    pub ram_size: u64,
    pub max_ram: Option<u64>,
    pub plugs: Vec<Plug>,
    pub harts: usize,
    /// The seed by which harts take turns.
    pub turns: Option<u64>,
    /// Where a checkpoint is taken.
    pub checkpoint_at: Option<String>,
    /// How often the run from there is run.
    pub repeat: u64,
    pub max_insns: Option<u64>,
    pub timeout: Option<Duration>,
    pub trace: TraceMask,
    pub trace_file: Option<PathBuf>,
    /// What is logged.
    pub log: Option<String>,
    pub semihosting: bool,
    pub stats: bool,
    pub engine: EngineKind,
    pub clock: ClockKind,
    /// When the guest's own stores reach its instruction stream.
    pub icache: ICache,
    /// What an SC notices.
    pub lrsc: LrSc,
    pub isa: Isa,
    pub jit_flags: JitFlags,
    pub perf_map: bool,
    pub jitdump: Option<PathBuf>,
    pub load_addr: Option<u64>,
    pub entry: Option<u64>,
    /// Columns and lines.
    pub framebuffer: Option<(u32, u32)>,
    pub screenshot: Option<PathBuf>,
    pub signature: Option<PathBuf>,
    /// Bytes of a line of the signature.
    pub granularity: Option<u64>,
    /// When snapshots are written, and where.
    pub at: Vec<After>,
    pub output: Option<PathBuf>,
    /// When its dirty rate is told.
    pub dirty_rate: Option<Rate>,
    pub json: bool,
    /// Where the machine is to go, and when.
    pub migrate: Option<Move>,
    /// Bytes a second, at most.
    pub bandwidth: Option<u64>,
    pub downtime: Option<Duration>,
    /// Channels beside the main one.
    pub multifd: usize,
    /// What their pages are packed by.
    pub compression: Compression,
    /// To a file with a home for each page.
    pub mapped_ram: bool,
    /// Pages of files go around the host's cache.
    pub direct_io: bool,
    /// Files are on their disk before they count as written.
    pub sync: bool,
    /// This side's certificate, its key, and the other side's authority.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    /// Of what name the target's certificate is.
    pub tls_name: Option<String>,
    /// Where the machine is written if it may run elsewhere, or not.
    pub take_back: Option<PathBuf>,
    /// The ELF file of a machine that was restored or has come.
    pub symbols: Option<PathBuf>,
    pub auto_converge: bool,
    /// Bytes of pages a second that each hart may dirty.
    pub dirty_limit: Option<u64>,
    /// Bytes of pages that are kept to send what differs.
    pub xbzrle: Option<u64>,
    /// The machine runs there before its pages are there.
    pub postcopy: Option<Switch>,
    pub postcopy_bandwidth: Option<u64>,
    pub release_ram: bool,
    /// How missing pages of a machine that comes are noticed.
    pub postcopy_faults: Option<FaultKind>,
    /// How long a target is looked for again.
    pub recover: Option<Duration>,
    /// What was said of the machine as a guest sees it: a file that is restored says that itself.
    pub of_guest: Vec<String>,
}

/// Options that say what a guest can tell.
const OF_GUEST: [&str; 11] =
    ["m", "maxmem", "smp", "clock", "icache", "lrsc", "isa", "framebuffer", "load-addr", "entry", "semihosting"];

/// Reads the arguments after the program's name.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut queue = args.into_iter();
    let mut words: Vec<OsString> = Vec::new();
    let mut incoming = None;
    let mut parsed = Args {
        command: Command::Demo,
        ram_size: DEFAULT_RAM,
        max_ram: None,
        plugs: Vec::new(),
        harts: 1,
        turns: None,
        checkpoint_at: None,
        repeat: 1,
        max_insns: None,
        timeout: None,
        trace: TraceMask::none(),
        trace_file: None,
        log: None,
        semihosting: true,
        stats: false,
        engine: EngineKind::default(),
        clock: ClockKind::default(),
        icache: ICache::default(),
        lrsc: LrSc::default(),
        isa: Isa::ALL,
        jit_flags: JitFlags::default(),
        perf_map: false,
        jitdump: None,
        load_addr: None,
        entry: None,
        framebuffer: None,
        screenshot: None,
        signature: None,
        granularity: None,
        at: Vec::new(),
        dirty_rate: None,
        output: None,
        json: false,
        migrate: None,
        bandwidth: None,
        downtime: None,
        multifd: 0,
        compression: Compression::None,
        mapped_ram: false,
        direct_io: false,
        sync: false,
        tls_cert: None,
        tls_key: None,
        tls_ca: None,
        tls_name: None,
        take_back: None,
        symbols: None,
        auto_converge: false,
        dirty_limit: None,
        xbzrle: None,
        postcopy: None,
        postcopy_bandwidth: None,
        release_ram: false,
        postcopy_faults: None,
        recover: None,
        of_guest: Vec::new(),
    };
    while let Some(word) = queue.next() {
        let Some(flag) = word.to_str().filter(|w| w.starts_with('-') && w.len() > 1) else {
            words.push(word);
            continue;
        };
        if flag == "--" {
            words.extend(queue);
            break;
        }
        // One dash or two, as people write it; --flag=value or --flag value.
        let bare = flag.strip_prefix("--").unwrap_or(&flag[1..]);
        let (name, inline) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (bare, None),
        };
        let shown = &flag[..flag.len() - bare.len() + name.len()];
        let switch = matches!(
            name,
            "stats"
                | "json"
                | "mapped-ram"
                | "direct-io"
                | "sync"
                | "auto-converge"
                | "perf-map"
                | "h"
                | "help"
                | "V"
                | "version"
        );
        if switch && inline.is_some() {
            return Err(format!("{shown} takes no value"));
        }
        let mut raw = || inline.clone().or_else(|| queue.next()).ok_or_else(|| format!("{shown} needs a value"));
        let mut text = || raw()?.into_string().map_err(|v| format!("{shown} {}: not valid text", v.display()));
        if OF_GUEST.contains(&name) {
            parsed.of_guest.push(shown.to_owned());
        }
        match name {
            "json" => parsed.json = true,
            "migrate" => {
                let value = text()?;
                let form =
                    "must be URI@AFTER, as in tcp:127.0.0.1:4444@2s, unix:/tmp/s@insns:5000 or file:/tmp/f@100ms";
                parsed.migrate =
                    Some(migrate::parse(&value, integer).ok_or_else(|| format!("{shown} {value}: {form}"))?);
            }
            "mapped-ram" => parsed.mapped_ram = true,
            "direct-io" => parsed.direct_io = true,
            "sync" => parsed.sync = true,
            "tls-cert" => parsed.tls_cert = Some(raw()?.into()),
            "tls-key" => parsed.tls_key = Some(raw()?.into()),
            "tls-ca" => parsed.tls_ca = Some(raw()?.into()),
            "tls-name" => parsed.tls_name = Some(text()?),
            "take-back" => parsed.take_back = Some(raw()?.into()),
            "symbols" => parsed.symbols = Some(raw()?.into()),
            "postcopy" => {
                let form = "must be a number of rounds, or a time such as 300ms or 5s";
                let value = inline.as_ref().map(|value| value.to_string_lossy().into_owned());
                let switch = value.as_ref().map_or(Some(Switch::Rounds(0)), |value| postcopy::parse(value, integer));
                parsed.postcopy = Some(switch.ok_or_else(|| format!("{shown}={}: {form}", value.unwrap_or_default()))?);
            }
            "postcopy-bandwidth" => {
                let value = text()?;
                let bytes = size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 128M or 1G"))?;
                parsed.postcopy_bandwidth = Some(bytes);
            }
            "release-ram" => parsed.release_ram = true,
            "postcopy-faults" => {
                let value = text()?;
                parsed.postcopy_faults = Some(match value.as_str() {
                    "software" => FaultKind::Software,
                    "userfaultfd" => FaultKind::Userfaultfd,
                    _ => return Err(format!("{shown} {value}: must be software or userfaultfd")),
                });
            }
            "recover" => {
                let value = text()?;
                let time = match plug::after(&value, integer) {
                    Some(After::Time(time)) => Some(time),
                    _ => None,
                };
                parsed.recover = Some(time.ok_or_else(|| format!("{shown} {value}: not a time such as 300ms or 5s"))?);
            }
            "auto-converge" => parsed.auto_converge = true,
            "multifd" => {
                let value = number(shown, &text()?)?;
                let count = usize::try_from(value).ok().filter(|count| (1..=MAX_CHANNELS).contains(count));
                parsed.multifd =
                    count.ok_or_else(|| format!("{shown} {value}: must be 1 to {MAX_CHANNELS} channels"))?;
            }
            "multifd-compression" => {
                parsed.compression = match text()?.as_str() {
                    "none" => Compression::None,
                    "zstd" if Compression::Zstd.is_built() => Compression::Zstd,
                    "zstd" => return Err(format!("{shown} zstd: this build lacks the feature zstd")),
                    other => return Err(format!("{shown} {other}: must be none or zstd")),
                }
            }
            "incoming" => incoming = Some(text()?.parse::<Uri>().map_err(|why| format!("{shown} {why}"))?),
            "xbzrle" => {
                let value = text()?;
                let bytes = size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 64M"))?;
                parsed.xbzrle = Some(bytes);
            }
            "dirty-limit" => {
                let value = text()?;
                let bytes = size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 16M"))?;
                parsed.dirty_limit = Some(bytes);
            }
            "bandwidth" => {
                let value = text()?;
                let bytes = size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 128M or 1G"))?;
                parsed.bandwidth = Some(bytes);
            }
            "downtime" => {
                let value = text()?;
                let time = match plug::after(&value, integer) {
                    Some(After::Time(time)) => Some(time),
                    _ => None,
                };
                parsed.downtime = Some(time.ok_or_else(|| format!("{shown} {value}: must be 300ms or 2s"))?);
            }
            "dirty-rate" => {
                let value = text()?;
                let rate = rate::parse(&value, integer).ok_or_else(|| format!("{shown} {value}: {}", rate::FORM))?;
                parsed.dirty_rate = Some(rate);
            }
            "o" => parsed.output = Some(raw()?.into()),
            "at" => {
                let value = text()?;
                let after = plug::after(&value, integer);
                parsed.at.push(after.ok_or_else(|| format!("{shown} {value}: must be 100ms, 2s or insns:N"))?);
            }
            "h" | "help" => return Ok(Request::Print(usage::USAGE.into())),
            "V" | "version" => return Ok(Request::Print(format!("notdirty {}\n", env!("CARGO_PKG_VERSION")))),
            "stats" => parsed.stats = true,
            "perf-map" => parsed.perf_map = true,
            "jitdump" => parsed.jitdump = Some(raw()?.into()),
            "m" => {
                let value = text()?;
                parsed.ram_size =
                    size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 128M or 1G"))?;
            }
            "maxmem" => {
                let value = text()?;
                let bytes = size(&value).ok_or_else(|| format!("{shown} {value}: not a size such as 128M or 1G"))?;
                parsed.max_ram = Some(bytes);
            }
            "plug" => {
                let value = text()?;
                let plug = plug::parse(&value, size, integer);
                let form = "must be SIZE@ADDR:AFTER, as in 64M@0x100000000:100ms or 1G@0x100000000:insns:5000";
                parsed.plugs.push(plug.ok_or_else(|| format!("{shown} {value}: {form}"))?);
            }
            "smp" => {
                let value = number(shown, &text()?)?;
                parsed.harts = usize::try_from(value).map_err(|_| format!("{shown} {value}: too many harts"))?;
            }
            "turns" => parsed.turns = Some(number(shown, &text()?)?),
            "checkpoint-at" => parsed.checkpoint_at = Some(text()?),
            "repeat" => match number(shown, &text()?)? {
                0 => return Err(format!("{shown} 0: at least once")),
                n => parsed.repeat = n,
            },
            "framebuffer" => {
                let value = text()?;
                let side = |text| u32::try_from(integer(text)?).ok();
                let sides = value.split_once('x').and_then(|(w, h)| Some((side(w)?, side(h)?)));
                parsed.framebuffer = Some(sides.ok_or_else(|| format!("{shown} {value}: not a size such as 640x480"))?);
            }
            "screenshot" => parsed.screenshot = Some(raw()?.into()),
            "signature" => parsed.signature = Some(raw()?.into()),
            "signature-granularity" => {
                let value = text()?;
                let bytes = integer(&value).filter(|bytes| (1..=signature::LONGEST_WORD).contains(bytes));
                let range = || format!("{shown} {value}: must be 1 to {} bytes", signature::LONGEST_WORD);
                parsed.granularity = Some(bytes.ok_or_else(range)?);
            }
            "max-insns" => parsed.max_insns = Some(number(shown, &text()?)?),
            "load-addr" => parsed.load_addr = Some(number(shown, &text()?)?),
            "entry" => parsed.entry = Some(number(shown, &text()?)?),
            "timeout" => {
                let value = text()?;
                let seconds = value.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
                parsed.timeout = Some(seconds.ok_or_else(|| format!("{shown} {value}: not a number of seconds"))?);
            }
            "engine" => {
                parsed.engine = match text()?.as_str() {
                    "jit" => EngineKind::Jit,
                    "interp" => EngineKind::Interp,
                    other => return Err(format!("{shown} {other}: must be jit or interp")),
                }
            }
            "clock" => {
                parsed.clock = match text()?.as_str() {
                    "host" => ClockKind::Host,
                    "insns" => ClockKind::Insns,
                    other => return Err(format!("{shown} {other}: must be host or insns")),
                }
            }
            "isa" => {
                let value = text()?;
                parsed.isa = Isa::parse(&value).map_err(|part| {
                    format!("--isa {value}: {part} is not among what can be left out ({}; S and U with Sstc are always there)", Isa::ALL)
                })?;
            }
            "icache" => {
                parsed.icache = match text()?.as_str() {
                    "coherent" => ICache::Coherent,
                    "fencei" => ICache::FenceI,
                    other => return Err(format!("{shown} {other}: must be coherent or fencei")),
                }
            }
            "lrsc" => {
                parsed.lrsc = match text()?.as_str() {
                    "cas" => LrSc::Cas,
                    "strict" => LrSc::Strict,
                    other => return Err(format!("{shown} {other}: must be cas or strict")),
                }
            }
            "d" => {
                for item in text()?.split(',').filter(|item| !item.is_empty()) {
                    if item == "help" {
                        return Ok(Request::Print(trace_help()));
                    }
                    let mask = TraceMask::by_name(item);
                    parsed.trace = parsed.trace
                        | mask.ok_or_else(|| format!("{shown} {item}: no such item; -d help lists them"))?;
                }
            }
            "semihosting" => {
                parsed.semihosting = match text()?.as_str() {
                    "on" => true,
                    "off" => false,
                    other => return Err(format!("{shown} {other}: must be on or off")),
                }
            }
            "log" => {
                let value = text()?;
                if !logging::is_filter(&value) {
                    return Err(format!("{shown} {value}: must be {}, or MODULE=LEVEL", logging::LEVELS));
                }
                parsed.log = Some(value);
            }
            "D" => parsed.trace_file = Some(raw()?.into()),
            "jit-off" => {
                for item in text()?.split(',').filter(|item| !item.is_empty()) {
                    if item == "help" {
                        return Ok(Request::Print(JitFlags::NAMES.join("\n") + "\n"));
                    }
                    if !parsed.jit_flags.set(item, false) {
                        return Err(format!("{shown} {item}: no such optimisation; --jit-off help lists them"));
                    }
                }
            }
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    let mut words = words.into_iter();
    match words.next() {
        None if parsed.load_addr.is_some() => return Err("--load-addr is for run FILE".into()),
        None => {}
        Some(word) if word == "help" => return Ok(Request::Print(usage::USAGE.into())),
        Some(word) if word == "demo" => {}
        Some(word) if word == "run" && incoming.is_some() => {
            parsed.command = incoming.take().map_or(Command::Demo, Command::Incoming);
        }
        Some(word) if word == "run" => {
            parsed.command = Command::Run(words.next().ok_or("run needs a FILE")?.into());
        }
        Some(word) if word == "replay" => {
            let file = words.next().ok_or("replay needs a FILE and an INPUT")?;
            let input = words.next().ok_or("replay needs an INPUT after the FILE")?;
            parsed.command = Command::Replay(file.into(), input.into());
        }
        Some(word) if word == "snapshot" => {
            parsed.command = Command::Snapshot(words.next().ok_or("snapshot needs a FILE")?.into());
        }
        Some(word) if word == "restore" => {
            parsed.command = Command::Restore(words.next().ok_or("restore needs a SNAPSHOT")?.into());
        }
        Some(word) if word == "squash" => {
            parsed.command = Command::Squash(words.next().ok_or("squash needs a SNAPSHOT")?.into());
        }
        Some(word) if word == "info" => {
            parsed.command = Command::Info(words.next().ok_or("info needs a SNAPSHOT")?.into());
        }
        Some(word) if word == "disas" => {
            let file = words.next().ok_or("disas needs a FILE and a symbol or address")?;
            let place = words.next().ok_or("disas needs a symbol or address after the FILE")?;
            let place = place.into_string().map_err(|v| format!("disas {}: not valid text", v.display()))?;
            parsed.command = Command::Disas(file.into(), place);
        }
        Some(word) if Path::new(&word).is_file() => {
            return Err(format!("unknown command {0}; a file is run by: notdirty run {0}", word.display()));
        }
        Some(word) => return Err(format!("unknown command {}", word.display())),
    }
    if incoming.is_some() {
        return Err("--incoming is for run, without a FILE".into());
    }
    together::check(&parsed)?;
    match words.next() {
        Some(word) => {
            // Its value is optional, so it does not take the word behind it.
            let file = if let Command::Run(file) = &parsed.command { Some(file.as_os_str()) } else { None };
            let is_after = |word: &&OsStr| word.to_str().is_some_and(|text| postcopy::parse(text, integer).is_some());
            let after = file.into_iter().chain([word.as_os_str()]).find(is_after);
            match after.filter(|_| parsed.postcopy == Some(Switch::Rounds(0))) {
                Some(after) => Err(format!("--postcopy has its value behind a =: --postcopy={}", after.display())),
                None => Err(format!("unexpected argument {}", word.display())),
            }
        }
        None => Ok(Request::Run(Box::new(parsed))),
    }
}

fn trace_help() -> String {
    TraceMask::ITEMS.iter().map(|(name, _, what)| format!("{name:<10} {what}\n")).collect()
}

/// `128M`, `1G`, `64K`, `0x1000B`; without a letter MiB, as users of other emulators expect.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'b' | 'B') if !text.starts_with("0x") => (&text[..at], 0),
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 20),
    };
    let count = integer(digits)?;
    count.checked_mul(1 << shift).filter(|&bytes| bytes != 0)
}

fn number(flag: &str, text: &str) -> Result<u64, String> {
    integer(text).ok_or_else(|| format!("{flag} {text}: not a number of 64 bits (decimal, or hexadecimal with 0x)"))
}

/// Decimal, or hexadecimal with 0x; underscores may part digits. No sign.
pub(super) fn integer(text: &str) -> Option<u64> {
    let text = text.replace('_', "");
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.chars().all(|c| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if text.chars().all(|c| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
mod together;
mod usage;
