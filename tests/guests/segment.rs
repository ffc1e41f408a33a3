//! A LAN: a switch with two machines on it, of which one gives out addresses, and the host of guestwire, whose NIC is
//! on it too. All of them are namespaces.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::guest::{Guest, Plan};
use crate::lab::Lab;
use crate::lan::{PATIENCE, Program, get_lease, until, wait_for};
use crate::space::Space;
use crate::traffic::iperf;

/// The last byte of the addresses of the machine that serves DHCP. It is a bridge, and what the others plug into.
pub(crate) const SERVER: u8 = 1;
/// That of another machine of the LAN.
pub(crate) const OTHER: u8 = 4;
/// That of the host that guestwire runs on.
pub(crate) const HOST: u8 = 5;
/// Guests that have an address reserved, by the last byte of their MAC address.
const GUESTS: [u8; 3] = [10, 11, 12];

/// How guestwire reaches the LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A tap of its own joins the bridge `br0`, which has the NIC `eth0` and the host's address.
    Bridge,
    /// The tap `vm0`, which we have put into the bridge.
    Tap,
    /// The NIC itself, which has the host's address.
    Nic,
}

impl Way {
    fn options(self) -> [&'static str; 2] {
        match self {
            Self::Bridge => ["--bridge", "br0"],
            Self::Tap => ["--tap", "vm0"],
            Self::Nic => ["--nic", "eth0"],
        }
    }

    /// The host's interface that has its address.
    fn interface(self) -> &'static str {
        if self == Self::Nic { "eth0" } else { "br0" }
    }
}

/// See the module's description. What runs in it ends with it.
pub(crate) struct Segment {
    pub(crate) lab: Lab,
    pub(crate) way: Way,
    pub(crate) host: Space,
    pub(crate) server: Space,
    pub(crate) other: Space,
    mtu: u32,
    programs: Vec<Program>,
    folder: TempDir,
}

impl Segment {
    /// A LAN with this MTU, on which DHCP is served.
    pub(crate) fn new(way: Way, mtu: u32) -> Self {
        let [host, server, other] = [Space::new(), Space::new(), Space::new()];
        // Its addresses stay. A NIC whose bridge is taken away would make itself one by which the host later sends.
        host.set("ipv6/conf/default/accept_ra", "0");
        let folder = TempDir::with_prefix("guestwire-lan-").unwrap();
        let mut segment = Self { lab: Lab::prepared(), way, host, server, other, mtu, programs: Vec::new(), folder };
        segment.server.ip(&format!("link add lan0 address {} type bridge", machine_mac(SERVER)));
        segment.server.ip(&format!("link set lan0 mtu {mtu} up"));
        segment.address(&segment.server, "lan0", SERVER);
        segment.other.cable("eth0", &segment.server, "port1");
        segment.plug(&segment.other, "port1");
        segment.address(&segment.other, "eth0", OTHER);
        if way != Way::Nic {
            segment.make_bridge();
        }
        segment.plug_in();
        if way != Way::Nic {
            segment.host.ip(&format!("link set br0 mtu {mtu}"));
            segment.address(&segment.host, "br0", HOST);
        }
        if way == Way::Tap {
            segment.make_tap();
        }
        segment.serve();
        segment
    }

    /// Gives the host its NIC, at the beginning or again.
    pub(crate) fn plug_in(&self) {
        self.host.cable("eth0", &self.server, "port0");
        self.plug(&self.host, "port0");
        if self.way == Way::Nic {
            // The same NIC again, not another.
            self.host.ip(&format!("link set eth0 address {}", machine_mac(HOST)));
            self.address(&self.host, "eth0", HOST);
        } else {
            self.host.ip("link set eth0 master br0");
        }
    }

    /// Makes the host's bridge.
    pub(crate) fn make_bridge(&self) {
        self.host.ip(&format!("link add br0 address {} type bridge", machine_mac(HOST)));
        self.host.ip("link set br0 up");
    }

    /// Makes the tap that the way `Tap` uses.
    pub(crate) fn make_tap(&self) {
        self.host.ip("tuntap add vm0 mode tap");
        self.host.ip(&format!("link set vm0 mtu {} master br0 up", self.mtu));
    }

    /// Puts the other end of a NIC into the LAN's bridge.
    fn plug(&self, space: &Space, port: &str) {
        space.ip(&format!("link set eth0 mtu {}", self.mtu));
        self.server.ip(&format!("link set {port} mtu {} master lan0", self.mtu));
    }

    pub(crate) fn address(&self, space: &Space, interface: &str, number: u8) {
        space.ip(&format!("addr add {}/24 dev {interface}", ip(number)));
        space.ip(&format!("addr add {}/64 dev {interface} nodad", ip6(number)));
        space.set("ipv4/icmp_echo_ignore_broadcasts", "0");
    }

