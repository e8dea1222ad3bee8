//! Takes each path once to warm up and once to be counted, and prints their names; to be run by
//! instructions.py under callgrind, which collects in `counted` only. Or with two numbers, for calls.py:
//! hands over with so many in flight, so often.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

/// What callgrind counts: it finds this by its name.
#[unsafe(no_mangle)]
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
}

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).map(|it| it.parse().unwrap()).collect();
    if let [in_flight, rounds] = numbers[..] {
        return handoff_micro::handoff(in_flight, rounds)();
    }
    for mut path in handoff_micro::paths() {
        (path.run)();
        counted(&mut path.run);
        println!("{}\t{}", path.times, path.name);
    }
}

/// The same bytes in every run, in place of the C library's: with random tokens, and random keys of
/// the token store, its hash table would be another each time.
fn fill(bytes: *mut c_void, len: usize) {
    static STATE: AtomicU64 = AtomicU64::new(1);
    // SAFETY: whoever calls gives that much room.
    let bytes = unsafe { std::slice::from_raw_parts_mut(bytes.cast::<u8>(), len) };
    for eight in bytes.chunks_mut(8) {
        // xorshift64*
        let mut state = STATE.load(Ordering::Relaxed);
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        STATE.store(state, Ordering::Relaxed);
        let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
        eight.copy_from_slice(&random[..eight.len()]);
    }
}

/// getentropy(3).
///
/// # Safety
///
/// `bytes` has room for `len`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getentropy(bytes: *mut c_void, len: usize) -> c_int {
    fill(bytes, len);
    0
}

/// getrandom(2).
///
/// # Safety
///
/// `bytes` has room for `len`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(bytes: *mut c_void, len: usize, _flags: c_uint) -> isize {
    fill(bytes, len);
    len as isize
}
