//! A postcopy with a fault on each of its four roads: nothing is lost, nothing hangs, and what is wrong is known.
//!
//! ```text
//!   source ── Stream ───▶ target      pages, commands, the message that the machine begins with
//!          ◀── Answers ──
//!          ── Urgent ───▶             pages that are waited for, on a channel of their own
//!          ◀── Asked ────             requests for them
//! ```
//!
//! At byte n: the road is cut, waits, has a wrong bit, says 16 bytes twice, or two times 8 in the other order. The target reads all of its RAM
//! meanwhile. `NOTDIRTY_FAULTS=all` tries many more.

#[path = "common/ends.rs"]
mod ends;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ends::{End, PATIENCE, RAM, SIZE, channel, runs};
use notdirty::programs::basic;
use notdirty::{
    Arrival, ArrivalState, Cancel, LeaveOptions, Machine, Migration, MigrationState, Postcopy, Program, Road,
    RunLimits, Stop,
};

const PAGES: core::ops::Range<u64> = 0x40..0xf0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Cut,
    Late,
    Flip,
    Twice,
    Swap,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lane {
    Stream,
    Answers,
    Urgent,
    Asked,
}

const LANES: [Lane; 4] = [Lane::Stream, Lane::Answers, Lane::Urgent, Lane::Asked];

/// Carries bytes, with a fault at byte `n`; how many there were.
fn carry(mut from: UnixStream, mut to: UnixStream, fault: Fault, n: u64, count: &AtomicU64) {
    let mut buffer = [0; 8192];
    let (mut at, mut kept) = (0, Vec::new());
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let start = at;
        at += got as u64;
        count.store(at, Ordering::Release);
        let mut bytes = std::mem::take(&mut kept);
        bytes.extend_from_slice(&buffer[..got]);
        if fault != Fault::None && start <= n && n < at {
            let here = (n - start) as usize;
            match fault {
                Fault::None => {}
                Fault::Cut => {
                    let _ = to.write_all(&bytes[..here]);
                    break;
                }
                Fault::Late => std::thread::sleep(Duration::from_millis(40)),
                Fault::Flip => bytes[here] ^= 1 << (n % 8),
                // As many of them as are here: what is to come is not waited for.
                Fault::Twice => {
                    let twice = bytes[here..bytes.len().min(here + 16)].to_vec();
                    bytes.splice(here..here, twice);
                }
                Fault::Swap => {
                    let half = (bytes.len() - here).min(16) / 2;
                    let (a, b) = bytes[here..here + 2 * half].split_at_mut(half);
                    a.swap_with_slice(b);
                }
            }
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn ram(memory: &notdirty::Memory) -> Option<Vec<u8>> {
    let mut bytes = vec![0; SIZE as usize];
    // Page by page, from the end: the sweep comes from the start.
    for page in (0..SIZE / 4096).rev() {
        let at = (page * 4096) as usize;
        memory.read(RAM + page * 4096, &mut bytes[at..at + 4096]).ok()?;
    }
    Some(bytes)
}

/// By new channels: now with one for urgent pages, now without.
fn recover(migration: &Migration, arrival: &Arrival, urgent: bool) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (to, from) = UnixStream::pair().unwrap();
    let beside = if urgent { vec![channel(to)] } else { vec![] };
    let mut from = Some(channel(from));
    let more = move |_| from.take().ok_or_else(|| io::ErrorKind::NotConnected.into());
    // One that it has not looked at yet is taken first.
    if arrival.recover_with(channel(theirs), Box::new(more)).is_ok() {
        migration.recover(Road::beside(channel(ours), beside).unwrap()).unwrap();
    }
}

/// Ends all of it, also if a thread panics.
struct Ends(Migration, Stop);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abandon();
        self.1.stop();
    }
}

