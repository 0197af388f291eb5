//! Where a machine goes to or comes from, as text.
//!
//! ```text
//!   tcp:HOST:PORT   unix:PATH        a socket: the target answers
//!   fd:N            exec:COMMAND     a descriptor that is open already; a shell's standard input, or output
//!   file:PATH[,offset=N]             a stream in a file, from there on
//! ```
//!
//! Who listens without a host listens on the loopback address. A file is not there under its name before it is whole, unless a part of
//! it is written.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use notdirty_core::migration::{Cancel, Channel};

use super::unfinished::put_in_place;

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// A host and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
    /// A descriptor of this process.
    Fd(RawFd),
    /// A command for `sh`.
    Exec(String),
    /// A file, from this byte on.
    File(PathBuf, Option<u64>),
}

/// A place that is none, or that cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It is not written so.
    #[error("{0}: must be tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or file:PATH[,offset=N]")]
    Form(String),
    /// The host says no.
    #[error("{uri}: {source}")]
    Host {
        /// Where.
        uri: String,
        /// Why not.
        source: io::Error,
    },
    /// The command failed.
    #[error("{uri}: the command ended with {status}")]
    Command {
        /// Which.
        uri: String,
        /// How.
        status: String,
    },
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Uri::Unix(path) => write!(f, "unix:{}", path.display()),
            Uri::Fd(fd) => write!(f, "fd:{fd}"),
            Uri::Exec(command) => write!(f, "exec:{command}"),
            Uri::File(path, None) => write!(f, "file:{}", path.display()),
            Uri::File(path, Some(offset)) => write!(f, "file:{},offset={offset}", path.display()),
        }
    }
}

impl std::str::FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Uri, UriError> {
        let form = || UriError::Form(text.to_owned());
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(form)?;
        match kind {
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
                let host = if host.is_empty() { "127.0.0.1" } else { host };
                Ok(Uri::Tcp(host.trim_matches(['[', ']']).to_owned(), port.parse().map_err(|_| form())?))
            }
            "unix" => Ok(Uri::Unix(rest.into())),
            "fd" => rest.parse().ok().filter(|fd| *fd >= 0).map(Uri::Fd).ok_or_else(form),
            "exec" => Ok(Uri::Exec(rest.to_owned())),
            "file" => match rest.rsplit_once(",offset=") {
                None => Ok(Uri::File(rest.into(), None)),
                Some((path, offset)) => {
                    let offset = match offset.strip_prefix("0x") {
                        Some(hex) => u64::from_str_radix(hex, 16),
                        None => offset.parse(),
                    };
                    Ok(Uri::File(path.into(), Some(offset.map_err(|_| form())?)))
                }
            },
            _ => Err(form()),
        }
    }
}

/// What is left to do at an end when the machine has gone there, or has come.
#[derive(Debug)]
#[must_use = "a command is waited for, and a file gets its name, by `finish`"]
pub struct End {
    uri: String,
    child: Option<Child>,
    rename: Option<(PathBuf, PathBuf)>,
    sync: bool,
}

impl End {
    fn of(uri: &Uri) -> End {
        End { uri: uri.to_string(), child: None, rename: None, sync: false }
    }

    /// Whether there is anything to do.
    pub(super) fn is_nothing(&self) -> bool {
        self.child.is_none() && self.rename.is_none()
    }

    /// A file and its name are to be on the disk when it is finished.
    pub(super) fn durable(mut self, sync: bool) -> End {
        self.sync = sync;
        self
    }

    /// All bytes are there, and the channel is closed: a command is waited for, at most so long, and a file gets its name.
    ///
    /// # Errors
    /// The command did not end, or not well; the file cannot be renamed; it was cancelled.
    pub fn finish(mut self, patience: Duration, cancel: &Cancel) -> Result<(), UriError> {
        let uri = self.uri.clone();
        if let Some(mut child) = self.child.take() {
            let until = Instant::now() + patience;
            let status = loop {
                match child.try_wait() {
                    Ok(Some(status)) => break status,
                    Ok(None) if Instant::now() < until && !cancel.is_cancelled() => {
                        std::thread::sleep(Duration::from_millis(5))
                    }
                    Ok(None) => {
                        let _ = child.kill();
                        let _ = child.wait();
                        let status = format!("no end in {:.1} s, and was killed", patience.as_secs_f64());
                        return Err(UriError::Command { uri, status });
                    }
                    Err(source) => return Err(UriError::Host { uri, source }),
                }
            };
            if !status.success() {
                return Err(UriError::Command { uri, status: status.to_string() });
            }
        }
        match self.rename.take() {
            Some((from, to)) => put_in_place(&from, &to, self.sync).map_err(|source| UriError::Host { uri, source }),
            None => Ok(()),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some((from, _)) = &self.rename {
            let _ = std::fs::remove_file(from);
        }
    }
}

impl Uri {
    fn host(&self) -> impl Fn(io::Error) -> UriError {
        let uri = self.to_string();
        move |source| UriError::Host { uri: uri.clone(), source }
    }

