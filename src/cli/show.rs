//! What a configuration amounts to, for people and for programs.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::Form;
use crate::config::file::{self, FileError};
use crate::config::{
    Attachment, Config, DeclaredPort, Dhcp, Holder, Mode, Nat, Network, Offload, Services, StatsTarget, TapSource, Via,
};

/// What `guestwire check` prints of a file: what would run, or what is wrong.
///
/// # Errors
/// The text to print when something is.
pub fn check(path: &Path, form: Form) -> Result<String, String> {
    match (file::read(path), form) {
        (Ok(config), Form::Text) => Ok(sentences(&config)),
        (Ok(config), Form::Json) => Ok(object(&config).to_string()),
        (Err(error), Form::Text) => Err(error.to_string()),
        (Err(error), Form::Json) => Err(problems(&error).to_string()),
    }
}

fn sentences(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write_sentences(&mut text, config);
    text.trim_end().to_owned()
}

fn write_sentences(text: &mut String, config: &Config) -> fmt::Result {
    for network in &config.networks {
        write_network(text, network)?;
        writeln!(text)?;
    }
    match &config.stats {
        None => writeln!(text, "statistics: none")?,
        Some(stats) => {
            writeln!(text, "statistics: to {} every {:?}", target(&stats.target), stats.interval.duration())?
        }
    }
    writeln!(text, "log: {}", config.verbosity.name())
}

fn write_network(text: &mut String, network: &Network) -> fmt::Result {
    writeln!(text, "network {}: {}", network.name, network.mode.name())?;
    if let Some(uplink) = uplink(network) {
        writeln!(text, "  connected by {uplink}")?;
    }
    if let Some(services) = network.services() {
        write_services(text, network, services)?;
    }
    if let Mode::Nat(nat) = &network.mode {
        write_reach(text, nat)?;
    }
    write_ways_in(text, "  ", &network.attachments)?;
    for port in &network.ports {
        let mac = port.mac.map(|mac| format!(", MAC {mac}")).unwrap_or_default();
        let ip = port.ip.map(|ip| format!(", IP {ip}")).unwrap_or_default();
        let security = if port.security == network.security { String::new() } else { security(port) };
        writeln!(text, "  port {}{mac}{ip}{security}", port.name)?;
        write_ways_in(text, "    ", &port.attachments)?;
    }
    let mtu = network.mtu.map_or("the guests' own".to_owned(), |mtu| mtu.bytes().to_string());
    writeln!(text, "  MTU {mtu}, offloads {}, port security {}", network.offload, network.security)?;
    writeln!(text, "  queue pairs {}, workers {}", network.queue_pairs.get(), network.workers.get())
}

fn security(port: &DeclaredPort) -> String {
    format!(", port security {}", port.security)
}

fn write_services(text: &mut String, network: &Network, services: &Services) -> fmt::Result {
    let subnet6 = services.subnet6.map(|subnet| format!(" and {subnet}")).unwrap_or_default();
    writeln!(text, "  subnet {}{subnet6}, ours is {}", services.subnet, services.subnet.own())?;
    let Some(dhcp) = &services.dhcp else { return writeln!(text, "  no DHCP") };
    writeln!(text, "  DHCP gives out {}, each for {}", dhcp.range, dhcp.lease)?;
    if let Some(router) = dhcp.router {
        writeln!(text, "  guests are told of the router {router}")?;
    }
    for route in &dhcp.routes {
        writeln!(text, "  guests are told that they reach {route}")?;
    }
    for reservation in network.reservations() {
        writeln!(text, "  {} is kept for {}", reservation.ip, reservation.holder)?;
    }
    Ok(())
}

fn write_reach(text: &mut String, nat: &Nat) -> fmt::Result {
    for forward in &nat.forwards {
        writeln!(text, "  the host forwards {forward}")?;
    }
    if nat.host_loopback {
        writeln!(text, "  guests reach the host's loopback and link-local addresses")?;
    }
    for (what, ranges) in [("reach only", &nat.allow), ("do not reach", &nat.deny)] {
        if !ranges.is_empty() {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            writeln!(text, "  guests {what} {}", ranges.join(", "))?;
        }
    }
    Ok(())
}

fn write_ways_in(text: &mut String, indent: &str, attachments: &[Attachment]) -> fmt::Result {
    for attachment in attachments {
        match attachment {
            Attachment::Listen(listen) => {
                let group = listen.group.as_ref().map(|group| format!(", group {group}")).unwrap_or_default();
                writeln!(text, "{indent}VMs connect to {attachment} (mode {}{group})", listen.mode)?;
            }
            Attachment::Connect(_) => writeln!(text, "{indent}guestwire connects to {attachment}")?,
            Attachment::Inherit(_) => writeln!(text, "{indent}VMs come in on {attachment}")?,
        }
    }
    Ok(())
}

fn uplink(network: &Network) -> Option<String> {
    let tap = |source: &TapSource| match source.name(&network.name) {
        Some(name) => format!("the tap {name}"),
        None => source.to_string(),
    };
    match &network.mode {
        Mode::Internal(_) => None,
        Mode::HostOnly(host_only) => Some(tap(&host_only.tap)),
        Mode::Bridged(bridged) => {
            let shared = if bridged.mac_nat { ", whose MAC address guests share" } else { "" };
            Some(match &bridged.via {
                Via::Tap(source) => tap(source),
                via => format!("{via}{shared}"),
            })
        }
        Mode::Nat(_) => Some("the host's own sockets".to_owned()),
    }
}

