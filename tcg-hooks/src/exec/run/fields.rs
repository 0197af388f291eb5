//! A hart's state as named values, for streams.
//!
//! All of it but two: a reservation is a host address and means nothing elsewhere. A hart that comes from a stream has none, so its
//! next SC fails, as the ISA lets it at any time. Poison and canaries are a fuzzer's, and go where it does.

use super::VcpuState;
use crate::guest::hart;
use notdirty_softmmu::{Fields, Value};

impl Fields for VcpuState {
    const NAME: &'static str = "cpu";
    const VERSION: u32 = 1;

    fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        // All of it, so that a field that comes is not forgotten here.
        let VcpuState { cpu, waiting, trap_loop, told, unhandled, irq, timer_deadline, reservation: _, marks: _ } =
            self;
        hart::each(cpu, visit);
        visit("waiting", Value::Bool(waiting));
        visit("trap_loop", Value::Bool(trap_loop));
        told.each(visit);
        unhandled.each(visit);
        visit("irq", Value::U64(irq));
        visit("timer_deadline", Value::U64(timer_deadline));
    }
}
