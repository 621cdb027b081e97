//! The documents describe the program as it is: manual, help, completions and README agree with the
//! sources, in both directions.

mod api;
mod readme;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::model::Model;
use crate::page::Page;
use crate::support::{ANYTHING, Home, http, need};

use readme::plain;

const OPTA: &str = env!("CARGO_BIN_EXE_opta");
const PAGES: [&str; 9] = [
    "opta.1",
    "opta-do.1",
    "opta-chat.1",
    "opta-models.1",
    "opta-config.1",
    "opta-doctor.1",
    "opta-web.1",
    "opta-daemon.1",
    "opta-sessions.1",
];
/// The pages about a single command.
const SINGLE: [&str; 5] =
    ["opta-do.1", "opta-chat.1", "opta-models.1", "opta-doctor.1", "opta-web.1"];
/// The pages that describe commands, each with the first word of its commands, or its only command.
const GROUPS: [(&str, &str); 8] = [
    ("opta-models.1", "models"),
    ("opta-web.1", "web"),
    ("opta-config.1", "config "),
    ("opta-do.1", "do"),
    ("opta-chat.1", "chat"),
    ("opta-doctor.1", "doctor"),
    ("opta-daemon.1", "daemon "),
    ("opta-sessions.1", "sessions "),
];

fn opta(arguments: &str) -> Output {
    Command::new(OPTA).args(arguments.split_whitespace()).output().unwrap()
}

