//! The C library's allocator.

/// Has all threads allocate from one arena.
///
/// By default each thread gets one of its own, up to eight for each processor, and it stays when the thread has gone.
/// Every port comes with two threads that hardly ever allocate: the arenas would be most of what a quiet port costs.
pub fn use_one_arena() {
    // SAFETY: sets a number inside the allocator, under its own lock; there is no pointer involved.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}
