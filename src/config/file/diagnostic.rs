//! A problem with the place in the text that it is about.

use std::fmt;
use std::ops::Range;

/// Bytes of the text, from the first to the one after the last.
pub(super) type Span = Range<usize>;

/// Characters of a line that are shown, at most.
const SHOWN_MAX: usize = 120;
/// Characters that are shown before the place when the line is longer than that.
const SHOWN_BEFORE: usize = 40;

/// A problem with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub text: String,
    /// The line of the file, or a part of it that has the place in it.
    shown: String,
    /// Where the place begins in `shown`, in characters from 0.
    begin: usize,
    /// How many characters it has: at least one, which may be the one after the last.
    len: usize,
}

impl Diagnostic {
    /// The place and what is wrong there, in one line.
    pub fn summary(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.text)
    }
}

impl fmt::Display for Diagnostic {
    /// Three lines, without an end of the last: what is wrong, the line of the file, and a mark below the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        let number = self.line.to_string();
        writeln!(f, "{}", format!("{number} | {}", self.shown).trim_end())?;
        // Tabs stay tabs, so that the mark is below the place however wide they are.
        let before: String = self.shown.chars().take(self.begin).map(|c| if c == '\t' { c } else { ' ' }).collect();
        write!(f, "{} | {before}{}", " ".repeat(number.len()), "^".repeat(self.len))
    }
}

/// A text whose places can be told.
#[derive(Debug)]
pub(super) struct Text<'t> {
    file: &'t str,
    text: &'t str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'t> Text<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let after_ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self { file, text, lines: std::iter::once(0).chain(after_ends).collect() }
    }

    /// A problem about these bytes. A place of several lines is told by its first.
    pub(super) fn diagnostic(&self, span: Span, said: String) -> Diagnostic {
        let start = floor_char(self.text, span.start);
        let line = self.lines.partition_point(|&begin| begin <= start).max(1) - 1;
        let begin = self.lines[line];
        let content = self.text[begin..].split(['\n', '\r']).next().unwrap_or_default();
        let start_in_line = floor_char(content, start - begin);
        let end_in_line = floor_char(content, span.end.saturating_sub(begin)).max(start_in_line);
        let column = content[..start_in_line].chars().count();
        let len = content[start_in_line..end_in_line].chars().count().max(1);
        let skip = if content.chars().count() > SHOWN_MAX { column.saturating_sub(SHOWN_BEFORE) } else { 0 };
        let printable = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        Diagnostic {
            file: self.file.to_owned(),
            line: line + 1,
            column: column + 1,
            text: said.replace('\n', " "),
            shown: content.chars().skip(skip).take(SHOWN_MAX).map(printable).collect(),
            begin: column - skip,
            len: len.min(SHOWN_MAX - (column - skip).min(SHOWN_MAX - 1)),
        }
    }
}

/// The largest boundary between characters that is not above `index`.
fn floor_char(text: &str, index: usize) -> usize {
    let index = index.min(text.len());
    (0..=index).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}
