//! One vhost-user connection: the gate's thread in front of a `VhostUserDaemon`.
//!
//! Theory of operation. The gate's thread owns the frontend's socket and one end of a private connection; the daemon,
//! which has a thread of its own in the crate, owns the other. Before anything else the gate negotiates with the daemon
//! by itself, so that every message it forwards is acknowledged and it always knows how things stand. A session begins
//! with `Attach` and ends with `Detach`, whatever happens in between; when its thread has ended, no descriptor, mapping
//! or thread of the connection is left.
//!
//! The private connection. The crate takes no connected socket, only a listener. There is one for the process, made in
//! a directory that nobody else may enter; the directory is removed at once, and the listener is reached through an
//! `O_PATH` descriptor, so there is no way around the gate and nothing on disk.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendFlags, send};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::backend::{Behind, PortBackend};
use super::channel::{self, ChannelError, MESSAGE_TIMEOUT};
use super::features::{Offer, PROTOCOL_FEATURES};
use super::gate::{Gate, Verdict};
use super::message::*;
use super::vring;
use crate::ring::mailbox::{self, PortMailbox, PortShared};

/// Bytes of stack for a gate's thread: it keeps no more than a message.
const STACK_LEN: usize = 256 * 1024;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, a request that we send.
const BACKEND_CONFIG_CHANGE: u32 = 2;

/// A running session.
#[derive(Debug)]
pub struct SessionHandle {
    socket: Arc<UnixStream>,
    thread: JoinHandle<()>,
}

impl SessionHandle {
    /// Asks the session to end. Returns at once.
    pub fn shutdown(&self) {
        // Fails only when the frontend has gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Waits until nothing of the session is left.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a session has panicked; this is a bug");
        }
    }
}

/// Starts a session for a frontend that is connected by `stream`. `on_end` is called last, in the session's thread.
///
/// # Errors
/// When the process is out of descriptors or threads.
pub fn spawn(
    stream: UnixStream,
    port: Arc<PortShared>,
    mailbox: PortMailbox,
    offer: Offer,
    on_end: Box<dyn FnOnce() + Send>,
) -> io::Result<SessionHandle> {
    let socket = Arc::new(stream);
    let ours = socket.clone();
    let name = format!("gate-{}", port.number);
    let thread = std::thread::Builder::new().name(name).stack_size(STACK_LEN).spawn(move || {
        let _end = OnEnd(Some(on_end));
        run(&ours, &port, mailbox, offer);
        // The handle may outlive us; the frontend must not take the connection for alive.
        let _ = ours.shutdown(Shutdown::Both);
    })?;
    Ok(SessionHandle { socket, thread })
}

/// Calls back when the session's thread ends, even by a panic.
struct OnEnd(Option<Box<dyn FnOnce() + Send>>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        if let Some(on_end) = self.0.take() {
            on_end();
        }
    }
}

/// Detaches the port from its worker, however the session ends.
struct Attached(PortMailbox);

impl Drop for Attached {
    fn drop(&mut self) {
        // Without a worker there is nothing to detach from.
        let _ = self.0.post(mailbox::Message::Detach);
    }
}

fn run(socket: &UnixStream, port: &Arc<PortShared>, mailbox: PortMailbox, offer: Offer) {
    let (number, network) = (port.number, port.network.as_str());
    if mailbox.post(mailbox::Message::Attach(port.clone())).is_err() {
        return;
    }
    let attached = Attached(mailbox.clone());
    tracing::debug!(port = number, network, "attached");
    match Session::start(socket, port, mailbox, offer, attached) {
        Ok(mut session) => match session.serve() {
            ChannelError::Closed => tracing::info!(port = number, network, "detached: the frontend has closed"),
            error => tracing::warn!(port = number, network, "detached: {error}"),
        },
        Err(error) => tracing::error!(port = number, network, "detached: the session cannot start: {error}"),
    }
}

