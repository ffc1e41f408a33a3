//! The verbs, each with its help and what it amounts to.

use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::flags::{AddressFlags, NetworkFlags, TapFlags};
use crate::config::{
    Bridged, Config, Forward, HostOnly, IfName, Internal, Mode, Nat, Services, Subnet4, Subnet6Choice, TapSource,
    Verbosity, Via, ip_net,
};

/// Connects virtual machines: a vhost-user network switch.
///
/// VMs attach over vhost-user sockets. guestwire walks their virtio-net rings in place and switches their Ethernet
/// frames. It needs no privileges, no kernel module and no huge pages; a VM's memory must be shared (share=on).
#[derive(Debug, Parser)]
#[command(
    name = "guestwire",
    bin_name = "guestwire",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = AFTER_HELP
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) verb: Verb,
    #[command(flatten)]
    pub(super) log: LogFlags,
    /// Print what this program can do as JSON and end, whatever else is asked for
    ///
    /// The format is the one of QEMU's conventions for vhost-user back-ends.
    #[arg(long, global = true)]
    print_capabilities: bool,
}

const AFTER_HELP: &str = "\
Examples:
  guestwire internal --socket-path /tmp/lab.sock
      A network of its own for the VMs that connect to /tmp/lab.sock.
      The command lines that attach QEMU and cloud-hypervisor are printed.
  guestwire host-only --socket-path /tmp/lab.sock
      A network of the host and the VMs, with addresses for them.
  guestwire bridged --nic eth0 --socket-path /tmp/lab.sock
      VMs on the LAN that eth0 is on.
  guestwire nat --socket-path /tmp/lab.sock --forward tcp:127.0.0.1:2222:22
      VMs that reach what this host reaches, without privileges.
  guestwire run --config /etc/guestwire.toml
      Any number of networks, from a file.
  guestwire internal --help
      Everything about that network; each has its own help.

Signals:
  SIGTERM, SIGINT   end, at once and cleanly
  SIGHUP            read the file of 'run --config' again

Exit codes:
  0   ended by a signal, or nothing was left that could bring a VM
  1   could not start, or could not go on; the last line says why
  2   the command line or the file makes no sense; the lines say what would

Environment:
  GUESTWIRE_LOG   what to log in detail, such as 'info,guestwire::vhost=trace'
  NO_COLOR        when not empty, log lines have no colour";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Internal(InternalFlags),
    HostOnly(HostOnlyFlags),
    Bridged(BridgedFlags),
    Nat(NatFlags),
    Run(RunFlags),
    Check(CheckFlags),
}

#[derive(Debug, Args)]
pub(super) struct LogFlags {
    /// Log more; twice, everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", display_order = 900)]
    verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, global = true, display_order = 900)]
    quiet: bool,
}

impl LogFlags {
    /// What they ask for, if they ask.
    pub(super) fn asked(&self) -> Option<Verbosity> {
        match (self.quiet, self.verbose) {
            (true, _) => Some(Verbosity::Quiet),
            (false, 0) => None,
            (false, 1) => Some(Verbosity::Debug),
            (false, _) => Some(Verbosity::Trace),
        }
    }

    fn verbosity(&self) -> Verbosity {
        self.asked().unwrap_or(Verbosity::Normal)
    }
}

/// A network of VMs alone: no host interface, no way out
///
/// Each VM that connects is a port of one learning switch. Nothing else is on the network and no frame leaves it. With
/// --dhcp guestwire gives addresses out; otherwise nobody does.
#[derive(Debug, Args)]
#[command(after_help = AFTER_INTERNAL_HELP)]
pub(super) struct InternalFlags {
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    addresses: AddressFlags,
    /// Give guests addresses of --subnet by DHCP
    #[arg(long, requires = "subnet", help_heading = "Addresses")]
    dhcp: bool,
}

const AFTER_INTERNAL_HELP: &str = "\
Examples:
  guestwire internal --socket-path /tmp/lab.sock
      VMs connect to /tmp/lab.sock, any number of them.
  guestwire internal --socket-path /run/lab.sock --socket-mode 0660 --socket-group kvm
      The same where QEMU runs as another user of the group kvm.
  guestwire internal --connect /tmp/vm1.sock --connect /tmp/vm2.sock
      The VMMs listen (server=on) and guestwire connects, whenever they come and go.
  guestwire internal --socket-path /tmp/lab.sock --offload tso=off,uso=off
      Guests are not offered segmentation.
  guestwire internal --socket-path /tmp/lab.sock --stats - --stats-interval 10
      Counters of every port each ten seconds, for instance into jq.
  guestwire internal --socket-path /tmp/lab.sock --dhcp --subnet 10.1.0.0/24
      VMs get addresses from 10.1.0.2 to 10.1.0.254.";

