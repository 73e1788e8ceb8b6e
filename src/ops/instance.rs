//! The state file: a UUID that names this installation, locked for the process's life.
//!
//! The lock proves that a predecessor which held the same one is dead, whatever its pid; a second holder is refused. It proves
//! nothing of a copy: a cloned machine has the UUID too, and a lock of its own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::stop::ExitWith;

/// Held as long as the process runs.
#[derive(Debug)]
pub struct Instance {
    /// What others may know of it.
    pub mark: Mark,
    _locked: File,
}

/// Which installation this is, and by which lock.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Names the installation; copies of the file share it.
    pub id: Uuid,
    /// Names the lock: whoever held one of this name before is dead. `None`: the kernel does not say which boot this is.
    pub lock: Option<Uuid>,
    /// For people.
    pub path: PathBuf,
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
    let mark = Mark { id, lock: name_of_lock(&file), path };
    Ok(Instance { mark, _locked: file })
}

/// A lock is one inode's under one kernel: a copy of the file, on this machine or a clone of it, has another.
fn name_of_lock(file: &File) -> Option<Uuid> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let inode = file.metadata().ok()?;
    let hash = Sha256::digest(format!("{} {} {}", boot.trim(), inode.dev(), inode.ino()));
    Uuid::from_slice(&hash[..16]).ok()
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
        let mark = first.mark.clone();
        drop(first);
        let again = lock(&directory).expect("free again").mark;
        assert_eq!((again.id, again.lock), (mark.id, mark.lock), "whoever held it before is dead");
        assert!(mark.lock.is_some());
        let copy = directory.join("copy");
        std::fs::create_dir(&copy).expect("a folder");
        std::fs::copy(directory.join("instance"), copy.join("instance")).expect("copied");
        let clone = lock(&copy).expect("nobody holds the copy").mark;
        assert_eq!(clone.id, mark.id);
        assert_ne!(clone.lock, mark.lock, "the lock on a copy proves nothing about the original");
        std::fs::remove_dir_all(&directory).expect("cleaned up");
    }
}
