//! What a network has that no other can have at the same time, beside the ways into it.

use std::path::Path;

use crate::config::{Bridged, Forward, IfName, Mode, Network, TapSource, Via};

/// Whether one network cannot be started as long as the other runs.
pub(super) fn exclude_each_other(one: &Network, other: &Network) -> bool {
    let same_interface = interface(one).is_some_and(|name| interface(other) == Some(name));
    let same_file = lease_file(one).is_some_and(|path| lease_file(other) == Some(path));
    let same_subnet = one.services().zip(other.services()).is_some_and(|(one, other)| {
        let same_subnet6 = one.subnet6.is_some() && one.subnet6 == other.subnet6;
        one.subnet.overlaps(other.subnet) || same_subnet6
    });
    let has_same = |forward: &Forward| other.mode.forwards().iter().any(|theirs| forward.overlaps(theirs));
    let same_forward = one.mode.forwards().iter().any(has_same);
    same_interface || same_file || same_subnet || same_forward
}

/// The interface of the host that a network uses.
fn interface(network: &Network) -> Option<IfName> {
    match &network.mode {
        Mode::Internal(_) | Mode::Nat(_) => None,
        Mode::HostOnly(host_only) => host_only.tap.name(&network.name),
        Mode::Bridged(Bridged { via: Via::Nic(nic), .. }) => Some(nic.clone()),
        Mode::Bridged(Bridged { via: Via::Bridge(_), .. }) => TapSource::Auto.name(&network.name),
        Mode::Bridged(Bridged { via: Via::Tap(tap), .. }) => tap.name(&network.name),
    }
}

/// The file of leases that the user chose; others have the network's name.
fn lease_file(network: &Network) -> Option<&Path> {
    network.services()?.dhcp.as_ref()?.leases.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn network(name: &str, more: &str) -> Network {
        let text = format!("[[network]]\nname = \"{name}\"\nsocket-path = \"/{name}.sock\"\n{more}\n");
        file::parse("lab.toml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}")).networks.remove(0)
    }

    #[test]
    fn what_only_one_can_have_excludes_the_other() {
        let host_only = "mode = \"host-only\"\nsubnet = ";
        let nat = |subnet: u8, forward: &str| {
            format!("mode = \"nat\"\nsubnet = \"10.{subnet}.0.0/24\"\nforward = \"{forward}\"")
        };
        for (one, other, excluded) in [
            ("mode = \"internal\"".to_owned(), "mode = \"internal\"".to_owned(), false),
            (format!("{host_only}\"10.1.0.0/24\""), format!("{host_only}\"10.2.0.0/24\""), false),
            (format!("{host_only}\"10.1.0.0/24\""), format!("{host_only}\"10.1.0.0/16\""), true),
            (
                format!("{host_only}\"10.1.0.0/24\"\nsubnet6 = \"fd00::/64\""),
                format!("{host_only}\"10.2.0.0/24\"\nsubnet6 = \"fd00::/64\""),
                true,
            ),
            (format!("{host_only}\"10.1.0.0/24\"\ntap = \"t0\""), "mode = \"bridged\"\ntap = \"t0\"".to_owned(), true),
            (
                format!("{host_only}\"10.1.0.0/24\"\n[network.dhcp]\nleases = \"/l\""),
                format!("{host_only}\"10.2.0.0/24\"\n[network.dhcp]\nleases = \"/l\""),
                true,
            ),
            (nat(1, "tcp:80:80"), nat(2, "tcp:81:80"), false),
            (nat(1, "tcp:80:80"), nat(2, "tcp:%e0:79-81:79"), true),
            ("mode = \"bridged\"\nnic = \"e0\"".to_owned(), "mode = \"bridged\"\nnic = \"e0\"".to_owned(), true),
            ("mode = \"bridged\"\nbridge = \"b0\"".to_owned(), "mode = \"bridged\"\nbridge = \"b0\"".to_owned(), false),
        ] {
            assert_eq!(exclude_each_other(&network("a", &one), &network("b", &other)), excluded, "{one}; {other}");
        }
    }
}
