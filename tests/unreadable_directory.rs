//! A directory of backends that cannot be read for a while. In a process of its own, whose limit of
//! descriptors it lowers.

use std::path::Path;
use std::time::{Duration, Instant};

use handoff::backend::{Backend, BackendOptions};
use handoff::broker::{Broker, BrokerOptions, Phase};
use tempfile::TempDir;

#[test]
fn backends_stay_while_their_directory_cannot_be_read() {
    let directory = TempDir::new().unwrap();
    let mut path = directory.path().as_os_str().to_owned();
    path.push("/");
    let mut backend =
        Backend::listen(&directory.path().join("one"), BackendOptions::default()).unwrap();
    let mut broker = Broker::new(Path::new(&path), BrokerOptions::default()).unwrap();
    let start = Instant::now();
    while broker.backend_state(0).is_none_or(|state| state.phase != Phase::Ready) {
        broker.dispatch().unwrap();
        backend.dispatch().unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "no channel");
    }
    // More changes than the kernel queues, inotify(7), so that the directory is read again.
    let queued = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for _ in 0..queued.trim().parse::<usize>().unwrap() / 2 + 10 {
        let path = directory.path().join("file");
        std::fs::write(&path, b"").unwrap();
        std::fs::remove_file(&path).unwrap();
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are to what the calls ask for.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 3, ..limit });
    }
    broker.dispatch().unwrap();
    // SAFETY: as above. To remove the directory takes a descriptor.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert!(broker.backend_state(0).is_some_and(|state| state.phase == Phase::Ready));
}
