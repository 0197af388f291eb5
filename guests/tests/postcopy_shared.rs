//! A second process that shares RAM with a machine that comes by postcopy, as a vhost-user back end does: it reads and writes pages that
//! are yet to come.
//!
//! ```text
//!   here: notifiers                              there: this test once more, as a child
//!     Probe  ── P ──▶                              has it a userfaultfd? ── y │ n
//!     Advise ── A, length, the memfd ──▶           maps it, registers it ── its address, its userfaultfd ──▶ UserFaults::share
//!     Listen ── L ──▶                              threads read pages in an order of their own, check them, and write to each
//!     End    ── E ──▶                              unregisters, joins, exits 0 if all was right
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use notdirty::programs::basic;
use notdirty::{
    ArrivalState, Cancel, Channel, FaultKind, LeaveOptions, Machine, MachineExit, MigrationState, PlugSpec, Postcopy,
    Program, RunLimits,
};
use notdirty_core::migration::postcopy::{Answered, Moment, Notice, Notifiers};
use notdirty_core::{PeerFaults, PeerRange, UserFaults};

const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u64 = 4096;
/// Of the RAM that is shared, and where the guest has it.
const PAGES: u64 = 1024;
const SHARED: u64 = 0x1_0000_0000;
/// Where in each page the back end writes.
const MARK: u64 = 2048;
const CHILD: &str = "NOTDIRTY_BACK_END";

/// What the source's pages hold; every eighth is zero.
fn value(page: u64) -> u8 {
    if page.is_multiple_of(8) { 0 } else { page as u8 | 1 }
}

