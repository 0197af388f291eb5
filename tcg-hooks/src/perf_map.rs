//! What `perf` needs to know of emitted code: the two formats it reads.
//!
//! ```text
//!   PerfMap   text, read by `perf report` from /tmp/perf-PID.map      "7f10 2c tb:main+0x4\n": start, size, name
//!   JitDump   binary, worked in by `perf inject --jit`                header, then a record with the code for each TB
//! ```
//!
//! A map names addresses, whatever was there when: good until host code is reclaimed. A dump has times and bytes, so
//! that `perf annotate` works, and the recording must use the same clock: `perf record -k mono`.
//! No file is opened here; whoever wants a profile gives a `Write`.
use crate::trace::NewCode;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;

/// Entries that may wait in memory: a guest that is killed loses no more.
const FLUSH_EVERY: u32 = 64;

/// Writes a plain map.
pub struct PerfMap<W: Write> {
    out: BufWriter<W>,
    waiting: u32,
}

impl<W: Write> PerfMap<W> {
    /// A map that goes to `out`.
    pub fn new(out: W) -> Self {
        PerfMap { out: BufWriter::new(out), waiting: 0 }
    }

    /// Adds code.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn code(&mut self, code: &NewCode<'_>) -> io::Result<()> {
        let name = code.name.replace(char::is_control, "?");
        writeln!(self.out, "{:x} {:x} {name}", code.address, code.bytes.len())?;
        flush_sometimes(&mut self.out, &mut self.waiting)
    }

    /// Writes what waits in memory, as dropping it does without a word when that fails.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a jitdump, version 1.
pub struct JitDump<W: Write> {
    out: BufWriter<W>,
    waiting: u32,
    index: u64,
    clock: fn() -> u64,
}

/// `JiTD`, as a number of this host's byte order: so `perf` knows the order.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER: u32 = 40;
const EM_X86_64: u32 = 62;
/// The record that says: code was made.
const CODE_LOAD: u32 = 0;
/// Bytes of it before the name.
const LOAD_HEADER: usize = 56;

impl<W: Write> JitDump<W> {
    /// A dump that goes to `out`; times are those of `perf record -k mono`.
    ///
    /// # Errors
    /// Its header cannot be written.
    pub fn new(out: W) -> io::Result<Self> {
        Self::with_clock(out, monotonic)
    }

    fn with_clock(out: W, clock: fn() -> u64) -> io::Result<Self> {
        let mut out = BufWriter::new(out);
        for word in [MAGIC, VERSION, HEADER, EM_X86_64, 0, std::process::id()] {
            out.write_all(&word.to_ne_bytes())?;
        }
        for word in [clock(), 0 /* flags */] {
            out.write_all(&word.to_ne_bytes())?;
        }
        out.flush()?;
        Ok(JitDump { out, waiting: 0, index: 0, clock })
    }

    /// Adds code.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn code(&mut self, code: &NewCode<'_>) -> io::Result<()> {
        let name = code.name.replace(char::is_control, "?");
        let size = LOAD_HEADER + name.len() + 1 + code.bytes.len();
        // SAFETY: the call has no arguments and always succeeds.
        let thread = unsafe { libc::gettid() } as u32;
        let size = u32::try_from(size).map_err(|_| io::Error::other("host code of 4 GiB"))?;
        for word in [CODE_LOAD, size] {
            self.out.write_all(&word.to_ne_bytes())?;
        }
        self.out.write_all(&(self.clock)().to_ne_bytes())?;
        for word in [std::process::id(), thread] {
            self.out.write_all(&word.to_ne_bytes())?;
        }
        for word in [code.address, code.address, code.bytes.len() as u64, self.index] {
            self.out.write_all(&word.to_ne_bytes())?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.out.write_all(code.bytes)?;
        self.index += 1;
        flush_sometimes(&mut self.out, &mut self.waiting)
    }

