//! HTIF, the host-target interface of Berkeley's test programs: two double words at the symbols `tohost` and `fromhost`.
//!
//! ```text
//!   tohost = 1 | code << 1               the program ends with `code`
//!   tohost = 1 << 56 | 1 << 48 | byte    prints a byte       1 << 56 | 0: reads one, answered in fromhost
//!   tohost = address                     system call: eight double words [number, arguments..]; the result replaces
//!                                        the number, fromhost = 1 says that it is done
//! ```
//!
//! The two words lie in RAM, so they are sub-page overlays over it and their pages never get a fast TLB entry.
//!
//! Code written for 32 bits sends two halves: low, then high. An odd low half alone may be the end of the program, or the
//! first half of a printed byte. It ends the program when it comes twice, or when no high half follows soon: then
//! [`Htif::take_nudge`] tells the machine to look, which calls [`Htif::end_half`] after some more instructions.
//!
//! ```text
//!   hart A stores a command ─▶ server = A ─▶ served, with no lock held ─▶ tohost = 0, if it is still that command
//!   hart B stores one meanwhile ─▶ waits until A's is answered, then the same
//!   A's own answer lies in tohost (its call block does) ─▶ a plain store
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};

use notdirty_softmmu::{AddressSpace, DeviceState, GuestPhys, MemSize, MmioDevice, Stateful};

use super::console::Console;
use super::exit::{ExitBy, ExitLatch, GuestExit};

const SYS_WRITE: u64 = 64;
const SYS_EXIT: u64 = 93;
const EFAULT: i64 = -14;
const EBADF: i64 = -9;
const ENOSYS: i64 = -38;
/// The longest `write` that is done at once; a longer one is cut short, as `write` may be.
const LONGEST_WRITE: u64 = 1 << 20;

#[derive(Default)]
struct Words {
    tohost: u64,
    fromhost: u64,
    /// An odd low half came, and no high half since.
    half: bool,
    /// It came since the machine was last told.
    nudge: bool,
    /// The thread that answers a command.
    server: Option<ThreadId>,
    /// The guest asked for a byte that has not come yet.
    wants_input: bool,
}

/// The interface; its two words are mapped one by one, see [`Htif::tohost`] and [`Htif::fromhost`].
pub struct Htif {
    words: Mutex<Words>,
    /// Whoever waits until another command is answered.
    answered: Condvar,
    latch: Arc<ExitLatch>,
    console: Arc<Console>,
    /// Weak: the address space owns its devices.
    space: Weak<AddressSpace>,
}

/// One of the two words.
struct Word {
    htif: Arc<Htif>,
    tohost: bool,
}

impl Htif {
    /// Bytes that each word takes on the bus.
    pub const WORD: u64 = 8;

    /// An interface that ends runs through `latch` and prints to `console`.
    pub fn new(space: &Arc<AddressSpace>, latch: Arc<ExitLatch>, console: Arc<Console>) -> Arc<Htif> {
        let (words, answered) = (Mutex::default(), Condvar::new());
        Arc::new(Htif { words, answered, latch, console, space: Arc::downgrade(space) })
    }

    /// The word at the symbol `tohost`.
    pub fn tohost(self: &Arc<Self>) -> Arc<dyn MmioDevice> {
        Arc::new(Word { htif: self.clone(), tohost: true })
    }

