//! The core-local interruptor, with the layout of the CLINT: software interrupts and the timer of each hart.
//!
//! ```text
//!   0x0000 + 4*hart   msip       bit 0 drives MSIP                       32 bits
//!   0x4000 + 8*hart   mtimecmp   MTIP is mtime >= mtimecmp               32 or 64 bits
//!   0xbff8            mtime      10 MHz, from the Clock                  32 or 64 bits
//!   0xc000            nothing: access faults, as for other widths
//! ```
//!
//! These are two devices on the bus, as on QEMU's board, with the same edges and widths. Registers between these, and of
//! harts that do not exist, read zero.
//!
//! Nobody ticks. MTIP is decided again whenever a register is written; in between, the vCPU itself watches the clock
//! against [`VcpuPort::timer_deadline`], which this device keeps.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use notdirty_softmmu::{DeviceState, MemSize, MmioDevice, SizeMask, Stateful, VcpuPort};
use notdirty_tcg::clock::Clock;

/// `mip` bit of the machine software interrupt.
pub const MSIP: u32 = 3;
/// `mip` bit of the machine timer interrupt.
pub const MTIP: u32 = 7;

const MSIP_BASE: u64 = 0x0000;
const MTIMECMP_BASE: u64 = 0x4000;
const MTIME: u64 = 0xbff8;

struct Hart {
    /// Weak: a hart that waits and whose port no other device holds waits in vain, and the CLINT only does what it is told.
    port: Weak<VcpuPort>,
    mtimecmp: AtomicU64,
}

impl Hart {
    fn set_irq(&self, bit: u32, level: bool) {
        if let Some(port) = self.port.upgrade() {
            port.set_irq(bit, level);
        }
    }
}

/// One CLINT for all harts; its registers are on the bus by [`Aclint::windows`].
pub struct Aclint {
    clock: Arc<Clock>,
    harts: Vec<Hart>,
    /// Orders writers: a register and what follows from it change together.
    write: Mutex<()>,
}

impl Aclint {
    /// A CLINT for the harts with these ports, hart 0 first.
    pub fn new(clock: Arc<Clock>, ports: impl IntoIterator<Item = Arc<VcpuPort>>) -> Self {
        let harts = ports
            .into_iter()
            .map(|port| Hart { port: Arc::downgrade(&port), mtimecmp: AtomicU64::new(u64::MAX) })
            .collect();
        Aclint { clock, harts, write: Mutex::new(()) }
    }

    /// Its registers as devices: offset from the start of the CLINT, length, device.
    pub fn windows(self: &Arc<Self>) -> [(u64, u64, Arc<dyn MmioDevice>); 2] {
        let window = |base, end, sizes| -> (u64, u64, Arc<dyn MmioDevice>) {
            (base, end - base, Arc::new(Window { aclint: self.clone(), base, sizes }))
        };
        [
            window(MSIP_BASE, MTIMECMP_BASE, SizeMask::exactly(&[MemSize::B4])),
            window(MTIMECMP_BASE, MTIME + 8, SizeMask::exactly(&[MemSize::B4, MemSize::B8])),
        ]
    }

    /// State after reset: no deadline, no interrupt.
    pub fn reset(&self) {
        let _order = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        for hart in &self.harts {
            hart.set_irq(MSIP, false);
            hart.mtimecmp.store(u64::MAX, Relaxed);
            self.evaluate(hart, false);
        }
    }

    /// The deadline goes out before the level: a vCPU that misses the level finds the deadline passed. `jumped`: the time
    /// has changed, so what was worked out from it is wrong, for the timer of S-mode, which is in no device, too.
    fn evaluate(&self, hart: &Hart, jumped: bool) {
        let Some(port) = hart.port.upgrade() else { return };
        let deadline = hart.mtimecmp.load(Relaxed);
        // Not a swap: writers have `write`.
        let before = port.timer_deadline.load(Relaxed);
        port.timer_deadline.store(deadline, Release);
        // The ends of time need no look at the clock: guests use them for "at once" and "never".
        let due = deadline != u64::MAX && (deadline == 0 || self.clock.mtime() >= deadline);
        port.set_irq(MTIP, due);
        if jumped || deadline < before && !due {
            // The vCPU may be in a long slice, or asleep, until the old deadline or one by the old time.
            port.kick();
        }
    }

