//! A source gives memory back to the host while its pages go: what the target has, and nothing else, also if the channel is cut.
//!
//! ```text
//!   source ── 20 MiB ──▶ target       the first PING is answered, and 16 MiB are given back
//!          ── the rest ─▶ lost        sent, never placed: kept, and sent again after the cut
//! ```

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use notdirty::programs::basic;
use notdirty::{
    ArrivalState, Cancel, Channel, LeaveOptions, Machine, MachineExit, Migration, MigrationState, Postcopy, Program,
    RAM_BASE, RunLimits,
};
use notdirty_core::migration::postcopy::{Answer, Bitmap};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 64 << 20;
/// Pages with something in them.
const PAGES: core::ops::Range<u64> = 0x400..0x3c00;

/// What is carried before it is lost.
const CARRIED: usize = 20 << 20;

/// Carries bytes, and loses those behind so many. At the end of one side both end.
fn carry(mut from: UnixStream, mut to: UnixStream, most: usize) {
    let (mut buffer, mut had) = (vec![0; 64 << 10], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let here = count.min(most.saturating_sub(had));
        had += count;
        if to.write_all(&buffer[..here]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn channel(socket: UnixStream) -> Channel {
    Channel::new(socket.into(), PATIENCE, Cancel::default()).unwrap()
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (channel(a), channel(b))
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Ends it, also if a test fails.
struct Ends(Migration);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

#[test]
fn the_source_gives_back_what_the_target_has_while_more_is_sent() {
    gives_back(false);
}

#[test]
fn a_target_that_lost_what_it_had_is_sent_no_zeros_and_it_is_said_which_pages() {
    gives_back(true);
}

/// Up to a cut; then the target has what it had, or says that it has nothing.
fn gives_back(loses: bool) {
    let mut machine = Machine::builder().ram_size(SIZE).program(Program::Image(basic::spin())).build().unwrap();
    for page in PAGES {
        machine.write(RAM_BASE + page * 4096 + page * 7 % 4000, &page.to_le_bytes()).unwrap();
    }
    let memory = machine.memory();
    let mut options = LeaveOptions::default();
    let mut how = Postcopy::after(0);
    how.release = true;
    options.postcopy = Some(how);
    let migrator = machine.migrator();
    let ((to, a), (b, from)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    std::thread::scope(|scope| {
        let back = (b.try_clone().unwrap(), a.try_clone().unwrap());
        scope.spawn(|| carry(a, b, CARRIED));
        scope.spawn(|| carry(back.0, back.1, usize::MAX));
        let source =
            scope.spawn(|| machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + PATIENCE) }));
        let migration = migrator.start(channel(to), Cancel::default(), options).unwrap();
        let _ends = Ends(migration.clone());
        let there = Machine::builder().receive(channel(from)).unwrap();
        let arrival = there.arrival().unwrap();
        let released = || migration.status().released;
        wait("all is sent, and something given back", || released() != 0 && migration.status().progress.left == 0);
        assert_eq!(migration.status().state, MigrationState::PostcopyActive, "the target lacks some");
        let here = |page: u64| {
            let mut bytes = [0; 8];
            memory.read(RAM_BASE + page * 4096 + page * 7 % 4000, &mut bytes).unwrap();
            u64::from_le_bytes(bytes) == page
        };
        arrival.pause();
        wait("it pauses", || migration.status().state == MigrationState::PostcopyPaused);
        arrival.wait_while(ArrivalState::Running, PATIENCE);
        let (kept, left) = (PAGES.filter(|page| here(*page)).count() as u64, arrival.status().left);
        assert!(
            left > 0 && kept >= left && kept < PAGES.end - PAGES.start,
            "{kept} pages are kept, {left} are missing there"
        );
        assert!(released() >= (PAGES.end - PAGES.start - kept) * 4096);
        if loses {
            let (to, mut from) = UnixStream::pair().unwrap();
            migration.recover(channel(to)).unwrap();
            let mut nothing = Answer::Bitmap("ram".into()).to_bytes();
            Bitmap(vec![0; (SIZE / 4096 / 64) as usize]).write(&mut nothing).unwrap();
            from.write_all(&nothing).unwrap();
            let why = migration.wait(PATIENCE).unwrap().unwrap_err().to_string();
            assert!(
                why.contains("cannot go on there: RAM block ram: ") && why.contains(" went back to the host"),
                "{why}"
            );
            assert_eq!(migration.status().state, MigrationState::Uncertain);
            assert_eq!(source.join().unwrap(), MachineExit::Migrated);
            return;
        }
        let (to, from) = pair();
        arrival.recover(from).unwrap();
        migration.recover(to).unwrap();
        let status = migration.wait(PATIENCE).unwrap().unwrap();
        assert_eq!((status.state, status.released), (MigrationState::Completed, SIZE));
        assert!(PAGES.filter(|page| here(*page)).count() == 0, "all of it goes back at the end");
        for page in PAGES {
            let mut bytes = [0; 8];
            there.read(RAM_BASE + page * 4096 + page * 7 % 4000, &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), page);
        }
        assert_eq!(source.join().unwrap(), MachineExit::Migrated);
    });
    for why in [machine.take_back().unwrap_err(), machine.snapshot(std::env::temp_dir().join("never")).unwrap_err()] {
        assert!(why.to_string().contains("went back to the host"), "{why}");
    }
    assert!(machine.is_gone());
}