    /// The word at the symbol `fromhost`.
    pub fn fromhost(self: &Arc<Self>) -> Arc<dyn MmioDevice> {
        Arc::new(Word { htif: self.clone(), tohost: false })
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// State after reset: nothing was said. No hart runs.
    pub fn reset(&self) {
        *self.words() = Words::default();
    }

    /// An odd low half waits for its high half, since the last call.
    pub fn take_nudge(&self) -> bool {
        core::mem::take(&mut self.words().nudge)
    }

    /// Does an odd low half wait for its high half?
    pub fn has_half(&self) -> bool {
        self.words().half
    }

    /// No high half came: the low half was the end of the program.
    pub fn end_half(&self) {
        let mut words = self.words();
        if core::mem::take(&mut words.half) {
            let code = core::mem::take(&mut words.tohost) >> 1;
            drop(words);
            self.latch.set(GuestExit { code, by: ExitBy::Tohost });
        }
    }

    /// A part of `tohost` is stored.
    fn store_tohost(&self, offset: u64, size: MemSize, value: u64) {
        let me = thread::current().id();
        let mut words = self.words();
        words.tohost = merge(words.tohost, offset, size, value);
        if words.server == Some(me) {
            return;
        }
        let command = words.tohost;
        let last_part = offset + size.bytes() >= Htif::WORD;
        let odd_half = !last_part && command & 1 != 0 && command >> 32 == 0;
        let twice = core::mem::replace(&mut words.half, odd_half) && odd_half;
        if odd_half && !twice {
            words.nudge = true;
            drop(words);
            self.latch.look();
            return;
        }
        if command == 0 || !last_part && !twice {
            return;
        }
        words.half = false;
        while words.server.is_some() {
            words = self.answered.wait(words).unwrap_or_else(PoisonError::into_inner);
        }
        words.server = Some(me);
        drop(words);
        // Also should the answer panic, in a sink of the embedder's.
        let _serving = Serving(self, command);
        self.serve(command);
    }

    /// Answers a command. No lock is held: a call may read and write these very words.
    fn serve(&self, command: u64) {
        match (command >> 56, command >> 48 & 0xff) {
            (0, 0) if command & 1 != 0 => self.latch.set(GuestExit { code: command >> 1, by: ExitBy::Tohost }),
            (0, 0) => {
                self.call(command);
                self.words().fromhost = 1;
            }
            (1, 0) => self.words().wants_input = true,
            (1, 1) => self.console.put(&[command as u8]),
            (device, cmd) => log::warn!("HTIF: device {device} command {cmd} is not there"),
        }
    }

    /// A system call whose block is at `block`.
    fn call(&self, block: u64) {
        let Some(space) = self.space.upgrade() else { return };
        let mut words = [0; 32];
        if space.read(GuestPhys::new(block), &mut words).is_err() {
            log::warn!("HTIF: the system call block at {block:#x} is not in memory");
            return;
        }
        let word = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&words[8 * n..8 * n + 8]);
            u64::from_le_bytes(bytes)
        };
        let result = match word(0) {
            SYS_WRITE => self.write(&space, word(1), word(2), word(3)),
            SYS_EXIT => {
                self.latch.set(GuestExit { code: word(1), by: ExitBy::HtifSyscall });
                0
            }
            other => {
                log::warn!("HTIF: system call {other} is not there");
                ENOSYS
            }
        };
        // Through the one door: if code lies there, it dies.
        let _ = space.write(GuestPhys::new(block), &result.to_le_bytes());
    }

    fn write(&self, space: &AddressSpace, fd: u64, at: u64, len: u64) -> i64 {
        if !matches!(fd, 1 | 2) {
            return EBADF;
        }
        let len = len.min(LONGEST_WRITE);
        let (mut chunk, mut done) = ([0; 4096], 0);
        while done < len {
            let part = (len - done).min(4096) as usize;
            if space.read(GuestPhys::new(at.wrapping_add(done)), &mut chunk[..part]).is_err() {
                return if done == 0 { EFAULT } else { done as i64 };
            }
            self.console.put(&chunk[..part]);
            done += part as u64;
        }
        done as i64
    }
}

/// A command that is being answered.
struct Serving<'a>(&'a Htif, u64);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut words = self.0.words();
        // The answer wrote over the command, or another hart has stored (a part of) its own.
        if words.tohost == self.1 {
            words.tohost = 0;
        }
        words.server = None;
        self.0.answered.notify_all();
    }
}

/// `old` with the `size` bytes from byte `at` on taken from `value`.
fn merge(old: u64, at: u64, size: MemSize, value: u64) -> u64 {
    let shift = 8 * at.min(7) as u32;
    old & !(size.mask() << shift) | (value & size.mask()) << shift
}

notdirty_softmmu::fields! {
    /// The two words, and how far a conversation is.
    pub struct HtifState: "htif", version 1 {
        tohost: u64,
        fromhost: u64,
        half: bool,
        nudge: bool,
        wants_input: bool,
    }
}

impl Stateful for Htif {
    type State = HtifState;

