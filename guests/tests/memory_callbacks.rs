//! Who is called back while RAM comes and goes may ask the memory, and change it.

use notdirty::{GuestPhys, Machine, Memory, PlugError, PlugSpec, Plugged, UnplugError};
use notdirty_core::{RamBlock, RamError, RamNotifier, pin};
use notdirty_softmmu::{MemSize, MmioDevice};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const AT: u64 = 0x1_0000_0000;
const SIZE: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// Fails instead of hanging if `test` does not end.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    end.recv_timeout(Duration::from_secs(30)).expect("it ends, well");
}

fn plug(memory: &Memory) -> Plugged {
    memory.plug("dimm", AT, SIZE, PlugSpec::default()).expect("it fits")
}

/// Asks how much there is, at each call.
struct Asks(Memory, Mutex<Vec<usize>>);

impl RamNotifier for Asks {
    fn added(&self, _: &Arc<RamBlock>) {
        self.1.lock().unwrap().push(self.0.blocks().len());
        // Its place is taken already, and its bytes count.
        assert!(self.0.plug("same place", AT, SIZE, PlugSpec::default()).is_err());
    }
    fn removed(&self, _: &Arc<RamBlock>) {
        self.1.lock().unwrap().push(self.0.blocks().len());
        assert!(self.0.plug("same place", AT, SIZE, PlugSpec::default()).is_err());
    }
}

#[test]
fn who_is_told_of_blocks_may_ask_the_memory() {
    in_time(|| {
        let machine = Machine::builder().build().unwrap();
        let memory = machine.memory();
        let asks = Arc::new(Asks(memory.clone(), Mutex::default()));
        let _told = machine.space().ram().notify(asks.clone());
        let dimm = plug(&memory);
        memory.unplug(&dimm, SECOND).unwrap();
        assert_eq!(*asks.1.lock().unwrap(), [1, 2]);
        assert_eq!(memory.blocks().len(), 1);
        plug(&memory);
    });
}

/// Its end looks at the memory.
struct Mourned(Memory);

impl MmioDevice for Mourned {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
}

impl Drop for Mourned {
    fn drop(&mut self) {
        assert!(!self.0.blocks().is_empty());
    }
}

#[test]
fn a_device_may_ask_the_memory_when_it_goes() {
    in_time(|| {
        let mut machine = Machine::builder().build().unwrap();
        let memory = machine.memory();
        for _ in 0..200 {
            let device = Arc::new(Mourned(memory.clone()));
            let region = machine.space().map_mmio(GuestPhys::new(0x3000_0000), 0x1000, device, 0).unwrap();
            machine.unmap(region).unwrap();
            // The device goes after the grace period, on whatever thread retires something then.
            for _ in 0..4 {
                let dimm = plug(&memory);
                memory.unplug(&dimm, SECOND).unwrap();
                machine.write(0x8000_0000, &[0]).unwrap();
            }
        }
    });
}

/// Unplugs a block that another caller is taking out.
struct Unplugs(Memory, Mutex<Option<Plugged>>, Mutex<Vec<UnplugError>>);

impl RamNotifier for Unplugs {
    fn removed(&self, _: &Arc<RamBlock>) {
        let dimm = self.1.lock().unwrap().take();
        if let Some(dimm) = dimm {
            self.2.lock().unwrap().extend(self.0.unplug(&dimm, SECOND).err());
        }
    }
}

#[test]
fn ram_that_is_mapped_stays_in_the_list_and_an_unplug_inside_of_an_unplug_is_refused() {
    in_time(|| {
        let machine = Machine::builder().build().unwrap();
        let memory = machine.memory();
        let dimm = plug(&memory);
        memory.write(AT, b"here").unwrap();
        let unplugs = Arc::new(Unplugs(memory.clone(), Mutex::new(Some(dimm.clone())), Mutex::default()));
        let list = machine.space().ram();
        let _told = list.notify(unplugs.clone());
        let block = list.find_id("dimm", &pin()).cloned().unwrap();
        assert!(matches!(list.remove(&block), Err(RamError::Mapped { times: 1, .. })));
        // It stays, and no notifier was told otherwise.
        let mut bytes = [0; 4];
        memory.read(AT, &mut bytes).unwrap();
        assert_eq!(&bytes, b"here");
        assert!(memory.blocks().len() == 2 && unplugs.2.lock().unwrap().is_empty());
        memory.unplug(&dimm, SECOND).unwrap();
        assert_eq!(*unplugs.2.lock().unwrap(), [UnplugError::Busy]);
        assert!(memory.read(AT, &mut bytes).is_err());
        assert_eq!(memory.unplug(&dimm, SECOND), Err(UnplugError::NotPlugged));
        plug(&memory);
    });
}

/// Wants the place into which a block grows.
struct Covets(Memory, Mutex<Option<bool>>);

impl RamNotifier for Covets {
    fn resized(&self, _: &Arc<RamBlock>, _: u64, _: u64) {
        let got = self.0.plug("covetous", AT + SIZE, SIZE, PlugSpec::default());
        *self.1.lock().unwrap() = Some(matches!(got, Err(PlugError::Taken { .. })));
    }
}

#[test]
fn the_place_that_ram_grows_into_is_taken() {
    in_time(|| {
        let machine = Machine::builder().build().unwrap();
        let memory = machine.memory();
        let dimm = memory.plug("dimm", AT, SIZE, PlugSpec::default().max_size(2 * SIZE)).unwrap();
        let covets = Arc::new(Covets(memory.clone(), Mutex::default()));
        let told = machine.space().ram().notify(covets.clone());
        memory.resize(&dimm, 2 * SIZE, SECOND).unwrap();
        assert_eq!(*covets.1.lock().unwrap(), Some(true));
        drop(told);
        memory.resize(&dimm, SIZE, SECOND).unwrap();
        memory.plug("behind", AT + SIZE, SIZE, PlugSpec::default()).unwrap();
    });
}

#[test]
fn ram_that_somebody_else_resized_is_counted_as_it_was_plugged() {
    let machine = Machine::builder().ram_size(SIZE).max_ram(4 * SIZE).build().unwrap();
    let memory = machine.memory();
    let list = machine.space().ram();
    for round in 0..3 {
        let dimm = memory.plug("dimm", AT, SIZE, PlugSpec::default().max_size(4 * SIZE)).unwrap();
        let block = list.find_id("dimm", &pin()).cloned().unwrap();
        list.resize(&block, 3 * SIZE).unwrap();
        if round == 1 {
            memory.resize(&dimm, 2 * SIZE, SECOND).unwrap();
        }
        memory.unplug(&dimm, SECOND).unwrap();
    }
    memory.plug("all", AT, 3 * SIZE, PlugSpec::default()).unwrap();
}

#[test]
fn ram_at_the_end_of_the_address_space_does_not_grow() {
    let machine = Machine::builder().build().unwrap();
    let memory = machine.memory();
    let dimm = memory.plug("last", u64::MAX - SIZE + 1, SIZE, PlugSpec::default().max_size(2 * SIZE)).unwrap();
    assert!(memory.resize(&dimm, 2 * SIZE, SECOND).is_err());
    memory.unplug(&dimm, SECOND).unwrap();
}
