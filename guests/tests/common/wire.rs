//! A stream of ours, unit by unit, between a source and a target; and what can happen to one of them.
//!
//! ```text
//!   source ──▶ Units: header │ section │ piece │ packet … ──▶ the fault at its unit ──▶ target
//!          ◀── answers: PONG, SHUT                        ◀──
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Where a migration is, by what is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Header,
    /// What comes before RAM.
    Setup,
    List,
    /// Pages, while the guest runs; the first piece is 1.
    Piece(u32),
    /// Pages, once it stands still.
    Switchover,
    /// RAM ends.
    RamEnd,
    /// What comes after RAM, from 0 on.
    Device(u32),
    Integrity,
    /// The end, and the description.
    End,
    /// The target is told to run.
    Run,
    /// Of a channel beside the stream.
    Hello,
    Packet(u32),
    Sync(u32),
    /// The target is asked whether it is there, and answers.
    Ping,
    Alive,
    /// What the target answers.
    Shut,
    Pong,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The connection is reset in the middle.
    Reset,
    /// It ends in the middle, and is not reset.
    Cut,
    /// Bytes come in small pieces.
    ShortWrites,
    /// It comes late.
    Delay,
    /// Nothing comes any more.
    Stall,
    /// This bit of it is another one; counted from its middle.
    Flip(u32),
    /// It does not come.
    Lost,
    /// It comes twice.
    Twice,
    /// What follows comes before it.
    Swapped,
}

impl Fault {
    pub const ALL: [Fault; 10] = [
        Fault::Reset,
        Fault::Cut,
        Fault::ShortWrites,
        Fault::Delay,
        Fault::Stall,
        Fault::Flip(3),
        Fault::Flip(501),
        Fault::Lost,
        Fault::Twice,
        Fault::Swapped,
    ];

    /// Nothing is lost by it.
    pub fn is_harmless(self) -> bool {
        matches!(self, Fault::ShortWrites | Fault::Delay)
    }
}

/// Cuts what comes into units.
pub struct Units<R> {
    from: R,
    unit: Vec<u8>,
    beside: bool,
    begun: bool,
    listed: bool,
    ended: bool,
    count: u32,
}

impl<R: Read> Units<R> {
    /// Of the stream itself, or of a channel beside it.
    pub fn new(from: R, beside: bool) -> Self {
        Units { from, unit: Vec::new(), beside, begun: false, listed: false, ended: false, count: 0 }
    }

