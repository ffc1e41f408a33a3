//! The switch against a model that is slow and obvious.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

/// What the model knows of a station.
#[derive(Clone, Copy, Debug)]
struct Seen {
    port: PortId,
    at_s: u32,
    /// Orders the sightings of one second.
    order: u64,
}

/// A present port, in the model.
#[derive(Default)]
struct Port {
    /// Its stations by [`Seen::order`]: the least recently seen first.
    own: BTreeMap<u64, (u16, [u8; 6])>,
    evicted: u64,
    moved: u64,
    flooded_in: u32,
    flooded: u32,
}

/// The switch as its documentation has it. Expired addresses do not exist.
#[derive(Default)]
struct Model {
    stations: HashMap<(u16, [u8; 6]), Seen>,
    ports: BTreeMap<PortId, Port>,
    now_s: u32,
    order: u64,
    burst_copies: u32,
}

impl Model {
    fn begin_burst(&mut self, now_s: u32) {
        self.now_s = self.now_s.max(now_s);
        self.burst_copies = 0;
        let expired = |seen: &Seen| self.now_s - seen.at_s > 300;
        let expired: Vec<_> = self.stations.iter().filter(|(_, seen)| expired(seen)).map(|(&at, _)| at).collect();
        expired.into_iter().for_each(|station| self.forget(station));
    }

    fn remove_port(&mut self, port: PortId) -> bool {
        self.stations.retain(|_, seen| seen.port != port);
        self.ports.remove(&port).is_some()
    }

    fn forget(&mut self, station: (u16, [u8; 6])) {
        let seen = self.stations.remove(&station).unwrap();
        self.ports.get_mut(&seen.port).unwrap().own.remove(&seen.order).unwrap();
    }

    fn learn(&mut self, station: (u16, [u8; 6]), port: PortId) {
        if let Some(&seen) = self.stations.get(&station) {
            if seen.port == port && seen.at_s == self.now_s {
                return;
            }
            self.forget(station);
            self.ports.get_mut(&port).unwrap().moved += u64::from(seen.port != port);
        }
        let owner = self.ports.get_mut(&port).unwrap();
        if owner.own.len() == ADDRESSES_PER_PORT_MAX {
            owner.evicted += 1;
            let (_, oldest) = owner.own.pop_first().unwrap();
            self.stations.remove(&oldest);
        }
        self.order += 1;
        owner.own.insert(self.order, station);
        self.stations.insert(station, Seen { port, at_s: self.now_s, order: self.order });
    }

    fn flood(&mut self, from: PortId) -> Verdict {
        let extra = match self.ports.len() {
            1 => return Verdict::Drop(DropTxAlone),
            ports => ports as u32 - 2,
        };
        let port = self.ports.get_mut(&from).unwrap();
        if port.flooded_in != self.now_s {
            (port.flooded_in, port.flooded) = (self.now_s, 0);
        }
        if self.burst_copies + extra > FLOOD_COPIES_PER_BURST_MAX || port.flooded + extra > FLOOD_COPIES_PER_SECOND_MAX
        {
            return Verdict::Drop(DropTxFloodLimit);
        }
        self.burst_copies += extra;
        port.flooded += extra;
        Verdict::Flood
    }

