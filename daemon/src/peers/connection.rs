//! A control connection that was let in, as the gRPC server sees it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::identity::PeerIdentity;

/// Who is at the other end of a call; a call finds it in its extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The host, or `None` for somebody without a certificate.
    pub identity: Option<PeerIdentity>,
    /// Where from.
    pub remote: SocketAddr,
}

/// A connection from a host, or from somebody who wants to become one.
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    guest: Option<Guest>,
}

/// What holds somebody without a certificate to a short visit.
struct Guest {
    _seat: OwnedSemaphorePermit,
    end: Pin<Box<Sleep>>,
}

impl PeerStream {
    /// The connection of a known host.
    #[must_use]
    pub fn of_host(tls: TlsStream<TcpStream>, identity: PeerIdentity, remote: SocketAddr) -> Self {
        Self {
            tls,
            caller: Caller {
                identity: Some(identity),
                remote,
            },
            guest: None,
        }
    }

    /// The connection of somebody without a certificate, who may stay for `visit`.
    #[must_use]
    pub fn of_guest(
        tls: TlsStream<TcpStream>,
        seat: OwnedSemaphorePermit,
        visit: Duration,
        remote: SocketAddr,
    ) -> Self {
        let guest = Guest {
            _seat: seat,
            end: Box::pin(tokio::time::sleep(visit)),
        };
        Self {
            tls,
            caller: Caller {
                identity: None,
                remote,
            },
            guest: Some(guest),
        }
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.guest
            .as_mut()
            .is_some_and(|guest| guest.end.as_mut().poll(context).is_ready())
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
