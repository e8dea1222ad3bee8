//! The other end of a channel, as somebody who may do anything: raw packets, and raw words.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    socket_with,
};

pub const HELLO: u8 = 1;
pub const WELCOME: u8 = 2;
pub const GRANTS: u8 = 3;
pub const OFFERS: u8 = 4;
pub const VERDICTS: u8 = 5;
pub const DRAIN: u8 = 6;
pub const REFUSAL: u8 = 7;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A name for a handoff socket that no other run has.
pub fn fresh_name() -> String {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("@handoff-fuzz-{}-{serial}", std::process::id())
}

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap()
}

fn address(name: &str) -> SocketAddrUnix {
    SocketAddrUnix::new_abstract_name(&name.as_bytes()[1..]).unwrap()
}

pub fn listen(name: &str) -> OwnedFd {
    let socket = socket();
    rustix::net::bind(&socket, &address(name)).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket
}

pub fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    rustix::net::accept_with(listener, FLAGS).ok()
}

pub fn connect(name: &str) -> Option<OwnedFd> {
    let socket = socket();
    rustix::net::connect(&socket, &address(name)).ok()?;
    Some(socket)
}

/// Sends bytes and descriptors as they are. Whether the kernel takes them is no matter here.
pub fn send(socket: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let _ = sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    );
}

/// A packet whose header is true.
pub fn frame(kind: u8, entries: usize, descriptors: usize, body: &[u8]) -> Vec<u8> {
    let mut packet = (16 + body.len() as u32).to_le_bytes().to_vec();
    packet.extend([1, kind]);
    packet.extend((entries as u16).to_le_bytes());
    packet.extend((descriptors as u16).to_le_bytes());
    packet.extend([0; 6]);
    packet.extend(body);
    packet
}

/// The kind and the body of the next packet, and its descriptors.
pub fn receive(socket: &OwnedFd) -> Option<(u8, Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 128 * 1024];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let buffer = &mut [IoSliceMut::new(&mut bytes)];
    let received =
        recvmsg(socket, buffer, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
            .ok()?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    // What the library sends is well-formed, and only its end has no bytes.
    (!bytes.is_empty()).then(|| (bytes[5], bytes.split_off(16), descriptors))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A claim table through its file: with one thread, reading and then writing is one step.
pub struct Table(pub File);

pub const OFFERED: u64 = 1;
pub const ADOPTED: u64 = 2;
pub const REVOKED: u64 = 3;

impl Table {
    pub fn word(&self, slot: u32) -> u64 {
        let mut word = [0; 8];
        let _ = self.0.read_at(&mut word, u64::from(slot) * 8);
        u64::from_ne_bytes(word)
    }

    pub fn set(&self, slot: u32, word: u64) {
        let _ = self.0.write_at(&word.to_ne_bytes(), u64::from(slot) * 8);
    }

    /// An honest step from OFFERED to another state: whether it succeeded.
    pub fn claim(&self, slot: u32, generation: u64, to: u64) -> bool {
        let won = self.word(slot) == generation << 2 | OFFERED;
        if won {
            self.set(slot, generation << 2 | to);
        }
        won
    }
}

pub fn cookie(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).unwrap()
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
