//! A web server beyond a NAT network, and guests whose curl fetches from it by HTTPS: a few large files and many small
//! ones.

use std::fs::{self, File};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::Turn;
use crate::data::{hex, sha256, write_random};
use crate::guest::{COMMAND_WITHIN, Guest, Plan, Vmm};
use crate::lan::{Program, until};
use crate::nat::{SERVER, SERVER6, World, join};

/// How much is fetched and how much is put back, each time, unless the environment says otherwise: in units of 2^20
/// bytes.
const MEGABYTES: usize = 4;
const MEGABYTES_VARIABLE: &str = "GUESTWIRE_MEGABYTES";
/// What a megabyte may take, encrypted on an emulated processor that others use as well.
const MEGABYTE_WITHIN: Duration = Duration::from_secs(1);
/// Of each family: one after another by one connection, and each by one of its own.
const BY_ONE: usize = 1000;
const BY_THEIR_OWN: usize = 150;

/// A certificate of the server's own, for its addresses.
const REQUEST: &str = "
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = server
[extensions]
subjectAltName = IP:10.7.0.2, IP:fd07::2
";

/// nginx as one process that keeps its files in `DIR`.
const CONFIGURATION: &str = r#"
daemon off;
master_process off;
error_log stderr;
pid DIR/pid;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    client_max_body_size 0;
    keepalive_requests 1000000;
    server {
        listen 10.7.0.2:443 ssl;
        listen [fd07::2]:443 ssl;
        ssl_certificate DIR/certificate;
        ssl_certificate_key DIR/key;
        root DIR/files;
        dav_methods PUT;
        location ~ ^/number/(\d+)$ { return 200 "the answer to $1\n"; }
    }
}
"#;

/// The server, which ends when this is dropped, and its files.
struct Web {
    _nginx: Program,
    folder: TempDir,
}

impl Web {
    /// Its certificate begins to hold now, so guests whose clocks count seconds must boot later.
    fn start(world: &World) -> Self {
        let folder = TempDir::with_prefix("guestwire-web-").unwrap();
        let place = folder.path().display().to_string();
        fs::create_dir(folder.path().join("files")).unwrap();
        fs::write(folder.path().join("request"), REQUEST).unwrap();
        fs::write(folder.path().join("configuration"), CONFIGURATION.replace("DIR", &place)).unwrap();
        // One to trust, and one that says the same of itself.
        for (key, certificate) in [("key", "certificate"), ("strange-key", "strange")] {
            let curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc";
            let files = format!("-config {place}/request -keyout {place}/{key} -out {place}/{certificate}");
            let openssl = format!("{}/openssl", world.lab.get("NET_BIN"));
            world.server.command(&openssl, &format!("req -x509 -days 2 {curve} {files}"));
        }
        let configuration = format!("{place}/configuration");
        let nginx = Program::start(&world.lab, &world.server, "nginx", &["-e", "stderr", "-c", &configuration]);
        until("nginx", || world.server.run(|| TcpStream::connect((SERVER, 443))));
        Self { _nginx: nginx, folder }
    }

    /// One of the files that it serves, or that it was given.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// Gives a guest the certificate. With another one it must be refused.
    fn introduce(&self, guest: &mut Guest) {
        for name in ["certificate", "strange"] {
            let certificate = fs::read_to_string(self.folder.path().join(name)).unwrap();
            let lines: Vec<String> = certificate.lines().map(|line| format!("'{line}'")).collect();
            guest.ok(&format!("printf '%s\\n' {} >/tmp/{name}", lines.join(" ")));
        }
        let refused = guest.run(&format!("{} https://{SERVER}/number/1", curl("strange")), COMMAND_WITHIN);
        // CURLE_PEER_FAILED_VERIFICATION.
        assert_eq!(refused.code, 60, "{guest}: {}", refused.output);
    }
}

/// The words of a command that trusts one of a guest's certificates and no other.
fn curl(certificate: &str) -> String {
    format!("curl -sS --fail --cacert /tmp/{certificate}")
}

/// What a guest's pipeline prints. No command of it may fail.
fn pipe(guest: &mut Guest, commands: &str, within: Duration) -> String {
    let job = guest.begin(&format!("set -o pipefail; {commands}"));
    guest.finish(job, within).trim().to_owned()
}