fn printed(arguments: &str) -> String {
    let output = opta(arguments);
    assert!(output.status.success(), "opta {arguments}: {output:?}");
    assert_eq!(output.stderr, b"", "opta {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the help, each entry on one line: the program breaks long ones, and indents the rest.
fn help(words: &str) -> String {
    let mut text = String::new();
    for line in printed(&format!("{words} --help")).lines() {
        if let Some(rest) = line.strip_prefix("            ") {
            assert_eq!(text.pop(), Some('\n'));
            text.push(' ');
            text.push_str(rest.trim_start());
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_help_fits_in_80_columns() {
    let groups = ["", "config", "daemon", "sessions"].map(str::to_owned);
    for words in groups.into_iter().chain(commands().iter().map(|command| words(command))) {
        for line in printed(&format!("{words} --help")).lines() {
            assert!(line.chars().count() <= 80, "{words}: {line}");
        }
    }
}

/// Returns every command with its operand, as `opta --help` lists them.
fn commands() -> Vec<String> {
    let help = help("");
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    list.lines().map(|line| columns(line).0).collect()
}

/// Returns a command without its operand: `completions` for `completions SHELL`.
fn words(command: &str) -> String {
    let lower = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
    command.split(' ').take_while(lower).collect::<Vec<_>>().join(" ")
}

/// Splits a line of the help into what it describes and the description.
fn columns(line: &str) -> (String, String) {
    let line = line.strip_prefix("  ").unwrap();
    let (left, right) = line.split_once("  ").unwrap();
    (left.to_owned(), right.trim_start().to_owned())
}

/// Returns the options of a command with their descriptions, without `-h, --help`.
fn options(command: &str) -> BTreeMap<String, String> {
    let help = help(command);
    let list = help.split("Options:\n").nth(1).unwrap();
    let options = list.lines().take_while(|line| line.starts_with("  ")).map(columns);
    options.filter(|(spelling, _)| spelling != "-h, --help").collect()
}

/// Returns the commands of `group`, without their operands.
fn commands_of(group: &str) -> Vec<String> {
    let commands = commands().into_iter().map(|command| words(&command));
    let belongs =
        |command: &String| command == group || (group.ends_with(' ') && command.starts_with(group));
    commands.filter(belongs).collect()
}

/// Returns the section of a page about one of its commands.
fn part(page: &Page, command: &str) -> Page {
    let alone = !command.contains(' ');
    page.section(&if alone { "DESCRIPTION".to_owned() } else { format!("opta {command}") })
}

fn set<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    items.into_iter().map(|item| item.as_ref().to_owned()).collect()
}

/// Returns every part of `text` between `before` and the next `after`.
fn between(text: &str, before: &str, after: char) -> BTreeSet<String> {
    set(text.split(before).skip(1).filter_map(|rest| rest.split(after).next()))
}

fn numbers(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()).collect()
}

#[test]
fn the_version_is_that_of_the_package_and_of_the_protocol() {
    let package = env!("CARGO_PKG_VERSION");
    let expected = format!("opta {package} (protocol 3.0.0)\n");
    assert_eq!(printed("--version"), expected);
    assert_eq!(printed("-V"), expected);
    assert!(document("CHANGELOG.md").contains(&format!("\n## {package}\n")));
}

#[test]
fn page_and_help_list_the_same_options() {
    for (name, group) in GROUPS {
        let page = Page::read(name);
        for command in commands_of(group) {
            let section = part(&page, &command);
            let in_page = set(section.items().iter().map(|item| &item.head));
            assert_eq!(set(options(&command).keys()), in_page, "opta {command}");
        }
    }
}

#[test]
fn page_and_help_show_the_same_usage() {
    let usage = |command: &String| {
        let help = help(command);
        help.lines().next().unwrap().strip_prefix("Usage: ").unwrap().to_owned()
    };
    for (name, group) in GROUPS {
        let usages: Vec<String> = commands_of(group).iter().map(usage).collect();
        assert_eq!(usages, Page::read(name).synopsis());
    }
}

#[test]
fn page_and_help_state_the_same_defaults() {
    let described = GROUPS.iter().flat_map(|(name, group)| {
        commands_of(group).into_iter().map(move |command| (Page::read(name), command))
    });
    for (page, command) in described {
        let options = options(&command);
        for item in part(&page, &command).items() {
            let help = &options[&item.head];
            let place = format!("opta {command} {}: '{}' and '{help}'", item.head, item.body);
            if help.contains("(default: ") {
                // In words, which the page gives in full.
                assert!(item.body.contains("The default is "), "{place}");
                continue;
            }
            let Some((_, default)) = help.split_once("(default ") else {
                assert!(!item.body.contains("default"), "{place}");
                continue;
            };
            let first = default.split([',', ')']).next().unwrap();
            assert!(item.body.contains(&format!("The default is {first}")), "{place}");
            for number in numbers(default) {
                assert!(numbers(&item.body).contains(&number), "{place}");
            }
        }
    }
}

#[test]
fn pages_mention_no_option_that_does_not_exist() {
    let mut known = set(["--help", "--version"]);
    for command in commands() {
        for spelling in options(&words(&command)).into_keys() {
            let long = spelling.split([' ', '[']).find(|word| word.starts_with("--")).unwrap();
            known.insert(long.to_owned());
        }
    }
    // Placeholders in the description of options, and the end of options.
    known.extend(["--option", "--"].map(str::to_owned));
    for name in PAGES {
        let text = Page::read(name).text();
        let running = text.split(" EXAMPLES ").next().unwrap();
        let mentioned = running.split_whitespace().filter_map(|word| {
            let word = word.trim_start_matches(['[', '"', '(']);
            let letters = |c: char| c.is_ascii_lowercase() || c == '-';
            word.starts_with("--").then(|| word.split(|c: char| !letters(c)).next().unwrap())
        });
        // Options of other programs.
        let unknown: Vec<&str> = mentioned
            .filter(|option| !known.contains(*option))
            .filter(|option| {
                !["--silent", "--header", "--user", "--unit", "--incognito"].contains(option)
            })
            .collect();
        assert_eq!(unknown, Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn documents_name_every_command_and_no_other() {
    let commands: Vec<String> = commands().iter().map(|command| words(command)).collect();
    for name in ["README.md", "CHANGELOG.md"] {
        let text = document(name);
        for command in &commands {
            assert!(text.contains(&format!("opta {command}")), "{name}: opta {command}");
        }
    }
    let groups = set(commands.iter().filter_map(|command| command.split_once(' ')).map(|c| c.0));
    for name in ["README", "CHANGELOG", "ARCHITECTURE", "CONTRIBUTING", "SECURITY"] {
        let text = document(&format!("{name}.md"));
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            // Shown for the sake of the error message.
            let wrong = lines.get(index + 1).is_some_and(|next| next.contains("unknown command"));
            for call in ["`opta ", "$ opta ", "& opta ", "| opta ", "(opta "]
                .iter()
                .flat_map(|before| line.split(before).skip(1))
                .filter(|_| !wrong)
            {
                let call = words(call.split(['`', ';', ')', '|', '&']).next().unwrap().trim());
                let known = commands.contains(&call) || groups.contains(&call) || call.is_empty();
                assert!(known, "{name}.md: opta {call}: {line}");
            }
        }
    }
}

#[test]
fn the_architecture_names_code_that_exists() {
    let text = document("ARCHITECTURE.md");
    let paths: Vec<&str> = text.split('`').filter(|code| code.contains("::")).collect();
    assert!(paths.contains(&"main::run") && paths.contains(&"lifecycle::guardian"), "{paths:?}");
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for path in paths {
        let (parents, name) = path.rsplit_once("::").unwrap();
        let is_there = sources.iter().any(|(file, source)| {
            let within = parents.split("::").all(|parent| {
                file.iter().any(|name| name == parent)
                    || source.contains(&format!("enum {parent} {{"))
            });
            let item = [format!("fn {name}("), format!("    {name}(")];
            within
                && (file.last().unwrap() == name || item.iter().any(|item| source.contains(item)))
        });
        assert!(is_there, "{path}");
    }
}

/// Returns the modules in a directory: the path of each, without its extension, and its source.
fn sources(directory: &Path) -> Vec<(Vec<String>, String)> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = path.with_extension("");
            let names = module.iter().map(|name| name.to_string_lossy().into_owned());
            sources.push((names.collect(), fs::read_to_string(&path).unwrap()));
        }
    }
    sources
}

#[test]
fn pages_and_readme_list_the_exit_statuses_of_the_program() {
    let from_source = |path: &str, function: &str| {
        let source = document(path);
        let body = source.split(function).nth(1).unwrap().split("\n    }").next().unwrap();
        numbers(body).into_iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let mut used = from_source("src/error.rs", "\nkinds! {");
    used.extend(from_source("src/commands/daemon.rs", "fn for_systemd"));
    used.extend(from_source("src/commands/daemon.rs", "Ok(ExitCode::from(match status {"));
    used.extend(from_source("src/sys/signal.rs", "pub fn status(self) -> u8 {"));
    for name in PAGES {
        let items = Page::read(name).section("EXIT STATUS").items();
        let listed = set(items.iter().map(|item| &item.head));
        if SINGLE.contains(&name) || name == "opta-config.1" {
            assert!(listed.is_subset(&used), "{name}: {listed:?}");
        } else {
            assert_eq!(listed, used, "{name}");
        }
    }
    let readme = document("README.md");
    let table = readme.split("| exit status |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows = table.lines().skip(2).filter_map(|row| row.split('|').nth(1));
    assert_eq!(set(rows.map(str::trim)), used);
}

#[test]
fn the_page_lists_the_variables_that_are_read() {
    let mut read = between(&document("src/paths.rs"), "variable(\"", '"');
    for source in ["src/config.rs", "src/config/variables.rs"] {
        read.extend(between(&document(source), "variable(\"", '"'));
    }
    // Only for tests.
    read.remove("OPTA_SERVICE_MANAGER");
    let listed = |name: &str| {
        set(Page::read(name).section("ENVIRONMENT").items().iter().map(|item| &item.head))
    };
    assert_eq!(listed("opta-daemon.1"), read);
    for name in PAGES {
        assert!(listed(name).is_subset(&read), "{name}");
    }
}

#[test]
fn pages_list_the_variables_that_are_passed_on() {
    let source = document("src/config/inherited.rs");
    let listed = |name: &str, from: &str, to: &str| {
        let text = Page::read(name).text();
        let list = text.split(from).nth(1).unwrap().split(to).next().unwrap().to_owned();
        let is_name = |word: &&str| {
            word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase() || "_*".contains(c))
        };
        set(list.split([' ', ',', '.']).filter(is_name))
    };
    let mut daemon = set(quoted(&source, "const DAEMON_VARIABLES: "));
    daemon.extend(quoted(&source, "const SECRET: ").map(str::to_owned));
    daemon.extend(["LC_", "OPTA_", "XDG_"].map(str::to_owned));
    assert_eq!(listed("opta-daemon.1", "it keeps only", "The command that submits"), daemon);
    let mut command = set(quoted(&source, "const TURN_VARIABLES: "));
    command.insert("LC_*".to_owned());
    assert_eq!(listed("opta-do.1", "of the caller's environment:", "See opta-daemon"), command);
}

/// Returns the strings in the constant of a source that begins so.
fn quoted<'s>(source: &'s str, begin: &str) -> impl Iterator<Item = &'s str> {
    let constant = source.split(begin).nth(1).unwrap().split("];").next().unwrap();
    constant.split('"').skip(1).step_by(2)
}

#[test]
fn the_page_lists_the_settings_that_are_read() {
    let placed = between(&document("src/config.rs"), "at(\"", '"');
    let mut read = set(placed.iter().filter(|key| key.contains('.')));
    // A list, and objects whose keys are the names of tools, and labels.
    for key in ["environment", "permissions", "workspaces"] {
        read.insert(key.to_owned());
    }
    assert_eq!(set(quoted(&document("src/config/keys.rs"), "const KEYS: ")), read);
    let section = Page::read("opta-daemon.1").section("Configuration");
    assert_eq!(set(section.items().iter().map(|item| &item.head)), read);
}

#[test]
fn marks_that_vanish_without_utf8_are_described_in_words() {
    for name in PAGES {
        let page = document(&format!("man/{name}"));
        assert!(page.is_ascii(), "{name}");
        for mark in between(&page, "\\[u", ']') {
            assert!(page.contains(&format!(" (U+{mark})")), "{name}: {mark}");
        }
    }
}

#[test]
fn the_page_lists_the_names_of_the_tools() {
    let source = document("src/agent/tools/mod.rs");
    let table = source.split("pub static TOOLS").nth(1).unwrap().split("\n];").next().unwrap();
    let page = Page::read("opta-daemon.1").section("Configuration");
    let listed = set(page.marked("Cm"));
    let mut names = between(table, "    name: \"", '"');
    names.extend(between(table, "alias: \"", '"'));
    assert_eq!(names.difference(&listed).next(), None);
    assert!(names.contains("run_command") && names.contains("shell"), "{names:?}");
}

/// Returns the names of the files and directories in `~/.config/opta`, without the sessions.
fn files() -> BTreeSet<String> {
    let source = document("src/paths.rs");
    let mut files = between(&source, "\"daemon/", '"');
    for name in ["config", "chat", "exports"] {
        let begin = format!("join(\"{name}");
        files.extend(between(&source, &begin, '"').iter().map(|rest| format!("{name}{rest}")));
    }
    files
}

#[test]
fn the_readme_lists_every_file_and_every_page() {
    let readme = document("README.md");
    let table = readme.split("| file | what it is |").nth(1).unwrap();
    let rows = table.split("\n\n").next().unwrap().lines().skip(2);
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let names = cells.filter(|cell| !cell.contains("sessions/")).flat_map(|cell| {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(|path| path.trim_end_matches('/').trim_start_matches("daemon/"))
    });
    assert_eq!(set(names), files());
    assert_eq!(between(&readme, "](man/", ')'), set(PAGES));
}

#[test]
fn general_pages_refer_to_every_other_page() {
    for name in ["opta.1", "opta-daemon.1"] {
        let referred = set(Page::read(name).section("SEE ALSO").marked("Xr"));
        for other in PAGES.iter().filter(|other| **other != name) {
            assert!(referred.contains(other.trim_end_matches(".1")), "{name}: {other}");
        }
    }
}

#[test]
fn lines_of_documents_have_at_most_120_characters() {
    for name in ["README", "CHANGELOG", "ARCHITECTURE", "CONTRIBUTING", "SECURITY"] {
        let text = document(&format!("{name}.md"));
        // A row of a table cannot be broken.
        for line in text.lines().filter(|line| !line.starts_with('|')) {
            assert!(line.chars().count() <= 120, "{name}.md: {line}");
        }
    }
}

#[test]
fn the_page_lists_the_files_and_the_fields_of_the_state_file() {
    let source = document("src/paths.rs");
    let mut files = files();
    for directory in ["systemd/user/", "Library/LaunchAgents/"] {
        files.extend(between(&source, directory, '"'));
    }
    let items = Page::read("opta-daemon.1").section("FILES").items();
    let listed = items.iter().map(|item| item.head.rsplit('/').next().unwrap());
    // Stands for all rotated logs.
    assert_eq!(set(listed.filter(|name| *name != "daemon.log.1")), files);

    let state = items.iter().find(|item| item.head.ends_with("/state.json")).unwrap();
    let written = fields("src/state.rs", "pub struct DaemonInfo {");
    assert_eq!(listing(&state.body, "an object with "), written);
}

#[test]
fn the_page_lists_the_files_and_the_fields_of_sessions() {
    let page = Page::read("opta-sessions.1");
    let list = page.section("opta sessions list").items();
    let json = list.iter().find(|item| item.head == "--json").unwrap();
    let mut listed = fields("src/protocol/mod.rs", "pub struct SessionSummary {");
    // The list has none.
    assert_eq!(listed.pop().as_deref(), Some("messages"));
    assert_eq!(listing(&json.body, "each session, with "), listed);

    let items = page.section("FILES").items();
    let listed = set(items.iter().map(|item| item.head.rsplit('/').next().unwrap()));
    assert_eq!(listed, set(["", "index.jsonl", "journal.jsonl", "summary.json", "journal.torn-1"]));
    let journal = items.iter().find(|item| item.head.ends_with("/journal.jsonl")).unwrap();
    let source = document("src/session/record.rs");
    let written = source.split("pub fn record_of(").nth(1).unwrap().split("\n}").next().unwrap();
    let quoted: Vec<&str> = written.split("\\\"").collect();
    let names = quoted.windows(2).filter(|pair| pair[1].starts_with(':')).map(|pair| pair[0]);
    assert_eq!(listing(&journal.body, "a JSON object with "), names.collect::<Vec<_>>());
}

/// Returns the names that a sentence lists, from `before` to the period.
fn listing(text: &str, before: &str) -> Vec<String> {
    let list = text.split(before).nth(1).unwrap().split('.').next().unwrap();
    let words = list.split([',', ' ']).filter(|word| !word.is_empty() && *word != "and");
    words.map(str::to_owned).collect()
}

/// Returns the fields of a struct in a source file, by their names in JSON.
fn fields(path: &str, begin: &str) -> Vec<String> {
    let source = document(path);
    let body = source.split(begin).nth(1).unwrap().split("\n}").next().unwrap();
    let mut fields = Vec::new();
    let mut renamed = None;
    let lines = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    for line in lines.filter(|line| !line.is_empty()) {
        match line.split_once(':') {
            None => renamed = line.split('"').nth(1),
            Some((name, _)) => {
                let name = name.strip_prefix("pub ").unwrap_or(name);
                fields.push(renamed.take().unwrap_or(name).to_owned());
            }
        }
    }
    fields
}

#[test]
fn pages_list_the_codes_of_errors() {
    let source = document("src/error.rs");
    let body = source.split("\nkinds! {").nth(1).unwrap().split("\n}\n").next().unwrap();
    let groups = GROUPS.iter().filter(|(name, _)| !SINGLE.contains(name));
    let pages = groups.map(|(name, _)| Page::read(name).section("DIAGNOSTICS"));
    let described = set(pages.flat_map(|section| section.marked("Er")));
    assert_eq!(described, between(body, "=> (\"", '"'));
}

#[test]
fn the_page_lists_the_codes_of_failed_turns() {
    let kinds = ["model", "context", "tool", "turn", "config", "storage", "internal"];
    let is_code = |text: &&str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let kind = text.split_once('-').is_some_and(|(kind, _)| kinds.contains(&kind));
        plain && (kind || ["cancelled", "interrupted"].contains(text))
    };
    let mut codes = BTreeSet::new();
    for source in ["agent", "agent/model", "session", "session/runtime"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let text = fs::read_to_string(path).unwrap();
                let program = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
                codes.extend(program.split('"').filter(is_code).map(str::to_owned));
            }
        }
    }
    let listed = set(Page::read("opta-do.1").section("DIAGNOSTICS").marked("Er"));
    assert_eq!(listed, codes);
}

