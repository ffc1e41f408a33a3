use clap::CommandFactory;

use super::*;
use crate::config::{
    Attachment, Bridged, Group, HostOnly, Internal, Mode, Nat, OffloadMask, Security, StatsTarget, Subnet4, TapSource,
    Verbosity, Via,
};

fn parsed(line: &str) -> Result<Command, UsageError> {
    parse(std::iter::once("guestwire").chain(line.split_whitespace()).map(OsString::from))
}

fn config(line: &str) -> Config {
    match parsed(line) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    let text = match parsed(line) {
        Err(error) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    };
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains("--help"), "{text}");
    text
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_socket_path_is_enough() {
    let config = config("internal --socket-path /tmp/lab.sock");
    assert_eq!(config.networks[0].mode, Mode::Internal(Internal::default()));
    assert_eq!(config.networks[0].name.as_str(), "internal");
    let [Attachment::Listen(listen)] = config.networks[0].attachments.as_slice() else { panic!("{config:?}") };
    assert_eq!(listen.path.as_path().to_str(), Some("/tmp/lab.sock"));
    assert_eq!((listen.mode.bits(), &listen.group), (0o600, &None));
    assert_eq!((config.networks[0].mtu, config.networks[0].offload), (None, OffloadMask::ALL));
    assert_eq!((config.stats, config.verbosity), (None, Verbosity::Normal));
}

#[test]
fn every_flag_reaches_the_configuration() {
    let config = config(
        "internal --socket-path a --socket-path b --connect c --socket-mode 0660 --socket-group kvm --mtu 9000 \
         --offload off --stats out.json --stats-interval 0.5 -vv",
    );
    let names: Vec<_> = config.networks[0].attachments.iter().map(|a| a.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let Attachment::Listen(listen) = &config.networks[0].attachments[1] else { panic!("{config:?}") };
    assert_eq!((listen.mode.bits(), listen.group.clone()), (0o660, Some(Group::Name("kvm".into()))));
    assert_eq!(config.networks[0].mtu.map(|m| m.bytes()), Some(9000));
    assert_eq!(config.networks[0].offload, OffloadMask::NONE);
    let stats = config.stats.unwrap();
    assert_eq!(stats.target, StatsTarget::File("out.json".into()));
    assert_eq!(stats.interval.duration().as_millis(), 500);
    assert_eq!(config.verbosity, Verbosity::Trace);
}

#[test]
fn descriptors_and_standard_output() {
    let config = config("-q internal --fd 3 --fd 4 --stats -");
    assert_eq!(config.networks[0].attachments.len(), 2);
    assert_eq!(config.stats.unwrap().target, StatsTarget::Stdout);
    assert_eq!(config.verbosity, Verbosity::Quiet);
}

#[test]
fn capabilities_come_before_everything_else() {
    for line in ["--print-capabilities", "internal --print-capabilities", "nonsense --mtu x --print-capabilities --fd"]
    {
        assert!(matches!(parsed(line), Ok(Command::PrintCapabilities)), "{line}");
    }
    assert_eq!(serde_json::from_str::<serde_json::Value>(CAPABILITIES).unwrap()["type"], "net");
}

#[test]
fn errors_are_one_line_with_the_way_out() {
    for (line, says) in [
        ("", "internal --socket-path"),
        ("internal", "--socket-path PATH"),
        ("internal --soket-path a", "'--socket-path'"),
        ("internal --socket-path", "<PATH>"),
        ("internal --socket-path a --fd 3", "--fd"),
        ("internal --socket-path a --socket-mode 0999", "0660"),
        ("internal --connect a --socket-mode 0600", "--socket-path"),
        ("internal --socket-path a --mtu 67", "68 to 65535"),
        ("internal --socket-path a --mtu 0", "guestwire internal --help"),
        ("internal --socket-path a --offload lro=off", "csum, tso, uso, ecn"),
        ("internal --socket-path a --stats-interval 2", "--stats"),
        ("internal --socket-path a --socket-path a", "named twice"),
        ("internal --fd 1", "standard stream"),
        ("internal --fd x", "descriptor"),
        ("internal --socket-path a -q -v", "--quiet"),
        ("internal --socket-path a b", "'b'"),
        ("intrenal --socket-path a", "'internal'"),
        ("internal --socket-path a --dhcp", "--subnet"),
        ("internal --socket-path a --subnet 10.0.0.0/24", "add --dhcp"),
        ("internal --socket-path a --dns 10.0.0.1", "add --dhcp"),
        ("host-only --socket-path a --subnet 10.0.0.1/24", "10.0.0.0/24"),
        ("host-only --socket-path a --no-dhcp --domain lab", "--no-dhcp"),
        ("host-only --socket-path a --dhcp-range 10.0.0.2-10.0.0.9", "192.168.56.254"),
        ("host-only --tap-fd 5 --fd 5", "named twice"),
        ("bridged --socket-path a", "--nic <IF>"),
        ("bridged --socket-path a --nic eth0 --bridge br0", "--bridge"),
        ("bridged --socket-path a --bridge br0 --mac-nat", "nic"),
        ("bridged --socket-path a --nic eth0/1", "guestwire bridged --help"),
        ("nat --socket-path a --forward 2222:22", "begins with tcp: or udp:"),
        ("nat --socket-path a --forward tcp:80:web:80", "no port 'web'"),
        ("nat --socket-path a --forward tcp:80:80 --forward tcp:127.0.0.1:80:80", "wants what tcp:80:80 has already"),
        ("nat --socket-path a --forward tcp:80:10.9.0.5:80", "10.0.2.2-10.0.2.254"),
        ("nat --socket-path a --subnet6 off --forward tcp:[::1]:80:80", "subnet6"),
        ("nat --socket-path a --allow 10.1.0.1/16", "say 10.1.0.0/16"),
        ("nat --socket-path a --deny intranet", "10.1.0.0/16 or fd00::/8"),
        ("nat --socket-path a --no-dhcp", "--no-dhcp"),
        ("run", "--config <FILE>"),
        ("check", "<FILE>"),
        ("check a --output xml", "json"),
    ] {
        let text = refused(line);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(says), "{line}: {text}");
    }
}

