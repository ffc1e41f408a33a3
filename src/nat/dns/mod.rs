//! DNS for guests, at the gateway's addresses: what they ask is answered here, or by the host's resolvers.
//!
//! Theory of operation. A question is read ([`message`]) and judged ([`judge`]):
//!
//! * A name of a guest on the network, alone or in the network's domain, and the reverse name of an address in the
//!   network's subnets are answered here, from what [`Names`] knows, but not what those ask who check signatures of the
//!   topmost domains, for a guest may call itself like one. IPv6 addresses, which guests make themselves, are those
//!   that they were seen to send from ([`seen`]).
//! * `localhost` and what is below it is the guest's own loopback address (RFC 6761, 6.3).
//! * What is the host's own is not told: there is no such name. A resolver on the host, as systemd-resolved is, would
//!   answer from the host's tables and for the host's links, which are nothing of DNS. So it is not asked for names
//!   without a dot, which are looked up in such tables and by LLMNR and are synthesized (`_gateway`); for names below
//!   `local`, which are multicast DNS's; for what the host calls itself or has in `/etc/hosts`; for reverse names of
//!   private addresses, of the host's own, and of those in `/etc/hosts`.
//! * All else is relayed to the resolvers that the host uses ([`relay`], [`stream`]), which may be a stub on a loopback
//!   address: it knows of VPNs and of domains that only some of its servers know. What is a zone of a DNS server is
//!   relayed, private as it may be (`internal`, `lan`, `home.arpa`, `corp`): somebody runs it for a network, which
//!   guests reach by address all the same, and companies have their services there. A domain below `local` is such a
//!   zone if the host's resolv.conf says that it searches it.
//!
//! Whether it came as a datagram or by a connection makes no difference. An answer that does not fit a packet is
//! truncated, so that the guest asks again by a connection; else what the resolver says is what the guest gets, with
//! its own number.
//!
//! Limits. Of a network with several workers, IPv6 addresses are known of guests of the same worker only. What a
//! resolver on the host has been told beside `/etc/hosts` cannot be told from DNS. A name in `/etc/hosts` that is in
//! DNS too is not there for guests, and neither are reverse names of private addresses that the host's servers know.
//! Negative answers of ours have no signature: who checks takes them for no answer.

mod host;
mod judge;
mod message;
mod relay;
mod seen;
mod slots;
mod stream;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::Settings;
use super::headers::Ends;
use super::id::{Id, Kind};
use super::out::Guest;
use super::packet::Packet;
use super::tcp::Surroundings;
use super::udp;
use crate::frame::ethernet::MacAddr;
use crate::frame::offload::{Offload, UDP_HEADER_LEN};
use crate::metrics::Counter;
use crate::ring::Bytes;
use crate::switch::PortId;
use host::Host;
use judge::{Verdict, World, judge};
use message::{Question, Saying};
use relay::Relay;
use seen::Seen;
use stream::{Reply, Streams};

/// Where name servers listen.
pub(super) const PORT: u16 = 53;

/// Questions that one frame may bring: nobody sends several who means them.
const SEGMENTS_MAX: usize = 8;

/// The names of a network's guests.
pub trait Names: fmt::Debug + Send + Sync {
    /// The address of the guest with this name, which is a label in lower case, and its MAC address if that is known.
    fn host(&self, name: &str) -> Option<(Ipv4Addr, Option<MacAddr>)>;
    /// The name of the guest with this address.
    fn name_at(&self, address: Ipv4Addr) -> Option<String>;
    /// The name of the guest with this MAC address on a port.
    fn name_of(&self, port: PortId, mac: MacAddr) -> Option<String>;
}

/// Who has asked.
#[derive(Clone, Copy, Debug)]
struct Client {
    guest: Guest,
    address: SocketAddr,
    /// Whom it has asked: one of the gateway's addresses.
    server: IpAddr,
}

/// What messages are judged by.
#[derive(Debug)]
struct Judge {
    names: Arc<dyn Names>,
    domain: Option<Name>,
    networks: Vec<IpNet>,
    host: Host,
    seen: Seen,
}

/// See the module's theory of operation.
#[derive(Debug)]
pub(super) struct Dns {
    judge: Judge,
    relay: Relay,
    streams: Streams,
    /// A frame whose bytes are looked at: kept for its capacity only.
    frame: Vec<u8>,
}

impl Dns {
    pub(super) fn new(settings: &Settings, names: Arc<dyn Names>) -> Self {
        let judge = Judge::new(settings, names);
        Self { judge, relay: Relay::default(), streams: Streams::default(), frame: Vec::new() }
    }

    /// A guest has sent from an address.
    #[inline]
    pub(super) fn meet(&mut self, guest: Guest, from: IpAddr) {
        self.judge.seen.meet(guest, from);
    }

