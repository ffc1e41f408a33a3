//! What the tests make guests say to each other, and what the guests' own kernels report of it.

use std::time::Duration;

use serde_json::Value;

use crate::guest::{COMMAND_WITHIN, Guest, Job};

/// What a stream carries that need only show that it flows: thousands of packets, and a moment of an emulated CPU.
const STREAM_MEGABYTES: u64 = 16;

/// Feature bits of the virtio-net device and of the ring (virtio 1.3, 5.1.3 and 6).
pub(crate) mod feature {
    pub(crate) const CSUM: usize = 0;
    pub(crate) const GUEST_CSUM: usize = 1;
    pub(crate) const GUEST_TSO4: usize = 7;
    pub(crate) const GUEST_TSO6: usize = 8;
    pub(crate) const HOST_TSO4: usize = 11;
    pub(crate) const HOST_TSO6: usize = 12;
    pub(crate) const MRG_RXBUF: usize = 15;
    pub(crate) const CTRL_VQ: usize = 17;
    pub(crate) const MQ: usize = 22;
    pub(crate) const INDIRECT_DESC: usize = 28;
    pub(crate) const EVENT_IDX: usize = 29;
    pub(crate) const VERSION_1: usize = 32;
}

/// Whether the guest's driver negotiated a feature, as its kernel tells.
pub(crate) fn negotiated(guest: &mut Guest, bit: usize) -> bool {
    let bits = guest.ok("cat /sys/class/net/eth0/device/features");
    bits.trim().as_bytes().get(bit) == Some(&b'1')
}

/// Echo requests of each family; none may be lost.
pub(crate) fn ping(from: &mut Guest, to: &Guest) {
    for (flag, address) in [("-4", to.ip()), ("-6", to.ip6())] {
        let output = from.ok(&format!("ping {flag} -c 3 -i 0.2 -W 5 {address}"));
        assert!(output.contains(" 0% packet loss"), "{from} to {to}:\n{output}");
    }
}

/// Starts iperf3's server, which stays.
pub(crate) fn serve(guest: &mut Guest) {
    guest.ok("iperf3 -s -D && \
         for n in 1 2 3 4 5 6 7 8 9 10; do netstat -ltn | grep -q :5201 && exit 0; usleep 200000; done; exit 1");
}

/// One TCP stream of [`STREAM_MEGABYTES`] to anybody, with further options of iperf3's. The receiver
/// stops counting when the sender says that it is done, so the last of it may not be counted.
pub(crate) fn iperf(from: &mut Guest, address: &str, options: &str) {
    let command = format!("iperf3 -c {address} -n {STREAM_MEGABYTES}M -i 0 -J {options}");
    let output = run_iperf(from, &command);
    let received = received(&output).filter(|received| received.bytes >= STREAM_MEGABYTES << 19);
    let received = received.unwrap_or_else(|| from.fail(&format!("ran `{command}`:\n{output}")));
    println!("{from}, {address} {options}: {:.0} Mb/s", received.bits_per_second / 1e6);
}

/// Runs a command of iperf3's. Its server has one client at a time. It listens anew after each, and for a moment not at
/// all: who comes then is refused, or forgotten before anything was said, and comes again.
pub(crate) fn run_iperf(from: &mut Guest, command: &str) -> String {
    const TRIES: u32 = 20;
    const TOO_EARLY: [&str; 3] = ["Connection refused", "Connection reset by peer", "server is busy"];
    let mut output = String::new();
    for _ in 0..TRIES {
        output = from.run(command, COMMAND_WITHIN).output;
        let is_too_early = TOO_EARLY.iter().any(|why| output.contains(why));
        if !is_too_early || output.contains("bits_per_second") || output.contains("bits/sec") {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    output
}

/// Begins a TCP stream for some seconds in the background, with further options of iperf3's.
pub(crate) fn begin_iperf(from: &mut Guest, to: &Guest, seconds: u32, options: &str) -> Job {
    from.begin(&format!("iperf3 -c {} -t {seconds} -i 0 -J {options}", to.ip()))
}

/// Waits for it. The receiver must have had something.
pub(crate) fn finish_iperf(from: &mut Guest, job: Job, seconds: u32) {
    let output = from.finish(job, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
    assert!(received(&output).is_some_and(|received| received.bytes > 0), "{from}: iperf3 moved nothing:\n{output}");
}

/// What a receiver had.
struct Received {
    bytes: u64,
    bits_per_second: f64,
}

/// What iperf3's JSON says of it.
fn received(output: &str) -> Option<Received> {
    let json: Value = serde_json::from_str(&output[output.find('{')?..=output.rfind('}')?]).ok()?;
    let all = json.pointer("/end/sum_received")?;
    Some(Received { bytes: all["bytes"].as_u64()?, bits_per_second: all["bits_per_second"].as_f64()? })
}

/// Sends random bytes over TCP and asserts that they arrive with the SHA-256 they left with.
pub(crate) fn send_data(from: &mut Guest, to: &mut Guest, megabytes: u32) {
    // An input that never ends: at its end busybox's nc would close its side, at which the other one hangs up.
    let receiver =
        to.begin("mkfifo -m 600 /tmp/open$$ && nc -l -p 7000 <>/tmp/open$$ >/tmp/got && sha256sum </tmp/got");
    to.ok("for n in 1 2 3 4 5 6 7 8 9 10; do netstat -ltn | grep -q :7000 && exit 0; usleep 200000; done; exit 1");
    from.ok(&format!("dd if=/dev/urandom of=/tmp/data bs=1M count={megabytes} 2>/dev/null"));
    let left = from.ok("sha256sum </tmp/data");
    from.ok(&format!("nc {} 7000 </tmp/data && rm /tmp/data", to.ip()));
    let arrived = to.finish(receiver, COMMAND_WITHIN);
    assert_eq!(left.trim(), arrived.trim(), "{megabytes} MB from {from} to {to} arrived changed");
    assert_eq!(to.ok("wc -c </tmp/got && rm /tmp/got").trim(), (u64::from(megabytes) << 20).to_string());
}

/// Begins echo requests from one guest to another, 20 a second; [`finish_lossless`] asserts that each had its answer.
pub(crate) fn begin_lossless(from: &mut Guest, to: &Guest, seconds: u32) -> Job {
    from.begin(&format!("ping -c {} -i 0.05 -W 10 {}", seconds * 20, to.ip()))
}

/// Waits for it.
pub(crate) fn finish_lossless(from: &mut Guest, job: Job, seconds: u32) {
    let output = from.finish(job, COMMAND_WITHIN + Duration::from_secs(u64::from(seconds) * 2));
    assert!(output.contains(" 0% packet loss"), "{from}:\n{}", last_lines(&output));
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}
