//! The hash table that holds the entries of all ports.
//!
//! Theory of operation. An entry is in one of two buckets, which its key's hash names (cuckoo hashing); a bucket is one
//! cache line of four entries. So a look-up reads two lines at most, and almost always one, because an entry goes to
//! its first bucket if that has room. There are no chains and no probe sequences, so removing an entry empties its slot
//! and leaves nothing behind that could slow later look-ups.
//!
//! An entry whose two buckets are full makes room: [`Table::path_to_room`] searches breadth first for a short row of
//! entries that can each step to their other bucket, and looks at [`SEARCH_BUCKETS_MAX`] buckets at most. At the fill
//! that the table keeps, all of them being full has a probability that is no concern, unless keys
//! were chosen by somebody who knows the hash's secret. Even then the answer is defined: the table grows by one
//! segment, the entry is tried once more, and if it still finds no room it is refused. The frame that brought it is
//! forwarded all the same, and the address stays unknown until a frame from it finds room.
//!
//! The table grows by one bucket at a time (linear hashing): while `2^n` to `2^(n+1)` buckets exist, a hash is taken to
//! `n + 1` bits, or to `n` if no such bucket exists yet. A new bucket takes its entries from exactly one old one. So no
//! insertion moves more than a path and one bucket's entries, and there is never a moment at which the whole table is
//! moved while frames wait. Buckets are allocated in segments of a page, the first one with the first entry. The table
//! does not shrink when entries go; it is released when a port goes and leaves no entries, and its size is bounded by
//! what all ports' shares once held at the same time.

use super::PORTS_MAX;
use super::key::{Hash, Hasher, Key};
use super::share::ADDRESSES_PER_PORT_MAX;

/// Entries in a bucket.
const SLOTS: usize = 4;

/// Buckets in a segment, the unit of allocation: 4 KiB.
const SEGMENT_BUCKETS: usize = 64;

/// Buckets at most. Every port's share fits in at the fill that [`Table::insert`] keeps.
const BUCKETS_MAX: usize = 1 << 21;

/// The fill above which an insertion adds a bucket, as a part of the slots: one half. With more, fewer entries are in
/// the first of their buckets.
const FILL_MAX: (usize, usize) = (1, 2);

/// Buckets that one search for room looks at.
const SEARCH_BUCKETS_MAX: usize = 64;

const _: () = assert!(size_of::<Bucket>() == 64);
const _: () = assert!(SEGMENT_BUCKETS.is_power_of_two() && SEGMENT_BUCKETS < BUCKETS_MAX);
const _: () = assert!(PORTS_MAX * ADDRESSES_PER_PORT_MAX * FILL_MAX.1 <= BUCKETS_MAX * SLOTS * FILL_MAX.0);
const _: () = assert!(BUCKETS_MAX <= u32::MAX as usize && SEARCH_BUCKETS_MAX <= u8::MAX as usize);

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Index of the port it is behind.
    pub(super) port: u16,
    /// Its node in that port's share.
    pub(super) node: u16,
    /// The second in which it was last seen.
    pub(super) stamp_s: u32,
}

impl Value {
    const NONE: Self = Self { port: 0, node: 0, stamp_s: 0 };
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket {
    keys: [Key; SLOTS],
    values: [Value; SLOTS],
}

impl Bucket {
    const EMPTY: Self = Self { keys: [Key::NONE; SLOTS], values: [Value::NONE; SLOTS] };

    #[inline]
    fn slot_of(&self, key: Key) -> Option<usize> {
        // One branch whose outcome can be predicted, instead of one for each slot, whose can not.
        let found = (0..SLOTS).fold(0_u32, |found, slot| found | u32::from(self.keys[slot] == key) << slot);
        if found == 0 { None } else { Some(found.trailing_zeros() as usize % SLOTS) }
    }
}

/// A bucket that the search for room looks at, and how it came there: the entry in `slot` of the bucket of step
/// `parent` could step into this one.
#[derive(Clone, Copy)]
struct Step {
    bucket: u32,
    parent: u8,
    slot: u8,
}

/// The parent of the two buckets a search starts from.
const NO_STEP: u8 = u8::MAX;

/// A table from keys to values.
#[derive(Debug)]
pub(super) struct Table {
    segments: Vec<Box<[Bucket; SEGMENT_BUCKETS]>>,
    /// Buckets in use: 0, or from `low_mask + 1` up to twice that, less one.
    buckets: usize,
    /// What takes a hash to a bucket that surely exists; one bit more is tried first.
    low_mask: usize,
    entries: usize,
    buckets_max: usize,
    hasher: Hasher,
}

impl Table {
    pub(super) fn new(hasher: Hasher) -> Self {
        Self {
            segments: Vec::new(),
            buckets: 0,
            low_mask: SEGMENT_BUCKETS - 1,
            entries: 0,
            buckets_max: BUCKETS_MAX,
            hasher,
        }
    }