/// A network of the host and its VMs, which nothing leaves
///
/// The host has an interface on the network, with the first address of the subnet; VMs get theirs by DHCP. What a VM
/// sends goes to the host and the other VMs and nowhere else: no default route is offered, and anything for an address
/// outside of the subnet is dropped.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HOST_ONLY_HELP)]
pub(super) struct HostOnlyFlags {
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    addresses: AddressFlags,
    #[command(flatten)]
    tap: TapFlags,
    /// Give no addresses out: VMs have their own
    #[arg(long, help_heading = "Addresses")]
    no_dhcp: bool,
}

const AFTER_HOST_ONLY_HELP: &str = "\
Examples:
  guestwire host-only --socket-path /tmp/lab.sock
      The host is 192.168.56.1 on an interface that guestwire makes; VMs are 192.168.56.2 and up.
  guestwire host-only --socket-path /tmp/lab.sock --subnet 10.9.0.0/16 --dhcp-range 10.9.1.0-10.9.1.255
      Another subnet, of which DHCP gives out a part.
  guestwire host-only --socket-path /tmp/lab.sock --tap lab0
      On the interface lab0, which 'ip tuntap add lab0 mode tap user $USER' makes for this user.";

/// A network that exists already, with VMs on it
///
/// VMs are on the LAN as machines of their own: they get their addresses where all others get them. --nic reaches the
/// LAN through an interface of the host, which stays as it is; --bridge joins a Linux bridge; --tap uses a device that
/// you connect yourself.
#[derive(Debug, Args)]
#[command(after_help = AFTER_BRIDGED_HELP)]
#[command(group(ArgGroup::new("uplink").required(true).args(["nic", "bridge", "tap", "tap_fd"])))]
pub(super) struct BridgedFlags {
    #[command(flatten)]
    network: NetworkFlags,
    /// The host's interface on the LAN, such as eth0
    #[arg(long, value_name = "IF", help_heading = "The network")]
    nic: Option<IfName>,
    /// The Linux bridge to join, such as br0
    #[arg(long, value_name = "BR", help_heading = "The network")]
    bridge: Option<IfName>,
    #[command(flatten)]
    tap: TapFlags,
    /// Have all VMs share the interface's MAC address, as Wi-Fi needs it
    ///
    /// An access point lets no other address through. Addresses are rewritten in ARP, NDP, IPv4, IPv6 and DHCP; other
    /// protocols do not pass. VMs and this host itself do not reach each other.
    #[arg(long, requires = "nic", help_heading = "The network")]
    mac_nat: bool,
}

const AFTER_BRIDGED_HELP: &str = "\
Examples:
  guestwire bridged --nic eth0 --socket-path /tmp/lab.sock
      VMs are on the LAN that eth0 is on. Needs CAP_NET_RAW, and CAP_NET_ADMIN for host and VMs to reach each other.
  guestwire bridged --bridge br0 --socket-path /tmp/lab.sock
      VMs are on the Linux bridge br0, as if by taps.
  guestwire bridged --nic wlan0 --mac-nat --socket-path /tmp/lab.sock
      VMs are on a Wi-Fi network.";

/// A network of VMs that reach what this host reaches, hidden behind it
///
/// guestwire is the VMs' gateway, DHCP server and name server, and carries what they send over sockets of its own, as
/// if it came from this host: no privileges, and no change to the host's interfaces, routes or firewall. From outside,
/// VMs are reached by --forward alone. VMs reach each other as well.
#[derive(Debug, Args)]
#[command(after_help = AFTER_NAT_HELP)]
pub(super) struct NatFlags {
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    addresses: AddressFlags,
    /// Have a port of this host lead to a VM: PROTO:[ADDR:]PORT[-PORT]:[GUEST:]PORT; may be given more than once
    ///
    /// PROTO is tcp or udp. ADDR is the host's address to listen at: one of IPv4, one of IPv6 in brackets, %IF for an
    /// interface, or an address and %IF; all addresses when not given. A range of ports leads to as many of the VM's,
    /// of which the last PORT is the first. GUEST is the VM's address, one of IPv6 in brackets; when not given, it is
    /// the network's only VM. In a configuration file it may be the name of a declared port.
    #[arg(long, value_name = "SPEC", help_heading = "Who reaches whom")]
    forward: Vec<Forward>,
    /// Let VMs reach this host's loopback and link-local addresses
    ///
    /// What listens there expects to be asked by this host alone: databases, or a cloud's metadata service.
    #[arg(long, help_heading = "Who reaches whom")]
    allow_host_loopback: bool,
    /// Let VMs reach the addresses of PREFIX, such as 10.1.0.0/16, and no others; may be given more than once
    ///
    /// With --deny, the longest prefix that an address has decides; of two equal ones, the denied.
    #[arg(long, value_name = "PREFIX", value_parser = ip_net, help_heading = "Who reaches whom")]
    allow: Vec<IpNet>,
    /// Keep VMs from the addresses of PREFIX; may be given more than once
    #[arg(long, value_name = "PREFIX", value_parser = ip_net, help_heading = "Who reaches whom")]
    deny: Vec<IpNet>,
}

