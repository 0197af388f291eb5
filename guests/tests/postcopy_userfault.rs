//! The host's MMU notices the missing pages of a machine, too: threads of the host that follow pointers into its RAM while it runs.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use notdirty::programs::basic;
use notdirty::{
    Arrival, ArrivalState, Cancel, Channel, FaultKind, LeaveOptions, Machine, MachineExit, Migration, MigrationState,
    Postcopy, Program, RunLimits,
};
use notdirty_core::migration::postcopy::{Moment, Notifiers};
use notdirty_core::{RamBlock, UserFaults};

const PATIENCE: Duration = Duration::from_secs(20);
const RAM: u64 = 0x8000_0000;

fn channel(socket: UnixStream) -> Channel {
    Channel::new(OwnedFd::from(socket), PATIENCE, Cancel::default()).unwrap()
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (channel(a), channel(b))
}

/// By pointer, as code does that knows nothing of missing pages.
fn peek(block: &RamBlock, off: u64) -> u8 {
    assert!(off < block.used_length());
    // SAFETY: inside of the block's memory.
    unsafe { block.host().add(off as usize).read_volatile() }
}

/// Moves a guest that stores nothing; nothing of its RAM comes unless it is asked for. `there` has the machine, its block and both ends.
fn go(there: impl FnOnce(Machine, Arc<RamBlock>, &Arrival, &Migration) + Send) {
    let mut machine = Machine::builder().ram_size(4 << 20).program(Program::Image(basic::spin())).build().unwrap();
    for page in 0x40..0x200u64 {
        machine.write(RAM + page * 4096 + 9, &[page as u8 | 1]).unwrap();
    }
    let (notifiers, found) = (Notifiers::default(), Arc::new(Mutex::new(None)));
    let keep = found.clone();
    let _guard = notifiers.add("pointers", move |notice| {
        if notice.moment == Moment::Listen {
            let blocks = notice.pages.into_iter().flat_map(|pages| pages.blocks());
            *keep.lock().unwrap() = blocks.max_by_key(|block| block.used_length()).cloned();
        }
        Ok(())
    });
    let (ours, theirs) = pair();
    let (migrator, mut options) = (machine.migrator(), LeaveOptions::default());
    let mut postcopy = Postcopy::after(0);
    postcopy.bandwidth = Some(4096);
    options.postcopy = Some(postcopy);
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let builder = Machine::builder().postcopy_notifiers(&notifiers);
            builder.postcopy_faults(FaultKind::Userfaultfd).receive(theirs)
        });
        let moving = scope.spawn(move || {
            let migration = migrator.start(ours, Cancel::default(), options).unwrap();
            let machine = target.join().unwrap().unwrap();
            let arrival = machine.arrival().unwrap();
            let block = found.lock().unwrap().take().unwrap();
            there(machine, block, &arrival, &migration);
            migration.abandon();
            migration.wait(PATIENCE).expect("it hangs")
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) });
        assert_eq!(exit, MachineExit::Migrated);
        let _ = moving.join().unwrap();
    });
}

fn lacks_userfaultfd() -> bool {
    UserFaults::open().map(drop).map_err(|why| println!("SKIPPED: {why}")).is_err()
}

#[test]
fn threads_of_the_host_find_the_sources_bytes_by_pointer_and_wait_while_the_channel_is_broken() {
    if lacks_userfaultfd() {
        return;
    }
    go(|mut machine, block, arrival, migration| {
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|n| {
                    let block = &block;
                    scope.spawn(move || (0x40..0xc0).map(|page| peek(block, (page + n) * 4096 + 9)).collect::<Vec<_>>())
                })
                .collect();
            for (n, reader) in (0x40..).zip(readers) {
                let expected: Vec<_> = (n..n + 0x80).map(|page| page as u8 | 1).collect();
                assert_eq!(reader.join().unwrap(), expected);
            }
            // The guest runs beside them, by the softmmu's door.
            let limits = RunLimits { max_insns: Some(machine.cpu().retired + 20_000), deadline: None };
            assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
            // A thread that waits while there is no channel has its page by the next one.
            arrival.pause();
            assert_eq!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Paused);
            let waits = arrival.status().requests;
            let reader = scope.spawn(|| peek(&block, 0x1f0 * 4096 + 9));
            let until = Instant::now() + PATIENCE;
            while arrival.status().requests == waits || migration.status().state != MigrationState::PostcopyPaused {
                assert!(Instant::now() < until, "{:?}", arrival.status());
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!reader.is_finished());
            let (ours, theirs) = pair();
            arrival.recover(theirs).unwrap();
            migration.recover(ours).unwrap();
            assert_eq!(reader.join().unwrap(), 0xf1);
            let status = arrival.status();
            assert!(status.blocktime.host_waits > 0 && status.left > 0, "{status:?}");
            assert_eq!(status.faults, FaultKind::Userfaultfd);
        });
    });
}