/// One byte or more, and a descriptor.
fn send_with(socket: &UnixStream, bytes: &[u8], fd: i32) -> io::Result<()> {
    let mut space = [0u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    // SAFETY: arithmetic alone.
    let (room, len) = unsafe { (libc::CMSG_SPACE(4), libc::CMSG_LEN(4)) };
    (message.msg_control, message.msg_controllen) = (space.as_mut_ptr().cast(), room as _);
    // SAFETY: `space` has room for the one header with its descriptor.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = len as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        if libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) != bytes.len() as isize {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn receive_with(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<OwnedFd> {
    let mut space = [0u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send_with`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (space.as_mut_ptr().cast(), size_of_val(&space) as _);
    // SAFETY: the kernel writes to `bytes` and `space`; a descriptor that came is new, and has no other owner.
    unsafe {
        let got = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if got != bytes.len() as isize || header.is_null() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
    }
}

/// A call of the kernel's, of a userfaultfd: its number, and its arguments as words.
fn call(fd: i32, nr: u64, words: &mut [u64]) -> io::Result<()> {
    let direction = if nr == 1 { 2 } else { 3 };
    let number = direction << 30 | (size_of_val(words) as u64) << 16 | 0xaa << 8 | nr;
    // SAFETY: the kernel reads and writes as many words as the number says.
    match unsafe { libc::ioctl(fd, number as _, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: a plain call; what it gives is new.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) } as i32;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    call(fd.as_raw_fd(), 0x3f, &mut [0xaa, 1 << 5 | 1 << 10, 0])?;
    Ok(fd)
}

/// The back end, which knows the socket, and nothing of this crate.
fn back_end(path: &str, minor: bool) {
    let mut socket = UnixStream::connect(path).unwrap();
    let mut letter = [0];
    let mut next = |socket: &mut UnixStream| {
        socket.read_exact(&mut letter).unwrap();
        letter[0]
    };
    assert_eq!(next(&mut socket), b'P');
    let own = userfaultfd();
    socket.write_all(if own.is_ok() { b"y" } else { b"n" }).unwrap();
    let Ok(own) = own else { return };
    let mut head = [0; 9];
    let memory = receive_with(&socket, &mut head).unwrap();
    let len = u64::from_le_bytes(head[1..].try_into().unwrap());
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, anywhere.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, prot, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let address = at.addr() as u64;
    call(own.as_raw_fd(), 0, &mut [address, len, if minor { 5 } else { 1 }, 0]).unwrap();
    send_with(&socket, &address.to_le_bytes(), own.as_raw_fd()).unwrap();
    assert_eq!(next(&mut socket), b'L');
    let (wrong, looked) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (wrong, looked) = (&wrong, &looked);
            scope.spawn(move || {
                for n in 0..PAGES {
                    // Each page by both, in two orders; the first one writes to it.
                    let page = if thread == 0 { n * 37 % PAGES } else { (PAGES - 1) - n * 5 % PAGES };
                    let place = |off: u64| (address + page * PAGE + off) as *mut u8;
                    // SAFETY: inside of the mapping.
                    unsafe {
                        for off in [7, PAGE - 1] {
                            wrong.fetch_add(u64::from(place(off).read_volatile() != value(page)), Ordering::Relaxed);
                        }
                        if thread == 0 {
                            place(MARK).write_volatile(!value(page));
                        }
                    }
                    looked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // All is here: what is left of the readers needs nothing of the other side.
        assert_eq!(next(&mut socket), b'E');
        call(own.as_raw_fd(), 1, &mut [address, len]).unwrap();
    });
    assert_eq!((wrong.into_inner(), looked.into_inner()), (0, 2 * PAGES));
    socket.write_all(b"e").unwrap();
}

fn channel(socket: UnixStream) -> Channel {
    Channel::new(OwnedFd::from(socket), PATIENCE, Cancel::default()).unwrap()
}

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (channel(a), channel(b))
}

/// What the machine's side says to its back end.
struct FrontEnd {
    socket: Mutex<UnixStream>,
    minor: bool,
    guard: Mutex<Option<notdirty_core::SharedFaults>>,
    /// The child may be gone.
    deaf: bool,
}

impl FrontEnd {
    fn told(&self, notice: &Notice<'_>) -> Answered {
        let mut socket = self.socket.lock().unwrap();
        let mut letter = [0];
        match notice.moment {
            Moment::Probe => {
                socket.write_all(b"P")?;
                socket.read_exact(&mut letter)?;
                if letter == *b"y" { Ok(()) } else { Err("it has no userfaultfd".into()) }
            }
            Moment::Advise => {
                let pages = notice.pages.unwrap();
                let faults = pages.userfaults().ok_or("other processes need userfaultfd")?;
                let block = pages.blocks().find(|block| block.idstr() == "shared").unwrap().clone();
                let len = block.used_length();
                let mut head = vec![b'A'];
                head.extend(len.to_le_bytes());
                send_with(&socket, &head, block.fd().unwrap().as_raw_fd())?;
                let mut address = [0; 8];
                let fd = receive_with(&socket, &mut address)?;
                let ranges = vec![PeerRange { block, off: 0, len, address: u64::from_le_bytes(address) }];
                let shared = faults.share(PeerFaults { name: "back end".into(), fd, ranges, minor: self.minor })?;
                *self.guard.lock().unwrap() = Some(shared);
                Ok(())
            }
            Moment::Listen => Ok(socket.write_all(b"L")?),
            Moment::End(_) => {
                let said = socket.write_all(b"E").and_then(|()| socket.read_exact(&mut letter));
                *self.guard.lock().unwrap() = None;
                if self.deaf { Ok(()) } else { Ok(said?) }
            }
        }
    }
}

fn child(test: &str, path: &std::path::Path, minor: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{}{}", if minor { "+" } else { "-" }, path.display())).spawn().unwrap()
}

/// Whether this is the child, which has done its part.
fn was_child() -> bool {
    let Ok(text) = std::env::var(CHILD) else { return false };
    back_end(&text[1..], text.starts_with('+'));
    true
}

fn go(test: &str, minor: bool, dies: bool) {
    let path = std::env::temp_dir().join(format!("notdirty-back-end-{}-{test}-{minor}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = child(test, &path, minor);
    let (socket, _) = listener.accept().unwrap();
    std::fs::remove_file(&path).unwrap();

    let mut machine = Machine::builder().ram_size(2 << 20).program(Program::Image(basic::spin())).build().unwrap();
    machine.memory().plug("shared", SHARED, PAGES * PAGE, PlugSpec::default().shared(true)).unwrap();
    for page in 0..PAGES {
        machine.write(SHARED + page * PAGE, &[value(page); PAGE as usize]).unwrap();
    }
    let front = FrontEnd { socket: Mutex::new(socket), minor, guard: Mutex::new(None), deaf: dies };
    let notifiers = Notifiers::default();
    let _guard = notifiers.add("back end", move |notice| front.told(notice));
    let (ours, theirs) = pair();
    let (migrator, mut options) = (machine.migrator(), LeaveOptions::default());
    let mut postcopy = Postcopy::after(0);
    postcopy.bandwidth = Some(8 << 20);
    options.postcopy = Some(postcopy);
    let there = std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            let builder = Machine::builder().postcopy_notifiers(&notifiers);
            builder.postcopy_faults(FaultKind::Userfaultfd).receive(theirs).unwrap()
        });
        let child = &mut child;
        let moving = scope.spawn(move || {
            let migration = migrator.start(ours, Cancel::default(), options).unwrap();
            let mut there = target.join().unwrap();
            let arrival = there.arrival().unwrap();
            if dies {
                // Threads of its wait.
                while arrival.status().requests < 10 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                child.kill().unwrap();
                child.wait().unwrap();
            } else if !minor {
                // A cut, while it reads.
                arrival.pause();
                if arrival.wait_while(ArrivalState::Running, PATIENCE) == ArrivalState::Paused {
                    let until = Instant::now() + PATIENCE;
                    while migration.status().state != MigrationState::PostcopyPaused {
                        assert!(Instant::now() < until, "{:?}", migration.status());
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let (ours, theirs) = pair();
                    arrival.recover(theirs).unwrap();
                    migration.recover(ours).unwrap();
                }
            }
            let limits = RunLimits { max_insns: Some(there.cpu().retired + 100_000), deadline: None };
            assert_eq!(there.run(&limits), MachineExit::InsnLimit);
            migration.wait(PATIENCE).expect("it hangs").unwrap();
            arrival.wait_while(ArrivalState::Running, PATIENCE);
            let status = arrival.status();
            assert_eq!((status.state, status.left), (ArrivalState::Complete, 0), "{:?}", status.why);
            assert!(status.blocktime.host_waits > 0, "{status:?}");
            println!(
                "minor {minor}: {} missing, {} asked for, {} waits",
                status.missing, status.requests, status.blocktime.host_waits
            );
            there
        });
        let exit = machine.run(&RunLimits { max_insns: None, deadline: Some(Instant::now() + 3 * PATIENCE) });
        assert_eq!(exit, MachineExit::Migrated);
        moving.join().unwrap()
    });
    if !dies {
        assert!(child.wait().unwrap().success(), "what it read");
    }
    // Nothing that it wrote to a page was lost by a placement.
    let mut marks = 0;
    for page in 0..PAGES {
        let mut bytes = [0; 2];
        there.read(SHARED + page * PAGE + MARK, &mut bytes).unwrap();
        assert!(bytes[0] == !value(page) || (dies && bytes[0] == value(page)), "page {page}: {bytes:?}");
        assert_eq!(bytes[1], value(page));
        marks += u64::from(bytes[0] == !value(page));
    }
    assert!(dies || marks == PAGES);
}

fn lacks_userfaultfd() -> bool {
    UserFaults::open().map(drop).map_err(|why| println!("SKIPPED: {why}")).is_err()
}

#[test]
fn another_process_reads_pages_that_are_yet_to_come_across_a_cut() {
    if !was_child() && !lacks_userfaultfd() {
        go("another_process_reads_pages_that_are_yet_to_come_across_a_cut", false, false);
    }
}

#[test]
fn another_process_is_told_of_pages_by_minor_faults_too() {
    if !was_child() && !lacks_userfaultfd() {
        go("another_process_is_told_of_pages_by_minor_faults_too", true, false);
    }
}

#[test]
fn a_process_that_dies_holds_nothing_up() {
    if !was_child() && !lacks_userfaultfd() {
        go("a_process_that_dies_holds_nothing_up", false, true);
    }
}
