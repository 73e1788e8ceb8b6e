//! What `make install` leaves, and what systemd says of the unit without running it. tests/bed/systemd.sh runs it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Ledger, Relay, Topic, eventually, unique};

/// Installed under a folder of its own, which goes away with it.
struct Installed(PathBuf);

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn install(prefix: &str) -> Installed {
    let dest = std::env::temp_dir().join(unique("txrelay-install"));
    std::fs::create_dir(&dest).unwrap();
    let installed = Installed(dest);
    let out = Command::new("make")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "install"])
        .arg(format!("DESTDIR={}", installed.0.display()))
        .arg(format!("PREFIX={prefix}"))
        .arg(concat!("BINARY=", env!("CARGO_BIN_EXE_txrelay")))
        .output()
        .expect("make runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    installed
}

/// Every file below `folder` with its mode, sorted.
fn files(folder: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            found.push(format!("{} {mode:o}", path.strip_prefix(folder).unwrap().display()));
        }
    }
    found.sort();
    found
}

/// The unit with its program where it can be found now.
fn unit(installed: &Installed, change: impl Fn(&str) -> String) -> PathBuf {
    let text = std::fs::read_to_string(installed.0.join("usr/lib/systemd/system/txrelay@.service")).unwrap();
    let program = installed.0.join("usr/bin/txrelay");
    let path = installed.0.join("txrelay@demo.service");
    std::fs::write(&path, change(&text.replace("/usr/bin/txrelay", program.to_str().unwrap()))).unwrap();
    path
}

fn analyze(args: &[&str], unit: &Path) -> (bool, String) {
    let out =
        Command::new("systemd-analyze").args(args).arg(unit).output().expect("systemd-analyze is there: tests/bed/setup.sh");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), said)
}

#[test]
fn make_install_puts_each_file_where_the_readme_says() {
    for prefix in ["/usr", "/usr/local", "/opt/txrelay"] {
        let installed = install(prefix);
        let below = prefix.trim_start_matches('/');
        let mut expected = vec!["etc/txrelay/txrelay.toml.example 644".to_owned()];
        for file in [
            "bin/txrelay 755",
            "lib/systemd/system/txrelay@.service 644",
            "lib/sysusers.d/txrelay.conf 644",
            "share/doc/txrelay/ARCHITECTURE.md 644",
            "share/doc/txrelay/CHANGELOG.md 644",
            "share/doc/txrelay/LICENSE 644",
            "share/doc/txrelay/README.md 644",
            "share/doc/txrelay/SECURITY.md 644",
            "share/doc/txrelay/kafka-clients.md 644",
            "share/doc/txrelay/operating.md 644",
            "share/doc/txrelay/security.md 644",
            "share/doc/txrelay/commands.md 644",
            "share/doc/txrelay/txrelay.toml 644",
            "share/bash-completion/completions/txrelay 644",
            "share/fish/vendor_completions.d/txrelay.fish 644",
            "share/zsh/site-functions/_txrelay 644",
            "share/man/man1/txrelay.1 644",
            "share/man/man5/txrelay.toml.5 644",
        ] {
            expected.push(format!("{below}/{file}"));
        }
        for page in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbook")).expect("pages") {
            let name = page.expect("a page").file_name();
            expected.push(format!("{below}/share/doc/txrelay/runbook/{} 644", name.to_str().expect("text")));
        }
        for file in ["alerts.yml", "dashboards/txrelay.json", "rules.yml"] {
            expected.push(format!("{below}/share/txrelay/mixin/{file} 644"));
        }
        expected.sort();
        assert_eq!(files(&installed.0), expected);
        let unit = std::fs::read_to_string(installed.0.join(below).join("lib/systemd/system/txrelay@.service")).unwrap();
        let programs: Vec<&str> = unit.lines().filter(|line| line.contains("bin/txrelay ")).collect();
        assert_eq!(programs.len(), 2, "start and reload: {programs:?}");
        assert!(
            programs.iter().all(|line| line.contains(&format!("={prefix}/bin/txrelay -c /etc/txrelay/%i.toml "))),
            "{programs:?}"
        );
        assert!(unit.contains(&format!("Documentation=file://{prefix}/share/doc/txrelay/README.md")), "{unit}");
    }
}

#[test]
fn the_package_has_the_programs_version() {
    let file = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("there");
    // `-dev` comes before the release in Debian's order when it is `~dev`.
    let version = env!("CARGO_PKG_VERSION").replace('-', "~");
    let changelog = file("debian/changelog");
    assert!(changelog.starts_with(&format!("txrelay ({version}) ")), "{changelog}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let installed = install("/usr");
    let (fine, said) = analyze(&["verify", "--man=no"], &unit(&installed, str::to_owned));
    assert!(fine && said.trim().is_empty(), "{said}");
    // A slip in it would be found.
    let (_, said) = analyze(&["verify", "--man=no"], &unit(&installed, |text| text.replace("WatchdogSec=", "WatchdgSec=")));
    assert!(said.contains("WatchdgSec"), "{said}");
}

#[test]
fn the_unit_is_exposed_to_little_and_only_because_of_its_sandbox() {
    let installed = install("/usr");
    let threshold = ["security", "--offline=yes", "--threshold=12"];
    let (fine, said) = analyze(&threshold, &unit(&installed, str::to_owned));
    assert!(fine, "{said}");
    let sandbox = ["Protect", "Private", "Restrict", "Capability", "NoNew", "SystemCall", "Lock", "MemoryDeny", "Device"];
    let bare = |text: &str| -> String {
        let kept = text.lines().filter(|line| !sandbox.iter().any(|word| line.starts_with(word)));
        kept.map(|line| format!("{line}\n")).collect()
    };
    let (fine, said) = analyze(&threshold, &unit(&installed, bare));
    assert!(!fine, "without its sandbox it must fail:\n{said}");
}

#[test]
fn a_secret_comes_out_of_the_credentials_directory() {
    let (topic, ledger) = (Topic::new(1), Ledger::start());
    let mut relay = Relay::new(&topic.name, &ledger.url(), "");
    relay.set("postgres.password_file=${CREDENTIALS_DIRECTORY}/postgres");
    let credentials = relay.directory.join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let secret = credentials.join("postgres");
    std::fs::write(&secret, "correct horse\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o400)).unwrap();
    let out = relay.command(&["check-config"]).output().unwrap();
    assert_eq!(out.status.code(), Some(78), "outside of a unit it is not there");
    assert!(String::from_utf8_lossy(&out.stderr).contains("LoadCredential="), "{out:?}");
    relay.env("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    relay.start();
    topic.transactions(["a".to_owned()]);
    eventually("it is delivered", || ledger.accepted() == ["a"]);
    assert!(!relay.log().contains("correct horse"));
    assert_eq!(relay.stop().code(), Some(0), "{}", relay.log());
}
