//! Devices behind addresses, and the cutting of an access into widths that a device understands.

mod model;

pub use model::{MmioAccess, MmioModel};

use crate::addr::MemSize;
use crate::state::DeviceState;
use std::cell::Cell;
use std::ptr;

/// The widths a device takes: bit n stands for `1 << n` bytes, one bit more that wider ones are not split ([`exactly`](Self::exactly)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct SizeMask(u8);

impl SizeMask {
    /// Every width from one to eight bytes.
    pub const ALL: SizeMask = SizeMask(Self::WIDTHS);

    const WIDTHS: u8 = 0b1111;
    const EXACT: u8 = 1 << 4;

    /// These widths; wider accesses are split.
    pub const fn of(sizes: &[MemSize]) -> SizeMask {
        let mut mask = 0;
        let mut i = 0;
        while i < sizes.len() {
            mask |= 1 << sizes[i] as u8;
            i += 1;
        }
        SizeMask(mask)
    }
    /// These widths and no others: a wider access is an access fault, too.
    pub const fn exactly(sizes: &[MemSize]) -> SizeMask {
        SizeMask(SizeMask::of(sizes).0 | Self::EXACT)
    }
    /// Is this width among them?
    #[inline]
    pub const fn contains(self, size: MemSize) -> bool {
        self.0 & (1 << size as u8) != 0
    }
    /// The width of the parts that an access of `size` is done in: the widest of them that is not wider.
    #[inline]
    pub const fn widest_within(self, size: MemSize) -> Option<MemSize> {
        if self.0 & Self::EXACT != 0 && !self.contains(size) {
            return None;
        }
        let within = self.0 & Self::WIDTHS & ((2u8 << size as u8) - 1);
        if within == 0 { None } else { MemSize::from_log2(7 - within.leading_zeros() as u8) }
    }
}

/// A device that answers loads and stores.
///
/// It is called on the vCPU's thread, from inside an access, with no lock of ours held. It may use the host API of
/// the address space (DMA), but not for its own addresses: that is [`AccessError::Reentered`](crate::AccessError::Reentered). It
/// may sync a log only if no vCPU runs on this thread, as that would have to answer
/// ([`NotServed::OwnThread`](notdirty_core::NotServed::OwnThread)). It is dropped with no lock of ours held, and not inside an
/// access.
pub trait MmioDevice: Send + Sync {
    /// A load of `size` at `offset` from the start of the region; bits above `size` are ignored.
    fn read(&self, offset: u64, size: MemSize) -> u64;
    /// A store; bits of `value` above `size` are zero.
    fn write(&self, offset: u64, size: MemSize, value: u64);
    /// The widths it takes. Wider accesses are split, lowest address first, unless the mask is
    /// [exact](SizeMask::exactly); narrower ones are access faults. The answer must not change while the device is mapped.
    fn sizes(&self) -> SizeMask {
        SizeMask::ALL
    }
    /// What it remembers from one access to the next, for checkpoints.
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Unknown
    }
    /// May its state change without an access to it, by a thread or a call of its own? If not, a restore leaves it alone as long as
    /// no device was called, by a vCPU or through the address space.
    fn changes_alone(&self) -> bool {
        true
    }
    /// What it is called where a message must name it.
    fn name(&self) -> &str {
        std::any::type_name::<Self>()
    }
}

thread_local! {
    /// The device that this thread is inside of, innermost first.
    static CALLS: Cell<*const Call> = const { Cell::new(ptr::null()) };
}

/// A call of a device that is under way on this thread.
struct Call {
    /// The device's address.
    dev: *const (),
    outer: *const Call,
}

/// Calls `f` as a call of `dev`, on which a call of the same device from inside is refused.
#[inline(always)]
pub(crate) fn calling<R>(dev: &dyn MmioDevice, f: impl FnOnce() -> R) -> R {
    /// Also when the device panics.
    struct Leave(*const Call);
    impl Drop for Leave {
        #[inline(always)]
        fn drop(&mut self) {
            CALLS.set(self.0);
        }
    }
    let call = Call { dev: ptr::from_ref(dev).cast(), outer: CALLS.get() };
    CALLS.set(&call);
    let _leave = Leave(call.outer);
    f()
}

/// Is this thread inside of a call of the device?
#[inline]
pub(crate) fn is_inside(dev: &dyn MmioDevice) -> bool {
    let mut call = CALLS.get();
    // SAFETY: null, or a call that is under way: it lies in a frame of this thread further out, which `Leave` outlives.
    while let Some(Call { dev: inside, outer }) = unsafe { call.as_ref() } {
        if ptr::addr_eq(*inside, ptr::from_ref(dev)) {
            return true;
        }
        call = *outer;
    }
    false
}

