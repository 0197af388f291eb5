//! Ctrl-C and SIGTERM: the run ends, and says where each hart is. A second one ends the process at once. SIGXFSZ is ignored.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::devices::Console;
use crate::machine::WeakStop;

/// Whether there was one.
pub(super) struct Interrupted(Arc<AtomicU8>);

impl Interrupted {
    /// Its number, or 0.
    pub fn signal(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }

    pub fn name(&self) -> &'static str {
        if i32::from(self.signal()) == SIGTERM { "SIGTERM" } else { "Ctrl-C" }
    }
}

/// From now on signals stop the machine.
pub(super) fn watch(stop: WeakStop, console: &Arc<Console>) -> io::Result<Interrupted> {
    // A file that may not grow is an error of its write, not the end of a guest.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let came = Arc::new(AtomicU8::new(0));
    let (seen, console) = (came.clone(), Arc::downgrade(console));
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            // Both numbers are small.
            if seen.swap(signal as u8, Ordering::AcqRel) != 0 {
                std::process::exit(128 + signal);
            }
            // Output that is not read holds nothing up any more.
            if let Some(console) = console.upgrade() {
                console.give_up_at(Instant::now());
            }
            stop.stop();
        }
    })?;
    Ok(Interrupted(came))
}
