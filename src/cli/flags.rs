//! The flags that several verbs share, every one defined once: its name, its help, and the type that checks it.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::config::{
    Attachment, Config, ConnectPath, Dhcp, DomainName, Group, InheritedFd, LeaseTime, Listen, ListenPath, Mode, Mtu,
    Name, Network, OffloadMask, QueuePairs, Range4, Security, Services, SocketMode, Stats, StatsInterval, StatsTarget,
    Subnet4, Subnet6, Subnet6Choice, TapSource, Verbosity, WorkerCount, file_path,
};

/// What every network has.
#[derive(Debug, Args)]
pub(super) struct NetworkFlags {
    #[command(flatten)]
    attach: AttachFlags,
    #[command(flatten)]
    guest: GuestFlags,
    #[command(flatten)]
    speed: SpeedFlags,
    #[command(flatten)]
    stats: StatsFlags,
    /// The network's name in log lines, statistics and files; the mode's when not given
    #[arg(long, value_name = "NAME", help_heading = "The network")]
    name: Option<Name>,
    /// Hold guests to their own addresses: on, mac or off
    ///
    /// With mac, a guest sends only from one MAC address, the first that it used; with on, also only from the IP
    /// address that DHCP gave it, where guestwire is the DHCP server. The default is off on bridged networks and on on
    /// the others. A guest that is a bridge or a router itself needs off.
    #[arg(long, value_name = "WHAT", help_heading = "The network")]
    port_security: Option<Security>,
}

/// Addresses for guests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Addresses")]
pub(super) struct AddressFlags {
    /// The subnet, whose first address is guestwire's
    ///
    /// When not given it is 192.168.56.0/24 on a host-only network and 10.0.2.0/24 on a nat network.
    #[arg(long, value_name = "SUBNET")]
    pub(super) subnet: Option<Subnet4>,
    /// The subnet of IPv6, such as fd12:3456:789a::/64, or off
    ///
    /// On host-only and nat networks, when not given, one that depends on the network's name and subnet and stays the
    /// same; on others, off.
    #[arg(long, value_name = "SUBNET")]
    pub(super) subnet6: Option<Subnet6Choice>,
    /// The addresses that DHCP gives out, first and last; all of the subnet's when not given
    #[arg(long, value_name = "FIRST-LAST")]
    dhcp_range: Option<Range4>,
    /// How long a guest has its address: a number with s, m, h or d
    #[arg(long, value_name = "TIME")]
    lease_time: Option<LeaseTime>,
    /// The file that keeps the leases over restarts
    ///
    /// When not given it is guestwire/NAME.leases in /var/lib for root, else in $XDG_STATE_HOME or ~/.local/state.
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().try_map(file_path))]
    leases: Option<PathBuf>,
    /// A name server that guests are told of, by IPv4 or IPv6; may be given more than once
    ///
    /// On a nat network, when none is given, it is guestwire itself, which asks the host's name servers.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// The domain that guests are told they are in
    #[arg(long, value_name = "NAME")]
    domain: Option<DomainName>,
}