    /// The hart and the offset inside its register, for a bank of registers of `1 << width` bytes.
    fn hart(&self, bank: u64, width: u32, offset: u64) -> Option<(&Hart, u64)> {
        let at = offset.checked_sub(bank)?;
        Some((self.harts.get(usize::try_from(at >> width).ok()?)?, at & ((1 << width) - 1)))
    }
}

/// `old` with the `size` bytes from byte `at` on taken from `value`.
fn merge(old: u64, at: u64, size: MemSize, value: u64) -> u64 {
    let shift = 8 * at;
    old & !(size.mask() << shift) | (value & size.mask()) << shift
}

notdirty_softmmu::fields! {
    /// The deadlines of all harts. Their lines, `msip` among them, are the harts' own state.
    pub struct AclintState: "clint", version 1 {
        mtimecmp: Vec<u64>,
    }
}

impl Stateful for Aclint {
    type State = AclintState;

    fn save(&self) -> AclintState {
        AclintState { mtimecmp: self.harts.iter().map(|hart| hart.mtimecmp.load(Relaxed)).collect() }
    }

    fn restore(&self, state: &AclintState) {
        for (hart, mtimecmp) in self.harts.iter().zip(&state.mtimecmp) {
            hart.mtimecmp.store(*mtimecmp, Relaxed);
        }
    }
}

/// Some of the registers, as one device.
struct Window {
    aclint: Arc<Aclint>,
    base: u64,
    sizes: SizeMask,
}

impl MmioDevice for Window {
    fn read(&self, offset: u64, size: MemSize) -> u64 {
        self.aclint.read(self.base + offset) & size.mask()
    }

    fn write(&self, offset: u64, size: MemSize, value: u64) {
        self.aclint.write(self.base + offset, size, value);
    }

    fn state(&self) -> DeviceState<'_> {
        DeviceState::Kept(&*self.aclint)
    }

    fn changes_alone(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        "CLINT"
    }

    /// A byte or half of a timer would tear.
    fn sizes(&self) -> SizeMask {
        self.sizes
    }
}

impl Aclint {
    fn read(&self, offset: u64) -> u64 {
        if offset >= MTIME {
            self.clock.mtime() >> (8 * (offset & 7))
        } else if let Some((hart, at)) = self.hart(MTIMECMP_BASE, 3, offset) {
            hart.mtimecmp.load(Relaxed) >> (8 * at)
        } else if let Some((hart, 0)) = self.hart(MSIP_BASE, 2, offset) {
            hart.port.upgrade().map_or(0, |port| port.irq.load(Relaxed) >> MSIP & 1)
        } else {
            0
        }
    }

