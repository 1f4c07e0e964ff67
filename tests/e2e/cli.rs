//! The command line: what is printed, where errors point, and the exit codes (0 done, 1 wrong input, 2 wrong usage,
//! 3 the system refused).

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::process::{HOSTWARD, hostward, run};
use crate::harness::{ACME, Authority, Edge, GLOBEX, Origin, SOON, Validity, World};

/// The bound on a subcommand that starts an edge of its own.
const BOUND: Duration = Duration::from_secs(60);

fn check(file: &Path, options: &[&str]) -> crate::harness::process::Finished {
    let mut command = Command::new(HOSTWARD);
    run(command.arg("check").arg("-c").arg(file).args(options), BOUND)
}

/// 170: `demo --once` tries its own curl lines against itself, and all match.
#[test]
fn t170_the_demo_works() {
    let directory = tempfile::tempdir().expect("a directory");
    let demo = hostward(&["demo", "--once", "--dir", directory.path().join("demo").to_str().expect("UTF-8")]);
    assert_eq!(demo.code(), Some(0), "{}", demo.output());
    for word in ["Acme's certificate", "Acme's ticket", "refused: unknown_ca", "resumed"] {
        assert!(demo.stdout.contains(word), "{word} is not in:\n{}", demo.output());
    }
}

/// 171: `check` names every error at once, each with file, line and column, and suggests what was meant.
#[test]
fn t171_check_names_every_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad.toml");
    let text = "[server]\nlisten = [\"127.0.0.1:0\"]\nworkerz = 2\n\n[limits]\nhandshake_timeout = \"soon\"\n\n\
                [[hostname]]\nname = \"pay.acme.test\"\nmode = \"tcp\"\norigin = \"nowhere\"\n\
                certificate = \"a.pem\"\nprivate_key = \"a.key\"\nclientauth = 1\n";
    fs::write(&file, text).expect("a file");
    let checked = check(&file, &[]);
    assert_eq!(checked.code(), Some(1), "{}", checked.output());
    for (line, word) in [(3, "workers"), (6, "soon"), (11, "nowhere"), (14, "client_auth")] {
        let place = format!("bad.toml:{line}:");
        let found = checked.output().lines().any(|text| text.contains(&place) && text.contains(word));
        assert!(found, "no line with {place} and {word} in:\n{}", checked.output());
    }
}

/// 172: a file without errors is one line and exit code 0; `--full` opens what it names and finds what does not fit.
#[test]
fn t172_check_full_opens_the_files() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let good = world.settings().host(world.host(ACME, &origin).require(&[&world.acme]));
    let file = good.write(directory.path());
    for options in [&[][..], &["--full"][..]] {
        let checked = check(&file, options);
        assert_eq!(checked.code(), Some(0), "{}", checked.output());
    }

    let mut wrong_key = good.clone();
    wrong_key.named(ACME).certificates[0].key_pem = world.servers.server(&[ACME]).issue().key_pem;
    let mut expired = good.clone();
    expired.named(ACME).certificates = vec![world.servers.server(&[ACME]).valid(Validity::expired()).issue()];
    let mut other_name = good.clone();
    other_name.named(ACME).certificates = vec![world.servers.server(&[GLOBEX]).issue()];
    let mut broken = good.clone();
    broken.named(ACME).cas = vec!["no PEM at all".into()];
    for (what, settings, fatal) in [
        ("a key of another certificate", wrong_key, true),
        ("an expired certificate", expired, false),
        ("a certificate for another name", other_name, false),
        ("a CA file without a CA", broken, true),
    ] {
        let file = settings.write(directory.path());
        let checked = check(&file, &["--full"]);
        if fatal {
            assert_eq!(checked.code(), Some(1), "{what}: {}", checked.output());
        }
        assert!(checked.output().contains("hostward.toml:"), "{what} goes unnoticed: {}", checked.output());
    }
}

/// 173: wrong usage is exit code 2, with a line on what is right.
#[test]
fn t173_wrong_usage_is_two() {
    for arguments in [&[][..], &["serve"], &["run"], &["run", "--fast"], &["check"], &["run", "-c"]] {
        let finished = hostward(arguments);
        assert_eq!(finished.code(), Some(2), "{arguments:?}: {}", finished.output());
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
    }
}

