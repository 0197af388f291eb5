//! Where `-d`, `--perf-map` and `--jitdump` go.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use notdirty_tcg::perf_map::{JitDump, Marker, PerfMap};
use notdirty_tcg::{NewCode, TraceMask, TraceSink};

use super::args::Args;

/// The sink for what was asked for, if anything was; or what is wrong with it, in a line.
pub(super) fn sink(args: &Args) -> Result<Option<Box<dyn TraceSink>>, String> {
    let profiles = args.perf_map || args.jitdump.is_some();
    if args.trace == TraceMask::none() && !profiles {
        return Ok(None);
    }
    let lines: Box<dyn Write + Send> = match &args.trace_file {
        None => Box::new(io::stderr()),
        Some(path) => match File::create(path) {
            Ok(file) => Box::new(BufWriter::new(file)),
            Err(e) => return Err(format!("-D {}: {e}", path.display())),
        },
    };
    let map = args.perf_map.then(perf_map).transpose()?;
    let dump = args.jitdump.as_deref().map(jitdump).transpose()?;
    let mask = if profiles { args.trace | TraceMask::CODE } else { args.trace };
    Ok(Some(Box::new(Sinks { mask, lines, map, dump })))
}

/// A new file of a predictable name: what lies there is left of another process, or a trap (a link
/// to a file of the user's), so it is not written to.
fn fresh(path: &Path) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Where `perf report` looks for it.
fn perf_map() -> Result<PerfMap<File>, String> {
    let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    fresh(&path).map(PerfMap::new).map_err(|e| format!("--perf-map {}: {e}", path.display()))
}

/// The dump, and the mapping by which `perf inject` finds it.
fn jitdump(dir: &Path) -> Result<(JitDump<File>, Marker), String> {
    let path = dir.join(format!("jit-{}.dump", std::process::id()));
    let open = || {
        let file = fresh(&path)?;
        let dump = JitDump::new(file.try_clone()?)?;
        Ok((dump, Marker::new(&file)?))
    };
    open().map_err(|e: io::Error| format!("--jitdump {}: {e}", path.display()))
}

struct Sinks {
    mask: TraceMask,
    lines: Box<dyn Write + Send>,
    map: Option<PerfMap<File>>,
    dump: Option<(JitDump<File>, Marker)>,
}

// A full disk must not change what the guest does: errors of writing are dropped.
impl TraceSink for Sinks {
    fn mask(&self) -> TraceMask {
        self.mask
    }

    fn line(&mut self, _what: TraceMask, text: &str) {
        let _ = writeln!(self.lines, "{text}");
    }

    fn code(&mut self, code: &NewCode<'_>) {
        if let Some(map) = &mut self.map {
            let _ = map.code(code);
        }
        if let Some((dump, _)) = &mut self.dump {
            let _ = dump.code(code);
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        let _ = self.lines.flush();
    }
}