    /// Starts dnsmasq, and an iperf3 on every machine.
    fn serve(&mut self) {
        let leases = format!("--dhcp-leasefile={}", self.folder.path().join("leases").display());
        let reserved = GUESTS.map(|number| format!("--dhcp-host={},{}", mac(number), ip(number)));
        let options = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
            "--interface=lan0",
            "--bind-interfaces",
            "--port=0",
            "--dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h",
            "--dhcp-range=fd09::,ra-only,64",
            "--enable-ra",
            "--dhcp-authoritative",
            "--no-ping",
            "--log-facility=-",
            "--log-dhcp",
            &leases,
        ];
        let options: Vec<&str> = options.into_iter().chain(reserved.iter().map(String::as_str)).collect();
        self.programs.push(Program::start(&self.lab, &self.server, "dnsmasq", &options));
        let started = self.programs[0].output().wait_for(0, PATIENCE, |text| text.contains("started").then_some(()));
        assert!(started.is_some(), "dnsmasq does not start");
        for space in [&self.host, &self.server, &self.other] {
            self.programs.push(Program::start(&self.lab, space, "iperf3", &["-s"]));
            until("iperf3", || {
                let sockets = space.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6")).unwrap();
                if sockets.contains(":1451 ") { Ok(()) } else { Err(sockets) }
            });
        }
    }

    /// guestwire on the host.
    pub(crate) fn daemon(&self, options: &[&str]) -> Daemon {
        self.daemon_under(&[], options)
    }

    /// The same, run by a further command.
    pub(crate) fn daemon_under(&self, under: &[&str], options: &[&str]) -> Daemon {
        let under: Vec<String> = self.host.enter().into_iter().chain(under.iter().map(|&word| word.into())).collect();
        let always = ["-v", "--stats", "DIR/stats", "--stats-interval", "0.1"];
        Daemon::run(&under, "bridged", &[&always, &self.way.options()[..], options].concat())
    }

    /// Starts guests and has them get their addresses from the LAN.
    pub(crate) fn guests<const N: usize>(&self, daemon: &Daemon, plans: [Plan; N]) -> [Guest; N] {
        let started = plans.map(|plan| plan.without_addresses().start(&self.lab, daemon));
        started.map(|guest| {
            let mut guest = guest.booted();
            join(&mut guest);
            guest.ok("iperf3 -s -D");
            guest
        })
    }

    /// Runs one of the lab's programs in a namespace. It must succeed.
    pub(crate) fn command(&self, space: &Space, program: &str, arguments: &str) -> String {
        space.command(&format!("{}/{program}", self.lab.get("NET_BIN")), arguments)
    }

    /// Echo requests of each family from a machine of the LAN to a guest; none may be lost.
    pub(crate) fn ping_guest(&self, from: u8, guest: &Guest) {
        for address in [guest.ip(), guest.ip6()] {
            self.ping_from(self.machine(from), &address);
        }
    }

    /// Three echo requests from a namespace, none of which may be lost. One by one, since ping waits for the last of
    /// several no longer than twice what the others took.
    pub(crate) fn ping_from(&self, space: &Space, arguments: &str) {
        for _ in 0..3 {
            let output = self.command(space, "ping", &format!("-c 1 -W 5 {arguments}"));
            assert!(output.contains(" 0% packet loss"), "ping {arguments}:\n{output}");
        }
    }

    /// Whether an echo request from a machine of the LAN to a guest's IPv6 address has an answer.
    pub(crate) fn can_ping6(&self, from: u8, guest: &Guest) -> bool {
        let ping = format!("{}/ping", self.lab.get("NET_BIN"));
        let mut command = Command::new(ping);
        command.args(["-c", "1", "-W", "1", &guest.ip6()]).stdout(Stdio::null());
        self.machine(from).run(move || command.status().unwrap().success())
    }

    fn machine(&self, number: u8) -> &Space {
        match number {
            SERVER => &self.server,
            OTHER => &self.other,
            HOST => &self.host,
            _ => panic!("there is no machine {number}"),
        }
    }

    /// Data from a machine to a guest and back, which must not change.
    pub(crate) fn data_both_ways(&self, machine: u8, guest: &mut Guest, megabytes: usize, within: Duration) {
        crate::data::echo(self.machine(machine), &ip(machine), guest, megabytes, within);
    }

    /// A machine, and its interface that has its address.
    pub(crate) fn interface(&self, machine: u8) -> (&Space, &'static str) {
        let name = match machine {
            SERVER => "lan0",
            HOST => self.way.interface(),
            _ => "eth0",
        };
        (self.machine(machine), name)
    }

    /// A folder for files of the test's own.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The IPv4 address of a machine or guest.
pub(crate) fn ip(number: u8) -> String {
    format!("10.9.0.{number}")
}

/// The IPv6 address of a machine or guest.
pub(crate) fn ip6(number: u8) -> String {
    format!("fd09::{number:x}")
}

/// The MAC address of a machine: one that stays, whatever its interfaces are made of (a bridge of which nobody says so
/// takes one of its ports' and changes it with them).
fn machine_mac(number: u8) -> String {
    format!("02:00:5e:77:77:{number:02x}")
}

fn mac(number: u8) -> String {
    format!("52:54:00:67:77:{number:02x}")
}

/// Has a guest get both its addresses from the LAN: by DHCP, and from the prefix that the router advertises.
pub(crate) fn join(guest: &mut Guest) {
    let number = guest.ip().rsplit('.').next().unwrap().parse().unwrap();
    guest.ok(&format!("/bin/ip link set eth0 address {} && /bin/ip token set ::{number:x} dev eth0", mac(number)));
    assert_eq!(get_lease(guest), guest.ip(), "{guest} has another lease");
    let address = guest.ip6();
    guest.ok(&wait_for(&format!("/bin/ip -6 addr show dev eth0 dynamic -tentative | grep -q '{address}/64'")));
}

/// Echo requests of each family from a guest to a machine; none may be lost.
pub(crate) fn ping_machine(guest: &mut Guest, number: u8) {
    for (flag, address) in [("-4", ip(number)), ("-6", ip6(number))] {
        let output = guest.ok(&format!("ping {flag} -c 3 -i 0.2 -W 5 {address}"));
        assert!(output.contains(" 0% packet loss"), "{guest} to {address}:\n{output}");
    }
}

/// One TCP stream each way between a guest and an iperf3 somewhere.
pub(crate) fn iperf_both_ways(guest: &mut Guest, address: &str) {
    for options in ["", "-R"] {
        iperf(guest, address, options);
    }
}
