use super::*;
use notdirty_core::{RamBlockSpec, RamList};
use notdirty_softmmu::{AddressSpace, GuestPhys, NoHooks};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const RAM: u64 = 0x8000_0000;

/// The entry is the last halfword of RAM. Another vCPU makes it by turns a `c.nop` and the first half of an
/// instruction whose second half nobody has, so a translation now and then announces its line, finds other bytes, and
/// faults. It waits for nobody then: a port that it kept would look like somebody who may wake that vCPU.
#[test]
fn a_translation_that_faults_after_its_announcement_keeps_nobodys_port() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x1000)).unwrap();
    let space = AddressSpace::new(ram);
    space.map_ram(GuestPhys::new(RAM), &block, 0, 0x1000, 0).unwrap();
    let mut mmu = SoftMmu::new(&space, 0).unwrap();
    let other = SoftMmu::new(&space, 0).unwrap();
    let alone = Arc::strong_count(other.port());
    let done = AtomicBool::new(false);
    let limits = Limits { insns: MAX_INSNS, regions: true, optimise: true };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for half in [0x0001, 0x0013] {
                    block.store(0xffe, 2, half).unwrap();
                }
            }
        });
        let mut translator = Translator::default();
        for tries in 1.. {
            let made = translator.translate(&mut mmu, &mut NoHooks, RAM + 0xffe, limits);
            match made {
                Ok(_) => drop(translator.doubts()),
                Err(_) if translator.overannounced().next().is_some() => {
                    println!("after {tries} translations");
                    break;
                }
                Err(_) => {}
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(other.port()), alone);
    });
}
