//! The serial port: an ns16550a with one byte per register, whose transmitter is always ready.
//!
//! Wider accesses mean the register at their address, in the lowest byte. No interrupt line is wired yet (there is no
//! PLIC), but the interrupt registers answer as if one were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use notdirty_softmmu::{DeviceState, MemSize, MmioDevice, Stateful};

use super::console::Console;

const IER_RDA: u8 = 1;
const IER_THRE: u8 = 2;
const IIR_NONE: u8 = 1;
const IIR_THRE: u8 = 2;
const IIR_RDA: u8 = 4;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RX: u8 = 2;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_DR: u8 = 1;
const LSR_THRE_TEMT: u8 = 0x60;
/// Looks at LSR with nothing sent in between that mean waiting for input. Senders look too, once for each byte.
const IDLE_POLLS: u8 = 8;
/// Carrier, data set ready, clear to send: the other end is connected.
const MSR_CONNECTED: u8 = 0xb0;

/// All of them fit in a word, so each access is one atomic step and a guest that polls takes no lock.
#[derive(Clone, Copy, Default, PartialEq)]
#[cfg_attr(test, derive(Debug))]
struct Registers {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifos: bool,
    /// "Transmitter empty" was not yet read from IIR.
    thre_pending: bool,
    /// Times in a row that the guest looked for input and there was none, up to [`IDLE_POLLS`].
    idle_polls: u8,
    /// What came back through the loop.
    looped: Option<u8>,
}

const FIFOS: u8 = 0x10;
const THRE_PENDING: u8 = 0x20;
const LOOPED: u8 = 0x40;

impl Registers {
    fn pack(self) -> u64 {
        let Registers { ier, lcr, mcr, scr, divisor: [dll, dlm], fifos, thre_pending, idle_polls, looped } = self;
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(fifos, FIFOS) | flag(thre_pending, THRE_PENDING) | flag(looped.is_some(), LOOPED);
        u64::from_le_bytes([ier & 0xf | flags, lcr, mcr, scr, dll, dlm, idle_polls, looped.unwrap_or(0)])
    }

    fn unpack(word: u64) -> Registers {
        let [first, lcr, mcr, scr, dll, dlm, idle_polls, looped] = word.to_le_bytes();
        let set = |bit: u8| first & bit != 0;
        Registers {
            ier: first & 0xf,
            lcr,
            mcr,
            scr,
            divisor: [dll, dlm],
            fifos: set(FIFOS),
            thre_pending: set(THRE_PENDING),
            idle_polls,
            looped: set(LOOPED).then_some(looped),
        }
    }
}

/// The UART.
pub struct Uart {
    console: Arc<Console>,
    /// [`Registers::pack`].
    registers: AtomicU64,
}

impl Uart {
    /// Bytes it takes on the bus: its eight registers, and access faults behind them.
    pub const LEN: u64 = 8;

    /// A UART connected to `console`.
    pub fn new(console: Arc<Console>) -> Self {
        Uart { console, registers: AtomicU64::new(Registers::default().pack()) }
    }

    /// State after reset.
    pub fn reset(&self) {
        self.registers.store(Registers::default().pack(), Relaxed);
    }

    fn registers(&self) -> Registers {
        Registers::unpack(self.registers.load(Relaxed))
    }

    /// Changes the registers in one step; what they were. Relaxed: they say nothing about other memory.
    fn update(&self, change: impl Fn(&mut Registers)) -> Registers {
        let mut word = self.registers.load(Relaxed);
        loop {
            let before = Registers::unpack(word);
            let mut after = before;
            change(&mut after);
            let after = after.pack();
            // Most polls and a good part of other accesses change nothing, and then write nothing.
            if after == word {
                return before;
            }
            match self.registers.compare_exchange_weak(word, after, Relaxed, Relaxed) {
                Ok(_) => return before,
                Err(now) => word = now,
            }
        }
    }

    fn ready(&self, registers: &Registers) -> bool {
        match registers.mcr & MCR_LOOP {
            0 => self.console.has_input(),
            _ => registers.looped.is_some(),
        }
    }

