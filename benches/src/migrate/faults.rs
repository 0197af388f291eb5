//! How long a page is waited for, on a channel that carries nothing else; and 32 bytes there, 4 KiB back by bare threads.

use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use notdirty::programs::basic;
use notdirty::{Cancel, Channel, FaultKind, LeaveOptions, Machine, Postcopy, Program, RAM_BASE, Road, RunLimits};

use notdirty_core::migration::postcopy::{AskedPages, Moment, Notifiers};

use super::alone::Figures;
use super::pointers;
use super::verdict::at_most;
use crate::stats::median;

/// Pages that are waited for.
const PAGES: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(60);

fn text(why: impl ToString) -> String {
    why.to_string()
}

fn channel(socket: UnixStream) -> Result<Channel, String> {
    Channel::new(socket.into(), LIMIT, Cancel::default()).map_err(text)
}

/// Microseconds of each page that a thread of the target reads, one after the other, none of them near the one before: by the machine's own
/// call, or by pointer.
fn ours(kind: FaultKind) -> Result<Vec<f64>, String> {
    let program = Program::Image(basic::spin());
    let mut machine = Machine::builder().ram_size(64 << 20).program(program).build().map_err(text)?;
    let page = |n: u64| RAM_BASE + (16 << 20) + n * 2654435761 % PAGES * 4096;
    for n in 0..PAGES {
        machine.write(page(n) + 8, &n.to_le_bytes()).map_err(text)?;
    }
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(0);
    // Nothing but what is asked for.
    how.bandwidth = Some(1);
    options.postcopy = Some(how);
    let pair = || {
        let (to, from) = UnixStream::pair().map_err(text)?;
        Ok::<_, String>((channel(to)?, channel(from)?))
    };
    let ((to, from), (urgent, asked), migrator) = (pair()?, pair()?, machine.migrator());
    let road = Road::beside(to, vec![], Some(urgent)).map_err(text)?;
    std::thread::scope(|scope| {
        let source =
            scope.spawn(|| machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + LIMIT) }));
        let migration = migrator.start(road, Cancel::default(), options).map_err(text)?;
        let mut asked = Some(asked);
        let mut more = |_: Duration| asked.take().ok_or_else(|| ErrorKind::NotConnected.into());
        let (notifiers, block) = (Notifiers::default(), Arc::new(OnceLock::new()));
        let found = block.clone();
        let _guard = notifiers.add("pointers", move |notice| {
            let blocks = notice.pages.into_iter().flat_map(|pages| pages.blocks());
            if let (Moment::Listen, Some(ram)) = (notice.moment, blocks.max_by_key(|block| block.used_length())) {
                let _ = found.set(ram.clone());
            }
            Ok(())
        });
        let builder = Machine::builder().postcopy_notifiers(&notifiers).postcopy_faults(kind);
        let there = builder.receive_with(from, &mut more, |_| Ok(())).map_err(text)?;
        let block = block.get().ok_or("nothing is missing")?;
        let mut times = Vec::new();
        for n in 0..PAGES {
            let (mut word, start) = ([0; 8], Instant::now());
            let read = match kind {
                FaultKind::Software => there.read(page(n) + 8, &mut word).map_err(text),
                FaultKind::Userfaultfd => {
                    word = pointers::peek(block, page(n) - RAM_BASE + 8).to_le_bytes();
                    Ok(())
                }
            };
            times.push(start.elapsed().as_secs_f64() * 1e6);
            read?;
            if word != n.to_le_bytes() {
                return Err(format!("page {n} has another's bytes"));
            }
        }
        let asked = there.arrival().map_or(0, |arrival| arrival.status().requests);
        // What nothing asked for is left behind.
        drop(there);
        migration.abandon();
        let _ = migration.wait(LIMIT);
        source.join().map_err(|_| "the source panicked")?;
        if asked < PAGES * 9 / 10 { Err(format!("{asked} pages of {PAGES} were waited for")) } else { Ok(times) }
    })
}

/// Reads all of it. It looks for as long as the two ends of ours do before it sleeps: a sleep of either end is most of a round trip.
fn read(from: &UnixStream, into: &mut [u8]) -> std::io::Result<()> {
    let mut had = 0;
    while had < into.len() {
        let left = &mut into[had..];
        // SAFETY: the kernel writes at most as many bytes as `left` has.
        let mut recv = |flags| unsafe { libc::recv(from.as_raw_fd(), left.as_mut_ptr().cast(), left.len(), flags) };
        let begun = Instant::now();
        let mut count = recv(libc::MSG_DONTWAIT);
        while count < 0 && begun.elapsed() < AskedPages::LOOK {
            std::hint::spin_loop();
            count = recv(libc::MSG_DONTWAIT);
        }
        match if count < 0 { recv(0) } else { count } {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => had += usize::try_from(count).map_err(|_| std::io::Error::last_os_error())?,
        }
    }
    Ok(())
}

