//! The devices of the board, a [`MmioDevice`](notdirty_softmmu::MmioDevice) each.
//!
//! ```text
//!   0x0010_0000 finisher ─┐
//!   tohost      htif ─────┴─▶ ExitLatch ─▶ every vCPU is asked to stop
//!   0x0200_0000 aclint ─────▶ VcpuPort: MSIP, MTIP, the deadline of the next timer interrupt
//!   0x1000_0000 uart ◀──────▶ Console ◀─▶ the host's stdin and stdout, or an embedder's
//!   0x5000_0000 framebuffer ─▶ DirtyLog of the VGA client ─▶ an image on the host; registers a page before
//! ```
//!
//! Deliberately absent so far: a PLIC, so that the UART is polled.

pub mod aclint;
pub mod console;
pub mod exit;
pub mod finisher;
pub mod framebuffer;
pub mod htif;
pub mod semihost;
pub mod uart;

pub use aclint::Aclint;
pub use console::{Console, ConsoleFull};
pub use exit::{ExitBy, ExitLatch, GuestExit};
pub use finisher::Finisher;
pub use framebuffer::{Framebuffer, FramebufferError, Redraw};
pub use htif::Htif;
pub use semihost::Semihost;
pub use uart::Uart;