    fn write(&self, offset: u64, size: MemSize, value: u64) {
        let _order = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        if offset >= MTIME {
            self.clock.set_mtime(merge(self.clock.mtime(), offset & 7, size, value));
            self.harts.iter().for_each(|hart| self.evaluate(hart, true));
        } else if let Some((hart, at)) = self.hart(MTIMECMP_BASE, 3, offset) {
            hart.mtimecmp.store(merge(hart.mtimecmp.load(Relaxed), at, size, value), Relaxed);
            self.evaluate(hart, false);
        } else if let Some((hart, 0)) = self.hart(MSIP_BASE, 2, offset) {
            hart.set_irq(MSIP, value & 1 != 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a hart reaches: the windows in their places.
    struct Bus(Arc<Aclint>);

    impl Bus {
        fn window(&self, at: u64) -> Option<(u64, Arc<dyn MmioDevice>)> {
            let found = self.0.windows().into_iter().find(|(base, len, _)| (*base..base + len).contains(&at));
            found.map(|(base, _, device)| (at - base, device))
        }
        fn read(&self, at: u64, size: MemSize) -> u64 {
            let (offset, device) = self.window(at).expect("a register");
            assert!(device.sizes().contains(size));
            device.read(offset, size)
        }
        fn write(&self, at: u64, size: MemSize, value: u64) {
            let (offset, device) = self.window(at).expect("a register");
            assert!(device.sizes().contains(size));
            device.write(offset, size, value);
        }
        fn takes(&self, at: u64, size: MemSize) -> bool {
            self.window(at).is_some_and(|(_, device)| device.sizes().widest_within(size).is_some())
        }
    }

    fn clint() -> (Bus, Arc<VcpuPort>, Arc<Clock>) {
        let (clock, port) = (Arc::new(Clock::insns()), Arc::new(VcpuPort::default()));
        (Bus(Arc::new(Aclint::new(clock.clone(), [port.clone()]))), port, clock)
    }

    fn pending(port: &VcpuPort, bit: u32) -> bool {
        port.irq.load(Relaxed) >> bit & 1 != 0
    }

    #[test]
    fn mtimecmp_sets_the_deadline_and_the_level() {
        let (clint, port, clock) = clint();
        clock.publish(100_000);
        clint.write(0x4000, MemSize::B8, 1_001);
        assert_eq!(port.timer_deadline.load(Relaxed), 1_001);
        assert!(!pending(&port, MTIP));
        clint.write(0x4000, MemSize::B4, 999);
        assert!(pending(&port, MTIP));
        assert_eq!(clint.read(0x4000, MemSize::B8), 999);
        clint.write(0x4004, MemSize::B4, 1);
        assert_eq!(clint.read(0x4000, MemSize::B8), 0x1_0000_0000 + 999);
        assert!(!pending(&port, MTIP));
        assert_eq!(clint.read(0xbff8, MemSize::B8), 1_000);
    }

    #[test]
    fn a_guest_that_sets_mtime_may_pass_its_own_deadline() {
        let (clint, port, _) = clint();
        clint.write(0x4000, MemSize::B8, 1 << 33);
        assert!(!pending(&port, MTIP));
        clint.write(0xbffc, MemSize::B4, 2);
        assert!(pending(&port, MTIP));
        assert_eq!(clint.read(0xbffc, MemSize::B4), 2);
        clint.0.reset();
        assert!(!pending(&port, MTIP));
    }

    #[test]
    fn a_write_of_mtime_has_the_hart_look_at_deadlines_that_are_in_no_device() {
        let (clint, port, _) = clint();
        assert!(!port.kicked());
        clint.write(0x4000, MemSize::B8, u64::MAX);
        assert!(!port.kicked(), "a deadline that is as it was");
        clint.write(0xbff8, MemSize::B8, 1 << 20);
        assert!(port.kicked());
    }

    #[test]
    fn software_interrupts_reach_their_hart_and_others_do_not_exist() {
        let (clint, port, _) = clint();
        clint.write(0, MemSize::B4, 0xffff_ffff);
        assert!(pending(&port, MSIP));
        assert_eq!(clint.read(0, MemSize::B4), 1);
        clint.write(0, MemSize::B4, 0xffff_fffe);
        assert!(!pending(&port, MSIP));
        for offset in [4, 0x3ffc, 0x4008, 0xbff0] {
            clint.write(offset, MemSize::B4, 1);
            assert_eq!(clint.read(offset, MemSize::B4), 0);
        }
        assert!(!pending(&port, MSIP));
    }

    #[test]
    fn edges_and_widths_are_those_of_qemu() {
        use MemSize::{B1, B2, B4, B8};
        let (clint, ..) = clint();
        for at in [0, 4, 0x3ff8] {
            assert_eq!([B1, B2, B4, B8].map(|size| clint.takes(at, size)), [false, false, true, false], "{at:#x}");
        }
        for at in [0x4000, 0x7ff8, 0xbff0, 0xbff8] {
            assert_eq!([B1, B2, B4, B8].map(|size| clint.takes(at, size)), [false, false, true, true], "{at:#x}");
        }
        for at in [0xc000, 0xfff8] {
            assert!(![B1, B2, B4, B8].iter().any(|&size| clint.takes(at, size)), "{at:#x} is nothing");
        }
    }
}
