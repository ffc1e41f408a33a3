//! The gate: what a frontend's messages may say, decided before anything acts on them.
//!
//! Theory of operation. [`Gate::admit`] is given each message of a frontend and says what becomes of it: answered here,
//! forwarded (perhaps changed, held back, or with others) to `vhost-user-backend`'s daemon, refused, or the end of the
//! connection. It is a state machine without a socket, so it can be tested and fuzzed with messages alone.
//!
//! The daemon behind the gate always sees one order: features with VHOST_USER_F_PROTOCOL_FEATURES, memory, rings. Real
//! frontends differ. QEMU enables rings before it sets features: held here, acknowledged, and forwarded behind
//! SET_FEATURES; the same after RESET_DEVICE. QEMU before 7.2 leaves bit 30 out of SET_FEATURES though it has
//! negotiated protocol features. A frontend that knows no protocol features never enables a ring: its rings start
//! enabled.
//!
//! A ring is described whole before it starts: features, memory, size, addresses, kick. While it runs, none of what
//! describes it changes, save its kick and call descriptors. Its addresses are checked against the memory when they are
//! set and once more when it starts; that they stay inside memory that changes later is the worker's business, which
//! stops the ring otherwise.
//!
//! A message that is wrong ends the connection when the frontend and we would disagree about memory or rings from then
//! on; one that asks for what was not offered is refused and the connection lives. A frontend that waits for the answer
//! to such a request is told that there is nothing ([`nothing`]).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::features::{self, Offer, PROTOCOL_FEATURES, RINGS_MAX};
use super::memory_table::{MemoryTable, NOT_SHARED, REGIONS_MAX};
use super::message::*;
use crate::ring::QUEUE_SIZE_MAX;
use crate::ring::mailbox::PortShared;
use crate::sys::fd::{self, Way};

/// The protocol features that we offer.
pub const PROTOCOL_OFFERED: u64 = Protocol::MQ.bits()
    | Protocol::REPLY_ACK.bits()
    | Protocol::BACKEND_REQ.bits()
    | Protocol::CONFIG.bits()
    | Protocol::RESET_DEVICE.bits()
    | Protocol::CONFIGURE_MEM_SLOTS.bits();
/// Bytes of device configuration that may be read: `struct virtio_net_config` and zeros behind it.
const CONFIG_LEN: usize = 256;
/// Bytes before the data of GET_CONFIG and SET_CONFIG: offset, size, flags.
const CONFIG_HEADER_LEN: usize = 12;
/// In the body of SET_VRING_KICK, CALL and ERR: the ring's number.
const VRING_INDEX_MASK: u64 = 0xff;
/// In the body of SET_VRING_KICK, CALL and ERR: no descriptor comes with it.
const VRING_NO_FD: u64 = 0x100;

/// What becomes of a message.
#[derive(Debug)]
pub enum Verdict {
    /// To be sent to the daemon, in order. The daemon's answer to the last is the frontend's.
    Forward(Vec<Message>),
    /// Answered by this body.
    Answer(Vec<u8>),
    /// Done here.
    Done,
    /// Not done; the connection lives. The reason, for people. A request that has an answer gets [`nothing`].
    Refuse(String),
    /// Not done, and the connection ends. The reason, for people.
    End(String),
}

#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    /// Zero until it is set.
    size: u16,
    areas: Option<Areas>,
    started: bool,
    enabled: bool,
    /// An enable or disable that came before SET_FEATURES.
    held: Option<bool>,
}

/// Where a ring's parts are: descriptor table, used ring, available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Areas {
    /// In the frontend's memory, as it says.
    user: [u64; 3],
    /// In the guest's.
    guest: [u64; 3],
}

/// A connection's state, as far as it decides what may come next.
#[derive(Debug)]
pub struct Gate {
    offer: Offer,
    port: Arc<PortShared>,
    /// The features that the driver has accepted, since the last reset.
    acked: Option<u64>,
    /// The protocol features that the frontend has accepted.
    protocol: Option<u64>,
    memory: MemoryTable,
    rings: [Ring; RINGS_MAX],
    /// Where the frontend wants to be told of configuration changes.
    backend_channel: Option<OwnedFd>,
}

type Admitted = Result<Verdict, String>;

impl Gate {
    /// The state of a new connection.
    pub fn new(offer: Offer, port: Arc<PortShared>) -> Self {
        Self {
            offer,
            port,
            acked: None,
            protocol: None,
            memory: MemoryTable::default(),
            rings: [Ring::default(); RINGS_MAX],
            backend_channel: None,
        }
    }

    /// Whether the frontend has negotiated acknowledgements. To be asked after a message was admitted: User Mode Linux
    /// wants the one that negotiates them acknowledged already.
    pub fn acknowledges(&self) -> bool {
        self.protocol.is_some_and(|features| features & Protocol::REPLY_ACK.bits() != 0)
    }

