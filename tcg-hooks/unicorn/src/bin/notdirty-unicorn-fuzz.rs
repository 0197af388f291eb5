//! The best snapshot-fuzzing loop known on Unicorn, for the fifth table of `make bench`:
//!
//!   notdirty-unicorn-fuzz reset|alone FILE ENTRY DONE PAGES ROUNDS MILLIS
//!
//! One endless `emu_start`: the hook at the end of a run copies back the pages that it was told, from an image of RAM, and sets the
//! arguments; the target jumps to its start by itself. With `alone` the target runs many times before it comes to its end, and
//! nothing is put back. Prints what the target computed and stored, and the nanoseconds of CPU time of a run: the median of batches.

use std::process::ExitCode;
use std::time::Duration;

use unicorn_engine::{Arch, Mode, Prot, RegisterRISCV, Unicorn, uc_error};

const RAM: u64 = 0x8000_0000;
const SIZE: usize = 16 << 20;
const PAGE: usize = 4096;
const DATA: usize = 1 << 20;
/// Where on a page the target stores.
const OFFSET: usize = 8;
/// Nanoseconds of a batch.
const BATCH: u64 = 1_000_000;
const WARM: u64 = 2000;
/// Runs by itself before it comes to its end.
const ALONE: u64 = 100;

struct Job {
    alone: bool,
    code: Vec<u8>,
    entry: u64,
    done: u64,
    pages: usize,
    rounds: u64,
    time: u64,
}

/// Where the loop is.
struct Clock {
    /// Ends of a run until the next batch.
    left: u64,
    /// Of a batch; zero: warming up.
    ends: u64,
    start: u64,
    began: u64,
    batches: Vec<f64>,
    t2: u64,
    word: u64,
}

/// RAM that Unicorn uses by its host address, of whole pages.
struct Pages(Vec<[u8; PAGE]>);

impl Pages {
    fn new() -> Pages {
        Pages(vec![[0; PAGE]; SIZE / PAGE + 1])
    }

    /// The first byte that lies at a page's start.
    fn start(&mut self) -> *mut u8 {
        let at = self.0.as_mut_ptr().cast::<u8>();
        // One page more than SIZE is there.
        at.wrapping_add(at.align_offset(PAGE))
    }
}

fn main() -> ExitCode {
    let Some(job) = job() else {
        eprintln!("usage: notdirty-unicorn-fuzz reset|alone FILE ENTRY DONE PAGES ROUNDS MILLIS");
        return ExitCode::from(2);
    };
    match run(&job) {
        Ok(line) => println!("{line}"),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn job() -> Option<Job> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [mode, file, entry, done, pages, rounds, millis] = <[String; 7]>::try_from(words).ok()?;
    let alone = match &mode[..] {
        "reset" => false,
        "alone" => true,
        _ => return None,
    };
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let pages = pages.parse().ok().filter(|pages| *pages < (SIZE - DATA) / PAGE)?;
    let code = std::fs::read(file).ok().filter(|code| code.len() <= DATA)?;
    Some(Job {
        alone,
        code,
        entry: RAM + hex(&entry)?,
        done: RAM + hex(&done)?,
        pages,
        rounds: rounds.parse().ok()?,
        time: Duration::from_millis(millis.parse().ok()?).as_nanos() as u64,
    })
}

fn arguments(uc: &mut Unicorn<'_, Clock>, job: (u64, u64, u64)) -> Result<(), uc_error> {
    uc.reg_write(RegisterRISCV::A0, job.0)?;
    uc.reg_write(RegisterRISCV::A1, RAM + DATA as u64)?;
    uc.reg_write(RegisterRISCV::A2, job.1)?;
    if job.2 > 1 {
        uc.reg_write(RegisterRISCV::S0, job.2 - 1)?;
    }
    Ok(())
}

fn run(job: &Job) -> Result<String, String> {
    let said = |error: uc_error| format!("Unicorn: {error:?}");
    let (mut ram, mut image) = (Pages::new(), Pages::new());
    let (host, copy) = (ram.start(), image.start());
    for at in [host, copy] {
        // SAFETY: `job` checked the length, and `at` has SIZE bytes.
        unsafe { std::ptr::copy_nonoverlapping(job.code.as_ptr(), at, job.code.len()) };
    }
    let now = thread_nanos();
    let clock = Clock { left: WARM, ends: 0, start: now, began: now, batches: Vec::new(), t2: 0, word: 0 };
    let mut uc = Unicorn::new_with_data(Arch::RISCV, Mode::RISCV64, clock).map_err(said)?;
    // SAFETY: `ram` outlives `uc`, and has SIZE bytes from `host` on.
    unsafe { uc.mem_map_ptr(RAM, SIZE as u64, Prot::ALL, host.cast()) }.map_err(said)?;
    let runs = if job.alone { ALONE } else { 1 };
    let args = (job.pages as u64, job.rounds, runs);
    for (register, value) in
        [(RegisterRISCV::S2, args.0), (RegisterRISCV::S3, RAM + DATA as u64), (RegisterRISCV::S4, args.1)]
    {
        uc.reg_write(register, value).map_err(said)?;
    }
    arguments(&mut uc, args).map_err(said)?;
    if job.alone {
        uc.get_data_mut().left = WARM / ALONE;
    }
    let (told, time) = (if job.alone { 0 } else { job.pages }, job.time);
    let hook = move |uc: &mut Unicorn<'_, Clock>, _: u64, _: u32| {
        if uc.get_data().left == 1 {
            let t2 = uc.reg_read(RegisterRISCV::T2).unwrap_or_default();
            // SAFETY: inside RAM, and the target, which writes it, stands still.
            let word = unsafe { host.add(DATA + OFFSET).cast::<u64>().read() };
            (uc.get_data_mut().t2, uc.get_data_mut().word) = (t2, word);
        }
        for page in 0..told {
            let at = DATA + page * PAGE;
            // SAFETY: `job` checked that the pages lie in RAM; the image has as many.
            unsafe { std::ptr::copy_nonoverlapping(copy.add(at), host.add(at), PAGE) };
        }
        if arguments(uc, args).is_err() || uc.get_data_mut().ended(runs, time) {
            uc.emu_stop().ok();
        }
    };
    uc.add_code_hook(job.done, job.done, hook).map_err(said)?;
    uc.emu_start(job.entry, RAM + SIZE as u64 - 4, 0, 0).map_err(said)?;
    // SAFETY: both have SIZE bytes, and neither is written any more.
    let same = unsafe { std::slice::from_raw_parts(host, SIZE) == std::slice::from_raw_parts(copy, SIZE) };
    if !same && !job.alone {
        return Err("RAM is not what it was".into());
    }
    let clock = uc.get_data_mut();
    clock.batches.sort_by(f64::total_cmp);
    let median = clock.batches.get(clock.batches.len() / 2).ok_or("no time to measure")?;
    Ok(format!("t2={:#x} word={} ns={median:.1}", clock.t2, clock.word))
}

impl Clock {
    /// A run ended, or `runs` of them. Is it enough?
    fn ended(&mut self, runs: u64, time: u64) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        let now = thread_nanos();
        let took = (now - self.start).max(1);
        if self.ends == 0 {
            self.ends = (BATCH * (WARM / runs) / took).max(1);
            self.began = now;
        } else {
            self.batches.push(took as f64 / (self.ends * runs) as f64);
            if now - self.began > time {
                return true;
            }
        }
        self.left = self.ends;
        self.start = now;
        false
    }
}

/// CPU time of this thread: what other processes do to the machine is not in it.
fn thread_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of ours; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