#[test]
fn the_page_lists_the_error_codes_of_the_api() {
    let mut codes = set(["INVALID_REQUEST"]);
    let mut statuses = set(["400"]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for source in files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).unwrap())
    {
        // A status followed by a code.
        for pair in source.split('(').skip(1) {
            let mut parts = pair.split(',').map(str::trim);
            let (status, code) = (parts.next().unwrap(), parts.next().unwrap_or(""));
            let code = code.strip_prefix('"').and_then(|code| code.split('"').next());
            let is_status = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
            if let Some(code) = code.filter(|_| is_status) {
                statuses.insert(status.to_owned());
                codes.insert(code.to_owned());
            }
        }
    }
    let section = Page::read("opta-daemon.1").section("HTTP API");
    assert_eq!(set(section.marked("Er")), codes);
    let text = section.text();
    let list = text.split("The codes are").nth(1).unwrap().split("The limits").next().unwrap();
    let listed = set(numbers(list));
    let missing: Vec<_> = statuses.difference(&listed).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the names after `Route::` in a part of a source.
fn variants(source: &str) -> impl Iterator<Item = &str> {
    let names = source.split("Route::").skip(1);
    names.filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next())
}

/// Returns the path of each route of the API, with the name of the route.
fn routes() -> BTreeMap<String, String> {
    let source = document("src/server/routes.rs");
    let found = source.split("fn find(").nth(1).unwrap().split("_ => return None").next().unwrap();
    let mut routes = BTreeMap::new();
    for rest in found.split("if path == \"").skip(1) {
        let path = rest.split('"').next().unwrap();
        routes.insert(path.to_owned(), variants(rest).next().unwrap().to_owned());
    }
    for rest in found.split("            [").skip(1) {
        let (pattern, route) = rest.split_once(']').unwrap();
        let segments = pattern.split(", ").map(|segment| match segment.starts_with('"') {
            true => segment.trim_matches('"'),
            false => "ID",
        });
        let path = format!("/v3/{}", segments.collect::<Vec<_>>().join("/"));
        routes.insert(path, variants(route).next().unwrap().to_owned());
    }
    routes
}

