//! A guest's memory: a memfd, mapped here and given to the daemon.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

/// Guest physical address of the memory's first byte.
pub(crate) const BASE: u64 = 0x4000_0000;

/// Memory of a guest. Offsets are bytes from its start.
pub(crate) struct Memory {
    pub(crate) fd: OwnedFd,
    at: NonNull<c_void>,
    len: usize,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(&fd, i64::try_from(len).expect("fits")).expect("memory");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, of a file of that length.
        let at =
            unsafe { mmap(None, NonZeroUsize::new(len).expect("not empty"), protection, MapFlags::MAP_SHARED, &fd, 0) };
        Self { fd, at: at.expect("a mapping"), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address by which the frontend names the memory's first byte.
    pub(crate) fn user_address(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "{offset:#x} + {len:#x}");
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.at.as_ptr().cast::<u8>().add(offset) }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.pointer(offset, bytes.len());
        // SAFETY: both are valid for that many bytes and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.pointer(offset, out.len());
        // SAFETY: both are valid for that many bytes and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    pub(crate) fn u16(&self, offset: usize) -> &AtomicU16 {
        assert!(offset.is_multiple_of(2));
        // SAFETY: inside the mapping, aligned, and mapped as long as `self` lives.
        unsafe { AtomicU16::from_ptr(self.pointer(offset, 2).cast()) }
    }

    pub(crate) fn load(&self, offset: usize) -> u16 {
        self.u16(offset).load(Ordering::Acquire)
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing borrowed from it is left.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}
