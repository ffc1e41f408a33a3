//! Random sequences of what clients say, on many ports, with what must hold after each message.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proptest::prelude::*;

const PORTS: u16 = 4;
/// Reserved for client 1.
const RESERVED: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 30);

#[derive(Clone, Debug)]
enum Step {
    Say { port: u16, client: u16, id: Option<u8>, kind: u8, address: Option<u8>, to_us: bool, name: Option<u8> },
    Wait(u64),
    Back(u64),
    End(u16),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let say = (
        (0..PORTS, 0u16..12, prop::option::weighted(0.3, 0u8..3)),
        (1u8..=8, prop::option::weighted(0.3, 8u8..36), prop::bool::weighted(0.9), prop::option::weighted(0.4, 0u8..4)),
    );
    let say = say.prop_map(|((port, client, id), (kind, address, to_us, name))| Step::Say {
        port,
        client,
        id,
        kind,
        address,
        to_us,
        name,
    });
    let step = prop_oneof![
        40 => say,
        2 => (0u64..5000).prop_map(Step::Wait),
        1 => (0u64..5000).prop_map(Step::Back),
        1 => (0..PORTS).prop_map(Step::End),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..120)
}

fn small() -> Settings {
    let subnet = v4().subnet;
    let pools = vec![Pool::new(&subnet, ip(10), ip(19)).unwrap(), Pool::new(&subnet, ip(28), ip(35)).unwrap()];
    let reservation = Reservation { client: ClientId::Mac(mac(1)), address: RESERVED, name: "one".parse().ok() };
    settings(V4 { pools, reservations: vec![reservation], ..v4() })
}

/// What a client believes: its address, until when.
#[derive(Default)]
struct Model {
    believes: BTreeMap<(u16, u16, Option<u8>), (Ipv4Addr, u64)>,
}

fn message(kind: u8, client: u16, id: Option<u8>, address: Ipv4Addr, to_us: bool, name: Option<u8>) -> Client {
    let kind = MessageType::from(kind);
    let mut said = Client::new(client, kind);
    match kind {
        MessageType::Request if client.is_multiple_of(3) => said = said.ciaddr(address),
        MessageType::Request if client % 3 == 1 => said = said.requested(address),
        MessageType::Request => said = said.requested(address).server(if to_us { SERVER } else { ip(99) }),
        MessageType::Release | MessageType::Inform => said = said.ciaddr(address),
        MessageType::Discover if client.is_multiple_of(4) => said = said.requested(address).with(80, &[]),
        _ => said = said.requested(address).server(if to_us { SERVER } else { ip(99) }),
    }
    if let Some(id) = id {
        said = said.with(61, &[255, id]);
    }
    if let Some(name) = name {
        said = said.with(12, [&b"web"[..], b"one", b"DB.x", b".."][usize::from(name)]);
    }
    said
}

fn run(steps: Vec<Step>) {
    let mut services = Services::new(small(), Leases::default());
    let (mut now, mut model, mut latest) = (NOW, Model::default(), NOW);
    for step in steps {
        match step {
            Step::Wait(seconds) => now += seconds,
            Step::Back(seconds) => {
                now -= seconds;
                // Who believes what for how long is no longer known.
                model.believes.clear();
            }
            Step::End(port) => {
                services.port_ended(PortId(port));
                model.believes.retain(|(on, ..), _| *on != port);
            }
            Step::Restart => {
                let text = services.leases().unwrap().to_text();
                let leases = Leases::from_text(&text).unwrap();
                assert_eq!(leases.to_text(), text);
                services = Services::new(small(), leases);
                assert_eq!(services.leases().unwrap().to_text(), text, "nothing disagrees with the settings");
                model.believes.clear();
            }
            Step::Say { port, client, id, kind, address, to_us, name } => {
                let key = (port, client, id);
                let own = model.believes.get(&key).map(|(address, _)| *address);
                let address = address.map(ip).or(own).unwrap_or(ip(12));
                let said = message(kind, client, id, address, to_us, name);
                let told = ask_at(&mut services, port, &said, now);
                model.hear(key, &said, told.as_ref(), now, &services);
                assert!(services.leases().unwrap().iter().all(|(_, binding)| binding.expires <= now + LEASE));
            }
        }
        latest = latest.max(now);
        check(&services, now, now == latest);
    }
}

impl Model {
    fn hear(&mut self, key: (u16, u16, Option<u8>), said: &Client, told: Option<&Told>, now: u64, services: &Services) {
        let kind = MessageType::from(said.options[0].1[0]);
        match (kind, told.map(Told::kind)) {
            (MessageType::Inform, _) => {}
            (_, Some(MessageType::Ack)) => {
                let address = told.unwrap().address();
                // Only those of another client are another's; a client with an identifier is one, whatever its MAC.
                let same = |other: &(u16, u16, Option<u8>)| {
                    other.0 == key.0 && (other.1 == key.1 || (key.2.is_some() && other.2 == key.2))
                };
                let other = self.believes.iter().find(|(k, (a, until))| *a == address && *until > now && !same(k));
                assert!(other.is_none(), "{key:?} got {address}, which {other:?} has");
                // Stickiness: whoever has an address gets no other, but a reserved one.
                if let Some((before, until)) = self.believes.get(&key)
                    && *until > now
                    && address != RESERVED
                    && self.believes.iter().filter(|(k, _)| same(k)).count() == 1
                {
                    assert_eq!(*before, address);
                }
                self.believes.retain(|k, (a, _)| !(same(k) && *a == address));
                self.believes.insert(key, (address, now + LEASE));
                assert!(services.leases().unwrap().is_for(PortId(key.0), mac(key.1), address));
            }
            (MessageType::Release | MessageType::Decline | MessageType::Discover, _) | (_, Some(MessageType::Nak)) => {
                // What else is known of this client may have changed.
                self.believes.retain(|other, _| {
                    !(other.0 == key.0 && (other.1 == key.1 || (key.2.is_some() && other.2 == key.2)))
                });
            }
            _ => {}
        }
    }
}

fn check(services: &Services, now: u64, is_latest: bool) {
    let leases = services.leases().unwrap();
    assert_eq!(leases.inconsistency(), None);
    let mut names = BTreeSet::new();
    for (address, binding) in leases.iter() {
        assert!((10..=19).contains(&address.octets()[3]) || (28..=35).contains(&address.octets()[3]), "{address}");
        assert!(address != RESERVED || binding.mac == mac(1) || binding.client == ClientId::Mac(mac(1)));
        let name = binding.name.as_deref();
        assert!(name.is_none_or(|name| names.insert(name)), "{name:?} twice");
        assert!(name.is_none_or(|name| name != "one" || address == RESERVED));
    }
    for port in 0..PORTS {
        let live = leases.iter().filter(|(_, b)| b.port == Some(PortId(port)) && b.is_live(now)).count();
        // What had expired before the clock was turned back has not expired now.
        assert!(live <= LEASES_PER_PORT_MAX || !is_latest);
    }
    let text = leases.to_text();
    assert_eq!(Leases::from_text(&text).unwrap().to_text(), text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_clients_say_each_address_has_one(steps in steps()) {
        run(steps);
    }
}
