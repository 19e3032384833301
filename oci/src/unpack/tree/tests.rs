use proptest::prelude::*;

use super::super::entry::{Kind, LayerEntry, Meta};
use super::*;
use crate::limits::Limits;

fn meta() -> Meta {
    Meta {
        mode: 0o644,
        mtime: (0, 0),
    }
}

fn entry(path: &str, kind: Kind) -> LayerEntry {
    LayerEntry {
        path: path.into(),
        kind,
        meta: meta(),
    }
}

/// All paths in a tree with their kinds, to compare whole trees.
fn flat(dir: &Dir) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, node) in &dir.children {
        let name = String::from_utf8_lossy(name);
        match node {
            Node::Dir(dir) => {
                lines.push(format!("{name}/"));
                lines.extend(flat(dir).into_iter().map(|below| format!("{name}/{below}")));
            }
            Node::File((layer, index)) => lines.push(format!("{name} {layer}.{index}")),
            Node::Symlink { target, .. } => {
                lines.push(format!("{name} -> {}", String::from_utf8_lossy(target)));
            }
        }
    }
    lines
}

#[test]
fn an_empty_image_has_no_package_and_implied_parents_make_one() {
    let limits = Limits::default();
    let budget = Budget::new(&limits);
    let mut tree = Tree::new(&budget);
    tree.apply(vec![entry("a", Kind::Whiteout), entry("", Kind::Opaque)])
        .unwrap();
    assert_eq!(tree.into_root(), Ok(None));
    let mut tree = Tree::new(&budget);
    tree.apply(vec![entry("a/b", Kind::File((0, 0)))]).unwrap();
    assert_eq!(flat(&tree.into_root().unwrap().unwrap()), ["a/", "a/b 0.0"]);
}

#[test]
fn a_link_chain_within_the_package_is_followed_and_its_end_is_written() {
    let limits = Limits::default();
    let budget = Budget::new(&limits);
    let mut tree = Tree::new(&budget);
    let link = |path: &str, target: &str| entry(path, Kind::Symlink(target.into()));
    tree.apply(vec![
        entry("d/e", Kind::Dir),
        link("d/up", ".."),
        link("x", "d/up/y"),
        link("y", "/skyhook-package/./d//e/"),
        entry("x/f", Kind::File((0, 1))),
        entry("x/g", Kind::Hardlink(b"y/f".to_vec())),
    ])
    .unwrap();
    let want = [
        "d/",
        "d/e/",
        "d/e/f 0.1",
        "d/e/g 0.1",
        "d/up -> ..",
        "x -> d/up/y",
        "y -> /skyhook-package/./d//e/",
    ];
    assert_eq!(flat(&tree.into_root().unwrap().unwrap()), want);
}

fn any_path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn any_entry() -> impl Strategy<Value = LayerEntry> {
    let kind = prop_oneof![
        Just(Kind::Dir),
        (0u32..4).prop_map(|index| Kind::File((0, index))),
        prop_oneof![any_path(), Just("..".to_owned()), Just("/etc".to_owned())]
            .prop_map(|target| Kind::Symlink(target.into())),
        any_path().prop_map(|target| Kind::Hardlink(target.into())),
        Just(Kind::Whiteout),
        Just(Kind::Opaque),
    ];
    (any_path(), kind).prop_map(|(path, kind)| entry(&path, kind))
}

proptest! {
    /// Applying a layer a second time changes nothing, unless the layer has whiteouts.
    #[test]
    fn applying_a_layer_twice_is_applying_it_once(entries in proptest::collection::vec(any_entry(), 0..12)) {
        let takes = |entry: &LayerEntry| matches!(entry.kind, Kind::Whiteout | Kind::Opaque);
        let entries: Vec<_> = entries.into_iter().filter(|entry| !takes(entry)).collect();
        // Only layers of directories and files are compared: a link changes where later names lead to.
        let plain = entries.iter().all(|entry| matches!(entry.kind, Kind::Dir | Kind::File(_)));
        let limits = Limits::default();
        let budget = Budget::new(&limits);
        let (mut once, mut twice) = (Tree::new(&budget), Tree::new(&budget));
        if once.apply(entries.clone()).is_ok() && twice.apply(entries.clone()).is_ok() {
            let again = twice.apply(entries);
            if plain && again.is_ok() {
                prop_assert_eq!(once.into_root(), twice.into_root());
            }
        }
    }

    /// After a whiteout of the whole package, only entries that are added later exist.
    #[test]
    fn a_whiteout_of_all_leaves_nothing_of_before(
        lower in proptest::collection::vec(any_entry(), 0..12),
        upper in proptest::collection::vec(any_entry(), 0..12),
    ) {
        let limits = Limits::default();
        let budget = Budget::new(&limits);
        let (mut over, mut alone) = (Tree::new(&budget), Tree::new(&budget));
        if over.apply(lower).is_ok() {
            over.apply(vec![entry("", Kind::Whiteout)]).unwrap();
            prop_assert_eq!(over.apply(upper.clone()).is_ok(), alone.apply(upper).is_ok());
            prop_assert_eq!(over.into_root(), alone.into_root());
        }
    }
}
