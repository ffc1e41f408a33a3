//! The list of requirements, and what came of them.

use std::panic::catch_unwind;
use std::sync::OnceLock;

/// How a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    Pass,
    /// What the kernel or the design does instead, which the test shows.
    NotApplicable(&'static str),
    /// It does not hold, and the test shows what is done.
    Missed(&'static str),
}

/// One row.
pub(crate) struct Requirement {
    pub(crate) rfc: u16,
    pub(crate) number: &'static str,
    pub(crate) asks: &'static str,
    pub(crate) holds: Holds,
    pub(crate) test: fn(),
    /// Whether its test has passed, once that has run.
    pub(crate) passed: OnceLock<bool>,
}

impl Requirement {
    /// Runs its test, if that has not run yet.
    pub(crate) fn passes(&self) -> bool {
        *self.passed.get_or_init(|| catch_unwind(self.test).is_ok())
    }

    fn row(&self) -> String {
        let (word, why) = match self.holds {
            _ if !self.passes() => ("FAILED", ""),
            Holds::Pass => ("pass", ""),
            Holds::NotApplicable(why) => ("not applicable", why),
            Holds::Missed(why) => ("missed", why),
        };
        let colon = if why.is_empty() { "" } else { ": " };
        format!("RFC {} REQ-{:<6} {:<55} {word}{colon}{why}", self.rfc, self.number, self.asks)
    }
}

/// Makes a list of requirements and a test of each.
macro_rules! requirements {
    ($($name:ident: $rfc:literal $number:literal, $asks:literal, $holds:expr, $test:path;)*) => {
        const COUNT: usize = [$(stringify!($name)),*].len();
        static REQUIREMENTS: [(&str, table::Requirement); COUNT] = [$((stringify!($name), table::Requirement {
            rfc: $rfc,
            number: $number,
            asks: $asks,
            holds: $holds,
            test: $test,
            passed: std::sync::OnceLock::new(),
        })),*];
        $(
            #[test]
            fn $name() {
                let row = REQUIREMENTS.iter().find(|(name, _)| *name == stringify!($name)).unwrap();
                assert!(row.1.passes(), "see what is written above");
            }
        )*
        #[test]
        fn table_of_all() {
            table::print(&REQUIREMENTS);
        }
    };
}

/// Prints the table of all, each of which has run then, and checks that no requirement is without a row.
pub(crate) fn print(all: &[(&str, Requirement)]) {
    for (rfc, last) in [(4787, 14), (5382, 10), (5508, 11)] {
        for number in 1..=last {
            let is_it =
                |row: &Requirement| row.rfc == rfc && row.number.split(' ').next() == Some(number.to_string().as_str());
            let prefix = format!("rfc{rfc}_req_{number:02}");
            let is_named = all.iter().any(|(name, row)| is_it(row) && name.starts_with(&prefix));
            assert!(is_named, "RFC {rfc} REQ-{number} has no test");
        }
    }
    all.iter().for_each(|(_, requirement)| println!("{}", requirement.row()));
    assert!(all.iter().all(|(_, requirement)| requirement.passes()));
}
