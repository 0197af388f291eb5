//! A page that is missing: the host's MMU notices, and a socket brings its bytes. Beside it, the two parts alone.
//!
//! ```text
//!   bare socket:  32 bytes there, 4 KiB back, one thread at each end
//!   bare fault:   a thread touches a page ─▶ another reads the fault and copies the page in
//!   both:         touch ─▶ thread "userfault" ─▶ 32 bytes ─▶ the other side ─▶ 4 KiB ─▶ a thread that places
//! ```
//!
//! `cargo run --release -p notdirty-core --example userfault`

use notdirty_core::{MissingPages, PAGE_SIZE, PageBytes, PageSource, RamBlock, RamBlockSpec, RamList, UserFaults};
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

const PAGES: u64 = 4000;
const PAGE: usize = PAGE_SIZE as usize;

/// Answers 32 bytes, of which eight are an offset, by a page.
fn other_side(mut stream: UnixStream) {
    let (mut request, mut page) = ([0; 32], [7; PAGE]);
    while stream.read_exact(&mut request).is_ok() {
        page[..8].copy_from_slice(&request[..8]);
        if stream.write_all(&page).is_err() {
            return;
        }
    }
}

fn touch(block: &RamBlock, off: u64) {
    // SAFETY: inside of the block's memory.
    unsafe { block.host().add(off as usize).read_volatile() };
}

/// Median and 99th percentile of single calls, in microseconds.
fn times(mut one: impl FnMut(u64)) -> (f64, f64) {
    let mut all: Vec<_> = (0..PAGES)
        .map(|n| {
            let start = Instant::now();
            one(n * 7 % PAGES);
            start.elapsed().as_nanos() as f64 / 1e3
        })
        .collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

fn bare_socket() -> io::Result<(f64, f64)> {
    let (mut here, there) = UnixStream::pair()?;
    let side = std::thread::spawn(move || other_side(there));
    let mut page = [0; PAGE];
    let found = times(|_| {
        let done = here.write_all(&[1; 32]).and_then(|()| here.read_exact(&mut page));
        assert!(done.is_ok());
    });
    drop(here);
    let _ = side.join();
    Ok(found)
}

fn call(fd: i32, nr: u64, words: &mut [u64]) -> io::Result<()> {
    let number = 3 << 30 | (size_of_val(words) as u64) << 16 | 0xaa << 8 | nr;
    // SAFETY: the kernel reads and writes as many words as the number says.
    match unsafe { libc::ioctl(fd, number as _, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bare_fault() -> Result<(f64, f64), Box<dyn Error>> {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("bare", PAGES * PAGE_SIZE).huge_pages(false))?;
    // SAFETY: a plain call; what it gives is new.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: as above.
    let own = unsafe { OwnedFd::from_raw_fd(fd) };
    call(fd, 0x3f, &mut [0xaa, 0, 0])?;
    let start = block.host().addr() as u64;
    call(fd, 0, &mut [start, PAGES * PAGE_SIZE, 1, 0])?;
    let handler = std::thread::spawn(move || {
        let bytes = [7u8; PAGE];
        let mut message = [0u64; 4];
        for _ in 0..PAGES {
            // SAFETY: the kernel writes one message.
            let got = unsafe { libc::read(own.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
            assert_eq!(got, 32);
            let to = message[2] / PAGE_SIZE * PAGE_SIZE;
            let mut words = [to, bytes.as_ptr().addr() as u64, PAGE_SIZE, 0, 0];
            assert!(call(own.as_raw_fd(), 3, &mut words).is_ok());
        }
    });
    let found = times(|n| touch(&block, n * PAGE_SIZE));
    let _ = handler.join();
    Ok(found)
}

struct Socket(UnixStream, OnceLock<Arc<MissingPages>>);

impl PageSource for Socket {
    fn request(&self, _block: &Arc<RamBlock>, off: u64) {
        let mut request = [0; 32];
        request[..8].copy_from_slice(&off.to_le_bytes());
        // One that fails is seen by the thread that reads.
        let _ = (&self.0).write_all(&request);
    }
}

fn both() -> Result<(f64, f64), Box<dyn Error>> {
    let (here, there) = UnixStream::pair()?;
    let side = std::thread::spawn(move || other_side(there));
    let list = Arc::new(RamList::new());
    let block = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE).huge_pages(false))?;
    let socket = Arc::new(Socket(here, OnceLock::new()));
    let pages = list.set_missing_by(UserFaults::open()?, socket.clone(), [block.clone()])?;
    let _ = socket.1.set(pages.clone());
    pages.listen()?;
    let (own, to) = (socket.0.try_clone()?, block.clone());
    let reader = std::thread::spawn(move || {
        let (mut page, mut own) = ([0; PAGE], own);
        while pages.left() != 0 && own.read_exact(&mut page).is_ok() {
            let mut off = [0; 8];
            off.copy_from_slice(&page[..8]);
            let placed = pages.place(&to, u64::from_le_bytes(off), PageBytes::Copy(&page));
            assert!(placed.is_ok_and(|first| first));
        }
        pages.close_faults();
    });
    let found = times(|n| touch(&block, n * PAGE_SIZE));
    let _ = reader.join();
    let _ = socket.0.shutdown(std::net::Shutdown::Both);
    let _ = side.join();
    Ok(found)
}

fn main() -> Result<(), Box<dyn Error>> {
    for _ in 0..3 {
        let (socket, fault, both) = (bare_socket()?, bare_fault()?, both()?);
        println!(
            "bare socket {:.1} us (99 of 100: {:.1}), bare fault {:.1} ({:.1}), a missing page {:.1} ({:.1}): {:.2} of both",
            socket.0,
            socket.1,
            fault.0,
            fault.1,
            both.0,
            both.1,
            both.0 / (socket.0 + fault.0)
        );
    }
    Ok(())
}
