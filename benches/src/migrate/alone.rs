//! What needs no peer: few dirty pages of much RAM, a guest that stores while its RAM is sent, a snapshot.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use notdirty::{LeaveOptions, Machine, RAM_BASE};
use notdirty_core::migration::{Cancel, Channel, Limits, Source, StreamCarrier, StreamWriter};
use notdirty_core::{DirtyClient, RamBlockSpec, RamList};

use super::kept::Kept;
use super::verdict::{Verdict, at_least, at_most};
use crate::dirty::clock::thread_nanos;
use crate::dirty::guest::Stores;
use crate::stats::median;

/// What is said of a row, and what holds.
pub(super) type Figures = (String, Vec<Verdict>);

fn text(why: impl ToString) -> String {
    why.to_string()
}

/// Reads a channel to its end, on a thread of its own.
fn drain(mut from: UnixStream) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let (mut buffer, mut all) = (vec![0; 1 << 20], 0);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            all += count as u64;
        }
        all
    })
}

fn channel(to: UnixStream) -> Result<Channel, String> {
    Channel::new(to.into(), Duration::from_secs(10), Cancel::default()).map_err(text)
}

/// 1,024 pages anywhere in 64 GiB: CPU time of the thread that finds and sends them.
pub(super) fn few(rounds: usize) -> Result<Figures, String> {
    const PAGES: u64 = 1024;
    const ALL: u64 = 64 << 18;
    let list = Arc::new(RamList::new());
    // Without huge pages, so that it needs no more than these pages of the host's memory.
    let block = list.add(RamBlockSpec::new("ram", ALL << 12).huge_pages(false)).map_err(text)?;
    let mut times = Vec::new();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let (to, from) = UnixStream::pair().map_err(text)?;
    let other = drain(from);
    let log = list.log(DirtyClient::MIGRATION).start().map_err(text)?;
    let mut source = Source::new(log, std::slice::from_ref(&block));
    let mut writer = StreamWriter::new(channel(to)?, "bench", &[]).map_err(text)?;
    let mut carrier = StreamCarrier::begin_ram(&mut writer, std::slice::from_ref(&block)).map_err(text)?;
    let limits = Limits::default();
    let random = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % ALL
    });
    let pages: Vec<u64> = random.take(PAGES as usize).collect();
    // The first is that of all of RAM: what a migration keeps of each page has its memory then.
    for round in 0..rounds.max(5) + 1 {
        for page in &pages {
            list.store(&block, page << 12, 8, round as u64 + 1).map_err(text)?;
        }
        let before = source.progress().pages;
        let start = thread_nanos();
        source.last(&mut carrier, &limits).map_err(text)?;
        let spent = (thread_nanos() - start) as f64 / 1e6;
        let sent = source.progress().pages - before;
        if !(PAGES * 9 / 10..=PAGES).contains(&sent) {
            return Err(format!("{sent} pages of {PAGES} were sent"));
        }
        if round > 0 {
            times.push(spent);
        }
    }
    carrier.end_ram().map_err(text)?;
    writer.finish().map_err(text)?;
    drop((source, writer));
    other.join().map_err(|_| "the reader panicked")?;
    let (least, middle) = (times.iter().copied().fold(f64::MAX, f64::min), median(&times).unwrap_or_default());
    let figures =
        format!("  1,024 dirty pages of 64 GiB, found and sent: {least:.3} ms of CPU, {middle:.3} in the middle\n");
    Ok((figures, vec![at_most("ms of CPU", middle, 2.0)]))
}

/// Bytes that a guest stores to.
const STORED: u64 = 64 << 20;