/// The tap device of a host-only or a bridged network.
#[derive(Debug, Args)]
#[command(next_help_heading = "The network")]
pub(super) struct TapFlags {
    /// Use the tap device NAME, which is made if there is none
    #[arg(long, value_name = "NAME", conflicts_with = "tap_fd")]
    #[arg(value_parser = |text: &str| text.parse().map(TapSource::Name))]
    tap: Option<TapSource>,
    /// Use the tap device that was left open as descriptor N; guestwire itself then needs no privileges for it
    #[arg(long, value_name = "N", value_parser = |text: &str| text.parse().map(TapSource::Inherit))]
    tap_fd: Option<TapSource>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ways in for VMs (at least one)")]
struct AttachFlags {
    /// Listen on PATH; every VM that connects is a new port
    ///
    /// May be given more than once: all VMs are on the same network. The socket appears ready for use, replaces a stale
    /// one, and is removed at the end. PATH.lock keeps a second guestwire from taking the path while this one runs.
    /// --connect may be given too, --fd not.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    #[arg(value_parser = OsStringValueParser::new().try_map(ListenPath::new))]
    socket_path: Vec<ListenPath>,
    /// Connect to the VMM that listens on PATH, and again when it is gone
    ///
    /// May be given more than once. While nobody listens, guestwire tries again after 100 ms, then after twice as long
    /// each time up to 1 s, for ever.
    #[arg(long, value_name = "PATH")]
    #[arg(value_parser = OsStringValueParser::new().try_map(ConnectPath::new))]
    connect: Vec<ConnectPath>,
    /// Use the Unix socket that was left open as descriptor N
    ///
    /// It may be listening, and every VM that connects is a new port, or be one VM's connection. May be given more than
    /// once. When only connections were given and all have ended, guestwire ends.
    #[arg(long, value_name = "N")]
    fd: Vec<InheritedFd>,
    /// Permissions of the sockets listened on, in octal
    ///
    /// Connecting needs permission to write. The default, 0600, lets this user in and nobody else.
    #[arg(long, value_name = "OCTAL")]
    socket_mode: Option<SocketMode>,
    /// Group of the sockets listened on, by name or number
    ///
    /// Together with --socket-mode 0660 it lets a VMM run as another user of that group.
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<Group>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What guests are offered")]
struct GuestFlags {
    /// Tell guests to use an MTU of N bytes, 68 to 65535
    ///
    /// QEMU passes it on to the guest when its device has host_mtu=N. Without this option guests use their own, 1500 as
    /// a rule.
    #[arg(long, value_name = "N")]
    mtu: Option<Mtu>,
    /// Offloads that guests may use: on, off, or a list such as tso=off,uso=off
    ///
    /// The list has NAME=on or NAME=off for any of csum (checksums left to the receiver), tso (TCP segments longer than
    /// the MTU), uso (the same for UDP) and ecn (ECN marks on long TCP segments). It starts from everything on, or from
    /// a first word 'off' from nothing: 'off,csum=on'. tso and uso need csum, ecn needs tso, and they go with it when
    /// it is off.
    #[arg(long, value_name = "LIST", default_value = "on")]
    offload: OffloadMask,
    /// Queue pairs that guests are told of, 1 to 16
    ///
    /// For VMMs that ask us, as User Mode Linux does: it looks at every queue it was told of with each interrupt. QEMU
    /// and cloud-hypervisor do not ask; they have options of their own, and may use 16 whatever is said here.
    #[arg(long, value_name = "N", default_value = "1")]
    queue_pairs: QueuePairs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Speed")]
struct SpeedFlags {
    /// Threads that forward frames, 1 to 64
    ///
    /// Each VM's frames are taken by one of them. One is enough until --stats shows it busy all the time. More than
    /// there are processors to spare makes things slower.
    #[arg(long, value_name = "N", default_value = "1")]
    workers: WorkerCount,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Statistics")]
struct StatsFlags {
    /// Write the counters of every port as lines of JSON to FILE, or to the standard output when FILE is -
    ///
    /// Each worker's time is there too: busy_ns divided by packets is what a frame costs, in nanoseconds.
    ///
    /// A file is appended to. With -, everything else that is meant to be read goes to the standard error.
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().try_map(StatsTarget::new))]
    stats: Option<StatsTarget>,
    /// Seconds between two lines of statistics
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "stats")]
    stats_interval: StatsInterval,
}

impl NetworkFlags {
    /// The name of a network of this mode.
    pub(super) fn name(&self, mode: &str) -> Result<Name, String> {
        self.name.clone().map_or_else(|| mode.parse().map_err(|problem| format!("{problem}")), Ok)
    }

