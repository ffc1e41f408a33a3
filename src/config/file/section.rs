//! One table of the file: each key is asked for once, and what was not asked for is unknown.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Span;
use super::{PROBLEMS_MAX, Reader};
use crate::config::Problem;

/// What a file says under a key.
#[derive(Debug)]
pub(super) enum Given<T> {
    /// Nothing.
    Absent,
    /// What makes no sense; that has been told.
    Bad,
    /// This, here.
    Good(T, Span),
}

impl<T> Given<T> {
    /// What is said, if it makes sense.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Given::Good(value, _) => Some(value),
            Given::Absent | Given::Bad => None,
        }
    }
}

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    String,
    Number,
    /// A number that is written in octal, or a string of its digits.
    Octal,
    Bool,
}

impl Wants {
    /// The value as the command line would have it.
    fn text(self, value: &DeValue<'_>) -> Option<String> {
        match (self, value) {
            (Wants::String | Wants::Octal, DeValue::String(text)) => Some(text.to_string()),
            (Wants::Number, DeValue::Integer(n)) => {
                i64::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n.to_string())
            }
            (Wants::Number, DeValue::Float(x)) => Some(x.as_str().to_owned()),
            (Wants::Octal, DeValue::Integer(n)) if n.radix() == 8 => Some(n.as_str().to_owned()),
            (Wants::Bool, DeValue::Boolean(b)) => Some(b.to_string()),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Wants::String => "a string in quotes",
            Wants::Number => "a number without quotes",
            Wants::Octal => "a number in octal, such as 0o660",
            Wants::Bool => "true or false",
        }
    }
}

/// A table, and what has been asked for.
#[derive(Debug)]
pub(super) struct Section<'a> {
    what: &'static str,
    table: &'a DeTable<'a>,
    span: Span,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// A table that stands at `span`; `what` it describes is for messages.
    pub(super) fn new(what: &'static str, table: &'a DeTable<'a>, span: Span) -> Self {
        Self { what, table, span, known: Vec::new() }
    }

    /// Where it begins.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Whether the key is there, whatever it says.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the key is not there, nor one that may be meant for it, which is told anyway.
    pub(super) fn lacks(&self, key: &str) -> bool {
        let meant = |other: &str| nearest(other, &[key]).is_some() && !self.known.contains(&other);
        !self.table.contains_key(key) && !self.table.keys().any(|other| meant(other.get_ref()))
    }

    /// Where the key stands.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// The value of `key`, made sense of by `parse`.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        wants: Wants,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
        reader: &mut Reader,
    ) -> Given<T> {
        let Some(value) = self.ask(key) else { return Given::Absent };
        one(key, value, wants, parse, reader)
    }

    /// The value of `key`, which is one of `words`.
    pub(super) fn word<T>(
        &mut self,
        key: &'static str,
        words: &[&str],
        parse: impl FnOnce(&str) -> Result<T, Problem>,
        reader: &mut Reader,
    ) -> Given<T> {
        let Some(value) = self.ask(key) else { return Given::Absent };
        let meant = value.get_ref().as_str().and_then(|word| nearest(word, words));
        let with_tip = |problem: Problem| match meant {
            Some(word) => Problem(format!("{problem}; did you mean \"{word}\"?")),
            None => problem,
        };
        one(key, value, Wants::String, |text| parse(text).map_err(with_tip), reader)
    }

    /// The values of `key`: one, or a list. A bad one is there as [`Given::Bad`].
    pub(super) fn values<T>(
        &mut self,
        key: &'static str,
        wants: Wants,
        parse: impl Fn(&str) -> Result<T, Problem>,
        reader: &mut Reader,
    ) -> Vec<Given<T>> {
        let Some(value) = self.ask(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(values) => values.iter().map(|value| one(key, value, wants, &parse, reader)).collect(),
            _ => vec![one(key, value, wants, parse, reader)],
        }
    }

    /// The table under `key`.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        header: &'static str,
        reader: &mut Reader,
    ) -> Option<Section<'a>> {
        let value = self.ask(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(header, table, value.span())),
            other => {
                reader.found(value.span(), format!("{key} is a section and not {}: write {header}", kind(other)));
                None
            }
        }
    }

    /// The tables under `key`, of which there may be several.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        header: &'static str,
        reader: &mut Reader,
    ) -> impl Iterator<Item = Section<'a>> + use<'a> {
        let mut sections = Vec::new();
        let value = self.ask(key);
        if let Some(DeValue::Array(values)) = value.map(Spanned::get_ref) {
            for value in values.iter() {
                match value.get_ref() {
                    DeValue::Table(table) => sections.push(Section::new(header, table, value.span())),
                    other => reader.found(value.span(), format!("not a section but {}: write {header}", kind(other))),
                }
            }
        } else if let Some(value) = value {
            reader.found(value.span(), format!("there may be several of {key}: write {header}"));
        }
        sections.into_iter()
    }

    /// Tells of every key that nobody asked for.
    pub(super) fn finish(self, reader: &mut Reader) {
        let unknown = self.table.keys().filter(|key| !self.known.contains(&key.get_ref().as_ref()));
        for key in unknown.take(PROBLEMS_MAX) {
            let name = key.get_ref();
            let tip = match nearest(name, &self.known) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("there are {}", listed(&self.known)),
            };
            reader.found(key.span(), format!("{} knows no {name}: {tip}", self.what));
        }
    }
}

fn one<T>(
    key: &str,
    value: &Spanned<DeValue<'_>>,
    wants: Wants,
    parse: impl FnOnce(&str) -> Result<T, Problem>,
    reader: &mut Reader,
) -> Given<T> {
    let Some(text) = wants.text(value.get_ref()) else {
        reader.found(value.span(), format!("{key} takes {}, and this is {}", wants.name(), kind(value.get_ref())));
        return Given::Bad;
    };
    match parse(&text) {
        Ok(parsed) => Given::Good(parsed, value.span()),
        Err(problem) => {
            reader.found(value.span(), problem.to_string());
            Given::Bad
        }
    }
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The word that was probably meant.
fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    // Long words cost the square of their length, and are near to nothing.
    if word.len() > 64 {
        return None;
    }
    let spelt = word.to_lowercase().replace('_', "-");
    let distance = |known: &&&str| strsim::damerau_levenshtein(&spelt, known);
    let best = words.iter().min_by_key(distance)?;
    (distance(&best) <= best.len().div_ceil(3)).then_some(*best)
}

/// Words in a sentence.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