/// What `sha256sum` prints of the answers to some numbers.
fn sum_of_answers(numbers: RangeInclusive<usize>) -> String {
    let mut hash = Sha256::new();
    numbers.for_each(|number| hash.update(format!("the answer to {number}\n")));
    format!("{}  -", hex(hash))
}

/// How many connections the gateway has made so far.
fn connections(world: &World) -> u64 {
    // The figures of a moment that has been since.
    std::thread::sleep(Duration::from_millis(300));
    world.daemon.counters("0")["tcp_opened"].as_u64().unwrap()
}

#[test]
fn files_come_and_go_by_https() {
    let _turn = Turn::wait();
    let mut world = World::new(&[], &[]);
    let web = Web::start(&world);
    let megabytes = std::env::var(MEGABYTES_VARIABLE).map_or(MEGABYTES, |text| text.parse().unwrap());
    let sent = write_random(&mut File::create(web.file("file")).unwrap(), megabytes << 20);
    let within = COMMAND_WITHIN + MEGABYTE_WITHIN * u32::try_from(megabytes).unwrap();
    let plans = [(Vmm::UmlNew, 1, "UML_WEB_INITRD"), (Vmm::Qemu72, 2, "WEB_INITRD")];
    let started = plans.map(|(vmm, number, initrd)| {
        let plan = Plan::new(vmm, number).without_addresses().initrd(world.lab.get(initrd).as_ref());
        plan.start(&world.lab, &world.daemon)
    });
    for mut guest in started.map(Guest::booted) {
        join(&mut guest);
        web.introduce(&mut guest);
        let curl = curl("certificate");
        for url in [format!("https://{SERVER}"), format!("https://[{SERVER6}]")] {
            let start = Instant::now();
            let got = pipe(&mut guest, &format!("{curl} {url}/file | sha256sum"), within);
            assert_eq!(got, format!("{sent}  -"), "{guest}: {url}");
            let fetched = start.elapsed();
            // It has no room for the file, and passes it on.
            let put = format!("{curl} {url}/file | {curl} -o /dev/null -T - {url}/put");
            pipe(&mut guest, &put, within);
            let (put, len) = sha256(&mut File::open(web.file("put")).unwrap());
            assert_eq!((&put, len), (&sent, megabytes << 20), "{guest}: {url}");
            fs::remove_file(web.file("put")).unwrap();
            let both = start.elapsed() - fetched;
            println!("{guest}, {url}: {megabytes} MiB fetched in {fetched:.1?}, and passed on in {both:.1?}: {sent}");
        }
    }
    world.daemon.assert_alive();
}

#[test]
fn thousands_of_small_transfers() {
    let _turn = Turn::wait();
    let mut world = World::new(&[], &[]);
    let web = Web::start(&world);
    let initrd = world.lab.get("UML_WEB_INITRD");
    let plan = Plan::new(Vmm::UmlNew, 1).without_addresses().initrd(initrd.as_ref());
    let mut guest = plan.start(&world.lab, &world.daemon).booted();
    join(&mut guest);
    web.introduce(&mut guest);
    let curl = curl("certificate");
    for url in [format!("https://{SERVER}"), format!("https://[{SERVER6}]")] {
        let before = connections(&world);
        let by_one = pipe(&mut guest, &format!("{curl} '{url}/number/[1-{BY_ONE}]' | sha256sum"), COMMAND_WITHIN);
        assert_eq!((by_one, connections(&world) - before), (sum_of_answers(1..=BY_ONE), 1), "{url}");
        let at_once = "--no-progress-meter -Z --parallel-immediate --parallel-max 50 -H 'Connection: close'";
        let fetch = format!("cd /tmp && {curl} {at_once} -o '#1' '{url}/number/[1-{BY_THEIR_OWN}]'");
        let sum = format!("seq {BY_THEIR_OWN} | xargs cat | sha256sum && seq {BY_THEIR_OWN} | xargs rm");
        let before = connections(&world);
        let by_their_own = pipe(&mut guest, &format!("{fetch} && {sum}"), COMMAND_WITHIN);
        let expected = (sum_of_answers(1..=BY_THEIR_OWN), BY_THEIR_OWN as u64);
        assert_eq!((by_their_own, connections(&world) - before), expected, "{url}");
    }
    world.daemon.assert_alive();
}
