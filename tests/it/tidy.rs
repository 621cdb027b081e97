//! The rules of ARCHITECTURE.md and CONTRIBUTING.md, as far as a machine can check them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Without the unit tests at the end of a file.
const LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Lists the files under `folder`, by their path from the root.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if matches!(name.as_str(), ".git" | "target") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// Reads the Rust sources under `folder`: the path and the text of each.
fn sources(folder: &str) -> Vec<(String, String)> {
    let names = files(folder).into_iter().filter(|name| name.ends_with(".rs"));
    names.map(|name| (name.clone(), read(&name))).collect()
}

/// Returns a source without its comments.
fn code(text: &str) -> String {
    let without = |line: &str| match line.find("//") {
        // Not within a string, as in a URL.
        Some(at) if at == 0 || line[..at].ends_with(char::is_whitespace) => line[..at].to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// Returns the top-level module that a file belongs to: `log` for `src/log/tail.rs`.
fn top_module(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Reads the layer of each top-level module from the table in ARCHITECTURE.md.
fn layers() -> BTreeMap<String, u32> {
    let document = read("ARCHITECTURE.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    let layers = cells.filter_map(|cells| {
        Some((cells.get(1)?.trim_matches('`').to_owned(), cells.first()?.parse().ok()?))
    });
    layers.collect()
}

/// Returns the names directly after each `prefix` in `code`, those in braces one by one.
fn named(code: &str, prefix: &str) -> BTreeSet<String> {
    let first = |text: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.trim_start().split(|c| !word(c)).next().unwrap().to_owned()
    };
    let mut names = BTreeSet::new();
    for rest in code.split(prefix).skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(first(rest));
            continue;
        };
        let mut depth = 0;
        let mut begin = 0;
        for (at, c) in group.char_indices() {
            let ends = depth == 0 && matches!(c, ',' | '}');
            if ends {
                names.insert(first(&group[begin..at]));
                begin = at + 1;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn modules_use_only_modules_in_lower_layers() {
    let layers = layers();
    let sources = sources("src");
    let modules: BTreeSet<&str> = sources.iter().map(|(file, _)| top_module(file)).collect();
    assert_eq!(modules, layers.keys().map(String::as_str).collect(), "the table is not complete");
    for (file, text) in &sources {
        let here = top_module(file);
        let code = code(text);
        let mut used = named(&code, "crate::");
        // The path to the top of the crate without the word `crate`.
        let inside = file.matches('/').count() == 2 && !file.ends_with("/mod.rs");
        let top = if inside { "super::super::" } else { "super::" };
        used.extend(named(&code, top).into_iter().filter(|name| layers.contains_key(name)));
        for other in used.iter().filter(|other| *other != here) {
            let layer = layers.get(other).unwrap_or_else(|| panic!("{file}: no module {other}"));
            assert!(*layer < layers[here], "{file} uses {other}, which is not below {here}");
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_and_nowhere_else() {
    for (file, text) in sources("src") {
        let code = code(&text).replace("unsafe_code", "");
        assert!(top_module(&file) == "sys" || !code.contains("unsafe"), "{file}");
    }
}

#[test]
fn systems_differ_in_sys_and_in_paths_alone() {
    for (file, text) in sources("src") {
        let differs = ["target_os", "cfg(unix", "target_env", "target_vendor"]
            .iter()
            .any(|word| code(&text).contains(word));
        assert!(matches!(top_module(&file), "sys" | "paths") || !differs, "{file}");
    }
}

#[test]
fn nothing_is_left_undone_asleep_or_ignored() {
    // In two halves each, so that this file does not find itself.
    let undone = ["todo!", "unimplemented!", "dbg!", "FIXME", "TODO"];
    let sleeping = [concat!("thread::", "sleep"), concat!("#[", "ignore")];
    for (file, text) in sources("src") {
        for word in undone.iter().chain(&sleeping) {
            assert!(!text.contains(word), "{file}: {word}");
        }
    }
    for (file, text) in sources("tests") {
        for word in sleeping {
            assert!(!text.contains(word), "{file}: {word}");
        }
    }
}

#[test]
fn sources_state_their_purpose() {
    let silent = |(file, text): (String, String)| (!text.starts_with("//! ")).then_some(file);
    let silent: Vec<String> =
        sources("src").into_iter().chain(sources("tests")).filter_map(silent).collect();
    assert!(silent.is_empty(), "no comment on the purpose: {silent:?}");
}

#[test]
fn sources_can_be_read_in_one_sitting() {
    // Tests in a separate folder are read one by one.
    let program = |(file, _): &(String, String)| !file.contains("/tests/");
    for (file, text) in sources("src").into_iter().filter(program) {
        let program = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = program.lines().count();
        assert!(lines <= LINES_MAX, "{file}: {lines} lines");
    }
}

#[test]
fn lines_fit_on_a_screen() {
    let mut longer = Vec::new();
    for (file, text) in sources("src").into_iter().chain(sources("tests")) {
        for (number, line) in (1..).zip(text.lines()) {
            // A sentence in a string stays whole, so that it can be searched for.
            if line.chars().count() > COLUMNS_MAX && !line.contains('"') {
                longer.push(format!("{file}:{number}"));
            }
        }
    }
    assert!(longer.is_empty(), "more than {COLUMNS_MAX} columns: {longer:#?}");
}

#[test]
fn files_are_plain_text() {
    for file in files("") {
        // Inputs of tests may be as odd as they like, and pictures are no text.
        if file.starts_with("tests/data/") || file.ends_with(".png") {
            continue;
        }
        let text = String::from_utf8(fs::read(root().join(&file)).unwrap());
        let text = text.unwrap_or_else(|_| panic!("{file}: is not UTF-8"));
        assert!(text.is_empty() || text.ends_with('\n'), "{file}: has no end of line at its end");
        assert!(!text.ends_with("\n\n"), "{file}: ends with an empty line");
        for (index, line) in text.lines().enumerate() {
            let place = format!("{file}:{}", index + 1);
            let odd = |c: char| c.is_control() && !(c == '\t' && file == "Makefile");
            assert!(!line.contains(odd), "{place}: a control character");
            assert!(!line.ends_with(' ') && !line.ends_with('\t'), "{place}: a blank at its end");
        }
    }
}

/// A package of Cargo.lock: `name version`, and the names of what it needs.
struct Package {
    title: String,
    needs: Vec<String>,
}

fn locked() -> BTreeMap<String, Package> {
    let lock = read("Cargo.lock");
    let field = |section: &str, name: &str| {
        let line = section.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.map(|rest| rest.trim_end_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]\n").skip(1).map(|section| {
        let name = field(section, "name").unwrap();
        let title = format!("{name} {}", field(section, "version").unwrap());
        let list = section.split("dependencies = [\n").nth(1).unwrap_or_default();
        let needs = list.lines().take_while(|line| *line != "]");
        let needs = needs.map(|line| line.trim().trim_matches([',', '"']).to_owned());
        (name, Package { title, needs: needs.collect() })
    });
    packages.collect()
}

fn branch(name: &str, depth: usize, packages: &BTreeMap<String, Package>, tree: &mut String) {
    let package = &packages[name];
    tree.push_str(&format!("{}{}\n", "  ".repeat(depth), package.title));
    for need in &package.needs {
        branch(need, depth + 1, packages, tree);
    }
}

#[test]
fn the_dependencies_are_these() {
    let packages = locked();
    let mut tree = String::new();
    branch("opta", 0, &packages, &mut tree);
    golden("dependencies.txt", &tree);

    let direct = ["fastrand", "lexopt", "libc", "nanoserde", "regex", "rustyline", "tiny_http"];
    assert_eq!(packages["opta"].needs, direct);
    let manifest = read("Cargo.toml");
    for section in ["dev-dependencies", "build-dependencies", "[target"] {
        assert!(!manifest.contains(section), "Cargo.toml: {section}");
    }
}

/// Compares `found` with the golden file; `UPDATE=1` rewrites the file instead.
fn golden(name: &str, found: &str) {
    let path = root().join("tests/golden").join(name);
    let update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    if update {
        fs::write(path, found).unwrap();
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, golden, "tests/golden/{name} differs; UPDATE=1 rewrites it");
}

/// Returns a source of the program without its comments and its unit tests.
fn program(text: &str) -> String {
    code(text.split("\n#[cfg(test)]\nmod tests {").next().unwrap())
}

/// Reads the sources of the program without its unit tests.
fn program_sources() -> Vec<(String, String)> {
    let is_program = |file: &str| !file.contains("/tests/") && !file.ends_with("/tests.rs");
    let sources = sources("src").into_iter().filter(|(file, _)| is_program(file));
    sources.map(|(file, text)| (file, program(&text))).collect()
}

#[test]
fn no_two_types_that_other_files_see_share_a_name() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in program_sources() {
        for line in text.lines() {
            let Some(item) = line.trim_start().strip_prefix("pub") else { continue };
            let item = item.split_once(')').filter(|_| item.starts_with('(')).map_or(item, |i| i.1);
            let mut words = item.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_');
            if let Some("struct" | "enum" | "trait" | "type") = words.next() {
                let name = words.next().unwrap().to_owned();
                named.entry(name).or_default().insert(file.clone());
            }
        }
    }
    assert!(named.len() > 100, "only {} types were found", named.len());
    named.retain(|_, files| files.len() > 1);
    assert!(named.is_empty(), "one name for several types: {named:#?}");
}

/// Returns the path of the module in `file`: `log` for `src/log/mod.rs` and `src/log.rs`.
fn module(file: &str) -> Vec<String> {
    let inside = file.strip_prefix("src/").unwrap().trim_end_matches(".rs");
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    inside.split('/').map(str::to_owned).collect()
}

/// Returns the paths that a `use` tree or an expression spells after its first word, with braces
/// expanded.
fn paths(text: &str) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if let Some(group) = text.strip_prefix('{') {
        let mut depth = 0;
        let mut begin = 0;
        let mut found = Vec::new();
        for (at, c) in group.char_indices() {
            if depth == 0 && matches!(c, ',' | '}') {
                found.extend(paths(group[begin..at].trim()));
                begin = at + 1;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => return found,
                '}' => depth -= 1,
                _ => {}
            }
        }
        return found;
    }
    let tails = rest.strip_prefix("::").map_or(vec![Vec::new()], paths);
    let with_word = |tail: Vec<String>| [word.to_owned()].into_iter().chain(tail).collect();
    tails.into_iter().map(with_word).collect()
}

/// Returns the files that each file uses. The `mod.rs` of a folder may use the files in the folder,
/// and they may use it: that does not count as a cycle.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let sources = program_sources();
    let files: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|(file, _)| (module(file), file.as_str())).collect();
    let mut uses = BTreeMap::new();
    for (file, text) in &sources {
        let here = module(file);
        let mut used = BTreeSet::new();
        for (start, mut base) in
            [("crate::", vec![]), ("self::", here.clone()), ("super::", here.clone())]
        {
            if start == "super::" {
                base.pop();
            }
            for rest in text.split(start).skip(1) {
                for path in paths(rest) {
                    let mut whole: Vec<String> = base.clone();
                    for word in path {
                        if word == "super" { drop(whole.pop()) } else { whole.push(word) }
                    }
                    while !whole.is_empty() && !files.contains_key(&whole) {
                        whole.pop();
                    }
                    used.extend(files.get(&whole).map(|file| (*file).to_owned()));
                }
            }
        }
        // Modules by their bare name: declared or imported here, used as `name::…`.
        for (path, other) in &files {
            let name = path.last().unwrap();
            let is_child = path.len() == here.len() + 1 && path.starts_with(&here);
            if is_child && text.contains(&format!("{name}::")) {
                used.insert((*other).to_owned());
            }
        }
        let opens = |other: &String| file.ends_with("/mod.rs") && module(other).starts_with(&here);
        used.retain(|other| other != file && !opens(other));
        uses.insert(file.clone(), used);
    }
    uses
}

#[test]
fn no_file_uses_one_that_uses_it() {
    let uses = uses();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 300, "imports are not read");
    // Files that use no remaining file are removed until there are none: what remains is in a
    // cycle, or leads to one.
    let mut left = uses;
    loop {
        let done: BTreeSet<String> =
            left.iter().filter(|(_, used)| used.is_empty()).map(|(file, _)| file.clone()).collect();
        if done.is_empty() {
            break;
        }
        left.retain(|file, _| !done.contains(file));
        for used in left.values_mut() {
            used.retain(|file| !done.contains(file));
        }
    }
    // The same from the other end, for what only leads to a cycle.
    loop {
        let wanted: BTreeSet<String> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|file, _| wanted.contains(file));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "cycles: {left:#?}");
}
