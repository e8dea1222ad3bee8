//! The crates sendfd and passfd, as their documentation shows them: on a `UnixStream` that blocks.
//! See peer.h for what a peer does.

mod measure;

use std::collections::VecDeque;
use std::env;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use measure::Measurement;
use passfd::FdPassingExt;
use sendfd::{RecvWithFd, SendWithFd};

const TOKEN: usize = 16;
const REQUEST: usize = 200;
/// passfd reads so many bytes with a descriptor, and gives them to nobody.
const DUMMY: usize = 4;

#[derive(Clone, Copy, PartialEq)]
enum Crate {
    Sendfd,
    Passfd,
}

struct Parameters {
    passing: Crate,
    is_move: bool,
    warm: usize,
    count: usize,
    in_flight: usize,
    preread: usize,
    hold: usize,
}

impl Parameters {
    fn read() -> Self {
        let number = |name, otherwise| {
            env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
        };
        let is_move = env::var("MODE").is_ok_and(|mode| mode == "move");
        Self {
            passing: match env::args().nth(1).as_deref() {
                Some("sendfd") => Crate::Sendfd,
                Some("passfd") => Crate::Passfd,
                _ => panic!("usage: peers sendfd|passfd"),
            },
            is_move,
            warm: number("WARM", 0),
            count: number("COUNT", 1000),
            in_flight: number("IN_FLIGHT", 256),
            preread: if is_move { number("PREREAD", REQUEST) } else { REQUEST },
            hold: number("HOLD", 0),
        }
    }

    fn measurement(&self, side: &'static str) -> Measurement {
        Measurement::new(side, self.warm, self.count)
    }
}

impl Crate {
    /// `message` begins with DUMMY bytes, which only passfd sends.
    fn send(self, channel: &mut UnixStream, message: &[u8], fd: RawFd) -> io::Result<()> {
        match self {
            Self::Passfd => channel.send_fd_with_payload(fd, message),
            Self::Sendfd => {
                let message = &message[DUMMY..];
                let sent = channel.send_with_fd(message, &[fd])?;
                channel.write_all(&message[sent..])
            }
        }
    }

    fn receive(self, channel: &mut UnixStream, message: &mut [u8]) -> io::Result<OwnedFd> {
        let mut fds = [-1];
        let received = match self {
            Self::Sendfd => channel.recv_with_fd(message, &mut fds)?.0,
            Self::Passfd => {
                fds[0] = channel.recv_fd()?;
                0
            }
        };
        // SAFETY: the descriptor was received just now; nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
        channel.read_exact(&mut message[received..])?;
        Ok(fd)
    }
}

// ---- the broker ----

struct Broker<'a> {
    parameters: &'a Parameters,
    channel: UnixStream,
    measurement: Measurement,
    /// In the order of the offers, which is that of the acknowledgements.
    in_flight: VecDeque<(usize, TcpStream)>,
    offered: usize,
    message: Vec<u8>,
    acks: Vec<u8>,
}

impl<'a> Broker<'a> {
    fn new(parameters: &'a Parameters, channel: UnixStream) -> Self {
        Self {
            parameters,
            channel,
            measurement: parameters.measurement("broker"),
            in_flight: VecDeque::new(),
            offered: 0,
            message: vec![0; DUMMY + TOKEN + parameters.preread],
            acks: Vec::new(),
        }
    }

    /// The preread is in the message already.
    fn offer(&mut self, client: TcpStream) -> io::Result<()> {
        let serial = self.offered.to_ne_bytes();
        self.message[DUMMY..DUMMY + serial.len()].copy_from_slice(&serial);
        self.parameters.passing.send(&mut self.channel, &self.message, client.as_raw_fd())?;
        self.in_flight.push_back((self.offered, client));
        self.offered += 1;
        Ok(())
    }

    /// Reads the acknowledgements that have come, and gives their clients.
    fn acknowledged(&mut self) -> io::Result<Vec<TcpStream>> {
        let mut bytes = [0; 256 * TOKEN];
        let received = self.channel.read(&mut bytes)?;
        assert_ne!(received, 0, "the backend has gone");
        self.acks.extend_from_slice(&bytes[..received]);
        let whole = self.acks.len() / TOKEN * TOKEN;
        let mut clients = Vec::with_capacity(whole / TOKEN);
        for token in self.acks[..whole].chunks(TOKEN) {
            let (serial, client) = self.in_flight.pop_front().expect("an offer in flight");
            assert_eq!(token[..size_of::<usize>()], serial.to_ne_bytes());
            self.measurement.step();
            clients.push(client);
        }
        self.acks.drain(..whole);
        Ok(clients)
    }

    fn move_connections(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let total = self.parameters.warm + self.parameters.count;
        let mut ends = Vec::new();
        for _ in 0..self.parameters.in_flight.min(total) {
            if ends.len() < 2048 {
                let end = TcpStream::connect(listener.local_addr()?)?;
                leave_no_time_wait(&end)?;
                ends.extend([end, listener.accept()?.0]);
            }
            self.offer(ends[ends.len() - 1].try_clone()?)?;
        }
        while !self.measurement.is_finished() {
            for client in self.acknowledged()? {
                if self.offered < total {
                    self.offer(client)?;
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // SAFETY: listen(2) on our own socket, for a longer queue than the standard library's.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 4096) }, 0);
        println!("port {}", listener.local_addr()?.port());
        let watched = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut watched = [watched(listener.as_raw_fd()), watched(self.channel.as_raw_fd())];
        while !self.measurement.is_finished() {
            // SAFETY: the array is ours, and has two entries.
            assert!(unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) } > 0);
            if watched[0].revents != 0 {
                let mut client = listener.accept()?.0;
                client.read_exact(&mut self.message[DUMMY + TOKEN..])?;
                self.offer(client)?;
            }
            if watched[1].revents != 0 {
                self.acknowledged()?; // which closes our copies
            }
        }
        Ok(())
    }
}

fn leave_no_time_wait(stream: &TcpStream) -> io::Result<()> {
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a struct of ours, of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const reset).cast(),
            size_of_val(&reset) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// ---- the backend ----

fn backend(parameters: &Parameters, mut channel: UnixStream) -> io::Result<()> {
    measure::pin_backend()?;
    const BODY: usize = 128;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{:x<BODY$}", "");
    let mut measurement = parameters.measurement("backend");
    let mut message = vec![0; TOKEN + parameters.preread];
    let mut held = Vec::with_capacity(parameters.hold);
    while !measurement.is_finished() {
        let fd = parameters.passing.receive(&mut channel, &mut message)?;
        measurement.step();
        if held.len() < parameters.hold {
            held.push((message[..TOKEN].to_vec(), fd));
            if held.len() == parameters.hold {
                for (token, _) in &held {
                    channel.write_all(token)?;
                }
            }
            continue;
        }
        if parameters.is_move {
            drop(fd);
        } else {
            let mut client = TcpStream::from(fd);
            client.write_all(answer.as_bytes())?;
            client.shutdown(Shutdown::Write)?;
        }
        channel.write_all(&message[..TOKEN])?;
    }
    measurement.report()
}

fn main() -> io::Result<()> {
    let parameters = Parameters::read();
    measure::raise_descriptor_limit()?;
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: there is one thread, so the child may go on as if it had been started anew.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(ours);
        return backend(&parameters, theirs);
    }
    drop(theirs);
    let mut broker = Broker::new(&parameters, ours);
    if parameters.is_move {
        broker.move_connections()?;
    } else {
        broker.serve()?;
    }
    broker.measurement.report()?;
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the backend failed");
    Ok(())
}
