//! A postcopy with a fault on each of its roads: nothing is lost, nothing hangs, and what is wrong is known.
//!
//! ```text
//!   source ── Stream ───▶ target      pages, commands, the message that the machine begins with
//!          ◀── Answers ──
//!          ── Urgent ───▶             pages that are waited for, on a channel of their own
//!          ◀── Asked ────             requests for them
//!          ── Multifd ──▶             pages of the one round before, with another such channel beside it
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
    Multifd,
}

const LANES: [Lane; 5] = [Lane::Stream, Lane::Answers, Lane::Urgent, Lane::Asked, Lane::Multifd];

/// Carries bytes, with a fault at byte `n`; how many there were.
fn carry(mut from: UnixStream, mut to: UnixStream, fault: Fault, n: u64, count: Option<&AtomicU64>) {
    let mut buffer = [0; 8192];
    let (mut at, mut kept) = (0, Vec::new());
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let start = at;
        at += got as u64;
        count.inspect(|count| count.store(at, Ordering::Release));
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
    let urgent = urgent.then(|| channel(to));
    let mut from = Some(channel(from));
    let more = move |_| from.take().ok_or_else(|| io::ErrorKind::NotConnected.into());
    // One that it has not looked at yet is taken first.
    if arrival.recover_with(channel(theirs), Box::new(more)).is_ok() {
        migration.recover(Road::beside(channel(ours), vec![], urgent).unwrap()).unwrap();
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

/// Moves a guest; how it ended, how many bytes went by each road, how many pages were asked for, and how many were missing.
fn go(road: Lane, fault: Fault, n: u64) -> (End, [u64; LANES.len()], (u64, u64)) {
    let mut machine = Machine::builder().ram_size(SIZE).program(Program::Image(basic::spin())).build().unwrap();
    for page in PAGES {
        machine.write(RAM + page * 4096 + page * 7 % 4000, &[page as u8 | 1]).unwrap();
    }
    let before = ram(&machine.memory()).unwrap();
    let counts: [AtomicU64; LANES.len()] = Default::default();
    let multifd = if road == Lane::Multifd { 2 } else { 0 };
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(multifd / 2);
    how.bandwidth = Some(4 << 20);
    options.postcopy = Some(how);
    let (migrator, stop, memory) = (machine.migrator(), machine.stop_handle(), machine.memory());
    let what = &format!("{fault:?} of {road:?} at byte {n}");
    let (end, asked) = std::thread::scope(|scope| {
        // A channel there and back, by two lanes; what a channel of a multifd says back is nothing.
        let lanes = [[Some(0), Some(1)], [Some(2), Some(3)], [Some(4), None], [None, None]];
        let (mut here, mut there): (Vec<_>, Vec<_>) = lanes[..2 + multifd as usize]
            .iter()
            .map(|lanes| {
                let ((a, b), (c, d)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
                let back = (c.try_clone().unwrap(), b.try_clone().unwrap());
                for (lane, (from, to)) in lanes.iter().zip([(b, c), back]) {
                    let fault = if lane.is_some_and(|lane| LANES[lane] == road) { fault } else { Fault::None };
                    let count = lane.map(|lane| &counts[lane]);
                    scope.spawn(move || carry(from, to, fault, n, count));
                }
                (channel(a), channel(d))
            })
            .unzip();
        let (multifd, multifd_there) = (here.split_off(2), there.split_off(2));
        let (urgent, asked) = (here.pop().unwrap(), there.pop().unwrap());
        let (main, there) = (here.pop().unwrap(), there.pop().unwrap());
        let target = scope.spawn(move || {
            let mut others = multifd_there.into_iter().chain([asked]);
            let mut more = |_: Duration| others.next().ok_or_else(|| io::ErrorKind::NotConnected.into());
            Machine::builder().receive_with(there, &mut more, |_| Ok(()))
        });
        let before = &before;
        let rewrites = !multifd.is_empty();
        let moving = scope.spawn(move || {
            let migration =
                migrator.start(Road::beside(main, multifd, Some(urgent)).unwrap(), Cancel::default(), options).unwrap();
            let _ends = Ends(migration.clone(), stop);
            if rewrites {
                // As it is: such pages are sent, and yet to come once the machine runs there.
                let own = migration.clone();
                scope.spawn(move || {
                    while matches!(own.status().state, MigrationState::Setup | MigrationState::Active) {
                        for page in PAGES.start..PAGES.start + 16 {
                            // Refused once the machine is elsewhere.
                            let _ = memory.write(RAM + page * 4096 + page * 7 % 4000, &[page as u8 | 1]);
                        }
                    }
                });
            }
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
                (MigrationState::Failed, Err(_)) => (End::Here, (0, 0)),
                (MigrationState::PostcopyPaused, Err(_)) => {
                    migration.abandon();
                    (End::TakenBack, (0, 0))
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
                    (end, (arrival.status().requests, arrival.status().missing))
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
    let (end, mut whole, (asked, all)) = go(Lane::Stream, Fault::None, 0);
    let (by_multifd, bytes, (_, left)) = go(Lane::Multifd, Fault::None, 0);
    assert_eq!((end, by_multifd), (End::There, End::There));
    // One of two channels that share the pages, some of which were stored to meanwhile.
    whole[4] = bytes[4];
    assert!(asked > 20 && whole.iter().all(|bytes| *bytes >= 32), "{asked} pages asked for, {whole:?}");
    assert!(left > 0 && left < all / 2, "{left} pages missing, and {all} without a round before");
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
    // A page that comes by a multifd comes before the machine runs there.
    assert!(ends.contains(&(Lane::Multifd, Fault::Cut, End::Here)));
    for road in [Lane::Urgent, Lane::Asked] {
        assert!(ends.contains(&(road, Fault::Cut, End::Recovered)), "{road:?}");
    }
    assert!(ends.contains(&(Lane::Urgent, Fault::Flip, End::Spoiled)));
}
