//! Semihosting: what picolibc's `crt0-semihost`, newlib's `libgloss` and the crate `semihosting` ask a debugger for, as Arm's
//! specification has it and RISC-V's takes it over.
//!
//! ```text
//!   print, read    the console, by the name ":tt" or by WRITEC, WRITE0, READC
//!   exit           EXIT and EXIT_EXTENDED, with the reason and code in a block of two words
//!   time           CLOCK, ELAPSED by the guest's clock; TIME by the host's
//!   files          are not there: a guest opens nothing of the host's but ":tt" and ":semihosting-features"
//! ```

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use notdirty_softmmu::{AddressSpace, GuestPhys};
use notdirty_tcg::clock::{Clock, TICKS_PER_SECOND};
use notdirty_tcg::{SemihostAnswer, Semihosting};

use super::console::Console;
use super::exit::{ExitBy, ExitLatch, GuestExit};

const FAILED: u64 = u64::MAX;
/// The reason of a program that ends by itself.
const APPLICATION_EXIT: u64 = 0x20026;
/// Handles that are given out; a guest may close and open them as it likes.
const STDIN: u64 = 1;
const STDOUT: u64 = 2;
const FEATURES: u64 = 4;
/// Magic, and bit 0: EXIT_EXTENDED is there.
const FEATURE_BYTES: &[u8] = b"SHFB\x01";
/// The longest transfer that is done at once; a longer one is cut short, as it may be.
const LONGEST: u64 = 1 << 20;
/// The longest name or string.
const LONGEST_TEXT: u64 = 1 << 16;
const EINVAL: u64 = 22;
/// How long a call that waits for input waits at a time.
const PATIENCE: Duration = Duration::from_millis(1);

/// Answers the calls of all harts.
pub struct Semihost {
    latch: Arc<ExitLatch>,
    console: Arc<Console>,
    clock: Arc<Clock>,
    /// Weak: the address space does not own this, but a machine owns both.
    space: Weak<AddressSpace>,
}

impl Semihost {
    /// Ends runs through `latch`, prints to `console`, and has its time from `clock`.
    pub fn new(space: &Arc<AddressSpace>, latch: Arc<ExitLatch>, console: Arc<Console>, clock: Arc<Clock>) -> Self {
        Semihost { latch, console, clock, space: Arc::downgrade(space) }
    }

    fn words<const N: usize>(&self, at: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (n, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            self.space.upgrade()?.read(GuestPhys::new(at.checked_add(8 * n as u64)?), &mut bytes).ok()?;
            *word = u64::from_le_bytes(bytes);
        }
        Some(words)
    }

    fn bytes(&self, at: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.space.upgrade()?.read(GuestPhys::new(at), &mut bytes).ok()?;
        Some(bytes)
    }

    fn store(&self, at: u64, bytes: &[u8]) -> Option<()> {
        self.space.upgrade()?.write(GuestPhys::new(at), bytes).ok()
    }

