//! What is a valid configuration, and what is not.

use std::ffi::OsString;
use std::time::Duration;

use super::*;

#[test]
fn paths_fit_a_socket_address() {
    let path = |bytes: usize| OsString::from(format!("/{}", "x".repeat(bytes - 1)));
    assert!(ListenPath::new(path(LISTEN_PATH_BYTES_MAX)).is_ok());
    assert!(ListenPath::new(path(LISTEN_PATH_BYTES_MAX + 1)).is_err());
    assert!(ConnectPath::new(path(CONNECT_PATH_BYTES_MAX)).is_ok());
    assert!(ConnectPath::new(path(CONNECT_PATH_BYTES_MAX + 1)).is_err());
    for bad in ["", "/", "/tmp/", "/tmp/..", "."] {
        assert!(ListenPath::new(bad.into()).is_err(), "{bad:?}");
    }
    assert!(ListenPath::new("lab.sock".into()).is_ok());
}

#[test]
fn modes_are_octal() {
    assert_eq!("0660".parse::<SocketMode>().unwrap().bits(), 0o660);
    assert_eq!("600".parse::<SocketMode>().unwrap(), SocketMode::PRIVATE);
    assert_eq!("0o666".parse::<SocketMode>().unwrap().to_string(), "0666");
    for bad in ["", "0888", "1777", "+600", "-1", "rw"] {
        assert!(bad.parse::<SocketMode>().is_err(), "{bad:?}");
    }
}

#[test]
fn numbers_have_bounds() {
    assert_eq!("68".parse::<Mtu>().unwrap().bytes(), MTU_MIN);
    assert_eq!("65535".parse::<Mtu>().unwrap().bytes(), u16::MAX);
    for bad in ["67", "65536", "-1", "", "1500.0"] {
        assert!(bad.parse::<Mtu>().is_err(), "{bad:?}");
    }
    assert_eq!("0.5".parse::<StatsInterval>().unwrap().duration(), Duration::from_millis(500));
    for bad in ["0", "-1", "NaN", "inf", "86401", ""] {
        assert!(bad.parse::<StatsInterval>().is_err(), "{bad:?}");
    }
    assert_eq!("16".parse::<QueuePairs>().unwrap().get(), QUEUE_PAIRS_MAX);
    for bad in ["0", "17", "65537", "-1", "two", ""] {
        assert!(bad.parse::<QueuePairs>().is_err(), "{bad:?}");
    }
    assert_eq!("64".parse::<WorkerCount>().unwrap().get(), WORKERS_MAX);
    for bad in ["0", "65", "256", "-1", "two", ""] {
        assert!(bad.parse::<WorkerCount>().is_err(), "{bad:?}");
    }
    assert_eq!("3".parse::<InheritedFd>().unwrap().number(), 3);
    for bad in ["0", "2", "-1", "x", "99999999999"] {
        assert!(bad.parse::<InheritedFd>().is_err(), "{bad:?}");
    }
}

#[test]
fn groups_are_names_or_numbers() {
    assert_eq!("kvm".parse(), Ok(Group::Name("kvm".into())));
    assert_eq!("107".parse(), Ok(Group::Gid(107)));
    assert!("4294967295".parse::<Group>().is_err());
    assert!("".parse::<Group>().is_err());
}

#[test]
fn offload_lists() {
    let offered = |text: &str| text.parse::<OffloadMask>().unwrap().to_string();
    assert_eq!(offered("on"), "csum, tso, uso, ecn");
    assert_eq!(offered("off"), "none");
    assert_eq!(offered("uso=off"), "csum, tso, ecn");
    assert_eq!(offered("tso=off"), "csum, uso", "ECN goes with TSO");
    assert_eq!(offered("csum=off"), "none", "everything needs the checksum");
    assert_eq!(offered("off,csum=on"), "csum");
    assert_eq!(offered("off,csum=on,tso=on"), "csum, tso");
    assert_eq!(offered("on,ecn=off"), "csum, tso, uso");
}

#[test]
fn offload_lists_that_contradict_themselves() {
    for bad in
        ["", "yes", "tso", "tso=maybe", "lro=off", "tso=off,tso=off", "off,tso=on", "csum=off,uso=on", "tso=off,on"]
    {
        assert!(bad.parse::<OffloadMask>().is_err(), "{bad:?}");
    }
}

#[test]
fn every_offload_comes_after_what_it_needs() {
    for (i, offload) in Offload::ALL.iter().enumerate() {
        assert!(offload.needs().is_none_or(|needed| Offload::ALL[..i].contains(&needed)), "{offload:?}");
    }
}
#[test]
fn names_can_be_interfaces_and_files() {
    for good in ["a", "lab-1", "A_b.c", &"x".repeat(32)] {
        assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
    }
    for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(33)] {
        assert!(bad.parse::<Name>().is_err(), "{bad:?}");
    }
    for good in ["eth0", "br-lan", "a.100", "ö", &"x".repeat(15)] {
        assert!(good.parse::<IfName>().is_ok(), "{good:?}");
    }
    for bad in ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "a\n", &"x".repeat(16)] {
        assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
    }
    let long = "abcdefghijklmnopq".parse().unwrap();
    assert_eq!(TapSource::Auto.name(&long).unwrap().as_str(), "gw-abcdefghijkl");
    let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(DOMAIN_BYTES_MAX - 128)].join(".");
    assert!(longest.len() == DOMAIN_BYTES_MAX && longest.parse::<DomainName>().is_ok());
    assert!(format!("{longest}d").parse::<DomainName>().is_err(), "no host's name fits before it");
    assert!("lab.example.".parse::<DomainName>().is_ok_and(|domain| domain.as_str() == "lab.example"));
    for bad in ["", ".", "a..b", "-a", "a-", &"x".repeat(64), "a b"] {
        assert!(bad.parse::<DomainName>().is_err(), "{bad:?}");
    }
    assert!("a.b".parse::<HostName>().is_err() && "web-1".parse::<HostName>().is_ok());
}

