//! What is answered here, and what is asked of the host's resolver. See the module above.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use ipnet::IpNet;

use super::Names;
use super::host::Private;
use super::message::{Question, Saying, absolute};
use super::seen::Seen;

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is answered here.
    Says(Saying),
    /// It is asked of the host's resolver.
    Relay,
}

/// What questions are judged by.
pub(super) struct World<'a> {
    pub(super) names: &'a dyn Names,
    pub(super) seen: &'a Seen,
    /// The domain that guests are in.
    pub(super) domain: Option<&'a Name>,
    /// The network's own subnets.
    pub(super) networks: &'a [IpNet],
    pub(super) private: &'a Private,
}

const NOTHING: Saying = Saying::Data(Vec::new());
const NO_SUCH_NAME: Saying = Saying::Error(ResponseCode::NXDomain);
const REFUSED: Saying = Saying::Error(ResponseCode::Refused);

/// Addresses that mean something to the host and its own networks only (RFC 6303, RFC 6598).
static PRIVATE: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let ranges = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "255.255.255.255/32",
        "::/127",
        "fc00::/7",
        "fe80::/10",
    ];
    ranges.iter().filter_map(|range| range.parse().ok()).collect()
});
/// What belongs to multicast DNS (RFC 6762, 3).
static LOCAL: LazyLock<Name> = LazyLock::new(|| absolute("local").unwrap_or_default());
/// By which a guest finds out whether its resolver can be asked in secret: whom we ask is not its resolver (RFC 9462,
/// 6.4).
static RESOLVER: LazyLock<Name> = LazyLock::new(|| absolute("resolver.arpa").unwrap_or_default());

/// Says what becomes of a question.
pub(super) fn judge(question: &Question, world: &World<'_>) -> Verdict {
    let Question { name, kind, .. } = question;
    // A transfer of a zone has many answers. What is no question of the Internet is one about the server.
    if question.class != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return Verdict::Says(REFUSED);
    }
    if name.is_localhost() {
        let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Verdict::Says(addresses(*kind, &both));
    }
    // Those who check signatures ask this of the topmost domains, and a guest may have the name of one.
    let is_of_zones = matches!(kind, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY);
    if is_of_zones && name.iter().count() < 2 {
        return Verdict::Relay;
    }
    if let Some(known) = world.guest(name) {
        return Verdict::Says(addresses(*kind, &known));
    }
    if let Ok(net) = name.parse_arpa_name() {
        return world.reverse(*kind, net);
    }
    if RESOLVER.zone_of(name) {
        return Verdict::Says(NOTHING);
    }
    if world.is_private(name) { Verdict::Says(NO_SUCH_NAME) } else { Verdict::Relay }
}

/// Those of a name's addresses that are asked for.
fn addresses(kind: RecordType, known: &[IpAddr]) -> Saying {
    let data = known.iter().filter_map(|address| match address {
        IpAddr::V4(address) if matches!(kind, RecordType::A | RecordType::ANY) => Some(RData::A(A(*address))),
        IpAddr::V6(address) if matches!(kind, RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(*address))),
        _ => None,
    });
    Saying::Data(data.collect())
}

impl World<'_> {
    /// The addresses of a guest with this name.
    fn guest(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let mut labels = name.iter();
        let first = labels.next()?.to_ascii_lowercase();
        let is_ours = labels.next().is_none() || self.domain == Some(&name.base_name());
        let label = std::str::from_utf8(&first).ok().filter(|_| is_ours)?;
        let (address, mac) = self.names.host(label)?;
        let address6 = mac.and_then(|mac| self.seen.address_of(mac));
        Some([IpAddr::V4(address)].into_iter().chain(address6.map(IpAddr::V6)).collect())
    }

    /// Who has an address, or what there is of a range.
    fn reverse(&self, kind: RecordType, net: IpNet) -> Verdict {
        let address = (net.prefix_len() == net.max_prefix_len()).then_some(net.addr());
        if self.networks.iter().any(|own| own.contains(&net)) {
            let label = address.and_then(|address| self.name_of(address));
            let name = label.and_then(|label| absolute(&label));
            let name =
                name.and_then(|name| self.domain.map_or(Some(name.clone()), |domain| name.append_name(domain).ok()));
            let data =
                name.map(|name| if matches!(kind, RecordType::PTR | RecordType::ANY) { vec![name] } else { vec![] });
            let data = data.map(|names| names.into_iter().map(|name| RData::PTR(PTR(name))).collect());
            return Verdict::Says(data.map_or(NO_SUCH_NAME, Saying::Data));
        }
        let is_hosts = || address.is_some_and(|address| self.private.has_address(address));
        if PRIVATE.iter().any(|range| range.contains(&net)) || is_hosts() {
            return Verdict::Says(NO_SUCH_NAME);
        }
        Verdict::Relay
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        match address {
            IpAddr::V4(address) => self.names.name_at(address),
            IpAddr::V6(address) => {
                self.seen.holder(address).and_then(|guest| self.names.name_of(guest.port, guest.mac))
            }
        }
    }

    /// Whether a name is nobody's business but the host's.
    fn is_private(&self, name: &Name) -> bool {
        let is_below = |domain: &Name| domain.iter().count() > 1 && domain.zone_of(name);
        match name.iter().count() {
            0 => false,
            1 => true,
            _ if LOCAL.zone_of(name) && !self.private.search.iter().any(is_below) => true,
            _ => self.private.own.as_ref() == Some(name) || self.private.names.contains(name),
        }
    }
}
