//! What to type to attach a VM.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use super::ways::WayIn;
use crate::config::{Attachment, DeclaredPort, Network};

/// Which side of a socket the VMM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vmm {
    Connects,
    Listens,
}

/// Everything a person needs to attach VMs to any of the networks: see [`instructions`].
pub(super) fn all_instructions(networks: &[Network]) -> String {
    if let [network] = networks {
        return instructions(network);
    }
    networks.iter().map(|network| format!("# Network {}\n\n{}", network.name, instructions(network))).collect()
}

/// Everything a person needs to attach VMs: the whole command lines of QEMU and cloud-hypervisor for each socket, and
/// for a second VM where a socket takes more than one. Each has the `mac=` of its declared port, or else one of its
/// own, locally administered (IEEE 802), and the same again after a restart.
pub fn instructions(network: &Network) -> String {
    let mut text = String::new();
    let mut macs = Macs::new(network);
    for WayIn { attachment, port } in WayIn::all(network) {
        // Writing to a String does not fail.
        let _ = match (&attachment, port) {
            (Attachment::Listen(listen), None) => on_socket(&mut text, network, listen.path.as_path(), &mut macs),
            (Attachment::Listen(listen), Some(port)) => {
                on_port(&mut text, network, &port, listen.path.as_path(), &mut macs)
            }
            (Attachment::Connect(path), port) => {
                let mac = port.and_then(|port| port.mac).map_or_else(|| macs.next(), |mac| mac.to_string());
                at_vmm(&mut text, network, path.as_path(), &mac)
            }
            (Attachment::Inherit(fd), _) => writeln!(text, "VMs come in on descriptor {}.\n", fd.number()),
        };
    }
    text
}

fn on_socket(text: &mut String, network: &Network, path: &Path, macs: &mut Macs) -> std::fmt::Result {
    let path = absolute(path);
    let (first, second) = (macs.next(), macs.next());
    writeln!(
        text,
        "VMs connect to {}; each is a new port. With QEMU 9.2 or later, and your disk or kernel added:\n",
        path.display()
    )?;
    writeln!(text, "{}\n", qemu(&path, &first, network, Vmm::Connects))?;
    writeln!(text, "A second VM, and further ones, each with a mac= of its own:\n")?;
    writeln!(text, "{}\n", qemu(&path, &second, network, Vmm::Connects))?;
    before_9_2(text, &path)?;
    writeln!(text, "With cloud-hypervisor, the first and the second:\n")?;
    writeln!(text, "{}\n", cloud_hypervisor(&path, &first, network, Vmm::Connects))?;
    writeln!(text, "{}\n", cloud_hypervisor(&path, &second, network, Vmm::Connects))?;
    explain(text)
}

fn on_port(
    text: &mut String,
    network: &Network,
    port: &DeclaredPort,
    path: &Path,
    macs: &mut Macs,
) -> std::fmt::Result {
    let path = absolute(path);
    let mac = port.mac.map_or_else(|| macs.next(), |mac| mac.to_string());
    writeln!(
        text,
        "The VM of port {} connects to {}. With QEMU 9.2 or later, and your disk or kernel added:\n",
        port.name,
        path.display()
    )?;
    writeln!(text, "{}\n", qemu(&path, &mac, network, Vmm::Connects))?;
    before_9_2(text, &path)?;
    writeln!(text, "With cloud-hypervisor:\n")?;
    writeln!(text, "{}\n", cloud_hypervisor(&path, &mac, network, Vmm::Connects))?;
    explain(text)
}

fn before_9_2(text: &mut String, path: &Path) -> std::fmt::Result {
    writeln!(text, "QEMU before 9.2 (Debian 12 has 7.2, Ubuntu 24.04 has 8.2) takes this in the place of -chardev:\n")?;
    writeln!(text, "    {} \\\n", chardev(path, "reconnect=1"))
}

fn explain(text: &mut String) -> std::fmt::Result {
    writeln!(text, "share=on (shared=on) is what lets guestwire see the VM's memory. reconnect attaches the VM again")?;
    writeln!(text, "after guestwire was restarted.\n")
}

