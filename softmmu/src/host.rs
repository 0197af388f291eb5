//! Touching guest RAM through host pointers: relaxed atomics where aligned, volatile bytes where not. Never a slice:
//! other vCPUs, devices and the guest's own races write the same bytes.

use crate::addr::MemSize;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed,
    Ordering::SeqCst,
};

/// The read-modify-write operations of RISC-V's A extension.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AmoOp {
    /// New value.
    Swap,
    /// Wrapping sum.
    Add,
    /// Exclusive or.
    Xor,
    /// And.
    And,
    /// Or.
    Or,
    /// Signed minimum.
    Min,
    /// Signed maximum.
    Max,
    /// Unsigned minimum.
    Minu,
    /// Unsigned maximum.
    Maxu,
}

/// Loads an aligned value, zero-extended.
///
/// # Safety
/// `host` is aligned to `size`, and the bytes are live guest RAM.
#[inline]
pub(crate) unsafe fn load(host: *const u8, size: MemSize) -> u64 {
    // SAFETY: the caller's promise. A pointer to guest RAM may be written through; nothing is, here.
    unsafe {
        match size {
            MemSize::B1 => u64::from(AtomicU8::from_ptr(host.cast_mut()).load(Relaxed)),
            MemSize::B2 => u64::from(u16::from_le(AtomicU16::from_ptr(host.cast_mut().cast()).load(Relaxed))),
            MemSize::B4 => u64::from(u32::from_le(AtomicU32::from_ptr(host.cast_mut().cast()).load(Relaxed))),
            MemSize::B8 => u64::from_le(AtomicU64::from_ptr(host.cast_mut().cast()).load(Relaxed)),
        }
    }
}

/// Stores an aligned value.
///
/// # Safety
/// As `load`, and the bytes are writable.
#[inline]
pub(crate) unsafe fn store(host: *mut u8, size: MemSize, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            MemSize::B1 => AtomicU8::from_ptr(host).store(value as u8, Relaxed),
            MemSize::B2 => AtomicU16::from_ptr(host.cast()).store((value as u16).to_le(), Relaxed),
            MemSize::B4 => AtomicU32::from_ptr(host.cast()).store((value as u32).to_le(), Relaxed),
            MemSize::B8 => AtomicU64::from_ptr(host.cast()).store(value.to_le(), Relaxed),
        }
    }
}

/// A value at any alignment.
#[repr(C, packed)]
struct Anywhere<T>(T);

/// Loads a value at any alignment, zero-extended.
///
/// # Safety
/// The bytes are live guest RAM.
pub(crate) unsafe fn load_misaligned(host: *const u8, size: MemSize) -> u64 {
    // SAFETY: the caller's promise; `Anywhere` needs no alignment.
    unsafe {
        match size {
            MemSize::B1 => u64::from(host.read_volatile()),
            MemSize::B2 => u64::from(u16::from_le(host.cast::<Anywhere<u16>>().read_volatile().0)),
            MemSize::B4 => u64::from(u32::from_le(host.cast::<Anywhere<u32>>().read_volatile().0)),
            MemSize::B8 => u64::from_le(host.cast::<Anywhere<u64>>().read_volatile().0),
        }
    }
}

/// Stores a value at any alignment.
///
/// # Safety
/// The bytes are live, writable guest RAM.
pub(crate) unsafe fn store_misaligned(host: *mut u8, size: MemSize, value: u64) {
    // SAFETY: the caller's promise; `Anywhere` needs no alignment.
    unsafe {
        match size {
            MemSize::B1 => host.write_volatile(value as u8),
            MemSize::B2 => host.cast::<Anywhere<u16>>().write_volatile(Anywhere((value as u16).to_le())),
            MemSize::B4 => host.cast::<Anywhere<u32>>().write_volatile(Anywhere((value as u32).to_le())),
            MemSize::B8 => host.cast::<Anywhere<u64>>().write_volatile(Anywhere(value.to_le())),
        }
    }
}

/// Loads `len` (at most 8) bytes, little-endian: a part of an access that was cut.
///
/// # Safety
/// The bytes are live guest RAM.
pub(crate) unsafe fn load_bytes(host: *const u8, len: u64) -> u64 {
    // SAFETY: the caller's promise.
    (0..len as usize).fold(0, |value, at| value | u64::from(unsafe { host.add(at).read_volatile() }) << (8 * at))
}

/// Stores the low `len` (at most 8) bytes of `value`, little-endian.
///
/// # Safety
/// The bytes are live, writable guest RAM.
pub(crate) unsafe fn store_bytes(host: *mut u8, len: u64, value: u64) {
    for at in 0..len as usize {
        // SAFETY: the caller's promise.
        unsafe { host.add(at).write_volatile((value >> (8 * at)) as u8) };
    }
}

