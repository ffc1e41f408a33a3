//! What the tests make guests say to each other, and what the guests' own kernels report of it.

use std::time::Duration;

use serde_json::Value;

use crate::guest::{COMMAND_WITHIN, Guest, Job};

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

/// One TCP stream for some seconds; the bytes that the receiver had, which are more than none.
pub(crate) fn iperf(from: &mut Guest, to: &Guest, seconds: u32) -> u64 {
    let job = begin_iperf(from, to, seconds, "");
    finish_iperf(from, job, seconds)
}

/// Runs a command of iperf3's. Its server listens anew after each client, and for a moment not at all: who comes then
/// is refused, or forgotten before anything was said, and comes again.
pub(crate) fn run_iperf(from: &mut Guest, command: &str, seconds: u32) -> String {
    const TRIES: u32 = 10;
    let mut output = String::new();
    for _ in 0..TRIES {
        output = from.run(command, COMMAND_WITHIN + Duration::from_secs(seconds.into())).output;
        let is_too_early = ["Connection refused", "Connection reset by peer"].iter().any(|why| output.contains(why));
        if !is_too_early || output.contains("bits_per_second") || output.contains("bits/sec") {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    output
}

/// Begins the same in the background, with further options of iperf3's.
pub(crate) fn begin_iperf(from: &mut Guest, to: &Guest, seconds: u32, options: &str) -> Job {
    begin_iperf_to(from, &to.ip(), seconds, options)
}

/// The same towards anybody.
pub(crate) fn begin_iperf_to(from: &mut Guest, address: &str, seconds: u32, options: &str) -> Job {
    from.begin(&format!("iperf3 -c {address} -t {seconds} -i 0 -J {options}"))
}

/// Waits for it.
pub(crate) fn finish_iperf(from: &mut Guest, job: Job, seconds: u32) -> u64 {
    let output = from.finish(job, COMMAND_WITHIN + Duration::from_secs(seconds.into()));
    received_bytes(&output)
        .filter(|&bytes| bytes > 0)
        .unwrap_or_else(|| panic!("{from}: iperf3 moved nothing:\n{output}"))
}

/// What iperf3's JSON says the receiver had.
pub(crate) fn received_bytes(output: &str) -> Option<u64> {
    let json: Value = serde_json::from_str(&output[output.find('{')?..=output.rfind('}')?]).ok()?;
    json.pointer("/end/sum_received/bytes")?.as_u64()
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
