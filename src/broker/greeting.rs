//! How a channel begins: connecting and the hello; and why one has ended, mostly before its welcome.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Instant;

use super::channel::Channel;
use super::down::WhyDown;
use super::peer;
use super::slots::Slots;
use super::{BrokerOptions, NoWelcome};
use crate::address;
use crate::handle::GREETING_TIMEOUT;
use crate::reason::Reason;
use crate::support;
use crate::sys::{self, packet, socket};
use crate::watched::WatchedSocket;
use crate::wire::{self, Frame, Hello, Kind, REFUSAL_LEN};

impl Channel {
    /// Connects to a handoff socket, checks who listens there, and says hello, without waiting for
    /// the welcome. The channel has `count` slots.
    pub(super) fn connect(
        path: &Path,
        count: usize,
        options: &BrokerOptions,
        key: u64,
        now: Instant,
    ) -> Result<Channel, WhyDown> {
        let address = address::address(path).map_err(|_| WhyDown::NoBackend(libc::EINVAL))?;
        let socket = support::seq_packet_socket()?;
        // Before connecting: later could be too late.
        socket::refuse_descriptors(&socket);
        sys::address::connect(&socket, &address)
            .map_err(|error| why_not_connected(path, &address, error))?;
        // A backend that cannot ask either closes the channel, and nobody would know why.
        support::credentials(socket.as_fd())?;
        peer::check(&socket, &address, options)?;
        let (claims, table) = support::claim_table(count)?;
        let slots = Slots::new(count)?;
        let hello = Hello { slots: count as u32 }.body();
        let header = wire::header(Kind::Hello, 0, 1, hello.len());
        let parts = [IoSlice::new(&header), IoSlice::new(&hello)];
        packet::send_packet(socket.as_fd(), &parts, &[table.as_raw_fd()])
            .map_err(|error| why_hello_failed(&socket, error))?;
        Ok(Channel::new(WatchedSocket::new(socket, key), claims, slots, now))
    }

    /// Why the channel ended, after a last attempt to receive.
    pub(super) fn why_ended(&self, last: Result<bool, Reason>) -> WhyDown {
        match (self.refusal, self.welcome, last) {
            (Some(refusal), ..) => WhyDown::TurnedAway(refusal),
            (None, Ok(_), _) => WhyDown::NoBackend(libc::ECONNRESET),
            (None, Err(_), Ok(_)) => {
                WhyDown::NoWelcome(NoWelcome::Silent { seconds: GREETING_TIMEOUT.as_secs() })
            }
            (None, Err(_), Err(Reason::IntegrityMismatch)) => {
                WhyDown::NoWelcome(NoWelcome::Foreign)
            }
            (None, Err(_), Err(_)) => WhyDown::NoWelcome(NoWelcome::Closed),
        }
    }
}

/// Why nobody could be connected to: what is no socket is refused like one that nobody listens on. An
/// abstract name is no file's.
#[cold]
fn why_not_connected(path: &Path, address: &sys::address::Address, error: io::Error) -> WhyDown {
    if error.raw_os_error() != Some(libc::ECONNREFUSED) || address.is_abstract() {
        return error.into();
    }
    match path.metadata() {
        Ok(file) if file.is_dir() => WhyDown::NoBackend(libc::EISDIR),
        Ok(file) if !file.file_type().is_socket() => WhyDown::NoBackend(libc::ENOTSOCK),
        _ => error.into(),
    }
}

/// What a backend said that turned this broker away before its hello, if that is why sending the
/// hello failed.
#[cold]
fn why_hello_failed(socket: &OwnedFd, error: io::Error) -> WhyDown {
    if !socket::has_gone(&error) {
        return error.into();
    }
    let mut packet = [0; wire::HEADER_LEN + REFUSAL_LEN + 1];
    // An error that the socket had is told by now.
    let received = sys::receive(socket.as_fd(), &mut packet, false);
    let Ok(received) = received else { return WhyDown::NoWelcome(NoWelcome::Closed) };
    match wire::decode(&packet[..received.len], received.descriptors) {
        Ok(Frame::Refusal(refusal)) => WhyDown::TurnedAway(refusal),
        _ if received.len > 0 => WhyDown::NoWelcome(NoWelcome::Foreign),
        _ => WhyDown::NoWelcome(NoWelcome::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Refusal;
    use std::os::unix::net::UnixDatagram;

    /// Also where the kernel says that nobody listens, because the backend closed at that moment.
    #[test]
    fn broker_that_is_turned_away_before_its_hello_is_told_why() {
        for code in [libc::EPIPE, libc::ECONNRESET, libc::ENOTCONN, libc::ECONNREFUSED] {
            let (socket, backend) = UnixDatagram::pair().unwrap();
            let (header, body) = (Refusal::header(), Refusal::DRAINING.body());
            let parts = [IoSlice::new(&header), IoSlice::new(&body)];
            packet::send_packet(backend.as_fd(), &parts, &[]).unwrap();
            let why = why_hello_failed(&socket.into(), io::Error::from_raw_os_error(code));
            assert!(matches!(why, WhyDown::TurnedAway(Refusal::DRAINING)), "{code}");
        }
    }
}
