//! Questions and what becomes of them: whom they are answered by, and that no bytes do harm.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use proptest::prelude::*;

use super::super::efforts::Efforts;
use super::super::engine::tests::await_readable;
use super::super::forward::{Doors, Forwards};
use super::super::icmp::Limits;
use super::super::out::Out;
use super::super::policy::Policy;
use super::super::sockets::Sockets;
use super::message::{QUERY_MAX, absolute, is_failure, read, renumbered};
use super::*;
use crate::sys::poller::Poller;

const WEB: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// One guest, `web`.
#[derive(Debug)]
struct One;

impl Names for One {
    fn host(&self, name: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        (name == "web").then_some((Ipv4Addr::new(10, 0, 2, 7), Some(WEB)))
    }

    fn name_at(&self, address: Ipv4Addr) -> Option<String> {
        (address == Ipv4Addr::new(10, 0, 2, 7)).then(|| "web".to_owned())
    }

    fn name_of(&self, port: PortId, mac: MacAddr) -> Option<String> {
        (port == PortId(3) && mac == WEB).then(|| "web".to_owned())
    }
}

fn settings() -> Settings {
    Settings {
        gateway_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        subnet: "10.0.2.0/24".parse().unwrap(),
        subnet6: Some("fd01::/64".parse().unwrap()),
        domain: Some("lab.example".parse().unwrap()),
        mtu: 1500,
        forwards: Vec::new(),
        host_loopback: false,
        allow: Vec::new(),
        deny: Vec::new(),
        peek_offset: true,
        advertisement: None,
    }
}

fn our_judge() -> Judge {
    let mut judge = Judge::new(&settings(), Arc::new(One));
    judge.seen.meet(Guest { port: PortId(3), mac: WEB }, "fd01::7".parse().unwrap());
    judge.host = Host::with(
        "nameserver 192.0.2.53\nsearch corp.example contoso.local\n",
        "127.0.1.1 box.corp.example box\n198.51.100.7 secret.example.org\n",
        "box.corp.example",
    );
    judge
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(name).unwrap(), kind));
    message
}

/// What a guest is answered here; none: others are asked.
fn answer(judge: &Judge, message: &Message) -> Option<Message> {
    match judge.judged(&message.to_vec().unwrap()).expect("a question") {
        Reply::Now(answer) => {
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.id, answer.message_type), (message.id, MessageType::Response));
            assert!(answer.recursion_available && answer.recursion_desired == message.recursion_desired);
            Some(answer)
        }
        Reply::Ask(_, resolvers) => {
            assert_eq!(*resolvers, ["192.0.2.53:53".parse().unwrap()]);
            None
        }
    }
}

#[track_caller]
fn expect(name: &str, kind: RecordType, code: ResponseCode, data: &[RData]) {
    let answer = answer(&our_judge(), &query(name, kind)).expect("it is answered here");
    assert_eq!(answer.response_code, code, "{name} {kind}");
    assert_eq!(answer.queries, query(name, kind).queries);
    assert_eq!(answer.answers.iter().map(|record| record.data.clone()).collect::<Vec<_>>(), data, "{name} {kind}");
    assert!(answer.answers.iter().all(|record| record.ttl == 30 && record.name == answer.queries[0].name));
}

#[test]
fn names_of_guests_are_answered_here() {
    let v4 = RData::A(A(Ipv4Addr::new(10, 0, 2, 7)));
    let v6 = RData::AAAA(AAAA("fd01::7".parse().unwrap()));
    for name in ["web", "WEB", "web.lab.example", "Web.LAB.example"] {
        expect(name, RecordType::A, ResponseCode::NoError, std::slice::from_ref(&v4));
        expect(name, RecordType::AAAA, ResponseCode::NoError, std::slice::from_ref(&v6));
        expect(name, RecordType::ANY, ResponseCode::NoError, &[v4.clone(), v6.clone()]);
        expect(name, RecordType::MX, ResponseCode::NoError, &[]);
    }
    for kind in [RecordType::DS, RecordType::SOA] {
        assert_eq!(answer(&our_judge(), &query("web", kind)), None, "a topmost domain could have the name");
    }
    let none = Judge::new(&settings(), Arc::new(One));
    let unseen = answer(&none, &query("web", RecordType::AAAA)).unwrap();
    assert_eq!((unseen.response_code, unseen.answers.len()), (ResponseCode::NoError, 0));
    for name in ["other.lab.example", "x.web.lab.example", "web.example"] {
        assert_eq!(answer(&our_judge(), &query(name, RecordType::A)), None, "{name}");
    }
}

