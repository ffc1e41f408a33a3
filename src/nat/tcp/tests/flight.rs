//! Frames on their way.

/// A frame, and whom it is for.
#[derive(Debug)]
pub(super) enum Flight {
    ToGuest(Vec<u8>),
    ToHost(Vec<u8>),
}

/// One that is on its way; the first to arrive is the least.
#[derive(Debug)]
pub(super) struct Flying {
    /// When it arrives, and the number of its sending.
    pub(super) order: (u64, u64),
    pub(super) flight: Flight,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Flying {}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flying {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}
