//! What a NAT has to do, requirement by requirement: RFC 4787 for UDP, RFC 5382 for TCP, RFC 5508 for ICMP.
//!
//! Each row of the list below is a test. It shows that the requirement holds, or what the kernel or the design does
//! that takes its place. `cargo test --test rfc -- --show-output` prints the table of all with what came of each.
//!
//! The daemon is the real binary in a network namespace, and so is the kernel behind its sockets; a guest is a driver
//! in process (as in `tests/wire`). Beyond the host there are a machine with a kernel of its own, and somebody whose
//! packets are written by hand ([`far`]). Timers run on a clock of the test's ([`clock`]).

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod clock;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../wire/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../wire/dhcp.rs"]
mod dhcp;
mod far;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../wire/guest.rs"]
mod guest;
mod heard;
mod icmp;
#[path = "../wire/memory.rs"]
mod memory;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../wire/ring.rs"]
mod ring;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../uplink/space.rs"]
mod space;
mod station;
#[macro_use]
mod table;
mod tcp;
mod timers;
mod udp;
mod world;

use table::Holds::{Missed, NotApplicable, Pass};

requirements! {
    rfc4787_req_01_mapping: 4787 "1", "one external port for all destinations", Pass, udp::mapping;
    rfc4787_req_02_pooling: 4787 "2", "one external address for all of a guest's sessions",
        NotApplicable("there is no pool: the host's route to a destination says from which address"), udp::pooling;
    rfc4787_req_03_overloading: 4787 "3", "an external port is one guest's", Pass, udp::overloading;
    rfc4787_req_03a_range: 4787 "3 a", "ports below 1024 and others stay what they are", Pass, udp::range;
    rfc4787_req_04_parity: 4787 "4", "even ports stay even, and odd ones odd", Pass, udp::parity;
    rfc4787_req_05_mapping_timer: 4787 "5", "a mapping lives two minutes unused at the least", Pass, timers::udp_least;
    rfc4787_req_05c_default_timer: 4787 "5 c", "five minutes by default", Pass, timers::udp_default;
    rfc4787_req_06_outbound_refresh: 4787 "6", "what is sent keeps a mapping", Pass, timers::udp_outbound;
    rfc4787_req_06a_inbound_refresh: 4787 "6 a", "what comes keeps it (may)", Pass, timers::udp_inbound;
    rfc4787_req_07_conflict: 4787 "7", "inner and outer addresses that conflict",
        Missed("a route of the host's within the guests' subnet is warned of, with a free subnet to choose"),
        udp::conflict;
    rfc4787_req_08_filtering: 4787 "8", "whoever knows a mapping may use it", Pass, udp::filtering;
    rfc4787_req_09_hairpin: 4787 "9", "guests reach guests by external addresses", Pass, udp::hairpin;
    rfc4787_req_09a_hairpin_source: 4787 "9 a", "and see each other's external address", Pass, udp::hairpin_itself;
    rfc4787_req_10_gateways: 4787 "10", "no application is meddled with", Pass, udp::no_meddling;
    rfc4787_req_11_deterministic: 4787 "11", "a port that is taken changes nothing else", Pass, udp::deterministic;
    rfc4787_req_12_icmp: 4787 "12", "no ICMP message ends a mapping", Pass, udp::icmp_ends_nothing;
    rfc4787_req_12a_icmp_source: 4787 "12 a", "ICMP is not filtered by its source", Pass, udp::icmp_of_anybody;
    rfc4787_req_12b_unreachable: 4787 "12 b", "destination unreachable passes", Pass, udp::unreachable;
    rfc4787_req_13_too_long: 4787 "13", "too long and not to be cut: told so", Pass, udp::too_long;
    rfc4787_req_13a_cut: 4787 "13 a", "too long and to be cut: cut, in order", Pass, udp::cut;
    rfc4787_req_14_fragments: 4787 "14", "fragments in any order, both ways", Pass, udp::fragments;
    rfc4787_req_14a_fragment_flood: 4787 "14 a", "a flood of fragments hurts nothing else", Pass, udp::fragment_flood;
    rfc4787_req_14_never_whole: 4787 "14", "what does not become whole in a minute: time exceeded (RFC 792, RFC 4443)",
        Pass, timers::reassembly;
    rfc5382_req_01_mapping: 5382 "1", "one external port for all destinations", Pass, tcp::mapping;
    rfc5382_req_02a_handshake: 5382 "2 a", "the three-way handshake, either way", Pass, tcp::handshake;
    rfc5382_req_02b_simultaneous_open: 5382 "2 b", "simultaneous open", Pass, tcp::simultaneous_open;
    rfc5382_req_03_filtering: 5382 "3", "who may connect to a mapping",
        NotApplicable("the kernel gives a connection its peer's segments only; --forward opens a port to all"),
        tcp::filtering;
    rfc5382_req_04_unsolicited: 5382 "4", "an unsolicited SYN is not answered for six seconds",
        NotApplicable("the external address is the host's, whose kernel refuses at once what no socket wants"),
        tcp::unsolicited;
    rfc5382_req_05_established: 5382 "5", "established and idle: 2 h 4 min at the least", Pass, timers::tcp_established;
    rfc5382_req_05_transitory: 5382 "5", "opening or closing: 4 min at the least", Pass, timers::tcp_transitory;
    rfc5382_req_06_gateways: 5382 "6", "no application is meddled with", Pass, tcp::no_meddling;
    rfc5382_req_07_overloading: 5382 "7", "an external port is one guest's", Pass, tcp::overloading;
    rfc5382_req_08_hairpin: 5382 "8", "guests reach guests by external addresses", Pass, tcp::hairpin;
    rfc5382_req_08a_hairpin_source: 5382 "8 a", "and see each other's external address", Pass, tcp::hairpin_itself;
    rfc5382_req_09_unreachable: 5382 "9", "destination unreachable passes", Pass, tcp::unreachable;
    rfc5382_req_10_icmp: 5382 "10", "no ICMP message ends a connection", Pass, tcp::icmp_ends_nothing;
    rfc5382_req_10_icmp_opening: 5382 "10", "nor one that is being made",
        NotApplicable("the kernel gives it up; the guest hears why, and may go on by the same mapping"),
        tcp::icmp_while_opening;
    rfc5508_req_01_queries: 5508 "1", "queries pass, and what answers them", Pass, icmp::queries;
    rfc5508_req_01a_mapping: 5508 "1 a", "one external identifier for all destinations", Pass, icmp::mapping;
    rfc5508_req_02_timer: 5508 "2", "a query's session lives a minute unused at the least", Pass, timers::echo_least;
    rfc5508_req_03_checksum: 5508 "3", "an error whose checksum is wrong is dropped", Pass, icmp::wrong_checksum;
    rfc5508_req_03a_inner_checksum: 5508 "3 a", "one that quotes a wrong IP checksum too",
        NotApplicable("the kernel finds the socket by addresses and ports alone"), icmp::wrong_inner_checksum;
    rfc5508_req_03b_options: 5508 "3 b", "IP options in what is quoted are passed over", Pass, icmp::inner_options;
    rfc5508_req_03c_transport_checksum: 5508 "3 c", "the quoted transport's checksum is not looked at", Pass,
        icmp::wrong_transport_checksum;
    rfc5508_req_03d_extensions: 5508 "3 d", "nor are extensions", Pass, icmp::extensions;
    rfc5508_req_04_no_mapping: 5508 "4", "an error about nobody's packet is dropped", Pass, icmp::nobodys;
    rfc5508_req_04a_quote: 5508 "4 a-c", "a guest's own packet is quoted, type and code stay", Pass, icmp::quote;
    rfc5508_req_05_from_guests: 5508 "5", "errors of guests pass",
        NotApplicable("no socket sends ICMP errors for a process without rights"), icmp::errors_of_guests;
    rfc5508_req_06_no_refresh: 5508 "6", "an error neither keeps nor ends a query's session", Pass,
        timers::echo_error;
    rfc5508_req_07_hairpin: 5508 "7", "errors among guests by external addresses pass", Pass, icmp::hairpin;
    rfc5508_req_08_prohibited: 5508 "8", "where a session may not be: told so", Pass, icmp::prohibited;
    rfc5508_req_08_shortage: 5508 "8", "where one cannot be for want of something: told so", Pass, timers::shortage;
    rfc5508_req_09_policy: 5508 "9", "where ICMP messages are not sent (may)", Pass, icmp::policy;
    rfc5508_req_10a_messages: 5508 "10 a", "unreachable, time exceeded, echo", Pass, icmp::messages;
    rfc5508_req_10c_obsolete: 5508 "10 c", "no source quench, no information request", Pass, icmp::obsolete;
    rfc5508_req_10e_when_not: 5508 "10 e", "no error about an error, or about what was for many", Pass, icmp::when_not;
    rfc5508_req_10f_rate: 5508 "10 f", "not too many of them", Pass, icmp::rate;
    rfc5508_req_11_others: 5508 "11", "other messages (may be dropped)", Pass, icmp::others;
}
