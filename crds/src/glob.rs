//! Patterns as Go's `filepath.Match` reads them: the keys of `configInterrupts`.

/// True when `pattern` matches all of `name`: `*` and `?` stop at `/`, `[a-z]` and `[^a-z]` are classes, `\` escapes. A
/// malformed pattern matches nothing.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    at(&pattern, &name)
}

fn at(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => {
            let reach = name.iter().position(|c| *c == '/').unwrap_or(name.len());
            (0..=reach).any(|n| at(rest, &name[n..]))
        }
        ['?', rest @ ..] => match name {
            [c, tail @ ..] if *c != '/' => at(rest, tail),
            [..] => false,
        },
        ['[', rest @ ..] => match (class(rest, name.first().copied()), name) {
            (Some((true, used)), [c, tail @ ..]) if *c != '/' => at(&rest[used..], tail),
            (Some(_) | None, _) => false,
        },
        ['\\', c, rest @ ..] => name.first() == Some(c) && at(rest, &name[1..]),
        ['\\'] => false,
        [c, rest @ ..] => name.first() == Some(c) && at(rest, &name[1..]),
    }
}

/// Reads a class up to its `]`: whether `c` is in it, and how many characters it took.
fn class(pattern: &[char], c: Option<char>) -> Option<(bool, usize)> {
    let negated = pattern.first() == Some(&'^');
    let mut i = usize::from(negated);
    let start = i;
    let mut found = false;
    loop {
        if pattern.get(i) == Some(&']') && i > start {
            return Some((c.is_some() && found != negated, i + 1));
        }
        let (low, next) = literal(pattern, i)?;
        i = next;
        let mut high = low;
        if pattern.get(i) == Some(&'-') {
            (high, i) = literal(pattern, i + 1)?;
        }
        found |= c.is_some_and(|c| (low..=high).contains(&c));
    }
}

fn literal(pattern: &[char], i: usize) -> Option<(char, usize)> {
    match pattern.get(i)? {
        '\\' => Some((*pattern.get(i + 1)?, i + 2)),
        '-' | ']' => None,
        c => Some((*c, i + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_matches() {
        // From Go's path/filepath/match_test.go.
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("[x\\-]", "z", false),
            ("[]a]", "]", false),
            ("[-]", "-", false),
            ("[x-]", "x", false),
            ("[a-b-c]", "a", false),
            ("[", "a", false),
            ("[^", "a", false),
            ("a[", "a", false),
            ("*x", "xxx", true),
            ("service_*", "service_containerd.conf", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} on {name}");
        }
    }
}