    // Inlined always: a verdict's time is two of these, and a call added a quarter to it.
    #[inline(always)]
    pub(super) fn get(&self, key: Key) -> Option<Value> {
        let (bucket, slot) = self.locate(key)?;
        Some(self.bucket(bucket).values[slot])
    }

    /// Reads something of the cache line that [`Self::get`] will want for `key`.
    #[inline]
    pub(super) fn touch(&self, key: Key) -> Key {
        if self.buckets == 0 {
            return Key::NONE;
        }
        self.bucket(self.index(self.hasher.hash(key).first())).keys[0]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Value> {
        let (bucket, slot) = self.locate(key)?;
        Some(&mut self.bucket_mut(bucket).values[slot])
    }

    /// Adds an entry for a key that has none. `false` if there is no room for it.
    #[must_use]
    pub(super) fn insert(&mut self, key: Key, value: Value) -> bool {
        debug_assert!(self.locate(key).is_none());
        if self.entries * FILL_MAX.1 >= self.buckets * SLOTS * FILL_MAX.0 {
            self.grow();
        }
        if !self.place(key, value) {
            for _ in 0..SEGMENT_BUCKETS {
                self.grow();
            }
            if !self.place(key, value) {
                return false;
            }
        }
        self.entries += 1;
        true
    }

    pub(super) fn remove(&mut self, key: Key) {
        let Some((bucket, slot)) = self.locate(key) else { return };
        self.bucket_mut(bucket).keys[slot] = Key::NONE;
        self.entries -= 1;
    }

    /// Gives all memory back if there are no entries.
    pub(super) fn release_if_empty(&mut self) {
        if self.entries == 0 {
            (self.segments, self.buckets, self.low_mask) = (Vec::new(), 0, SEGMENT_BUCKETS - 1);
        }
    }

    #[inline]
    fn bucket(&self, index: usize) -> &Bucket {
        &self.segments[index / SEGMENT_BUCKETS][index % SEGMENT_BUCKETS]
    }

    #[inline]
    fn bucket_mut(&mut self, index: usize) -> &mut Bucket {
        &mut self.segments[index / SEGMENT_BUCKETS][index % SEGMENT_BUCKETS]
    }

    /// The bucket that one half of a hash names.
    #[inline]
    fn index(&self, half: u32) -> usize {
        let wide = half as usize & (self.low_mask << 1 | 1);
        if wide < self.buckets { wide } else { half as usize & self.low_mask }
    }

    #[inline(always)]
    fn locate(&self, key: Key) -> Option<(usize, usize)> {
        if self.buckets == 0 {
            return None;
        }
        let hash = self.hasher.hash(key);
        let first = self.index(hash.first());
        if let Some(slot) = self.bucket(first).slot_of(key) {
            return Some((first, slot));
        }
        let second = self.index(hash.second());
        self.bucket(second).slot_of(key).map(|slot| (second, slot))
    }

    /// Puts an entry into a slot, after moving others out of the way if need be.
    fn place(&mut self, key: Key, value: Value) -> bool {
        if self.buckets == 0 {
            return false;
        }
        let mut steps = [Step { bucket: 0, parent: NO_STEP, slot: 0 }; SEARCH_BUCKETS_MAX];
        let Some((end, slot)) = self.path_to_room(self.hasher.hash(key), &mut steps) else { return false };
        let (mut step, mut free) = (steps[end], (steps[end].bucket as usize, slot));
        while step.parent != NO_STEP {
            let parent = steps[usize::from(step.parent)];
            let from = (parent.bucket as usize, usize::from(step.slot));
            self.move_entry(from, free);
            (step, free) = (parent, from);
        }
        let bucket = self.bucket_mut(free.0);
        (bucket.keys[free.1], bucket.values[free.1]) = (key, value);
        true
    }

    /// Searches for an empty slot from both buckets of a hash. Returns the step that found it and the slot; following
    /// the parents from there leads back to one of the two buckets.
    fn path_to_room(&self, hash: Hash, steps: &mut [Step; SEARCH_BUCKETS_MAX]) -> Option<(usize, usize)> {
        steps[0].bucket = self.index(hash.first()) as u32;
        steps[1].bucket = self.index(hash.second()) as u32;
        let mut len = 2;
        for i in 0..SEARCH_BUCKETS_MAX {
            if i == len {
                return None;
            }
            let here = steps[i].bucket;
            let bucket = self.bucket(here as usize);
            if let Some(slot) = bucket.slot_of(Key::NONE) {
                return Some((i, slot));
            }
            for (slot, &key) in bucket.keys.iter().enumerate() {
                if len < SEARCH_BUCKETS_MAX {
                    let bucket = self.other_bucket(key, here as usize) as u32;
                    steps[len] = Step { bucket, parent: i as u8, slot: slot as u8 };
                    len += 1;
                }
            }
        }
        None
    }

    /// The bucket that an entry which is in bucket `here` could be in as well.
    fn other_bucket(&self, key: Key, here: usize) -> usize {
        let hash = self.hasher.hash(key);
        match self.index(hash.first()) {
            first if first != here => first,
            _ => self.index(hash.second()),
        }
    }

    fn move_entry(&mut self, from: (usize, usize), to: (usize, usize)) {
        let source = self.bucket_mut(from.0);
        let (key, value) = (source.keys[from.1], source.values[from.1]);
        source.keys[from.1] = Key::NONE;
        let target = self.bucket_mut(to.0);
        debug_assert!(target.keys[to.1].is_none());
        (target.keys[to.1], target.values[to.1]) = (key, value);
    }

    /// Adds a bucket, if there may be more, and gives it the entries that now belong there; the first time, a segment.
    fn grow(&mut self) {
        if self.buckets == self.buckets_max {
            return;
        }
        if self.buckets == self.segments.len() * SEGMENT_BUCKETS {
            self.segments.push(Box::new([Bucket::EMPTY; SEGMENT_BUCKETS]));
        }
        if self.buckets == 0 {
            self.buckets = SEGMENT_BUCKETS;
            return;
        }
        let new = self.buckets;
        let old = new & self.low_mask;
        self.buckets += 1;
        let mut free = 0;
        for slot in 0..SLOTS {
            let key = self.bucket(old).keys[slot];
            if key.is_none() {
                continue;
            }
            let hash = self.hasher.hash(key);
            let (first, second) = (self.index(hash.first()), self.index(hash.second()));
            // An entry that may be in both goes to its first, where it is found sooner.
            if first == new || second == new && first != old {
                self.move_entry((old, slot), (new, free));
                free += 1;
            }
        }
        if self.buckets == (self.low_mask + 1) * 2 {
            self.low_mask = self.low_mask << 1 | 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::new(0, n)
    }

    fn value(n: u64) -> Value {
        Value { port: n as u16, node: (n >> 16) as u16, stamp_s: !n as u32 }
    }

    fn table(seed: u64) -> Table {
        Table::new(Hasher::new(seed))
    }

    /// Keys whose entries must all be in the first two buckets, as long as there is one segment.
    fn colliding_keys(table: &Table, count: usize) -> Vec<u64> {
        let both = |n: u64| {
            let hash = table.hasher.hash(key(n));
            [hash.first(), hash.second()].iter().all(|&half| half as usize % SEGMENT_BUCKETS < 2)
        };
        (0..).filter(|&n| both(n)).take(count).collect()
    }

    impl Table {
        /// Lets the table have its first buckets and no more.
        pub(in crate::switch) fn allow_no_growth(&mut self) {
            self.buckets_max = SEGMENT_BUCKETS;
        }

        /// Checks that there are so many entries and that each is where a look-up finds it, once.
        pub(in crate::switch) fn check(&self, entries: usize) {
            let slots = self.segments.iter().flat_map(|segment| segment.iter()).flat_map(|bucket| &bucket.keys);
            let keys: Vec<Key> = slots.copied().filter(|key| !key.is_none()).collect();
            let unique: std::collections::HashSet<_> = keys.iter().collect();
            assert_eq!((keys.len(), unique.len(), self.entries), (entries, entries, entries));
            assert!(keys.iter().all(|&key| self.locate(key).is_some()));
            assert!(self.buckets == 0 || (self.low_mask + 1..(self.low_mask + 1) * 2).contains(&self.buckets));
        }
    }

    #[test]
    fn every_entry_is_found_at_every_size() {
        let mut table = table(1);
        let mut placed_first = 0_usize;
        for n in 0..20_000 {
            assert_eq!(table.get(key(n)), None);
            assert!(table.insert(key(n), value(n)));
            if n % 97 == 0 {
                table.check(n as usize + 1);
            }
        }
        for n in 0..20_000 {
            assert_eq!(table.get(key(n)), Some(value(n)));
            let (bucket, _) = table.locate(key(n)).unwrap();
            placed_first += usize::from(bucket == table.index(table.hasher.hash(key(n)).first()));
        }
        assert!(placed_first > 16_000, "{placed_first} of 20000 are found in the first line");
        assert!(table.buckets <= 10_000, "{} buckets", table.buckets);
    }

    #[test]
    fn removal_leaves_no_trace() {
        let mut table = table(2);
        for n in 0..3_000 {
            assert!(table.insert(key(n), value(n)));
        }
        let buckets = table.buckets;
        for n in 3_000..200_000 {
            table.remove(key(n - 3_000));
            table.remove(key(n - 3_000));
            assert!(table.insert(key(n), value(n)));
        }
        table.check(3_000);
        assert_eq!(table.buckets, buckets, "churn at one fill does not grow the table");
        for n in 197_000..200_000 {
            assert_eq!(table.get(key(n)), Some(value(n)));
            table.release_if_empty();
            table.remove(key(n));
        }
        table.release_if_empty();
        assert_eq!((table.entries, table.segments.capacity()), (0, 0), "an empty table holds no memory");
        assert!(table.get(key(1)).is_none() && table.insert(key(1), value(1)));
    }

    #[test]
    fn the_table_fills_as_far_as_it_must_with_a_short_search() {
        for seed in 0..4 {
            let mut table = table(seed);
            let mut searched_most = 0;
            for n in 0..100_000 {
                if table.buckets > 0 {
                    let mut steps = [Step { bucket: 0, parent: NO_STEP, slot: 0 }; SEARCH_BUCKETS_MAX];
                    let room = table.path_to_room(table.hasher.hash(key(n)), &mut steps);
                    searched_most = searched_most.max(room.expect("room").0);
                }
                assert!(table.insert(key(n), value(n)));
            }
            assert!(searched_most < SEARCH_BUCKETS_MAX / 2, "seed {seed}: {searched_most} buckets searched");
        }
    }

    #[test]
    fn keys_that_collide_on_purpose_make_the_table_grow() {
        let mut table = table(3);
        let keys = colliding_keys(&table, 20);
        for (i, &n) in keys.iter().enumerate() {
            assert!(table.insert(key(n), value(n)));
            table.check(i + 1);
        }
        assert!(table.buckets > SEGMENT_BUCKETS, "20 entries in two buckets of four");
        assert!(keys.iter().all(|&n| table.get(key(n)) == Some(value(n))));
    }

    #[test]
    fn where_the_table_may_not_grow_an_entry_is_refused_and_the_others_stay() {
        let mut table = table(4);
        table.allow_no_growth();
        let keys = colliding_keys(&table, 12);
        let (fit, refused) = keys.split_at(2 * SLOTS);
        for &n in fit {
            assert!(table.insert(key(n), value(n)));
        }
        for &n in refused {
            assert!(!table.insert(key(n), value(n)));
            table.check(fit.len());
        }
        assert!(fit.iter().all(|&n| table.get(key(n)) == Some(value(n))));
        table.remove(key(fit[3]));
        assert!(table.insert(key(refused[0]), value(7)), "room again");
        assert_eq!(table.get(key(refused[0])), Some(value(7)));
    }
}