    fn forward(&mut self, from: PortId, head: &[u8]) -> Verdict {
        if head.len() < 14 || head[12..14] == [0x81, 0x00] && head.len() < 16 {
            return Verdict::Drop(DropTxRunt);
        }
        let address = |at: usize| -> [u8; 6] { head[at..at + 6].try_into().unwrap() };
        let (destination, source) = (address(0), address(6));
        let vlan = if head[12..14] == [0x81, 0x00] { u16::from_be_bytes([head[14], head[15]]) % 4096 } else { 0 };
        if source[0] % 2 == 1 || source == [0; 6] {
            return Verdict::Drop(DropTxBadSource);
        }
        if destination[..5] == [0x01, 0x80, 0xc2, 0, 0] && destination[5] < 16 {
            return Verdict::Drop(DropTxReserved);
        }
        if !self.ports.contains_key(&from) {
            return Verdict::Drop(DropTxDisabled);
        }
        self.learn((vlan, source), from);
        match self.stations.get(&(vlan, destination)) {
            Some(seen) if seen.port == from => Verdict::Drop(DropTxHairpin),
            Some(seen) => Verdict::Forward(seen.port),
            None => self.flood(from),
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Add(PortId),
    Remove(PortId),
    /// So many seconds pass, or time goes back; and a burst starts.
    Burst(i32),
    Frame(PortId, Vec<u8>),
    /// A port is heard from this many stations, from the given one on, in one VLAN.
    Crowd(PortId, u64, u64, u16),
}

fn port() -> impl Strategy<Value = PortId> {
    (0..6_u16).prop_map(PortId)
}

fn destination() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        20 => (0..12_u64).prop_map(station),
        5 => (0..9000_u64).prop_map(station),
        3 => Just(BROADCAST),
        1 => any::<u8>().prop_map(|last| [0x33, 0x33, 0, 0, 0, last]),
        1 => (0..32_u8).prop_map(|last| [0x01, 0x80, 0xc2, 0, 0, last]),
        1 => Just([0; 6]),
    ]
}

fn source() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        30 => (0..12_u64).prop_map(station),
        1 => any::<[u8; 6]>(),
        1 => Just([0; 6]),
    ]
}