#[test]
fn addresses_are_those_of_interfaces() {
    let mac = "52:54:00:AB:cd:01".parse::<MacAddr>().unwrap();
    assert_eq!((mac.bytes(), mac.to_string().as_str()), ([0x52, 0x54, 0, 0xab, 0xcd, 1], "52:54:00:ab:cd:01"));
    for bad in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "5254.0012.3456",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "52:54:00:12:34:+6",
        "52:54:00:12:34:6",
    ] {
        assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
    }
    assert!("01:ff".parse::<ClientId>().is_ok() && "01".parse::<ClientId>().is_err());
}

#[test]
fn subnets_have_a_first_address_for_us_and_the_rest_for_guests() {
    let addresses = |text: &str| {
        let subnet = text.parse::<Subnet4>().unwrap();
        [subnet.own(), subnet.first(), subnet.last(), subnet.broadcast()].map(|address| address.to_string())
    };
    assert_eq!(addresses("192.168.56.0/24"), ["192.168.56.1", "192.168.56.2", "192.168.56.254", "192.168.56.255"]);
    assert_eq!(addresses("10.0.0.4/30"), ["10.0.0.5", "10.0.0.6", "10.0.0.6", "10.0.0.7"]);
    assert_eq!(addresses("10.0.0.0/8"), ["10.0.0.1", "10.0.0.2", "10.255.255.254", "10.255.255.255"]);
    let subnet = Subnet4::HOST_ONLY;
    assert_eq!(
        (subnet.to_string().as_str(), subnet.netmask().to_string().as_str()),
        ("192.168.56.0/24", "255.255.255.0")
    );
    assert!(subnet.overlaps("192.168.0.0/16".parse().unwrap()) && !subnet.overlaps("192.168.57.0/24".parse().unwrap()));
    for bad in [
        "",
        "10.0.0.0",
        "10.0.0.1/24",
        "10.0.0.0/7",
        "10.0.0.0/31",
        "10.0.0.0/+8",
        "0.0.0.0/8",
        "127.0.0.0/8",
        "224.0.0.0/24",
        "255.255.255.0/24",
        "fd00::/64",
    ] {
        assert!(bad.parse::<Subnet4>().is_err(), "{bad:?}");
    }
}

#[test]
fn subnets_of_ipv6_are_unique_local_and_stable() {
    let derived = |name: &str, subnet: &str| Subnet6::derived(&name.parse().unwrap(), subnet.parse().unwrap());
    let one = derived("host-only", "192.168.56.0/24");
    // Guests would lose their addresses if it were another one in the next version.
    assert_eq!(one.to_string(), DERIVED);
    assert_eq!(one.to_string().parse(), Ok(one));
    assert_ne!(one, derived("host-only", "192.168.57.0/24"));
    assert_ne!(one, derived("lab", "192.168.56.0/24"));
    assert!(one.contains(one.own()) && one.own().to_string().ends_with("::1"));
    for bad in ["", "fd00::/48", "fd00::1/64", "fc00::/64", "fe80::/64", "2001:db8::/64", "10.0.0.0/24"] {
        assert!(bad.parse::<Subnet6>().is_err(), "{bad:?}");
    }
}

/// What [`Subnet6::derived`] makes of the defaults.
const DERIVED: &str = "fd86:7ffc:9d5c::/64";

#[test]
fn leases_have_times_and_a_place() {
    for (text, seconds) in [("120s", 120), ("121", 121), ("30m", 1800), ("1h", 3600), ("365d", 31_536_000)] {
        assert_eq!(text.parse::<LeaseTime>().unwrap().seconds(), seconds);
    }
    for bad in ["", "h", "119s", "366d", "1w", "1.5h", "-1h", "+1h", "99999999999d", "1hh"] {
        assert!(bad.parse::<LeaseTime>().is_err(), "{bad:?}");
    }
    assert_eq!(
        ["7200", "90m", "121s", "2d"].map(|text| text.parse::<LeaseTime>().unwrap().to_string()),
        ["2h", "90m", "121s", "2d"]
    );
    let name = "lab".parse().unwrap();
    let place = |is_root, variables: &[(&str, &str)]| {
        let find = |name: &str| variables.iter().find(|(v, _)| *v == name).map(|(_, value)| OsString::from(value));
        lease_file(&name, is_root, find).map(|path| path.display().to_string())
    };
    assert_eq!(place(true, &[]).as_deref(), Some("/var/lib/guestwire/lab.leases"));
    assert_eq!(place(false, &[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]).as_deref(), Some("/s/guestwire/lab.leases"));
    assert_eq!(
        place(false, &[("XDG_STATE_HOME", "s"), ("HOME", "/h")]).as_deref(),
        Some("/h/.local/state/guestwire/lab.leases")
    );
    assert_eq!(place(false, &[]), None);
}
