//! The test finisher (`sifive,test1`): one 32-bit register that ends the run.

use std::sync::Arc;

use notdirty_softmmu::{DeviceState, MemSize, MmioDevice, SizeMask};

use super::exit::{ExitBy, ExitLatch, GuestExit};

const FAIL: u16 = 0x3333;
const PASS: u16 = 0x5555;
const RESET: u16 = 0x7777;

/// Writes of `0x5555` pass, `0x3333 | code << 16` fail with `code`, `0x7777` ask for a reset.
pub struct Finisher {
    latch: Arc<ExitLatch>,
}

impl Finisher {
    /// Bytes it takes on the bus.
    pub const LEN: u64 = 0x1000;

    /// A finisher that ends runs through `latch`.
    pub fn new(latch: Arc<ExitLatch>) -> Self {
        Finisher { latch }
    }
}

impl MmioDevice for Finisher {
    fn read(&self, _offset: u64, _size: MemSize) -> u64 {
        0
    }

    fn write(&self, offset: u64, _size: MemSize, value: u64) {
        // Other registers do not exist.
        if offset != 0 {
            return;
        }
        let code = (value >> 16) & 0xffff;
        let exit = match value as u16 {
            PASS => GuestExit { code: 0, by: ExitBy::Finisher },
            // A failure is a failure, whatever its number.
            FAIL => GuestExit { code: code.max(1), by: ExitBy::Finisher },
            RESET => GuestExit { code: 0, by: ExitBy::Reset },
            _ => return,
        };
        self.latch.set(exit);
    }

    /// The end that it asked for is the latch's.
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(&*self.latch)
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        "test finisher"
    }

    /// A single byte cannot hold a command; QEMU's takes no double word either.
    fn sizes(&self) -> SizeMask {
        SizeMask::exactly(&[MemSize::B2, MemSize::B4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(size: MemSize, value: u64) -> Option<GuestExit> {
        let latch = Arc::new(ExitLatch::default());
        Finisher::new(latch.clone()).write(0, size, value);
        latch.get()
    }

    #[test]
    fn each_command_ends_the_run_in_its_way() {
        let exit = |code, by| Some(GuestExit { code, by });
        assert_eq!(exit_of(MemSize::B4, 0x5555), exit(0, ExitBy::Finisher));
        assert_eq!(exit_of(MemSize::B2, 0x5555), exit(0, ExitBy::Finisher));
        assert_eq!(exit_of(MemSize::B4, 0x002a_3333), exit(42, ExitBy::Finisher));
        assert_eq!(exit_of(MemSize::B4, 0x3333), exit(1, ExitBy::Finisher));
        assert_eq!(exit_of(MemSize::B4, 0x7777), exit(0, ExitBy::Reset));
        assert_eq!(exit_of(MemSize::B4, 0x1234), None);
        let finisher = Finisher::new(Arc::new(ExitLatch::default()));
        for refused in [MemSize::B1, MemSize::B8] {
            assert_eq!(finisher.sizes().widest_within(refused), None);
        }
    }
}
