//! Messages of a guest for the gateway's name server, and what a resolver may say to them. Nothing panics; what a guest
//! gets is an answer with its own number, and from the resolver's to its own question only.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::Arc;

use guestwire::frame::ethernet::MacAddr;
use guestwire::nat::{Names, Settings, trial_of_dns};
use guestwire::switch::PortId;
use guestwire_fuzz::{Input, canary};
use libfuzzer_sys::fuzz_target;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 7);
const HEADER_LEN: usize = 12;

/// A network with one guest, `web`.
#[derive(Debug)]
struct One;

impl Names for One {
    fn host(&self, name: &str) -> Option<(Ipv4Addr, Option<MacAddr>)> {
        (name == "web").then_some((WEB, None))
    }

    fn name_at(&self, address: Ipv4Addr) -> Option<String> {
        (address == WEB).then(|| "web".to_owned())
    }

    fn name_of(&self, _: PortId, _: MacAddr) -> Option<String> {
        None
    }
}

fn settings() -> Settings {
    Settings {
        gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        subnet: "10.0.2.0/24".parse().expect("a subnet"),
        subnet6: "fd00::/64".parse().ok(),
        domain: "lab.example".parse().ok(),
        mtu: 1500,
        forwards: Vec::new(),
        host_loopback: false,
        allow: Vec::new(),
        deny: Vec::new(),
        peek_offset: true,
        advertisement: None,
    }
}

/// A message around a name and what follows it.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, records) = (input.u8(), input.u8() & 3);
    let mut message = vec![0x12, 0x34, kind & 0x81, 0, 0, 1, 0, 0, 0, 0, 0, records];
    let names: [&[u8]; 6] = [
        b"\x03web\x00",
        b"\x03web\x03lab\x07example\x00",
        b"\x017\x012\x010\x0210\x07in-addr\x04arpa\x00",
        b"\x07example\x03com\x00",
        b"\x01x\x05local\x00",
        b"\x09localhost\x00",
    ];
    match names.get(usize::from(kind >> 1 & 7)) {
        Some(name) => message.extend_from_slice(name),
        None => {
            let len = usize::from(input.u8());
            message.extend_from_slice(input.bytes(len));
        }
    }
    message.extend_from_slice(&[0, input.u8(), 0, 1]);
    let len = usize::from(input.u16() & 511);
    message.extend_from_slice(input.bytes(len));
    message
}

fuzz_target!(|data: &[u8]| {
    if canary(data) {
        return;
    }
    let mut input = Input::new(data);
    let bits = input.u8();
    let message = if bits & 1 == 0 {
        message(&mut input)
    } else {
        let len = usize::from(input.u16() & 4095);
        input.bytes(len).to_vec()
    };
    let id = input.u16();
    // The question again, as an answer, but for what the input changes in it.
    let mut heard = if bits & 2 == 0 { message.clone() } else { Vec::new() };
    if heard.len() >= HEADER_LEN {
        heard[..2].copy_from_slice(&id.to_be_bytes());
        heard[2] |= 0x80;
        let at = usize::from(input.u16()) % heard.len();
        heard[at] ^= input.u8();
    }
    heard.extend_from_slice(input.rest());
    let Some(answer) = trial_of_dns(&settings(), Arc::new(One), &message, (&heard, id)) else { return };
    assert!(answer.len() >= HEADER_LEN && answer[..2] == message[..2], "{answer:02x?}");
    assert!(answer[2] & 0x80 != 0, "no answer: {answer:02x?}");
});
