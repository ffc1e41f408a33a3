//! What the DHCP server says to a client (RFC 2131 4.3.1, table 3).

use std::net::Ipv4Addr;

use dhcproto::v4::fqdn::{ClientFQDN, FqdnFlags};
use dhcproto::v4::{self, DhcpOption, Encodable, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Encoder, Name};

use super::request::{Request, code};
use super::settings::{Domain, V4};

/// The shortest message: what BOOTP's were, and old clients expect (RFC 1542 2.1).
const LEN_MIN: usize = 300;
/// Options that are left out, one after the other, when a client takes no message with all of them.
const EXPENDABLE: [u8; 5] = [code::SEARCH, code::FQDN, code::HOST_NAME, code::ROUTES, code::DOMAIN];
/// Flags of option 81 (RFC 4702 2.1): the server has the say, the name is in DNS's form, and no server updates DNS.
const FQDN_OVERRIDE: u8 = 2;
const FQDN_ENCODED: u8 = 4;
const FQDN_NO_UPDATE: u8 = 8;
const FQDN_SERVER_UPDATES: u8 = 1;
const DEFAULT_ROUTE: (Ipv4Addr, u8) = (Ipv4Addr::UNSPECIFIED, 0);

/// An answer, before it is bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    /// Offer, ACK or NAK.
    pub(super) kind: MessageType,
    /// The client's address; none: it has one already, or gets none.
    pub(super) address: Option<Ipv4Addr>,
    /// The client's name with us.
    pub(super) name: Option<&'a str>,
    /// An ACK that came without an offer.
    pub(super) rapid_commit: bool,
}

impl Reply<'_> {
    /// The message. `blank` is a message of the crate's with nothing in it: making one draws random numbers.
    pub(super) fn encode(&self, blank: &v4::Message, v4: &V4, request: &Request) -> Option<Vec<u8>> {
        let mut message = blank.clone();
        let is_nak = self.kind == MessageType::Nak;
        let ciaddr = if is_nak { Ipv4Addr::UNSPECIFIED } else { request.ciaddr };
        message.set_opcode(Opcode::BootReply).set_xid(request.xid).set_flags(v4::Flags::new(request.flags));
        message.set_chaddr(&request.mac.0).set_ciaddr(ciaddr);
        message.set_yiaddr(self.address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(self.kind));
        options.insert(DhcpOption::ServerIdentifier(v4.subnet.server()));
        if let Some(identifier) = &request.identifier {
            options.insert(DhcpOption::ClientIdentifier(identifier.clone()));
        }
        if is_nak {
            options.insert(DhcpOption::Message("this address is not yours here".into()));
        } else {
            self.insert_configuration(options, v4, request);
        }
        let mut bytes = to_bytes(&message)?;
        for code in EXPENDABLE {
            if bytes.len() <= request.size_max {
                break;
            }
            message.opts_mut().remove(OptionCode::from(code));
            bytes = to_bytes(&message)?;
        }
        bytes.resize(bytes.len().max(LEN_MIN), 0);
        Some(bytes)
    }

    fn insert_configuration(&self, options: &mut v4::DhcpOptions, v4: &V4, request: &Request) {
        if self.address.is_some() {
            let seconds = v4.lease.seconds();
            options.insert(DhcpOption::AddressLeaseTime(seconds));
            // When to renew with us, and when with anyone (RFC 2131 4.4.5).
            options.insert(DhcpOption::Renewal(seconds / 2));
            options.insert(DhcpOption::Rebinding(seconds - seconds / 8));
        }
        if self.rapid_commit {
            options.insert(DhcpOption::RapidCommit);
        }
        options.insert(DhcpOption::SubnetMask(v4.subnet.mask()));
        if let (Some(fqdn), Some(name)) = (&request.fqdn, self.name) {
            options.extend(fqdn_option(fqdn.flags, name, v4.domain.as_ref()));
        }
        let mut offer = |code: u8, option: Option<DhcpOption>| {
            if request.wants(code) {
                options.extend(option);
            }
        };
        offer(code::BROADCAST, Some(DhcpOption::BroadcastAddr(v4.subnet.broadcast())));
        offer(code::ROUTER, v4.router.map(|router| DhcpOption::Router(vec![router])));
        offer(code::DNS, some_of(&v4.dns).map(DhcpOption::DomainNameServer));
        offer(code::HOST_NAME, self.name.map(|name| DhcpOption::Hostname(name.to_owned())));
        offer(code::DOMAIN, v4.domain.as_ref().map(|domain| DhcpOption::DomainName(domain.as_str().to_owned())));
        offer(code::MTU, v4.mtu.map(DhcpOption::InterfaceMtu));
        offer(code::SEARCH, some_of(&names(&v4.search)).map(DhcpOption::DomainSearch));
        offer(code::ROUTES, routes_option(v4));
    }
}

trait Extend {
    fn extend(&mut self, option: Option<DhcpOption>);
}

impl Extend for v4::DhcpOptions {
    fn extend(&mut self, option: Option<DhcpOption>) {
        if let Some(option) = option {
            self.insert(option);
        }
    }
}

fn to_bytes(message: &v4::Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2 * LEN_MIN);
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

fn some_of<T: Clone>(all: &[T]) -> Option<Vec<T>> {
    (!all.is_empty()).then(|| all.to_vec())
}

/// Domains as the crates have them.
fn names(domains: &[Domain]) -> Vec<Name> {
    domains.iter().filter_map(|domain| Name::from_ascii(format!("{}.", domain.as_str())).ok()).collect()
}

/// The client's full name as we have it (RFC 4702 4), in the form that it used itself. Nobody updates any DNS.
fn fqdn_option(flags: u8, name: &str, domain: Option<&Domain>) -> Option<DhcpOption> {
    let full = domain.map_or_else(|| name.to_owned(), |domain| format!("{name}.{}", domain.as_str()));
    let encoded = flags & FQDN_ENCODED;
    // Said if the client wanted the server to update DNS: its wish is not followed.
    let overridden = if flags & FQDN_SERVER_UPDATES != 0 { FQDN_OVERRIDE } else { 0 };
    let flags = FqdnFlags::new(FQDN_NO_UPDATE | encoded | overridden);
    let name = Name::from_ascii(if encoded != 0 { format!("{full}.") } else { full }).ok()?;
    Some(DhcpOption::ClientFQDN(ClientFQDN::new(flags, name)))
}

/// Option 121. A client that takes it looks at no option 3 (RFC 3442), so the default route is in it too.
fn routes_option(v4: &V4) -> Option<DhcpOption> {
    let router = v4.router.filter(|_| !v4.routes.is_empty())?;
    let default = (DEFAULT_ROUTE.0, DEFAULT_ROUTE.1, router);
    let mut bytes = Vec::new();
    for (destination, prefix_len, router) in std::iter::once(default).chain(v4.routes.iter().map(|r| r.parts())) {
        bytes.push(prefix_len);
        // As many bytes as have bits of the prefix.
        bytes.extend_from_slice(&destination.octets()[..usize::from(prefix_len).div_ceil(8)]);
        bytes.extend_from_slice(&router.octets());
    }
    Some(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code::ROUTES), bytes)))
}