#[test]
fn each_problem_has_a_line() {
    let text = refused("internal --socket-path a --socket-path a --connect b --connect b");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn help_and_version_are_answers() {
    for line in
        ["--help", "-h", "--version", "internal --help", "internal -h", "bridged --help", "nat -h", "check --help"]
    {
        assert!(matches!(parsed(line), Ok(Command::Help(_))), "{line}");
    }
}

#[test]
fn a_host_only_network_has_its_defaults_and_its_flags() {
    let network = config("host-only --socket-path a").networks.remove(0);
    let services = network.services().unwrap();
    assert_eq!((network.name.as_str(), services.subnet), ("host-only", Subnet4::HOST_ONLY));
    assert!(services.dhcp.is_some() && services.subnet6.is_some());
    assert_eq!(network.security, Security::ON);
    let line = "host-only --socket-path a --name lab --subnet 10.9.0.0/16 --subnet6 fd01::/64 --tap t0 --dhcp-range \
                10.9.1.0-10.9.1.9 --lease-time 2h --dns 10.9.0.1 --dns fd00::5 --domain lab --leases l \
                --port-security off";
    let network = config(line).networks.remove(0);
    let Mode::HostOnly(HostOnly { tap, services }) = &network.mode else { panic!("{network:?}") };
    assert_eq!(*tap, TapSource::Name("t0".parse().unwrap()));
    assert_eq!(services.subnet6.unwrap().to_string(), "fd01::/64");
    let dhcp = services.dhcp.as_ref().unwrap();
    assert_eq!((dhcp.range.to_string(), dhcp.lease.to_string()), ("10.9.1.0-10.9.1.9".into(), "2h".into()));
    assert_eq!((dhcp.dns.len(), dhcp.dns6.len(), dhcp.domain.is_some(), dhcp.leases.is_some()), (1, 1, true, true));
    assert_eq!((network.name.as_str(), network.security), ("lab", Security::OFF));
    let quiet = config("host-only --socket-path a --no-dhcp --subnet6 off").networks.remove(0);
    assert!(quiet.services().is_some_and(|services| services.dhcp.is_none() && services.subnet6.is_none()));
}

#[test]
fn a_nat_network_has_its_defaults_and_its_flags() {
    let network = config("nat --socket-path a").networks.remove(0);
    let Mode::Nat(nat) = &network.mode else { panic!("{network:?}") };
    assert_eq!((network.name.as_str(), nat.services.subnet, network.security), ("nat", Subnet4::NAT, Security::ON));
    assert!(nat.services.dhcp.is_some() && nat.services.subnet6.is_some());
    assert!(nat.forwards.is_empty() && !nat.host_loopback && nat.allow.is_empty() && nat.deny.is_empty());
    let line = "nat --socket-path a --name lab --subnet 10.9.0.0/16 --subnet6 fd01::/64 --leases l --dns 9.9.9.9 \
                --forward tcp:127.0.0.1:2222:22 --forward udp:[::1]:53:[fd01::5]:53 --allow-host-loopback \
                --allow 10.1.0.0/16 --allow fd00::/8 --deny 10.1.2.3";
    let network = config(line).networks.remove(0);
    let Mode::Nat(Nat { services, forwards, host_loopback, allow, deny }) = &network.mode else {
        panic!("{network:?}")
    };
    assert!(services.dhcp.as_ref().is_some_and(|dhcp| dhcp.leases.is_some() && dhcp.dns.len() == 1));
    let forwards: Vec<_> = forwards.iter().map(ToString::to_string).collect();
    assert_eq!(forwards, ["tcp:127.0.0.1:2222:22", "udp:[::1]:53:[fd01::5]:53"]);
    assert_eq!((*host_loopback, allow.len(), deny.len()), (true, 2, 1));
}

#[test]
fn a_bridged_network_has_one_uplink() {
    for (flag, via) in [
        ("--nic eth0", Via::Nic("eth0".parse().unwrap())),
        ("--bridge br0", Via::Bridge("br0".parse().unwrap())),
        ("--tap t0", Via::Tap(TapSource::Name("t0".parse().unwrap()))),
        ("--tap-fd 7", Via::Tap(TapSource::Inherit("7".parse().unwrap()))),
    ] {
        let network = config(&format!("bridged --socket-path a {flag}")).networks.remove(0);
        assert_eq!(network.mode, Mode::Bridged(Bridged { via, mac_nat: false }));
        assert_eq!(network.security, Security::OFF);
    }
    let network = config("bridged --socket-path a --nic wlan0 --mac-nat").networks.remove(0);
    assert!(matches!(network.mode, Mode::Bridged(Bridged { mac_nat: true, .. })));
}

#[test]
fn files_are_run_and_checked() {
    let Ok(Command::RunFile { file, verbosity }) = parsed("-v run --config f") else { panic!() };
    assert_eq!((file.to_str(), verbosity), (Some("f"), Some(Verbosity::Debug)));
    let Ok(Command::RunFile { verbosity: None, .. }) = parsed("run --config f") else { panic!() };
    let Ok(Command::Check { form: Form::Text, .. }) = parsed("check f") else { panic!() };
    let Ok(Command::Check { form: Form::Json, .. }) = parsed("check f --output json") else { panic!() };
}
