//! A broker with several backends through the Rust API, over real sockets, in one process.

mod changes;
mod choice;
mod waiting;

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{Broker, BrokerError, BrokerOptions, Offer, Phase, Verdict};
use tempfile::TempDir;

/// How long a test waits for something that must happen. Only a fault takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker for a directory, and the backends in it.
pub struct Fleet {
    pub directory: TempDir,
    pub broker: Broker,
    pub backends: Vec<Backend>,
}

pub fn fleet(count: usize, options: BrokerOptions) -> Fleet {
    let directory = TempDir::new().unwrap();
    let mut path = directory.path().as_os_str().to_owned();
    path.push("/");
    let broker = Broker::new(Path::new(&path), options).unwrap();
    let mut fleet = Fleet { directory, broker, backends: Vec::new() };
    for number in 0..count {
        fleet.listen(&number.to_string());
    }
    fleet.until(|fleet| fleet.ready() == count);
    fleet
}

impl Fleet {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn listen(&mut self, name: &str) {
        let backend = Backend::listen(&self.path(name), BackendOptions::default()).unwrap();
        self.backends.push(backend);
    }

    pub fn ready(&mut self) -> usize {
        (0..)
            .map_while(|index| Some(self.broker.backend_state(index)?.phase == Phase::Ready))
            .filter(|ready| *ready)
            .count()
    }

    pub fn until(&mut self, mut done: impl FnMut(&mut Fleet) -> bool) {
        let start = Instant::now();
        loop {
            self.broker.dispatch().unwrap();
            for backend in &mut self.backends {
                backend.dispatch().unwrap();
            }
            if done(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it never came to that");
            std::thread::yield_now();
        }
    }

    pub fn verdict(&mut self) -> Verdict {
        let mut verdict = None;
        self.until(|fleet| {
            verdict = fleet.broker.next_verdict();
            verdict.is_some()
        });
        verdict.unwrap()
    }

    /// The backend that has an arrival, and its number there.
    pub fn arrival(&mut self) -> (usize, u64) {
        let mut found = None;
        self.until(|fleet| {
            let mut backends = fleet.backends.iter_mut().enumerate();
            found = backends.find_map(|(index, it)| Some((index, it.next_arrival()?.id)));
            found.is_some()
        });
        found.unwrap()
    }
}

pub fn client() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

pub fn offer(connection: &TcpStream) -> Offer<'_> {
    Offer {
        descriptor: connection.as_fd(),
        preread: &[],
        metadata: b"anything",
        service: b"web",
        correlation: b"",
        user_data: 7,
        timeout: None,
        tls: false,
        more: false,
    }
}

/// Offers a connection, whose socket the test keeps until the verdict.
pub fn place(broker: &mut Broker, offer: &Offer<'_>) -> Result<u64, BrokerError> {
    // SAFETY: see above.
    unsafe { broker.offer(offer) }
}

pub fn directory_path(fleet: &Fleet) -> PathBuf {
    let mut path = fleet.directory.path().as_os_str().to_owned();
    path.push("/");
    path.into()
}

pub fn phases(fleet: &mut Fleet) -> Vec<Phase> {
    (0..).map_while(|index| Some(fleet.broker.backend_state(index)?.phase)).collect()
}

/// Dispatches for so long.
pub fn run(fleet: &mut Fleet, time: Duration) {
    let start = Instant::now();
    fleet.until(|_| start.elapsed() >= time);
}
