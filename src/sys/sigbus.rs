//! Containment of SIGBUS: a guest's memory file that shrinks under our mapping costs that guest its port, no one else.
//!
//! Theory of operation. Whoever maps a guest's memory guards each mapping with [`guard`]. An access beyond the end of
//! the file raises SIGBUS in the accessing thread, whichever that is; the handler looks the address up, maps anonymous
//! zero pages over the whole mapping, marks the guard and returns, and the access is tried again and succeeds.
//! [`faults`] counts such events, so that a worker sees with one relaxed load that it should look at its guards.
//!
//! The handler runs at any point of any thread, so it only reads atomics and makes one system call. The table is a
//! list of blocks that are never freed, so it can be walked at any time; it grows to the most mappings that were ever
//! guarded at once. A slot is taken by writing its length last and given up by clearing its length first; the thread
//! that faults is using the mapping, so its guard cannot be given up meanwhile. A mapping may be guarded more than
//! once, as when two snapshots share it: a fault marks every guard.
//!
//! A SIGBUS from anywhere else ends the process, as it should.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

const BLOCK_SLOTS: usize = 256;

struct Slot {
    base: AtomicUsize,
    /// Zero while the slot guards nothing.
    len: AtomicUsize,
    faulted: AtomicBool,
}

struct Block {
    slots: [Slot; BLOCK_SLOTS],
    next: AtomicPtr<Block>,
}

impl Slot {
    const fn empty() -> Self {
        Self { base: AtomicUsize::new(0), len: AtomicUsize::new(0), faulted: AtomicBool::new(false) }
    }
}

impl Block {
    const fn new() -> Self {
        let slots = [const { Slot::empty() }; BLOCK_SLOTS];
        Self { slots, next: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Block> {
        // SAFETY: null, or a block that `take_slot` made and that is never freed.
        unsafe { self.next.load(Ordering::SeqCst).as_ref() }
    }
}

static FIRST: Block = Block::new();
/// Held by who takes a slot. The handler does not need it.
static TAKING: Mutex<()> = Mutex::new(());
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Every block there is.
fn blocks() -> impl Iterator<Item = &'static Block> {
    std::iter::successors(Some(&FIRST), |block| block.next())
}

/// One guarded mapping. Dropped before the mapping is unmapped.
pub struct Guard {
    slot: &'static Slot,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("base", &self.slot.base).field("len", &self.slot.len).finish()
    }
}