    fn interrupt(&self, registers: &Registers) -> u8 {
        if registers.ier & IER_RDA != 0 && self.ready(registers) {
            IIR_RDA
        } else if registers.ier & IER_THRE != 0 && registers.thre_pending {
            IIR_THRE
        } else {
            IIR_NONE
        }
    }
}

notdirty_softmmu::fields! {
    /// The registers. What waits to be read is the console's.
    pub struct UartState: "uart", version 1 {
        ier: u8,
        lcr: u8,
        mcr: u8,
        scr: u8,
        dll: u8,
        dlm: u8,
        fifos: bool,
        thre_pending: bool,
        idle_polls: u8,
        has_looped: bool,
        looped: u8,
    }
}

impl Stateful for Uart {
    type State = UartState;

    fn save(&self) -> UartState {
        let Registers { ier, lcr, mcr, scr, divisor: [dll, dlm], fifos, thre_pending, idle_polls, looped } =
            self.registers();
        let (has_looped, looped) = (looped.is_some(), looped.unwrap_or(0));
        UartState { ier, lcr, mcr, scr, dll, dlm, fifos, thre_pending, idle_polls, has_looped, looped }
    }

    fn restore(&self, state: &UartState) {
        let &UartState { ier, lcr, mcr, scr, dll, dlm, fifos, thre_pending, idle_polls, has_looped, looped } = state;
        let (divisor, looped) = ([dll, dlm], has_looped.then_some(looped));
        let registers = Registers {
            ier,
            lcr,
            mcr,
            scr,
            divisor,
            fifos,
            thre_pending,
            idle_polls: idle_polls.min(IDLE_POLLS),
            looped,
        };
        self.registers.store(registers.pack(), Relaxed);
    }
}

