//! Which tools a turn may use. The user's settings decide, then what the caller granted for this
//! turn, then the effect of the tool: reading is allowed, everything else needs permission. Pure.

use crate::config::{Rule, ToolSettings};
use crate::protocol::Grant;

use super::tools::{Effect, Tool};

/// Returns the rule for `tool` in a turn. A `deny` in the user's settings is final, and so is one
/// by the turn's `mode`. Of two settings for one tool, under its two names, the stricter one
/// counts.
pub fn rule(tool: &Tool, settings: &ToolSettings, grant: Grant, mode: &str) -> Rule {
    if !fits(tool, mode) {
        return Rule::Deny;
    }
    let named = [tool.name, tool.alias];
    let set = named.iter().filter_map(|name| settings.permissions.rule(name)).max();
    let granted = grant == Grant::All || (grant == Grant::Edits && tool.effect == Effect::Edits);
    match set {
        Some(Rule::Deny) => Rule::Deny,
        _ if granted => Rule::Allow,
        Some(Rule::Allow) if grant == Grant::Reads && tool.effect != Effect::Reads => Rule::Ask,
        Some(rule) => rule,
        None if tool.effect == Effect::Reads => Rule::Allow,
        None => Rule::Ask,
    }
}

/// Returns whether the settings allow this command without a question.
pub fn allow_command(tool: &Tool, settings: &ToolSettings, grant: Grant, command: &str) -> bool {
    let named = [tool.name, tool.alias];
    tool.effect == Effect::Runs
        && grant != Grant::Reads
        && named.iter().any(|name| settings.permissions.allow_command(name, command))
}

/// Returns whether a mode allows the effect of a tool: `chat` and `do` allow all, `research` no
/// edits, and `plan`, `review` and unknown modes only reading.
pub fn fits(tool: &Tool, mode: &str) -> bool {
    matches!(
        (tool.effect, mode),
        (Effect::Reads, _) | (_, "chat" | "do") | (Effect::Runs, "research")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tools::TOOLS;
    use crate::config::Permissions;
    use crate::limits;

    fn settings(pairs: &[(&str, Rule)]) -> ToolSettings {
        let permissions = Permissions::of(pairs);
        ToolSettings { permissions, calls_max: limits::TOOL_CALLS_DEFAULT }
    }

    #[test]
    fn without_settings_reading_is_allowed_and_the_rest_needs_permission_or_a_grant() {
        let none = settings(&[]);
        for tool in &TOOLS {
            let by_grant = |grant| rule(tool, &none, grant, "do");
            let wanted = match tool.effect {
                Effect::Reads => [Rule::Allow, Rule::Allow, Rule::Allow],
                Effect::Edits => [Rule::Ask, Rule::Allow, Rule::Allow],
                Effect::Runs => [Rule::Ask, Rule::Ask, Rule::Allow],
            };
            let found = [Grant::Settings, Grant::Edits, Grant::All].map(by_grant);
            assert_eq!(found, wanted, "{}", tool.name);
        }
    }

    #[test]
    fn the_least_grant_asks_for_what_settings_allow_unless_it_only_reads() {
        for tool in &TOOLS {
            let set = settings(&[(tool.name, Rule::Allow)]);
            let reads = tool.effect == Effect::Reads;
            let wanted = if reads { Rule::Allow } else { Rule::Ask };
            assert_eq!(rule(tool, &set, Grant::Reads, "do"), wanted, "{}", tool.name);
            assert_eq!(rule(tool, &set, Grant::Settings, "do"), Rule::Allow, "{}", tool.name);
        }
    }

    #[test]
    fn settings_count_under_both_names_and_deny_beats_every_grant() {
        for tool in &TOOLS {
            for name in [tool.name, tool.alias] {
                for set in [Rule::Allow, Rule::Ask, Rule::Deny] {
                    let settings = settings(&[(name, set)]);
                    assert_eq!(
                        rule(tool, &settings, Grant::Settings, "chat"),
                        set,
                        "{}",
                        tool.name
                    );
                    let all = if set == Rule::Deny { Rule::Deny } else { Rule::Allow };
                    assert_eq!(rule(tool, &settings, Grant::All, "chat"), all, "{}", tool.name);
                    let edits = if tool.effect == Effect::Edits { all } else { set };
                    assert_eq!(rule(tool, &settings, Grant::Edits, "chat"), edits, "{}", tool.name);
                }
            }
        }
        let both = settings(&[("run_command", Rule::Allow), ("shell", Rule::Deny)]);
        let command = Tool::named("run_command").unwrap();
        assert_eq!(rule(command, &both, Grant::All, "chat"), Rule::Deny);
        let others = settings(&[("git_commit", Rule::Deny)]);
        assert_eq!(rule(command, &others, Grant::All, "chat"), Rule::Allow);
    }

    #[test]
    fn the_settings_know_the_names_of_the_tool_that_runs_commands() {
        let runs = TOOLS.iter().filter(|tool| tool.effect == Effect::Runs);
        let names: Vec<_> = runs.map(|tool| [tool.name, tool.alias]).collect();
        assert_eq!(names, [crate::config::COMMAND_TOOL]);
    }

    #[test]
    fn a_mode_that_forbids_a_tool_beats_settings_and_grants() {
        for tool in &TOOLS {
            let settings = settings(&[(tool.name, Rule::Allow)]);
            let denied = |mode| rule(tool, &settings, Grant::All, mode) == Rule::Deny;
            let denied = ["plan", "review", "Plan", "research", "chat", "do"].map(denied);
            let wanted = match tool.effect {
                Effect::Reads => [false; 6],
                Effect::Edits => [true, true, true, true, false, false],
                Effect::Runs => [true, true, true, false, false, false],
            };
            assert_eq!(denied, wanted, "{}", tool.name);
        }
    }
}
