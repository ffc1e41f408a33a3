//! vhost-user messages on the wire: a 12-byte header, a body, and descriptors beside it. Little-endian.

use std::os::fd::OwnedFd;

/// Bytes of a header: request, flags, size of the body, 32 bits each.
pub const HEADER_LEN: usize = 12;
/// The longest body that is taken, in bytes: what the crates take.
pub const BODY_LEN_MAX: usize = 4096 - HEADER_LEN;
/// The most descriptors that come with a message: what the crates take.
pub const FDS_MAX: usize = 32;

/// Header flags: the protocol's version, which is 1.
pub const FLAG_VERSION: u32 = 0x1;
/// Header flags: the two bits that hold the version.
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// Header flags: this is a reply.
pub const FLAG_REPLY: u32 = 0x4;
/// Header flags: the sender wants an acknowledgement.
pub const FLAG_NEED_REPLY: u32 = 0x8;

macro_rules! requests {
    ($($name:ident = $code:literal,)+) => {
        $(#[doc = concat!("Request ", stringify!($name), ".")] pub const $name: u32 = $code;)+

        /// A request's name in the vhost-user specification.
        pub fn request_name(request: u32) -> &'static str {
            match request {
                $($name => stringify!($name),)+
                _ => "an unknown request",
            }
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
}

/// Requests that have an answer of their own, whether or not an acknowledgement is asked for.
pub fn has_answer(request: u32) -> bool {
    matches!(
        request,
        GET_FEATURES
            | GET_VRING_BASE
            | GET_PROTOCOL_FEATURES
            | GET_QUEUE_NUM
            | GET_CONFIG
            | CREATE_CRYPTO_SESSION
            | POSTCOPY_ADVISE
            | GET_INFLIGHT_FD
            | GET_MAX_MEM_SLOTS
            | GET_STATUS
            | GET_SHARED_OBJECT
            | SET_DEVICE_STATE_FD
            | CHECK_DEVICE_STATE
            | GET_SHMEM_CONFIG
            | POSTCOPY_END
    )
}

/// The answer to a request that has one and that was not offered: that there is nothing. A frontend that asked without
/// having been offered it would otherwise wait for ever.
pub fn nothing(request: u32) -> Vec<u8> {
    match request {
        // `struct vhost_user_inflight`: an area of no bytes.
        GET_INFLIGHT_FD => vec![0; 24],
        GET_STATUS => vec![0; 8],
        // The lowest byte says that it failed, bit 8 that no descriptor comes with the answer.
        SET_DEVICE_STATE_FD => 0x101u64.to_le_bytes().to_vec(),
        CHECK_DEVICE_STATE | POSTCOPY_END => 1u64.to_le_bytes().to_vec(),
        // A count and 256 sizes.
        GET_SHMEM_CONFIG => vec![0; 8 + 256 * 8],
        // POSTCOPY_ADVISE and GET_SHARED_OBJECT answer by a descriptor, and here there is none.
        _ => Vec::new(),
    }
}

/// A message with its descriptors.
#[derive(Debug)]
pub struct Message {
    /// The request's number.
    pub request: u32,
    /// The header's flags.
    pub flags: u32,
    /// The body.
    pub body: Vec<u8>,
    /// The descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A request without descriptors.
    pub fn new(request: u32, body: Vec<u8>) -> Self {
        Self { request, flags: FLAG_VERSION, body, fds: Vec::new() }
    }

    /// Whether the sender wants an acknowledgement.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The request's name in the specification.
    pub fn name(&self) -> &'static str {
        request_name(self.request)
    }

    /// The 64-bit number at byte `at` of the body, zero where the body ends before.
    pub fn u64_at(&self, at: usize) -> u64 {
        self.body.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// The 32-bit number at byte `at` of the body, zero where the body ends before.
    pub fn u32_at(&self, at: usize) -> u32 {
        self.body.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Header and body as they go on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.body.len());
        bytes.extend_from_slice(&self.request.to_le_bytes());
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}
