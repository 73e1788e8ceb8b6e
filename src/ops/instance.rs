//! The state file: a UUID that names this installation, locked for the process's life.
//!
//! The lock proves that a predecessor with the same UUID is dead, whatever its pid; a second holder is refused.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::stop::ExitWith;

/// Held as long as the process runs.
#[derive(Debug)]
pub struct Instance {
    /// Names the installation.
    pub id: Uuid,
    _locked: File,
}

/// `$STATE_DIRECTORY` (its first entry), as systemd sets it.
pub fn state_directory() -> Option<PathBuf> {
    let all = std::env::var_os("STATE_DIRECTORY")?;
    std::env::split_paths(&all).next().filter(|path| !path.as_os_str().is_empty())
}

/// Locks `DIRECTORY/instance`, made with a new UUID where it is missing or empty.
/// Fails with exit status 78 when another process holds it or it holds no UUID.
pub fn lock(directory: &Path) -> anyhow::Result<Instance> {
    let path = directory.join("instance");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let text = format!("another process holds {}: one txrelay runs per state directory", path.display());
        return Err(ExitWith { status: 78, text }.into());
    }
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("failed to read {}", path.display()))?;
    let id = match text.trim() {
        "" => {
            let id = Uuid::new_v4();
            file.rewind()?;
            writeln!(file, "{id}")
                .and_then(|()| file.sync_all())
                .with_context(|| format!("failed to write {}", path.display()))?;
            id
        }
        text => text.parse().map_err(|_| ExitWith {
            status: 78,
            text: format!("{} holds no UUID: remove it, and a new one is made", path.display()),
        })?,
    };
    Ok(Instance { id, _locked: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_stays_and_a_second_holder_is_refused() {
        let directory = std::env::temp_dir().join(format!("txrelay-instance-{}", Uuid::new_v4()));
        std::fs::create_dir(&directory).expect("temporary directory");
        let first = lock(&directory).expect("free");
        let refused = lock(&directory).expect_err("held");
        assert_eq!(refused.downcast::<ExitWith>().expect("a status").status, 78);
        let id = first.id;
        drop(first);
        assert_eq!(lock(&directory).expect("free again").id, id);
        std::fs::remove_dir_all(&directory).expect("cleaned up");
    }
}
