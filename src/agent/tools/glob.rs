//! Globs as git matches them, on bytes: `*` and `?` within a name, `**` across directories, `[…]`.
//! Pure. <https://git-scm.com/docs/gitignore>

use crate::limits;

/// Returns whether a glob matches a path as a whole, name by name.
pub fn matches_path(glob: &[u8], path: &[u8]) -> bool {
    let globs = split_names(glob);
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let (mut glob, mut name) = (0, 0);
    // Where to continue after a mismatch: behind the last `**`, which then takes one name more.
    let mut retry = None;
    loop {
        match globs.get(glob) {
            Some(stars) if is_double_star(stars) => {
                if glob + 1 == globs.len() {
                    // At the end it stands for what is inside, not for the directory itself.
                    return name < names.len();
                }
                glob += 1;
                retry = Some((glob, name));
                continue;
            }
            None if name == names.len() => return true,
            Some(one) if names.get(name).is_some_and(|name| matches_name(one, name)) => {
                (glob, name) = (glob + 1, name + 1);
                continue;
            }
            _ => {}
        }
        let Some((after, taken)) = retry.filter(|(_, taken)| *taken < names.len()) else {
            return false;
        };
        retry = Some((after, taken + 1));
        (glob, name) = (after, taken + 1);
    }
}

/// Returns the globs of the names in a glob. A slash in a class separates nothing, one that is
/// escaped does.
fn split_names(glob: &[u8]) -> Vec<&[u8]> {
    let mut globs = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(rest) = glob.get(at..).filter(|rest| !rest.is_empty()) {
        let length = match rest {
            [b'/', ..] => 1,
            [b'\\', b'/', ..] => 2,
            [b'\\', _, ..] => {
                at += 2;
                continue;
            }
            [b'[', class @ ..] if let Some((_, after)) = match_class(class, 0) => {
                at = glob.len() - after.len();
                continue;
            }
            _ => {
                at += 1;
                continue;
            }
        };
        globs.extend(glob.get(start..at));
        at += length;
        start = at;
    }
    globs.extend(glob.get(start..));
    globs
}