fn at_vmm(text: &mut String, network: &Network, path: &Path, mac: &str) -> std::fmt::Result {
    let path = absolute(path);
    writeln!(text, "guestwire connects to the VM that listens on {}. With QEMU:\n", path.display())?;
    writeln!(text, "{}\n", qemu(&path, mac, network, Vmm::Listens))?;
    writeln!(text, "With cloud-hypervisor:\n")?;
    writeln!(text, "{}\n", cloud_hypervisor(&path, mac, network, Vmm::Listens))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn qemu(path: &Path, mac: &str, network: &Network, vmm: Vmm) -> String {
    let chardev = chardev(path, if vmm == Vmm::Connects { "reconnect-ms=1000" } else { "server=on,wait=off" });
    let mtu = network.mtu.map(|mtu| format!(",host_mtu={}", mtu.bytes())).unwrap_or_default();
    let (program, machine) = match std::env::consts::ARCH {
        "aarch64" => ("qemu-system-aarch64", "virt"),
        _ => ("qemu-system-x86_64", "q35"),
    };
    format!(
        "  {program} -machine {machine},memory-backend=mem0 -accel kvm -accel tcg -m 1G \\\n    \
         -object memory-backend-memfd,id=mem0,size=1G,share=on \\\n    \
         {chardev} \\\n    \
         -netdev vhost-user,id=net0,chardev=wire0 \\\n    \
         -device virtio-net-pci,netdev=net0,mac={mac}{mtu}"
    )
}

fn chardev(path: &Path, side: &str) -> String {
    // QEMU takes two commas for one in a value.
    let path = path.display().to_string().replace(',', ",,");
    format!("-chardev {}", quoted(&format!("socket,id=wire0,path={path},{side}")))
}

fn cloud_hypervisor(path: &Path, mac: &str, network: &Network, vmm: Vmm) -> String {
    let mode = if vmm == Vmm::Connects { "client" } else { "server" };
    let mtu = network.mtu.map(|mtu| format!(",mtu={}", mtu.bytes())).unwrap_or_default();
    let socket = path.display().to_string();
    let socket = if socket.contains(',') { format!("\"{socket}\"") } else { socket };
    let net = format!("mac={mac},vhost_user=true,socket={socket},vhost_mode={mode},num_queues=2,queue_size=256{mtu}");
    format!("  cloud-hypervisor --cpus boot=1 --memory size=1G,shared=on \\\n    --net {}", quoted(&net))
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Locally administered addresses: a prefix that is the network's, and a number.
struct Macs {
    prefix: [u8; 3],
    next: u16,
}

impl Macs {
    fn new(network: &Network) -> Self {
        let mut hasher = DefaultHasher::new();
        let ways = WayIn::all(network);
        ways.iter().filter_map(|way| way.attachment.path()).map(absolute).for_each(|path| path.hash(&mut hasher));
        let [a, b, c, ..] = hasher.finish().to_be_bytes();
        Self { prefix: [a, b, c], next: 1 }
    }

    fn next(&mut self) -> String {
        let [a, b, c] = self.prefix;
        let [high, low] = self.next.to_be_bytes();
        self.next = self.next.wrapping_add(1);
        format!("02:{a:02x}:{b:02x}:{c:02x}:{high:02x}:{low:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        ConnectPath, Internal, Listen, ListenPath, Mode, OffloadMask, QueuePairs, Security, SocketMode, WorkerCount,
    };

    fn listen(path: &str) -> Attachment {
        let path = ListenPath::new(path.into()).unwrap();
        Attachment::Listen(Listen { path, mode: SocketMode::PRIVATE, group: None })
    }

    fn network(attachments: Vec<Attachment>) -> Network {
        let (name, mode, offload) = ("lab".parse().unwrap(), Mode::Internal(Internal::default()), OffloadMask::ALL);
        let (ports, security) = (Vec::new(), Security::ON);
        let (queue_pairs, workers) = (QueuePairs::ONE, WorkerCount::ONE);
        Network { name, mode, attachments, ports, security, mtu: None, offload, queue_pairs, workers }
    }

    fn macs(text: &str) -> Vec<&str> {
        text.split("mac=").skip(1).map(|rest| &rest[..17]).collect()
    }

    #[test]
    fn a_socket_has_lines_for_two_vms_of_each_kind() {
        let text = instructions(&network(vec![listen("/tmp/lab.sock")]));
        assert_eq!(text.matches("qemu-system-").count(), 2);
        assert_eq!(text.matches("cloud-hypervisor --").count(), 2);
        assert_eq!(text.matches("share=on \\").count(), 2);
        assert_eq!(text.matches("path=/tmp/lab.sock,reconnect-ms=1000").count(), 2);
        assert_eq!(text.matches("path=/tmp/lab.sock,reconnect=1").count(), 1);
        assert_eq!(text.matches("socket=/tmp/lab.sock,vhost_mode=client").count(), 2);
        let macs: Vec<_> = macs(&text).into_iter().filter(|mac| mac.starts_with("02:")).collect();
        assert_eq!(macs.len(), 4);
        assert!(macs[0] == macs[2] && macs[1] == macs[3] && macs[0] != macs[1], "{macs:?}");
    }

    #[test]
    fn macs_differ_between_networks_and_not_between_runs() {
        let one = instructions(&network(vec![listen("/tmp/a"), listen("/tmp/b")]));
        assert_eq!(one, instructions(&network(vec![listen("/tmp/a"), listen("/tmp/b")])));
        let other = instructions(&network(vec![listen("/tmp/c")]));
        assert_ne!(macs(&one)[0], macs(&other)[0]);
    }

    #[test]
    fn a_vmm_that_listens_and_an_mtu() {
        let mut network = network(vec![Attachment::Connect(ConnectPath::new("/tmp/vm.sock".into()).unwrap())]);
        network.mtu = Some("9000".parse().unwrap());
        let text = instructions(&network);
        assert!(text.contains("path=/tmp/vm.sock,server=on,wait=off"), "{text}");
        assert!(text.contains("vhost_mode=server") && text.contains(",host_mtu=9000") && text.contains(",mtu=9000"));
    }

    #[test]
    fn odd_paths_survive_the_shell_and_the_vmm() {
        let text = instructions(&network(vec![listen("/tmp/it's a,b")]));
        assert!(text.contains(r"-chardev 'socket,id=wire0,path=/tmp/it'\''s a,,b,reconnect-ms=1000'"), "{text}");
        assert!(text.contains(r#"socket="/tmp/it'\''s a,b""#), "{text}");
    }

    #[test]
    fn a_declared_port_has_lines_for_one_vm_with_its_own_address() {
        let mut network = network(vec![]);
        let (name, mac) = ("web".parse().unwrap(), Some("52:54:00:12:34:56".parse().unwrap()));
        let attachments = vec![listen("/tmp/web.sock")];
        network.ports.push(DeclaredPort { name, attachments, mac, ip: None, security: Security::ON });
        let text = instructions(&network);
        assert_eq!(text.matches("qemu-system-").count(), 1);
        assert_eq!(macs(&text), ["52:54:00:12:34:56"; 2]);
        network.ports[0].mac = None;
        assert!(macs(&instructions(&network)).iter().all(|mac| mac.starts_with("02:")));
    }
}
