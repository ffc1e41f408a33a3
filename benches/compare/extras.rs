//! A program of ours for the guests: compiled, and added to a copy of a guest's initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::recorder::Recorder;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/round_trips.rs");

/// The program, in `folder`: linked statically, and so one for guests and for the host.
pub(crate) fn compile_round_trips(folder: &Path, recorder: &mut Recorder) -> PathBuf {
    let program = folder.join("round_trips");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(&program).arg(SOURCE);
    recorder.command("round_trips, for the guests", &format!("{rustc:?}"));
    let status = rustc.status().unwrap_or_else(|error| panic!("rustc: {error}"));
    assert!(status.success(), "{rustc:?}: {status}");
    program
}

/// The initramfs at `base` with the program as `/bin/round_trips`, in a file of `folder`.
pub(crate) fn initrd_with_round_trips(base: &Path, program: &Path, folder: &Path) -> PathBuf {
    let mut bytes = fs::read(base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
    pad(&mut bytes);
    append(&mut bytes, "bin/round_trips", 0o100_755, &fs::read(program).unwrap());
    append(&mut bytes, "TRAILER!!!", 0, &[]);
    let path = folder.join("initrd");
    fs::write(&path, bytes).unwrap();
    path
}

/// Adds a file to a cpio archive in the format that the kernel takes ("newc": cpio(5)).
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    // Inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name with its NUL, checksum.
    let length = |len: usize| u32::try_from(len).unwrap();
    let fields = [1, mode, 0, 0, 1, 0, length(content.len()), 0, 0, 0, 0, length(name.len() + 1), 0];
    archive.extend(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}

/// To a multiple of four bytes, at which the kernel looks for the next entry, and for the next archive.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
