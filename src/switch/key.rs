//! What entries are found by, and the keyed hash that says where they are.

/// A VLAN id and a station's address in one word, never 0: bit 63 is set, then 3 unused bits, the VLAN id in 12 and the
/// address in 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

const KEY_BIT: u64 = 1 << 63;

impl Key {
    /// What stands in a slot without an entry; equal to no key that [`Key::new`] makes.
    pub(super) const NONE: Self = Self(0);

    /// `vlan_id` in its low 12 bits, `address` in its low 48.
    #[inline]
    pub(super) const fn new(vlan_id: u16, address: u64) -> Self {
        Self(KEY_BIT | (vlan_id as u64 & 0x0fff) << 48 | address & 0xffff_ffff_ffff)
    }

    /// The station's address.
    pub(super) fn address(self) -> [u8; 6] {
        let [_, _, address @ ..] = self.0.to_be_bytes();
        address
    }

    #[inline]
    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// The hash of a key: two independent halves, one for each of the two places an entry may be in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hash(u64);

impl Hash {
    #[inline]
    pub(super) fn first(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(super) fn second(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A hash function out of a family that the seed chooses from.
///
/// Guests choose keys, so the places of keys must not be theirs to choose. The first step is Dietzfelbinger's
/// multiply-shift with a secret factor and addend of 128 bits, which is strongly universal: two different keys,
/// whichever they are, collide as rarely as random ones. That promise is for pairs; keys in arithmetic progression, as
/// a guest would count them up, may still bunch. The second step, the two halves of a product with another secret
/// folded onto each other, is not linear and breaks progressions up. Both together are four multiplications;
/// SipHash-1-3 would be the textbook's answer and takes longer than all the rest of a verdict. What it would add,
/// safety from a guest that sees hashes, is not needed: none is ever shown, and one that guesses them from timing gains
/// a search of bounded length in the table.
#[derive(Clone, Debug)]
pub(super) struct Hasher {
    factor: u128,
    addend: u128,
    mask: u64,
    fold: u64,
}

impl Hasher {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || splitmix(&mut state);
        let mut next_wide = || u128::from(next()) << 64 | u128::from(next());
        let (factor, addend) = (next_wide(), next_wide());
        // An odd factor, so that the low half of the product keeps every bit.
        Self { factor, addend, mask: next(), fold: next() | 1 }
    }

    #[inline]
    pub(super) fn hash(&self, key: Key) -> Hash {
        let universal = (self.factor.wrapping_mul(u128::from(key.0)).wrapping_add(self.addend) >> 64) as u64;
        let product = u128::from(universal ^ self.mask) * u128::from(self.fold);
        Hash(product as u64 ^ (product >> 64) as u64)
    }
}

/// One step of the splitmix64 generator, which makes many words of one seed.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_with_vlan_and_address_and_are_never_none() {
        assert!(!Key::new(0, 0).is_none());
        assert_ne!(Key::new(1, 5), Key::new(2, 5));
        assert_ne!(Key::new(1, 5), Key::new(1, 6));
        assert_eq!(Key::new(0xf001, 5), Key::new(1, 5));
    }

    /// Key sets as guests would choose them must fill 1024 places as evenly as random numbers do, in each half: the
    /// chi-squared statistic of 1023 degrees of freedom has mean 1023 and deviation 45.
    #[test]
    fn structured_keys_spread_like_random_ones() {
        type Set = (&'static str, fn(u64) -> Key);
        let sets: [Set; 5] = [
            ("counted up", |i| Key::new(0, 0x5254_0000_0000 + i)),
            ("counted in the vendor's half", |i| Key::new(0, 0x0200_0012_3456 + (i << 26))),
            ("steps of 2^16", |i| Key::new(0, 0x0200_0000_0000 + (i << 16))),
            ("steps of an odd number", |i| Key::new(7, 0x0200_0000_0000 + i * 0x0001_2345_6789 % (1 << 40))),
            ("one address in each VLAN", |i| Key::new(i as u16, 0x5254_0000_0001 + (i >> 12 << 12))),
        ];
        for seed in 0..8 {
            let hasher = Hasher::new(seed);
            for (name, key_at) in &sets {
                for half in [Hash::first as fn(Hash) -> u32, Hash::second] {
                    let (keys, mut places) = (16_384_u32, [0_u32; 1024]);
                    for i in 0..keys {
                        places[half(hasher.hash(key_at(u64::from(i)))) as usize % 1024] += 1;
                    }
                    let expected = f64::from(keys) / 1024.0;
                    let chi: f64 = places.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
                    assert!(chi < 1023.0 + 6.0 * 45.0, "seed {seed}, {name}: {chi}");
                }
            }
        }
    }
}
