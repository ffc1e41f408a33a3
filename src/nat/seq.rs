//! TCP sequence numbers (RFC 9293, 3.4): numbers on a circle.

/// A sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// The number `n` bytes further on.
    pub(super) fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// How many bytes it is further on than `other`, which is not after it.
    pub(super) fn since(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }

    /// Whether it comes before `other`: whether that is less than half the circle further on.
    pub(super) fn is_before(self, other: Self) -> bool {
        other.since(self).wrapping_sub(1) < 1 << 31
    }

    /// The later of two.
    pub(super) fn max(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_holds_around_the_circle(start: u32, n in 1_u32..1 << 31) {
            let (a, b) = (Seq(start), Seq(start).plus(n));
            prop_assert!(a.is_before(b) && !b.is_before(a) && !a.is_before(a));
            prop_assert_eq!((b.since(a), a.max(b), b.max(a)), (n, b, b));
        }
    }
}
