//! Files that hold a secret.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// More than any password; a file of this size is the wrong one.
const MAX_BYTES: u64 = 64 * 1024;

/// The content of a secret's file without its one trailing newline. `${CREDENTIALS_DIRECTORY}` in the path is what
/// `env` says (the credentials that systemd passed).
///
/// # Errors
/// One sentence: no such file, not a file, empty, or open to others. It never holds any of the content.
pub(super) fn read(path: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<Vec<u8>, String> {
    if is_hidden(path, &env) {
        return Ok(Vec::new());
    }
    let path = expand(path, env)?;
    let shown = path.display();
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("{shown} cannot be read by this user: chown root:txrelay and chmod 0640 it")
        }
        _ => format!("{shown} cannot be read: {}", super::io_text(&e)),
    };
    // Not even a pipe is opened: that would wait for a writer.
    if !std::fs::metadata(&path).map_err(failed)?.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    let file = std::fs::File::open(&path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o007 != 0 {
        return Err(format!("{shown} is open to every user of this machine: chmod 0640 (or 0600) it"));
    }
    if mode & 0o020 != 0 {
        return Err(format!("{shown} can be written by its group: chmod 0640 (or 0600) it"));
    }
    let mut content = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.last() == Some(&b'\n') {
        content.pop();
    }
    if content.is_empty() {
        return Err(format!("{shown} is empty: write the secret into it"));
    }
    if content.len() as u64 > MAX_BYTES {
        return Err(format!("{shown} is larger than 64 KiB, which no secret is"));
    }
    if content.contains(&0) {
        return Err(format!("{shown} holds a zero byte, which no secret may"));
    }
    Ok(content)
}

/// [`read`], with the environment of this process.
pub(super) fn read_now(path: &str) -> Result<Vec<u8>, String> {
    read(path, |variable| std::env::var_os(variable))
}

const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Whether a file is a credential that systemd shows to the main process only, and this is not it. What an ExecReload= runs to
/// check the file (MAINPID is set for it) cannot judge credentials: with systemd 252 and this unit's sandbox they are not there
/// (seen), and later versions do not even set the variable for it (systemd issue 35227). The daemon judges them when it reads
/// the file itself.
pub(super) fn is_hidden(path: &str, env: impl Fn(&str) -> Option<OsString>) -> bool {
    let is_control_process = env("MAINPID").is_some() && path.contains(CREDENTIALS);
    is_control_process && (env(CREDENTIALS).is_none() || expand(path, env).is_ok_and(|path| std::fs::metadata(path).is_err()))
}

/// The path with `${CREDENTIALS_DIRECTORY}` replaced.
pub(super) fn expand(path: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let variable = format!("${{{CREDENTIALS}}}");
    let path = if path.contains(&variable) {
        let Some(folder) = env(CREDENTIALS).and_then(|f| f.into_string().ok()).filter(|f| !f.is_empty()) else {
            return Err(format!("{variable} is not set: it is inside a unit with LoadCredential=, not in a shell"));
        };
        path.replace(&variable, &folder)
    } else {
        path.to_string()
    };
    if path.contains("${") {
        return Err(format!("only {variable} is replaced in a path"));
    }
    if !path.starts_with('/') {
        return Err("must be an absolute path".into());
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::tests::Folder;

    #[track_caller]
    fn check(content: &str, mode: u32, expected: Result<&str, &str>) {
        let folder = Folder::new();
        let file = folder.write("secret", content);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let got = read(file.to_str().expect("utf-8"), |_| None);
        match expected {
            Ok(secret) => assert_eq!(got.as_deref(), Ok(secret.as_bytes())),
            Err(part) => {
                let problem = got.expect_err("refused");
                assert!(problem.contains(part), "{problem}");
                assert!(content.trim().is_empty() || !problem.contains(content.trim()), "{problem}");
            }
        }
    }

    #[test]
    fn exactly_one_newline_is_cut() {
        check("hunter2\n", 0o600, Ok("hunter2"));
        check("hunter2\n\n", 0o640, Ok("hunter2\n"));
        check(" hunter2 ", 0o400, Ok(" hunter2 "));
    }

    #[test]
    fn a_secret_that_others_can_touch_is_refused() {
        check("hunter2", 0o644, Err("open to every user"));
        check("hunter2", 0o602, Err("open to every user"));
        check("hunter2", 0o601, Err("open to every user"));
        check("hunter2", 0o660, Err("written by its group"));
    }

    #[test]
    fn an_empty_secret_is_refused() {
        check("", 0o600, Err("is empty"));
        check("\n", 0o600, Err("is empty"));
        check("a\0b", 0o600, Err("zero byte"));
    }

    #[test]
    fn credentials_of_systemd_are_found() {
        let folder = Folder::new();
        std::fs::set_permissions(folder.write("pg", "hunter2\n"), std::fs::Permissions::from_mode(0o400)).expect("chmod");
        let path = "${CREDENTIALS_DIRECTORY}/pg";
        assert_eq!(read(path, |_| Some(folder.path().as_os_str().to_owned())), Ok(b"hunter2".to_vec()));
        assert!(read(path, |_| None).expect_err("not set").contains("LoadCredential="));
        let reloading = |name: &str| Some(if name == "MAINPID" { "1".into() } else { "/nonexistent".into() });
        assert_eq!(read(path, reloading), Ok(Vec::new()), "systemd shows them to the main process only");
        let later = |name: &str| (name == "MAINPID").then(|| "1".into());
        assert_eq!(read(path, later), Ok(Vec::new()), "and later versions name no folder either");
        assert!(read("/nonexistent/pg", reloading).is_err(), "any other file is there for all");
        assert!(read("${HOME}/pg", |_| None).expect_err("other variable").contains("only ${CREDENTIALS_DIRECTORY}"));
        assert!(read("pg", |_| None).expect_err("relative").contains("absolute"));
        assert!(read("/nonexistent/pg", |_| None).expect_err("missing").contains("/nonexistent/pg cannot be read: No such file"));
        assert!(read("/dev/null", |_| None).expect_err("device").contains("is not a file"));
    }
}