const AFTER_NAT_HELP: &str = "\
Examples:
  guestwire nat --socket-path /tmp/lab.sock
      VMs are 10.0.2.2 and up; the gateway and name server is 10.0.2.1.
  guestwire nat --socket-path /tmp/lab.sock --forward tcp:127.0.0.1:2222:22
      'ssh -p 2222 127.0.0.1' on this host reaches the only VM.
  guestwire nat --socket-path /tmp/lab.sock --forward tcp:8080:10.0.2.15:80
      Port 8080 of all of this host's addresses leads to a web server in the VM 10.0.2.15.
  guestwire nat --socket-path /tmp/lab.sock --forward udp:%eth0:5000-5009:5000
      Ten ports lead to the only VM, for what comes by eth0.
  guestwire nat --socket-path /tmp/lab.sock --deny 10.0.0.0/8 --deny 192.168.0.0/16
      VMs reach the Internet and not the company's network.";

/// Runs the networks of a configuration file
///
/// SIGHUP reads the file again: networks and ports whose sections did not change go on without losing a frame, others
/// are stopped, started or changed, and a file with a mistake in it changes nothing.
#[derive(Debug, Args)]
#[command(after_help = AFTER_RUN_HELP)]
pub(super) struct RunFlags {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

const AFTER_RUN_HELP: &str = "\
Example:
  guestwire run --config /etc/guestwire.toml
      where the file says, for instance:

        [[network]]
        name = \"lab\"
        mode = \"internal\"
        socket-path = \"/run/guestwire/lab.sock\"

Keys have the names of the flags: see 'guestwire internal --help' and the other networks'. The example of all of them,
guestwire.toml, comes with guestwire.";

/// Says what a configuration file would run, or everything that is wrong with it
///
/// Nothing is started and nothing on this machine is looked at. Exit code 2 when the file makes no sense.
#[derive(Debug, Args)]
#[command(after_help = AFTER_CHECK_HELP)]
pub(super) struct CheckFlags {
    /// The configuration file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// For people or for programs
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(super) output: Form,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Sentences.
    Text,
    /// One JSON object.
    Json,
}

const AFTER_CHECK_HELP: &str = "\
Examples:
  guestwire check /etc/guestwire.toml
      What would run, in sentences.
  guestwire check /etc/guestwire.toml --output json
      The same as one JSON object: {\"networks\": [...]}, or {\"problems\": [...]}.";

impl InternalFlags {
    pub(super) fn into_config(self, log: &LogFlags) -> Result<Config, String> {
        let Self { network, addresses, dhcp } = self;
        let misplaced = addresses.about_dhcp().or(addresses.subnet.map(|_| "--subnet"));
        let misplaced = misplaced.or(addresses.subnet6.map(|_| "--subnet6"));
        let services = match (dhcp, addresses.subnet, misplaced) {
            (true, Some(subnet), _) => {
                let subnet6 = match addresses.subnet6 {
                    Some(Subnet6Choice::Subnet(subnet6)) => Some(subnet6),
                    Some(Subnet6Choice::Off) | None => None,
                };
                Some(Services { subnet, subnet6, dhcp: Some(addresses.into_dhcp(subnet)) })
            }
            (_, _, Some(flag)) => {
                return Err(format!("{flag} is about addresses, and none are given out: add --dhcp, or leave it out"));
            }
            _ => None,
        };
        network.into_config(Mode::Internal(Internal { services }), log.verbosity())
    }
}

impl HostOnlyFlags {
    pub(super) fn into_config(self, log: &LogFlags) -> Result<Config, String> {
        let Self { network, addresses, tap, no_dhcp } = self;
        if let (true, Some(flag)) = (no_dhcp, addresses.about_dhcp()) {
            return Err(format!("{flag} is about DHCP, and --no-dhcp is given: leave one of them out"));
        }
        let mut services = addresses.into_services(&network.name("host-only")?, Subnet4::HOST_ONLY);
        services.dhcp = services.dhcp.filter(|_| !no_dhcp);
        let tap = tap.into_source().unwrap_or(TapSource::Auto);
        network.into_config(Mode::HostOnly(HostOnly { tap, services }), log.verbosity())
    }
}

impl BridgedFlags {
    pub(super) fn into_config(self, log: &LogFlags) -> Result<Config, String> {
        let Self { network, nic, bridge, tap, mac_nat } = self;
        let via = nic.map(Via::Nic).or(bridge.map(Via::Bridge)).or(tap.into_source().map(Via::Tap));
        let via = via.ok_or("a bridged network needs one of --nic IF, --bridge BR, --tap NAME or --tap-fd N")?;
        network.into_config(Mode::Bridged(Bridged { via, mac_nat }), log.verbosity())
    }
}

impl NatFlags {
    pub(super) fn into_config(self, log: &LogFlags) -> Result<Config, String> {
        let Self { network, addresses, forward, allow_host_loopback, allow, deny } = self;
        let services = addresses.into_services(&network.name("nat")?, Subnet4::NAT);
        let mode = Mode::Nat(Nat { services, forwards: forward, host_loopback: allow_host_loopback, allow, deny });
        network.into_config(mode, log.verbosity())
    }
}