    /// The channel to there. Each of its waits has this patience.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn connect(&self, patience: Duration, cancel: &Cancel) -> Result<(Channel, End), UriError> {
        let mut end = End::of(self);
        let fd = self.open(patience, cancel, &mut end).map_err(self.host())?;
        let channel = Channel::new(fd, patience, cancel.clone()).map_err(self.host())?;
        Ok((channel, end))
    }

    fn open(&self, patience: Duration, cancel: &Cancel, end: &mut End) -> io::Result<OwnedFd> {
        match self {
            Uri::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "no address of that name");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(stream.into());
                        }
                        Err(why) => last = why,
                    }
                }
                Err(last)
            }
            Uri::Unix(path) => connect_unix(path, patience, cancel),
            Uri::Fd(fd) => given(*fd),
            Uri::Exec(command) => {
                let mut child = shell(command).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
                let input = child.stdin.take().ok_or_else(|| io::Error::other("no standard input"))?;
                end.child = Some(child);
                Ok(input.into())
            }
            Uri::File(path, Some(offset)) => {
                let mut options = File::options();
                // A FIFO without a reader is an error, and no wait.
                let options = options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
                let mut file = options.open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok(file.into())
            }
            Uri::File(path, None) => {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(format!(".{}.part", std::process::id()));
                let temporary = path.with_file_name(name);
                let file = File::create(&temporary)?;
                end.rename = Some((temporary, path.clone()));
                Ok(file.into())
            }
        }
    }

    /// Waits there.
    ///
    /// # Errors
    /// The place cannot be had.
    pub fn listen(&self) -> Result<Listener, UriError> {
        let kind = match self {
            Uri::Tcp(host, port) => {
                let listener = TcpListener::bind((host.as_str(), *port)).map_err(self.host())?;
                listener.set_nonblocking(true).map_err(self.host())?;
                Kind::Tcp(listener)
            }
            Uri::Unix(path) => {
                // One that a process left behind, and nothing listens to any more. A file that is no socket refuses in the same way.
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                if is_socket
                    && connect_unix(path, Duration::ZERO, &Cancel::default())
                        .is_err_and(|why| why.kind() == io::ErrorKind::ConnectionRefused)
                {
                    let _ = std::fs::remove_file(path);
                }
                let listener = UnixListener::bind(path).map_err(self.host())?;
                listener.set_nonblocking(true).map_err(self.host())?;
                Kind::Unix(listener, Socket::at(path))
            }
            _ => Kind::Source,
        };
        Ok(Listener { uri: self.clone(), kind })
    }
}

/// Connects within a time: one whose queue is full of others that wait would keep a plain `connect` for ever.
fn connect_unix(path: &Path, patience: Duration, cancel: &Cancel) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zeros are one.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no path of a socket"));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let until = Instant::now().checked_add(patience);
    loop {
        let (at, len) = ((&raw const address).cast(), size_of_val(&address) as libc::socklen_t);
        // SAFETY: the kernel reads `len` bytes of `address`.
        if unsafe { libc::connect(fd.as_raw_fd(), at, len) } == 0 {
            return Ok(fd);
        }
        match io::Error::last_os_error() {
            why if why.kind() == io::ErrorKind::WouldBlock => wait_on(until, cancel)?,
            why if why.kind() == io::ErrorKind::Interrupted => {}
            why => return Err(why),
        }
    }
}

/// A moment, unless it was cancelled or the time is over.
fn wait_on(until: Option<Instant>, cancel: &Cancel) -> io::Result<()> {
    if cancel.is_cancelled() {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
    }
    if until.is_some_and(|until| Instant::now() >= until) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the queue of those that connect stays full"));
    }
    std::thread::sleep(Duration::from_millis(5));
    Ok(())
}

/// A descriptor that this process was started with.
fn given(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks of a number, whatever it is.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open; the copy is ours, and the given one stays its owner's.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stderr(Stdio::inherit());
    shell
}

/// The file of a socket, which goes with its listener, unless another one is there by then.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    file: (u64, u64),
}

impl Socket {
    fn at(path: &Path) -> Option<Socket> {
        Some(Socket { path: path.to_owned(), file: Socket::file(path)? })
    }

    fn file(path: &Path) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
    }

    fn remove(&self) {
        if Socket::file(&self.path) == Some(self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, Option<Socket>),
    Source,
}

/// A place where a machine is waited for.
#[derive(Debug)]
pub struct Listener {
    uri: Uri,
    kind: Kind,
}

impl Listener {
    /// Where it is, with the port that the host gave for port 0.
    pub fn uri(&self) -> Uri {
        match (&self.kind, &self.uri) {
            (Kind::Tcp(listener), Uri::Tcp(host, _)) => {
                Uri::Tcp(host.clone(), listener.local_addr().map_or(0, |address| address.port()))
            }
            (_, uri) => uri.clone(),
        }
    }