fn head() -> impl Strategy<Value = Vec<u8>> {
    let control = prop_oneof![0..3_u16, any::<u16>()];
    let tag = prop_oneof![Just(0x8100_u16), Just(0x88a8)];
    prop_oneof![
        20 => (destination(), source()).prop_map(|(to, from)| untagged(to, from)),
        10 => (destination(), source(), tag, control)
            .prop_map(|(to, from, tag, control)| tagged(to, from, tag, control)),
        1 => (destination(), source(), 0..16_usize)
            .prop_map(|(to, from, len)| tagged(to, from, 0x8100, 1)[..len].to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => port().prop_map(Op::Add),
        2 => port().prop_map(Op::Remove),
        4 => prop::sample::select(vec![0, 1, 150, 299, 300, 301, -5, i32::MAX]).prop_map(Op::Burst),
        60 => (port(), head()).prop_map(|(port, head)| Op::Frame(port, head)),
    ]
}

fn op_with_crowds() -> impl Strategy<Value = Op> {
    let crowd = (port(), 0..6000_u64, 1..5000_u64, 0..2_u16);
    prop_oneof![
        20 => op(),
        4 => crowd.prop_map(|(port, first, count, vlan)| Op::Crowd(port, first, count, vlan)),
    ]
}

/// Both of them, and whether they agree. The switch is asked as a worker asks it: for what is not remembered.
struct Pair {
    switch: Switch,
    recent: HashMap<PortId, Recent>,
    model: Model,
    /// Verdicts that were remembered.
    remembered: usize,
}

impl Pair {
    fn new(seed: u64) -> Self {
        Self { switch: Switch::new(seed), recent: HashMap::new(), model: Model::default(), remembered: 0 }
    }

    fn apply(&mut self, op: &Op) {
        let Self { switch, model, .. } = self;
        match op {
            Op::Add(port) => {
                let is_new = !model.ports.contains_key(port);
                model.ports.entry(*port).or_default();
                assert_eq!(switch.add_port(*port), is_new);
            }
            Op::Remove(port) => assert_eq!(switch.remove_port(*port), model.remove_port(*port)),
            Op::Burst(seconds) => {
                let now_s = model.now_s.saturating_add_signed(*seconds);
                model.begin_burst(now_s);
                switch.begin_burst(now_s);
            }
            Op::Frame(port, head) => self.send(*port, head),
            Op::Crowd(port, first, count, vlan) => {
                for n in *first..first + count {
                    self.send(*port, &tagged(station(n / 2), station(n), 0x8100, *vlan));
                }
            }
        }
    }

    fn send(&mut self, port: PortId, head: &[u8]) {
        let (expected, losses) = (self.model.forward(port, head), self.switch.losses());
        let recent = self.recent.entry(port).or_default();
        // Each frame is a burst here: within one, a port's own losses go unnoticed until the next.
        recent.begin_burst(port, &losses, self.model.now_s);
        let addresses = head.first_chunk().map_or(Addresses::NONE, Addresses::of);
        let verdict = match recent.find(addresses, &losses) {
            Some(to) => {
                self.remembered += 1;
                Verdict::Forward(to)
            }
            None => {
                let verdict = self.switch.forward(port, head);
                if let Verdict::Forward(to) = verdict {
                    recent.remember(addresses, to, &losses);
                }
                verdict
            }
        };
        assert_eq!(verdict, expected, "{head:02x?} from {port:?}");
        match verdict {
            Verdict::Forward(to) => assert!(to != port && self.model.ports.contains_key(&to)),
            Verdict::Flood => {}
            Verdict::Drop(counter) => assert!(counter.name().starts_with("drop_tx_")),
        }
    }

    /// Compares everything that can be asked.
    fn check(&mut self) {
        let Self { switch, model, .. } = self;
        for (&(vlan, address), seen) in &model.stations {
            assert_eq!(switch.lookup(vlan, address), Some(seen.port));
        }
        for n in 0..11_000 {
            for vlan in 0..2 {
                let known = model.stations.get(&(vlan, station(n))).map(|seen| seen.port);
                assert_eq!(switch.lookup(vlan, station(n)), known);
            }
        }
        assert_eq!(switch.ports().collect::<BTreeSet<_>>(), model.ports.keys().copied().collect());
        for port in (0..7).map(PortId) {
            let expected = model.ports.get_mut(&port).map_or((0, 0, 0), |port| {
                (std::mem::take(&mut port.evicted), std::mem::take(&mut port.moved), port.own.len())
            });
            assert_eq!((switch.take_evictions(port), switch.take_moves(port)), (expected.0, expected.1));
            assert!((expected.2..=ADDRESSES_PER_PORT_MAX).contains(&switch.address_count(port)));
        }
        switch.check();
    }
}

/// Seeds are fixed: a failure comes back.
fn config(cases: u32) -> ProptestConfig {
    let rng_seed = prop::test_runner::RngSeed::Fixed(0x5eed);
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn agrees_with_the_model_on_every_verdict(seed: u64, ops in prop::collection::vec(op(), 1..300)) {
        let mut pair = Pair::new(seed);
        for op in &ops {
            pair.apply(op);
        }
        pair.check();
    }
}

proptest! {
    #![proptest_config(config(32))]

    /// Crowds fill shares and take addresses over from each other.
    #[test]
    fn agrees_with_the_model_when_shares_are_full(seed: u64, ops in prop::collection::vec(op_with_crowds(), 1..60)) {
        let mut pair = Pair::new(seed);
        for op in &ops {
            pair.apply(op);
            if matches!(op, Op::Crowd(..)) {
                pair.check();
            }
        }
        pair.check();
    }
}

/// The property tests do meet what is remembered.
#[test]
fn what_is_remembered_is_met() {
    let mut pair = Pair::new(1);
    (0..2).for_each(|n| pair.apply(&Op::Add(PortId(n))));
    for second in 0..3 {
        pair.apply(&Op::Burst(second));
        for n in 0..20 {
            pair.send(PortId(n % 2), &untagged(station(u64::from(1 - n % 2)), station(u64::from(n % 2))));
        }
    }
    assert_eq!(pair.remembered, 3 * 20 - 3 * 2 - 1, "all but the first of each second and port");
}
