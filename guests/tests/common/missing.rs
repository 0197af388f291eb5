//! A machine whose RAM is yet to come, all of it, and a thread that has a copy and brings it.

use notdirty::{Machine, MachineExit, RunLimits};
use notdirty_core::{MissingPages, PageBytes, PageSource, RamBlock, RamList, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Page = (Arc<RamBlock>, u64);

struct Ask(Mutex<Sender<Page>>);

impl PageSource for Ask {
    fn request(&self, block: &Arc<RamBlock>, off: u64) {
        let _ = self.0.lock().unwrap().send((block.clone(), off));
    }
}

/// What the machine had, and what it asks for.
pub struct Away {
    list: Arc<RamList>,
    pub pages: Arc<MissingPages>,
    copies: Vec<(Arc<RamBlock>, Vec<u8>)>,
    wanted: Mutex<Receiver<Page>>,
}

/// Takes all RAM of a machine that does not run.
pub fn take_all(machine: &Machine) -> Away {
    let list = machine.space().ram().clone();
    let blocks: Vec<_> = list.blocks(&pin()).cloned().collect();
    let copy = |block: &Arc<RamBlock>| {
        let mut bytes = vec![0; block.used_length() as usize];
        block.read_bytes(0, &mut bytes).unwrap();
        (block.clone(), bytes)
    };
    let copies = blocks.iter().map(copy).collect();
    let (to, wanted) = channel();
    let pages = machine.memory().set_missing(Arc::new(Ask(Mutex::new(to)))).unwrap();
    pages.listen().unwrap();
    Away { list, pages, copies, wanted: Mutex::new(wanted) }
}

impl Away {
    /// Places one page; was it the one that did?
    pub fn bring(&self, block: &Arc<RamBlock>, off: u64) -> bool {
        let (_, bytes) = self.copies.iter().find(|(other, _)| Arc::ptr_eq(other, block)).unwrap();
        let bytes = &bytes[off as usize..bytes.len().min((off + block.page_size()) as usize)];
        let zero = bytes.iter().all(|byte| *byte == 0);
        self.pages.place(block, off, if zero { PageBytes::Zero } else { PageBytes::Copy(bytes) }).unwrap()
    }

    /// What is asked for next.
    pub fn next(&self, timeout: Duration) -> Option<Page> {
        self.wanted.lock().unwrap().recv_timeout(timeout).ok()
    }

    /// Brings what is asked for until all vCPUs have come to an end, and with `sweep` other pages as well.
    fn serve(&self, sweep: bool, ended: &AtomicBool) {
        let mut seed = 88172645463325252u64;
        while !ended.load(Ordering::Acquire) {
            match self.next(Duration::from_micros(if sweep { 20 } else { 1000 })) {
                Some((block, off)) => {
                    self.bring(&block, off);
                }
                None if sweep => {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let (block, bytes) = &self.copies[seed as usize % self.copies.len()];
                    if let Some(off) = self.pages.next_missing(block, (seed >> 20) % bytes.len() as u64) {
                        self.bring(block, off);
                    }
                }
                None => {}
            }
        }
    }

    /// Brings all that is left.
    pub fn bring_all(&self) {
        for (block, _) in &self.copies {
            while let Some(off) = self.pages.next_missing(block, 0) {
                self.bring(block, off);
            }
        }
        assert!(!self.list.has_missing() && self.list.missing().is_none());
    }

    /// Runs the machine on what a thread brings; then all of it is there.
    pub fn run(&self, machine: &mut Machine, limits: &RunLimits, sweep: bool) -> MachineExit {
        let ended = AtomicBool::new(false);
        let exit = std::thread::scope(|scope| {
            scope.spawn(|| self.serve(sweep, &ended));
            let exit = machine.run(limits);
            ended.store(true, Ordering::Release);
            exit
        });
        self.bring_all();
        exit
    }
}
