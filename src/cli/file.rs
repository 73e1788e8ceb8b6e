//! Which file is meant, and what it says; or why it cannot be read, and by whom it can.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Exit, complain, login};
use crate::config::{self, Config, visible};

/// Which file is meant.
pub(super) fn file(config: Option<&Path>, instance: Option<&str>, etc: &Path) -> Result<PathBuf, (Exit, String)> {
    if let Some(file) = config {
        return Ok(file.to_path_buf());
    }
    if let Some(name) = instance {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err((Exit::Usage, "-i takes a pipeline's name, not a path: use -c for a path".into()));
        }
        return Ok(etc.join(format!("{name}.toml")));
    }
    let shown = etc.display();
    let entries = fs::read_dir(etc).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => {
            (Exit::NotPermitted, format!("{shown} cannot be read by this user: use sudo, or name a file with -c"))
        }
        _ => (Exit::Usage, format!("there is no {shown}: name a file with -c")),
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".toml")?.to_string()))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    match names.as_slice() {
        [name] => Ok(etc.join(format!("{name}.toml"))),
        [] => Err((Exit::Usage, format!("{shown} holds no NAME.toml: write one, or name a file with -c"))),
        _ => Err((Exit::Usage, format!("{shown} holds several pipelines, choose one: -i {}", names.join(", -i ")))),
    }
}

/// The configuration, or every problem on stderr and the exit code for it.
pub(super) fn load(file: &Path, sets: &[String]) -> Result<Config, Exit> {
    if let Some(who) = who_may_read(file) {
        complain(&format!("txrelay: {}: this user may not read it: {who}", visible(&file.display().to_string())));
        return Err(Exit::NotPermitted);
    }
    config::load(file, sets).map_err(|problems| {
        complain(&problems.to_string());
        Exit::Config
    })
}

/// Where this user may not read the file: who may, and how to become one.
fn who_may_read(file: &Path) -> Option<String> {
    let denied = fs::File::open(file).err()?.kind() == std::io::ErrorKind::PermissionDenied;
    if !denied {
        return None;
    }
    // Without a right to look into its folder nothing is known of it.
    let Ok(metadata) = fs::metadata(file) else { return Some("nor look into its folder; use sudo".to_owned()) };
    if metadata.mode() & 0o040 == 0 {
        return Some("only its owner may; use sudo".to_owned());
    }
    // Nobody should join that one.
    if metadata.gid() == 0 {
        return Some("only root may; use sudo, or give it to group txrelay (chgrp txrelay)".to_owned());
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_name(&groups, metadata.gid()).unwrap_or_else(|| metadata.gid().to_string());
    Some(format!("members of group {group} may; use sudo, or join it (usermod -aG {group} USER) and log in again"))
}

/// The name of a group (group(5)).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// [`load`] for a command that a person runs on PostgreSQL alone: a password of the operator's own takes the place of the
/// file's, and the secrets of the service and of Kafka are left alone. He may not be able to read any of them.
pub(super) fn load_to_connect(file: &Path, sets: &[String]) -> Result<Config, Exit> {
    load_without(file, sets, config::SERVICE_FILES.iter().chain(&config::KAFKA_FILES))
}

/// The same for a command that also asks Kafka: it needs Kafka's certificates and password.
pub(super) fn load_to_ask_kafka(file: &Path, sets: &[String]) -> Result<Config, Exit> {
    load_without(file, sets, config::SERVICE_FILES.iter())
}

fn load_without<'a>(
    file: &Path,
    sets: &[String],
    left_alone: impl Iterator<Item = &'a (&'static str, &'static str)>,
) -> Result<Config, Exit> {
    let mut sets = with_own_password(sets);
    sets.extend(left_alone.map(|(key, nothing)| format!("{key}={nothing}")));
    load(file, &sets)
}

pub(super) fn with_own_password(sets: &[String]) -> Vec<String> {
    let mut sets = sets.to_vec();
    if login::brings_a_password() {
        sets.push("postgres.password_file=\"\"".to_owned());
    }
    sets
}
