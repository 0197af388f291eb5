//! Migration by TLS: the right certificates move a machine, by one channel and by several; any other is refused before a byte of it goes.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/writers.rs"]
mod writers;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use notdirty::{
    ArrivalState, Beside, Cancel, Channel, LeaveOptions, Listener, Machine, MachineExit, MigrationState, Postcopy,
    Program, Road, RunLimits, Stop, Tls, TlsError, Uri, smc_test,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use writers::{RAM, start};

const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 12 << 20;

/// A directory of certificates.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("notdirty-{}-tls-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// An authority, in `name.crt`.
    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
        Issuer::new(params, key)
    }

    /// A certificate of it for `host`, in `name.crt` and `name.key`.
    fn certificate(&self, name: &str, host: &str, authority: &Issuer<'static, KeyPair>, expired: bool) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), params.signed_by(&key, authority).unwrap().pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// All that the tests need.
    fn full(name: &str) -> Dir {
        let dir = Dir::new(name);
        let (ours, theirs) = (dir.authority("ca"), dir.authority("other"));
        dir.certificate("source", "source", &ours, false);
        dir.certificate("target", "localhost", &ours, false);
        dir.certificate("expired", "localhost", &ours, true);
        dir.certificate("foreign", "localhost", &theirs, false);
        dir
    }

    fn tls(&self, name: &str, authority: &str) -> Tls {
        let [cert, key, ca] = [format!("{name}.crt"), format!("{name}.key"), format!("{authority}.crt")];
        Tls::load(&self.path(&cert), &self.path(&key), &self.path(&ca)).unwrap().named("localhost")
    }
}

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    machine.read(RAM, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_machine_moves_by_one_channel_and_by_several() {
    let dir = Dir::full("moves");
    for (form, beside) in [
        ("tcp:127.0.0.1:0".to_owned(), 0),
        (format!("unix:{}", dir.path("s").display()), 1),
        ("tcp:127.0.0.1:0".to_owned(), 5),
    ] {
        let mut machine = Machine::builder().ram_size(SIZE).build().unwrap();
        start(&mut machine, 3 + beside as u64);
        machine.cpu_mut().x[18] = 0x7f_ffff;
        let listener = form.parse::<Uri>().unwrap().listen().unwrap();
        let (uri, migrator) = (listener.uri(), machine.migrator());
        let target = std::thread::scope(|scope| {
            let target = scope.spawn(|| {
                let tls = dir.tls("target", "ca");
                let cancel = Cancel::default();
                let accept = |within| {
                    let (channel, _) =
                        listener.accept(Some(within), PATIENCE, &cancel).map_err(std::io::Error::other)?;
                    tls.accept(channel)
                };
                let main = accept(PATIENCE).unwrap();
                Machine::builder().receive_with(main, &mut |within| accept(within), |_| Ok(()))
            });
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                let (tls, cancel) = (dir.tls("source", "ca"), Cancel::default());
                let road = Road::connect_by(&uri, beside, PATIENCE, &cancel, Some(&tls)).unwrap();
                let mut options = LeaveOptions::default();
                // Several rounds, and an end on any host.
                options.limits.downtime = Duration::from_millis(20);
                options.auto_converge = true;
                migrator.start(road, cancel, options).unwrap().wait(Duration::from_secs(60)).unwrap().unwrap();
            });
            assert_eq!(machine.run_to_end(), MachineExit::Migrated, "{form}");
            target.join().unwrap()
        });
        let mut target = target.unwrap_or_else(|why| panic!("{form}, {beside}: {why}"));
        assert!(ram(&machine) == ram(&target) && machine.cpu() == target.cpu(), "{form}, {beside}");
        let some = RunLimits { max_insns: Some(target.cpu().retired + 10_000), deadline: None };
        assert_eq!(target.run(&some), MachineExit::InsnLimit);
    }
}