/// What a guest pays that stores all over 64 MiB while its RAM goes, in rounds 100 ms apart: the CPU time of its vCPU's thread, which
/// has a processor for itself, and that of the sender on another one.
pub(super) fn cost(rounds: usize) -> Result<Figures, String> {
    let mut guest = Stores::new("rand-store")?;
    let migrator = guest.migrator();
    let (mut without, mut with, mut after, mut sender) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut passed, mut wall) = (0, 0.0);
    let pinned = Pinned::this_thread(0);
    // Programs in a row, so that many rounds fall into them: milliseconds of CPU for one.
    let run = |guest: &mut Stores| -> Result<f64, String> {
        let (start, mut sum, mut count) = (Instant::now(), 0.0, 0.0);
        while start.elapsed() < Duration::from_millis(1500) {
            sum += guest.run(None)?.total / 1e6;
            count += 1.0;
        }
        Ok(sum / count)
    };
    run(&mut guest)?;
    for _ in 0..rounds.max(3) {
        without.push(run(&mut guest)?);
        let (to, from) = UnixStream::pair().map_err(text)?;
        let other = pinned.elsewhere(|| drain(from));
        let cancel = Cancel::default();
        let channel = Channel::new(to.into(), Duration::from_secs(10), cancel.clone()).map_err(text)?;
        let mut options = LeaveOptions::default();
        // All of it is dirty in each round, so one takes this long; and it never fits into no time at all.
        options.limits.bandwidth = Some(STORED * 10);
        options.limits.downtime = Duration::ZERO;
        let migration = pinned.elsewhere(|| migrator.start(channel, cancel, options)).map_err(text)?;
        let (start, before) = (Instant::now(), thread_time_of("migration"));
        with.push(run(&mut guest)?);
        let spent = thread_time_of("migration").zip(before).map(|(now, before)| now - before);
        passed += migration.status().progress.rounds;
        wall += start.elapsed().as_secs_f64();
        sender.extend(spent.map(|spent| spent / start.elapsed().as_secs_f64()));
        migration.cancel();
        // The machine is told by its next run, if it has not been.
        let ended = migration.wait(Duration::from_secs(10)).ok_or("the migration did not end")?;
        if ended.is_ok() {
            return Err("the guest has left".into());
        }
        other.join().map_err(|_| "the reader panicked")?;
        after.push(run(&mut guest)?);
    }
    let least = |all: &[f64]| all.iter().copied().fold(f64::MAX, f64::min);
    let (without, with, after) = (least(&without), least(&with), least(&after));
    let figures = format!(
        "  rand-store: {without:.2} ms of CPU, {with:.2} while it moves ({:.0} ms a round), {after:.2} after; the sender {:.0} % of a processor\n",
        wall * 1e3 / passed.max(1) as f64,
        median(&sender).unwrap_or(f64::NAN) * 100.0,
    );
    let verdicts = vec![
        at_most("CPU time while it moves, over without", with / without, 1.05),
        at_most("after it, over without", after / without, 1.02),
        at_most("rounds that passed: ms each", wall * 1e3 / passed.max(1) as f64, 130.0),
    ];
    Ok((figures, verdicts))
}

/// Seconds of CPU of the newest thread of this process that has this name.
fn thread_time_of(name: &str) -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let of = |path: std::path::PathBuf| -> Option<(u64, f64)> {
        let comm = std::fs::read_to_string(path.join("comm")).ok()?;
        let id = path.file_name()?.to_str()?.parse().ok()?;
        // The first number: nanoseconds on a processor.
        let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
        (comm.trim() == name).then_some((id, stat.split(' ').next()?.parse::<f64>().ok()? / 1e9))
    };
    tasks.filter_map(|task| of(task.ok()?.path())).max_by_key(|(id, _)| *id).map(|(_, time)| time)
}

/// A thread that has one processor, and those that it starts, which have the others.
struct Pinned {
    all: libc::cpu_set_t,
    own: usize,
}

