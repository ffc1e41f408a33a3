//! What a DHCP client says (RFC 2131 2, RFC 2132), read with care.
//!
//! The crate's own decoder of whole messages stops at the first option that it dislikes and panics on some; so its
//! header view and its iterator over options are used, which only cut, and each value is judged here. Options that
//! we have no use for are passed over, whatever is in them.

use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use dhcproto::v4::borrowed::{DhcpOption, DhcpOptionIterator, Message};

use super::settings::ClientId;
use crate::frame::dhcp;
use crate::frame::ethernet::MacAddr;

/// Codes of the options that are read or written (RFC 2132; 80: RFC 4039, 81: RFC 4702, 119: RFC 3397, 121: RFC 3442).
pub(super) mod code {
    pub(in super::super) const ROUTER: u8 = 3;
    pub(in super::super) const DNS: u8 = 6;
    pub(in super::super) const HOST_NAME: u8 = 12;
    pub(in super::super) const DOMAIN: u8 = 15;
    pub(in super::super) const MTU: u8 = 26;
    pub(in super::super) const BROADCAST: u8 = 28;
    pub(in super::super) const REQUESTED: u8 = 50;
    pub(in super::super) const OVERLOAD: u8 = 52;
    pub(in super::super) const TYPE: u8 = 53;
    pub(in super::super) const SERVER: u8 = 54;
    pub(in super::super) const WANTED: u8 = 55;
    pub(in super::super) const MAX_SIZE: u8 = 57;
    pub(in super::super) const CLIENT: u8 = 61;
    pub(in super::super) const RAPID_COMMIT: u8 = 80;
    pub(in super::super) const FQDN: u8 = 81;
    pub(in super::super) const SEARCH: u8 = 119;
    pub(in super::super) const ROUTES: u8 = 121;
}

/// The name and file fields, which options may lie in too (option 52).
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// Bytes of IP and UDP headers, which the sizes that clients name include.
const HEADERS_LEN: usize = 20 + 8;
/// What every client takes (RFC 2131 2), in bytes with headers.
const SIZE_MIN: usize = 576;
/// No answer is longer, whatever a client takes.
const SIZE_MAX: usize = 1500;
/// Flags before the name in option 81: the name is in DNS's own form (RFC 4702 2.1).
const FQDN_ENCODED: u8 = 4;
const FQDN_LEN_MIN: usize = 3;

/// Option 81: what a client wants its full name to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fqdn {
    pub(super) flags: u8,
    /// Its first label, as it came.
    pub(super) label: Vec<u8>,
}

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) xid: u32,
    pub(super) flags: u16,
    pub(super) ciaddr: Ipv4Addr,
    pub(super) giaddr: Ipv4Addr,
    pub(super) mac: MacAddr,
    pub(super) client: ClientId,
    /// Option 61 as it came, to be sent back (RFC 6842).
    pub(super) identifier: Option<Vec<u8>>,
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    /// Option 55; none: whatever we have.
    pub(super) wanted: Option<Vec<u8>>,
    /// The longest answer that the client takes, in bytes of DHCP.
    pub(super) size_max: usize,
    pub(super) rapid_commit: bool,
    pub(super) host_name: Option<Vec<u8>>,
    pub(super) fqdn: Option<Fqdn>,
}

impl Request {
    /// Reads a message. `None` when it is none that a client on Ethernet sends.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        // Options of other lengths than the fixed part's are the iterator's business; it stops where they contradict
        // the length.
        let fixed: &[u8; dhcp::OPTIONS] = payload.first_chunk()?;
        let message = Message::new(payload).ok()?;
        let mac = dhcp::Dhcp::parse(payload).filter(|fixed| fixed.is_request)?.client;
        if !mac.is_station() || !fixed.ends_with(&dhcp::COOKIE) {
            return None;
        }
        let mut request = Request {
            kind: MessageType::Unknown(0),
            xid: message.xid(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            mac,
            client: ClientId::Mac(mac),
            identifier: None,
            requested: None,
            server: None,
            wanted: None,
            size_max: SIZE_MIN - HEADERS_LEN,
            rapid_commit: false,
            host_name: None,
            fqdn: None,
        };
        let overload = request.read(message.opts())?;
        if overload & 1 != 0 {
            request.read(DhcpOptionIterator::new(&fixed[FILE]))?;
        }
        if overload & 2 != 0 {
            request.read(DhcpOptionIterator::new(&fixed[SNAME]))?;
        }
        (request.kind != MessageType::Unknown(0)).then_some(request)
    }

    /// Reads options, and returns what option 52 says. `None` when one that we need is not as it must be.
    fn read(&mut self, options: DhcpOptionIterator<'_>) -> Option<u8> {
        let mut overload = 0;
        for option in options {
            match option.code().into() {
                code::OVERLOAD => overload = <[u8; 1]>::try_from(option.data()).ok()?[0],
                code => self.read_one(code, &option)?,
            }
        }
        Some(overload)
    }

    fn read_one(&mut self, code: u8, option: &DhcpOption<'_>) -> Option<()> {
        let data = option.data();
        match code {
            code::TYPE => self.kind = <[u8; 1]>::try_from(data).ok()?[0].into(),
            code::REQUESTED => self.requested = Some(address(data)?),
            code::SERVER => self.server = Some(address(data)?),
            code::MAX_SIZE => {
                let size = usize::from(u16::from_be_bytes(data.try_into().ok()?));
                self.size_max = size.clamp(SIZE_MIN, SIZE_MAX) - HEADERS_LEN;
            }
            code::CLIENT => {
                self.client = ClientId::from_option(data, self.mac)?;
                self.identifier = Some(data.to_vec());
            }
            code::RAPID_COMMIT => self.rapid_commit = true,
            // These only say what a client would like: what is too long is cut.
            code::WANTED => self.wanted = Some(cut(data)),
            code::HOST_NAME => self.host_name = Some(cut(data)),
            code::FQDN => self.fqdn = fqdn(data),
            _ => {}
        }
        Some(())
    }

    /// Whether the client wants an option of us.
    pub(super) fn wants(&self, code: u8) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.contains(&code))
    }

    /// Whether the client cannot yet take frames to its own address.
    pub(super) fn wants_broadcast(&self) -> bool {
        self.flags & dhcp::BROADCAST != 0
    }

    /// The name that the client gives itself, if any: the first label, as it came.
    pub(super) fn own_name(&self) -> Option<&[u8]> {
        let fqdn = self.fqdn.as_ref().map(|fqdn| fqdn.label.as_slice()).filter(|label| !label.is_empty());
        fqdn.or(self.host_name.as_deref())
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

fn cut(data: &[u8]) -> Vec<u8> {
    data[..data.len().min(usize::from(u8::MAX))].to_vec()
}

fn fqdn(data: &[u8]) -> Option<Fqdn> {
    let (fixed, name) = data.split_at_checked(FQDN_LEN_MIN)?;
    let label = match name.split_first() {
        // One length byte and so many characters; a pointer has no place here and is longer than what follows.
        Some((len, rest)) if fixed[0] & FQDN_ENCODED != 0 => rest.get(..usize::from(*len)).unwrap_or_default(),
        _ => name,
    };
    Some(Fqdn { flags: fixed[0], label: cut(label) })
}