    /// Waits for the other end, without a limit unless there is one; then each wait has this patience.
    ///
    /// # Errors
    /// Nobody came in time, or the host's.
    pub fn accept(
        &self,
        timeout: Option<Duration>,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<(Channel, End), UriError> {
        let mut end = End::of(&self.uri);
        let fd = self.open(timeout, cancel, &mut end).map_err(self.uri.host())?;
        let channel = Channel::new(fd, patience, cancel.clone()).map_err(self.uri.host())?;
        Ok((channel, end))
    }

    fn open(&self, timeout: Option<Duration>, cancel: &Cancel, end: &mut End) -> io::Result<OwnedFd> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let stream = accepted(listener.as_fd(), timeout, cancel, || Ok(listener.accept()?.0))?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Kind::Unix(listener, _) => {
                Ok(accepted(listener.as_fd(), timeout, cancel, || Ok(listener.accept()?.0))?.into())
            }
            Kind::Source => match &self.uri {
                Uri::Fd(fd) => given(*fd),
                Uri::Exec(command) => {
                    let mut child = shell(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
                    let output = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
                    end.child = Some(child);
                    Ok(output.into())
                }
                Uri::File(path, offset) => {
                    // A FIFO without a writer has ended, and is not waited for.
                    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
                    file.seek(SeekFrom::Start(offset.unwrap_or(0)))?;
                    Ok(file.into())
                }
                _ => Err(io::ErrorKind::Unsupported.into()),
            },
        }
    }
}

impl Listener {
    /// The file of a Unix socket is gone: what connects from here on does not find it. Once it drops, this has been done.
    pub fn remove_file(&self) {
        if let Kind::Unix(_, Some(socket)) = &self.kind {
            socket.remove();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// What connects next. The listener does not block: what has gone again since is waited for no more.
fn accepted<S>(
    fd: std::os::fd::BorrowedFd<'_>,
    timeout: Option<Duration>,
    cancel: &Cancel,
    accept: impl Fn() -> io::Result<S>,
) -> io::Result<S> {
    let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one element, which lives through the call.
        if unsafe { libc::poll(&raw mut poll, 1, 20) } > 0 {
            match accept() {
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                came => return came,
            }
        }
        if cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody connected"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["tcp:127.0.0.1:4444", "unix:/tmp/a:b", "fd:5", "exec:cat > x:y", "file:/a,b", "file:a,offset=4096"]
        {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:4444".parse::<Uri>().unwrap(), Uri::Tcp("127.0.0.1".into(), 4444));
        assert_eq!("tcp::4444".parse::<Uri>().unwrap(), Uri::Tcp("127.0.0.1".into(), 4444));
        assert_eq!("tcp:[::1]:4444".parse::<Uri>().unwrap(), Uri::Tcp("::1".into(), 4444));
        for text in ["", "tcp:", "tcp:host", "fd:-1", "fd:x", "rdma:host:1", "file:a,offset=x", "unix:"] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
    }

    #[test]
    fn who_listens_without_a_host_is_reached_from_this_machine_alone() {
        let listener = "tcp:0".parse::<Uri>().unwrap().listen().unwrap();
        let Kind::Tcp(socket) = &listener.kind else { panic!() };
        assert!(socket.local_addr().unwrap().ip().is_loopback());
        let why = listener.accept(Some(Duration::from_millis(1)), Duration::ZERO, &Cancel::default()).unwrap_err();
        assert!(why.to_string().contains("nobody connected"), "{why}");
    }

    #[test]
    fn the_file_of_a_socket_goes_with_its_listener_and_no_other_file_does() {
        let path = std::env::temp_dir().join(format!("notdirty-{}-ours", std::process::id()));
        let uri = Uri::Unix(path.clone());
        // What is no socket is kept.
        std::fs::write(&path, "text").unwrap();
        assert!(uri.listen().is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        std::fs::remove_file(&path).unwrap();
        let first = uri.listen().unwrap();
        assert!(uri.listen().is_err(), "one listens there");
        // Another one has taken the place since.
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        let second = uri.listen().unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
        // One that a process left behind.
        std::fs::rename(path.with_extension("old"), &path).unwrap();
        drop(uri.listen().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_place_that_nothing_accepts_from_is_given_up() {
        let path = std::env::temp_dir().join(format!("notdirty-{}-full", std::process::id()));
        let uri = Uri::Unix(path);
        let _listener = uri.listen().unwrap();
        let brief = Duration::from_millis(10);
        let all: Result<Vec<_>, _> = (0..5000).map(|_| uri.connect(brief, &Cancel::default())).collect();
        let why = all.unwrap_err().to_string();
        assert!(why.contains("stays full"), "{why}");
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(uri.connect(Duration::from_secs(3600), &cancel).is_err());
    }
}
