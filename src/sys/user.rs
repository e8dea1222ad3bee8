//! Numbers of users and groups in a user namespace.
//!
//! Whoever has no number in this process's namespace appears as the overflow user or group, usually
//! 65534, user_namespaces(7). That number names one user only if nobody is without a number.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the kernel begins with, DEFAULT_OVERFLOWUID in `include/linux/highuid.h`.
const DEFAULT_OVERFLOW: u32 = 65534;
/// How many numbers there are: all of 32 bits but -1, which is nobody.
const ALL: u64 = u32::MAX as u64;

/// One of the two kinds of number.
struct Numbers {
    /// Holds the overflow number.
    setting: &'static str,
    /// Which numbers stand for whom, user_namespaces(7).
    map: &'static str,
    /// One more than the setting, once it is read: it is the whole system's and set at boot.
    overflow: AtomicU64,
}

static USERS: Numbers = Numbers {
    setting: "/proc/sys/kernel/overflowuid",
    map: "/proc/self/uid_map",
    overflow: AtomicU64::new(0),
};
static GROUPS: Numbers = Numbers {
    setting: "/proc/sys/kernel/overflowgid",
    map: "/proc/self/gid_map",
    overflow: AtomicU64::new(0),
};

/// Whether a user's number, as the kernel told it, names one user.
pub(crate) fn names_one_user(user: u32) -> bool {
    USERS.name_one(user)
}

/// Whether a group's number, as the kernel told it, names one group.
pub(crate) fn names_one_group(group: u32) -> bool {
    GROUPS.name_one(group)
}

impl Numbers {
    /// Without /proc nobody can tell, so the usual overflow number is none that names one.
    fn name_one(&self, number: u32) -> bool {
        number != self.overflow()
            // Not kept: unshare(2) changes the namespace.
            || read(self.map, &mut [0; 4096]).is_some_and(maps_all)
    }

    fn overflow(&self) -> u32 {
        if let Some(overflow) = self.overflow.load(Ordering::Relaxed).checked_sub(1) {
            return overflow as u32;
        }
        let setting = read(self.setting, &mut [0; 16]).and_then(|text| text.trim().parse().ok());
        if let Some(setting) = setting {
            self.overflow.store(u64::from(setting) + 1, Ordering::Relaxed);
        }
        setting.unwrap_or(DEFAULT_OVERFLOW)
    }
}

/// Whether a map leaves nobody without a number, as that of the first namespace: it has a line for
/// each range, whose third number is the length. A namespace cannot map whom the one around it does
/// not.
fn maps_all(map: &str) -> bool {
    let length = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    map.lines().map(|line| length(line).unwrap_or(0)).sum::<u64>() == ALL
}

/// A small file of /proc; what does not fit is left out.
fn read<'a>(path: &str, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut file = File::open(path).ok()?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]).ok()? {
            0 => break,
            count => len += count,
        }
    }
    std::str::from_utf8(&buffer[..len]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(setting: &'static str, map: &'static str) -> Numbers {
        Numbers { setting, map, overflow: AtomicU64::new(0) }
    }

    #[test]
    fn only_a_map_of_all_numbers_leaves_nobody_out() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(maps_all("0 0 1000\n1000 1000 1\n1001 1001 4294966294\n"));
        for map in ["", "65534 4001 1\n", "0 100000 65536\n", "0 0 4294967294\n", "nonsense\n"] {
            assert!(!maps_all(map), "{map}");
        }
    }

    #[test]
    fn without_proc_the_usual_overflow_number_names_nobody() {
        let numbers = numbers("/nowhere/overflowuid", "/nowhere/uid_map");
        assert!(!numbers.name_one(DEFAULT_OVERFLOW));
        assert!(numbers.name_one(0) && numbers.name_one(1000));
    }

    #[test]
    fn overflow_number_is_the_one_that_the_system_has() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            &*path.into_os_string().into_string().unwrap().leak()
        };
        let (setting, part) = (file("setting", "1000\n"), file("map", "0 0 65536\n"));
        let inside = numbers(setting, part);
        assert!(!inside.name_one(1000) && inside.name_one(DEFAULT_OVERFLOW));
        let outside = numbers(setting, file("all", "0 0 4294967295\n"));
        assert!(outside.name_one(1000));
    }
}
