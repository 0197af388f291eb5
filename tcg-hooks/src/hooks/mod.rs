//! Hooks: closures of the embedder's that are called where the guest comes by.
//!
//! ```text
//!   instruction   before it is executed; it may be skipped, or the hart sent elsewhere
//!   call, return  the same, of jumps that link, or go back, by the hints of the manual
//!   block         where a branch (either way) or a jump led to, before what is there is executed
//!   trap          before it is taken, interrupts too
//!   memory        behind an access to a range of addresses, with its value
//!
//!   light         a closure that gets the pc alone: emitted code keeps the guest's registers where they are
//!   with a view   [`View`]: registers and memory are there, to read and to write
//! ```
//!
//! What is called, with what, and in which order is the guest's alone: no engine, no tier and no cut of a region changes it. Blocks are
//! told where control goes, as edges are counted (`cover.rs`), because where a TB begins is no matter of the guest's. Which
//! instructions and blocks are hooked is part of a TB's key, as exits are (`exec/exits.rs`): another set holds at once, and the last
//! one's translations are found again. A hook sees exact registers and counts, and one that does nothing changes nothing.
//!
//! A hook that panics ends the run, and the panic goes on in the caller of [`Vcpu::run`](crate::Vcpu::run): emitted code is not unwound.
//!
//! ```
//! # use notdirty_core::{RamBlockSpec, RamList};
//! # use notdirty_softmmu::{AddressSpace, GuestPhys};
//! # use std::sync::Arc;
//! use notdirty_tcg::hooks::{HookSpec, View};
//! use notdirty_tcg::{Exit, RunLimits, Vcpu, VcpuConfig, VcpuExit};
//!
//! # let list = Arc::new(RamList::new());
//! # let ram = list.add(RamBlockSpec::new("ram", 1 << 20))?;
//! # let space = AddressSpace::new(list.clone());
//! # space.map_ram(GuestPhys::new(0x8000_0000), &ram, 0, ram.used_length(), 0)?;
//! // addi a0, a0, 1; j .-4
//! for (n, insn) in [0x0015_0513u32, 0xffdf_f06f].into_iter().enumerate() {
//!     list.write(&ram, 4 * n as u64, &insn.to_le_bytes())?;
//! }
//! let mut hart = Vcpu::new(&space, VcpuConfig::new(0x8000_0000))?;
//! let id = hart.add_hook(HookSpec::insn_with(0x8000_0004, |view: &mut View| {
//!     if view.x(10) == 1000 {
//!         view.set_x(11, 7);
//!         view.stop();
//!     }
//! }));
//! assert_eq!(hart.run(&RunLimits::default()), VcpuExit::Exit(Exit::Hook(id)));
//! assert_eq!((hart.cpu().x[10], hart.cpu().x[11], hart.cpu().pc), (1000, 7, 0x8000_0004));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod call;
mod places;
mod table;
mod view;

pub(crate) use call::{After, tell};
pub use notdirty_softmmu::{Kinds, Watch, Watched};
pub use places::Places;
pub(crate) use table::{HookTable, Plan, Wanted};
pub use view::{Accessed, Call, CallKind, View};

use crate::guest::Trap;
use std::ops::{ControlFlow, Range};

pub(crate) type Light = Box<dyn FnMut(u64) -> ControlFlow<()> + Send>;
pub(crate) type Full = Box<dyn FnMut(&mut View<'_>) + Send>;
pub(crate) type Calls = Box<dyn FnMut(&mut View<'_>, Call) + Send>;
pub(crate) type Traps = Box<dyn FnMut(&mut View<'_>, &Trap) + Send>;
pub(crate) type Memory = Box<dyn FnMut(&mut Accessed) + Send>;

/// A hook of a vCPU, by the order in which they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId(pub(crate) u32);

/// What is called when.
pub(crate) enum What {
    Insn(Light),
    InsnWith(Full),
    Calls(Calls),
    Block(Light),
    BlockWith(Full),
    Traps(Traps),
    Memory(Memory),
    /// It was removed.
    Gone,
}

/// A hook that is to be: when which closure is called. Closures that return [`ControlFlow::Break`], or call [`View::stop`], end the run
/// with [`Exit::Hook`](crate::Exit::Hook).
pub struct HookSpec {
    pub(crate) places: Places,
    pub(crate) what: What,
    pub(crate) kinds: Kinds,
}

impl HookSpec {
    fn new(places: impl Into<Places>, what: What) -> HookSpec {
        HookSpec { places: places.into(), what, kinds: Kinds::All }
    }

    /// Before each of these instructions, with its pc.
    pub fn insn(at: impl Into<Places>, f: impl FnMut(u64) -> ControlFlow<()> + Send + 'static) -> HookSpec {
        Self::new(at, What::Insn(Box::new(f)))
    }

    /// The same, with registers and memory.
    pub fn insn_with(at: impl Into<Places>, f: impl FnMut(&mut View<'_>) + Send + 'static) -> HookSpec {
        Self::new(at, What::InsnWith(Box::new(f)))
    }

    /// Before each `jal` and `jalr` at these addresses that calls, or returns, by the hints of the manual: what links to `ra` or `t0`, and
    /// what jumps to one of them.
    pub fn calls(at: impl Into<Places>, f: impl FnMut(&mut View<'_>, Call) + Send + 'static) -> HookSpec {
        Self::new(at, What::Calls(Box::new(f)))
    }

    /// Where a branch, whichever way it went, or a jump led to one of these addresses, with that address.
    pub fn block(at: impl Into<Places>, f: impl FnMut(u64) -> ControlFlow<()> + Send + 'static) -> HookSpec {
        Self::new(at, What::Block(Box::new(f)))
    }

    /// The same, with registers and memory.
    pub fn block_with(at: impl Into<Places>, f: impl FnMut(&mut View<'_>) + Send + 'static) -> HookSpec {
        Self::new(at, What::BlockWith(Box::new(f)))
    }

    /// Before a trap is taken, or an interrupt, at one of these addresses: of exceptions that of the instruction. The trap is taken
    /// behind it, wherever the view sets the pc to; a stop ends the run at the handler.
    pub fn traps(at: impl Into<Places>, f: impl FnMut(&mut View<'_>, &Trap) + Send + 'static) -> HookSpec {
        Self::new(at, What::Traps(Box::new(f)))
    }

    /// Behind each access to one of these bytes, as the guest names them, of a load, a store, an AMO (twice: what it loads, what it
    /// stores), LR and SC; not of walks of page tables, fetches, and what hooks do by their view. Pages with none of these bytes pay nothing.
    /// A stop ends the run behind the instruction.
    pub fn memory(bytes: Range<u64>, kinds: Kinds, f: impl FnMut(&mut Accessed) + Send + 'static) -> HookSpec {
        HookSpec { kinds, ..Self::new(bytes, What::Memory(Box::new(f))) }
    }
}

impl std::fmt::Debug for HookSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookSpec").field("places", &self.places).finish_non_exhaustive()
    }
}
