//! Counts handoffs, and takes the time and the processor time of those after the first `warm`.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

pub struct Measurement {
    side: &'static str,
    warm: usize,
    count: usize,
    done: usize,
    marks: Vec<(Instant, Duration)>,
}

impl Measurement {
    pub fn new(side: &'static str, warm: usize, count: usize) -> Self {
        let mut measurement = Self { side, warm, count, done: 0, marks: Vec::with_capacity(2) };
        if warm == 0 {
            measurement.mark();
        }
        measurement
    }

    fn mark(&mut self) {
        self.marks.push((Instant::now(), processor_time()));
    }

    pub fn step(&mut self) {
        self.done += 1;
        if self.done == self.warm || self.is_finished() {
            self.mark();
        }
    }

    pub fn is_finished(&self) -> bool {
        self.done == self.warm + self.count
    }

    pub fn report(&self) -> io::Result<()> {
        let (start, end) = (self.marks[0], self.marks[1]);
        let status = fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        println!(
            "{} {} {} {}",
            self.side,
            (end.0 - start.0).as_nanos(),
            (end.1 - start.1).as_nanos(),
            peak.and_then(|peak| peak.split_whitespace().next()).unwrap_or("0")
        );
        Ok(())
    }
}

fn processor_time() -> Duration {
    // SAFETY: a struct of numbers, which getrusage(2) fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    let microseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Duration::from_micros(microseconds(usage.ru_utime) + microseconds(usage.ru_stime))
}

/// Where the backend runs, if it may not run everywhere.
pub fn pin_backend() -> io::Result<()> {
    let Ok(cpu) = std::env::var("BACKEND_CPU") else { return Ok(()) };
    // SAFETY: a set of ours, of which zero is the empty one.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu.parse().expect("a number"), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// 10,000 connections in flight are more than the usual limit.
pub fn raise_descriptor_limit() -> io::Result<()> {
    // SAFETY: both calls read or fill a struct of ours.
    let result = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