/// 174: a file that is wrong or missing is exit code 1, for `run` too, and nothing is started.
#[test]
fn t174_wrong_input_is_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing.toml");
    let wrong = directory.path().join("wrong.toml");
    fs::write(&wrong, "listen = 7\n").expect("a file");
    for subcommand in ["run", "check"] {
        for file in [&missing, &wrong] {
            let finished = hostward(&[subcommand, "-c", file.to_str().expect("UTF-8")]);
            assert_eq!(finished.code(), Some(1), "{subcommand} {file:?}: {}", finished.output());
            let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            assert!(finished.output().contains(name), "{subcommand}: {}", finished.output());
        }
    }
}

/// 175: a port that is in use is exit code 3, and one line that names it.
#[test]
fn t175_a_port_in_use_is_three() {
    let world = World::new();
    let origin = Origin::echo();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = taken.local_addr().expect("an address").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(world.host(ACME, &origin)).write(directory.path());
    let text = fs::read_to_string(&file).expect("a file");
    fs::write(&file, text.replacen("127.0.0.1:0", &address, 1)).expect("a file");
    let finished = hostward(&["run", "-c", file.to_str().expect("UTF-8")]);
    assert_eq!(finished.code(), Some(3), "{}", finished.output());
    assert!(finished.output().contains(&address), "{}", finished.output());
}

/// 176: `-V` says version, what the kernel offers, and the crypto provider.
#[test]
fn t176_the_version_says_what_there_is() {
    let finished = hostward(&["-V"]);
    assert_eq!(finished.code(), Some(0), "{}", finished.output());
    for word in [env!("CARGO_PKG_VERSION"), "io_uring", "aws-lc-rs"] {
        assert!(finished.stdout.contains(word), "{word} is not in:\n{}", finished.output());
    }
}

/// 177: `status` over the admin socket; health and readiness over HTTP; nobody at the socket is exit code 3 or 1.
#[test]
fn t177_status_and_health() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let status = edge.cli("status");
    assert_eq!(status.code(), Some(0), "{}", status.output());
    assert!(status.stdout.contains(&edge.address().to_string()), "{}", status.output());
    assert_eq!(edge.admin("/healthz").0, 200);
    assert_eq!(edge.admin("/readyz").0, 200);
    assert_eq!(edge.admin("/nothing-here").0, 404);

    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(world.host(ACME, &origin)).write(directory.path());
    let nobody = hostward(&["status", "-c", file.to_str().expect("UTF-8")]);
    assert!(matches!(nobody.code(), Some(1 | 3)), "{}", nobody.output());
}

/// 179: a half-edited file does not keep anyone from looking and draining, and a reload's faults are told by the process.
#[test]
fn t179_a_faulty_file_still_finds_its_process() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let good = std::fs::read_to_string(edge.file()).expect("the edge's configuration");
    std::fs::write(edge.file(), format!("{good}\n[serverr]\n")).expect("writing");
    let status = edge.cli("status");
    assert_eq!(status.code(), Some(0), "{}", status.output());
    let reload = edge.cli("reload");
    assert_eq!(reload.code(), Some(1), "{}", reload.output());
    assert!(reload.output().contains("serverr"), "{}", reload.output());
    edge.expect_metric("hostward_config_reload_total{result=\"failed\"}", 1.0);
    let drain = edge.cli("drain");
    assert_eq!(drain.code(), Some(0), "{}", drain.output());
    assert!(edge.exit_within(SOON).is_some_and(|status| status.success()), "drained");
}

/// 178: no output of any kind shows a private key, not even of a file that is wrong.
#[test]
fn t178_keys_are_never_shown() {
    let world = World::new();
    let origin = Origin::echo();
    let mut host = world.host(ACME, &origin);
    host.certificates[0].key_pem = Authority::new("x").leaf("y").issue().key_pem;
    let secret = host.certificates[0].key_pem.lines().nth(1).expect("a line of base64").to_owned();
    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(host).write(directory.path());
    let checked = check(&file, &["--full"]);
    let started = hostward(&["run", "-c", file.to_str().expect("UTF-8")]);
    for finished in [checked, started] {
        assert_eq!(finished.code(), Some(1), "{}", finished.output());
        assert!(!finished.output().contains(&secret[..20]), "a key was shown");
    }
}
