//! RAM that is yet to come, over a socket: what a fault costs beside the same bytes by themselves.
//!
//! ```text
//!   vCPU ── load ─▶ Missing ─▶ parks ─▶ request: 32 bytes ──────────▶ the other side
//!     ▲                                                                  │ 4 KiB
//!     └── the load again ◀── woken ◀── place ◀── a thread that reads ◀───┘        or the vCPU's own thread reads
//!   bare:  32 bytes there, 4 KiB back, one thread at each end
//! ```
//!
//! `cargo run --release -p notdirty-softmmu --example missing`

use notdirty_core::{MissingPages, PAGE_SIZE, PageBytes, PageSource, RamBlock, RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, FaultCause, GuestPhys, GuestVirt, MemSize, MmuIdx, NoHooks, SoftMmu};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const PAGES: u64 = 2000;
const BASE: u64 = 0x8000_0000;

/// Answers 32 bytes, of which eight are an offset, by a page.
fn other_side(mut stream: UnixStream) {
    let (mut request, mut page) = ([0; 32], [0; PAGE_SIZE as usize]);
    while stream.read_exact(&mut request).is_ok() {
        page[..8].copy_from_slice(&request[..8]);
        if stream.write_all(&page).is_err() {
            return;
        }
    }
}

fn request(mut stream: &UnixStream, off: u64) -> io::Result<()> {
    let mut request = [0; 32];
    request[..8].copy_from_slice(&off.to_le_bytes());
    stream.write_all(&request)
}

fn reply(mut stream: &UnixStream) -> io::Result<(u64, [u8; PAGE_SIZE as usize])> {
    let mut page = [0; PAGE_SIZE as usize];
    stream.read_exact(&mut page)?;
    Ok((u64::from_le_bytes(page[..8].try_into().unwrap_or_default()), page))
}

/// Which thread reads what comes back.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    /// A thread of its own.
    Thread,
    /// The thread that asks.
    Asker,
}

struct Socket {
    stream: Arc<UnixStream>,
    reader: Reader,
    pages: OnceLock<Arc<MissingPages>>,
    lock: Mutex<()>,
}

impl PageSource for Socket {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        let _one = self.lock.lock();
        let asked = request(&self.stream, off);
        if self.reader == Reader::Asker
            && asked.is_ok()
            && let (Ok((off, page)), Some(pages)) = (reply(&self.stream), self.pages.get())
        {
            let _ = pages.place(block, off, PageBytes::Copy(&page));
        }
    }
}

fn faults(reader: Reader) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let (here, there) = UnixStream::pair()?;
    let here = Arc::new(here);
    let list = Arc::new(RamList::new());
    let ram = list.add(RamBlockSpec::new("ram", PAGES * PAGE_SIZE))?;
    let space = AddressSpace::new(list.clone());
    space.map_ram(GuestPhys::new(BASE), &ram, 0, ram.used_length(), 0)?;
    let mut mmu = SoftMmu::new(&space, 0)?;
    let source = Arc::new(Socket { stream: here.clone(), reader, pages: OnceLock::new(), lock: Mutex::new(()) });
    let pages = list.set_missing(source.clone(), [ram.clone()])?;
    let _ = source.pages.set(pages.clone());
    pages.listen()?;
    std::thread::scope(|scope| {
        scope.spawn(move || other_side(there));
        if reader == Reader::Thread {
            scope.spawn(|| {
                while let Ok((off, page)) = reply(&here) {
                    let _ = pages.place(&ram, off, PageBytes::Copy(&page));
                }
            });
        }
        let mut times = Vec::new();
        for page in 0..PAGES {
            let start = Instant::now();
            // What an exec loop does with an instruction.
            loop {
                let mut vcpu = mmu.run(&mut NoHooks);
                let at = GuestVirt::new(BASE + page * PAGE_SIZE);
                match vcpu.load(&mut NoHooks, MmuIdx::M, at, MemSize::B8) {
                    Ok(value) => break assert_eq!(value, page * PAGE_SIZE),
                    Err(fault) => assert_eq!(fault.cause, FaultCause::Missing),
                }
                let (missing, _) = vcpu.take_missing().ok_or("a missing page has a name")?;
                drop(vcpu);
                mmu.wait_for_page(missing, 0, None)?;
            }
            times.push(start.elapsed());
        }
        here.shutdown(std::net::Shutdown::Both)?;
        let times_told = pages.blocktime();
        println!(
            "    {} waits, mean {} ns, 99 of 100 within {} ns",
            times_told.waits,
            times_told.mean_ns(),
            times_told.within_ns(0.99)
        );
        Ok(times)
    })
}

fn bare() -> io::Result<Vec<Duration>> {
    let (here, there) = UnixStream::pair()?;
    std::thread::scope(|scope| {
        scope.spawn(move || other_side(there));
        let mut times = Vec::new();
        for page in 0..PAGES {
            let start = Instant::now();
            request(&here, page)?;
            reply(&here)?;
            times.push(start.elapsed());
        }
        here.shutdown(std::net::Shutdown::Both)?;
        Ok(times)
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let show = |what: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        println!("{what:32} median {:?}, 99th percentile {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    };
    show("bare round trip", bare()?);
    show("a fault, a thread reads", faults(Reader::Thread)?);
    show("a fault, what asks reads", faults(Reader::Asker)?);
    show("bare round trip", bare()?);
    Ok(())
}