/// Moves a guest; how it ended, how many bytes went by each road, and how many pages were asked for.
fn go(road: Lane, fault: Fault, n: u64) -> (End, [u64; 4], u64) {
    let mut machine = Machine::builder().ram_size(SIZE).program(Program::Image(basic::spin())).build().unwrap();
    for page in PAGES {
        machine.write(RAM + page * 4096 + page * 7 % 4000, &[page as u8 | 1]).unwrap();
    }
    let before = ram(&machine.memory()).unwrap();
    let counts: [AtomicU64; 4] = Default::default();
    let (main, urgent) = (
        [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()],
        [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()],
    );
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(0);
    how.bandwidth = Some(4 << 20);
    options.postcopy = Some(how);
    let (migrator, stop) = (machine.migrator(), machine.stop_handle());
    let what = &format!("{fault:?} of {road:?} at byte {n}");
    let (end, asked) = std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for (at, [(a, b), (c, d)]) in [main, urgent].into_iter().enumerate() {
            let back = (c.try_clone().unwrap(), b.try_clone().unwrap());
            for (index, (from, to)) in [(2 * at, (b, c)), (2 * at + 1, back)] {
                let fault = if LANES[index] == road { fault } else { Fault::None };
                let count = &counts[index];
                scope.spawn(move || carry(from, to, fault, n, count));
            }
            ends.push((channel(a), channel(d)));
        }
        let (urgent, asked) = ends.pop().unwrap();
        let (main, there) = ends.pop().unwrap();
        let target = scope.spawn(move || {
            let mut asked = Some(asked);
            let mut more = |_: Duration| asked.take().ok_or_else(|| io::ErrorKind::NotConnected.into());
            Machine::builder().receive_with(there, &mut more, |_| Ok(()))
        });
        let before = &before;
        let moving = scope.spawn(move || {
            let migration =
                migrator.start(Road::beside(main, vec![urgent]).unwrap(), Cancel::default(), options).unwrap();
            let _ends = Ends(migration.clone(), stop);
            let target = target.join().unwrap();
            let until = Instant::now() + PATIENCE;
            let reader = target.as_ref().ok().map(|there| {
                let memory = there.memory();
                scope.spawn(move || ram(&memory))
            });
            let state = loop {
                let status = migration.status();
                match status.state {
                    MigrationState::PostcopyPaused | MigrationState::Completed | MigrationState::Failed => {
                        break status.state;
                    }
                    _ => assert!(Instant::now() < until, "{what}: it hangs: {status:?}"),
                }
                std::thread::sleep(Duration::from_micros(200));
            };
            let (end, requests) = match (state, target) {
                (MigrationState::Failed, Err(_)) => (End::Here, 0),
                (MigrationState::PostcopyPaused, Err(_)) => {
                    migration.abandon();
                    (End::TakenBack, 0)
                }
                (state @ (MigrationState::PostcopyPaused | MigrationState::Completed), Ok(mut there)) => {
                    let arrival = there.arrival().unwrap();
                    let mut recovered = false;
                    let end = loop {
                        match arrival.wait_while(ArrivalState::Running, PATIENCE) {
                            ArrivalState::Complete if arrival.status().known => {
                                break if recovered { End::Recovered } else { End::There };
                            }
                            ArrivalState::Failed => break End::Spoiled,
                            ArrivalState::Paused | ArrivalState::Complete => match migration.status().state {
                                MigrationState::PostcopyPaused => {
                                    recovered = true;
                                    recover(&migration, &arrival, n.is_multiple_of(2));
                                }
                                // The source does not say that it knows, and need not be told.
                                MigrationState::Completed => {
                                    break if recovered { End::Recovered } else { End::There };
                                }
                                _ => std::thread::sleep(Duration::from_micros(200)),
                            },
                            ArrivalState::Recovering => std::thread::sleep(Duration::from_micros(200)),
                            other => panic!("{what}: {other:?}, {:?}, {:?}", arrival.status(), migration.status()),
                        }
                        assert!(Instant::now() < until, "{what}: it hangs: {:?}", arrival.status());
                    };
                    if end == End::Spoiled {
                        assert!(
                            !matches!(fault, Fault::None | Fault::Cut | Fault::Late),
                            "{what}: {:?}",
                            arrival.status()
                        );
                        migration.abandon();
                    } else {
                        let read = reader.unwrap().join().unwrap().unwrap();
                        let differ = read.iter().zip(before).position(|(a, b)| a != b);
                        assert_eq!(differ, None, "{what}");
                        runs(&mut there, what);
                        assert_eq!(migration.wait(PATIENCE).unwrap().unwrap().state, MigrationState::Completed);
                    }
                    if state == MigrationState::Completed {
                        assert!(end != End::Recovered, "{what}");
                    }
                    (end, arrival.status().requests)
                }
                (state, target) => panic!("{what}: {state:?}, {:?}", target.err()),
            };
            let _ = migration.wait(PATIENCE);
            (end, requests)
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) });
        let (end, asked) = moving.join().unwrap();
        end.check(&mut machine, &exit, what);
        (end, asked)
    });
    (end, counts.map(AtomicU64::into_inner), asked)
}

#[test]
fn whatever_a_channel_does_with_bytes_nothing_is_lost_in_silence_and_nothing_hangs() {
    let (end, whole, asked) = go(Lane::Stream, Fault::None, 0);
    assert_eq!(end, End::There);
    assert!(asked > 20 && whole.iter().all(|bytes| *bytes >= 32), "{asked} pages asked for, {whole:?}");
    let places = if std::env::var("NOTDIRTY_FAULTS").is_ok_and(|which| which == "all") { 200 } else { 6 };
    let mut ends = Vec::new();
    for (road, bytes) in LANES.into_iter().zip(whole) {
        for fault in [Fault::Cut, Fault::Late, Fault::Flip, Fault::Twice, Fault::Swap] {
            // A number that is another is waited for as long as one that does not come.
            if road == Lane::Answers && !matches!(fault, Fault::Cut | Fault::Late) {
                continue;
            }
            for place in 0..places {
                let n = bytes * place / places + place % 7;
                let (end, ..) = go(road, fault, n);
                match fault {
                    Fault::Late => assert_eq!(end, End::There, "{road:?} {n}"),
                    Fault::Cut => assert_ne!(end, End::Spoiled, "{road:?} {n}"),
                    _ => {}
                }
                ends.push((road, fault, end));
            }
        }
    }
    for end in [End::Here, End::There, End::Recovered, End::TakenBack, End::Spoiled] {
        println!("{end:?}: {}", ends.iter().filter(|(.., other)| *other == end).count());
    }
    for road in [Lane::Urgent, Lane::Asked] {
        assert!(ends.contains(&(road, Fault::Cut, End::Recovered)), "{road:?}");
    }
    assert!(ends.contains(&(Lane::Urgent, Fault::Flip, End::Spoiled)));
}
