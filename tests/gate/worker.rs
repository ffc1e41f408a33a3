//! A worker that serves its mailbox and writes down what came, and does nothing else.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use guestwire::ring::mailbox::{Mailbox, Message, PortMailbox};
use guestwire::vhost::features;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Where every ring stops, plus its number.
pub(crate) const STOPPED_AT: u16 = 7000;

pub(crate) struct Worker {
    mailbox: Arc<Mailbox>,
    heard: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub(crate) fn start() -> Self {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (ours, notes) = (mailbox.clone(), heard.clone());
        let thread = std::thread::spawn(move || serve(&ours, &notes));
        Self { mailbox, heard, thread }
    }

    pub(crate) fn port(&self, number: u32) -> PortMailbox {
        PortMailbox::new(number, self.mailbox.clone())
    }

    /// Waits for Detach; everything that was heard.
    pub(crate) fn finish(self) -> Vec<String> {
        self.thread.join().expect("the worker ends with Detach");
        Arc::into_inner(self.heard).expect("nobody else has it").into_inner().unwrap()
    }
}

fn serve(mailbox: &Mailbox, heard: &Mutex<Vec<String>>) {
    loop {
        poll(&mut [PollFd::new(mailbox.wake_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        for envelope in mailbox.take() {
            let (_, message, reply) = envelope.open();
            heard.lock().unwrap().push(describe(&message));
            let is_last = matches!(message, Message::Detach);
            match message {
                Message::RingStop { index } => reply.send(STOPPED_AT + u16::try_from(index).unwrap()),
                _ => reply.send(0),
            }
            if is_last {
                return;
            }
        }
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::Attach(port) => format!("Attach {}", port.number),
        Message::Features(bits) => format!("Features {}", features::names(*bits)),
        Message::Memory(memory) => format!("Memory {}", if memory.is_some() { "some" } else { "none" }),
        Message::RingStart { index, setup } => format!(
            "RingStart {index} size={} desc={:#x} avail={:#x} used={:#x} next_avail={} next_used={} call={} err={}",
            setup.size,
            setup.desc,
            setup.avail,
            setup.used,
            setup.next_avail,
            setup.next_used,
            setup.call.is_some(),
            setup.err.is_some()
        ),
        Message::RingCall { index, call } => format!("RingCall {index} call={}", call.is_some()),
        Message::RingEnable { index, on } => format!("RingEnable {index} on={on}"),
        Message::RingLied { index, .. } => format!("RingLied {index}"),
        Message::RingStop { index } => format!("RingStop {index}"),
        Message::Detach => "Detach".to_owned(),
    }
}
