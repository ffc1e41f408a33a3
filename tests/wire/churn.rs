//! Ports come and go, half of them without a word, and nothing of them is left.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::daemon::{Daemon, Facts, until, workers};
use crate::guest::{Config, Guest, introduce, mac, plain};
use crate::memory::{BASE, Memory};

const CYCLES: usize = 1000;
/// What an allocator may keep for later, in KiB.
const RSS_SLACK_KIB: u64 = 256;

/// Whether what is there after is what was there before.
fn same(before: Facts, after: Facts) -> bool {
    after.rss_anon_kib <= before.rss_anon_kib + RSS_SLACK_KIB
        && Facts { rss_anon_kib: before.rss_anon_kib, ..after } == before
}

/// Tells the process that is started as a VMM where to attach its guest.
const SOCKET: &str = "GUESTWIRE_TEST_SOCKET";
/// And by which number.
const NUMBER: &str = "GUESTWIRE_TEST_NUMBER";

/// The number of the guest of a cycle: another than that of the one before, whose port may still be on its way out, and
/// as long as it is there has its MAC address.
fn number_of(cycle: usize) -> u8 {
    10 + (cycle % 200) as u8
}

/// Two guests that have nothing to do with all this, and lose nothing by it.
struct Bystanders {
    from: Guest,
    to: Guest,
    sent: u64,
}

impl Bystanders {
    fn attach(daemon: &Daemon) -> Self {
        let [mut from, mut to] = [3, 4].map(|number| Guest::attach(&daemon.socket(), Config::usual(number)));
        introduce(&mut from, &mut to);
        Self { from, to, sent: 0 }
    }

    /// Each frame arrives, in order, floods of others between them.
    fn talk(&mut self, frames: usize) {
        for _ in 0..frames {
            self.sent += 1;
            let word = self.sent.to_le_bytes();
            self.from.send(&plain(mac(4), mac(3), &word));
            let mut got = self.to.receive().frame;
            while got[6..12] != mac(3) {
                got = self.to.receive().frame;
            }
            assert_eq!(got[14..], word);
        }
    }
}

/// One guest's life: memory, two rings, a frame each way; ended in order, or killed in the middle of a burst.
fn cycle(daemon: &Daemon, friend: &mut Guest, bystanders: &mut Bystanders, cycle: usize) {
    let number = number_of(cycle);
    if !cycle.is_multiple_of(2) {
        return be_killed(daemon, friend, bystanders, number);
    }
    let mut guest = Guest::attach(&daemon.socket(), Config::usual(number));
    guest.send(&plain(mac(1), mac(number), b"out"));
    until("the frame out", || friend.receive().frame[14..] == *b"out");
    friend.send(&plain(mac(number), mac(1), b"in"));
    assert_eq!(guest.receive().frame[14..], *b"in");
    for ring in 0..2 {
        guest.frontend.get_vring_base(ring).expect("GET_VRING_BASE");
    }
}

/// A guest whose VMM is a process of its own, ended by SIGKILL while it sends as fast as it can.
fn be_killed(daemon: &Daemon, friend: &mut Guest, bystanders: &mut Bystanders, number: u8) {
    let mut vmm = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "churn::a_guest_that_is_killed_in_full_swing_is_forgotten"])
        .env(SOCKET, daemon.socket())
        .env(NUMBER, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    until("the frame out", || friend.receive().frame[14..] == *b"out");
    friend.send(&plain(mac(number), mac(1), b"in"));
    until("the burst", || friend.receive().frame[14..].starts_with(b"burst"));
    bystanders.talk(10);
    vmm.kill().expect("our child");
    bystanders.talk(10);
    vmm.wait().expect("our child");
    bystanders.talk(10);
    while friend.poll(0).is_some() {}
}

/// What the killed one does until then.
fn send_for_ever(socket: &Path) {
    let number = std::env::var(NUMBER).ok().and_then(|number| number.parse().ok()).expect("a number");
    let mut guest = Guest::attach(socket, Config::usual(number));
    guest.send(&plain(mac(1), mac(number), b"out"));
    assert_eq!(guest.receive().frame[14..], *b"in");
    let frame = plain(mac(1), mac(number), &[&b"burst"[..], &[7; 1000]].concat());
    loop {
        guest.push(0, &[0; 12], &frame, &[]);
        guest.transmit[0].publish();
    }
}

