//! Whom a command connects to PostgreSQL as: the file's user and password, or those that PGUSER and PGPASSFILE name. So an
//! operator works under a role of his own, and the audit log says which.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use postgres::config::Host;

use crate::config::{Password, Postgres};

/// The same database with the environment's user and password, where it names them.
///
/// # Errors
/// One sentence about the password file, without any of its content.
pub(super) fn as_environment_says(postgres: &Postgres) -> Result<Postgres, String> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    with(postgres, variable("PGUSER").as_deref(), variable("PGPASSFILE").as_deref().map(Path::new))
}

/// Whether the password does not come from the pipeline's file, which an operator may not be able to read.
pub(super) fn brings_a_password() -> bool {
    std::env::var_os("PGPASSFILE").is_some_and(|file| !file.is_empty())
}

fn with(postgres: &Postgres, user: Option<&OsStr>, passwords: Option<&Path>) -> Result<Postgres, String> {
    let mut postgres = postgres.clone();
    if let Some(user) = user {
        postgres.client.user(user.to_str().ok_or("PGUSER is not UTF-8 text")?);
    }
    let Some(file) = passwords else { return Ok(postgres) };
    let shown = file.display();
    let failed = |e: std::io::Error| format!("PGPASSFILE: {shown} cannot be read: {e}");
    // As libpq does, but said: it would ignore such a file with a warning, and the server would then ask in vain.
    if std::fs::metadata(file).map_err(failed)?.mode() & 0o077 != 0 {
        return Err(format!("PGPASSFILE: {shown} is open to others: chmod 0600 it"));
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    postgres.password = find(&text, &postgres.client).map_or(Password::None, |password| Password::Given(password.into_bytes()));
    Ok(postgres)
}

/// The password of the first line `host:port:database:user:password` that fits one of the hosts (libpq, "The Password File").
fn find(text: &str, client: &postgres::Config) -> Option<String> {
    let user = client.get_user().unwrap_or_default();
    // libpq's default.
    let database = client.get_dbname().unwrap_or(user);
    let ports = client.get_ports();
    let servers: Vec<(String, String)> = client
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(n, host)| {
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432).to_string();
            match host {
                Host::Tcp(name) => (name.clone(), port),
                // libpq's word for the socket of this machine.
                Host::Unix(_) => ("localhost".to_owned(), port),
            }
        })
        .collect();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields: [String; 5] = fields(line).try_into().ok()?;
        let [host, port, name, role, password] = fields;
        let fits = |field: &str, value: &str| field == "*" || field == value;
        let server = servers.iter().any(|(server, at)| fits(&host, server) && fits(&port, at));
        (server && fits(&name, database) && fits(&role, user)).then_some(password)
    })
}

/// Split at colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        // A colon in the password needs no backslash.
        if c == ':' && fields.len() < 5 {
            fields.push(String::new());
            continue;
        }
        let last = fields.last_mut().expect("there is always one");
        if c == '\\' { last.extend(chars.next()) } else { last.push(c) }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::config::tests::Folder;

    #[track_caller]
    fn check(passwords: &str, expected: Option<&str>) {
        let client = "postgresql://app@a:5432,b:5433/db".parse().expect("a URL");
        assert_eq!(find(passwords, &client).as_deref(), expected, "{passwords}");
    }

    #[test]
    fn the_first_line_that_fits_is_taken() {
        check("a:5432:db:app:one\nb:5433:db:app:two", Some("one"));
        check("b:5433:db:app:two", Some("two"));
        check("#a:5432:db:app:no\n*:*:*:app:three", Some("three"));
        check("a:5433:db:app:no\nb:5433:other:app:no\nb:5433:db:other:no\na:5432:db", None);
        check(r"*:*:*:*:with\:colons:and\\slashes", Some(r"with:colons:and\slashes"));
        check("", None);
    }

    #[test]
    fn user_and_password_are_those_of_the_environment() {
        let folder = Folder::new();
        let file = folder.write("pgpass", "a:*:*:alice:hunter2\n");
        let postgres = Postgres::plain("postgresql://app@a/db".parse().expect("a URL"), "s", Duration::from_secs(60));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(with(&postgres, None, Some(&file)).expect_err("open").contains("chmod 0600"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        let alice = with(&postgres, Some(OsStr::new("alice")), Some(&file)).expect("fine");
        assert_eq!((alice.client.get_user(), alice.password.read()), (Some("alice"), Ok(Some(b"hunter2".to_vec()))));
        let app = with(&postgres, None, Some(&file)).expect("fine");
        assert_eq!((app.client.get_user(), app.password.read()), (Some("app"), Ok(None)), "no line fits");
        assert!(with(&postgres, None, Some(Path::new("/nonexistent"))).expect_err("missing").contains("cannot be read"));
    }
}