fn target(target: &StatsTarget) -> String {
    match target {
        StatsTarget::Stdout => "the standard output".to_owned(),
        StatsTarget::File(path) => path.display().to_string(),
    }
}

fn object(config: &Config) -> Value {
    json!({
        "networks": config.networks.iter().map(network_object).collect::<Vec<_>>(),
        "statistics": config.stats.as_ref().map(|stats| json!({
            "file": match &stats.target {
                StatsTarget::Stdout => "-".to_owned(),
                StatsTarget::File(path) => path.display().to_string(),
            },
            "interval_seconds": stats.interval.duration().as_secs_f64(),
        })),
        "log": config.verbosity.name(),
    })
}

fn network_object(network: &Network) -> Value {
    let offloads = Offload::ALL.iter().filter(|offload| network.offload.contains(**offload)).map(|o| o.name());
    json!({
        "name": network.name.as_str(),
        "mode": network.mode.name(),
        "uplink": uplink_object(network),
        "services": network.services().map(|services| services_object(network, services)),
        "ways_in": ways_in_object(&network.attachments),
        "ports": network.ports.iter().map(|port| json!({
            "name": port.name.as_str(),
            "ways_in": ways_in_object(&port.attachments),
            "mac": port.mac.map(|mac| mac.to_string()),
            "ip": port.ip,
            "port_security": port.security.to_string(),
        })).collect::<Vec<_>>(),
        "port_security": network.security.to_string(),
        "mtu": network.mtu.map(|mtu| mtu.bytes()),
        "offloads": offloads.collect::<Vec<_>>(),
        "queue_pairs": network.queue_pairs.get(),
        "workers": network.workers.get(),
    })
}

fn uplink_object(network: &Network) -> Value {
    let tap = |source: &TapSource| match source {
        TapSource::Inherit(fd) => json!({ "tap_fd": fd.number() }),
        named => json!({ "tap": named.name(&network.name).map(|name| name.to_string()) }),
    };
    match &network.mode {
        Mode::Internal(_) => Value::Null,
        Mode::HostOnly(host_only) => tap(&host_only.tap),
        Mode::Bridged(bridged) => match &bridged.via {
            Via::Nic(name) => json!({ "nic": name.as_str(), "mac_nat": bridged.mac_nat }),
            Via::Bridge(name) => json!({ "bridge": name.as_str() }),
            Via::Tap(source) => tap(source),
        },
        Mode::Nat(nat) => json!({
            "forwards": nat.forwards.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "allow_host_loopback": nat.host_loopback,
            "allow": nat.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "deny": nat.deny.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
    }
}

fn services_object(network: &Network, services: &Services) -> Value {
    json!({
        "subnet": services.subnet.to_string(),
        "subnet6": services.subnet6.map(|subnet| subnet.to_string()),
        "own_address": services.subnet.own(),
        "dhcp": services.dhcp.as_ref().map(|dhcp| dhcp_object(network, dhcp)),
    })
}

fn dhcp_object(network: &Network, dhcp: &Dhcp) -> Value {
    let reservations = network.reservations();
    let dns = dhcp.dns.iter().copied().map(IpAddr::V4).chain(dhcp.dns6.iter().copied().map(IpAddr::V6));
    json!({
        "first": dhcp.range.first(),
        "last": dhcp.range.last(),
        "lease_seconds": dhcp.lease.seconds(),
        "dns": dns.collect::<Vec<_>>(),
        "domain": dhcp.domain.as_ref().map(|domain| domain.as_str()),
        "search": dhcp.search.iter().map(|domain| domain.as_str()).collect::<Vec<_>>(),
        "router": dhcp.router,
        "routes": dhcp.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "leases": dhcp.leases,
        "reservations": reservations.iter().map(|reservation| {
            let (mac, client) = match &reservation.holder {
                Holder::Mac(mac) => (Some(mac.to_string()), None),
                Holder::Client(id) => (None, Some(id.to_string())),
            };
            let name = reservation.name.as_ref().map(|name| name.as_str());
            json!({ "mac": mac, "client_id": client, "ip": reservation.ip, "name": name })
        }).collect::<Vec<_>>(),
    })
}

fn ways_in_object(attachments: &[Attachment]) -> Value {
    let way_in = |attachment: &Attachment| match attachment {
        Attachment::Listen(listen) => json!({
            "socket_path": listen.path.as_path(),
            "socket_mode": listen.mode.to_string(),
            "socket_group": listen.group.as_ref().map(|group| group.to_string()),
        }),
        Attachment::Connect(path) => json!({ "connect": path.as_path() }),
        Attachment::Inherit(fd) => json!({ "fd": fd.number() }),
    };
    attachments.iter().map(way_in).collect()
}

fn problems(error: &FileError) -> Value {
    match error {
        FileError::Problems(problems) => {
            let one = |found: &file::Diagnostic| {
                let (line, column) = (found.line, found.column);
                json!({ "file": found.file, "line": line, "column": column, "problem": found.text })
            };
            json!({ "problems": problems.iter().map(one).collect::<Vec<_>>() })
        }
        other => json!({ "problems": [{ "problem": other.to_string() }] }),
    }
}