struct Session<'a> {
    /// Before the daemon, which holds the memory: fields are dropped in this order. The worker must not be the last to
    /// let go of a guest's memory, since to free gigabytes takes longer than its other guests can wait.
    _attached: Attached,
    socket: &'a UnixStream,
    port: &'a Arc<PortShared>,
    gate: Gate,
    behind: Arc<Behind>,
    private: UnixStream,
    daemon: VhostUserDaemon<Arc<PortBackend>>,
    /// Requests whose refusal is in the log already, a bit each; the highest is for those without a name.
    refused: u64,
}

impl<'a> Session<'a> {
    fn start(
        socket: &'a UnixStream,
        port: &'a Arc<PortShared>,
        mailbox: PortMailbox,
        offer: Offer,
        attached: Attached,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let behind = Arc::new(Behind::new(mailbox));
        let backend = Arc::new(PortBackend::new(offer.features | PROTOCOL_FEATURES, behind.clone()));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let name = format!("vhost-{}", port.number);
        let (daemon, rings) = vring::in_context(behind.clone(), || VhostUserDaemon::new(name, backend.clone(), memory));
        let mut daemon = daemon.map_err(|error| error.to_string())?;
        backend.set_rings(rings);
        let private = connect_privately(&mut daemon)?;
        let gate = Gate::new(offer, port.clone());
        let mut session = Self { _attached: attached, socket, port, gate, behind, private, daemon, refused: 0 };
        session.negotiate()?;
        Ok(session)
    }

    /// Brings the daemon to where it acknowledges everything.
    fn negotiate(&mut self) -> Result<(), ChannelError> {
        self.ask(&Message::new(GET_FEATURES, Vec::new()))?;
        let protocol = self.ask(&Message::new(GET_PROTOCOL_FEATURES, Vec::new()))?;
        channel::send(self.private.as_fd(), &Message::new(SET_PROTOCOL_FEATURES, protocol.body))?;
        self.forward(Message::new(SET_OWNER, Vec::new()))?;
        Ok(())
    }

    /// Serves the frontend until the connection ends, and says why it did.
    fn serve(&mut self) -> ChannelError {
        loop {
            if let Err(error) = self.wait().and_then(|()| self.serve_one()) {
                return error;
            }
        }
    }

