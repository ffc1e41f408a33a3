//! Leases as text, for a file.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::leases::{Binding, LEASES_MAX, Leases, State};
use super::names;
use super::settings::{ClientId, parse_mac};

/// The version of the text. A text of another version is refused.
const VERSION: u32 = 1;

/// Why a text is not one that we wrote.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// It is not JSON, or not of this shape.
    #[error("not a list of leases: {0}")]
    Shape(#[from] serde_json::Error),
    /// It is of another version.
    #[error("leases of version {0}; this program knows version {VERSION}")]
    Version(u32),
    /// It has more leases than a network has.
    #[error("{0} leases; a network has {LEASES_MAX} at most")]
    TooMany(usize),
    /// An entry contradicts itself or another.
    #[error("the lease of {0}: {1}")]
    Entry(Ipv4Addr, &'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    leases: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: Ipv4Addr,
    client: String,
    mac: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    declined: bool,
    expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Entry {
    fn binding(self) -> Result<Binding, LeasesError> {
        let wrong = |what| LeasesError::Entry(self.address, what);
        let client: ClientId = self.client.parse().map_err(|_| wrong("not a client"))?;
        let mac = parse_mac(&self.mac).ok_or_else(|| wrong("not a MAC address"))?;
        if self.name.as_deref().is_some_and(|name| !names::is_label(name)) {
            return Err(wrong("not a name"));
        }
        let state = if self.declined { State::Declined } else { State::Leased };
        Ok(Binding { client, mac, port: None, state, expires: self.expires, name: self.name })
    }
}

impl Leases {
    /// What there is to keep, as JSON: leases, expired ones too, and declined addresses; not offers, and not who was on
    /// which port.
    pub fn to_text(&self) -> String {
        let kept = self.iter().filter(|(_, binding)| binding.is_kept());
        let leases = kept.map(|(address, b)| Entry {
            address,
            client: b.client.to_string(),
            mac: b.mac.to_string(),
            declined: b.state == State::Declined,
            expires: b.expires,
            name: b.name.clone(),
        });
        let stored = Stored { version: VERSION, leases: leases.collect() };
        // Strings and numbers have no form that JSON lacks.
        serde_json::to_string_pretty(&stored).unwrap_or_default() + "\n"
    }

    /// Leases from [`Leases::to_text`].
    ///
    /// # Errors
    /// When the text is anything else. It is taken whole or not at all.
    pub fn from_text(text: &str) -> Result<Self, LeasesError> {
        let stored: Stored = serde_json::from_str(text)?;
        if stored.version != VERSION {
            return Err(LeasesError::Version(stored.version));
        }
        if stored.leases.len() > LEASES_MAX {
            return Err(LeasesError::TooMany(stored.leases.len()));
        }
        let (mut leases, mut names) = (Self::default(), std::collections::BTreeSet::new());
        for entry in stored.leases {
            let address = entry.address;
            let binding = entry.binding()?;
            if leases.get(address).is_some() {
                return Err(LeasesError::Entry(address, "it is there twice"));
            }
            if binding.name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
                return Err(LeasesError::Entry(address, "another has its name"));
            }
            leases.place(address, binding);
        }
        Ok(leases)
    }
}
