//! Names of connections and endpoints, which their sockets' tokens carry.

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No socket: the engine's timer.
    Timer,
    Tcp,
    Udp,
    /// A socket that a forward is bound to.
    Door,
    /// No socket: connections are handed over.
    Letterbox,
    /// Asks a resolver a question that came as a datagram.
    Dns,
    /// Takes a guest's connections that bring questions.
    DnsListener,
    /// One of those, or one to a resolver for it.
    DnsStream,
    Echo,
}

/// Names one of a kind for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Id {
    /// What stands for the timer.
    pub(super) const TIMER: u64 = u64::MAX;
    /// One for kinds of which there is one.
    pub(super) const FIRST: Self = Self { index: 0, generation: 0 };
    /// Generations go around.
    const GENERATION_MASK: u32 = (1 << 28) - 1;
    const KIND: u32 = 60;

    /// The generation that has a place after this one.
    pub(super) fn next_generation(generation: u32) -> u32 {
        (generation + 1) & Self::GENERATION_MASK
    }

    pub(super) fn token(self, kind: Kind) -> u64 {
        (kind as u64) << Self::KIND | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What a token stands for.
    pub(super) fn from_token(token: u64) -> (Kind, Self) {
        let id = Self { index: token as u32, generation: (token >> 32) as u32 & Self::GENERATION_MASK };
        let kind = match token >> Self::KIND {
            kind if kind == Kind::Tcp as u64 => Kind::Tcp,
            kind if kind == Kind::Udp as u64 => Kind::Udp,
            kind if kind == Kind::Door as u64 => Kind::Door,
            kind if kind == Kind::Letterbox as u64 => Kind::Letterbox,
            kind if kind == Kind::Dns as u64 => Kind::Dns,
            kind if kind == Kind::DnsListener as u64 => Kind::DnsListener,
            kind if kind == Kind::DnsStream as u64 => Kind::DnsStream,
            kind if kind == Kind::Echo as u64 => Kind::Echo,
            _ => Kind::Timer,
        };
        (kind, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_stands_for() {
        for kind in [
            Kind::Tcp,
            Kind::Udp,
            Kind::Door,
            Kind::Letterbox,
            Kind::Dns,
            Kind::DnsListener,
            Kind::DnsStream,
            Kind::Echo,
        ] {
            for id in [Id { index: 0, generation: 0 }, Id { index: u32::MAX, generation: Id::GENERATION_MASK }] {
                assert_eq!(Id::from_token(id.token(kind)), (kind, id));
            }
        }
        assert_eq!(Id::from_token(Id::TIMER).0, Kind::Timer);
        assert_eq!(Id::next_generation(Id::GENERATION_MASK), 0);
    }
}
