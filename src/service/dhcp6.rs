//! Stateless DHCPv6 (RFC 8415 6.1): what there is to know besides addresses, which hosts make themselves.

use std::net::Ipv6Addr;

use dhcproto::Encoder;
use dhcproto::v6::{DhcpOption, Encodable, Message, MessageType, OptionCode, UnknownOption};

use super::settings::{Domain, V6};
use crate::frame::ethernet::MacAddr;

/// The type byte, and the transaction's identifier.
const FIXED_LEN: usize = 4;
/// The type of an identifier that is a link-layer address, and the hardware type of Ethernet (RFC 8415 11.4).
const DUID_LL: [u8; 4] = [0, 3, 0, 1];
/// The longest identifier, with its type (RFC 8415 11.1).
const DUID_LEN_MAX: usize = 130;

/// What we serve, ready to be sent.
#[derive(Debug)]
pub(super) struct Server {
    identifier: Vec<u8>,
    dns: Vec<Ipv6Addr>,
    /// The domains' names, one behind the other, which the crate's own option would shorten with pointers: that is not
    /// allowed here (RFC 8415 10).
    search: Vec<u8>,
    /// A message with nothing in it: making one draws random numbers.
    blank: Message,
}

/// What a client asks.
struct Request<'a> {
    xid: [u8; 3],
    client: Option<&'a [u8]>,
    /// The codes of the options it wants; none: whatever we have.
    wanted: Option<&'a [u8]>,
}

impl Server {
    pub(super) fn new(mac: MacAddr, settings: &V6) -> Self {
        Self {
            identifier: [DUID_LL.as_slice(), &mac.0].concat(),
            dns: settings.dns.clone(),
            search: settings.search.iter().flat_map(Domain::encoded).collect(),
            blank: Message::new(MessageType::Reply),
        }
    }

    /// Whether there is anything to ask for.
    pub(super) fn has_any(&self) -> bool {
        !self.dns.is_empty() || !self.search.is_empty()
    }

    /// The answer to a client's message, if it is one that gets an answer.
    pub(super) fn serve(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let request = self.parse(payload)?;
        let mut message = self.blank.clone();
        message.set_xid(request.xid);
        let options = message.opts_mut();
        options.insert(DhcpOption::ServerId(self.identifier.clone()));
        if let Some(client) = request.client {
            options.insert(DhcpOption::ClientId(client.to_vec()));
        }
        let wants = |code: OptionCode| {
            let code = u16::from(code).to_be_bytes();
            request.wanted.is_none_or(|wanted| wanted.as_chunks::<2>().0.contains(&code))
        };
        if !self.dns.is_empty() && wants(OptionCode::DomainNameServers) {
            options.insert(DhcpOption::DomainNameServers(self.dns.clone()));
        }
        if !self.search.is_empty() && wants(OptionCode::DomainSearchList) {
            let search = UnknownOption::new(OptionCode::DomainSearchList, self.search.clone());
            options.insert(DhcpOption::Unknown(search));
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).ok()?;
        Some(bytes)
    }

    /// Reads an information-request (RFC 8415 16.12). The crate's decoder follows options inside options as deep as
    /// they go, so only the outermost are cut here.
    fn parse<'a>(&self, payload: &'a [u8]) -> Option<Request<'a>> {
        let (fixed, mut rest) = payload.split_first_chunk::<FIXED_LEN>()?;
        let [kind, xid @ ..] = *fixed;
        let mut request = Request { xid, client: None, wanted: None };
        if MessageType::from(kind) != MessageType::InformationRequest {
            return None;
        }
        while let Some((&[a, b, c, d], behind)) = rest.split_first_chunk::<4>() {
            let (data, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
            match OptionCode::from(u16::from_be_bytes([a, b])) {
                OptionCode::ClientId if data.len() > DUID_LEN_MAX => return None,
                OptionCode::ClientId => request.client = Some(data),
                OptionCode::ServerId if data != self.identifier => return None,
                OptionCode::IANA | OptionCode::IATA | OptionCode::IAPD => return None,
                OptionCode::ORO => request.wanted = Some(data),
                _ => {}
            }
            rest = behind;
        }
        rest.is_empty().then_some(request)
    }
}