/// The same of two threads that do nothing else.
fn bare() -> Result<Vec<f64>, String> {
    let (mut to, mut from) = UnixStream::pair().map_err(text)?;
    // The other thread ends when this one's socket does, which is within.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            let (mut request, page) = ([0; 32], [7; 4096]);
            while read(&from, &mut request).is_ok() && from.write_all(&page).is_ok() {}
        });
        let (request, mut page, mut times) = ([1; 32], [0; 4096], Vec::new());
        for _ in 0..PAGES {
            let start = Instant::now();
            to.write_all(&request).and_then(|()| read(&to, &mut page)).map_err(text)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        drop(to);
        Ok(times)
    })
}

fn quantile(times: &[f64], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn middle(all: &[Vec<f64>]) -> f64 {
    let middles: Vec<f64> = all.iter().filter_map(|times| median(times)).collect();
    middles.into_iter().fold(f64::MAX, f64::min)
}

fn late(all: &[Vec<f64>]) -> f64 {
    all.iter().map(|times| quantile(times, 0.99)).fold(f64::MAX, f64::min)
}

/// The same by pointer, beside a bare request and a bare fault. Turn by turn, so often.
pub(super) fn userfaults(rounds: usize) -> Result<Figures, String> {
    let (mut waits, mut pairs, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(3) {
        waits.push(ours(FaultKind::Userfaultfd)?);
        pairs.push(bare()?);
        faults.push(pointers::bare(PAGES)?);
    }
    let (ours, request, fault) = (middle(&waits), middle(&pairs), middle(&faults));
    let figures = format!(
        "  a missing page by userfaultfd, {PAGES} of them one by one: {ours:.1} us in the middle, {:.1} for 99 of 100\n  \
         32 bytes there and 4 KiB back: {request:.1} us, {:.1}; a fault that is answered at once: {fault:.1} us, {:.1}\n",
        late(&waits),
        late(&pairs),
        late(&faults)
    );
    let bar = 1.5 * request + fault;
    Ok((figures, vec![at_most("a missing page over 1.5 bare requests and a bare fault", ours / bar, 1.0)]))
}

/// Turn by turn, so often.
pub(super) fn faults(rounds: usize) -> Result<Figures, String> {
    let (mut waits, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(3) {
        waits.push(ours(FaultKind::Software)?);
        pairs.push(bare()?);
    }
    let (ours, bare) = (middle(&waits), middle(&pairs));
    let figures = format!(
        "  a missing page, {PAGES} of them one by one: {ours:.1} us in the middle, {:.1} for 99 of 100\n  \
         32 bytes there and 4 KiB back: {bare:.1} us in the middle, {:.1} for 99 of 100\n",
        late(&waits),
        late(&pairs)
    );
    Ok((figures, vec![at_most("a missing page over a bare request", ours / bare, 1.5)]))
}

/// How long a guest of so many GiB stands still, milliseconds. Each second page has something in it, so what is yet to come is many runs.
fn stands_still(gib: u64) -> Result<f64, String> {
    let program = Program::Image(basic::spin());
    let mut machine = Machine::builder().ram_size((gib << 30) + (16 << 20)).program(program).build().map_err(text)?;
    for at in ((16 << 20)..gib << 30).step_by(8192) {
        machine.write(RAM_BASE + at, &at.to_le_bytes()).map_err(text)?;
    }
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(0);
    how.bandwidth = Some(1);
    options.postcopy = Some(how);
    let (to, from) = UnixStream::pair().map_err(text)?;
    let (to, from, migrator) = (channel(to)?, channel(from)?, machine.migrator());
    std::thread::scope(|scope| {
        let source =
            scope.spawn(|| machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + LIMIT) }));
        let migration = migrator.start(to, Cancel::default(), options).map_err(text)?;
        let there = Machine::builder().receive(from).map_err(text)?;
        let until = Instant::now() + LIMIT;
        while migration.status().downtime.is_zero() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(there);
        migration.abandon();
        let _ = migration.wait(LIMIT);
        source.join().map_err(|_| "the source panicked")?;
        Ok(migration.status().downtime.as_secs_f64() * 1e3)
    })
}

/// Turn by turn, so often: the quickest of each.
pub(super) fn downtimes(rounds: usize) -> Result<Figures, String> {
    let (mut one, mut four) = (f64::MAX, f64::MAX);
    for _ in 0..rounds.max(3) {
        one = one.min(stands_still(1)?);
        four = four.min(stands_still(4)?);
    }
    let figures = format!("  each second page used: stands still {one:.2} ms with 1 GiB, {four:.2} ms with 4 GiB\n");
    Ok((figures, vec![at_most("4 GiB over 1 GiB", four / one, 1.2)]))
}
