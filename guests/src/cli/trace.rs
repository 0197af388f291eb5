//! Where `-d`, `--perf-map` and `--jitdump` go.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use notdirty_tcg::perf_map::{JitDump, Marker, PerfMap};
use notdirty_tcg::{NewCode, TraceMask, TraceSink};

use super::args::Args;

/// The first line of a trace or profile that could not be written, in words: what follows is lost, too.
pub(super) type Cut = Arc<OnceLock<String>>;

/// The sink for what was asked for, if anything was; or what is wrong with it, in a line.
pub(super) fn sink(args: &Args, cut: &Cut) -> Result<Option<Box<dyn TraceSink>>, String> {
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
    let file = args.trace_file.clone();
    Ok(Some(Box::new(Sinks { mask, lines, file, map, dump, cut: cut.clone() })))
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
    /// Where they go, if that is a file.
    file: Option<PathBuf>,
    map: Option<PerfMap<File>>,
    dump: Option<(JitDump<File>, Marker)>,
    cut: Cut,
}

impl Sinks {
    // A full disk must not change what the guest does: that is told in the end. A standard error that no process reads any more
    // (`2>&1 | head`) is no failure.
    fn wrote(&self, result: io::Result<()>) {
        if let (Err(e), Some(file)) = (result, &self.file) {
            let _ = self.cut.set(format!("-D {}: {e}: the trace is cut there", file.display()));
        }
    }

    fn profiled(&self, option: &str, result: io::Result<()>) {
        if let Err(e) = result {
            let _ = self.cut.set(format!("{option}: {e}: the profile is cut there"));
        }
    }
}

impl TraceSink for Sinks {
    fn mask(&self) -> TraceMask {
        self.mask
    }

    fn line(&mut self, _what: TraceMask, text: &str) {
        let written = writeln!(self.lines, "{text}");
        self.wrote(written);
    }

    fn code(&mut self, code: &NewCode<'_>) {
        if let Some(map) = &mut self.map {
            let written = map.code(code);
            self.profiled("--perf-map", written);
        }
        if let Some((dump, _)) = &mut self.dump {
            let written = dump.code(code);
            self.profiled("--jitdump", written);
        }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        let flushed = self.lines.flush();
        self.wrote(flushed);
        if let Some(map) = &mut self.map {
            let flushed = map.flush();
            self.profiled("--perf-map", flushed);
        }
        if let Some((dump, _)) = &mut self.dump {
            let flushed = dump.flush();
            self.profiled("--jitdump", flushed);
        }
    }
}