#[test]
fn the_page_lists_the_paths_that_take_the_token_in_the_query() {
    let source = document("src/server/routes.rs");
    let decision = source.split("let in_query = ").nth(1).unwrap().split(';').next().unwrap();
    let accepted = set(variants(decision));
    let paths = routes().into_iter().filter(|(_, route)| accepted.contains(route));
    let paths = set(paths.map(|(path, _)| path));
    assert_eq!(paths.len(), accepted.len(), "{paths:?}");
    let text = Page::read("opta-daemon.1").section("HTTP API").text();
    let (_, rest) = text.split_once("requires the token, in the header").unwrap();
    let list = rest.split("also accept it").next().unwrap();
    let listed = list.split([' ', ',']).filter(|word| word.starts_with('/'));
    assert_eq!(set(listed), paths);
}

#[test]
fn the_page_lists_the_events_with_members_that_they_have() {
    let source = document("src/protocol/event.rs");
    let table = source.split("\nevents! {").nth(1).unwrap().split("\n}").next().unwrap();
    let section = Page::read("opta-daemon.1").section("Events");
    let listed = set(section.items().iter().map(|item| &item.head));
    assert_eq!(listed, between(table, "    \"", '"'));
    let mut members = set(["payload"]);
    for rest in source.split("\npub struct ").skip(1) {
        let name = rest.split(' ').next().unwrap();
        members.extend(fields("src/protocol/event.rs", &format!("pub struct {name} {{")));
    }
    let unknown: Vec<String> =
        section.marked("Va").into_iter().filter(|name| !members.contains(name)).collect();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn the_page_lists_the_messages_of_the_websocket() {
    let source = document("src/server/websocket/messages.rs");
    let table = source.split("match kind.as_deref() {").nth(1).unwrap();
    let messages = between(table.split("Some(_)").next().unwrap(), "Some(\"", '"');
    assert!(messages.contains("turn.submit"), "{messages:?}");
    let items = Page::read("opta-daemon.1").section("HTTP API").items();
    let heads = items.iter().filter_map(|item| item.head.strip_prefix("{\"type\":\""));
    assert_eq!(set(heads.filter_map(|rest| rest.split('"').next())), messages);
}

#[test]
fn the_page_lists_the_codes_for_older_clients() {
    let source = document("src/session/record.rs");
    let table = source.split("const OLDER_CODES: ").nth(1).unwrap().split("\n];").next().unwrap();
    let rows = table.split("    (\"").skip(1).map(|row| row.split('"').collect::<Vec<_>>());
    let text = Page::read("opta-daemon.1").section("HTTP API").text();
    let (_, list) = text.split_once("that older clients know:").unwrap();
    let listed = list.split(", and none for").next().unwrap().split(',').map(str::trim);
    assert_eq!(set(listed), set(rows.map(|row| format!("{} for {}", row[2], row[0]))));
}

#[test]
fn the_page_lists_the_routes() {
    let mut routes = set(routes().into_keys());
    let items = Page::read("opta-daemon.1").section("HTTP API").items();
    let heads = items.iter().filter_map(|item| item.head.split_once(' '));
    let listed = set(heads.map(|(_, path)| path).filter(|path| path.starts_with('/')));
    // The id of a permission request may be in the body.
    routes.remove("/v3/sessions/ID/permissions/ID");
    // It has a table of its own.
    routes.insert("/".to_owned());
    assert_eq!(listed, routes);
}

#[test]
fn the_page_lists_the_operations_and_their_inputs() {
    let source = document("src/commands/operations.rs");
    let table = source.split("const OPERATIONS: ").nth(1).unwrap();
    let constant = |name: &str| {
        let rest = source.split(&format!("const {name}: ")).nth(1).unwrap();
        rest.split(';').next().unwrap().to_owned()
    };
    let mut listed = BTreeMap::new();
    for item in Page::read("opta-daemon.1").section("Operations").items() {
        for id in item.head.split(", ") {
            listed.insert(id.to_owned(), item.body.clone());
        }
    }
    let operations = table.split("id: \"").skip(1);
    let operations: Vec<(&str, &str)> =
        operations.map(|rest| rest.split_once('"').unwrap()).collect();
    assert_eq!(set(listed.keys()), set(operations.iter().map(|(id, _)| id)));
    for (id, definition) in operations {
        let definition = ["SESSION", "KEY"].iter().fold(definition.to_owned(), |text, name| {
            let used = [format!("{name},"), format!("[{name}]")];
            used.iter().fold(text, |text, used| text.replace(used, &constant(name)))
        });
        let fields = ["any(", "text(", "one_of(", "up_to("];
        let mut names = BTreeSet::new();
        for constructor in fields.into_iter().chain([".or("]) {
            let calls = definition.split(constructor).skip(1);
            names.extend(calls.map(|call| call.split('"').nth(1).unwrap().to_owned()));
        }
        let body = &listed[id];
        for name in names {
            assert!(body.contains(&name), "{id}: the page does not name {name}");
        }
        assert_eq!(definition.contains("Safety::Dangerous"), body.contains("dangerous"), "{id}");
    }
    let text = Page::read("opta-daemon.1").section("Operations").text();
    let refused = source.split("const UNSUPPORTED: ").nth(1).unwrap().split("];").next().unwrap();
    let names = text.split("not implemented: ").nth(1).unwrap().split(" The codes").next().unwrap();
    let listed = names.split([',', ' ']).map(|name| name.trim_end_matches('.'));
    let listed = listed.filter(|name| name.contains('.'));
    assert_eq!(set(listed), between(refused, "    \"", '"'));
}

/// Returns the constants of `src/limits.rs` as a document writes them: seconds or milliseconds,
/// bytes, `1 to 2`.
pub fn limits() -> BTreeMap<String, String> {
    fn product(expression: &str) -> u64 {
        let term = |text: &str| text.trim().replace('_', "").parse::<u64>().unwrap();
        match expression.split_once("<<") {
            Some((number, bits)) => term(number) << term(bits),
            None => expression.split('*').map(term).product(),
        }
    }
    let source = document("src/limits.rs");
    let mut limits = BTreeMap::new();
    for constant in source.split("pub const ").skip(1) {
        let (name, rest) = constant.split_once(':').unwrap();
        let (_, value) = rest.split_once('=').unwrap();
        let value = value.split(';').next().unwrap().trim();
        let time = ["Duration::from_secs(", "Duration::from_millis("]
            .iter()
            .find_map(|unit| value.strip_prefix(unit));
        let written = match (time, value.split_once("..=")) {
            (Some(time), _) => product(time.trim_end_matches(')')).to_string(),
            (None, Some((first, last))) => format!("{} to {}", product(first), product(last)),
            (None, None) => product(value).to_string(),
        };
        limits.insert(name.to_owned(), written);
    }
    limits
}

/// A page and the limits that it states, each with the phrase that states it.
type Stated = (&'static str, &'static [(&'static str, &'static str)]);

const STATED: [Stated; 6] = [
    (
        "opta-daemon.1",
        &[
            ("PORT_DEFAULT", "The default is {} or,"),
            ("PORTS_FALLBACK", "the first free port from {}."),
            ("START_MAX", "not ready after {} seconds counts as failed"),
            ("START_MAX", "The default is {} seconds."),
            ("UNRESPONSIVE_MAX", "waits {} seconds for an answer"),
            ("START_LOCK_MAX", "others wait for it, up to {} seconds"),
            ("HEALTH_MAX", "(no answer in {}s)"),
            ("STOP_WAIT_DEFAULT", "The default is {}, with --force"),
            ("STOP_WAIT_FORCED", "with --force {}."),
            ("WAIT_SECONDS_MAX", "takes at most {}."),
            ("MANAGER_MAX", "not answered for {} seconds"),
            ("GRACE_MAX", "give requests in flight {} seconds"),
            ("CRASHES_MAX", "If there were {} crashes"),
            ("CRASHES_WINDOW", "crashes within {} seconds"),
            ("CONNECTIONS_MAX", "The limits are {} connections"),
            ("HEAD_BYTES_MAX", "; {} bytes and"),
            ("HEADERS_MAX", "and {} headers in the head of a request"),
            ("BODY_BYTES_MAX", "; {} bytes in its body"),
            ("IDLE_MAX", "may be idle for {} seconds"),
            ("HEAD_MAX", "complete {} seconds after its first byte"),
            ("BODY_MAX", "a body {} seconds after the head"),
            ("WRITE_MAX", "read the whole response within {} seconds"),
            ("LOG_BYTES_DEFAULT", "The default is {}, the minimum"),
            ("LOG_BYTES_MIN", "the minimum {}."),
            ("LOG_FILES_DEFAULT", "The default is {}, the maximum"),
            ("LOG_FILES_MAX", "the maximum {}."),
            ("TOOL_CALLS_DEFAULT", "The default is {}, the maximum"),
            ("TOOL_CALLS_MAX", "the maximum {}."),
            (
                "MODEL_FIRST_MAX",
                "wait for the first word of an answer. The default is {}, the maximum",
            ),
            ("MODEL_IDLE_MAX", "silence within an answer. The default is {}, the maximum"),
            ("MODEL_SECONDS_MAX", "the maximum {}."),
            ("LOG_LINES_DEFAULT", "The default is {}."),
            ("ID_BYTES_MAX", "An id consists of 1 to {} letters"),
            ("SESSIONS_PAGE_MAX", "from 1 to {}; the default"),
            ("SESSIONS_PAGE_DEFAULT", "the default is {}."),
            ("LOG_LINES_OPERATION_MAX", "from 1 to {}, by default"),
            ("LOG_LINES_OPERATION_DEFAULT", "by default {}, as logs"),
            ("SESSIONS_PAGE_DEFAULT", "newest sessions, by default {},"),
            ("SESSIONS_SEARCH_MAX", "After {} seconds the search ends"),
            ("QUEUED_TURNS_MAX", "or {} turns are already waiting"),
            ("ACTIVE_TURNS_MAX", "at most {} run at the same time"),
            ("EVENTS_MAX", "of them, from 1 to {},"),
            ("POLL_MAX", "milliseconds, at most {} seconds"),
            ("HEALTH_EVERY", "now and every {} seconds"),
            ("HEARTBEAT_EVERY", "a comment every {} seconds"),
            ("TURN_BODY_BYTES_MAX", "{} in that of a session or a turn"),
            ("STREAMS_MAX", "and {} streams"),
            ("DATA_BYTES_MAX", "unless it is longer than {} bytes"),
            ("WEBSOCKET_MESSAGE_BYTES_MAX", "as one text of at most {} bytes, with"),
            ("WEBSOCKET_MESSAGE_MAX", "not complete {} seconds after its first byte"),
            ("WEBSOCKET_STALL_MAX", "took nothing for {} seconds"),
            ("WEBSOCKET_PING_EVERY", "After {} seconds without a byte"),
            ("TURN_END_HELD", "sent at least {} milliseconds after its beginning"),
            ("NAME_BYTES_MAX", "at most {} bytes in a name"),
            ("TITLE_BYTES_MAX", "{} in a title"),
            ("PATH_BYTES_MAX", "{} in a workspace"),
        ],
    ),
    (
        "opta-sessions.1",
        &[
            ("TITLE_CHARS_MAX", "the first {} characters of its title"),
            ("SESSIONS_PAGE_DEFAULT", "The default is {}."),
            ("CRASHES_MAX", "crashed {} times"),
            ("CRASHES_WINDOW", "times within {} seconds"),
        ],
    ),
    (
        "opta-do.1",
        &[
            ("AFTER_SIGNAL_MAX", "exits within {} seconds"),
            ("CALL_MAX", "or within {} if the daemon does not answer"),
            ("AFTER_SIGNAL_MAX", "not read within {} seconds of a signal"),
            ("SERVER_FACTS_KEPT", "remembers for {minutes} minutes"),
            ("MODEL_RETRYING_MAX", "for up to {minutes} minutes"),
            ("MODEL_FAILURES_MAX", "at most {} times"),
            ("MODEL_FIRST_MAX", "silent for {minutes} minutes"),
            ("SAME_CALLS_MAX", "more than {} times in a row"),
        ],
    ),
    (
        "opta-chat.1",
        &[
            ("PERMISSION_MAX", "not answered within {minutes} minutes"),
            ("UNFOLLOWED_MAX", "follows the session, within {} seconds"),
            ("TASK_BYTES_MAX", "has at most {} bytes"),
            ("AFTER_SIGNAL_MAX", "exits within {} seconds"),
            ("CALL_MAX", "or within {} if the daemon does not answer"),
            ("AFTER_SIGNAL_MAX", "not read within {} seconds of a signal"),
        ],
    ),
    ("opta-doctor.1", &[("DOCTOR_SESSIONS_MAX", "the newest {} sessions")]),
    ("opta-web.1", &[("BROWSER_MAX", "exit status within {} seconds is not 0")]),
];

#[test]
fn pages_state_the_limits_as_they_are() {
    let limits = limits();
    for (page, stated) in STATED {
        let text = Page::read(page).text();
        for (name, phrase) in stated {
            let limit = &limits[*name];
            let minutes = limit.parse::<u64>().map(|seconds| (seconds / 60).to_string());
            let phrase = phrase.replace("{minutes}", &minutes.unwrap_or_default());
            let phrase = phrase.replace("{}", limit);
            assert!(text.contains(&phrase), "{name}: {page} does not say '{phrase}'");
        }
    }
}

#[test]
fn the_examples_of_the_manual_work() {
    need!("curl", "bash");
    let home = Home::new();
    for name in PAGES {
        for example in Page::read(name).section("EXAMPLES").literals() {
            // Those that need a model are only checked for their syntax.
            let how = if SINGLE.contains(&name) { "-nuc" } else { "-uc" };
            let run = home.sh(r#"exec bash "$@""#).arg("sh").arg(how).arg(&example);
            let seen = run.env("TMPDIR", home.path()).stdout(ANYTHING).run();
            if example.contains("/v3/metrics") {
                let metrics = seen.stdout;
                assert!(metrics.contains("\"daemonId\":\"daemon_"), "{example}{metrics}");
            }
        }
    }
}

#[test]
fn errors_are_as_the_manual_shows_them() {
    let home = Home::new();
    let example = |name: &str, code: &str| {
        let mut blocks = Page::read(name).literals().into_iter();
        blocks.find(|block| block.contains(code)).unwrap()
    };
    let error = example("opta.1", "NOT_RUNNING");
    home.opta("daemon token --json").stdout(&error).status(3).run();
    let daemon = home.start();
    let (status, body) = http(daemon.port, "GET", "/v3/metrics", None);
    assert_eq!((status, body + "\n"), (401, example("opta-daemon.1", "UNAUTHORIZED")));
}

#[test]
fn sessions_are_as_the_manual_shows_them() {
    let (home, model) = (Home::new(), Model::new());
    let page = Page::read("opta-sessions.1");
    let example = |command: &str| page.section(&format!("opta sessions {command}")).literals();
    let run = home.opta("do --quiet Fix the build").env("OPTA_MODEL_URL", model.url());
    let running = run.stdout("I'll take a look.\nA tab is missing in line 12.\n").spawn();
    let mut question = model.question();
    question.say("I'll take a look.");
    question.call("read_file", r#"{\"path\":\"Makefile\"}"#);
    model.question().answer("A tab is missing in line 12.");
    running.finish();

    let shown = home.opta("sessions show sess_").stdout(ANYTHING).run().stdout;
    let (head, conversation) = shown.split_once("\n\n").unwrap();
    let expected = example("show").concat();
    let (expected_head, expected_conversation) = expected.split_once("\n\n").unwrap();
    let until_date = |head: &str| plain(head.split(" 20").next().unwrap());
    assert_eq!(until_date(head), until_date(expected_head));
    assert_eq!(conversation, expected_conversation);

    let list = home.opta("sessions list").stdout(ANYTHING).run().stdout;
    let columns = |line: &str, model: &str| (line.find(" turn"), line.find(model));
    let example_of_list = example("list").concat();
    let row = example_of_list.lines().nth(1).unwrap();
    assert_eq!(columns(&list, "scripted"), columns(row, "gpt-oss"));

    let id = list.split(' ').next().unwrap();
    let journal = home.path().join(format!(".config/opta/sessions/{id}/journal.jsonl"));
    let text = fs::read_to_string(&journal).unwrap();
    home.write(&journal, text.replacen("\"seq\":2,", "\"seq\":3,", 1));
    let verified = home.opta("sessions verify").stdout(ANYTHING).status(1).run().stdout;
    let without_numbers = |text: &str| {
        let plain = plain(text).replace("sessions checked", "session checked");
        plain.replace(|c: char| c.is_ascii_digit(), "")
    };
    assert_eq!(without_numbers(&verified), without_numbers(&example("verify").concat()));
}

/// Returns the output of `script` in a shell without configuration, with the completions as `$1`.
fn in_shell(shell: &str, script: &str) -> String {
    in_shell_of(&Home::new(), shell, script)
}

/// Returns the output of `script` in a shell of this home; see [`in_shell`].
pub fn in_shell_of(home: &Home, shell: &str, script: &str) -> String {
    let completions = home.path().join("completions");
    home.write(&completions, printed(&format!("completions {shell}")));
    let bare: &[&str] = match shell {
        "bash" => &["--norc", "--noprofile"],
        "zsh" => &["-f"],
        _ => &["--no-config"],
    };
    let mut run = home.sh(r#"exec "$@""#).arg("sh").arg(shell);
    for argument in bare.iter().chain(&["-c", script]) {
        run = run.arg(argument);
    }
    if shell != "fish" {
        run = run.arg(shell);
    }
    run.arg(&completions).stdout(ANYTHING).run().stdout
}

/// A line that is typed, and the completions.
const TYPED: &[(&str, &str)] = &[
    (
        "opta ",
        "do chat web models config doctor daemon sessions completions version help --help --version",
    ),
    ("opta da", "daemon"),
    ("opta config ", "list get set reset path edit"),
    ("opta config get model.", "model.default model.maxTokens model.toolChoice"),
    ("opta config set log.l", "log.level"),
    ("opta config reset --", "--json --help"),
    ("opta config set log.level ", "--json --help"),
    ("opta do", "do doctor"),
    ("opta chat --re", "--resume"),
    ("opta chat --co", "--continue --continue=any"),
    ("opta sessions ", "list show export grep verify rm"),
    ("opta sessions show ", "--json --help"),
    ("opta sessions export --format ", "json markdown"),
    ("opta sessions list --limit ", ""),
    ("opta daemon ", "start status logs restart stop token install uninstall"),
    ("opta daemon st", "start status stop"),
    ("opta daemon start --", "--foreground --port --json --help"),
    ("opta daemon start --port ", ""),
    ("opta daemon start --json --f", "--foreground"),
    ("opta daemon status --w", "--wait="),
    ("opta daemon logs --level ", "debug info warn error"),
    ("opta daemon logs --level w", "warn"),
    ("opta daemon logs --lines 5 --fo", "--follow"),
    ("opta completions ", "bash zsh fish --help"),
];

#[test]
fn bash_completes_commands_and_options() {
    need!("bash");
    // compopt works only within a real completion.
    let script = r#"
        source "$1"
        compopt() { :; }
        while IFS= read -r line; do
            read -ra COMP_WORDS <<<"$line"
            [[ $line == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _opta opta "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]-}"
        done <"$(dirname "$1")/typed"
    "#;
    let typed: String = TYPED.iter().map(|(line, _)| format!("{line}\n")).collect();
    let script = format!("printf '{typed}' >\"$(dirname \"$1\")/typed\"\n{script}");
    let answers = in_shell("bash", &script);
    let expected: Vec<&str> = TYPED.iter().map(|(_, words)| *words).collect();
    assert_eq!(answers.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn zsh_completes_commands_and_options() {
    need!("zsh");
    assert_eq!(in_shell("zsh", "zsh -n \"$1\""), "");
    // zsh itself chooses among the candidates; these functions only print them.
    let script = r#"
        _describe() { print -r -- ${${(P)2}%%:*} }
        compadd() { print -r -- $@ }
        compdef() { print -r -- compdef $@ }
        # Once as a user evaluates it, and then as compinit loads it.
        source "$1"
        unfunction _opta
        mkdir "${1:h}/site" && cp "$1" "${1:h}/site/_opta"
        fpath=("${1:h}/site") && autoload _opta
        while IFS= read -r line; do
            words=(${(s: :)line}) CURRENT=$#words
            [[ $line == *' ' ]] && (( CURRENT++ ))
            _opta
        done <"${1:h}/typed"
    "#;
    let cases = [
        ("opta ", "do chat web models config doctor daemon sessions completions version"),
        ("opta da", "do chat web models config doctor daemon sessions completions version"),
        ("opta sessions export --format ", "json markdown"),
        ("opta sessions rm ", "--force --json --help"),
        ("opta daemon st", "start status logs restart stop token install uninstall"),
        ("opta daemon start --json ", "--foreground --port --json --help"),
        ("opta daemon logs --level ", "debug info warn error"),
        ("opta completions ", "bash zsh fish --help"),
        (
            "opta config get ",
            "connection.caFile connection.firstWordSeconds connection.host connection.port connection.proxy connection.silenceSeconds connection.url daemon.port environment log.files log.level log.maxBytes model.default model.maxTokens model.toolChoice permissions safety.maxToolCalls workspaces --json --help",
        ),
        ("opta config set log.level ", "--json --help"),
    ];
    let typed: String = cases.iter().map(|(line, _)| format!("{line}\n")).collect();
    let script = format!("printf '{typed}' >\"${{1:h}}/typed\"\n{script}");
    let answers = in_shell("zsh", &script);
    let words = cases.iter().map(|(_, words)| *words);
    let expected: Vec<&str> = ["compdef _opta opta"].into_iter().chain(words).collect();
    assert_eq!(answers.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn fish_completes_commands_and_options() {
    need!("fish");
    assert_eq!(in_shell("fish", "fish --no-execute $argv[1]"), "");
    for (typed, expected) in [
        ("opta da", "daemon"),
        ("opta daemon st", "start status stop"),
        ("opta daemon start --fo", "--foreground"),
        ("opta daemon logs --level w", "warn"),
        ("opta sessions export --format m", "markdown"),
        ("opta completions z", "zsh"),
        ("opta config get daemon.", "daemon.port"),
        ("opta config set log.level d", ""),
    ] {
        let script = format!("source $argv[1]; complete -C '{typed}'");
        let answers = in_shell("fish", &script);
        let words: BTreeSet<&str> =
            answers.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(words, expected.split_terminator(' ').collect(), "{typed}");
    }
}
