//! Headers as programs of several decades write them. What each row wants is what Go's `archive/tar` makes of it.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;
use crate::digest::Algorithm;
use crate::limits::{Budget, Limits};

/// A header with these fields, and its checksum.
fn header(flag: u8, name: &[u8], size: &[u8], edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..124 + size.len()].copy_from_slice(size);
    block[136..147].copy_from_slice(b"00000000005");
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    with_checksum(block)
}

fn with_checksum(mut block: [u8; BLOCK]) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn plain(flag: u8, name: &str) -> Vec<u8> {
    header(flag, name.as_bytes(), b"0", |_| {})
}

/// An extension header with this content.
fn special(flag: u8, content: &[u8]) -> Vec<u8> {
    let size = format!("{:o}", content.len());
    let mut bytes = header(flag, b"special", size.as_bytes(), |_| {});
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length += 1;
        }
        content.extend_from_slice(format!("{length}{rest}").as_bytes());
    }
    special(b'x', &content)
}

/// Reads all entries of an archive.
fn read(archive: &[u8]) -> Result<Vec<Member>, String> {
    let limits = Limits::default();
    let budget = Budget::new(&limits);
    let mut window = Window::new(archive, 1 << 20, Algorithm::Sha256, &budget);
    let mut members = Vec::new();
    let text = |error: LayerError| crate::chain(&error);
    while let Some(member) = next(&mut window).map_err(text)? {
        window.pass(member.stored, |_| Ok(())).map_err(text)?;
        window.skip_padding(member.padding).map_err(text)?;
        members.push(member);
    }
    Ok(members)
}

fn one(parts: &[Vec<u8>]) -> Member {
    let mut members = read(&parts.concat()).unwrap();
    assert_eq!(members.len(), 1, "{members:?}");
    members.remove(0)
}

fn content(length: usize) -> Vec<u8> {
    vec![b'x'; length.next_multiple_of(BLOCK)]
}

#[test]
fn names_come_from_all_the_places_where_programs_put_them() {
    let long = "n".repeat(120);
    let with_prefix = |edit: fn(&mut [u8; BLOCK])| header(b'0', b"name", b"0", edit);
    type Row<'a> = (&'a str, Vec<Vec<u8>>, &'a [u8]);
    let table: [Row<'_>; 13] = [
        ("ustar", vec![plain(b'0', "./a//b")], b"./a//b"),
        (
            "V7",
            vec![header(0, b"old", b"0", |block| block[257..265].fill(0))],
            b"old",
        ),
        (
            "not UTF-8",
            vec![header(b'0', b"na\xefve", b"0", |_| {})],
            b"na\xefve",
        ),
        (
            "all 100 bytes",
            vec![header(b'0', &[b'f'; 100], b"0", |_| {})],
            &[b'f'; 100],
        ),
        (
            "prefix",
            vec![with_prefix(|block| block[345..348].copy_from_slice(b"dir"))],
            b"dir/name",
        ),
        (
            "star has times after its prefix",
            vec![with_prefix(|block| {
                block[345..476].fill(b'p');
                block[476..487].copy_from_slice(b"00000000001");
                block[508..512].copy_from_slice(b"tar\0");
            })],
            &[&[b'p'; 131][..], b"/name"].concat(),
        ),
        (
            "GNU has times instead of a prefix",
            vec![with_prefix(|block| {
                block[257..265].copy_from_slice(b"ustar  \0");
                block[345..356].copy_from_slice(b"00000000001");
            })],
            b"name",
        ),
        (
            "old Go wrote a prefix into GNU headers",
            vec![with_prefix(|block| {
                block[257..265].copy_from_slice(b"ustar  \0");
                block[345..348].copy_from_slice(b"dir");
            })],
            b"dir/name",
        ),
        (
            "GNU long name",
            vec![
                special(b'L', format!("{long}\0").as_bytes()),
                plain(b'0', "n"),
            ],
            long.as_bytes(),
        ),
        (
            "PAX path",
            vec![pax(&[("path", &long)]), plain(b'0', "n")],
            long.as_bytes(),
        ),
        (
            "an empty PAX path says nothing",
            vec![pax(&[("path", "")]), plain(b'0', "n")],
            b"n",
        ),
        (
            "the last of two headers counts",
            vec![
                pax(&[("path", "first")]),
                pax(&[("path", "second")]),
                plain(b'0', "n"),
            ],
            b"second",
        ),
        (
            "a GNU long name counts more than a PAX path",
            vec![
                special(b'L', b"gnu\0"),
                pax(&[("path", "pax")]),
                plain(b'0', "n"),
            ],
            b"gnu",
        ),
    ];
    for (name, parts, want) in table {
        assert_eq!(lossy(&one(&parts).name), lossy(want), "{name}");
    }
    // A link's target has the same places.
    let link = header(b'2', b"l", b"0", |block| {
        block[157..163].copy_from_slice(b"target");
    });
    assert_eq!(one(std::slice::from_ref(&link)).link, b"target");
    assert_eq!(one(&[special(b'K', b"gnu\0"), link.clone()]).link, b"gnu");
    assert_eq!(one(&[pax(&[("linkpath", "pax")]), link]).link, b"pax");
}