    /// Where to tell the frontend of a configuration change.
    pub fn backend_channel(&self) -> Option<&OwnedFd> {
        self.backend_channel.as_ref()
    }

    /// Decides what becomes of a message. An error of the checks ends the connection.
    pub fn admit(&mut self, message: Message) -> Verdict {
        let fds_allowed = match message.request {
            SET_MEM_TABLE => FDS_MAX,
            ADD_MEM_REG | REM_MEM_REG | SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR | SET_BACKEND_REQ_FD => 1,
            _ => 0,
        };
        if message.fds.len() > fds_allowed {
            return Verdict::End(format!("{} descriptors came with it", message.fds.len()));
        }
        if message.flags & FLAG_REPLY != 0 {
            return Verdict::End("it is a reply, which nobody has asked for".to_owned());
        }
        self.dispatch(message).unwrap_or_else(Verdict::End)
    }

    fn dispatch(&mut self, message: Message) -> Admitted {
        match message.request {
            GET_FEATURES => empty(&message, self.offer.features),
            SET_FEATURES => self.set_features(message),
            SET_OWNER => Ok(Verdict::Done),
            RESET_OWNER => Ok(self.disable_all()),
            GET_PROTOCOL_FEATURES => empty(&message, PROTOCOL_OFFERED),
            SET_PROTOCOL_FEATURES => self.set_protocol_features(&message),
            // QEMU and DPDK take the answer for pairs, User Mode Linux for rings and refuses to run with fewer than its
            // pairs have. So it is rings; a frontend that then uses more pairs than there are is told so by ring
            // number.
            GET_QUEUE_NUM => empty(&message, RINGS_MAX as u64),
            GET_MAX_MEM_SLOTS => empty(&message, REGIONS_MAX as u64),
            GET_CONFIG => self.get_config(&message),
            SET_CONFIG => Ok(Verdict::Refuse("the device's configuration is not writable".to_owned())),
            SET_BACKEND_REQ_FD => self.set_backend_channel(message),
            SET_MEM_TABLE | ADD_MEM_REG | REM_MEM_REG => self.change_memory(message),
            SET_VRING_NUM => self.set_vring_num(message),
            SET_VRING_ADDR => self.set_vring_addr(message),
            SET_VRING_BASE => self.set_vring_base(message),
            GET_VRING_BASE => self.get_vring_base(message),
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => self.set_vring_fd(message),
            SET_VRING_ENABLE => self.set_vring_enable(message),
            RESET_DEVICE => self.reset_device(message),
            _ => Ok(Verdict::Refuse("it was not offered".to_owned())),
        }
    }