macro_rules! rmw {
    ($unsigned:ident, $signed:ident, $u:ty, $i:ty, $host:expr, $op:expr, $operand:expr) => {{
        let cell = $unsigned::from_ptr($host.cast());
        let (operand, op) = ($operand as $u, $op);
        let old = if cfg!(target_endian = "little") {
            let signed = $signed::from_ptr($host.cast());
            match op {
                AmoOp::Swap => cell.swap(operand, SeqCst),
                AmoOp::Add => cell.fetch_add(operand, SeqCst),
                AmoOp::Xor => cell.fetch_xor(operand, SeqCst),
                AmoOp::And => cell.fetch_and(operand, SeqCst),
                AmoOp::Or => cell.fetch_or(operand, SeqCst),
                AmoOp::Min => signed.fetch_min(operand as $i, SeqCst) as $u,
                AmoOp::Max => signed.fetch_max(operand as $i, SeqCst) as $u,
                AmoOp::Minu => cell.fetch_min(operand, SeqCst),
                AmoOp::Maxu => cell.fetch_max(operand, SeqCst),
            }
        } else {
            let mut old = cell.load(Relaxed);
            loop {
                let new = (apply(op, <$u>::from_le(old).into(), operand.into(), size_of::<$u>()) as $u).to_le();
                match cell.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                    Ok(_) => break <$u>::from_le(old),
                    Err(now) => old = now,
                }
            }
        };
        u64::from(old)
    }};
}

/// Performs `op` atomically; the old value, zero-extended.
///
/// # Safety
/// As `store`.
pub(crate) unsafe fn amo(host: *mut u8, size: MemSize, op: AmoOp, operand: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            MemSize::B1 => rmw!(AtomicU8, AtomicI8, u8, i8, host, op, operand),
            MemSize::B2 => rmw!(AtomicU16, AtomicI16, u16, i16, host, op, operand),
            MemSize::B4 => rmw!(AtomicU32, AtomicI32, u32, i32, host, op, operand),
            MemSize::B8 => rmw!(AtomicU64, AtomicI64, u64, i64, host, op, operand),
        }
    }
}

/// Replaces `old` by `new` if it is still there; says whether.
///
/// # Safety
/// As `store`.
pub(crate) unsafe fn compare_exchange(host: *mut u8, size: MemSize, old: u64, new: u64) -> bool {
    macro_rules! cas {
        ($atomic:ident, $u:ty) => {
            $atomic::from_ptr(host.cast())
                .compare_exchange((old as $u).to_le(), (new as $u).to_le(), SeqCst, SeqCst)
                .is_ok()
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            MemSize::B1 => cas!(AtomicU8, u8),
            MemSize::B2 => cas!(AtomicU16, u16),
            MemSize::B4 => cas!(AtomicU32, u32),
            MemSize::B8 => cas!(AtomicU64, u64),
        }
    }
}

/// What `op` makes of two values of `bytes` bytes: for devices, where no host instruction does it.
pub(crate) fn apply(op: AmoOp, old: u64, operand: u64, bytes: usize) -> u64 {
    let unused = 64 - 8 * bytes as u32;
    let signed = |v: u64| ((v << unused) as i64) >> unused;
    let mask = u64::MAX >> unused;
    let (old, operand) = (old & mask, operand & mask);
    mask & match op {
        AmoOp::Swap => operand,
        AmoOp::Add => old.wrapping_add(operand),
        AmoOp::Xor => old ^ operand,
        AmoOp::And => old & operand,
        AmoOp::Or => old | operand,
        AmoOp::Min => signed(old).min(signed(operand)) as u64,
        AmoOp::Max => signed(old).max(signed(operand)) as u64,
        AmoOp::Minu => old.min(operand),
        AmoOp::Maxu => old.max(operand),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_amo_on_the_host_agrees_with_plain_arithmetic() {
        use AmoOp::*;
        let values = [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MIN as u64, u64::MAX];
        for op in [Swap, Add, Xor, And, Or, Min, Max, Minu, Maxu] {
            for size in MemSize::ALL {
                for old in values {
                    for operand in values {
                        let mut cell = old;
                        let host: *mut u8 = (&raw mut cell).cast();
                        // SAFETY: `cell` is ours, aligned to eight.
                        let was = unsafe { amo(host, size, op, operand) };
                        assert_eq!(was, old & size.mask());
                        let want = apply(op, old, operand, size.bytes() as usize);
                        assert_eq!(cell, old & !size.mask() | want, "{op:?} {size:?} {old:#x} {operand:#x}");
                    }
                }
            }
        }
    }
}