#[test]
fn reverse_names_of_the_network_are_answered_here() {
    let name = [RData::PTR(PTR(absolute("web.lab.example").unwrap()))];
    let v6 = format!("7.{}1.0.d.f.ip6.arpa", "0.".repeat(27));
    for reverse in ["7.2.0.10.in-addr.arpa", "7.2.0.10.IN-ADDR.arpa", &v6] {
        expect(reverse, RecordType::PTR, ResponseCode::NoError, &name);
        expect(reverse, RecordType::A, ResponseCode::NoError, &[]);
    }
    for reverse in ["8.2.0.10.in-addr.arpa", "2.0.10.in-addr.arpa", &v6.replacen('7', "8", 1)] {
        expect(reverse, RecordType::PTR, ResponseCode::NXDomain, &[]);
    }
}

#[test]
fn what_is_the_hosts_own_is_not_told() {
    for name in [
        "printer",
        "wpad",
        "_gateway",
        "_outbound",
        "_localdnsstub",
        "*",
        "box",
        "box.corp.example",
        "Secret.example.org",
        "printer.local",
        "local",
        "_ipp._tcp.local",
    ] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::ANY, RecordType::TXT] {
            expect(name, kind, ResponseCode::NXDomain, &[]);
        }
    }
    for reverse in [
        "1.0.0.127.in-addr.arpa",
        "1.1.168.192.in-addr.arpa",
        "168.192.in-addr.arpa",
        "16.172.in-addr.arpa",
        "1.0.64.100.in-addr.arpa",
        "7.100.51.198.in-addr.arpa",
        "0.8.e.f.ip6.arpa",
        "0.1.d.f.ip6.arpa",
    ] {
        expect(reverse, RecordType::PTR, ResponseCode::NXDomain, &[]);
    }
    expect("_dns.resolver.arpa", RecordType::SVCB, ResponseCode::NoError, &[]);
}

#[test]
fn localhost_is_the_guest_itself() {
    for name in ["localhost", "LOCALHOST", "a.b.localhost"] {
        expect(name, RecordType::A, ResponseCode::NoError, &[RData::A(A(Ipv4Addr::LOCALHOST))]);
        expect(name, RecordType::AAAA, ResponseCode::NoError, &[RData::AAAA(AAAA("::1".parse().unwrap()))]);
        expect(name, RecordType::TXT, ResponseCode::NoError, &[]);
    }
}

#[test]
fn zones_of_name_servers_are_asked_of_the_resolver() {
    for name in [
        "example.com",
        "git.corp.example",
        "build.internal",
        "nas.lan",
        "nas.home.arpa",
        "dc1.contoso.local",
        "*.com",
        "1.113.0.203.in-addr.arpa",
        "in-addr.arpa",
        "8.b.d.0.1.0.0.2.ip6.arpa",
    ] {
        assert_eq!(answer(&our_judge(), &query(name, RecordType::PTR)), None, "{name}");
        assert_eq!(answer(&our_judge(), &query(name, RecordType::A)), None, "{name}");
    }
    for kind in [RecordType::DS, RecordType::DNSKEY, RecordType::NS, RecordType::SOA] {
        assert_eq!(answer(&our_judge(), &query("com", kind)), None, "{kind}");
        assert_eq!(answer(&our_judge(), &query(".", kind)), None, "{kind}");
    }
}

#[test]
fn an_answer_has_edns_if_the_question_has() {
    let mut message = query("web", RecordType::A);
    assert_eq!(answer(&our_judge(), &message).unwrap().edns, None);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns);
    let edns = answer(&our_judge(), &message).unwrap().edns.unwrap();
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok, edns.version()), (1232, true, 0));
}

#[test]
fn what_is_no_plain_question_is_refused() {
    let code = |message: &[u8]| match our_judge().judged(message) {
        Some(Reply::Now(answer)) => Some(Message::from_vec(&answer).unwrap().response_code),
        Some(Reply::Ask(..)) => panic!("it would be relayed: {message:02x?}"),
        None => None,
    };
    let plain = query("example.com", RecordType::A);
    let mut message = plain.clone();
    message.metadata.op_code = OpCode::Update;
    assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::NotImp));
    message = plain.clone();
    message.add_query(Query::query(absolute("printer").unwrap(), RecordType::A));
    assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::FormErr));
    message = plain.clone();
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&message.to_vec().unwrap()), Some(ResponseCode::Refused));
    assert_eq!(code(&query("example.com", RecordType::AXFR).to_vec().unwrap()), Some(ResponseCode::Refused));
    message = plain.clone();
    message.metadata.message_type = MessageType::Response;
    assert_eq!(code(&message.to_vec().unwrap()), None);
    let plain = plain.to_vec().unwrap();
    assert_eq!(code(&plain[..11]), None);
    assert_eq!(code(&plain[..20]), Some(ResponseCode::FormErr));
    let mut long = plain;
    long.resize(QUERY_MAX + 1, 0);
    assert_eq!(code(&long), None);
}

