//! Merges layers in memory to the directory of the package. There is no I/O in this file. The tree is complete and
//! checked before anything is written to the target.
//!
//! If a parent of a path is a symlink, it is resolved inside the image, as a container runtime does. An entry whose path
//! leaves the package's directory in this way lies elsewhere in the image: it is left out, with a warning.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::EntryError;
use super::entry::{FileId, Kind, LayerEntry, Meta};
use super::name::PACKAGE_DIR;
use crate::limits::{Budget, Limit, LimitExceeded};

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

/// Why an entry is not added.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    /// It is not in the package, but elsewhere in the image.
    Elsewhere,
    Entry(EntryError),
}

impl From<EntryError> for Refused {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<LimitExceeded> for Refused {
    fn from(error: LimitExceeded) -> Self {
        Self::Entry(error.into())
    }
}

/// The layers that were merged so far. `root` is the package's directory, and `None` until a layer has it.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    root: Option<Dir>,
    /// The package's directory was replaced by something else.
    is_replaced: bool,
    budget: &'a Budget<'a>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(budget: &'a Budget<'a>) -> Self {
        Self {
            root: None,
            is_replaced: false,
            budget,
        }
    }

    pub(crate) fn into_root(self) -> Result<Option<Dir>, EntryError> {
        match self.is_replaced {
            true => Err(EntryError::PackageNotDirectory),
            false => Ok(self.root),
        }
    }

    fn max_depth(&self) -> u64 {
        self.budget.limits.depth
    }

    /// Adds a layer on top. Its whiteouts are applied before its other entries, so they only remove entries of lower
    /// layers. If several entries have the same path, the last one is used.
    pub(crate) fn apply(&mut self, entries: Vec<LayerEntry>) -> Result<(), (Vec<u8>, EntryError)> {
        let (hides, adds): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| matches!(entry.kind, Kind::Whiteout | Kind::Opaque));
        for entry in hides {
            let opaque = matches!(entry.kind, Kind::Opaque);
            match self.hide(&entry.path, opaque) {
                Ok(()) | Err(Refused::Elsewhere) => {}
                Err(Refused::Entry(error)) => return Err((entry.path, error)),
            }
        }
        for entry in adds {
            let path = entry.path.clone();
            match self.add(entry) {
                Ok(()) => {}
                Err(Refused::Elsewhere) => self.budget.warn(
                    &path,
                    "left out an entry that a symlink leads out of /skyhook-package",
                ),
                Err(Refused::Entry(error)) => return Err((path, error)),
            }
        }
        Ok(())
    }

    fn hide(&mut self, path: &[u8], opaque: bool) -> Result<(), Refused> {
        if path.is_empty() && !opaque {
            self.root = None;
            self.is_replaced = false;
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

    fn add(&mut self, entry: LayerEntry) -> Result<(), Refused> {
        let parts = split(&entry.path);
        let Some((name, parents)) = parts.split_last() else {
            if let Kind::Dir = entry.kind {
                self.root.get_or_insert_with(Dir::implied).meta = entry.meta;
                self.is_replaced = false;
            } else {
                // A later entry or layer may make the directory again.
                self.root = None;
                self.is_replaced = true;
            }
            return Ok(());
        };
        if self.is_replaced {
            return Err(EntryError::PackageNotDirectory.into());
        }
        let at = self.resolve(parents)?;
        if at.len() as u64 + 1 > self.max_depth() {
            return Err(EntryError::limit(Limit::Depth, self.max_depth()).into());
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
    fn linked(&self, target: &[u8]) -> Result<Node, Refused> {
        let missing = || {
            Refused::Entry(EntryError::LinkMissing {
                target: super::lossy(target),
            })
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
            }
            .into()),
            Some(node) => {
                if let Node::Symlink { target, .. } = node {
                    self.budget.take_names_bytes(target.len())?;
                }
                Ok(node.clone())
            }
            None => Err(missing()),
        }
    }

    /// The path of a directory without symlinks: those in `parts` are followed inside the package. Parts that do not
    /// exist stay as they are.
    fn resolve(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, Refused> {
        let mut real: Vec<Vec<u8>> = Vec::new();
        // The directories on the way, from the package's directory to the one at `real`, if they exist.
        let mut dirs = vec![self.root.as_ref()];
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            self.budget.take_path_step()?;
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.pop().ok_or(Refused::Elsewhere)?;
                    dirs.pop();
                    continue;
                }
                _ => {}
            }
            let dir = dirs.last().copied().flatten();
            match dir.and_then(|dir| dir.children.get(&part)) {
                None => {
                    real.push(part);
                    dirs.push(None);
                }
                Some(Node::Dir(dir)) => {
                    real.push(part);
                    dirs.push(Some(dir));
                }
                Some(Node::Symlink { target, .. }) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(EntryError::TooManySymlinks.into());
                    }
                    let target = relative_target(target, &mut real)?;
                    dirs.truncate(real.len() + 1);
                    pending.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(Node::File(_)) => {
                    return Err(EntryError::ParentNotDirectory.into());
                }
            }
            if real.len() as u64 > self.max_depth() {
                return Err(EntryError::limit(Limit::Depth, self.max_depth()).into());
            }
        }
        Ok(real)
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
            let next = match dir.children.entry(part.clone()) {
                Entry::Occupied(next) => next.into_mut(),
                Entry::Vacant(place) => {
                    self.budget.take_package_entry()?;
                    place.insert(Node::Dir(Dir::implied()))
                }
            };
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
fn relative_target<'a>(target: &'a [u8], real: &mut Vec<Vec<u8>>) -> Result<&'a [u8], Refused> {
    let Some(absolute) = target.strip_prefix(b"/") else {
        return Ok(target);
    };
    match absolute.strip_prefix(PACKAGE_DIR) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
            real.clear();
            Ok(rest)
        }
        _ => Err(Refused::Elsewhere),
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
