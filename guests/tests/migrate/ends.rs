//! A channel that is cut, changed, slow or stuck, a command that fails, a disk that is full: one side can run, and nothing hangs.
use super::*;

/// What happens to a channel.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Both directions end.
    Cut,
    /// A bit is another one.
    Flip,
    /// It stands still for a moment, and goes on in pieces of a byte.
    Delay,
    /// It stands still for longer than any wait.
    Stall,
}

/// Passes bytes on, until `at`.
fn pass(mut from: UnixStream, mut to: UnixStream, at: Option<u64>, fault: Fault, over: Arc<AtomicBool>) {
    let (mut done, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut bytes = &mut buffer[..count];
        let here = at.filter(|at| (done..done + count as u64).contains(at));
        done += count as u64;
        if let Some(at) = here {
            let place = (at - (done - count as u64)) as usize;
            match fault {
                Fault::Cut => {
                    let _ = to.write_all(&bytes[..place]);
                    break;
                }
                Fault::Flip => bytes[place] ^= 0x10,
                Fault::Delay => {
                    std::thread::sleep(Duration::from_millis(30));
                    let (slow, rest) = bytes.split_at_mut(count.min(64));
                    if slow.iter().try_for_each(|byte| to.write_all(&[*byte])).is_err() {
                        break;
                    }
                    bytes = rest;
                }
                Fault::Stall => {
                    while !over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    break;
                }
            }
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}

/// One migration of a small machine by a channel with a fault.
fn faulty(
    there: Option<u64>,
    back: Option<u64>,
    fault: Fault,
) -> (Machine, MigrationStatus, Result<Machine, MigrationError>) {
    // What stalls, or what was made longer than it is, is waited for in vain; what is merely late must not be given up on a busy host.
    let brief = match fault {
        Fault::Stall | Fault::Flip => Duration::from_millis(250),
        Fault::Cut | Fault::Delay => Duration::from_secs(20),
    };
    let mut machine = Machine::builder().ram_size(0x4_0000).build().unwrap();
    start(&mut machine, 7);
    machine.cpu_mut().x[18] = 0xffff;
    let over = Arc::new(AtomicBool::new(false));
    let ((ours, a), (b, theirs)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let migrator = machine.migrator();
    let clone = |socket: &UnixStream| socket.try_clone().unwrap();
    let (a2, b2) = (clone(&a), clone(&b));
    let (status, target) = std::thread::scope(|scope| {
        let (over1, over2) = (over.clone(), over.clone());
        scope.spawn(move || pass(a, b, there, fault, over1));
        scope.spawn(move || pass(b2, a2, back, fault, over2));
        let target = scope.spawn(move || {
            let channel = Channel::new(theirs.into(), brief, Cancel::default()).unwrap();
            Machine::builder().receive(channel)
        });
        let (_, status) = leave(&mut machine, || {
            let cancel = Cancel::default();
            let channel = Channel::new(ours.into(), brief, cancel.clone()).unwrap();
            migrator.start(channel, cancel, LeaveOptions::default()).unwrap()
        });
        let target = target.join().unwrap();
        over.store(true, Ordering::Relaxed);
        (status, target)
    });
    (machine, status, target)
}

#[test]
fn whatever_happens_to_the_channel_one_side_can_run_and_nothing_hangs() {
    let (_, whole, target) = faulty(None, None, Fault::Cut);
    target.unwrap();
    let length = whole.progress.bytes;
    // Header, list of RAM, pages, the state at the end, the command to run; and each answer.
    let mut places: Vec<_> = [0, 3, 7, 9, 25, 60, 200, 400, 600].into_iter().map(|at| (Some(at), None)).collect();
    places.extend(
        [length / 3, length / 2, length - 9000, length - 3000, length - 10, length, length + 2]
            .map(|at| (Some(at), None)),
    );
    places.extend([0, 5, 8, 12, 16, 20].map(|at| (None, Some(at))));
    let mut uncertain = 0;
    for (there, back) in places {
        for fault in [Fault::Cut, Fault::Flip, Fault::Delay, Fault::Stall] {
            // One for each phase: these take their time.
            if matches!(fault, Fault::Stall) && there.is_some_and(|at| at < 600 && at != 25) {
                continue;
            }
            let what = format!("{fault:?} at {there:?}, {back:?} of {length}");
            let (mut machine, status, target) = faulty(there, back, fault);
            match (status.state, &target) {
                (MigrationState::Completed, Ok(target)) => {
                    assert!(machine.is_gone(), "{what}");
                    assert_same(&machine, target, &what);
                }
                (MigrationState::Failed, Err(why)) => {
                    assert!(!machine.is_gone(), "{what}");
                    assert!(!why.to_string().is_empty());
                }
                // It was told to run, and its answer did not come: it may run, so this side does not.
                (MigrationState::Uncertain, _) => {
                    uncertain += 1;
                    assert!(machine.is_gone(), "{what}");
                    assert!(there.is_some_and(|at| at + 200 >= length) || back.is_some(), "{what}");
                    machine.take_back().unwrap();
                }
                (state, _) => panic!("{what}: {state:?}, {:?}", target.err()),
            }
            if !machine.is_gone() {
                // It runs on from where it stood.
                let end = machine.cpu().retired + 10_000;
                assert_eq!(
                    machine.run(&RunLimits { max_insns: Some(end), deadline: None }),
                    MachineExit::InsnLimit,
                    "{what}"
                );
            }
            if matches!(fault, Fault::Delay) {
                assert_eq!(status.state, MigrationState::Completed, "{what}");
            }
        }
    }
    assert!(uncertain > 0, "the harness reaches the last step");
}

#[test]
fn a_command_that_fails_and_a_disk_that_is_full_leave_the_machine_here() {
    let file = std::env::temp_dir().join(format!("notdirty-{}-not-there", std::process::id()));
    let not_there = format!("file:{}/no/such", file.display());
    // Behind all bytes, in the middle of them, at the first; and before it begins.
    for (place, wanted) in [
        ("exec:cat > /dev/null; exit 3", "the command ended with exit status: 3"),
        ("exec:head -c 100000 > /dev/null", "Broken pipe"),
        ("file:/dev/full,offset=0", "No space left on device"),
        (&not_there[..], "No such file"),
    ] {
        let mut machine = source(2, 31);
        let migrator = machine.migrator();
        let cancel = Cancel::default();
        let road = match Road::connect(&place.parse().unwrap(), 0, PATIENCE, &cancel) {
            Ok(road) => road,
            Err(why) => {
                assert!(why.to_string().contains(wanted), "{place}: {why}");
                continue;
            }
        };
        let told = std::sync::Mutex::new(String::new());
        let (exit, status) = leave(&mut machine, || {
            let migration = migrator.start(road, cancel, LeaveOptions::default()).unwrap();
            *told.lock().unwrap() = migration.wait(PATIENCE).unwrap().unwrap_err().to_string();
            migration
        });
        assert_eq!((exit, status.state), (MachineExit::Stopped, MigrationState::Failed), "{place}");
        let told = told.into_inner().unwrap();
        assert!(told.contains(wanted), "{place}: {told}");
        // It goes on, and may leave again.
        let (status, target) = hop(&mut machine);
        assert_eq!(status.state, MigrationState::Completed, "{place}");
        assert_same(&machine, &target.unwrap(), place);
    }
    // Several channels to what is one are refused before anything is written.
    let why = Road::connect(&Uri::File(file.clone(), None), 2, PATIENCE, &Cancel::default()).err().unwrap();
    assert!(why.to_string().contains("it is one channel") && !file.exists(), "{why}");
}