    fn save(&self) -> HtifState {
        let Words { tohost, fromhost, half, nudge, wants_input, .. } = *self.words();
        HtifState { tohost, fromhost, half, nudge, wants_input }
    }

    fn restore(&self, state: &HtifState) {
        let &HtifState { tohost, fromhost, half, nudge, wants_input } = state;
        *self.words() = Words { tohost, fromhost, half, nudge, server: None, wants_input };
    }
}

impl MmioDevice for Word {
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(&*self.htif)
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        "HTIF"
    }

    fn read(&self, offset: u64, size: MemSize) -> u64 {
        let mut words = self.htif.words();
        if !self.tohost
            && words.wants_input
            && words.fromhost == 0
            && let Some(byte) = self.htif.console.take()
        {
            words.wants_input = false;
            words.fromhost = 1 << 56 | 0x100 | u64::from(byte);
        }
        let word = if self.tohost { words.tohost } else { words.fromhost };
        word.checked_shr(8 * offset as u32).unwrap_or(0) & size.mask()
    }

    fn write(&self, offset: u64, size: MemSize, value: u64) {
        if self.tohost {
            self.htif.store_tohost(offset, size, value);
        } else {
            let mut words = self.htif.words();
            words.fromhost = merge(words.fromhost, offset, size, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::Captured;
    use super::*;
    use notdirty_core::{RamBlockSpec, RamList};

    const RAM: u64 = 0x8000_0000;

    struct Rig {
        htif: Arc<Htif>,
        space: Arc<AddressSpace>,
        tohost: Arc<dyn MmioDevice>,
        fromhost: Arc<dyn MmioDevice>,
        latch: Arc<ExitLatch>,
        console: Arc<Console>,
        seen: Captured,
    }

    fn rig() -> Rig {
        let ram = Arc::new(RamList::new());
        let block = ram.add(RamBlockSpec::new("ram", 0x10000)).unwrap();
        let space = AddressSpace::new(ram);
        space.map_ram(GuestPhys::new(RAM), &block, 0, 0x10000, 0).unwrap();
        let (latch, seen) = (Arc::new(ExitLatch::default()), Captured::default());
        let console = Console::new(Box::new(seen.clone()));
        let htif = Htif::new(&space, latch.clone(), console.clone());
        Rig { tohost: htif.tohost(), fromhost: htif.fromhost(), htif, space, latch, console, seen }
    }

    fn block(rig: &Rig, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        rig.space.write(GuestPhys::new(at), &bytes).unwrap();
    }

    fn result(rig: &Rig, at: u64) -> i64 {
        let mut bytes = [0; 8];
        rig.space.read(GuestPhys::new(at), &mut bytes).unwrap();
        i64::from_le_bytes(bytes)
    }

    #[test]
    fn an_odd_value_ends_the_program_in_one_store_or_in_halves() {
        let exit = |code| Some(GuestExit { code, by: ExitBy::Tohost });
        let whole = rig();
        whole.tohost.write(0, MemSize::B8, 7 << 1 | 1);
        assert_eq!(whole.latch.get(), exit(7));
        let half = rig();
        half.tohost.write(0, MemSize::B4, 1);
        assert_eq!(half.latch.get(), None);
        half.tohost.write(4, MemSize::B4, 0);
        assert_eq!(half.latch.get(), exit(0));
        let low_only = rig();
        low_only.tohost.write(0, MemSize::B4, 9 << 1 | 1);
        low_only.tohost.write(0, MemSize::B4, 9 << 1 | 1);
        assert_eq!(low_only.latch.get(), exit(9));
    }

    #[test]
    fn an_odd_low_half_waits_for_its_high_half_until_it_is_ended() {
        let rig = rig();
        rig.tohost.write(0, MemSize::B4, u64::from(b'a'));
        assert!(rig.htif.take_nudge() && !rig.htif.take_nudge() && rig.htif.has_half());
        rig.tohost.write(4, MemSize::B4, 0x0101_0000);
        assert!(!rig.htif.has_half());
        rig.htif.end_half();
        assert_eq!(rig.latch.get(), None, "it was a printed byte");
        rig.tohost.write(0, MemSize::B4, 4 << 1 | 1);
        rig.htif.end_half();
        assert_eq!(rig.latch.get(), Some(GuestExit { code: 4, by: ExitBy::Tohost }));
    }

    #[test]
    fn commands_of_two_harts_are_all_answered() {
        // A sink that is slow, so that one command arrives while the other is answered.
        struct Slow(Captured);
        impl std::io::Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                thread::sleep(std::time::Duration::from_micros(200));
                self.0.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (space, seen) = (AddressSpace::new(Arc::new(RamList::new())), Captured::default());
        let latch = Arc::new(ExitLatch::default());
        let htif = Htif::new(&space, latch.clone(), Console::new(Box::new(Slow(seen.clone()))));
        thread::scope(|scope| {
            for byte in [b'a', b'b'] {
                let tohost = htif.tohost();
                scope.spawn(move || {
                    for _ in 0..200 {
                        tohost.write(0, MemSize::B8, 1 << 56 | 1 << 48 | u64::from(byte));
                        tohost.write(0, MemSize::B8, 1 << 56 | 1 << 48 | u64::from(b'\n'));
                    }
                });
            }
        });
        let text = seen.text();
        let count = |byte| text.bytes().filter(|&b| b == byte).count();
        assert_eq!((count(b'a'), count(b'b'), count(b'\n')), (200, 200, 400));
        htif.tohost().write(0, MemSize::B8, 1);
        assert_eq!(latch.get(), Some(GuestExit { code: 0, by: ExitBy::Tohost }));
    }

    #[test]
    fn bytes_are_printed_and_read_through_device_1() {
        let rig = rig();
        rig.tohost.write(0, MemSize::B8, 1 << 56 | 1 << 48 | u64::from(b'h'));
        rig.tohost.write(0, MemSize::B4, u64::from(b'i'));
        rig.tohost.write(4, MemSize::B4, 0x0101_0000);
        rig.console.flush();
        assert_eq!(rig.seen.text(), "hi");
        rig.tohost.write(0, MemSize::B8, 1 << 56);
        assert_eq!(rig.fromhost.read(0, MemSize::B8), 0);
        rig.console.feed(b"?").unwrap();
        assert_eq!(rig.fromhost.read(0, MemSize::B8), 1 << 56 | 0x100 | u64::from(b'?'));
        rig.fromhost.write(0, MemSize::B8, 0);
        assert_eq!(rig.fromhost.read(0, MemSize::B8), 0);
        assert_eq!(rig.latch.get(), None);
    }

    #[test]
    fn system_calls_write_and_exit() {
        let rig = rig();
        rig.space.write(GuestPhys::new(RAM + 0x100), b"text\n").unwrap();
        block(&rig, RAM, &[SYS_WRITE, 1, RAM + 0x100, 5]);
        rig.tohost.write(0, MemSize::B8, RAM);
        assert_eq!((result(&rig, RAM), rig.seen.text().as_str()), (5, "text\n"));
        assert_eq!(rig.fromhost.read(0, MemSize::B8), 1);
        for (words, expected) in
            [([SYS_WRITE, 9, RAM, 1], EBADF), ([SYS_WRITE, 1, 0x10, 1], EFAULT), ([999, 0, 0, 0], ENOSYS)]
        {
            block(&rig, RAM, &words);
            rig.tohost.write(0, MemSize::B8, RAM);
            assert_eq!(result(&rig, RAM), expected);
        }
        block(&rig, RAM, &[SYS_EXIT, 3, 0, 0]);
        rig.tohost.write(0, MemSize::B8, RAM);
        assert_eq!(rig.latch.get(), Some(GuestExit { code: 3, by: ExitBy::HtifSyscall }));
    }

    #[test]
    fn a_call_block_on_top_of_tohost_does_not_call_for_ever() {
        let rig = rig();
        rig.space.map_mmio(GuestPhys::new(RAM + 0x1000), Htif::WORD, rig.tohost.clone(), 1).unwrap();
        rig.tohost.write(0, MemSize::B8, RAM + 0x1000);
        // And one that is nowhere.
        rig.tohost.write(0, MemSize::B8, 0x1000);
        assert_eq!(rig.latch.get(), None);
    }
}
