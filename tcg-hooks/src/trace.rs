//! What `-d` prints: the items, and the sink that takes their lines.

/// A set of trace items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceMask(u32);

impl TraceMask {
    /// Guest instructions of each translated block.
    pub const IN_ASM: TraceMask = TraceMask(1);
    /// The IR of each translated block.
    pub const IR: TraceMask = TraceMask(2);
    /// Host code of each translated block.
    pub const OUT_ASM: TraceMask = TraceMask(4);
    /// Each entry into a TB (JIT) or each instruction (oracle); turns chaining off.
    pub const EXEC: TraceMask = TraceMask(8);
    /// Traps and interrupts.
    pub const INT: TraceMask = TraceMask(16);
    /// Memory faults, and writes to `satp` that are ignored.
    pub const MMU: TraceMask = TraceMask(32);
    /// Life and death of TBs.
    pub const TB: TraceMask = TraceMask(64);
    /// Pages that get code, and stores that hit it.
    pub const NOTDIRTY: TraceMask = TraceMask(128);

    /// Host code as it is made, by [`TraceSink::code`]: for profilers, no item of the command line.
    pub const CODE: TraceMask = TraceMask(256);

    /// Items whose lines tell which TBs there are.
    pub(crate) const OF_TBS: TraceMask = TraceMask(1 | 2 | 4 | 8 | 64 | 128);

    /// Every item by its name on the command line.
    pub const ITEMS: [(&str, TraceMask, &str); 8] = [
        ("in_asm", Self::IN_ASM, "guest instructions of each TB"),
        ("ir", Self::IR, "IR of each TB"),
        ("out_asm", Self::OUT_ASM, "host code of each TB"),
        ("exec", Self::EXEC, "each TB entered (JIT) or instruction (interp)"),
        ("int", Self::INT, "traps and interrupts: cause, tval, from where, to which handler"),
        (
            "mmu",
            Self::MMU,
            "accesses that ended in a fault: its kind, the address, the pc, where the page walk ended; ignored writes to satp",
        ),
        ("tb", Self::TB, "life and death of TBs"),
        ("notdirty", Self::NOTDIRTY, "stores that hit translated code"),
    ];

    /// The item called `name`.
    pub fn by_name(name: &str) -> Option<TraceMask> {
        Self::ITEMS.iter().find(|i| i.0 == name).map(|i| i.1)
    }
    /// The empty set.
    pub const fn none() -> Self {
        TraceMask(0)
    }
    /// Is any item of `other` in this set?
    pub const fn has(self, other: TraceMask) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for TraceMask {
    type Output = Self;
    fn bitor(self, o: Self) -> Self {
        TraceMask(self.0 | o.0)
    }
}

/// Host code that was just made.
#[derive(Debug, Clone, Copy)]
pub struct NewCode<'a> {
    /// `tb:` and the guest's symbol or address.
    pub name: &'a str,
    /// Where the host executes it.
    pub address: u64,
    /// The code. Jumps in it may be patched later.
    pub bytes: &'a [u8],
}

/// Takes trace lines; called on the vCPU's thread.
pub trait TraceSink: Send {
    /// The items that are wanted; asked once, when the vCPU is made.
    fn mask(&self) -> TraceMask;
    /// One line, or several, without the last newline.
    fn line(&mut self, what: TraceMask, text: &str);
    /// Host code was made, if [`TraceMask::CODE`] is wanted.
    fn code(&mut self, _code: &NewCode<'_>) {}
    /// A symbol for a guest address, as `name+0x12`, if there is one.
    fn symbol(&self, _addr: u64) -> Option<String> {
        None
    }
}