    /// Takes a datagram that a guest has sent to one of the gateway's addresses.
    pub(super) fn take(
        &mut self,
        guest: Guest,
        packet: &Packet,
        (offload, bytes): (&Offload, &Bytes<'_>),
        world: &mut Surroundings<'_>,
    ) -> Result<(), Counter> {
        let header = udp::Header::parse(bytes.head(), packet, offload)?;
        let client = Client { guest, address: SocketAddr::new(packet.from, header.from_port), server: packet.to };
        let mut frame = std::mem::take(&mut self.frame);
        bytes.copy_out(&mut frame);
        let payload = frame.get(header.payload).unwrap_or_default();
        let len = if let Offload::Segment(gso) = offload { usize::from(gso.size) } else { payload.len() };
        let mut result = Err(Counter::DropRxBadPacket);
        for message in payload.chunks(len.max(1)).take(SEGMENTS_MAX) {
            result = self.message(client, message, world);
        }
        self.frame = frame;
        result
    }

    fn message(&mut self, client: Client, message: &[u8], world: &mut Surroundings<'_>) -> Result<(), Counter> {
        match self.judge.reply(message, world.now) {
            None => Err(Counter::DropRxBadPacket),
            Some(Reply::Now(answer)) => {
                send(world, &client, &answer);
                Ok(())
            }
            Some(Reply::Ask(question, resolvers)) => self.relay.ask(client, message, question, resolvers, world),
        }
    }

    /// Where a guest's connection to one of the gateway's addresses goes to.
    pub(super) fn target(&mut self, port: PortId, world: &Surroundings<'_>) -> Result<SocketAddr, Counter> {
        self.streams.target(port, world).map_err(|_| Counter::DropRxFlowLimit)
    }

    /// Something has happened to a socket.
    pub(super) fn event(&mut self, kind: Kind, id: Id, world: &mut Surroundings<'_>) {
        let Self { judge, relay, streams, .. } = self;
        let now = world.now;
        match kind {
            Kind::DnsListener => streams.accept(PortId(id.index as u16), world),
            Kind::DnsStream => {
                streams.event(id, world, |message| judge.reply(message, now));
            }
            _ => relay.event(id, world),
        }
    }

    /// Does what is due.
    pub(super) fn timers(&mut self, world: &mut Surroundings<'_>) {
        let Self { judge, relay, streams, .. } = self;
        let now = world.now;
        relay.timers(world);
        streams.sweep(world, |message| judge.reply(message, now));
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<u64> {
        self.relay.due().into_iter().chain(self.streams.due()).min()
    }

    /// A port has gone.
    pub(super) fn port_ended(&mut self, port: PortId) {
        self.judge.seen.port_ended(port);
        self.relay.port_ended(port);
        self.streams.port_ended(port);
    }
}

impl Judge {
    fn new(settings: &Settings, names: Arc<dyn Names>) -> Self {
        let network6 = settings.subnet6.and_then(|subnet| IpNet::new(subnet.network().into(), 64).ok());
        let network4 = IpNet::new(settings.subnet.network().into(), settings.subnet.prefix()).ok();
        Self {
            names,
            domain: settings.domain.as_ref().and_then(|domain| message::absolute(domain.as_str())),
            networks: network4.into_iter().chain(network6).collect(),
            host: Host::default(),
            seen: Seen::default(),
        }
    }

    /// What is to be said of a guest's message. None: nothing at all.
    fn reply(&mut self, message: &[u8], now: u64) -> Option<Reply> {
        self.host.follow(now);
        self.judged(message)
    }

    fn judged(&self, message: &[u8]) -> Option<Reply> {
        let question = match message::read(message) {
            Ok(question) => question,
            Err(answer) => return answer.map(Reply::Now),
        };
        let Self { names, domain, networks, host, seen } = self;
        let (names, domain, private) = (names.as_ref(), domain.as_ref(), host.private());
        match judge(&question, &World { names, seen, domain, networks, private }) {
            Verdict::Says(saying) => question.answer(message, saying).map(Reply::Now),
            Verdict::Relay => Some(Reply::Ask(question, host.resolvers())),
        }
    }
}

/// What a guest gets for a message, on a host without names of its own, if the resolver says `heard` to what it was
/// asked under the number `id`: for tests and fuzzers. None: nothing.
pub fn trial(settings: &Settings, names: Arc<dyn Names>, message: &[u8], (heard, id): (&[u8], u16)) -> Option<Vec<u8>> {
    match Judge::new(settings, names).judged(message)? {
        Reply::Now(answer) => Some(answer),
        Reply::Ask(question, _) if question.is_answered_by(heard, message, id) => {
            let mut answer = heard.to_vec();
            question.restore(&mut answer, message);
            Some(answer)
        }
        Reply::Ask(..) => None,
    }
}

/// Gives a guest the answer to what it asked.
fn give(world: &mut Surroundings<'_>, client: &Client, question: &Question, asked: &[u8], answer: &[u8]) {
    let headers = ends(world, client).len() - crate::frame::ethernet::HEADER_LEN + UDP_HEADER_LEN;
    if headers + answer.len() <= usize::from(world.mtu) {
        return send(world, client, answer);
    }
    let truncated = question.answer(asked, Saying::Truncated);
    truncated.into_iter().for_each(|answer| send(world, client, &answer));
}

fn ends(world: &Surroundings<'_>, client: &Client) -> Ends {
    Ends { mac: world.gateway_mac, to_mac: client.guest.mac, from: client.server, to: client.address.ip() }
}

/// Sends a guest a datagram; one for which there is no room it asks for again.
fn send(world: &mut Surroundings<'_>, client: &Client, message: &[u8]) {
    if !world.out.has_room() {
        return;
    }
    udp::one_frame(&ends(world, client), (PORT, client.address.port()), message, None, world);
}
