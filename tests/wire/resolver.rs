//! A name server on the host, which remembers what it was asked.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record};

use crate::space::Space;

/// How long it is looked for questions before it is asked whether to end.
const LOOK: Duration = Duration::from_millis(20);

/// A question as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) id: u16,
    pub(crate) from: SocketAddr,
    pub(crate) by_tcp: bool,
}

/// What it does with questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Says that names have this address. `long.example` has a text of 4000 bytes instead.
    Tells(Ipv4Addr),
    /// Says that it cannot tell.
    Fails,
    /// Says nothing.
    Silent,
    /// Says wrong things before the right one.
    Lies(Ipv4Addr),
}

/// See the module's description.
pub(crate) struct Resolver {
    asked: Arc<Mutex<Vec<Asked>>>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// One that listens on port 53 of this address.
    pub(crate) fn start(space: &Space, address: &str, manner: Manner) -> Self {
        let address: SocketAddr = format!("{address}:53").parse().unwrap();
        let (udp, tcp) = space.run(|| (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        let (asked, ends) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<AtomicBool>::default());
        udp.set_read_timeout(Some(LOOK)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (list, end) = (asked.clone(), ends.clone());
        let by_udp = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let Ok((len, from)) = udp.recv_from(&mut buffer) else { continue };
                for answer in answers(&buffer[..len], from, manner, false, &list) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        let (list, end) = (asked.clone(), ends.clone());
        let by_tcp = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, from)) => drop(serve(stream, from, manner, &list)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Self { asked, ends, threads: vec![by_udp, by_tcp] }
    }

    /// What it was asked.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, from: SocketAddr, manner: Manner, list: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    for answer in answers(&message, from, manner, true, list) {
        // In two pieces, of which the first has not even the whole length.
        let answer = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        stream.write_all(&answer[..1])?;
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(&answer[1..])?;
    }
    Ok(())
}

fn answers(message: &[u8], from: SocketAddr, manner: Manner, by_tcp: bool, list: &Mutex<Vec<Asked>>) -> Vec<Vec<u8>> {
    let asked = Message::from_vec(message).unwrap();
    let name = asked.queries[0].name.clone();
    list.lock().unwrap().push(Asked { name: name.to_ascii().to_lowercase(), id: asked.id, from, by_tcp });
    let mut answer = Message::response(asked.id, asked.op_code);
    answer.metadata.recursion_desired = asked.recursion_desired;
    answer.add_queries(asked.queries.clone());
    let mut tells = |address| {
        let long = RData::TXT(TXT::new(vec!["x".repeat(250); 16]));
        let is_long = name.to_ascii().starts_with("long.");
        let data = if is_long { long } else { RData::A(A(address)) };
        answer.add_answer(Record::from_rdata(name.clone(), 60, data));
        answer.to_vec().unwrap()
    };
    match manner {
        Manner::Silent => Vec::new(),
        Manner::Tells(address) => vec![tells(address)],
        Manner::Fails => {
            answer.metadata.response_code = ResponseCode::ServFail;
            vec![answer.to_vec().unwrap()]
        }
        Manner::Lies(address) => {
            let truth = tells(address);
            let (mut other_id, mut other_name) = (truth.clone(), truth.clone());
            other_id[1] ^= 1;
            other_name[14] ^= 3;
            vec![other_id, other_name, vec![0; 12], Vec::new(), truth]
        }
    }
}