    /// So many bytes more.
    fn take(&mut self, len: usize) -> io::Result<&[u8]> {
        let at = self.unit.len();
        self.unit.resize(at + len, 0);
        self.from.read_exact(&mut self.unit[at..])?;
        Ok(&self.unit[at..])
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().unwrap()))
    }

    fn name(&mut self) -> io::Result<Vec<u8>> {
        let len = self.take(1)?[0];
        Ok(self.take(len.into())?.to_vec())
    }

    /// The next one; nothing at the end.
    pub fn next(&mut self) -> io::Result<Option<(Phase, Vec<u8>)>> {
        self.unit.clear();
        let phase = match self.read() {
            Ok(phase) => phase,
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(why) => return Err(why),
        };
        Ok(Some((phase, std::mem::take(&mut self.unit))))
    }

    fn read(&mut self) -> io::Result<Phase> {
        let first = !std::mem::replace(&mut self.begun, true);
        if self.beside {
            if first {
                self.take(64)?;
                return Ok(Phase::Hello);
            }
            let head = self.take(1344)?;
            let (sync, len) = (head[11] & 1 != 0, u32::from_be_bytes(head[20..24].try_into().unwrap()));
            self.take(len as usize)?;
            self.count += 1;
            return Ok(if sync { Phase::Sync(self.count) } else { Phase::Packet(self.count) });
        }
        if first {
            let len = self.take(13)?[12];
            self.take(len.into())?;
            return Ok(Phase::Header);
        }
        let kind = self.take(1)?[0];
        match kind {
            8 => {
                let head = self.take(4)?;
                let (command, len) = (head[1], head[3]);
                self.take(len.into())?;
                Ok(match command {
                    3 => Phase::Ping,
                    _ if self.ended => Phase::Run,
                    _ => Phase::Setup,
                })
            }
            4 => {
                self.take(4)?;
                let name = self.name()?;
                self.take(8)?;
                self.section()?;
                self.take(5)?;
                match self.listed {
                    false => Ok(Phase::Setup),
                    true if name == b"integrity" => Ok(Phase::Integrity),
                    true => {
                        self.count += 1;
                        Ok(Phase::Device(self.count - 1))
                    }
                }
            }
            1 => {
                self.take(4)?;
                self.name()?;
                self.take(8)?;
                let mut left = self.u64()? & !0xfff;
                while left != 0 {
                    self.name()?;
                    left -= self.u64()?;
                }
                self.take(8 + 5)?;
                self.listed = true;
                Ok(Phase::List)
            }
            2 | 3 => {
                self.take(4)?;
                loop {
                    let flags = self.u64()? & 0xfff;
                    if flags & 0x10 != 0 {
                        break;
                    }
                    if flags & 0x200 != 0 {
                        continue;
                    }
                    if flags & 0x20 == 0 {
                        self.name()?;
                    }
                    match flags & 0x4a {
                        0x02 => self.take(1)?,
                        0x08 => self.take(4096)?,
                        0x40 => {
                            let len = self.take(3)?;
                            let len = usize::from(len[1]) << 8 | usize::from(len[2]);
                            self.take(len)?
                        }
                        _ => panic!("a record with the flags {flags:#x}"),
                    };
                }
                self.take(5)?;
                if kind == 3 {
                    self.count = 0;
                    return Ok(Phase::RamEnd);
                }
                self.count += 1;
                Ok(Phase::Piece(self.count))
            }
            0 => {
                let len = self.take(5)?;
                let len = u32::from_be_bytes(len[1..].try_into().unwrap());
                self.take(len as usize)?;
                self.ended = true;
                Ok(Phase::End)
            }
            kind => panic!("a section of the kind {kind:#x}"),
        }
    }

    /// A payload that says how it is laid out.
    fn section(&mut self) -> io::Result<()> {
        let fields = self.take(2)?;
        let mut len = 0;
        for _ in 0..u16::from_be_bytes(fields.try_into().unwrap()) {
            self.name()?;
            let kind = self.take(5)?;
            let count = u32::from_be_bytes(kind[1..].try_into().unwrap()) as usize;
            len += count * [1, 1, 4, 8, 1, 8][usize::from(kind[0])];
        }
        self.take(len)?;
        Ok(())
    }
}

/// One fault, and where; on which channel (0 is the stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    pub channel: usize,
    pub phase: Phase,
    pub fault: Fault,
}

/// What passes bytes on, for as long as it is told.
#[derive(Default)]
pub struct Between {
    pub plan: Option<Plan>,
    /// The fault was there.
    pub met: AtomicBool,
    /// All is over: what stalls ends.
    pub over: AtomicBool,
    /// The last piece that passed.
    pub pieces: AtomicU32,
    /// The guest stands still.
    pub stands: AtomicBool,
    /// What passed.
    pub phases: Mutex<Vec<(usize, Phase)>>,
    /// Called before a unit passes.
    pub tell: Option<Box<dyn Fn(Phase) + Send + Sync>>,
}

/// A socket's end. What the other one does not read is waited for five seconds.
pub fn end(fd: impl Into<OwnedFd>) -> File {
    let file = File::from(fd.into());
    let time = libc::timeval { tv_sec: 5, tv_usec: 0 };
    let (at, len) = ((&raw const time).cast(), size_of::<libc::timeval>() as libc::socklen_t);
    // SAFETY: a plain system call; the kernel reads `len` bytes.
    unsafe { libc::setsockopt(file.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, at, len) };
    file
}