#[test]
fn types_decide_whether_content_follows() {
    let sized = |flag: u8, name: &[u8]| header(flag, name, b"00000000003", |_| {});
    for (flag, name, kind, stored) in [
        (b'0', &b"f"[..], MemberKind::File, 3),
        (0, b"f", MemberKind::File, 3),
        (b'7', b"f", MemberKind::File, 3),
        // A directory of V7 Unix. Only such a header means one with a slash.
        (0, b"d/", MemberKind::Dir, 0),
        (b'0', b"d/", MemberKind::File, 3),
        (b'5', b"d", MemberKind::Dir, 0),
        (b'1', b"h", MemberKind::Link, 0),
        (b'2', b"s", MemberKind::Symlink, 0),
        (b'3', b"c", MemberKind::CharDevice, 0),
        (b'4', b"b", MemberKind::BlockDevice, 0),
        (b'6', b"p", MemberKind::Fifo, 0),
        (b'Z', b"z", MemberKind::Other(b'Z'), 3),
    ] {
        let mut archive = sized(flag, name);
        if stored > 0 {
            archive.extend(content(3));
        }
        archive.extend(plain(b'0', "next"));
        let members = read(&archive).unwrap();
        assert_eq!(members.len(), 2, "{flag}");
        assert_eq!(
            (members[0].kind, members[0].stored),
            (kind, stored),
            "{flag}"
        );
    }
    // A PAX size of something that has no content.
    let member = one(&[pax(&[("size", "99")]), plain(b'5', "d")]);
    assert_eq!((member.kind, member.stored), (MemberKind::Dir, 0));
}

