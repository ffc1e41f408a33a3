//! Names of hosts: what a guest calls itself, made harmless.

use crate::config::LABEL_BYTES_MAX;

/// Names that mean something to others' resolvers, which a guest could lead astray.
const FORBIDDEN: &[&str] = &["localhost", "wpad", "isatap"];

/// Whether the text is one label of a host's name: letters, digits and inner hyphens (RFC 1123 2.1), lower case.
pub(super) fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A label from what a guest sent: up to the first dot or zero byte, in lower case, a hyphen in place of each byte that
/// a label cannot have, and as long as a label may be. `None` when nothing is left, or it is a name that no guest may
/// have.
pub(super) fn clean(bytes: &[u8]) -> Option<String> {
    let first = bytes.split(|byte| matches!(byte, b'.' | 0)).next()?;
    let first = &first[..first.len().min(2 * LABEL_BYTES_MAX)];
    let mut label = String::new();
    for byte in first {
        match byte.to_ascii_lowercase() {
            byte if byte.is_ascii_alphanumeric() => label.push(char::from(byte)),
            // One hyphen for any number of strange bytes, and none to begin with.
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    label.truncate(LABEL_BYTES_MAX);
    let label = label.trim_end_matches('-');
    (!label.is_empty() && !FORBIDDEN.contains(&label)).then(|| label.to_owned())
}

/// The label with a number behind it, still as short as a label must be.
pub(super) fn numbered(label: &str, number: u32) -> String {
    let suffix = format!("-{number}");
    let kept = label.len().min(LABEL_BYTES_MAX - suffix.len());
    // A label is ASCII: any index is between two characters.
    format!("{}{suffix}", label[..kept].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_become_labels_or_nothing() {
        for (sent, name) in [
            (&b"Web-01"[..], Some("web-01")),
            (b"my_host.example.org", Some("my-host")),
            (b"a\nb\x1b[31m", Some("a-b-31m")),
            (b"-x--y-", Some("x-y")),
            (b"web\0junk", Some("web")),
            (b"..", None),
            (b"", None),
            (b"\xff\xfe", None),
            (b"LocalHost", None),
            (b"wpad.lan", None),
        ] {
            assert_eq!(clean(sent).as_deref(), name, "{sent:?}");
        }
        assert_eq!(clean(&[b'a'; 300]), Some("a".repeat(63)));
    }

    #[test]
    fn a_number_fits_behind_the_longest_label() {
        assert_eq!(numbered("web", 2), "web-2");
        let long = numbered(&"a".repeat(63), 17);
        assert!(is_label(&long) && long.ends_with("a-17") && long.len() == 63);
    }

    proptest! {
        #[test]
        fn what_is_clean_is_a_label(bytes in prop::collection::vec(any::<u8>(), 0..300), number in 2u32..100) {
            if let Some(name) = clean(&bytes) {
                prop_assert!(is_label(&name), "{name:?}");
                prop_assert!(is_label(&numbered(&name, number)), "{name:?}");
                prop_assert_eq!(clean(name.as_bytes()), Some(name));
            }
        }
    }
}