fn shut(of: &File, how: libc::c_int) {
    // SAFETY: a plain system call on a descriptor that is open.
    unsafe { libc::shutdown(of.as_raw_fd(), how) };
}

/// What is closed from now on is reset. A Unix socket resets what has not been read.
fn reset(of: &File) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (at, len) = ((&raw const linger).cast(), size_of::<libc::linger>() as libc::socklen_t);
    // SAFETY: a plain system call; the kernel reads `len` bytes.
    unsafe { libc::setsockopt(of.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, len) };
}

impl Between {
    /// Passes on what the source sends by this channel; both ends are shut at the end.
    pub fn there(&self, channel: usize, from: File, mut to: File) {
        let mut units = Units::new(&from, channel != 0);
        let mut held: Option<Vec<u8>> = None;
        while let Ok(Some((mut phase, bytes))) = units.next() {
            if let Phase::Piece(n) = phase {
                self.pieces.store(n, Ordering::Release);
                if self.stands.load(Ordering::Acquire) {
                    phase = Phase::Switchover;
                }
            }
            if !self.pass(channel, phase, bytes, (&from, &mut to), &mut held) {
                break;
            }
        }
        let _ = held.map(|held| to.write_all(&held));
        shut(&to, libc::SHUT_RDWR);
        shut(&from, libc::SHUT_RDWR);
    }

    /// Passes on what the target answers.
    pub fn back(&self, mut from: File, mut to: File) {
        let (mut held, mut bytes) = (None, vec![0; 8]);
        while from.read_exact(&mut bytes).is_ok() {
            let phase = match (bytes[1], bytes[7]) {
                (2, 1) => Phase::Alive,
                (2, _) => Phase::Pong,
                _ => Phase::Shut,
            };
            let mut answer = bytes.clone();
            if bytes[0] != 0 {
                // A reason, as long as it says; the answer itself follows.
                let rest = u16::from_be_bytes([bytes[2], bytes[3]]) as usize - 4;
                answer.resize(8 + rest, 0);
                if from.read_exact(&mut answer[8..]).is_err() {
                    break;
                }
            }
            if !self.pass(0, phase, answer, (&from, &mut to), &mut held) {
                break;
            }
        }
        shut(&to, libc::SHUT_WR);
    }

    fn pass(
        &self,
        channel: usize,
        phase: Phase,
        mut bytes: Vec<u8>,
        (from, to): (&File, &mut File),
        held: &mut Option<Vec<u8>>,
    ) -> bool {
        self.phases.lock().unwrap().push((channel, phase));
        if let Some(tell) = &self.tell {
            tell(phase);
        }
        let here = self.plan.filter(|plan| (plan.channel, plan.phase) == (channel, phase));
        let Some(plan) = here.filter(|_| !self.met.swap(true, Ordering::AcqRel)) else {
            let passed = to.write_all(&bytes).is_ok();
            return passed && held.take().is_none_or(|held| to.write_all(&held).is_ok());
        };
        match plan.fault {
            Fault::Reset | Fault::Cut => {
                let _ = to.write_all(&bytes[..bytes.len() / 2]);
                if plan.fault == Fault::Reset {
                    reset(from);
                    reset(to);
                }
                false
            }
            Fault::ShortWrites => bytes.chunks(bytes.len() / 97 + 1).all(|piece| to.write_all(piece).is_ok()),
            Fault::Delay => {
                std::thread::sleep(Duration::from_millis(40));
                to.write_all(&bytes).is_ok()
            }
            Fault::Stall => {
                while !self.over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                false
            }
            Fault::Flip(bit) => {
                let at = (bytes.len() / 2 + bit as usize / 8).min(bytes.len() - 1);
                bytes[at] ^= 1 << (bit % 8);
                to.write_all(&bytes).is_ok()
            }
            Fault::Lost => true,
            Fault::Twice => to.write_all(&[&bytes[..], &bytes[..]].concat()).is_ok(),
            Fault::Swapped => {
                *held = Some(bytes);
                true
            }
        }
    }
}