/// Reads `size` bytes, split if need be. `None`: the device takes nothing that narrow, or this thread is inside of it; it was
/// not called.
#[inline]
pub(crate) fn read(dev: &dyn MmioDevice, sizes: SizeMask, offset: u64, size: MemSize) -> Option<u64> {
    if is_inside(dev) {
        return None;
    }
    if sizes.contains(size) {
        return Some(calling(dev, || dev.read(offset, size)) & size.mask());
    }
    let part = sizes.widest_within(size)?;
    let mut value = 0;
    for at in (0..size.bytes()).step_by(part.bytes() as usize) {
        value |= (calling(dev, || dev.read(offset.wrapping_add(at), part)) & part.mask()) << (8 * at);
    }
    Some(value)
}

/// Writes `size` bytes, split if need be. `None` as in [`read`].
#[inline]
pub(crate) fn write(dev: &dyn MmioDevice, sizes: SizeMask, offset: u64, size: MemSize, value: u64) -> Option<()> {
    if is_inside(dev) {
        return None;
    }
    if sizes.contains(size) {
        calling(dev, || dev.write(offset, size, value & size.mask()));
        return Some(());
    }
    let part = sizes.widest_within(size)?;
    for at in (0..size.bytes()).step_by(part.bytes() as usize) {
        calling(dev, || dev.write(offset.wrapping_add(at), part, (value >> (8 * at)) & part.mask()));
    }
    Some(())
}

/// Cuts `len` bytes at `offset` into naturally aligned accesses of at most eight bytes, lowest address first.
pub(crate) fn aligned_parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, MemSize)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let here = offset.wrapping_add(at);
        let by_alignment = if here == 0 { 8 } else { 1 << here.trailing_zeros().min(3) };
        let size = MemSize::at_most(by_alignment.min(len - at));
        let part = (at, size);
        at += size.bytes();
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Log(Mutex<Vec<(u64, MemSize, u64)>>, SizeMask);
    impl MmioDevice for Log {
        fn read(&self, offset: u64, _: MemSize) -> u64 {
            (0x1111 * (offset + 1)) | !0xffff
        }
        fn write(&self, offset: u64, size: MemSize, value: u64) {
            self.0.lock().unwrap().push((offset, size, value));
        }
        fn sizes(&self) -> SizeMask {
            self.1
        }
    }

    #[test]
    fn wide_accesses_are_split_lowest_address_first() {
        let dev = Log(Mutex::default(), SizeMask::of(&[MemSize::B2]));
        assert_eq!(write(&dev, dev.sizes(), 4, MemSize::B8, 0x4444_3333_2222_1111), Some(()));
        let log = dev.0.lock().unwrap().clone();
        let want: Vec<_> = (0..4).map(|i| (4 + 2 * i, MemSize::B2, 0x1111 * (i + 1))).collect();
        assert_eq!(log, want);
        assert_eq!(read(&dev, dev.sizes(), 0, MemSize::B4), Some(0x3333_1111));
    }

    #[test]
    fn accesses_too_narrow_for_the_device_do_not_reach_it() {
        let dev = Log(Mutex::default(), SizeMask::of(&[MemSize::B4]));
        assert_eq!(write(&dev, dev.sizes(), 0, MemSize::B2, 1), None);
        assert_eq!(read(&dev, dev.sizes(), 0, MemSize::B1), None);
        assert!(dev.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_device_of_exact_widths_sees_no_part_of_a_wider_access() {
        let dev = Log(Mutex::default(), SizeMask::exactly(&[MemSize::B4]));
        assert_eq!(write(&dev, dev.sizes(), 0, MemSize::B8, 1), None);
        assert_eq!(read(&dev, dev.sizes(), 0, MemSize::B8), None);
        assert_eq!(write(&dev, dev.sizes(), 0, MemSize::B2, 1), None);
        assert_eq!(write(&dev, dev.sizes(), 4, MemSize::B4, 7), Some(()));
        assert_eq!(*dev.0.lock().unwrap(), [(4, MemSize::B4, 7)]);
    }

    #[test]
    fn parts_are_naturally_aligned_and_cover_everything_once() {
        for offset in 0..32 {
            for len in 0..32 {
                let mut at = 0;
                for (start, size) in aligned_parts(offset, len) {
                    assert_eq!(start, at);
                    assert_eq!((offset + start) % size.bytes(), 0);
                    at += size.bytes();
                }
                assert_eq!(at, len);
            }
        }
    }
}
