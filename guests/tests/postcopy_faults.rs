//! A postcopy whose stream is cut, or has a wrong bit, at any byte: one side runs, and what is cut is recovered.
//!
//! ```text
//!   source ──▶ │ n bytes │ the fault │ … ──▶ target         source ◀── answers ──
//! ```
//!
//! `NOTDIRTY_FAULTS=all` tries many more.

#[path = "common/ends.rs"]
mod ends;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ends::{End, PATIENCE, RAM, SIZE, channel, runs};
use notdirty::programs::basic;
use notdirty::{
    ArrivalState, Cancel, Channel, LeaveOptions, Machine, Migration, MigrationState, Postcopy, Program, RunLimits,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Cut(u64),
    Flip(u64),
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (channel(a), channel(b))
}

/// Bytes to the target, up to the fault; how many there were.
fn there(mut from: UnixStream, mut to: UnixStream, fault: Fault, count: &AtomicU64) {
    let mut buffer = [0; 4096];
    let mut at = 0;
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let mut bytes = &mut buffer[..got];
        match fault {
            Fault::Cut(n) if at + got as u64 > n => bytes = &mut buffer[..(n - at) as usize],
            Fault::Flip(n) if (at..at + got as u64).contains(&n) => bytes[(n - at) as usize] ^= 1 << (n % 8),
            _ => {}
        }
        let cut = bytes.len() < got;
        at += bytes.len() as u64;
        count.store(at, Ordering::Release);
        if to.write_all(bytes).is_err() || cut {
            break;
        }
    }
    // What is on the way back is heard before the end is.
    let _ = to.shutdown(Shutdown::Both);
    if matches!(fault, Fault::Cut(n) if at >= n) {
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn back(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn guest() -> Machine {
    let mut machine = Machine::builder().ram_size(SIZE).program(Program::Image(basic::spin())).build().unwrap();
    for page in 0x40..0x60 {
        machine.write(RAM + page * 4096 + page * 7 % 4000, &[page as u8 | 1]).unwrap();
    }
    machine
}

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    machine.read(RAM, &mut bytes).unwrap();
    bytes
}

/// Moves a guest over such a channel; how it ended, and how many bytes there were.
fn go(fault: Fault) -> (End, u64) {
    let (mut machine, count) = (guest(), Arc::new(AtomicU64::new(0)));
    let before = ram(&machine);
    let ((a, b), (c, d)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let (copies, own) = ((c.try_clone().unwrap(), b.try_clone().unwrap()), count.clone());
    let mut options = LeaveOptions::default();
    options.postcopy = Some(Postcopy::after(0));
    let (migrator, stop) = (machine.migrator(), machine.stop_handle());
    let what = format!("{fault:?}");
    let end = std::thread::scope(|scope| {
        scope.spawn(move || there(b, c, fault, &own));
        scope.spawn(move || back(copies.0, copies.1));
        let target = scope.spawn(move || Machine::builder().receive(channel(d)));
        let what = &what;
        let moving = scope.spawn(move || {
            let migration = migrator.start(channel(a), Cancel::default(), options).unwrap();
            let target = target.join().unwrap();
            let until = Instant::now() + PATIENCE;
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
            let end = match (state, target) {
                (MigrationState::Failed, Err(why)) => {
                    assert!(!why.to_string().is_empty());
                    End::Here
                }
                (MigrationState::PostcopyPaused, Err(_)) => {
                    migration.abandon();
                    End::TakenBack
                }
                (state @ (MigrationState::PostcopyPaused | MigrationState::Completed), Ok(mut there)) => {
                    let arrival = there.arrival().unwrap();
                    let end = match (state, arrival.wait_while(ArrivalState::Running, PATIENCE)) {
                        (MigrationState::Completed, ArrivalState::Complete) => End::There,
                        (MigrationState::PostcopyPaused, ArrivalState::Paused) => {
                            let (ours, theirs) = pair();
                            arrival.recover(theirs).unwrap();
                            migration.recover(ours).unwrap();
                            let ended = migration.wait(PATIENCE).unwrap_or_else(|| {
                                // A bit was wrong in a page.
                                assert!(matches!(fault, Fault::Flip(_)), "{what}: {:?}", arrival.status());
                                migration.abandon();
                                Ok(migration.status())
                            });
                            match arrival.wait_while(ArrivalState::Recovering, PATIENCE) {
                                ArrivalState::Failed => End::Spoiled,
                                _ => {
                                    ended.unwrap();
                                    End::Recovered
                                }
                            }
                        }
                        (MigrationState::PostcopyPaused, ArrivalState::Failed) => End::Spoiled,
                        other => panic!("{what}: {other:?}"),
                    };
                    if end == End::Spoiled {
                        assert!(matches!(fault, Fault::Flip(_)), "{what}");
                        migration.abandon();
                    } else {
                        let differ = ram(&there).iter().zip(&before).position(|(a, b)| a != b);
                        assert_eq!(differ, None, "{what}");
                        runs(&mut there, what);
                    }
                    end
                }
                (state, target) => panic!("{what}: {state:?}, {:?}", target.err()),
            };
            let _ = migration.wait(PATIENCE);
            std::thread::sleep(Duration::from_millis(2));
            stop.stop();
            end
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) });
        let end = moving.join().unwrap();
        end.check(&mut machine, &exit, what);
        end
    });
    (end, count.load(Ordering::Acquire))
}

#[test]
fn one_side_runs_wherever_the_stream_is_cut_or_has_a_wrong_bit() {
    let (end, whole) = go(Fault::None);
    assert_eq!(end, End::There);
    // Pages are most of it; the message that the machine begins with is in front of them.
    let all = std::env::var("NOTDIRTY_FAULTS").is_ok_and(|which| which == "all");
    let first = whole.min(8000);
    let step = |few, many| if all { many } else { few };
    let places = (0..first).step_by(step(97, 11)).chain((first..whole).step_by(step(5003, 501)));
    let mut ends = Vec::new();
    for n in places {
        let faults: &[Fault] = if all || n % 2 == 0 { &[Fault::Cut(n), Fault::Flip(n)] } else { &[Fault::Cut(n)] };
        for fault in faults {
            let (end, _) = go(*fault);
            ends.push((end, matches!(fault, Fault::Cut(_))));
        }
    }
    let count = |end| ends.iter().filter(|(other, _)| *other == end).count();
    println!(
        "{whole} bytes, {} faults: {} here, {} recovered, {} taken back, {} there, {} spoiled and known to be",
        ends.len(),
        count(End::Here),
        count(End::Recovered),
        count(End::TakenBack),
        count(End::There),
        count(End::Spoiled)
    );
    assert!(count(End::Here) > 0 && count(End::Recovered) > 0 && count(End::TakenBack) > 0, "{ends:?}");
    assert!(!ends.contains(&(End::Spoiled, true)) && !ends.contains(&(End::There, true)), "{ends:?}");
}

const NAMELESS: &str = "by a channel that has not said its name";

/// Ends it, also if a test fails.
struct Ends(Migration);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

#[test]
fn a_channel_that_does_not_say_its_name_hears_nothing_of_what_came_and_brings_no_page() {
    let mut machine = guest();
    let before = ram(&machine);
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(0);
    how.bandwidth = Some(1 << 10);
    options.postcopy = Some(how);
    let migrator = machine.migrator();
    std::thread::scope(|scope| {
        let run = RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) };
        scope.spawn(move || machine.run(&run));
        let (to, from) = pair();
        let migration = migrator.start(to, Cancel::default(), options).unwrap();
        let _ends = Ends(migration.clone());
        let there = Machine::builder().receive(from).unwrap();
        let arrival = there.arrival().unwrap();
        arrival.pause();
        let until = Instant::now() + PATIENCE;
        while migration.status().state != MigrationState::PostcopyPaused {
            assert!(Instant::now() < until, "{:?}", migration.status());
            std::thread::sleep(Duration::from_micros(200));
        }
        // A RECV_BITMAP, a RESUME, and the head of a piece of RAM, which is one of the first sections.
        let bitmap = [&[8, 0, 10, 0, 4][..], b"\x03ram"].concat();
        let pieces = (0..8).map(|id| vec![2, 0, 0, 0, id]);
        let mut refused = Vec::new();
        for message in [bitmap, vec![8, 0, 9, 0, 0]].into_iter().chain(pieces) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            assert_eq!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Paused);
            arrival.recover(channel(theirs)).unwrap();
            (&ours).write_all(&message).unwrap();
            ours.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = Vec::new();
            (&ours).read_to_end(&mut answer).unwrap();
            assert_eq!(answer, []);
            assert_eq!(arrival.wait_while(ArrivalState::Recovering, PATIENCE), ArrivalState::Paused);
            let why = arrival.status().why.unwrap();
            let is_section = why.contains("the number of a section");
            refused.push(why);
            assert!(refused.len() > 2 && is_section || refused.last().unwrap().contains(NAMELESS), "{refused:?}");
        }
        assert_eq!(refused.iter().filter(|why| why.contains(NAMELESS)).count(), 3, "{refused:?}");
        assert!(arrival.status().left > 0);
        let (ours, theirs) = pair();
        arrival.recover(theirs).unwrap();
        migration.recover(ours).unwrap();
        // Each page is asked for.
        assert!(ram(&there) == before);
        assert_eq!(migration.wait(PATIENCE).unwrap().unwrap().state, MigrationState::Completed);
    });
}