/// A header with one question, and this behind it.
fn raw(rest: &[u8]) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], rest].concat()
}

#[test]
fn a_name_has_no_pointers_and_no_more_than_255_bytes() {
    let label = |len: usize| [&[len as u8][..], &vec![b'a'; len]].concat();
    let long = [label(63), label(63), label(63), label(61), vec![0]].concat();
    assert_eq!(long.len(), 255);
    assert!(read(&raw(&[&long[..], &[0, 1, 0, 1]].concat())).is_ok());
    let longer = [label(63), label(63), label(63), label(62), vec![0]].concat();
    let loops: [&[u8]; 5] = [&[0xc0, 12], &[1, b'a', 0xc0, 12], &[0xc0, 14, 0xc0, 12], &[0xc0, 0], &[0xff, 0xff]];
    for name in loops.into_iter().chain([&longer[..], &[0x40, 0], &[0x80, 0]]) {
        let message = raw(&[name, &[0, 1, 0, 1]].concat());
        assert!(matches!(read(&message), Err(Some(_))), "{name:02x?}");
    }
}

/// An answer that a resolver could give.
fn resolved(message: &[u8], id: u16) -> Message {
    let asked = Message::from_vec(message).unwrap();
    let mut answer = Message::response(id, OpCode::Query);
    answer.add_queries(asked.queries.clone());
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    answer.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 300, data));
    answer
}

#[test]
fn an_answer_must_fit_its_question() {
    let message = query("www.Example.com", RecordType::A).to_vec().unwrap();
    let question = read(&message).unwrap();
    let sent = renumbered(&message, 7);
    assert_eq!((&sent[..2], &sent[2..]), (&[0, 7][..], &message[2..]));
    let good = resolved(&sent, 7);
    let fits = |answer: &Message| question.is_answered_by(&answer.to_vec().unwrap(), &message, 7);
    assert!(fits(&good));
    let mut lower = good.clone();
    lower.queries[0].name = lower.queries[0].name.to_lowercase();
    assert!(fits(&lower));
    let mut wrong = vec![good.clone(); 5];
    wrong[0].metadata.id = 8;
    wrong[1].metadata.message_type = MessageType::Query;
    wrong[2].queries[0].name = absolute("www.example.org").unwrap();
    wrong[3].queries[0].query_type = RecordType::AAAA;
    wrong[4].queries.clear();
    assert!(wrong.iter().all(|answer| !fits(answer)));
    assert!(!question.is_answered_by(&[], &message, 7) && !question.is_answered_by(&sent[..12], &message, 7));

    let mut bytes = lower.to_vec().unwrap();
    question.restore(&mut bytes, &message);
    let restored = Message::from_vec(&bytes).unwrap();
    assert_eq!((restored.id, &restored.answers), (0x1234, &good.answers));
    assert!(restored.queries[0].name.eq_case(&absolute("www.Example.com").unwrap()));
    assert!(!is_failure(&bytes));
    for (code, expected) in
        [(ResponseCode::ServFail, true), (ResponseCode::Refused, true), (ResponseCode::NXDomain, false)]
    {
        lower.metadata.response_code = code;
        assert_eq!(is_failure(&lower.to_vec().unwrap()), expected, "{code}");
    }
}

/// A message that could be a question: labels, pointers and records of a guest's choice.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let label = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| [&[bytes.len() as u8], &bytes[..]].concat()),
        any::<u16>().prop_map(|to| (to | 0xc000).to_be_bytes().to_vec()),
    ];
    let name = prop::collection::vec(label, 0..8).prop_map(|labels| labels.concat());
    let rest = prop::collection::vec(any::<u8>(), 0..64);
    (name, rest, any::<[u8; 12]>(), any::<bool>()).prop_map(|(name, rest, header, is_plain)| {
        let header = if is_plain { [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, header[11]] } else { header };
        [&header[..], &name, &[0], &rest].concat()
    })
}