    /// The configuration of one network of this mode that the flags amount to, or what is wrong with them.
    pub(super) fn into_config(self, mode: Mode, verbosity: Verbosity) -> Result<Config, String> {
        if let Some(problem) = self.attach.problem() {
            return Err(problem);
        }
        let network = Network {
            name: self.name.unwrap_or_else(|| Name::of_mode(&mode)),
            attachments: self.attach.into_attachments(),
            ports: Vec::new(),
            security: self.port_security.unwrap_or(mode.default_security()),
            mode,
            mtu: self.guest.mtu,
            offload: self.guest.offload,
            queue_pairs: self.guest.queue_pairs,
            workers: self.speed.workers,
        };
        Ok(Config { networks: vec![network], stats: self.stats.into_stats(), verbosity, source: None })
    }
}

impl AddressFlags {
    /// A flag that asks something of the DHCP server, if one does.
    pub(super) fn about_dhcp(&self) -> Option<&'static str> {
        let given = [
            ("--dhcp-range", self.dhcp_range.is_some()),
            ("--lease-time", self.lease_time.is_some()),
            ("--leases", self.leases.is_some()),
            ("--dns", !self.dns.is_empty()),
            ("--domain", self.domain.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// What is served on a network of this name that has addresses for guests without being asked: those of `subnet`
    /// unless others are said.
    pub(super) fn into_services(self, name: &Name, subnet: Subnet4) -> Services {
        let subnet = self.subnet.unwrap_or(subnet);
        let subnet6 = match self.subnet6 {
            None => Some(Subnet6::derived(name, subnet)),
            Some(Subnet6Choice::Subnet(subnet6)) => Some(subnet6),
            Some(Subnet6Choice::Off) => None,
        };
        Services { subnet, subnet6, dhcp: Some(self.into_dhcp(subnet)) }
    }

    /// The DHCP server of this subnet.
    pub(super) fn into_dhcp(self, subnet: Subnet4) -> Dhcp {
        let mut dhcp = Dhcp::of(subnet);
        dhcp.range = self.dhcp_range.unwrap_or(dhcp.range);
        dhcp.lease = self.lease_time.unwrap_or(dhcp.lease);
        dhcp.set_dns(&self.dns);
        (dhcp.domain, dhcp.leases) = (self.domain, self.leases);
        dhcp
    }
}

impl TapFlags {
    pub(super) fn into_source(self) -> Option<TapSource> {
        self.tap.or(self.tap_fd)
    }
}

impl AttachFlags {
    /// What is wrong with them together, if anything. clap asks for no path where `--fd` excludes one.
    fn problem(&self) -> Option<String> {
        let (mode, group) = (self.socket_mode.is_some(), self.socket_group.is_some());
        let about_sockets = [("--socket-mode", mode), ("--socket-group", group)];
        let misplaced = about_sockets.into_iter().find(|&(_, given)| given && self.socket_path.is_empty());
        if let Some((flag, _)) = misplaced {
            return Some(format!("{flag} says how to listen, and nothing listens: add --socket-path PATH"));
        }
        let is_empty = self.socket_path.is_empty() && self.connect.is_empty() && self.fd.is_empty();
        let ways = "add --socket-path PATH (VMs connect to us), --connect PATH (we connect) or --fd N";
        is_empty.then(|| format!("no way in for VMs: {ways}"))
    }

    fn into_attachments(self) -> Vec<Attachment> {
        let Self { socket_path, connect, fd, socket_mode, socket_group } = self;
        let socket_mode = socket_mode.unwrap_or(SocketMode::PRIVATE);
        let listen = |path| Attachment::Listen(Listen { path, mode: socket_mode, group: socket_group.clone() });
        let listening = socket_path.into_iter().map(listen);
        let inherited = fd.into_iter().map(Attachment::Inherit);
        listening.chain(connect.into_iter().map(Attachment::Connect)).chain(inherited).collect()
    }
}

impl StatsFlags {
    fn into_stats(self) -> Option<Stats> {
        Some(Stats { target: self.stats?, interval: self.stats_interval })
    }
}
