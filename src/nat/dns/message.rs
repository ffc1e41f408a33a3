//! DNS messages (RFC 1035): the question of one that a guest has sent, and answers of our own.
//!
//! Only the header and the question of a guest's message are looked at, by a parser that has bounds. What is relayed is
//! what the guest sent, byte by byte, but for the number.

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Bytes of a message's header.
pub(super) const HEADER_LEN: usize = 12;
/// Bytes of a question behind its name: type and class.
const QUESTION_TAIL: usize = 4;
/// The longest question of a guest: a name has 255 bytes at most, and what follows are options of EDNS.
pub(super) const QUERY_MAX: usize = 4096;
/// How long an answer of ours may be remembered, in seconds: guests come and go.
const TTL: u32 = 30;
/// What we take by UDP, in bytes (RFC 9715, 3.2).
const PAYLOAD_MAX: u16 = 1232;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) class: DNSClass,
    /// Where the question ends in its message.
    end: usize,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Saying {
    /// There is this, or of this kind there is nothing.
    Data(Vec<RData>),
    /// It is not there, or cannot be said.
    Error(ResponseCode),
    /// It is too long for a datagram.
    Truncated,
}

impl Saying {
    /// Nobody could tell.
    pub(super) const FAILED: Self = Self::Error(ResponseCode::ServFail);
}

/// Reads what a guest asks. If that cannot be done: what it is to be answered, unless nothing is.
pub(super) fn read(message: &[u8]) -> Result<Question, Option<Vec<u8>>> {
    let mut decoder = BinDecoder::new(message);
    let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else { return Err(None) };
    if metadata.message_type != MessageType::Query || message.len() > QUERY_MAX {
        return Err(None);
    }
    let refuse = |code| Err(Message::error_msg(metadata.id, metadata.op_code, code).to_vec().ok());
    if metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let Ok(query) = Query::read(&mut decoder) else { return refuse(ResponseCode::FormErr) };
    let name_len = query.name.iter().map(|label| 1 + label.len()).sum::<usize>() + 1;
    // A name with a pointer would point into the header, and become another with another number.
    if counts.queries != 1 || decoder.index() != HEADER_LEN + name_len + QUESTION_TAIL {
        return refuse(ResponseCode::FormErr);
    }
    let Query { name, query_type: kind, query_class: class, .. } = query;
    Ok(Question { name, kind, class, end: decoder.index() })
}

impl Question {
    /// An answer to the message that the question was read from.
    pub(super) fn answer(&self, message: &[u8], saying: Saying) -> Option<Vec<u8>> {
        let header = Header::read(&mut BinDecoder::new(message)).ok()?;
        let mut metadata = Metadata::response_from_request(&header.metadata);
        metadata.recursion_available = true;
        let mut answer = Message::response(metadata.id, metadata.op_code);
        let mut query = Query::query(self.name.clone(), self.kind);
        query.set_query_class(self.class);
        answer.add_query(query);
        match saying {
            Saying::Data(all) => {
                metadata.authoritative = true;
                answer.add_answers(all.into_iter().map(|data| Record::from_rdata(self.name.clone(), TTL, data)));
            }
            Saying::Error(code) => metadata.response_code = code,
            Saying::Truncated => metadata.truncation = true,
        }
        answer.metadata = metadata;
        // An answer without EDNS to a question with it says that we do not have it at all (RFC 6891, 7).
        if let Some(asked) = Message::from_vec(message).ok().and_then(|message| message.edns) {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_MAX).set_dnssec_ok(asked.flags().dnssec_ok);
            answer.set_edns(edns);
        }
        answer.to_vec().ok()
    }

    /// Whether a message is the answer to this question, which was read from `asked` and asked under the number `id`.
    pub(super) fn is_answered_by(&self, message: &[u8], asked: &[u8], id: u16) -> bool {
        let Ok(Header { metadata, counts }) = Header::read(&mut BinDecoder::new(message)) else { return false };
        let name = HEADER_LEN..self.end - QUESTION_TAIL;
        // A server may answer in another case. No byte of a length is a letter.
        let is_same = |part: std::ops::Range<usize>| match (message.get(part.clone()), asked.get(part)) {
            (Some(answered), Some(asked)) => answered.eq_ignore_ascii_case(asked),
            _ => false,
        };
        let tail = self.end - QUESTION_TAIL..self.end;
        metadata.id == id
            && metadata.message_type == MessageType::Response
            && counts.queries == 1
            && is_same(name)
            && message.get(tail.clone()) == asked.get(tail)
    }

    /// Makes the answer to the question that was asked of others the answer to `asked`, which the question was read
    /// from.
    pub(super) fn restore(&self, answer: &mut [u8], asked: &[u8]) {
        answer[..2].copy_from_slice(&asked[..2]);
        answer[HEADER_LEN..self.end].copy_from_slice(&asked[HEADER_LEN..self.end]);
    }
}

/// Whether an answer says that somebody else may know more: the codes after which resolvers ask the next server.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    let header = Header::read(&mut BinDecoder::new(answer));
    let code = header.map(|header| header.metadata.response_code);
    !matches!(code, Ok(code) if !matches!(code, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp))
}

/// A question as it is asked of others: under another number.
pub(super) fn renumbered(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&id.to_be_bytes());
    message
}

/// A name as it is in questions.
pub(super) fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}