/// Returns whether the backslashes at the end of `text` escape the byte after it.
pub fn is_escaped(text: &[u8]) -> bool {
    text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

fn is_double_star(glob: &[u8]) -> bool {
    glob.len() > 1 && glob.iter().all(|byte| *byte == b'*')
}

/// Returns whether a glob matches a name as a whole. In time that grows with their product.
pub fn matches_name(glob: &[u8], name: &[u8]) -> bool {
    let (mut rest, mut at) = (glob, 0);
    // Where to continue after a mismatch: behind the last `*`, which then takes one byte more.
    let mut retry = None;
    loop {
        if let Some(after) = rest.strip_prefix(b"*") {
            rest = after;
            retry = Some((after, at));
            continue;
        }
        match name.get(at) {
            None if rest.is_empty() => return true,
            Some(byte) if let Some(after) = match_byte(rest, *byte) => {
                (rest, at) = (after, at + 1);
                continue;
            }
            _ => {}
        }
        let Some((after, taken)) = retry.filter(|(_, taken)| *taken < name.len()) else {
            return false;
        };
        retry = Some((after, taken + 1));
        (rest, at) = (after, taken + 1);
    }
}

/// Returns the glob after its first element if that matches `byte`.
fn match_byte(glob: &[u8], byte: u8) -> Option<&[u8]> {
    match glob {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => {
            let (matches, rest) = match_class(rest, byte)?;
            matches.then_some(rest)
        }
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [b'\\'] | [] => None,
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
    }
}

/// Returns whether a class whose `[` was read matches `byte`, and the glob after it; `None`
/// if it has no end.
fn match_class(class: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match class {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let mut matches = false;
    let mut first = true;
    loop {
        if let [b']', after @ ..] = rest
            && !first
        {
            return Some((matches != negated, after));
        }
        first = false;
        if let Some((name, after)) = named_class(rest) {
            matches |= is_in_class(name, byte)?;
            rest = after;
            continue;
        }
        let (low, after) = class_byte(rest)?;
        (matches, rest) = match after {
            [b'-', high @ ..] if !high.starts_with(b"]") => {
                let (high, after) = class_byte(high)?;
                (matches || (low..=high).contains(&byte), after)
            }
            _ => (matches || low == byte, after),
        };
    }
}

fn class_byte(class: &[u8]) -> Option<(u8, &[u8])> {
    match class {
        [b'\\', escaped, rest @ ..] => Some((*escaped, rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

/// Returns the name in `[:name:]` and what comes after it.
fn named_class(class: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = class.strip_prefix(b"[:")?;
    let end = inside.windows(2).position(|window| window == b":]")?;
    Some((inside.get(..end)?, inside.get(end + 2..)?))
}

/// Returns whether `byte` is in a class of POSIX; `None` if there is no such class.
fn is_in_class(name: &[u8], byte: u8) -> Option<bool> {
    Some(match name {
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"alpha" => byte.is_ascii_alphabetic(),
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"cntrl" => byte.is_ascii_control(),
        b"digit" => byte.is_ascii_digit(),
        b"graph" => byte.is_ascii_graphic(),
        b"lower" => byte.is_ascii_lowercase(),
        b"print" => matches!(byte, b' '..=b'~'),
        b"punct" => byte.is_ascii_punctuation(),
        b"space" => matches!(byte, b'\t'..=b'\r' | b' '),
        b"upper" => byte.is_ascii_uppercase(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => return None,
    })
}

/// Returns the globs that one with alternatives stands for: `{a,b}.rs` for `a.rs` and `b.rs`.
///
/// # Errors
/// For the model: a brace without its partner, too many alternatives.
pub fn alternatives(glob: &str) -> Result<Vec<String>, String> {
    let mut whole = Vec::new();
    let mut pending = vec![glob.to_owned()];
    while let Some(glob) = pending.pop() {
        let Some((before, choices, after)) = first_braces(&glob)? else {
            whole.push(glob);
            continue;
        };
        // The first choice is taken up first.
        pending.extend(choices.iter().rev().map(|choice| format!("{before}{choice}{after}")));
        if whole.len() + pending.len() > limits::GLOB_ALTERNATIVES_MAX {
            let most = limits::GLOB_ALTERNATIVES_MAX;
            return Err(format!("the glob has more than {most} alternatives"));
        }
    }
    Ok(whole)
}

/// The text before braces, the choices in them, and the text after them.
type Braces<'g> = (&'g str, Vec<&'g str>, &'g str);

/// Returns the first braces of a glob.
fn first_braces(glob: &str) -> Result<Option<Braces<'_>>, String> {
    let mut depth = 0_usize;
    let (mut open, mut begin) = (0, 0);
    let mut choices = Vec::new();
    let mut escaped = false;
    for (at, c) in glob.char_indices() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '\\' => escaped = true,
            '{' => {
                if depth == 0 {
                    (open, begin) = (at, at + 1);
                }
                depth += 1;
            }
            ',' if depth == 1 => {
                choices.extend(glob.get(begin..at));
                begin = at + 1;
            }
            '}' if depth == 1 => {
                choices.extend(glob.get(begin..at));
                let (before, after) = (glob.get(..open), glob.get(at + 1..));
                return Ok(before.zip(after).map(|(before, after)| (before, choices, after)));
            }
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    match depth {
        0 => Ok(None),
        _ => Err(format!("character {} of the glob: a '}}' is missing", glob.chars().count() + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_paths() {
        let cases = [
            ("*.rs", "main.rs", true),
            ("*.rs", "src/main.rs", false),
            ("**/*.rs", "main.rs", true),
            ("**/*.rs", "src/a/main.rs", true),
            ("src/**", "src/a/b", true),
            ("src/**", "src", false),
            ("src/**/b", "src/b", true),
            ("src/**/b", "src/x/y/b", true),
            ("src/**/b", "srcb", false),
            ("**/a/**/b", "x/a/a/c/b", true),
            ("a**b", "axxb", true),
            ("a**b", "a/b", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*", ".hidden", true),
            ("[!a]*", "b", true),
            ("[!a]*", "a", false),
            ("[^a]", "b", true),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            ("[0-9].txt", "7.txt", true),
            ("[[:digit:]x]", "7", true),
            ("[[:digit:]x]", "y", false),
            ("[a", "[a", false),
            (r"[\]]", "]", true),
            (r"a\/b", "a/b", true),
            ("x/[a/b]", "x/b", true),
            ("x/[a/b", "x/[a/b", false),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("a.c", "abc", false),
            ("*a*b*c", "xxaxbxxc", true),
            ("*a*b*c", "xxaxbxx", false),
        ];
        for (glob, path, wanted) in cases {
            assert_eq!(matches_path(glob.as_bytes(), path.as_bytes()), wanted, "{glob} {path}");
        }
    }

    #[test]
    fn a_glob_with_many_stars_takes_no_exponential_time() {
        let name = "a".repeat(2_000);
        assert!(!matches_name(format!("{}b", "*a".repeat(200)).as_bytes(), name.as_bytes()));
        let (glob, path) = (format!("{}b", "**/a/".repeat(200)), "a/".repeat(2_000));
        assert!(!matches_path(glob.as_bytes(), path.as_bytes()));
    }

    #[test]
    fn braces_stand_for_alternatives() {
        assert_eq!(alternatives("*.{js,ts{,x}}").unwrap(), ["*.js", "*.ts", "*.tsx"]);
        assert_eq!(alternatives(r"\{a,b}").unwrap(), [r"\{a,b}"]);
        assert!(alternatives("{a,b").unwrap_err().starts_with("character 5"));
        let most = format!("{{{}}}", ",".repeat(limits::GLOB_ALTERNATIVES_MAX - 1));
        assert_eq!(alternatives(&most).unwrap().len(), limits::GLOB_ALTERNATIVES_MAX);
        assert!(alternatives(&"{a,b}".repeat(64)).is_err());
    }
}
