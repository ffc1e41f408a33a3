//! What a file may say, and how it is told what it may not.

use proptest::prelude::*;

use super::*;
use crate::config::{Attachment, Bridged, FORWARD_SOCKETS_MAX, FORWARDS_MAX, Group, Guest, Mode, Security, Via};

/// The example that comes with the program.
const EXAMPLE: &str = include_str!("../../../packaging/guestwire.toml");

fn config(text: &str) -> Config {
    parse("lab.toml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Each example of `problems.txt` is a title, a file, and what is told about it, word for word.
#[test]
fn problems_are_told_exactly() {
    let examples = include_str!("tests/problems.txt");
    let mut told = String::new();
    for example in examples.split("==== ").skip(1) {
        let (title, rest) = example.split_once('\n').unwrap();
        let (text, _) = rest.split_once("----\n").unwrap();
        let problems = parse("lab.toml", text.as_bytes()).expect_err(title);
        told.push_str(&format!("==== {title}\n{text}----\n{problems}\n"));
    }
    if let Some(place) = std::env::var_os("WRITE_PROBLEMS") {
        std::fs::write(place, &told).unwrap();
    }
    for (now, before) in told.lines().zip(examples.lines()) {
        assert_eq!(now, before, "WRITE_PROBLEMS=FILE writes what is told now");
    }
    assert_eq!(told.lines().count(), examples.lines().count());
}

#[test]
fn bytes_that_are_no_text_have_a_place() {
    let problems = parse("lab.toml", b"[log]\nlevel = \"\xff\"\n").unwrap_err();
    let first = problems.iter().next().unwrap();
    assert_eq!((first.line, first.column), (2, 10), "{problems}");
    assert!(first.text.contains("UTF-8"));
}

#[test]
fn the_example_is_right() {
    let config = config(EXAMPLE);
    let names: Vec<_> = config.networks.iter().map(|network| (network.name.as_str(), network.mode.name())).collect();
    assert_eq!(names, [("lab", "internal"), ("office", "host-only"), ("lan", "bridged"), ("net", "nat")]);
    let reservations = config.networks[1].reservations();
    let ips: Vec<_> = reservations.iter().map(|reservation| reservation.ip.octets()[3]).collect();
    assert_eq!(ips, [21, 22, 10], "the section's, and the port's");
}

/// What is commented out in the example is right as well, each line by itself.
#[test]
fn every_line_of_the_example_may_be_used() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let is_setting = |line: &str| {
        let key = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")).map(|(key, _)| key);
        key.is_some_and(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
    };
    let settings: Vec<usize> = (0..lines.len()).filter(|&i| is_setting(lines[i])).collect();
    assert!(settings.len() > 15, "{settings:?}");
    for &setting in &settings {
        let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        changed[setting] = lines[setting].trim_start_matches("# ").to_owned();
        let key = changed[setting].split(' ').next().unwrap().to_owned();
        // One uplink at a time.
        if ["bridge", "tap", "tap-fd"].contains(&key.as_str()) && lines[..setting].contains(&"nic = \"eth0\"") {
            changed.iter_mut().filter(|line| line.starts_with("nic =")).for_each(String::clear);
        }
        let parsed = parse("guestwire.toml", changed.join("\n").as_bytes());
        assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
    }
}

#[test]
fn every_key_reaches_the_configuration() {
    let config = config(
        r#"
[[network]]
name = "one"
mode = "bridged"
nic = "wlan0"
mac-nat = true
socket-path = ["/run/a", "/run/b"]
connect = "/run/c"
fd = [3, 4]
socket-mode = "0660"
socket-group = "kvm"
mtu = 9_000
offload = "tso=off"
queue-pairs = 4
workers = 2
port-security = "mac"

[[network.port]]
name = "web"
socket-path = "/run/web"
socket-mode = 0o600
mac = "52:54:00:00:00:01"
port-security = "on"

[statistics]
file = "-"
interval = 0.5

[log]
level = "debug"
"#,
    );
    let network = &config.networks[0];
    assert_eq!(network.mode, Mode::Bridged(Bridged { via: Via::Nic("wlan0".parse().unwrap()), mac_nat: true }));
    let ways: Vec<_> = network.attachments.iter().map(ToString::to_string).collect();
    assert_eq!(ways, ["/run/a", "/run/b", "/run/c", "descriptor 3", "descriptor 4"]);
    let Attachment::Listen(listen) = &network.attachments[1] else { panic!("{network:?}") };
    assert_eq!((listen.mode.bits(), &listen.group), (0o660, &Some(Group::Name("kvm".into()))));
    assert_eq!(network.mtu.map(|mtu| mtu.bytes()), Some(9000));
    assert_eq!(network.offload.to_string(), "csum, uso");
    assert_eq!((network.queue_pairs.get(), network.workers.get()), (4, 2));
    assert_eq!(network.security.to_string(), "mac");
    let port = &network.ports[0];
    assert_eq!((port.name.as_str(), port.security), ("web", Security::ON));
    assert_eq!(port.mac.map(|mac| mac.to_string()).as_deref(), Some("52:54:00:00:00:01"));
    let Attachment::Listen(listen) = &port.attachments[0] else { panic!("{port:?}") };
    assert_eq!((listen.mode.bits(), &listen.group), (0o600, &Some(Group::Name("kvm".into()))), "the network's group");
    let stats = config.stats.unwrap();
    assert_eq!((stats.target, stats.interval.duration().as_millis()), (StatsTarget::Stdout, 500));
    assert_eq!(config.verbosity, Verbosity::Debug);
}

#[test]
fn host_only_networks_have_their_defaults() {
    let text = "[[network]]\nname = \"a\"\nmode = \"host-only\"\nsocket-path = \"/a\"\n";
    let network = config(text).networks.remove(0);
    let services = network.services().unwrap();
    assert_eq!(services.subnet.to_string(), "192.168.56.0/24");
    let dhcp = services.dhcp.as_ref().unwrap();
    assert_eq!((dhcp.range.to_string().as_str(), dhcp.lease.seconds()), ("192.168.56.2-192.168.56.254", 3600));
    let Mode::HostOnly(host_only) = &network.mode else { panic!("{network:?}") };
    assert_eq!(host_only.tap.name(&network.name).unwrap().as_str(), "gw-a");
    let off = config(&format!("{text}subnet6 = \"off\"\n[network.dhcp]\nenabled = false\n")).networks.remove(0);
    let services = off.services().unwrap();
    assert!(services.dhcp.is_none() && services.subnet6.is_none());
}

#[test]
fn nat_networks_have_their_defaults_and_their_keys() {
    let text = "[[network]]\nname = \"a\"\nmode = \"nat\"\nsocket-path = \"/a\"\n";
    let network = config(text).networks.remove(0);
    let Mode::Nat(nat) = &network.mode else { panic!("{network:?}") };
    assert_eq!(network.services(), Some(&nat.services));
    assert_eq!(nat.services.subnet.to_string(), "10.0.2.0/24");
    assert!(nat.services.subnet6.is_some() && network.security == Security::ON);
    assert_eq!(nat.services.dhcp.as_ref().unwrap().range.to_string(), "10.0.2.2-10.0.2.254");
    assert!(nat.forwards.is_empty() && nat.allow.is_empty() && nat.deny.is_empty() && !nat.host_loopback);
    let more = "subnet = \"10.9.0.0/16\"\nsubnet6 = \"fd00::/64\"\n\
                forward = [\"tcp:80:web:80\", \"udp:53:[fd00::5]:53\"]\n\
                allow-host-loopback = true\nallow = [\"10.1.0.0/16\", \"fd00::/8\"]\ndeny = \"10.1.2.3\"\n\
                [network.dhcp]\nroutes = \"10.8.0.0/16 via 10.9.0.9\"\n\
                [[network.port]]\nname = \"web\"\nsocket-path = \"/web\"\n";
    let network = config(&format!("{text}{more}")).networks.remove(0);
    let Mode::Nat(nat) = &network.mode else { panic!("{network:?}") };
    let guests: Vec<_> = nat.forwards.iter().map(|forward| forward.guest().clone()).collect();
    assert_eq!(guests, [Guest::Port("web".parse().unwrap()), Guest::Ip("fd00::5".parse().unwrap())]);
    let ranges = |ranges: &[ipnet::IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (ranges(&nat.allow), ranges(&nat.deny)),
        (vec!["10.1.0.0/16".to_owned(), "fd00::/8".to_owned()], vec!["10.1.2.3/32".to_owned()])
    );
    assert!(nat.host_loopback && nat.services.dhcp.as_ref().is_some_and(|dhcp| dhcp.routes.len() == 1));
}

#[test]
fn there_are_only_so_many_forwards() {
    let forwards = |host: &str, count: usize| {
        let forwards: Vec<_> = (1..=count).map(|port| format!("\"tcp:{host}{port}:{port}\"")).collect();
        let text = format!("forward = [{}]\n", forwards.join(","));
        parse("x", format!("[[network]]\nname = \"a\"\nmode = \"nat\"\nsocket-path = \"/a\"\n{text}").as_bytes())
    };
    assert!(forwards("127.0.0.1:", FORWARDS_MAX).is_ok() && forwards("", FORWARD_SOCKETS_MAX / 2).is_ok());
    let problems = forwards("", FORWARD_SOCKETS_MAX / 2 + 9).unwrap_err();
    assert_eq!(problems.iter().count(), 1);
    assert!(problems.to_string().contains("with tcp:2049:2049 they are 4098"), "{problems}");
    let problems = forwards("127.0.0.1:", FORWARDS_MAX + 2).unwrap_err();
    assert_eq!(problems.iter().count(), 1);
    assert!(problems.to_string().contains("at most 4096 forwards can be"), "{problems}");
}

#[test]
fn a_guest_of_an_internal_network_may_be_its_router_and_none_of_a_host_only_one() {
    let network = |mode: &str, more: &str| {
        format!(
            "[[network]]\nname = \"a\"\nmode = \"{mode}\"\nsocket-path = \"/a\"\nsubnet = \"10.0.0.0/24\"\n\
             [network.dhcp]\n{more}\n"
        )
    };
    let said = "router = \"10.0.0.254\"\nroutes = [\"10.1.0.0/16 via 10.0.0.253\", \"0.0.0.0/0 via 10.0.0.254\"]";
    let internal = config(&network("internal", said)).networks.remove(0);
    let dhcp = internal.services().unwrap().dhcp.as_ref().unwrap();
    assert_eq!(dhcp.router, Some("10.0.0.254".parse().unwrap()));
    let routes: Vec<_> = dhcp.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.1.0.0/16 via 10.0.0.253", "0.0.0.0/0 via 10.0.0.254"]);
    for (mode, said, problem) in [
        ("host-only", said, "nothing leaves a host-only network"),
        ("nat", "router = \"10.0.0.9\"", "the router of a nat network is guestwire, at 10.0.0.1: leave it out"),
        ("nat", "routes = [\"10.1.0.0/16 via 10.0.0.1\"]", "the router 10.0.0.1 is not one of the guests"),
        ("internal", "router = \"10.0.0.1\"", "the router 10.0.0.1 is not one of the guests of 10.0.0.0/24"),
        ("internal", "routes = [\"10.1.0.0/16 via 10.9.0.1\"]", "the router 10.9.0.1 is not one of the guests"),
        ("internal", "routes = [\"10.1.0.1/16 via 10.0.0.2\"]", "10.1.0.1/16 is not a network: say 10.1.0.0/16"),
        ("internal", "routes = [\"10.1.0.0 via 10.0.0.2\"]", "not a route, such as"),
    ] {
        let problems = parse("lab.toml", network(mode, said).as_bytes()).unwrap_err();
        assert!(problems.to_string().contains(problem), "{problems}");
    }
}

#[test]
fn internal_networks_give_addresses_only_when_asked() {
    let text = "[[network]]\nname = \"a\"\nmode = \"internal\"\nsocket-path = \"/a\"\n";
    assert_eq!(config(text).networks[0].services(), None);
    let asked = config(&format!("{text}subnet = \"10.1.0.0/30\"\n[network.dhcp]\n")).networks.remove(0);
    let services = asked.services().unwrap();
    assert_eq!(services.dhcp.as_ref().unwrap().range.to_string(), "10.1.0.2-10.1.0.2");
    assert_eq!(services.subnet6, None);
}

#[test]
fn very_many_problems_are_bounded_and_so_is_the_time() {
    let mut text = String::new();
    for i in 0..40_000 {
        text.push_str(&format!("[[network]]\nsubnet{i}=1\n"));
    }
    let start = std::time::Instant::now();
    let problems = parse("x", text.as_bytes()).unwrap_err();
    assert_eq!(problems.iter().count(), PROBLEMS_MAX);
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}

/// A file with a few bytes changed: near to what users write.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let change = (0..EXAMPLE.len(), 0..40_usize, "[\\[\\]\"=a-z0-9.\n\t é#{},-]{0,6}");
    prop::collection::vec(change, 1..6).prop_map(|changes| {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for (at, len, with) in changes {
            let at = at.min(bytes.len());
            let end = (at + len).min(bytes.len());
            bytes.splice(at..end, with.into_bytes());
        }
        bytes
    })
}

fn is_told_well(bytes: &[u8]) {
    let Err(problems) = parse("x", bytes) else { return };
    assert!(problems.iter().count() > 0);
    let lines = bytes.split(|b| *b == b'\n').count();
    for problem in problems.iter() {
        assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem:?}");
        assert_eq!(problem.to_string().lines().count(), 3, "{problem}");
    }
}

/// Keys of a network, and of its DHCP server.
const KEYS: &[&str] = &[
    "name",
    "mode",
    "socket-path",
    "connect",
    "fd",
    "mtu",
    "offload",
    "workers",
    "queue-pairs",
    "subnet",
    "subnet6",
    "tap",
    "tap-fd",
    "nic",
    "mac-nat",
    "port-security",
    "socket-mode",
    "socket-group",
    "port",
    "dhcp",
    "dhcp.range",
    "dhcp.lease",
    "dhcp.dns",
    "dhcp.router",
    "dhcp.routes",
    "forward",
    "allow-host-loopback",
    "allow",
    "deny",
];

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        is_told_well(&bytes);
    }

    #[test]
    fn no_text_does_harm(text in "\\PC{0,200}") {
        is_told_well(text.as_bytes());
    }

    #[test]
    fn no_damage_does_harm(bytes in damaged()) {
        is_told_well(&bytes);
    }

    #[test]
    fn no_value_does_harm(key in 0..KEYS.len(), value in "\\PC{0,40}", quoted in any::<bool>()) {
        let value = if quoted { format!("'{value}'") } else { value };
        is_told_well(format!("[[network]]\n{} = {value}\n", KEYS[key]).as_bytes());
    }
}
