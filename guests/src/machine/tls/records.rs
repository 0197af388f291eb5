//! The same by rustls, with the cryptography of ring: TLS 1.3 alone, no resumption, both sides with certificates.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use notdirty_core::migration::{Channel, Layer};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::TlsError;

/// What a target says when it has found the source's certificate good.
const READY: u8 = b'R';
/// Bytes that are taken at once: four records.
const PIECE: usize = 1 << 16;

#[derive(Debug, Clone)]
pub(super) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: Option<String>,
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { path: path.to_owned(), why };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all = all.map_err(|why| failed(why.to_string()))?;
    if all.is_empty() { Err(failed("no certificate in it".into())) } else { Ok(all) }
}

impl Tls {
    pub(super) fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Tls, TlsError> {
        let config = |why: rustls::Error| TlsError::Config(why.to_string());
        let chain = certificates(cert)?;
        let private = || {
            let key_of = PrivateKeyDer::from_pem_file(key);
            key_of.map_err(|why| TlsError::File { path: key.to_owned(), why: why.to_string() })
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|why| TlsError::File { path: ca.to_owned(), why: why.to_string() })?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let versions = &[&rustls::version::TLS13];
        let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
        let client = client.map_err(config)?.with_root_certificates(roots.clone());
        let mut client = client.with_client_auth_cert(chain.clone(), private()?).map_err(config)?;
        client.resumption = Resumption::disabled();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        let verifier = verifier.map_err(|why| TlsError::Config(why.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).map_err(config)?;
        let server = server.with_client_cert_verifier(verifier).with_single_cert(chain, private()?);
        let mut server = server.map_err(config)?;
        server.send_tls13_tickets = 0;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server), name: None })
    }

    pub(super) fn set_name(&mut self, name: String) {
        self.name = Some(name);
    }

    pub(super) fn connect(&self, mut channel: Channel, host: &str) -> Result<Channel, TlsError> {
        let host = self.name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned());
        let name = name.map_err(|_| TlsError::Config(format!("{host:?} is no name of a certificate")))?;
        let connection = ClientConnection::new(self.client.clone(), name);
        let connection = connection.map_err(|why| TlsError::Config(why.to_string()))?;
        channel.set_layer(Records { connection: connection.into(), owed: 0, ready: false });
        Ok(channel)
    }

    pub(super) fn accept(&self, mut channel: Channel) -> io::Result<Channel> {
        let connection = ServerConnection::new(self.server.clone()).map_err(|why| refused(&why))?;
        channel.set_layer(Records { connection: connection.into(), owed: 0, ready: false });
        channel.settle()?;
        Ok(channel)
    }
}

/// What the other side is refused for, or refuses this one for.
fn refused(why: &rustls::Error) -> io::Error {
    let text = match why {
        rustls::Error::AlertReceived(alert) => format!("TLS: the other side refuses this one's certificate: {alert:?}"),
        rustls::Error::InvalidMessage(_) => format!("TLS: the other side does not speak it: {why}"),
        why => format!("TLS: {why}"),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A connection's records, by a descriptor that does not block.
#[derive(Debug)]
struct Records {
    connection: Connection,
    /// Bytes that were taken and are not all written yet.
    owed: usize,
    /// The target has found all well.
    ready: bool,
}

struct Plain<'fd>(BorrowedFd<'fd>);

fn done(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

impl Read for Plain<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most so many bytes to `into`.
        done(unsafe { libc::read(self.0.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads at most so many bytes of `bytes`.
        done(unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Records {
    /// Writes what there is to write.
    fn drain(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Plain(fd))?;
        }
        Ok(())
    }

    /// Reads some records.
    fn more(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut Plain(fd))?;
        if let Err(why) = self.connection.process_new_packets() {
            // The other side is told why, if it can be.
            let _ = self.drain(fd);
            return Err(refused(&why));
        }
        Ok(count)
    }
}

impl Layer for Records {
    fn settle(&mut self, fd: BorrowedFd<'_>) -> (bool, io::Result<()>) {
        loop {
            if let Err(why) = self.drain(fd) {
                return (true, Err(why));
            }
            let done = match &mut self.connection {
                connection if connection.is_handshaking() => self.more(fd).and_then(|count| match count {
                    0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "TLS: the other side went away")),
                    _ => Ok(()),
                }),
                _ if self.ready => return (false, Ok(())),
                Connection::Server(server) => {
                    self.ready = true;
                    server.writer().write_all(&[READY])
                }
                Connection::Client(_) => {
                    let mut said = [0];
                    match self.read(fd, &mut said) {
                        Ok(1) if said == [READY] => {
                            self.ready = true;
                            Ok(())
                        }
                        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "TLS: the target does not say READY")),
                        Err(why) => Err(why),
                    }
                }
            };
            if let Err(why) = done {
                return (false, Err(why));
            }
        }
    }

    fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        if self.owed == 0 {
            self.drain(fd)?;
            self.owed = self.connection.writer().write(&bytes[..bytes.len().min(PIECE)])?;
        }
        self.drain(fd)?;
        Ok(std::mem::take(&mut self.owed).min(bytes.len()))
    }

    fn read(&mut self, fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(into) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => self.more(fd)?,
                come => return come,
            };
        }
    }

    fn end(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.connection.send_close_notify();
        self.drain(fd)
    }
}
