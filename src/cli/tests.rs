use super::*;
use crate::config::{Attachment, Group, Internal, Mode, OffloadMask, StatsTarget, Verbosity};

fn parsed(line: &str) -> Result<Command, UsageError> {
    parse(std::iter::once("guestwire").chain(line.split_whitespace()).map(OsString::from))
}

fn config(line: &str) -> Config {
    match parsed(line) {
        Ok(Command::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    let text = match parsed(line) {
        Err(error) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    };
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains("--help"), "{text}");
    text
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_socket_path_is_enough() {
    let config = config("internal --socket-path /tmp/lab.sock");
    assert_eq!(config.networks[0].mode, Mode::Internal(Internal::default()));
    assert_eq!(config.networks[0].name.as_str(), "internal");
    let [Attachment::Listen(listen)] = config.networks[0].attachments.as_slice() else { panic!("{config:?}") };
    assert_eq!(listen.path.as_path().to_str(), Some("/tmp/lab.sock"));
    assert_eq!((listen.mode.bits(), &listen.group), (0o600, &None));
    assert_eq!((config.networks[0].mtu, config.networks[0].offload), (None, OffloadMask::ALL));
    assert_eq!((config.stats, config.verbosity), (None, Verbosity::Normal));
}

#[test]
fn every_flag_reaches_the_configuration() {
    let config = config(
        "internal --socket-path a --socket-path b --connect c --socket-mode 0660 --socket-group kvm --mtu 9000 \
         --offload off --stats out.json --stats-interval 0.5 -vv",
    );
    let names: Vec<_> = config.networks[0].attachments.iter().map(|a| a.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let Attachment::Listen(listen) = &config.networks[0].attachments[1] else { panic!("{config:?}") };
    assert_eq!((listen.mode.bits(), listen.group.clone()), (0o660, Some(Group::Name("kvm".into()))));
    assert_eq!(config.networks[0].mtu.map(|m| m.bytes()), Some(9000));
    assert_eq!(config.networks[0].offload, OffloadMask::NONE);
    let stats = config.stats.unwrap();
    assert_eq!(stats.target, StatsTarget::File("out.json".into()));
    assert_eq!(stats.interval.duration().as_millis(), 500);
    assert_eq!(config.verbosity, Verbosity::Trace);
}

#[test]
fn descriptors_and_standard_output() {
    let config = config("-q internal --fd 3 --fd 4 --stats -");
    assert_eq!(config.networks[0].attachments.len(), 2);
    assert_eq!(config.stats.unwrap().target, StatsTarget::Stdout);
    assert_eq!(config.verbosity, Verbosity::Quiet);
}

#[test]
fn capabilities_come_before_everything_else() {
    for line in ["--print-capabilities", "internal --print-capabilities", "nonsense --mtu x --print-capabilities --fd"]
    {
        assert!(matches!(parsed(line), Ok(Command::PrintCapabilities)), "{line}");
    }
    assert_eq!(serde_json::from_str::<serde_json::Value>(CAPABILITIES).unwrap()["type"], "net");
}

#[test]
fn errors_are_one_line_with_the_way_out() {
    for (line, says) in [
        ("", "internal --socket-path"),
        ("internal", "--socket-path PATH"),
        ("internal --soket-path a", "'--socket-path'"),
        ("internal --socket-path", "<PATH>"),
        ("internal --socket-path a --fd 3", "--fd"),
        ("internal --socket-path a --socket-mode 0999", "0660"),
        ("internal --connect a --socket-mode 0600", "--socket-path"),
        ("internal --socket-path a --mtu 67", "68 to 65535"),
        ("internal --socket-path a --mtu 0", "guestwire internal --help"),
        ("internal --socket-path a --offload lro=off", "csum, tso, uso, ecn"),
        ("internal --socket-path a --stats-interval 2", "--stats"),
        ("internal --socket-path a --socket-path a", "named twice"),
        ("internal --fd 1", "standard stream"),
        ("internal --fd x", "descriptor"),
        ("internal --socket-path a -q -v", "--quiet"),
        ("internal --socket-path a b", "'b'"),
        ("intrenal --socket-path a", "'internal'"),
    ] {
        let text = refused(line);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(says), "{line}: {text}");
    }
}

#[test]
fn verbs_to_come_say_so() {
    for verb in VERBS_TO_COME {
        let text = refused(verb);
        assert!(text.contains("not there yet") && text.contains("internal"), "{text}");
    }
}

#[test]
fn each_problem_has_a_line() {
    let text = refused("internal --socket-path a --socket-path a --connect b --connect b");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn help_and_version_are_answers() {
    for line in ["--help", "-h", "--version", "internal --help", "internal -h"] {
        assert!(matches!(parsed(line), Ok(Command::Help(_))), "{line}");
    }
}
