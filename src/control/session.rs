//! INTERIM: a connection that is held until either side closes it. Replaced by vhost::session.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::ring::mailbox::PortShared;

pub(super) struct Session;

#[derive(Debug)]
pub(super) struct SessionHandle {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Session {
    pub(super) fn spawn(
        stream: UnixStream,
        _port: Arc<PortShared>,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> io::Result<SessionHandle> {
        let mut reader = stream.try_clone()?;
        let thread = thread::Builder::new().name("session".into()).spawn(move || {
            let mut buffer = [0; 4096];
            while reader.read(&mut buffer).is_ok_and(|n| n > 0) {}
            on_end();
        })?;
        Ok(SessionHandle { stream, thread })
    }
}

impl SessionHandle {
    pub(super) fn shutdown(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
    pub(super) fn join(self) {
        let _ = self.thread.join();
    }
}