#[test]
fn a_thread_that_waits_goes_on_when_the_machine_is_dropped() {
    if lacks_userfaultfd() {
        return;
    }
    go(|machine, block, arrival, _| {
        arrival.pause();
        assert_eq!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Paused);
        std::thread::scope(|scope| {
            let waits = arrival.status().requests;
            let reader = scope.spawn(|| peek(&block, 0x1f0 * 4096 + 9));
            while arrival.status().requests == waits {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(machine);
            assert_eq!(reader.join().unwrap(), 0, "it never came");
        });
        assert_eq!(arrival.wait_while(ArrivalState::Paused, PATIENCE), ArrivalState::Failed);
    });
}

/// This thread may open nothing from here on, userfaultfd least of all; `false`: the host has no filters.
fn forbid() -> bool {
    let jump = |nr: libc::c_long, yes| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: yes,
        jf: 0,
        k: nr as u32,
    };
    let other = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        other(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::SYS_userfaultfd, 2),
        jump(libc::SYS_openat, 1),
        other(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        other(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads the program, which is of this thread alone and ends with it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

#[test]
fn where_it_is_not_allowed_the_migration_is_refused_at_its_start_and_the_source_runs_on() {
    let mut machine = Machine::builder().ram_size(4 << 20).program(Program::Image(basic::spin())).build().unwrap();
    let ((ours, theirs), migrator, stop) = (pair(), machine.migrator(), machine.stop_handle());
    let mut options = LeaveOptions::default();
    options.postcopy = Some(Postcopy::after(0));
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            if !forbid() {
                println!("SKIPPED: no filter of system calls");
                return None;
            }
            Some(Machine::builder().postcopy_faults(FaultKind::Userfaultfd).receive(theirs))
        });
        let moving = scope.spawn(move || {
            let migration = migrator.start(ours, Cancel::default(), options).unwrap();
            let ended = migration.wait(PATIENCE).expect("it hangs");
            stop.stop();
            ended
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + PATIENCE) });
        let (ended, Some(refused)) = (moving.join().unwrap(), target.join().unwrap()) else { return };
        assert_eq!(exit, MachineExit::Stopped);
        let why = refused.err().unwrap().to_string();
        assert!(why.starts_with("no userfaultfd: permission"), "{why}");
        assert_eq!(ended.unwrap_err().to_string(), format!("the target refused the machine: {why}"));
    });
    assert!(!machine.is_gone());
}

/// By the command, as a user that may not: the one test that needs the privilege to give it up.
#[test]
fn where_it_is_not_allowed_the_command_refuses_before_it_waits_for_a_source() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    command.args(["run", "--incoming", "tcp:127.0.0.1:0", "--postcopy-faults", "userfaultfd", "--timeout", "1"]);
    if !lacks_userfaultfd() {
        command.uid(65534).gid(65534);
        let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
        if allowed.is_ok_and(|text| text.trim() != "0") {
            println!("SKIPPED: every user may use it here");
            return;
        }
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(why) => {
            println!("SKIPPED: not run as another user: {why}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !said.contains("waits at"), "{said}");
    assert!(
        said.contains("--postcopy-faults userfaultfd: no userfaultfd: permission") || said.contains("kernel"),
        "{said}"
    );
}
