//! What the fuzz targets share: reading an input field by field, a guest's memory between guard pages, a host of a
//! loopback interface alone, packets, and the canary.

pub mod loopback;
pub mod memory;
pub mod packet;
pub mod receiver;

use std::sync::OnceLock;

/// An input, read from its front. What is not there reads as zero.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// An input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `n` bytes, or what is left.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(n.min(self.0.len()));
        self.0 = left;
        taken
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A number of 8 bits.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// With the variable `FUZZ_CANARY` this panics when `bytes` begins with four certain bytes, and otherwise asks its
/// caller to do no more. Each byte has a branch of its own, so that a fuzzer without coverage would need billions of
/// inputs, and one that keeps what reaches a new edge finds them one by one.
pub fn canary(bytes: &[u8]) -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    let is_wanted = *WANTED.get_or_init(|| std::env::var_os("FUZZ_CANARY").is_some());
    if is_wanted && bytes.first() == Some(&b'G') {
        reached(1);
        if bytes.get(1) == Some(&b'W') {
            reached(2);
            if bytes.get(2) == Some(&b'I') {
                reached(3);
                assert_ne!(bytes.get(3), Some(&b'R'), "the canary");
            }
        }
    }
    is_wanted
}

/// Keeps the compiler from making one comparison of many.
#[inline(never)]
fn reached(step: u32) {
    std::hint::black_box(step);
}
