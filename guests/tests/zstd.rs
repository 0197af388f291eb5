//! Migration by several channels whose pages are packed by Zstandard.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/writers.rs"]
mod writers;

use std::time::Duration;

use notdirty::{
    Cancel, Compression, LeaveOptions, Machine, MachineExit, MigrationError, Postcopy, Road, RunLimits, Uri,
};
use writers::{RAM, start};

const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 12 << 20;

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    machine.read(RAM, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_machine_whose_pages_are_packed_arrives_whole() {
    let socket = std::env::temp_dir().join(format!("notdirty-{}-zstd", std::process::id()));
    for (form, beside) in [("tcp:127.0.0.1:0".to_owned(), 1), (format!("unix:{}", socket.display()), 4)] {
        let mut machine = Machine::builder().ram_size(SIZE).build().unwrap();
        start(&mut machine, 5 + beside as u64);
        machine.cpu_mut().x[18] = 0x7f_ffff;
        let listener = form.parse::<Uri>().unwrap().listen().unwrap();
        let (uri, migrator) = (listener.uri(), machine.migrator());
        let (target, status) = std::thread::scope(|scope| {
            let target = scope.spawn(|| {
                let cancel = Cancel::default();
                let mut accept = |within| {
                    let accepted = listener.accept(Some(within), PATIENCE, &cancel);
                    accepted.map(|(channel, _)| channel).map_err(std::io::Error::other)
                };
                let main = accept(PATIENCE).unwrap();
                Machine::builder().receive_with(main, &mut accept, |_| Ok(()))
            });
            let status = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                let cancel = Cancel::default();
                let road = Road::connect(&uri, beside, PATIENCE, &cancel).unwrap();
                let mut options = LeaveOptions::default();
                options.compression = Compression::Zstd;
                // Several rounds, and an end on any host.
                options.limits.downtime = Duration::from_millis(20);
                options.auto_converge = true;
                migrator.start(road, cancel, options).unwrap().wait(Duration::from_secs(60)).unwrap().unwrap()
            });
            assert_eq!(machine.run_to_end(), MachineExit::Migrated, "{form}");
            (target.join().unwrap(), status.join().unwrap())
        });
        let mut target = target.unwrap_or_else(|why| panic!("{form}, {beside}: {why}"));
        assert!(ram(&machine) == ram(&target) && machine.cpu() == target.cpu(), "{form}, {beside}");
        // The guest's pages are words here and there.
        assert!(status.progress.pages > 1000 && status.progress.bytes < status.progress.pages << 11, "{status:?}");
        let some = RunLimits { max_insns: Some(target.cpu().retired + 10_000), deadline: None };
        assert_eq!(target.run(&some), MachineExit::InsnLimit);
    }
}

#[test]
fn pages_are_packed_by_several_channels_alone() {
    let machine = Machine::builder().ram_size(SIZE).build().unwrap();
    let mut options = LeaveOptions::default();
    options.compression = Compression::Zstd;
    options.postcopy = Some(Postcopy::default());
    let refused = machine.migrator().start(Road::File("/nonexistent".into(), true), Cancel::default(), options);
    assert!(matches!(refused, Err(MigrationError::Options(_))));
    options.postcopy = None;
    let refused = machine.migrator().start(Road::File("/nonexistent".into(), true), Cancel::default(), options);
    assert!(matches!(refused, Err(MigrationError::Options(_))));
}
