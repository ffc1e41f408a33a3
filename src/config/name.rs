//! Names: of networks and ports, of the host's interfaces, of hosts and domains.

use std::fmt;
use std::str::FromStr;

use super::{Mode, Problem, problem};

/// The longest name of a network or a port, in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// The longest name of an interface, in bytes: `IFNAMSIZ` is 16, one of them the terminating zero.
pub const IF_NAME_BYTES_MAX: usize = 15;
/// The longest label of a domain name, in bytes (RFC 1035, 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;
/// The longest domain, in bytes: with a host's name before it, it is still a name that DNS can carry, of 253 bytes as
/// text (RFC 1035, 2.3.4: 255 on the wire).
pub const DOMAIN_BYTES_MAX: usize = 253 - LABEL_BYTES_MAX - 1;

macro_rules! text_type {
    ($type:ident) => {
        impl $type {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The name of a network or a port, for log lines, statistics, and files and interfaces that are named after it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

text_type!(Name);

impl Name {
    /// The name of a network whose user chose none.
    pub fn of_mode(mode: &Mode) -> Self {
        Self(mode.name().to_owned())
    }

    /// What stands for a name that made no sense, until that is told. No name that a user can choose is like it.
    pub(super) fn unknown(network: usize, port: Option<usize>) -> Self {
        Self(format!("?{network}?{port:?}"))
    }
}

impl FromStr for Name {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_plain) || text.starts_with(['-', '.'])
        {
            return problem(format!(
                "not a name: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', and not '-' or '.' first"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of one of the host's network interfaces. Whether there is one is seen at start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IfName(String);

text_type!(IfName);

impl IfName {
    /// The name of the tap that we make for a network whose user chose none: `gw-` and as much of the network's name
    /// as fits.
    pub(super) fn of_tap(network: &Name) -> Self {
        let mut name = format!("gw-{network}");
        // A network's name is ASCII.
        name.truncate(IF_NAME_BYTES_MAX);
        Self(name)
    }
}

impl FromStr for IfName {
    type Err = Problem;

    /// As the kernel checks it (`dev_valid_name`), and without '%', which asks the kernel to choose a number.
    fn from_str(text: &str) -> Result<Self, Problem> {
        if text.is_empty() || text.len() > IF_NAME_BYTES_MAX {
            return problem(format!("not an interface's name: it has 1 to {IF_NAME_BYTES_MAX} bytes"));
        }
        let is_bad = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
        if matches!(text, "." | "..") || text.contains(is_bad) {
            return problem("not an interface's name: no '/', ':', '%' or space can be in it; 'ip link' lists them");
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_label(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The name of a host: one label of a domain name (RFC 1123, 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

text_type!(HostName);

impl FromStr for HostName {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if !is_label(text) {
            return problem(format!(
                "not a host's name: 1 to {LABEL_BYTES_MAX} letters, digits and '-', which is neither first nor last"
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// A domain name, without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DomainName(String);

text_type!(DomainName);

impl FromStr for DomainName {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > DOMAIN_BYTES_MAX || !text.split('.').all(is_label) {
            return problem("not a domain name, such as lab.example or lab");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}
