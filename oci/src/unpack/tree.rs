//! Merges layers in memory to the directory of the package. There is no I/O in this file. The tree is complete and
//! checked before anything is written to the target.
//!
//! If a parent of a path is a symlink, it is resolved inside the image, as a container runtime does. A path that
//! leaves the package's directory is refused.

use std::collections::BTreeMap;

use super::EntryError;
use super::entry::{FileId, Kind, LayerEntry, Meta};
use super::name::PACKAGE_DIR;
use crate::limits::{Limit, Limits};

const MAX_SYMLINKS: u32 = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Dir(Dir),
    File(FileId),
    Symlink { target: Vec<u8>, meta: Meta },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) meta: Meta,
    pub(crate) children: BTreeMap<Vec<u8>, Node>,
}

impl Dir {
    fn implied() -> Self {
        Self {
            meta: Meta {
                mode: 0o755,
                mtime: (0, 0),
            },
            children: BTreeMap::new(),
        }
    }
}

/// The layers that were merged so far. `root` is the package's directory, and `None` until a layer has it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    root: Option<Dir>,
    max_depth: u64,
}

impl Tree {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            root: None,
            max_depth: limits.depth,
        }
    }

    pub(crate) fn into_root(self) -> Option<Dir> {
        self.root
    }

    /// Adds a layer on top. Its whiteouts are applied before its other entries, so they only remove entries of lower
    /// layers. If several entries have the same path, the last one is used.
    pub(crate) fn apply(&mut self, entries: Vec<LayerEntry>) -> Result<(), (Vec<u8>, EntryError)> {
        let (hides, adds): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| matches!(entry.kind, Kind::Whiteout | Kind::Opaque));
        for entry in hides {
            let opaque = matches!(entry.kind, Kind::Opaque);
            self.hide(&entry.path, opaque)
                .map_err(|error| (entry.path, error))?;
        }
        for entry in adds {
            let path = entry.path.clone();
            self.add(entry).map_err(|error| (path, error))?;
        }
        Ok(())
    }

    fn hide(&mut self, path: &[u8], opaque: bool) -> Result<(), EntryError> {
        if path.is_empty() && !opaque {
            self.root = None;
            return Ok(());
        }
        if opaque {
            let at = self.resolve(&split(path))?;
            if let Some(dir) = self.existing_dir(&at) {
                dir.children.clear();
            }
            return Ok(());
        }
        let parts = split(path);
        let Some((name, parents)) = parts.split_last() else {
            return Ok(());
        };
        let at = self.resolve(parents)?;
        if let Some(dir) = self.existing_dir(&at) {
            dir.children.remove(*name);
        }
        Ok(())
    }

    fn add(&mut self, entry: LayerEntry) -> Result<(), EntryError> {
        let parts = split(&entry.path);
        let Some((name, parents)) = parts.split_last() else {
            let Kind::Dir = entry.kind else {
                return Err(EntryError::PackageNotDirectory);
            };
            self.root.get_or_insert_with(Dir::implied).meta = entry.meta;
            return Ok(());
        };
        let at = self.resolve(parents)?;
        if at.len() as u64 + 1 > self.max_depth {
            return Err(EntryError::limit(Limit::Depth, self.max_depth));
        }
        let node = match entry.kind {
            Kind::Dir => Node::Dir(Dir {
                meta: entry.meta,
                children: BTreeMap::new(),
            }),
            Kind::File(id) => Node::File(id),
            Kind::Symlink(target) => Node::Symlink {
                target,
                meta: entry.meta,
            },
            Kind::Hardlink(target) => self.linked(&target)?,
            Kind::Whiteout | Kind::Opaque => return Ok(()),
        };
        let dir = self.make_dir(&at)?;
        match (dir.children.get_mut(*name), node) {
            (Some(Node::Dir(old)), Node::Dir(new)) => old.meta = new.meta,
            (_, node) => {
                dir.children.insert(name.to_vec(), node);
            }
        }
        Ok(())
    }

    /// The file or symlink that a hard link to `target` refers to.
    fn linked(&self, target: &[u8]) -> Result<Node, EntryError> {
        let missing = || EntryError::LinkMissing {
            target: super::lossy(target),
        };
        let parts = split(target);
        let (name, parents) = parts.split_last().ok_or_else(missing)?;
        let at = self.resolve(parents)?;
        let mut dir = self.root.as_ref().ok_or_else(missing)?;
        for part in &at {
            match dir.children.get(part) {
                Some(Node::Dir(next)) => dir = next,
                _ => return Err(missing()),
            }
        }
        match dir.children.get(*name) {
            Some(Node::Dir(_)) => Err(EntryError::LinkToDirectory {
                target: super::lossy(target),
            }),
            Some(node) => Ok(node.clone()),
            None => Err(missing()),
        }
    }

    /// The path of a directory without symlinks: those in `parts` are followed inside the package. Parts that do not
    /// exist stay as they are.
    fn resolve(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, EntryError> {
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.pop().ok_or(EntryError::ParentEscapes)?;
                    continue;
                }
                _ => {}
            }
            match self.node(&real, &part) {
                None | Some(Node::Dir(_)) => real.push(part),
                Some(Node::Symlink { target, .. }) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(EntryError::TooManySymlinks);
                    }
                    let target = relative_target(target, &mut real)?;
                    pending.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(Node::File(_)) => {
                    return Err(EntryError::ParentNotDirectory);
                }
            }
            if real.len() as u64 > self.max_depth {
                return Err(EntryError::limit(Limit::Depth, self.max_depth));
            }
        }
        Ok(real)
    }

    fn node(&self, at: &[Vec<u8>], name: &[u8]) -> Option<&Node> {
        let mut dir = self.root.as_ref()?;
        for part in at {
            match dir.children.get(part) {
                Some(Node::Dir(next)) => dir = next,
                _ => return None,
            }
        }
        dir.children.get(name)
    }

    fn existing_dir(&mut self, at: &[Vec<u8>]) -> Option<&mut Dir> {
        let mut dir = self.root.as_mut()?;
        for part in at {
            match dir.children.get_mut(part) {
                Some(Node::Dir(next)) => dir = next,
                _ => return None,
            }
        }
        Some(dir)
    }

    fn make_dir(&mut self, at: &[Vec<u8>]) -> Result<&mut Dir, EntryError> {
        let mut dir = self.root.get_or_insert_with(Dir::implied);
        for part in at {
            let next = dir
                .children
                .entry(part.clone())
                .or_insert_with(|| Node::Dir(Dir::implied()));
            match next {
                Node::Dir(next) => dir = next,
                Node::File(_) | Node::Symlink { .. } => {
                    return Err(EntryError::ParentNotDirectory);
                }
            }
        }
        Ok(dir)
    }
}

/// The part of a symlink's target that is resolved next, starting from `real`. If the target is absolute, `real` is
/// set to the package's directory.
fn relative_target<'a>(target: &'a [u8], real: &mut Vec<Vec<u8>>) -> Result<&'a [u8], EntryError> {
    let Some(absolute) = target.strip_prefix(b"/") else {
        return Ok(target);
    };
    match absolute.strip_prefix(PACKAGE_DIR) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            real.clear();
            Ok(rest)
        }
        _ => Err(EntryError::ParentEscapes),
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
