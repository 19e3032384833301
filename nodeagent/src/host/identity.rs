//! The host ID, a random ID on the host's disk. When the disk is replaced, the machine ID may stay the same (golden
//! images, virtual machines), but the host ID changes.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::fs;
use std::io;
use std::path::Path;

use skyhook_oci::{Durability, replace_file};

const FILE: &str = "host-id";

/// The ID in the agent's state directory. If there is none, creates a random one and writes it to the disk.
pub fn host_id(state: &Path) -> io::Result<String> {
    let path = state.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        // The file was damaged by a crash: replace it.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .replace('-', "");
    replace_file(&path, format!("{id}\n").as_bytes(), Durability::PowerCut)?;
    Ok(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let first = host_id(state.path()).unwrap();
        assert!(is_id(&first), "{first}");
        assert_eq!(host_id(state.path()).unwrap(), first);
        for torn in ["", "abc", "not an ID, but as long as one is "] {
            fs::write(state.path().join(FILE), torn).unwrap();
            let next = host_id(state.path()).unwrap();
            assert!(is_id(&next), "{next}");
            assert_ne!(next, first, "{torn:?}");
        }
    }
}
