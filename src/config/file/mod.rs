//! The configuration file: TOML, read whole, with every problem named at its place.
//!
//! Theory of operation. The text is parsed to a table that knows where each of its values stands. Sections of it are
//! walked one after the other (`network`, `section`): every key that a section knows is asked for once, its value goes
//! through the same checked types as the command line's, and what nobody asked for is unknown. A problem does not end
//! the walk: it is kept with its place, and a default stands in. What is checked last is the configuration as a whole
//! ([`Config::problems`]); of what it finds, only what does not follow from an earlier problem is kept. If anything was
//! found, there is no configuration but all the problems, in the order of the text.
//!
//! Limits: a file of [`FILE_BYTES_MAX`] bytes, tables as deep as the parser takes them, and [`PROBLEMS_MAX`] problems.

mod diagnostic;
mod network;
mod section;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{Config, Field, Place, Stats, StatsTarget, Verbosity};
pub use diagnostic::Diagnostic;
use diagnostic::{Span, Text};
use section::{Given, Section, Wants};

/// The largest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Problems that are told, at most: whoever has as many is not helped by more.
pub const PROBLEMS_MAX: usize = 1000;

/// Why a file is not a configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than [`FILE_BYTES_MAX`].
    #[error("{} is larger than {FILE_BYTES_MAX} bytes and cannot be a configuration", .0.display())]
    TooLarge(PathBuf),
    /// It says what cannot be.
    #[error("{0}")]
    Problems(Problems),
}

/// Everything that is wrong with a file, in the order of its text. At least one and at most [`PROBLEMS_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(Vec<Diagnostic>);

impl Problems {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f, "\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

/// Reads a configuration file.
///
/// # Errors
/// See [`FileError`].
pub fn read(path: &Path) -> Result<Config, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    let mut config = parse(&path.display().to_string(), &bytes).map_err(FileError::Problems)?;
    config.source = Some(path.to_owned());
    Ok(config)
}

/// Makes sense of a file's bytes. `name` is the file's, for the problems.
///
/// # Errors
/// All [`Problems`] at once.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Config, Problems> {
    let lossy = String::from_utf8_lossy(bytes);
    let text = Text::new(name, &lossy);
    let mut reader = Reader::default();
    if let Err(error) = std::str::from_utf8(bytes) {
        let at = error.valid_up_to();
        reader.found(at..at + 1, "the file is not text in UTF-8");
        return Err(reader.problems(&text));
    }
    let (table, errors) = DeTable::parse_recoverable(&lossy);
    if !errors.is_empty() {
        for error in errors {
            reader.found(error.span().unwrap_or(lossy.len()..lossy.len()), error.message());
        }
        return Err(reader.problems(&text));
    }
    let config = reader.config(table.get_ref());
    if reader.found.is_empty() { Ok(config) } else { Err(reader.problems(&text)) }
}

/// What is being found out about a file.
#[derive(Debug, Default)]
struct Reader {
    found: Vec<(Span, String)>,
    /// Where things are said.
    places: HashMap<Place, Span>,
    /// What was said in a way that made no sense: what follows from it is not told.
    unsure: HashSet<Place>,
}

impl Reader {
    fn found(&mut self, span: Span, text: impl Into<String>) {
        if self.found.len() < PROBLEMS_MAX {
            self.found.push((span, text.into()));
        }
    }

    /// Remembers where `given` stands, or that it made no sense, and returns what it says.
    fn keep<T>(&mut self, place: Place, given: Given<T>) -> Option<T> {
        match given {
            Given::Absent => None,
            Given::Bad => {
                self.unsure.insert(place);
                None
            }
            Given::Good(value, span) => {
                self.places.insert(place, span);
                Some(value)
            }
        }
    }

    fn problems(mut self, text: &Text<'_>) -> Problems {
        self.found.sort_by_key(|(span, _)| span.start);
        Problems(self.found.into_iter().map(|(span, said)| text.diagnostic(span, said)).collect())
    }

    fn config(&mut self, table: &DeTable<'_>) -> Config {
        let mut top = Section::new("a configuration", table, 0..0);
        let networks: Vec<_> = top.tables("network", "[[network]]", self).collect();
        let networks = networks.into_iter().enumerate().map(|(i, section)| self.network(i, section)).collect();
        let log = top.table("log", "[log]", self).map(|section| self.log(section));
        let stats = top.table("statistics", "[statistics]", self).and_then(|section| self.statistics(section));
        let has_networks = top.has("network");
        top.finish(self);
        if !has_networks {
            self.found(0..0, "there is no network: add [[network]] with a name, a mode and a socket-path");
        }
        let config = Config { networks, stats, verbosity: log.unwrap_or(Verbosity::Normal), source: None };
        for (place, problem) in config.problems() {
            if !self.follows_from_another(place) {
                let span = self.place(place);
                self.found(span, problem.to_string());
            }
        }
        config
    }

    /// Whether what is wrong at `place` may be wrong only because something else made no sense.
    fn follows_from_another(&self, place: Place) -> bool {
        let is_unsure = |port, field| self.unsure.contains(&Place { port, field, ..place });
        let is_of_subnet = matches!(
            place.field,
            Field::Subnet | Field::Range | Field::ReservedIp(_) | Field::Ip | Field::Uplink | Field::MacNat
        );
        is_unsure(place.port, place.field)
            || is_of_subnet && (is_unsure(None, Field::Subnet) || is_unsure(None, Field::Uplink))
            || place.field == Field::Dns && is_unsure(None, Field::Subnet6)
            || place.field == Field::Ip && is_unsure(place.port, Field::Mac)
            || matches!(place.field, Field::ForwardGuest(_)) && self.is_unsure_of_guests(place.network)
    }

    /// Whether some of the addresses and ports that guests of a network have are not known.
    fn is_unsure_of_guests(&self, network: usize) -> bool {
        let is_about_guests = |place: &Place| match place.field {
            Field::Subnet | Field::Subnet6 => true,
            Field::Name => place.port.is_some(),
            _ => false,
        };
        self.unsure.iter().any(|place| place.network == network && is_about_guests(place))
    }

    /// Where something is said, or what it belongs to where it is not said.
    fn place(&self, place: Place) -> Span {
        let whole = Place { field: Field::Whole, ..place };
        let network = Place { port: None, ..whole };
        [place, whole, network].iter().find_map(|place| self.places.get(place)).cloned().unwrap_or(0..0)
    }

    fn log(&mut self, mut section: Section<'_>) -> Verbosity {
        let level = section.word("level", Verbosity::WORDS, str::parse, self);
        section.finish(self);
        level.value().unwrap_or(Verbosity::Normal)
    }

    fn statistics(&mut self, mut section: Section<'_>) -> Option<Stats> {
        let target = section.value("file", Wants::String, |text| StatsTarget::new(text.into()), self);
        let interval = section.value("interval", Wants::Number, str::parse, self);
        if section.lacks("file") {
            self.found(section.span(), "there is no file for statistics: add file = \"-\" for the standard output");
        }
        section.finish(self);
        Some(Stats { target: target.value()?, interval: interval.value().unwrap_or_default() })
    }
}