    /// Up to the NUL.
    fn text(&self, at: u64) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        for at in at..at.checked_add(LONGEST_TEXT)? {
            match self.bytes(at, 1)?[0] {
                0 => return Some(text),
                byte => text.push(byte),
            }
        }
        None
    }

    fn open(&self, [name, mode, len]: [u64; 3]) -> Option<u64> {
        let name = self.bytes(name, len.min(LONGEST_TEXT))?;
        match (name.as_slice(), mode) {
            (b":tt", 0..=3) => Some(STDIN),
            (b":tt", 4..=11) => Some(STDOUT),
            (b":semihosting-features", 0..=3) => Some(FEATURES),
            _ => None,
        }
    }

    /// How many bytes of `len` were not written.
    fn write(&self, [handle, at, len]: [u64; 3]) -> Option<u64> {
        let done = len.min(LONGEST);
        if handle == FEATURES {
            return None;
        }
        self.console.put(&self.bytes(at, done)?);
        Some(len - done)
    }

    /// How many bytes of `len` were not read; nothing yet, where a console's user has typed none.
    fn read(&self, [handle, at, len]: [u64; 3]) -> SemihostAnswer {
        let mut bytes = Vec::new();
        if handle == FEATURES {
            bytes.extend(&FEATURE_BYTES[..FEATURE_BYTES.len().min(len as usize)]);
        } else {
            while (bytes.len() as u64) < len.min(LONGEST) && bytes.last() != Some(&b'\n') {
                let Some(byte) = self.console.take() else { break };
                bytes.push(byte);
            }
            if bytes.is_empty() && len != 0 && !self.console.input_ended() {
                return self.again();
            }
        }
        match self.store(at, &bytes) {
            Some(()) => SemihostAnswer::Done(len - bytes.len() as u64),
            None => SemihostAnswer::Done(FAILED),
        }
    }

    fn again(&self) -> SemihostAnswer {
        // What it printed is to be seen before it is answered.
        self.console.flush_soon();
        std::thread::sleep(PATIENCE);
        SemihostAnswer::Again
    }

    fn exit(&self, block: u64) -> u64 {
        // Code written for 32 bits has the reason itself there, and no code.
        let [reason, code] = self.words(block).unwrap_or([block, 0]);
        let code = if reason == APPLICATION_EXIT { u64::from(code as u32) } else { 1 };
        self.latch.set(GuestExit { code, by: ExitBy::Semihosting });
        0
    }
}

impl Semihosting for Semihost {
    fn call(&self, _hart: u64, operation: u64, argument: u64) -> SemihostAnswer {
        let three = || self.words::<3>(argument);
        let answer = match operation {
            0x01 => three().and_then(|words| self.open(words)),
            0x02 => Some(0),
            0x03 => self.bytes(argument, 1).map(|byte| self.console.put(&byte)).map(|()| 0),
            0x04 => self.text(argument).map(|text| self.console.put(&text)).map(|()| 0),
            0x05 => three().and_then(|words| self.write(words)),
            0x06 => match three() {
                Some(words) => return self.read(words),
                None => None,
            },
            // Has no answer for the end of the input, so it waits on, as QEMU's.
            0x07 => match self.console.take() {
                Some(byte) => Some(byte.into()),
                None => return self.again(),
            },
            // ISERROR, ISTTY, FLEN: of a block with one word.
            0x08 => self.words::<1>(argument).map(|[status]| u64::from((status as i64) < 0)),
            0x09 => self.words::<1>(argument).map(|[handle]| u64::from(handle != FEATURES)),
            0x0a => self.words::<2>(argument).and_then(|[handle, at]| (handle == FEATURES && at == 0).then_some(0)),
            0x0c => self.words::<1>(argument).map(|[handle]| match handle {
                FEATURES => FEATURE_BYTES.len() as u64,
                _ => 0,
            }),
            0x10 => Some(self.clock.mtime() / (TICKS_PER_SECOND / 100)),
            0x11 => match self.clock.is_insns() {
                // A run by instructions repeats exactly.
                true => Some(self.clock.mtime() / TICKS_PER_SECOND),
                false => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs()),
            },
            0x13 => Some(EINVAL),
            // GET_CMDLINE: an empty line. HEAPINFO: nothing is known, the program's own symbols count.
            0x15 => self.words::<2>(argument).filter(|[_, room]| *room != 0).and_then(|[at, _]| {
                self.store(at, &[0])?;
                self.store(argument + 8, &0u64.to_le_bytes()).map(|()| 0)
            }),
            0x16 => self.words::<1>(argument).and_then(|[at]| self.store(at, &[0; 32])).map(|()| 0),
            0x18 | 0x20 => Some(self.exit(argument)),
            0x30 => self.store(argument, &self.clock.mtime().to_le_bytes()).map(|()| 0),
            0x31 => Some(TICKS_PER_SECOND),
            // REMOVE, RENAME, SYSTEM, TMPNAM: not for a guest.
            0x0d | 0x0e | 0x0f | 0x12 => None,
            other => {
                log::warn!("semihosting: operation {other:#x} is not there");
                None
            }
        };
        SemihostAnswer::Done(answer.unwrap_or(FAILED))
    }
}
