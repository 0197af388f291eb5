//! Semihosting calls, known by their sequence: the guest asks whoever runs it.
//!
//! ```text
//!   slli x0, x0, 0x1f      none of the three is compressed; the first and the last do nothing
//!   ebreak                 a0 = operation, a1 = argument; the answer comes in a0
//!   srai x0, x0, 7
//! ```
//!
//! Any other `ebreak` is an exception, and so is this one where nothing answers.
use crate::exec::{Core, SemihostAnswer};
use crate::jit::context::Context;
use notdirty_softmmu::{FaultCause, GuestVirt};

const BEFORE: u32 = 0x01f0_1013;
const EBREAK: u32 = 0x0010_0073;
const BEHIND: u32 = 0x4070_5013;

impl Core {
    /// The `ebreak` at `cpu.pc`: what it comes to, if it is a call that is answered. Where to go on is returned; it has
    /// not retired yet.
    pub(crate) fn semihost(&mut self, ctx: &mut Context) -> Option<u64> {
        let answers = self.semihosting.clone()?;
        self.semihosted += 1;
        let (pc, idx) = (ctx.cpu.pc, ctx.cpu.fetch_idx());
        for (at, want) in [(pc, EBREAK), (pc.wrapping_sub(4), BEFORE), (pc.wrapping_add(4), BEHIND)] {
            let mut half = |at: u64| {
                loop {
                    let (mmu, mut hooks) = self.split(ctx);
                    match mmu.fetch_u16(&mut hooks, idx, GuestVirt::new(at)) {
                        Err(fault) if fault.cause == FaultCause::Missing && self.wait_in_place() => {}
                        bits => return bits.ok(),
                    }
                }
            };
            let bits = u32::from(half(at)?) | u32::from(half(at.wrapping_add(2))?) << 16;
            if bits != want {
                return None;
            }
        }
        self.clock.publish(ctx.cpu.retired);
        let (hart, operation, argument) = (ctx.cpu.hart_id, ctx.cpu.x[10], ctx.cpu.x[11]);
        match answers.call(hart, operation, argument) {
            SemihostAnswer::Done(value) => {
                ctx.cpu.x[10] = value;
                Some(pc.wrapping_add(4))
            }
            // By the instruction before, so that each try retires something and limits are met.
            SemihostAnswer::Again => Some(pc.wrapping_sub(4)),
        }
    }
}