impl Pinned {
    fn this_thread(nth: usize) -> Pinned {
        // SAFETY: plain data, for which all zeros are the empty set.
        let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes at most its size.
        unsafe { libc::sched_getaffinity(0, size_of_val(&all), &raw mut all) };
        // SAFETY: below the set's size.
        let mut has = (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &all) });
        let pinned = Pinned { all, own: has.nth(nth).unwrap_or(0) };
        pinned.set(|cpu, own| cpu == own);
        pinned
    }

    fn set(&self, wanted: impl Fn(usize, usize) -> bool) {
        // SAFETY: as above.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in 0..libc::CPU_SETSIZE as usize {
            // SAFETY: below the set's size.
            if unsafe { libc::CPU_ISSET(cpu, &self.all) } && wanted(cpu, self.own) {
                // SAFETY: as above.
                unsafe { libc::CPU_SET(cpu, &mut set) };
            }
        }
        // SAFETY: the kernel reads the set. An empty one is refused, and then all stays as it is.
        unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    }

    /// Threads that are started here are on the other processors.
    fn elsewhere<T>(&self, start: impl FnOnce() -> T) -> T {
        self.set(|cpu, own| cpu != own);
        let done = start();
        self.set(|cpu, own| cpu == own);
        done
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.set(|_, _| true);
    }
}

/// A snapshot of 4 GiB in which one page of a hundred is not zero, anywhere; and how fast a full one of 1 GiB is read back, beside a
/// plain read of as much from the same file to untouched memory.
pub(super) fn snapshot(rounds: usize) -> Result<Figures, String> {
    let dir = std::env::temp_dir().join(format!("notdirty-snapshot-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(text)?;
    let path = dir.join("snapshot");
    let done = files(&path, rounds.max(3));
    let _ = std::fs::remove_dir_all(&dir);
    done
}

fn files(path: &std::path::Path, rounds: usize) -> Result<Figures, String> {
    let (mut figures, mut verdicts) = (String::new(), Vec::new());
    for (where_, stride) in [("anywhere", 100), ("in one piece", 1)] {
        let pages: u64 = (4 << 18) / 100;
        let mut machine = Machine::builder().ram_size(4 << 30).build().map_err(text)?;
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        for n in 0..pages {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let page = n * stride + if stride > 1 { seed % stride } else { 0 };
            machine.write(RAM_BASE + (page << 12) + seed % 500 * 8, &seed.to_le_bytes()).map_err(text)?;
        }
        let (mut write, mut read) = (f64::MAX, f64::MAX);
        for _ in 0..rounds {
            let kept = Kept::take(1024);
            drop(kept);
            let start = Instant::now();
            let snapshot = machine.snapshot(path).map_err(text)?;
            write = write.min(start.elapsed().as_secs_f64() * 1e3);
            if snapshot.pages != pages {
                return Err(format!("the snapshot has {} pages of {pages}", snapshot.pages));
            }
            let start = Instant::now();
            let machine = Machine::builder().restore(path).map_err(text)?;
            read = read.min(start.elapsed().as_secs_f64() * 1e3);
            drop(machine);
        }
        figures.push_str(&format!(
            "  4 GiB, {pages} pages not zero, {where_}: {write:.0} ms written, {read:.0} ms read\n"
        ));
        verdicts.push(at_most(&format!("{where_}: ms written and read"), write + read, 200.0));
    }
    let mut machine = Machine::builder().ram_size(1 << 30).build().map_err(text)?;
    for page in 0..1 << 18 {
        machine.write(RAM_BASE + (page << 12), &(page | 1 << 63).to_le_bytes()).map_err(text)?;
    }
    let (mut write, mut read, mut bare) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..rounds {
        drop(Kept::take(2560));
        let start = Instant::now();
        machine.snapshot(path).map_err(text)?;
        write = write.min(start.elapsed().as_secs_f64() * 1e3);
        drop(Kept::take(1024));
        let start = Instant::now();
        drop(Machine::builder().restore(path).map_err(text)?);
        read = read.min(start.elapsed().as_secs_f64() * 1e3);
        drop(Kept::take(1024));
        let start = Instant::now();
        let mut memory = vec![0u8; 1 << 30];
        let mut file = File::open(path).map_err(text)?;
        for piece in memory.chunks_mut(1 << 20) {
            file.read_exact(piece).map_err(text)?;
        }
        bare = bare.min(start.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(&memory);
    }
    figures.push_str(&format!(
        "  1 GiB, all of it not zero: {write:.0} ms written, {read:.0} ms read (page cache), {bare:.0} ms by a plain read of one thread\n"
    ));
    verdicts.push(at_least("a full one: rate of the restore over a plain read's", bare / read, 0.9));
    Ok((figures, verdicts))
}