impl Guard {
    /// Whether the memory behind the mapping has gone away. What is read there since is zero.
    pub fn faulted(&self) -> bool {
        self.slot.faulted.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.len.store(0, Ordering::SeqCst);
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
/// When the signal's action cannot be changed, or there is nothing to guard.
pub fn guard(base: *const u8, len: usize) -> io::Result<Guard> {
    static INSTALL: Once = Once::new();
    // Miri has no signals, and no files that shrink.
    if !cfg!(miri) {
        INSTALL.call_once(install);
    }
    if len == 0 {
        return Err(io::Error::other("a mapping of no bytes"));
    }
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = free_slot();
    slot.faulted.store(false, Ordering::SeqCst);
    slot.base.store(base as usize, Ordering::SeqCst);
    slot.len.store(len, Ordering::SeqCst);
    Ok(Guard { slot })
}

/// A slot that guards nothing. The caller holds [`TAKING`].
fn free_slot() -> &'static Slot {
    let is_free = |slot: &&Slot| slot.len.load(Ordering::SeqCst) == 0;
    if let Some(slot) = blocks().find_map(|block| block.slots.iter().find(is_free)) {
        return slot;
    }
    let block: &'static Block = Box::leak(Box::new(Block::new()));
    if let Some(last) = blocks().last() {
        last.next.store(std::ptr::from_ref(block).cast_mut(), Ordering::SeqCst);
    }
    &block.slots[0]
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
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, and a fault's has the address. errno is this
    // thread's own.
    let (is_fault, address, errno) =
        unsafe { ((*info).si_code > 0, (*info).si_addr() as usize, *libc::__errno_location()) };
    if !is_fault || !cover(address) {
        // SAFETY: restores the default action. A fault happens again and ends the process; a signal that somebody has
        // sent does not, and is raised anew.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            if !is_fault {
                libc::raise(libc::SIGBUS);
            }
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Maps zero pages over the guarded mapping that holds `address`. Returns false when none does.
fn cover(address: usize) -> bool {
    let mut covered = false;
    for slot in blocks().flat_map(|block| &block.slots) {
        let (base, len) = (slot.base.load(Ordering::SeqCst), slot.len.load(Ordering::SeqCst));
        if len == 0 || address < base || address - base >= len {
            continue;
        }
        // A slot that was given up and taken anew between the two reads is not the one that holds the address, unless
        // it is read again.
        if slot.base.load(Ordering::SeqCst) != base || slot.len.load(Ordering::SeqCst) != len {
            continue;
        }
        covered = covered || replace(base, len);
        if !covered {
            return false;
        }
        slot.faulted.store(true, Ordering::SeqCst);
        FAULTS.fetch_add(1, Ordering::SeqCst);
    }
    covered
}

/// Maps zero pages over a mapping.
fn replace(base: usize, len: usize) -> bool {
    // SAFETY: base and len are a mapping that is in use (the faulting thread is using it), so MAP_FIXED replaces that
    // mapping and nothing else; zero pages are as good as any other content that the guest may write.
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
    mapped != libc::MAP_FAILED
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

    #[test]
    fn every_guard_of_a_mapping_is_marked_and_slots_are_used_again() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let at = map(&file);
        let guards: Vec<_> = (0..2 * BLOCK_SLOTS + 1).map(|_| guard(at, LEN).unwrap()).collect();
        let blocks_before = blocks().count();
        file.set_len(0).unwrap();
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { at.add(LEN - 1).read_volatile() }, 0);
        assert!(guards.iter().all(Guard::faulted));
        drop(guards);
        let again: Vec<_> = (0..BLOCK_SLOTS).map(|_| guard(at, LEN).unwrap()).collect();
        assert!(!again.iter().any(Guard::faulted));
        assert_eq!(blocks().count(), blocks_before);
        drop(again);
        // SAFETY: nobody uses the mapping any more.
        unsafe { libc::munmap(at.cast(), LEN) };
    }

    /// Runs the named test in a process of its own, in which it takes the other branch, and says which signal ended it.
    fn signal_of(test: &str) -> Option<i32> {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let name = format!("sys::sigbus::tests::{test}");
        let output = child.args(["--exact", &name]).env("GUESTWIRE_SIGBUS_CHILD", "1").output().unwrap();
        std::os::unix::process::ExitStatusExt::signal(&output.status)
    }

    fn is_child() -> bool {
        std::env::var_os("GUESTWIRE_SIGBUS_CHILD").is_some()
    }

    #[test]
    fn a_fault_elsewhere_ends_the_process() {
        if !is_child() {
            assert_eq!(signal_of("a_fault_elsewhere_ends_the_process"), Some(libc::SIGBUS));
            return;
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let at = map(&file);
        drop(guard(at, LEN).unwrap());
        file.set_len(0).unwrap();
        // SAFETY: the address is mapped; that its page is not there is the point.
        unsafe { at.read_volatile() };
    }

    #[test]
    fn a_signal_that_was_sent_ends_the_process() {
        if !is_child() {
            assert_eq!(signal_of("a_signal_that_was_sent_ends_the_process"), Some(libc::SIGBUS));
            return;
        }
        let byte = 0u8;
        drop(guard(&raw const byte, 1).unwrap());
        // SAFETY: sends a signal to ourselves.
        unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
        std::thread::park();
    }
}