#[test]
fn numbers_are_octal_or_binary_and_padded_in_any_way() {
    let base256 = |value: u64| [&[0x80, 0, 0, 0][..], &value.to_be_bytes()].concat();
    let table: [(&[u8], Option<i64>); 14] = [
        (b"00000000644\0", Some(0o644)),
        (b"        644 ", Some(0o644)),
        (b"644\0\0\0\0\0\0\0\0\0", Some(0o644)),
        (b"\0\0  644 \0\0\0\0", Some(0o644)),
        (b"777777777777", Some(0o777_777_777_777)),
        (b"", Some(0)),
        (b"  \0\0", Some(0)),
        (b"644\x009\0", Some(0o644)),
        (b"648", None),
        (b"-1", None),
        (b"0x1", None),
        (&base256(1 << 40), Some(1 << 40)),
        (&[0xff; 12], Some(-1)),
        (&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
    ];
    for (bytes, want) in table {
        assert_eq!(number(bytes), want, "{}", lossy(bytes));
    }
    let big = one(&[header(b'5', b"d", &base256(1 << 40), |_| {})]);
    assert_eq!(big.stored, 0);
    let old = one(&[header(b'0', b"f", b"0", |block| block[136..148].fill(0xff))]);
    assert_eq!(old.mtime, (0, 0), "times before 1970 become 1970");
    for (text, want) in [
        ("1500000000.25", (1_500_000_000, 250_000_000)),
        ("1500000000", (1_500_000_000, 0)),
        ("1500000000.1234567899", (1_500_000_000, 123_456_789)),
        ("-5.5", (0, 0)),
        ("yesterday", (5, 0)),
    ] {
        let member = one(&[pax(&[("mtime", text)]), plain(b'0', "f")]);
        assert_eq!(member.mtime, want, "{text}");
    }
    // The checksum as some old programs compute it: with signed bytes.
    let mut block = [0; BLOCK];
    block.copy_from_slice(&header(b'0', b"na\xefve", b"0", |_| {}));
    block[148..156].fill(b' ');
    let sum: i64 = block.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(one(&[block.to_vec()]).name, b"na\xefve");
}

/// Owners that nobody can have, keys in other alphabets, and headers for all files: nothing of them is used.
#[test]
fn what_is_not_used_is_not_read() {
    let odd = header(b'0', b"f", b"0", |block| {
        block[108..124].fill(0xff);
        block[329..345].fill(b'?');
    });
    let records = [
        ("uid", "-1"),
        ("gid", "4294967296"),
        ("atime", "never"),
        ("comment", "\u{fffd}"),
        ("SCHILY.xattr.user.x", "a=b"),
        ("LIBARCHIVE.creationtime", "1"),
    ];
    assert_eq!(one(&[pax(&records), odd]).name, b"f");
    let not_utf8 = special(b'x', b"7 \xff\xfe=x\n");
    assert_eq!(one(&[not_utf8, plain(b'0', "f")]).name, b"f");
    let global = special(b'g', b"16 comment=hello\n"[..16].as_ref());
    assert!(read(&[global, plain(b'0', "f")].concat()).is_err());
    let global = special(b'g', b"17 comment=hello\n");
    let archive = [global.clone(), plain(b'0', "f"), global, plain(b'0', "g")];
    assert_eq!(read(&archive.concat()).unwrap().len(), 2);
    // V7 Unix had no extension headers, but a reader takes them.
    let old = header(b'L', b"x", b"4", |block| block[257..265].fill(0));
    let long = [old, b"long".to_vec(), vec![0; BLOCK - 4]].concat();
    assert_eq!(one(&[long, plain(b'0', "f")]).name, b"long");
}

#[test]
fn sizes_of_pax_count_and_wrong_ones_are_errors() {
    let file = |records: &[(&str, &str)]| [pax(records), plain(b'0', "f"), content(3)].concat();
    let members = read(&file(&[("size", "3")])).unwrap();
    assert_eq!((members.len(), members[0].stored), (1, 3));
    for (size, want) in [
        ("-1", "invalid PAX size value: \"-1\""),
        ("3x", "invalid PAX size value: \"3x\""),
    ] {
        let error = read(&file(&[("size", size)])).unwrap_err();
        assert!(error.ends_with(want), "{error}");
    }
    let negative = header(b'0', b"f", &[0xff; 12], |_| {});
    let error = read(&negative).unwrap_err();
    assert!(
        error.ends_with("size is \"-1\", which is not a number that is allowed there"),
        "{error}"
    );
}

#[test]
fn ends_of_archives() {
    let file = plain(b'0', "f");
    let zeros = |count: usize| vec![0; count];
    let table: [(&str, Vec<u8>, Result<usize, &str>); 10] = [
        ("nothing at all", Vec::new(), Ok(0)),
        ("only an end", zeros(1024), Ok(0)),
        ("no end", file.clone(), Ok(1)),
        ("half an end", [file.clone(), zeros(512)].concat(), Ok(1)),
        (
            "a piece of an end",
            [file.clone(), zeros(100)].concat(),
            Ok(1),
        ),
        (
            "garbage after the end",
            [file.clone(), zeros(1024), b"garbage".to_vec()].concat(),
            Ok(1),
        ),
        (
            "another archive after the end",
            [file.clone(), zeros(1024), file.clone()].concat(),
            Ok(1),
        ),
        (
            "another entry after half an end",
            [file.clone(), zeros(512), file.clone()].concat(),
            Err("one block of zeros is no end"),
        ),
        (
            "garbage instead of an end",
            [file.clone(), b"garbage".to_vec()].concat(),
            Err("ends in the middle of an entry"),
        ),
        (
            "a piece of a header",
            file[..300].to_vec(),
            Err("ends in the middle"),
        ),
    ];
    for (name, archive, want) in table {
        match (read(&archive), want) {
            (Ok(members), Ok(count)) => assert_eq!(members.len(), count, "{name}"),
            (Err(error), Err(want)) => assert!(error.contains(want), "{name}: {error}"),
            (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
        }
    }
}

#[test]
fn sparse_files_of_every_form() {
    let region = |offset, length| Region { offset, length };
    let gnu = |edit: fn(&mut [u8; BLOCK])| {
        header(b'S', b"f", b"2", |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[386..397].copy_from_slice(b"00000000012");
            block[398..409].copy_from_slice(b"00000000002");
            block[483..494].copy_from_slice(b"00000000014");
            edit(block);
        })
    };
    let file = |records: &[(&str, &str)], size: &[u8]| {
        [pax(records), header(b'0', b"f", size, |_| {})].concat()
    };
    let mut more = vec![0; BLOCK];
    more[..11].copy_from_slice(b"00000000100");
    more[12..23].copy_from_slice(b"00000000000");
    let lines = [b"1\n10\n2\n".to_vec(), vec![0; BLOCK - 7]].concat();
    let table = [
        (
            "GNU",
            [gnu(|_| {}), content(2)].concat(),
            vec![region(10, 2)],
        ),
        (
            "GNU with more blocks",
            [gnu(|block| block[482] = 1), more, content(2)].concat(),
            vec![region(10, 2), region(64, 0)],
        ),
        (
            "PAX 0.0",
            [
                file(
                    &[
                        ("GNU.sparse.size", "12"),
                        ("GNU.sparse.numblocks", "1"),
                        ("GNU.sparse.offset", "10"),
                        ("GNU.sparse.numbytes", "2"),
                    ],
                    b"2",
                ),
                content(2),
            ]
            .concat(),
            vec![region(10, 2)],
        ),
        (
            "PAX 0.1",
            [
                file(
                    &[
                        ("GNU.sparse.size", "12"),
                        ("GNU.sparse.numblocks", "1"),
                        ("GNU.sparse.map", "10,2"),
                    ],
                    b"2",
                ),
                content(2),
            ]
            .concat(),
            vec![region(10, 2)],
        ),
        (
            "PAX 1.0",
            [
                file(
                    &[
                        ("GNU.sparse.major", "1"),
                        ("GNU.sparse.minor", "0"),
                        ("GNU.sparse.realsize", "12"),
                        ("GNU.sparse.name", "f"),
                    ],
                    b"1002",
                ),
                lines,
                content(2),
            ]
            .concat(),
            vec![region(10, 2)],
        ),
    ];
    for (name, archive, map) in table {
        let member = one(&[archive]);
        assert_eq!((member.stored, member.size), (2, 12), "{name}");
        assert_eq!(member.sparse, Some(map), "{name}");
        assert_eq!(member.name, b"f", "{name}");
    }
    // A version that nobody knows is an ordinary file.
    let unknown = [("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")];
    let member = one(&[file(&unknown, b"2"), content(2)]);
    assert_eq!((member.size, member.sparse), (2, None));
    for (name, archive) in [
        ("odd", file(&[("GNU.sparse.map", "1,2,3")], b"2")),
        ("not numbers", file(&[("GNU.sparse.map", "1,b")], b"2")),
        ("order", file(&[("GNU.sparse.numbytes", "1")], b"2")),
        (
            "not of GNU",
            gnu(|block| block[257..265].copy_from_slice(b"ustar\x0000")),
        ),
        ("negative", gnu(|block| block[386..398].fill(0xff))),
    ] {
        assert!(read(&[archive, content(2)].concat()).is_err(), "{name}");
    }
}