/// The run ends, also if a check fails.
struct Ends(Stop);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Pages that are waited for come by a channel of their own, and both sides go on by new channels when that one breaks.
#[test]
fn a_machine_runs_at_its_target_first_and_its_pages_follow() {
    let dir = Dir::full("postcopy");
    for (form, multifd) in [(format!("unix:{}", dir.path("p").display()), 0), ("tcp:127.0.0.1:0".to_owned(), 2)] {
        let program = Program::Image(notdirty::programs::basic::spin());
        let mut machine = Machine::builder().ram_size(SIZE).program(program).build().unwrap();
        let pages = 0x100..SIZE >> 12;
        for page in pages.clone() {
            machine.write(RAM + (page << 12) + page % 4096, &[page as u8 | 1]).unwrap();
        }
        let before = ram(&machine);
        let listener = Arc::new(form.parse::<Uri>().unwrap().listen().unwrap());
        let (uri, migrator) = (listener.uri(), machine.migrator());
        let (cancel, stop) = (Cancel::default(), machine.stop_handle());
        let accept = |listener: &Listener, tls: &Tls, within| {
            let (channel, _) =
                listener.accept(Some(within), PATIENCE, &Cancel::default()).map_err(std::io::Error::other)?;
            tls.accept(channel)
        };
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let tls = dir.tls("target", "ca");
                let main = accept(&listener, &tls, PATIENCE).unwrap();
                let mut more = |within| accept(&listener, &tls, within);
                Machine::builder().receive_with(main, &mut more, |_| Ok(())).unwrap()
            });
            let (dir, uri, listener, before) = (&dir, &uri, &listener, &before);
            scope.spawn(move || {
                let _ends = Ends(stop);
                let tls = dir.tls("source", "ca");
                let beside = Beside { multifd, urgent: true };
                let road = Road::connect_by(uri, beside, PATIENCE, &cancel, Some(&tls)).unwrap();
                let Road::Channels(_, _, Some(urgent)) = &road else { panic!("no channel for urgent pages") };
                let urgent = urgent.channel().try_clone().unwrap();
                let mut options = LeaveOptions::default();
                let mut how = Postcopy::after(0);
                // What comes comes because it is asked for.
                how.bandwidth = Some(64 << 10);
                options.postcopy = Some(how);
                let migration = migrator.start(road, cancel, options).unwrap();
                let there = there.join().unwrap();
                let (arrival, memory_there) = (there.arrival().unwrap(), there.memory());
                let read = |pages: core::ops::Range<u64>| {
                    let mut bytes = [0; 4096];
                    for page in pages.rev() {
                        memory_there.read(RAM + (page << 12), &mut bytes).unwrap();
                        assert_eq!(bytes[..], before[page as usize * 4096..][..4096], "{uri}: page {page:#x}");
                    }
                };
                read(pages.end - 100..pages.end);
                assert!(arrival.status().requests >= 90, "{:?}", arrival.status());
                urgent.shut();
                assert_eq!(arrival.wait_while(ArrivalState::Running, PATIENCE), ArrivalState::Paused);
                while migration.status().state != MigrationState::PostcopyPaused {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let (again, ours) = (listener.clone(), dir.tls("target", "ca"));
                std::thread::scope(|scope| {
                    let road = scope.spawn(|| {
                        let beside = Beside::urgent(true);
                        Road::connect_by(uri, beside, PATIENCE, &Cancel::default(), Some(&tls)).unwrap()
                    });
                    let from = accept(listener, &ours, PATIENCE).unwrap();
                    let more = Box::new(move |within| accept(&again, &ours, within));
                    arrival.recover_with(from, more).unwrap();
                    migration.recover(road.join().unwrap()).unwrap();
                });
                let asked = arrival.status().requests;
                read(pages.end - 200..pages.end);
                assert!(arrival.status().requests >= asked + 90, "{:?}", arrival.status());
                read(pages);
                let ended = migration.wait(PATIENCE).unwrap().unwrap();
                assert_eq!((ended.state, ended.pauses), (MigrationState::Completed, 1));
                assert!(ended.urgent >= 180, "{ended:?}");
            });
            assert_eq!(machine.run_to_end(), MachineExit::Migrated, "{form}");
        });
    }
}

/// Both ends of one connection, and what each says of the other.
fn meet(
    source: impl FnOnce(&Uri) -> Result<(), String> + Send,
    target: &Tls,
) -> (Result<(), String>, Result<(), String>) {
    let listener = "tcp:127.0.0.1:0".parse::<Uri>().unwrap().listen().unwrap();
    let uri = listener.uri();
    std::thread::scope(|scope| {
        let source = scope.spawn(|| source(&uri));
        let (channel, _) = listener.accept(Some(PATIENCE), PATIENCE, &Cancel::default()).unwrap();
        let came = target.accept(channel).map(|mut channel| {
            // Not one byte of a machine.
            let mut rest = Vec::new();
            let _ = channel.read_to_end(&mut rest);
            assert_eq!(rest, []);
        });
        (source.join().unwrap(), came.map_err(|why| why.to_string()))
    })
}