    /// Writes what waits in memory, as dropping it does without a word when that fails.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn flush_sometimes(out: &mut impl Write, waiting: &mut u32) -> io::Result<()> {
    *waiting += 1;
    if *waiting == FLUSH_EVERY {
        *waiting = 0;
        out.flush()?;
    }
    Ok(())
}

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that may be written; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Shows a running `perf record` where the dump is: it notes executable mappings, and `perf inject` looks among them
/// for a file called `jit-PID.dump`. Nothing is executed there.
pub struct Marker(*mut libc::c_void);

// SAFETY: the mapping has no thread affinity, and nobody reads or writes it.
unsafe impl Send for Marker {}

/// Any page will do; the file has at least its header by then.
const MARKER: usize = 4096;

impl Marker {
    /// Marks this file, which must be open for reading.
    ///
    /// # Errors
    /// The host does not map the file.
    pub fn new(dump: &File) -> io::Result<Marker> {
        // SAFETY: a new private mapping at an address of the kernel's choice; the descriptor is open.
        let at = unsafe {
            let prot = libc::PROT_READ | libc::PROT_EXEC;
            libc::mmap(std::ptr::null_mut(), MARKER, prot, libc::MAP_PRIVATE, dump.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Marker(at)) }
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nobody has a pointer into it.
        unsafe { libc::munmap(self.0, MARKER) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn taken(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }
    }

    const CODE: NewCode<'_> = NewCode { name: "tb:main+0x4", address: 0x7f00_1234_5670, bytes: &[0x90, 0x90, 0xc3] };

    #[test]
    fn a_map_has_a_line_a_tb() {
        let sink = Sink::default();
        let mut map = PerfMap::new(sink.clone());
        map.code(&CODE).unwrap();
        map.code(&NewCode { name: "two\nlines", address: 0x10, bytes: &[0; 44] }).unwrap();
        drop(map);
        assert_eq!(String::from_utf8(sink.taken()).unwrap(), "7f0012345670 3 tb:main+0x4\n10 2c two?lines\n");
    }

    #[test]
    fn entries_reach_the_file_before_the_end() {
        let sink = Sink::default();
        let mut map = PerfMap::new(sink.clone());
        for _ in 0..FLUSH_EVERY + 1 {
            map.code(&CODE).unwrap();
        }
        let lines = sink.taken().iter().filter(|&&b| b == b'\n').count();
        assert_eq!(lines, FLUSH_EVERY as usize);
    }

    #[test]
    fn a_dump_has_a_header_of_40_bytes_and_records_that_say_their_size() {
        let sink = Sink::default();
        let mut dump = JitDump::with_clock(sink.clone(), || 0x1122_3344_5566).unwrap();
        dump.code(&CODE).unwrap();
        dump.code(&CODE).unwrap();
        drop(dump);
        let bytes = sink.taken();
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([u32_at(0), u32_at(4), u32_at(8), u32_at(12)], [0x4a69_5444, 1, 40, 62]);
        assert_eq!([u32_at(16), u32_at(20)], [0, std::process::id()]);
        assert_eq!([u64_at(24), u64_at(32)], [0x1122_3344_5566, 0]);
        let size = 56 + CODE.name.len() + 1 + CODE.bytes.len();
        assert_eq!(bytes.len(), 40 + 2 * size);
        for (n, at) in [40, 40 + size].into_iter().enumerate() {
            assert_eq!([u32_at(at), u32_at(at + 4)], [0, size as u32]);
            assert_eq!(
                [u64_at(at + 8), u64_at(at + 24), u64_at(at + 32)],
                [0x1122_3344_5566, CODE.address, CODE.address]
            );
            assert_eq!([u64_at(at + 40), u64_at(at + 48)], [3, n as u64]);
            assert_eq!(&bytes[at + 56..at + 67], CODE.name.as_bytes());
            assert_eq!(&bytes[at + 67..at + size], [0, 0x90, 0x90, 0xc3]);
        }
    }
}