    /// Waits for the frontend, and passes on what the worker has to tell meanwhile.
    fn wait(&self) -> Result<(), ChannelError> {
        loop {
            let mut fds = [
                PollFd::new(self.socket, PollFlags::IN),
                PollFd::from_borrowed_fd(self.port.notice_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ChannelError::Io(error.into())),
            }
            if !fds[1].revents().is_empty() {
                self.port.take_notice();
                self.tell_config_change();
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
        }
    }

    /// Tells the frontend that the configuration has changed, if it has given us a channel for that. Does not wait: a
    /// channel that is full will be read, and the configuration read anew, anyway.
    fn tell_config_change(&self) {
        let Some(fd) = self.gate.backend_channel() else { return };
        let bytes = Message::new(BACKEND_CONFIG_CHANGE, Vec::new()).encode();
        if let Err(error) = send(fd, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            tracing::debug!(port = self.port.number, "the frontend was not told of a configuration change: {error}");
        }
    }

    fn serve_one(&mut self) -> Result<(), ChannelError> {
        let message = channel::receive(self.socket.as_fd(), None)?;
        let (request, name) = (message.request, message.name());
        tracing::trace!(port = self.port.number, request = name, len = message.body.len(), fds = message.fds.len());
        let wants_reply = message.needs_reply() && !has_answer(request);
        let verdict = self.gate.admit(message);
        let acknowledge = wants_reply && self.gate.acknowledges();
        let status = match verdict {
            Verdict::Answer(body) => return self.reply(request, body),
            Verdict::Done => 0,
            Verdict::Forward(messages) => match self.forward_all(messages)? {
                Some(answer) => return self.reply(request, answer.body),
                None => 0,
            },
            Verdict::Refuse(why) => {
                self.log_refusal(request, name, &why);
                if has_answer(request) {
                    return self.reply(request, nothing(request));
                }
                1
            }
            Verdict::End(why) => {
                if acknowledge {
                    self.reply(request, 1u64.to_le_bytes().to_vec())?;
                }
                return Err(ChannelError::Header(format!("{name} ({request}): {why}")));
            }
        };
        if acknowledge { self.reply(request, u64::to_le_bytes(status).to_vec()) } else { Ok(()) }
    }

    /// Once for each request of a connection: a frontend that asks again and again does not fill the log.
    fn log_refusal(&mut self, request: u32, name: &str, why: &str) {
        let bit = 1 << request.min(u64::BITS - 1);
        if self.refused & bit == 0 {
            self.refused |= bit;
            let (port, network) = (self.port.number, self.port.network.as_str());
            tracing::warn!(port, network, "{name} ({request}) refused: {why}");
        }
    }

    fn forward_all(&mut self, messages: Vec<Message>) -> Result<Option<Message>, ChannelError> {
        let mut last = None;
        for message in messages {
            last = self.forward(message)?;
        }
        Ok(last)
    }

    /// Sends a message to the daemon and waits until it is done. Returns the answer of a request that has one.
    fn forward(&mut self, mut message: Message) -> Result<Option<Message>, ChannelError> {
        let name = message.name();
        // The daemon gets descriptors of its own, and waits for ever for those that did not fit.
        if message.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().is_err() {
            return Err(ChannelError::DescriptorsLost);
        }
        message.flags = if has_answer(message.request) { FLAG_VERSION } else { FLAG_VERSION | FLAG_NEED_REPLY };
        let answer = self.ask(&message);
        if let Some(trouble) = self.behind.trouble() {
            return Err(ChannelError::Behind(trouble.to_owned()));
        }
        match answer {
            Ok(answer) if has_answer(message.request) => Ok(Some(answer)),
            Ok(ack) if ack.u64_at(0) == 0 => Ok(None),
            // The daemon ends with the request that failed, and says why.
            _ => {
                let _ = self.private.shutdown(Shutdown::Both);
                let why = self.daemon.wait().err().map_or_else(String::new, |error| format!(": {error}"));
                Err(ChannelError::Behind(format!("{name} could not be carried out{why}")))
            }
        }
    }

    fn ask(&self, message: &Message) -> Result<Message, ChannelError> {
        channel::send(self.private.as_fd(), message)?;
        channel::receive(self.private.as_fd(), Some(MESSAGE_TIMEOUT)).map_err(|error| match error {
            ChannelError::Stalled => ChannelError::Behind(format!("{} was not answered from behind", message.name())),
            error => error,
        })
    }

    fn reply(&self, request: u32, body: Vec<u8>) -> Result<(), ChannelError> {
        let flags = FLAG_VERSION | FLAG_REPLY;
        channel::send(self.socket.as_fd(), &Message { request, flags, body, fds: Vec::new() })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let _ = self.private.shutdown(Shutdown::Both);
        // Ends with an error whenever the peer has gone, which is how every session ends.
        let _ = self.daemon.wait();
    }
}

/// Connects a new daemon to us. One at a time, so that whom the daemon accepts is who has connected here.
fn connect_privately(daemon: &mut VhostUserDaemon<Arc<PortBackend>>) -> Result<UnixStream, Box<dyn std::error::Error>> {
    static PRIVATE: OnceLock<Mutex<Option<(Listener, OwnedFd)>>> = OnceLock::new();
    let mut private = PRIVATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let (listener, place) = match private.as_mut() {
        Some(made) => made,
        None => private.insert(private_listener()?),
    };
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    daemon.start(listener).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// A listener that only this process can reach.
fn private_listener() -> io::Result<(Listener, OwnedFd)> {
    let folder = tempfile::Builder::new().prefix("guestwire-").tempdir()?;
    let path = folder.path().join("private");
    let listener = UnixListener::bind(&path)?;
    let place = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    folder.close()?;
    Ok((Listener::from(listener), place))
}
