//! Completions for bash, zsh and fish, made from the table of commands. Pure.

use crate::cli::{OptionSpec, OptionValue, SUBCOMMANDS, Shell, Subcommand, next_words};

/// The script for one shell.
pub fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// Every sequence of words that a command may follow, with what may come next: `daemon` → `start`,
/// ….
fn groups() -> Vec<(String, String)> {
    let mut groups: Vec<(String, String)> = Vec::new();
    for subcommand in SUBCOMMANDS {
        for length in 0..subcommand.words.len() {
            let words: Vec<String> =
                subcommand.words.iter().take(length).map(|w| (*w).into()).collect();
            let name = words.join(" ");
            if !groups.iter().any(|(known, _)| *known == name) {
                groups.push((name, next_words(&words).join(" ")));
            }
        }
    }
    groups
}

fn options(subcommand: &Subcommand) -> String {
    let long = subcommand.options.iter().map(|option| match option.value {
        OptionValue::Optional(_) => format!("--{}=", option.long),
        OptionValue::None | OptionValue::Required(_) => format!("--{}", option.long),
    });
    long.chain(["--help".to_owned()]).collect::<Vec<_>>().join(" ")
}

/// What may stand where: the operand's values first, then the options.
fn candidates(subcommand: &Subcommand) -> String {
    let words = choices(subcommand).iter().map(|word| format!("{word} "));
    words.collect::<String>() + &options(subcommand)
}

/// The words that may stand where the operand does, if they are known.
fn choices(subcommand: &Subcommand) -> &'static [&'static str] {
    subcommand.operand.as_ref().map_or(&[], |operand| operand.choices)
}

fn bash() -> String {
    let mut script = String::from(
        "# bash completion for opta
_opta() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local typed='' i candidates=''
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] || typed+=\" ${COMP_WORDS[i]}\"
    done
    COMPREPLY=()
    case $previous in
        --level) candidates='debug info warn error' ;;
        --format) candidates='json markdown' ;;
        --lines | -n | --since | --port | --timeout | --limit) return ;;
        --model | --model-url | --resume | --once) return ;;
        *)
            case \"${typed# }\" in
",
    );
    for (words, next) in groups() {
        let next = if words.is_empty() { format!("{next} help --help --version") } else { next };
        push(&mut script, &format!("                '{words}') candidates='{next}' ;;"));
    }
    for subcommand in SUBCOMMANDS {
        // Operands and the values of options may follow the words.
        let words = subcommand.words.join(" ");
        let candidates = candidates(subcommand);
        push(
            &mut script,
            &format!("                '{words}' | '{words} '*) candidates='{candidates}' ;;"),
        );
    }
    script.push_str(
        "            esac
            ;;
    esac
    while IFS= read -r i; do
        COMPREPLY+=(\"$i\")
    done < <(compgen -W \"$candidates\" -- \"$word\")
    [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
}
complete -F _opta opta
",
    );
    script
}

fn zsh() -> String {
    let mut script = String::from(
        "#compdef opta
# zsh completion for opta
_opta() {
  local -a typed candidates
  local word
  for word in ${words[2,CURRENT-1]}; do
    [[ $word == -* ]] || typed+=($word)
  done
  case $words[CURRENT-1] in
    --level) compadd debug info warn error; return ;;
    --format) compadd json markdown; return ;;
    --lines|-n|--since|--port|--timeout|--limit|--model|--model-url|--resume|--once) return ;;
  esac
  case \"${typed[*]}\" in
",
    );
    for (words, _) in groups() {
        push(&mut script, &format!("    '{words}')\n      candidates=("));
        for (name, summary) in named(&words) {
            push(&mut script, &format!("        '{name}:{}'", single_quoted(&summary)));
        }
        push(&mut script, "      )\n      _describe command candidates ;;");
    }
    for subcommand in SUBCOMMANDS {
        let words = subcommand.words.join(" ");
        push(&mut script, &format!("    '{words}'|'{words} '*)\n      candidates=("));
        for value in choices(subcommand) {
            push(&mut script, &format!("        '{value}'"));
        }
        for option in subcommand.options {
            let help = single_quoted(option.help).replace(':', "\\:");
            push(&mut script, &format!("        '--{}:{help}'", option.long));
        }
        push(
            &mut script,
            "        '--help:show help'\n      )\n      _describe option candidates ;;",
        );
    }
    // Loaded by compinit as the body of the function, or run by whoever evaluates it.
    script.push_str(
        "  esac
}
if [[ $funcstack[1] == _opta ]]; then _opta \"$@\"; else compdef _opta opta; fi
",
    );
    script
}

fn fish() -> String {
    let mut script = String::from(
        "# fish completion for opta
function __opta_at
    set -l typed
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; or set -a typed $word
    end
    test \"$typed\" = \"$argv\"
end
function __opta_in
    set -l typed
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; or set -a typed $word
    end
    string match -q -- \"$argv *\" \"$typed \"
end
complete -c opta -f
",
    );
    for (words, _) in groups() {
        for (name, summary) in named(&words) {
            let summary = single_quoted(&summary);
            let condition = format!("__opta_at {words}");
            push(
                &mut script,
                &format!("complete -c opta -n '{}' -a {name} -d '{summary}'", condition.trim()),
            );
        }
    }
    for subcommand in SUBCOMMANDS {
        let condition = format!("__opta_in {}", subcommand.words.join(" "));
        for value in choices(subcommand) {
            push(&mut script, &format!("complete -c opta -n '{condition}' -a {value}"));
        }
        for option in subcommand.options {
            push(&mut script, &fish_option(&condition, option));
        }
    }
    script.push_str("complete -c opta -s h -l help -d 'show help'\n");
    script
}

fn fish_option(condition: &str, option: &OptionSpec) -> String {
    let short = option.short.map_or(String::new(), |short| format!(" -s {short}"));
    let value = match (option.long, &option.value) {
        ("level", _) => " -x -a 'debug info warn error'",
        ("format", _) => " -x -a 'json markdown'",
        (_, OptionValue::Required(_)) => " -x",
        (_, OptionValue::None | OptionValue::Optional(_)) => "",
    };
    let help = single_quoted(option.help);
    format!("complete -c opta -n '{condition}'{short} -l {}{value} -d '{help}'", option.long)
}

/// The words that may follow `words`, each with what it is for.
fn named(words: &str) -> Vec<(&'static str, String)> {
    let typed: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    let summary = |word: &str| {
        let path: Vec<&str> = typed.iter().map(String::as_str).chain([word]).collect();
        let subcommand = SUBCOMMANDS.iter().find(|subcommand| subcommand.words == path);
        subcommand.map_or_else(
            || format!("Commands of the {word}"),
            |subcommand| subcommand.summary.to_owned(),
        )
    };
    next_words(&typed).into_iter().map(|word| (word, summary(word))).collect()
}

/// The inside of a string in single quotes, for all three shells.
fn single_quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

fn push(script: &mut String, line: &str) {
    script.push_str(line);
    script.push('\n');
}
