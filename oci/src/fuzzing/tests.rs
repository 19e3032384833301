//! Runs the fuzz targets with the seed corpus, and with seeds that proptest has edited.

#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 12] = [
    ("tar", super::tar),
    ("config_json", super::config_json),
    ("reference", super::reference),
    ("docker_config", super::docker_config),
    ("image_documents", super::image_documents),
    ("registry_files", super::registry_files),
    ("proxy_variables", super::proxy_variables),
    ("credential_provider", super::credential_provider),
    ("challenge", super::challenge),
    ("certificates", super::certificates),
    ("content_range", super::content_range),
    ("platform", super::platform),
];

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[derive(Debug, Clone)]
enum Edit {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let interesting = prop_oneof![
        any::<u8>(),
        proptest::sample::select(&b"\0/.\"{}[]0189LKxgS512:@=-_\xff"[..])
    ];
    prop_oneof![
        4 => (any::<usize>(), interesting).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => any::<usize>().prop_map(Edit::Cut),
        1 => (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (any::<usize>(), 1usize..1024).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ]
}

fn apply(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let at = |at: &usize| at % (bytes.len() + 1);
        match edit {
            Edit::Set(index, byte) if !bytes.is_empty() => {
                let index = index % bytes.len();
                bytes[index] = *byte;
            }
            Edit::Set(..) => {}
            Edit::Cut(index) => bytes.truncate(at(index)),
            Edit::Insert(index, more) => {
                let index = at(index);
                bytes.splice(index..index, more.iter().copied());
            }
            Edit::Repeat(index, count) => {
                let index = at(index);
                let piece = bytes[index..bytes.len().min(index + count)].to_vec();
                bytes.splice(index..index, piece);
            }
        }
    }
    bytes
}

/// Corrects the header checksums of an edited archive. With wrong checksums, the parser would stop before it reads
/// the edited fields.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for header in bytes.chunks_exact_mut(512) {
        if header[257..262] == *b"ustar" {
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

#[test]
fn every_seed_is_taken() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 4, "{name} has few seeds");
        seeds.iter().for_each(|seed| target(seed));
    }
}

#[test]
fn every_target_holds_over_edited_seeds() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        let input = (
            proptest::sample::select(seeds),
            proptest::collection::vec(edit(), 0..8),
        );
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 4000,
            ..ProptestConfig::default()
        });
        runner
            .run(&input, |(seed, edits)| {
                let bytes = apply(seed, &edits);
                target(&bytes);
                if name == "tar" {
                    target(&with_checksums(bytes));
                }
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
