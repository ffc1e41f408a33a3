//! A DHCP client, over rings: what a guest's own would say, and as often as a test wants.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use crate::daemon::until;
use crate::guest::{Guest, mac};

/// What a server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: MessageType,
    pub(crate) address: Ipv4Addr,
    pub(crate) transaction: u32,
}

/// The identifier of a client that has the guest's MAC address for one.
fn identifier(guest: &Guest) -> Vec<u8> {
    [&[1], &mac(guest.config.number)[..]].concat()
}

/// Renews a lease: asks the server alone, by its address.
pub(crate) fn renew(guest: &mut Guest, address: Ipv4Addr, server: Ipv4Addr, server_mac: [u8; 6]) {
    let (own, any) = (mac(guest.config.number), Ipv4Addr::UNSPECIFIED);
    let mut message = Message::new_with_id(3, address, any, any, any, &own);
    let client = identifier(guest);
    message.opts_mut().insert(DhcpOption::MessageType(MessageType::Request));
    message.opts_mut().insert(DhcpOption::ClientIdentifier(client));
    let packet = PacketBuilder::ethernet2(own, server_mac).ipv4(address.octets(), server.octets(), 64).udp(68, 67);
    let mut frame = Vec::new();
    packet.write(&mut frame, &message.to_vec().unwrap()).unwrap();
    guest.send(&frame);
    assert_eq!(wait(guest), Answer { kind: MessageType::Ack, address, transaction: 3 });
}

/// Sends a request of a client with this identifier. `address` is the one it asks for, if any.
pub(crate) fn ask(guest: &mut Guest, kind: MessageType, transaction: u32, client: &[u8], address: Option<Ipv4Addr>) {
    ask_as(guest, (kind, transaction), client, address, None);
}

fn ask_as(
    guest: &mut Guest,
    (kind, transaction): (MessageType, u32),
    client: &[u8],
    address: Option<Ipv4Addr>,
    name: Option<&str>,
) {
    let own = mac(guest.config.number);
    let any = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(transaction, any, any, any, any, &own);
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ClientIdentifier(client.to_vec()));
    if let Some(address) = address {
        options.insert(DhcpOption::RequestedIpAddress(address));
    }
    if let Some(name) = name {
        options.insert(DhcpOption::Hostname(name.to_owned()));
    }
    let payload = message.to_vec().unwrap();
    let packet = PacketBuilder::ethernet2(own, [0xff; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
    let mut frame = Vec::new();
    packet.write(&mut frame, &payload).unwrap();
    guest.send(&frame);
}

/// The next answer that has come, if there is one; what else comes is thrown away.
pub(crate) fn answer(guest: &mut Guest) -> Option<Answer> {
    while let Some(received) = guest.poll(0) {
        let Ok(packet) = SlicedPacket::from_ethernet(&received.frame) else { continue };
        let Some(TransportSlice::Udp(udp)) = packet.transport else { continue };
        if udp.destination_port() != 68 {
            continue;
        }
        let message = Message::decode(&mut Decoder::new(udp.payload())).unwrap();
        let Some(DhcpOption::MessageType(kind)) = message.opts().get(OptionCode::MessageType) else { panic!() };
        return Some(Answer { kind: *kind, address: message.yiaddr(), transaction: message.xid() });
    }
    None
}

/// Gets a lease as a client with the guest's MAC address for an identifier.
pub(crate) fn lease(guest: &mut Guest) -> Ipv4Addr {
    lease_as(guest, None)
}

/// The same, of a client that calls itself so.
pub(crate) fn lease_as(guest: &mut Guest, name: Option<&str>) -> Ipv4Addr {
    let client = identifier(guest);
    ask_as(guest, (MessageType::Discover, 1), &client, None, name);
    let offer = wait(guest);
    assert_eq!((offer.kind, offer.transaction), (MessageType::Offer, 1));
    ask_as(guest, (MessageType::Request, 2), &client, Some(offer.address), name);
    let given = wait(guest);
    assert_eq!(given, Answer { kind: MessageType::Ack, address: offer.address, transaction: 2 });
    given.address
}

#[track_caller]
fn wait(guest: &mut Guest) -> Answer {
    let mut found = None;
    until("an answer to a DHCP request", || {
        found = answer(guest);
        found.is_some()
    });
    found.unwrap()
}
