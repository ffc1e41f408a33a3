//! Containment of SIGBUS: a guest's memory file that shrinks under our mapping costs that guest its port, no one else.
//!
//! Theory of operation. Whoever maps a guest's memory guards each mapping with [`guard`]. An access beyond the end of
//! the file raises SIGBUS in the accessing thread, whichever that is; the handler looks the address up, maps anonymous
//! zero pages over the whole mapping, marks the guard and returns, and the access is tried again and succeeds.
//! [`faults`] counts such events, so that a worker sees with one relaxed load that it should look at its guards.
//!
//! The handler runs at any point of any thread, so it only touches a fixed table of atomics and makes one system call.
//! A slot is taken by writing its length last and given up by clearing its length first; the thread that faults is
//! using the mapping, so its guard cannot be given up meanwhile.
//!
//! Limits: [`GUARDS_MAX`] mappings at a time. A SIGBUS from anywhere else ends the process, as it should.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Mappings that can be guarded at a time: 1,024 ports with 16 regions each.
pub const GUARDS_MAX: usize = 16_384;

struct Slot {
    taken: AtomicBool,
    base: AtomicUsize,
    /// Zero while the slot guards nothing.
    len: AtomicUsize,
    faulted: AtomicBool,
}

static SLOTS: [Slot; GUARDS_MAX] = [const {
    Slot {
        taken: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; GUARDS_MAX];
/// One more than the highest slot that was ever taken.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// One guarded mapping. Dropped before the mapping is unmapped.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Whether the memory behind the mapping has gone away. What is read there since is zero.
    pub fn faulted(&self) -> bool {
        SLOTS[self.slot].faulted.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &SLOTS[self.slot];
        slot.len.store(0, Ordering::SeqCst);
        slot.taken.store(false, Ordering::SeqCst);
    }
}

/// Mappings that have faulted since the process began.
#[inline]
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Guards the mapping of `len` bytes at `base`: one made with mmap, shared, readable and writable, that stays as long
/// as the guard.
///
/// # Errors
/// When [`GUARDS_MAX`] mappings are guarded already.
pub fn guard(base: *const u8, len: usize) -> io::Result<Guard> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    for (index, slot) in SLOTS.iter().enumerate() {
        if slot.taken.load(Ordering::Relaxed) || slot.taken.swap(true, Ordering::SeqCst) {
            continue;
        }
        slot.faulted.store(false, Ordering::SeqCst);
        slot.base.store(base as usize, Ordering::SeqCst);
        slot.len.store(len, Ordering::SeqCst);
        SLOTS_USED.fetch_max(index + 1, Ordering::SeqCst);
        return Ok(Guard { slot: index });
    }
    Err(io::Error::other("too many guarded mappings"))
}

fn install() {
    // SAFETY: an all-zero sigaction is a valid one to fill in. The handler only does what a signal handler may (see the
    // theory of operation), and the arguments are valid for the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, and SIGBUS fills in the address. errno is this
    // thread's own.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    if !cover(address) {
        // SAFETY: restores the default action: the access is tried again and ends the process.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Maps zero pages over the guarded mapping that holds `address`. Returns false when none does.
fn cover(address: usize) -> bool {
    for slot in &SLOTS[..SLOTS_USED.load(Ordering::SeqCst)] {
        let (base, len) = (slot.base.load(Ordering::SeqCst), slot.len.load(Ordering::SeqCst));
        if len == 0 || address < base || address - base >= len {
            continue;
        }
        // SAFETY: base and len are a mapping that is in use (the faulting thread is using it), so MAP_FIXED replaces
        // that mapping and nothing else; zero pages are as good as any other content that the guest may write.
        let mapped = unsafe {
            libc::mmap(
                base as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.faulted.store(true, Ordering::SeqCst);
        FAULTS.fetch_add(1, Ordering::SeqCst);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    const LEN: usize = 64 * 1024;

    fn map(file: &File) -> *mut u8 {
        // SAFETY: a new shared mapping of a file that is LEN bytes long.
        let at = unsafe {
            let flags = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), LEN, flags, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        at.cast()
    }

    #[test]
    fn a_truncated_file_reads_as_zero_in_every_thread_and_marks_its_guard_alone() {
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        file.set_len(LEN as u64).unwrap();
        other.set_len(LEN as u64).unwrap();
        let (at, beside) = (map(&file), map(&other));
        let (guarded, untouched) = (guard(at, LEN).unwrap(), guard(beside, LEN).unwrap());
        // SAFETY: inside the mapping.
        unsafe { at.write_volatile(7) };
        let before = faults();
        file.set_len(0).unwrap();
        let address = at as usize;
        let threads: Vec<_> = (0..4)
            .map(|i| {
                // SAFETY: inside the mapping, which stays mapped until the threads are joined.
                std::thread::spawn(move || unsafe { (address as *const u8).add(i * 4096).read_volatile() })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 0);
        }
        assert!(guarded.faulted());
        assert!(!untouched.faulted());
        assert!(faults() > before);
        drop((guarded, untouched));
        // SAFETY: nobody uses the mappings any more.
        unsafe {
            libc::munmap(at.cast(), LEN);
            libc::munmap(beside.cast(), LEN);
        }
    }
}
