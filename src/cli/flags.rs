//! Every flag, defined once: its name, its help, and the type that checks it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{
    Attachment, Config, ConnectPath, Group, InheritedFd, Internal, Listen, ListenPath, Mode, Mtu, Name, Network,
    OffloadMask, QueuePairs, Security, SocketMode, Stats, StatsInterval, StatsTarget, Verbosity, WorkerCount,
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
    subcommand_value_name = "NETWORK",
    subcommand_help_heading = "Networks",
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
  guestwire internal --help
      Everything about that network.

Signals:
  SIGTERM, SIGINT   end, at once and cleanly

Exit codes:
  0   ended by a signal, or nothing was left that could bring a VM
  1   could not start, or could not go on; the last line says why
  2   the command line makes no sense; the line says what would

Environment:
  GUESTWIRE_LOG   what to log in detail, such as 'info,guestwire::vhost=trace'
  NO_COLOR        when not empty, log lines have no colour";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Internal(InternalFlags),
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
    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Debug,
            (false, _) => Verbosity::Trace,
        }
    }
}

/// A network of VMs alone: no host interface, no way out
///
/// Each VM that connects is a port of one learning switch. Nothing else is on the network: no address is given out, no
/// name resolved, and no frame leaves it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_INTERNAL_HELP)]
pub(super) struct InternalFlags {
    #[command(flatten)]
    attach: AttachFlags,
    #[command(flatten)]
    guest: GuestFlags,
    #[command(flatten)]
    speed: SpeedFlags,
    #[command(flatten)]
    stats: StatsFlags,
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
      Counters of every port each ten seconds, for instance into jq.";

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
    #[arg(long, value_name = "FILE")]
    stats: Option<OsString>,
    /// Seconds between two lines of statistics
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "stats")]
    stats_interval: StatsInterval,
}

impl InternalFlags {
    /// A flag that says nothing about what the others ask for.
    pub(super) fn misplaced(&self) -> Option<&'static str> {
        self.attach.misplaced()
    }

    /// The configuration that the flags amount to.
    pub(super) fn into_config(self, log: LogFlags) -> Config {
        let verbosity = log.verbosity();
        let mode = Mode::Internal(Internal::default());
        let network = Network {
            name: Name::of_mode(&mode),
            mode,
            attachments: self.attach.into_attachments(),
            ports: Vec::new(),
            security: Security::ON,
            mtu: self.guest.mtu,
            offload: self.guest.offload,
            queue_pairs: self.guest.queue_pairs,
            workers: self.speed.workers,
        };
        Config { networks: vec![network], stats: self.stats.into_stats(), verbosity, source: None }
    }
}

impl AttachFlags {
    /// A flag that says nothing about what the others ask for. clap asks for no path where `--fd` excludes one.
    fn misplaced(&self) -> Option<&'static str> {
        let (mode, group) = (self.socket_mode.is_some(), self.socket_group.is_some());
        let about_sockets = [("--socket-mode", mode), ("--socket-group", group)];
        about_sockets.into_iter().find(|&(_, given)| given && self.socket_path.is_empty()).map(|(flag, _)| flag)
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
        let target = match self.stats? {
            dash if dash == "-" => StatsTarget::Stdout,
            file => StatsTarget::File(PathBuf::from(file)),
        };
        Some(Stats { target, interval: self.stats_interval })
    }
}
