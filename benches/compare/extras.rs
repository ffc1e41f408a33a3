//! Programs of ours for the guests: compiled, and added to a copy of a guest's initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::recorder::Recorder;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare");

/// A program of this folder, in `folder`: linked statically, and so one for guests and for the host.
pub(crate) fn compile(name: &str, folder: &Path, recorder: &mut Recorder) -> PathBuf {
    let (program, source) = (folder.join(name), format!("{SOURCES}/{name}.rs"));
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(&program).arg(source);
    recorder.command(&format!("{name}, for the guests"), &format!("{rustc:?}"));
    let status = rustc.status().unwrap_or_else(|error| panic!("rustc: {error}"));
    assert!(status.success(), "{rustc:?}: {status}");
    program
}

/// The initramfs at `base` with a program in its `/bin`, in a file of `folder`.
pub(crate) fn initrd_with(base: &Path, program: &Path, folder: &Path) -> PathBuf {
    let mut bytes = fs::read(base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
    let name = program.file_name().unwrap().to_str().unwrap();
    pad(&mut bytes);
    append(&mut bytes, &format!("bin/{name}"), 0o100_755, &fs::read(program).unwrap());
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