impl MmioDevice for Uart {
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(self)
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        "UART"
    }

    fn read(&self, offset: u64, _size: MemSize) -> u64 {
        let r = self.registers();
        let dlab = r.lcr & LCR_DLAB != 0;
        u64::from(match offset {
            0 | 1 if dlab => r.divisor[offset as usize],
            0 if r.mcr & MCR_LOOP != 0 => self.update(|r| r.looped = None).looped.unwrap_or(0),
            0 => self.console.take().unwrap_or(0),
            1 => r.ier,
            2 => {
                let cause = self.interrupt(&r);
                if cause == IIR_THRE {
                    // Reading this cause takes it away.
                    self.update(|r| r.thre_pending = false);
                }
                cause | if r.fifos { IIR_FIFOS } else { 0 }
            }
            3 => r.lcr,
            4 => r.mcr,
            5 => {
                let ready = self.ready(&r);
                let polls = |polls: u8| if ready { 0 } else { IDLE_POLLS.min(polls + 1) };
                let before = self.update(|r| r.idle_polls = polls(r.idle_polls)).idle_polls;
                if before < IDLE_POLLS && polls(before) == IDLE_POLLS {
                    // A guest that polls for input has said what it wanted to say.
                    self.console.flush_soon();
                }
                LSR_THRE_TEMT | if ready { LSR_DR } else { 0 }
            }
            // In the loop, the four outputs of MCR come back as inputs: RTS→CTS, DTR→DSR, OUT1→RI, OUT2→DCD.
            6 if r.mcr & MCR_LOOP != 0 => (r.mcr & 2) << 3 | (r.mcr & 1) << 5 | (r.mcr & 4) << 4 | (r.mcr & 8) << 4,
            6 => MSR_CONNECTED,
            7 => r.scr,
            _ => 0,
        })
    }

    fn write(&self, offset: u64, _size: MemSize, value: u64) {
        let value = value as u8;
        let before = self.update(|r| match offset {
            0 | 1 if r.lcr & LCR_DLAB != 0 => r.divisor[offset as usize] = value,
            0 => {
                if r.mcr & MCR_LOOP != 0 {
                    r.looped = Some(value);
                }
                r.thre_pending = true;
                r.idle_polls = 0;
            }
            1 => {
                // Switching it on finds the transmitter empty, which is news.
                r.thre_pending |= value & !r.ier & IER_THRE != 0;
                r.ier = value & 0xf;
            }
            2 => {
                r.fifos = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RX != 0 {
                    // What the host typed ahead is not in our FIFO yet; only the loop's byte is.
                    r.looped = None;
                }
            }
            3 => r.lcr = value,
            4 => r.mcr = value & 0x1f,
            7 => r.scr = value,
            _ => {}
        });
        if offset == 0 && (before.lcr & LCR_DLAB) | (before.mcr & MCR_LOOP) == 0 {
            self.console.put(&[value]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::Captured;
    use super::*;

    fn uart() -> (Uart, Arc<Console>, Captured) {
        let seen = Captured::default();
        let console = Console::new(Box::new(seen.clone()));
        (Uart::new(console.clone()), console, seen)
    }

    fn read(uart: &Uart, offset: u64) -> u8 {
        uart.read(offset, MemSize::B1) as u8
    }

    fn write(uart: &Uart, offset: u64, value: u8) {
        uart.write(offset, MemSize::B1, u64::from(value));
    }

    #[test]
    fn registers_come_out_of_their_word_as_they_went_in() {
        let all = Registers {
            ier: 0xf,
            lcr: 0x83,
            mcr: 0x1f,
            scr: 0x5a,
            divisor: [1, 0xff],
            fifos: true,
            thre_pending: true,
            idle_polls: 7,
            looped: Some(0x80),
        };
        for r in [all, Registers::default(), Registers { looped: Some(0), ..all }, Registers { fifos: false, ..all }] {
            assert_eq!(Registers::unpack(r.pack()), r);
        }
        assert!(!Registers::unpack(Registers { thre_pending: false, ..all }.pack()).thre_pending);
    }

    #[test]
    fn what_is_sent_is_printed_and_what_is_fed_is_read() {
        let (uart, console, seen) = uart();
        assert_eq!(read(&uart, 5), 0x60);
        write(&uart, 0, b'o');
        uart.write(0, MemSize::B4, u64::from(b'k') | 0xffff_ff00);
        assert_eq!((read(&uart, 5), seen.text().as_str()), (0x60, ""));
        for _ in 0..IDLE_POLLS {
            read(&uart, 5);
        }
        assert_eq!(seen.text(), "ok", "polling for input flushes the output");
        console.feed(b"yn").unwrap();
        assert_eq!(read(&uart, 5), 0x61);
        assert_eq!((read(&uart, 0), read(&uart, 0), read(&uart, 0)), (b'y', b'n', 0));
        assert_eq!(read(&uart, 5), 0x60);
    }

    #[test]
    fn the_divisor_hides_behind_dlab() {
        let (uart, _console, seen) = uart();
        write(&uart, 3, 0x83);
        write(&uart, 0, 3);
        write(&uart, 1, 1);
        assert_eq!((read(&uart, 0), read(&uart, 1)), (3, 1));
        write(&uart, 3, 0x03);
        assert_eq!(read(&uart, 1), 0);
        uart.console.flush();
        assert_eq!(seen.text(), "");
        write(&uart, 7, 0x5a);
        assert_eq!((read(&uart, 7), read(&uart, 3)), (0x5a, 3));
    }

    #[test]
    fn interrupt_causes_come_by_priority_and_go_when_read() {
        let (uart, console, _) = uart();
        write(&uart, 2, 1);
        assert_eq!(read(&uart, 2), 0xc1);
        write(&uart, 1, 3);
        console.feed(b"x").unwrap();
        assert_eq!(read(&uart, 2), 0xc4);
        read(&uart, 0);
        assert_eq!(read(&uart, 2), 0xc2);
        assert_eq!(read(&uart, 2), 0xc1);
        write(&uart, 0, b'.');
        assert_eq!(read(&uart, 2), 0xc2);
    }

    #[test]
    fn the_loop_brings_bytes_and_lines_back() {
        let (uart, _console, seen) = uart();
        write(&uart, 4, 0x1a);
        assert_eq!(read(&uart, 6), 0x90);
        write(&uart, 0, 0x42);
        assert_eq!((read(&uart, 5), read(&uart, 0), read(&uart, 5)), (0x61, 0x42, 0x60));
        uart.console.flush();
        assert_eq!(seen.text(), "");
        write(&uart, 4, 0);
        assert_eq!(read(&uart, 6), 0xb0);
    }
}
