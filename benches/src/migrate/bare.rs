//! Two processes and nothing else: one writes a buffer of 1 MiB again and again, the other reads 1 MiB at a time to memory that
//! nothing has touched. What a channel can be at most, for a program that does nothing with it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Moved;

/// The first argument of the reading process.
pub(super) const READER: &str = "--bare-reader";

const BUFFER: usize = 1 << 20;

/// A kind of channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Unix,
    Tcp,
}

/// One transfer, between this process and a new one.
pub(super) fn run(socket: Socket, bytes: u64) -> Result<Moved, String> {
    match socket {
        Socket::Unix => {
            let (ours, theirs) = UnixStream::pair().map_err(|why| why.to_string())?;
            transfer(ours, theirs.into(), bytes)
        }
        Socket::Tcp => {
            let (ours, theirs) = tcp().map_err(|why| why.to_string())?;
            transfer(ours, theirs.into(), bytes)
        }
    }
}

fn tcp() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    Ok((ours, listener.accept()?.0))
}

fn transfer<S: Read + Write>(mut ours: S, theirs: OwnedFd, bytes: u64) -> Result<Moved, String> {
    let program = std::env::current_exe().map_err(|why| why.to_string())?;
    let mut command = Command::new(program);
    command.args([READER, &bytes.to_string()]).stdin(Stdio::from(theirs)).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|why| format!("the other process: {why}"))?;
    // Else the end that it has is open here, too.
    drop(command);
    let done = child.stdout.take().ok_or("no standard output").map_err(str::to_owned).and_then(|mut told| {
        let mut word = [0];
        told.read_exact(&mut word).map_err(|why| format!("the other process: {why}"))?;
        let buffer = vec![0x5a; BUFFER];
        let start = Instant::now();
        let sent = (0..bytes / BUFFER as u64).try_for_each(|_| ours.write_all(&buffer));
        sent.and_then(|()| told.read_exact(&mut word)).map_err(|why| format!("the other process: {why}"))?;
        Ok(start.elapsed())
    });
    let _ = child.kill();
    let _ = child.wait();
    done.map(|time| Moved { total: time.as_secs_f64() * 1e3, downtime: 0.0, megabytes: bytes as f64 / 1e6, late: None })
}

/// The other process: tells when it is ready, and when it has all.
pub(super) fn reader(bytes: &str) -> Result<(), String> {
    let bytes: usize = bytes.parse().map_err(|_| format!("{bytes}: not a number of bytes"))?;
    // Zeros of the kernel's, which are not there yet.
    let mut memory = vec![0u8; bytes];
    let (mut from, mut to) = (std::fs::File::from(stdin()?), std::io::stdout());
    let told = to.write_all(b"r").and_then(|()| to.flush());
    told.map_err(|why| why.to_string())?;
    for piece in memory.chunks_mut(BUFFER) {
        from.read_exact(piece).map_err(|why| why.to_string())?;
    }
    to.write_all(b"d").and_then(|()| to.flush()).map_err(|why| why.to_string())?;
    std::hint::black_box(&memory);
    Ok(())
}

/// The standard input, without a buffer.
fn stdin() -> Result<OwnedFd, String> {
    use std::os::fd::AsFd;
    std::io::stdin().as_fd().try_clone_to_owned().map_err(|why| why.to_string())
}