#[test]
fn a_guest_that_is_killed_in_full_swing_is_forgotten() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        return send_for_ever(Path::new(&socket));
    }
    let mut daemon = Daemon::with(&[], false);
    let mut friend = Guest::attach(&daemon.socket(), Config::usual(1));
    let mut bystanders = Bystanders::attach(&daemon);
    let threads = daemon.facts().threads;
    be_killed(&daemon, &mut friend, &mut bystanders, 8);
    until("its threads have gone", || daemon.facts().threads == threads);
    daemon.assert_alive();
}

#[test]
fn a_thousand_ports_come_and_go_and_leave_nothing_and_disturb_nobody() {
    let mut daemon = Daemon::with(&[], false);
    let socket = daemon.socket();
    let mut friend = Guest::attach(&socket, Config::usual(1));
    let mut bystanders = Bystanders::attach(&daemon);
    // The first ones make what is made once: more at a time than will ever be, since the C library keeps their stacks.
    let many: Vec<_> = (0..12).map(|_| Guest::attach(&socket, Config::usual(9))).collect();
    drop(many);
    for number in 0..100 {
        cycle(&daemon, &mut friend, &mut bystanders, number);
    }
    let mut before = daemon.facts();
    until("the first ports have gone", || {
        before = daemon.facts();
        std::thread::sleep(Duration::from_millis(50));
        daemon.facts() == before
    });
    for number in 0..CYCLES {
        cycle(&daemon, &mut friend, &mut bystanders, number);
        bystanders.talk(1);
    }
    let mut after = daemon.facts();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !same(before, after) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        after = daemon.facts();
    }
    assert!(same(before, after), "before {before:?}, after {after:?}");
    daemon.assert_alive();
    // A port may still be on its way out when the next guest with the same address comes: that is said, and no more.
    assert!(daemon.warnings().iter().all(|line| line.contains("has the address")), "{:#?}", daemon.warnings());
}

#[test]
fn one_leaked_descriptor_would_be_seen() {
    let daemon = Daemon::with(&[], false);
    let mut first = Guest::attach(&daemon.socket(), Config::usual(1));
    let mut bystanders = Bystanders::attach(&daemon);
    for number in 0..10 {
        cycle(&daemon, &mut first, &mut bystanders, number);
    }
    // The supervisor, the log, the workers, and two for each session.
    until("the ports have gone", || daemon.facts().threads == 2 + workers() + 2 * 3);
    let before = daemon.facts();
    // A descriptor that the session did not have before, and keeps, is what a leak looks like.
    let kept = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
    first.frontend.set_vring_err(0, &kept).expect("SET_VRING_ERR");
    until("it shows", || daemon.facts().fds == before.fds + 1);
    assert!(!same(before, daemon.facts()));
}

/// To free a guest's memory takes the longer the more it is, so it is not the worker that does it.
#[test]
fn the_end_of_a_large_guest_is_no_work_for_the_worker() {
    const LARGE: usize = 1 << 30;
    let daemon = Daemon::with(&[], false);
    let (mut a, mut b) =
        (Guest::attach(&daemon.socket(), Config::usual(1)), Guest::attach(&daemon.socket(), Config::usual(2)));
    introduce(&mut a, &mut b);
    let memory = Memory::new(LARGE);
    (0..LARGE).step_by(4096).for_each(|page| memory.write(page, &[1]));
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE + (1 << 32),
        memory_size: LARGE as u64,
        userspace_addr: memory.user_address(),
        mmap_offset: 0,
        mmap_handle: memory.fd.as_raw_fd(),
    };
    b.frontend.add_mem_region(&region).expect("ADD_MEM_REG");
    // From here on the daemon alone holds it.
    drop(memory);
    let (threads, before) = (daemon.facts().threads, daemon.cpu_ticks("worker-0"));
    drop(b);
    until("its threads have gone", || daemon.facts().threads == threads - 2);
    let ticks = daemon.cpu_ticks("worker-0") - before;
    assert!(ticks <= 3, "{ticks} hundredths of a second, of about 20 that it takes to free so much");
}
