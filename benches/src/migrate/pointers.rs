//! RAM by pointer: a read that waits in the kernel for its page, and how long that takes where the page is at hand.
//!
//! ```text
//!   a thread touches a page ─▶ another one reads the fault, and copies the page in ─▶ the first goes on
//! ```

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use notdirty_core::{PAGE_SIZE, RamBlock, RamBlockSpec, RamList};

/// Of `linux/userfaultfd.h`: the calls, and what is told.
const API: u64 = 0x3f;
const REGISTER: u64 = 0;
const COPY: u64 = 3;
const VERSION: u64 = 0xaa;
const MISSING: u64 = 1;

fn text(why: impl ToString) -> String {
    why.to_string()
}

/// The eight bytes there.
pub(super) fn peek(block: &RamBlock, off: u64) -> u64 {
    assert!(off.is_multiple_of(8) && off < block.used_length());
    // SAFETY: inside of the block's memory.
    unsafe { block.host().add(off as usize).cast::<u64>().read_volatile() }
}

/// One of its calls, with so many words.
fn call(fd: i32, nr: u64, words: &mut [u64]) -> io::Result<()> {
    let number = 3 << 30 | (size_of_val(words) as u64) << 16 | VERSION << 8 | nr;
    // SAFETY: the kernel reads and writes as many words as the number says.
    match unsafe { libc::ioctl(fd, number as _, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Answers so many faults, each at once.
fn answer(own: &OwnedFd, faults: u64) -> io::Result<()> {
    let bytes = [7u8; PAGE_SIZE as usize];
    for _ in 0..faults {
        let mut message = [0u64; 4];
        // SAFETY: the kernel writes one message.
        let got = unsafe { libc::read(own.as_raw_fd(), message.as_mut_ptr().cast(), size_of_val(&message)) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let to = message[2] / PAGE_SIZE * PAGE_SIZE;
        call(own.as_raw_fd(), COPY, &mut [to, bytes.as_ptr().addr() as u64, PAGE_SIZE, 0, 0])?;
    }
    Ok(())
}

/// Microseconds of each of so many faults that are answered at once.
pub(super) fn bare(pages: u64) -> Result<Vec<f64>, String> {
    let list = RamList::new();
    let block = list.add(RamBlockSpec::new("bare", pages * PAGE_SIZE).huge_pages(false)).map_err(text)?;
    // SAFETY: a plain call; what it gives is new.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    if fd < 0 {
        return Err(format!("no userfaultfd here: {}", io::Error::last_os_error()));
    }
    // SAFETY: as above.
    let own = unsafe { OwnedFd::from_raw_fd(fd) };
    call(fd, API, &mut [VERSION, 0, 0]).map_err(text)?;
    call(fd, REGISTER, &mut [block.host().addr() as u64, pages * PAGE_SIZE, MISSING, 0]).map_err(text)?;
    // If it fails its descriptor goes with it, and no page waits any more.
    let answers = std::thread::spawn(move || answer(&own, pages));
    let touch = |n: u64| {
        let start = Instant::now();
        peek(&block, n * 2654435761 % pages * PAGE_SIZE);
        start.elapsed().as_secs_f64() * 1e6
    };
    let times = (0..pages).map(touch).collect();
    answers.join().map_err(|_| "the thread that answers panicked")?.map_err(text)?;
    Ok(times)
}
