//! Where the guests' kernels, initramfs and VMMs are: what `tests/lab/prepare.sh` wrote down.

use std::collections::HashMap;
use std::path::PathBuf;

/// The variables of a file that it wrote.
pub(crate) struct Lab {
    goal: &'static str,
    variables: HashMap<String, String>,
}

impl Lab {
    /// What the tests need.
    pub(crate) fn prepared() -> Self {
        Self::prepared_for("tests")
    }

    /// What one of the script's goals has made.
    ///
    /// # Panics
    ///
    /// Without a prepared lab: a test that cannot have its guests has failed.
    pub(crate) fn prepared_for(goal: &'static str) -> Self {
        let path = env_file(goal);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; run tests/lab/prepare.sh {goal}", path.display()));
        let lab = Self { goal, variables: text.lines().filter_map(variable).collect() };
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot id is readable");
        assert_eq!(
            lab.get("BOOT"),
            boot.trim(),
            "guests were prepared before this machine's last boot; run tests/lab/prepare.sh {goal}"
        );
        lab
    }

    /// One variable's value.
    pub(crate) fn get(&self, name: &str) -> &str {
        let goal = self.goal;
        self.variables.get(name).unwrap_or_else(|| panic!("{goal}.env lacks {name}; run tests/lab/prepare.sh {goal}"))
    }

    /// Whether guests run on emulated CPUs.
    pub(crate) fn is_emulated(&self) -> bool {
        self.get("ACCEL").contains("tcg")
    }
}

fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.trim_matches('\'').to_owned()))
}

fn env_file(goal: &str) -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    folder("GUESTWIRE_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("guestwire")))
        .or_else(|| Some(folder("HOME")?.join(".cache/guestwire")))
        .expect("HOME is set")
        .join(format!("{goal}.env"))
}