    fn set_features(&mut self, mut message: Message) -> Admitted {
        let features = exact_u64(&message)?;
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(format!("it accepts what was not offered: {}", features::names(unknown)));
        }
        let changes = self.acked.map_or(0, |acked| (acked ^ features) & !PROTOCOL_FEATURES);
        let mut forward = if changes != 0 { self.stop_disabled() } else { Vec::new() };
        if let Some(ring) = self.rings.iter().position(|ring| ring.started).filter(|_| changes != 0) {
            return Err(format!("it changes features while ring {ring} runs: {}", features::names(changes)));
        }
        let has_protocol = self.protocol.is_some() || features & PROTOCOL_FEATURES != 0;
        message.body = (features | PROTOCOL_FEATURES).to_le_bytes().to_vec();
        self.acked = Some(features);
        tracing::debug!(port = self.port.number, "features: {}", features::names(features));
        forward.push(message);
        for (index, ring) in self.rings.iter_mut().enumerate() {
            let held = ring.held.take().or((!has_protocol).then_some(true));
            ring.enabled = held.unwrap_or(ring.enabled);
            forward.extend(held.map(|on| enable(index, on)));
        }
        Ok(Verdict::Forward(forward))
    }

    fn set_protocol_features(&mut self, message: &Message) -> Admitted {
        let features = exact_u64(message)?;
        let unknown = features & !PROTOCOL_OFFERED;
        if unknown != 0 {
            return Err(format!("it accepts protocol features that were not offered: {unknown:#x}"));
        }
        self.protocol = Some(features);
        Ok(Verdict::Done)
    }

    fn disable_all(&mut self) -> Verdict {
        for ring in &mut self.rings {
            ring.held = None;
            ring.enabled = false;
        }
        match self.acked {
            Some(_) => Verdict::Forward((0..RINGS_MAX).map(|index| enable(index, false)).collect()),
            None => Verdict::Done,
        }
    }

    fn reset_device(&mut self, message: Message) -> Admitted {
        self.acked = None;
        self.rings = [Ring::default(); RINGS_MAX];
        Ok(Verdict::Forward(vec![message]))
    }

    fn get_config(&self, message: &Message) -> Admitted {
        let (offset, size) = (message.u32_at(0) as usize, message.u32_at(4) as usize);
        let Some(header) = message.body.get(..CONFIG_HEADER_LEN) else {
            return Err(format!("its body has {} bytes", message.body.len()));
        };
        let mut answer = header.to_vec();
        match self.config().get(offset..).and_then(|config| config.get(..size)) {
            Some(data) => answer.extend_from_slice(data),
            // A size of zero says that it cannot be had.
            None => answer[4..8].fill(0),
        }
        Ok(Verdict::Answer(answer))
    }

    /// `struct virtio_net_config` (virtio 1.3, 5.1.4) as it is now.
    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.port.mac);
        config[6..8].copy_from_slice(&self.port.status().to_le_bytes());
        config[8..10].copy_from_slice(&self.port.pairs_told.to_le_bytes());
        config[10..12].copy_from_slice(&self.offer.mtu.unwrap_or(0).to_le_bytes());
        // Speed and duplex: unknown.
        config[12..17].fill(0xff);
        config
    }

    fn set_backend_channel(&mut self, mut message: Message) -> Admitted {
        match message.fds.pop() {
            Some(fd) if fd::is_unix_stream(&fd) => {
                self.backend_channel = Some(fd);
                Ok(Verdict::Done)
            }
            _ => Err("no Unix socket came with it".to_owned()),
        }
    }

    /// Stops the rings, if they all are disabled. User Mode Linux never sends GET_VRING_BASE: it disables every ring
    /// and sets the device up anew when a driver is bound again.
    fn stop_disabled(&mut self) -> Vec<Message> {
        if self.rings.iter().any(|ring| ring.enabled) {
            return Vec::new();
        }
        let started = self.rings.iter_mut().enumerate().filter(|(_, ring)| ring.started);
        started
            .map(|(index, ring)| {
                ring.started = false;
                about_ring(GET_VRING_BASE, index, 0)
            })
            .collect()
    }

    fn change_memory(&mut self, mut message: Message) -> Admitted {
        let changes = match message.request {
            SET_MEM_TABLE => self.memory.set(&mut message).map(|()| true)?,
            ADD_MEM_REG => self.memory.add(&message)?,
            _ => {
                message.fds.clear();
                self.memory.remove(&message)?
            }
        };
        if !changes {
            return Ok(Verdict::Done);
        }
        let mut forward = if message.request == SET_MEM_TABLE { self.stop_disabled() } else { Vec::new() };
        forward.push(message);
        Ok(Verdict::Forward(forward))
    }

    fn set_vring_num(&mut self, message: Message) -> Admitted {
        let (index, size) = self.ring_and_value(&message)?;
        if !size.is_power_of_two() || size > u32::from(QUEUE_SIZE_MAX) {
            return Err(format!("ring {index} of {size} entries; it must be a power of two up to {QUEUE_SIZE_MAX}"));
        }
        let ring = &mut self.rings[index];
        if ring.started {
            return Err(format!("the size of ring {index} changes while it runs"));
        }
        // At most QUEUE_SIZE_MAX.
        ring.size = size as u16;
        Ok(Verdict::Forward(vec![message]))
    }

    fn set_vring_addr(&mut self, message: Message) -> Admitted {
        const ADDR_LEN: usize = 40;
        if message.body.len() != ADDR_LEN {
            return Err(format!("its body has {} bytes, not {ADDR_LEN}", message.body.len()));
        }
        if self.memory.is_empty() {
            // QEMU goes on like this when it has no memory to share.
            return Err(format!("it came before the guest's memory: {NOT_SHARED}"));
        }
        let index = self.ring_index(message.u32_at(0))?;
        let user = [message.u64_at(8), message.u64_at(16), message.u64_at(24)];
        let areas = self.areas(index, user)?;
        let ring = &mut self.rings[index];
        if ring.started {
            // Said again, as some do to turn logging on and off, it changes nothing.
            return if ring.areas == Some(areas) {
                Ok(Verdict::Done)
            } else {
                Err(format!("the addresses of ring {index} change while it runs"))
            };
        }
        ring.areas = Some(areas);
        Ok(Verdict::Forward(vec![message]))
    }

    /// Where the parts of ring `index` are, if each lies in one memory region and is aligned (virtio 1.3, 2.7).
    fn areas(&self, index: usize, user: [u64; 3]) -> Result<Areas, String> {
        let size = u64::from(self.rings[index].size);
        if size == 0 {
            return Err(format!("ring {index} has no size yet"));
        }
        let parts =
            [("descriptor table", 16 * size, 16), ("used ring", 6 + 8 * size, 4), ("available ring", 6 + 2 * size, 2)];
        let mut guest = [0; 3];
        for (i, (part, len, align)) in parts.into_iter().enumerate() {
            guest[i] = match self.memory.translate(user[i], len) {
                None => return Err(format!("the {part} of ring {index} is not inside the guest's memory")),
                Some(at) if !at.is_multiple_of(align) || !user[i].is_multiple_of(align) => {
                    return Err(format!("the {part} of ring {index} is not aligned to {align} bytes"));
                }
                Some(at) => at,
            };
        }
        Ok(Areas { user, guest })
    }

    /// Whether ring `index` may start.
    fn check_start(&self, index: usize) -> Result<(), String> {
        if self.acked.is_none() {
            return Err(format!("ring {index} starts before the features are set"));
        }
        let Some(areas) = self.rings[index].areas else {
            return Err(format!("ring {index} starts before its addresses are set"));
        };
        // Size and memory may have changed since.
        if self.areas(index, areas.user)? != areas {
            return Err(format!("ring {index} is elsewhere in the guest's memory than when its addresses were set"));
        }
        Ok(())
    }

    fn set_vring_base(&mut self, message: Message) -> Admitted {
        let (index, base) = self.ring_and_value(&message)?;
        if base > u32::from(u16::MAX) {
            return Err(format!("the base {base} of ring {index} is above 65535"));
        }
        if self.rings[index].started {
            return Err(format!("the base of ring {index} changes while it runs"));
        }
        Ok(Verdict::Forward(vec![message]))
    }

    fn get_vring_base(&mut self, message: Message) -> Admitted {
        let (index, _) = self.ring_and_value(&message)?;
        self.rings[index].started = false;
        Ok(Verdict::Forward(vec![message]))
    }

    fn set_vring_fd(&mut self, message: Message) -> Admitted {
        let body = exact_u64(&message)?;
        if body & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
            return Err(format!("ring and flags {body:#x}"));
        }
        let index = self.ring_index((body & VRING_INDEX_MASK) as u32)?;
        let way = if message.request == SET_VRING_KICK { Way::In } else { Way::Out };
        match (body & VRING_NO_FD != 0, message.fds.as_slice()) {
            (false, [fd]) => fd::make_event(fd, way).map_err(|why| format!("its descriptor for ring {index} {why}"))?,
            (true, []) => {}
            (true, _) => return Err(format!("a descriptor for ring {index} that should have none")),
            (false, _) => return Err(format!("no descriptor for ring {index}")),
        }
        if message.request == SET_VRING_KICK {
            if message.fds.is_empty() {
                let why = format!("ring {index} is to be polled without ever being kicked, which is not supported");
                return Ok(Verdict::Refuse(why));
            }
            self.check_start(index)?;
            self.rings[index].started = true;
        }
        Ok(Verdict::Forward(vec![message]))
    }

    fn set_vring_enable(&mut self, message: Message) -> Admitted {
        let (index, on) = self.ring_and_value(&message)?;
        if on > 1 {
            return Err(format!("ring {index} is to be enabled by {on}; it must be 0 or 1"));
        }
        if self.acked.is_none() {
            self.rings[index].held = Some(on == 1);
            return Ok(Verdict::Done);
        }
        self.rings[index].enabled = on == 1;
        Ok(Verdict::Forward(vec![message]))
    }

    /// The ring and the number of a message about one: two 32-bit words.
    fn ring_and_value(&self, message: &Message) -> Result<(usize, u32), String> {
        if message.body.len() != 8 {
            return Err(format!("its body has {} bytes, not 8", message.body.len()));
        }
        Ok((self.ring_index(message.u32_at(0))?, message.u32_at(4)))
    }

    fn ring_index(&self, index: u32) -> Result<usize, String> {
        usize::try_from(index)
            .ok()
            .filter(|&index| index < RINGS_MAX)
            .ok_or_else(|| format!("ring {index} does not exist; there are {RINGS_MAX}"))
    }
}

fn enable(index: usize, on: bool) -> Message {
    about_ring(SET_VRING_ENABLE, index, u32::from(on))
}

fn about_ring(request: u32, index: usize, value: u32) -> Message {
    let words = [index as u32, value];
    Message::new(request, words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// The answer to a question without a body.
fn empty(message: &Message, answer: u64) -> Admitted {
    if !message.body.is_empty() {
        return Err(format!("its body has {} bytes, not 0", message.body.len()));
    }
    Ok(Verdict::Answer(answer.to_le_bytes().to_vec()))
}

fn exact_u64(message: &Message) -> Result<u64, String> {
    let bytes = message.body.as_slice().try_into();
    bytes.map(u64::from_le_bytes).map_err(|_| format!("its body has {} bytes, not 8", message.body.len()))
}