proptest! {
    #[test]
    fn no_bytes_do_harm(message in prop_oneof![any_message(), prop::collection::vec(any::<u8>(), 0..QUERY_MAX + 8)]) {
        if let Some(Reply::Now(answer)) = our_judge().judged(&message) {
            let answer = Message::from_vec(&answer).unwrap();
            prop_assert_eq!(answer.id.to_be_bytes(), [message[0], message[1]]);
            prop_assert_eq!(answer.message_type, MessageType::Response);
        }
    }

    #[test]
    fn no_answer_does_harm(message in any_message(), heard in prop::collection::vec(any::<u8>(), 0..512), id: u16) {
        let heard = if id.is_multiple_of(2) { heard } else { renumbered(&[&message[..], &heard].concat(), id) };
        let _ = is_failure(&heard);
        if let Some(answer) = trial(&settings(), Arc::new(One), &message, (&heard, id)) {
            prop_assert_eq!(&answer[..2], &message[..2]);
        }
    }
}

#[test]
fn sixty_four_kibibytes_take_no_time() {
    // Pointers to pointers, and records that are all of them.
    let mut message = raw(&[0, 0, 1, 0, 1]);
    message[10..12].copy_from_slice(&[0xff, 0xff]);
    while message.len() + 12 <= QUERY_MAX {
        let at = message.len() as u16;
        message.extend_from_slice(&(0xc000 | (at - 12).max(12)).to_be_bytes());
        message.extend_from_slice(&[0, 16, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    let begun = std::time::Instant::now();
    message[13..17].copy_from_slice(&[0, 252, 0, 1]);
    assert!(matches!(our_judge().judged(&message), Some(Reply::Now(_))));
    message.resize(65_535, 0xc0);
    assert!(our_judge().judged(&message).is_none());
    assert!(begun.elapsed() < std::time::Duration::from_secs(1));
}

/// What each port has to answer for since the last time, in parts.
fn parts(efforts: &mut Efforts) -> Vec<(u16, f64)> {
    let mut parts = Vec::new();
    efforts.take(|port, part| parts.push((port.0, part)));
    parts
}

#[test]
fn who_asks_answers_for_what_comes_of_it() {
    let resolvers: Vec<_> = (0..2).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Arc<[SocketAddr]> = resolvers.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let message = query("example.org", RecordType::A).to_vec().unwrap();
    let Reply::Ask(question, _) = our_judge().judged(&message).unwrap() else { panic!("others are asked") };
    let client = Client {
        guest: Guest { port: PortId(3), mac: WEB },
        address: "10.0.2.7:1000".parse().unwrap(),
        server: "10.0.2.1".parse().unwrap(),
    };
    let (mut out, poller, policy) = (Out::default(), Poller::new().unwrap(), Policy::new(&settings()));
    let forwards = Forwards::new(Doors::default(), "network".to_owned(), 1, None).unwrap();
    let (sockets, mut limits, mut efforts, mut packets) =
        (Sockets::new(1000), Limits::default(), Efforts::default(), 0);
    let mut world = Surroundings {
        out: &mut out,
        poller: &poller,
        policy: &policy,
        sockets: &sockets,
        forwards: &forwards,
        gateway_mac: settings().gateway_mac,
        mtu: 1500,
        now: 0,
        packets: &mut packets,
        limits: &mut limits,
        efforts: &mut efforts,
    };
    let mut relay = Relay::default();
    relay.ask(client, &message, question, addresses, &mut world).unwrap();
    assert!(world.efforts.end_burst(), "it made a socket");
    relay.timers(&mut world);
    assert_eq!(parts(world.efforts), [], "nothing was due");
    world.now = relay.due().unwrap();
    relay.timers(&mut world);
    assert_eq!(parts(world.efforts), [(3, 1.0)], "the next one is asked");
    let mut buffer = [0; 512];
    let (len, from) = resolvers[1].recv_from(&mut buffer).unwrap();
    buffer[2] |= 0x80;
    resolvers[1].send_to(&buffer[..len], from).unwrap();
    let mut tokens = Vec::new();
    await_readable(&poller);
    poller.wait_for_sockets(|token, ready| tokens.extend(ready.readable.then_some(token))).unwrap();
    let (kind, id) = Id::from_token(tokens[0]);
    assert_eq!(kind, Kind::Dns);
    relay.event(id, &mut world);
    assert!(!world.out.is_empty(), "the guest is answered");
    assert_eq!((parts(world.efforts), relay.due()), (vec![(3, 1.0)], None));
}
