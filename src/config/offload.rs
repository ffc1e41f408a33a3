//! Work that guests leave to us or we to them.

use std::fmt;
use std::str::FromStr;

use super::{Problem, problem};

macro_rules! offloads {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal needs $needs:expr,)+) => {
        /// Work that guests leave to us or we to them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Offload {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Offload {
            /// All of them.
            pub const ALL: &'static [Offload] = &[$(Offload::$variant,)+];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Offload::$variant => $name,)+
                }
            }

            /// The offload without which this one cannot be (virtio 1.3, 5.1.3.1).
            pub const fn needs(self) -> Option<Offload> {
                match self {
                    $(Offload::$variant => $needs,)+
                }
            }
        }
    };
}

offloads! {
    /// Checksums may be left to the receiver, in both directions: CSUM, GUEST_CSUM.
    Csum => "csum" needs None,
    /// TCP segments may be longer than the MTU, in both directions: HOST_TSO4, HOST_TSO6, GUEST_TSO4, GUEST_TSO6.
    Tso => "tso" needs Some(Offload::Csum),
    /// UDP datagrams may be joined, in both directions: HOST_USO, GUEST_USO4, GUEST_USO6.
    Uso => "uso" needs Some(Offload::Csum),
    /// Long TCP segments may carry ECN marks, in both directions: HOST_ECN, GUEST_ECN.
    Ecn => "ecn" needs Some(Offload::Tso),
}

/// The offloads that guests are offered. What an absent one needs is never present without it: see [`Offload::needs`].
///
/// On the command line: `on`, `off`, or a list such as `tso=off,uso=off`. A list starts from everything, or from the
/// `on` or `off` that is its first word. What needs an offload that is turned off goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadMask(u8);

impl OffloadMask {
    /// Everything: the default.
    pub const ALL: OffloadMask = OffloadMask((1 << Offload::ALL.len()) - 1);
    /// Nothing.
    pub const NONE: OffloadMask = OffloadMask(0);

    /// Whether the offload is offered.
    pub const fn contains(self, offload: Offload) -> bool {
        self.0 & (1 << offload as u8) != 0
    }

    const fn with(self, offload: Offload, on: bool) -> Self {
        if on { Self(self.0 | 1 << offload as u8) } else { Self(self.0 & !(1 << offload as u8)) }
    }

    /// Drops what lacks something it needs. `asked` are the ones that the user named as on: those must not be dropped.
    fn closed(self, asked: OffloadMask) -> Result<Self, Problem> {
        let mut mask = self;
        // In the order of `ALL` an offload comes after the one it needs.
        for &offload in Offload::ALL {
            if let Some(needed) = offload.needs()
                && mask.contains(offload)
                && !mask.contains(needed)
            {
                if asked.contains(offload) {
                    let (name, needed) = (offload.name(), needed.name());
                    return problem(format!(
                        "{name} needs {needed}, which is off: add {needed}=on or leave out {name}=on"
                    ));
                }
                mask = mask.with(offload, false);
            }
        }
        Ok(mask)
    }
}

impl FromStr for OffloadMask {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let mut words = text.split(',').peekable();
        let base = match words.peek() {
            Some(&"on") => words.next().map(|_| Self::ALL),
            Some(&"off") => words.next().map(|_| Self::NONE),
            _ => None,
        };
        let mut mask = base.unwrap_or(Self::ALL);
        let (mut asked, mut named) = (Self::NONE, Self::NONE);
        for word in words {
            let (offload, on) = parse_offload(word)?;
            if named.contains(offload) {
                return problem(format!("{} is named twice", offload.name()));
            }
            named = named.with(offload, true);
            asked = asked.with(offload, on);
            mask = mask.with(offload, on);
        }
        mask.closed(asked)
    }
}

fn parse_offload(word: &str) -> Result<(Offload, bool), Problem> {
    let names = || Offload::ALL.iter().map(|o| o.name()).collect::<Vec<_>>().join(", ");
    let Some((name, value)) = word.split_once('=') else {
        return problem(format!("'{word}' is not NAME=on or NAME=off, where NAME is one of {}", names()));
    };
    let Some(&offload) = Offload::ALL.iter().find(|o| o.name() == name) else {
        return problem(format!("there is no offload '{name}': there are {}", names()));
    };
    match value {
        "on" => Ok((offload, true)),
        "off" => Ok((offload, false)),
        _ => problem(format!("'{word}': say {name}=on or {name}=off")),
    }
}

impl fmt::Display for OffloadMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Offload::ALL.iter().filter(|&&o| self.contains(o)).map(|o| o.name()).collect();
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(", ") }.as_str())
    }
}