#[test]
fn a_wrong_certificate_an_expired_one_and_none_are_refused_before_anything_is_sent() {
    let dir = Dir::full("refused");
    let connect = |tls: Tls| {
        move |uri: &Uri| {
            let road = Road::connect_by(uri, 0, PATIENCE, &Cancel::default(), Some(&tls));
            road.map(drop).map_err(|why| why.to_string())
        }
    };
    let target = dir.tls("target", "ca");
    assert_eq!(meet(connect(dir.tls("source", "ca")), &target), (Ok(()), Ok(())));
    // The source's, the target's, what the source says, what the target says.
    let cases = [
        (dir.tls("foreign", "ca"), target.clone(), "refuses this one's certificate", "UnknownIssuer"),
        (dir.tls("expired", "ca"), target.clone(), "CertificateExpired", "certificate expired"),
        (dir.tls("source", "other"), target.clone(), "UnknownIssuer", "refuses this one's certificate"),
        (dir.tls("source", "ca"), dir.tls("expired", "ca"), "certificate expired", "CertificateExpired"),
        (
            dir.tls("source", "ca").named("elsewhere"),
            target.clone(),
            "not valid for name",
            "refuses this one's certificate",
        ),
    ];
    for (source, target, at_source, at_target) in cases {
        let (source, target) = meet(connect(source), &target);
        let (source, target) = (source.unwrap_err(), target.unwrap_err());
        assert!(source.contains(at_source) && source.contains("TLS"), "{at_source}: {source}");
        assert!(target.contains(at_target) && target.contains("TLS"), "{at_target}: {target}");
    }
    // None at all.
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(dir.path("ca.crt")).unwrap();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(&ca).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (source, none) = meet(
        |uri| {
            let Uri::Tcp(host, port) = uri else { panic!() };
            let name = "localhost".try_into().unwrap();
            let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            let mut socket = std::net::TcpStream::connect((host.as_str(), *port)).unwrap();
            let mut stream = rustls::Stream::new(&mut client, &mut socket);
            stream.read(&mut [0]).map(drop).map_err(|why| why.to_string())
        },
        &target,
    );
    assert!(source.unwrap_err().contains("CertificateRequired"));
    assert!(none.unwrap_err().contains("no certificates"));
    // No TLS at all, at either end.
    let plain = |uri: &Uri| {
        let (mut channel, _) = uri.connect(PATIENCE, &Cancel::default()).unwrap();
        std::io::Write::write_all(&mut channel, b"QEVM and what follows").map_err(|why| why.to_string())
    };
    let (_, refused) = meet(plain, &target);
    assert!(refused.as_ref().unwrap_err().contains("does not speak it"), "{refused:?}");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let channel =
            |socket: std::os::unix::net::UnixStream| Channel::new(socket.into(), PATIENCE, Cancel::default()).unwrap();
        let came = scope.spawn(move || Machine::builder().receive(channel(theirs)).map(drop));
        let ours = dir.tls("source", "ca").connect(channel(ours), "localhost").unwrap();
        let why = ours.settle().unwrap_err().to_string();
        assert!(why.contains("does not speak it"), "{why}");
        assert!(came.join().unwrap().is_err());
    });
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let dir = Dir::full("files");
    std::fs::write(dir.path("empty"), "").unwrap();
    let [cert, key, ca, empty] = ["source.crt", "source.key", "ca.crt", "empty"].map(|name| dir.path(name));
    let missing = Path::new("/nonexistent/x.crt");
    for (cert, key, ca, named) in [
        (&*empty, &*key, &*ca, &*empty),
        (&*cert, &*empty, &*ca, &*empty),
        (&*cert, &*key, &*empty, &*empty),
        (missing, &*key, &*ca, missing),
        (&*cert, &*key, &*key, &*key),
    ] {
        match Tls::load(cert, key, ca) {
            Err(TlsError::File { path, .. }) => assert_eq!(path, named),
            other => panic!("{named:?}: {other:?}"),
        }
    }
    // A key of another certificate.
    let why = Tls::load(&cert, &dir.path("target.key"), &ca).unwrap_err();
    assert!(why.to_string().starts_with("TLS: "), "{why}");
}

fn notdirty(args: &[&str], tls: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    command.args(args).args(tls).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// A target waits on when it has refused one.
#[test]
fn the_command_moves_a_guest_by_tls_and_refuses_a_foreign_one() {
    let dir = Dir::full("command");
    let elf = dir.path("timer.elf");
    std::fs::write(&elf, smc_test::elf(&notdirty::programs::timer::timer_irq(2000, 3000))).unwrap();
    let (elf, socket) = (elf.display().to_string(), dir.path("socket"));
    let with = |name: &str, ca: &str| {
        let file = |name: String| dir.path(&name).display().to_string();
        let files = [file(format!("{name}.crt")), file(format!("{name}.key")), file(format!("{ca}.crt"))];
        ["--tls-cert", "--tls-key", "--tls-ca"]
            .into_iter()
            .map(str::to_owned)
            .zip(files)
            .flat_map(|(a, b)| [a, b])
            .collect::<Vec<_>>()
    };
    let uri = format!("unix:{}", socket.display());
    let target = notdirty(&["run", "--incoming", &uri, "--timeout", "60"], &with("target", "ca"));
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let go = format!("{uri}@1ms");
    let run = ["run", &elf, "-m", "16M", "--migrate", &go];
    let foreign = notdirty(&run, &with("foreign", "ca")).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&foreign.stderr).into_owned();
    // It ran to its own end, and was to move.
    assert!(foreign.status.code() == Some(126) && text.contains("not moved") && text.contains("TLS"), "{text}");
    let multifd = [&run[..], &["--multifd", "2", "--tls-name", "localhost"]].concat();
    let source = notdirty(&multifd, &with("source", "ca")).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&source.stderr).into_owned();
    assert!(source.status.success() && text.contains("moved to"), "{text}");
    let target = target.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&target.stderr).into_owned();
    assert!(target.status.success() && text.contains("refused: TLS"), "{text}");
}
