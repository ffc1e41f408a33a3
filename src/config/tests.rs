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
