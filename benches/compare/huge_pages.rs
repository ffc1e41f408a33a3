//! Huge pages: what DPDK's programs cannot do without, and nobody else here needs.

use std::fs::{create_dir_all, read_to_string, write};

use crate::process::run;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";
const FOLDER: &str = "/dev/hugepages";
/// Of 2 MiB each: for a driver, a switch and what lies between two that end and start.
const WANTED: u32 = 2048;

/// Enough of them, until this is dropped: then there are as many as before.
pub(crate) struct HugePages {
    before: String,
    mounted: bool,
}

impl HugePages {
    pub(crate) fn take() -> Self {
        let before = read_to_string(COUNT).unwrap_or_else(|error| panic!("{COUNT}: {error}"));
        reserve();
        let mounts = read_to_string("/proc/mounts").unwrap();
        let mounted = mounts.lines().all(|line| line.split(' ').nth(1) != Some(FOLDER));
        if mounted {
            create_dir_all(FOLDER).unwrap();
            run(&["mount", "-t", "hugetlbfs", "none", FOLDER], &[]);
        }
        forget_files();
        Self { before, mounted }
    }
}

/// The kernel makes as many as it finds memory for in one piece, so it is asked again when it has tidied up.
fn reserve() {
    let set =
        |file: &str, text: &str| write(file, text).unwrap_or_else(|error| panic!("{file}: {error}; are you root?"));
    let count = || read_to_string(COUNT).ok()?.trim().parse::<u32>().ok();
    for _ in 0..3 {
        if count() >= Some(WANTED) {
            return;
        }
        set("/proc/sys/vm/drop_caches", "3");
        set("/proc/sys/vm/compact_memory", "1");
        set(COUNT, &WANTED.to_string());
    }
    assert!(count() >= Some(WANTED), "{WANTED} huge pages are needed, and the kernel finds {:?}: free memory", count());
}

/// Removes what a program of ours that was killed has left behind, and with it the memory that it holds.
fn forget_files() {
    let ours =
        |entry: &std::fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with("guestwire-"));
    for entry in std::fs::read_dir(FOLDER).into_iter().flatten().flatten().filter(ours) {
        let _ = std::fs::remove_file(entry.path());
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        forget_files();
        // On the way out nothing can be done about what fails.
        if self.mounted {
            let _ = std::process::Command::new("umount").arg(FOLDER).status();
        }
        let _ = write(COUNT, &self.before);
    }
}
