//! The operations of the API: what a client may ask a daemon for by name. Most are commands of the
//! same name, and call the same functions.
//!
//! No result has the token. What ends the daemon runs as a command of its own, so that the request
//! is answered first.

mod host;
mod input;
mod model_server;
mod perform;
mod settings;

use std::sync::Arc;

use crate::json::{self, Lenient, Members, Object, Raw};
use crate::limits;
use crate::paths::Paths;
use crate::protocol::ErrorDetail;
use crate::protocol::operation::{OperationFailure, OperationResult};
use crate::server::{ModelServerView, Operations};
use crate::session::runtime::Runtime;
use host::{Host, Refusal};
use input::{Input, InputField, schema};

/// Returns the operations of a daemon with these files.
pub fn of(paths: &Paths) -> Box<dyn Operations> {
    Box::new(Table { paths: paths.clone() })
}

/// An operation.
struct Operation {
    id: &'static str,
    title: &'static str,
    description: &'static str,
    safety: Safety,
    input: &'static [InputField],
    result: Outcome,
}

/// What an operation may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Safety {
    Read,
    Write,
    /// It is performed only if the request confirms it.
    Dangerous,
}

impl Safety {
    fn name(self) -> &'static str {
        match self {
            Safety::Read => "read",
            Safety::Write => "write",
            Safety::Dangerous => "dangerous",
        }
    }
}

/// Where the result of an operation comes from.
enum Outcome {
    Of(fn(&Host<'_>, &Input) -> Result<Raw, Refusal>),
    /// It is always this: opta has nothing of the kind.
    Always(&'static str),
}

struct Table {
    paths: Paths,
}

impl Operations for Table {
    fn list(&self) -> String {
        let operations: Vec<Raw> = OPERATIONS.iter().map(Operation::description).collect();
        json::text(&Object(&[("operations", &operations)]))
    }

    fn perform(
        &self,
        sessions: &Arc<Runtime>,
        id: &str,
        body: &[u8],
        is_awaited: &dyn Fn() -> bool,
    ) -> (u16, String) {
        let host = Host { paths: &self.paths, sessions, is_awaited };
        let operation = OPERATIONS.iter().find(|operation| operation.id == id);
        let performed = match operation {
            Some(operation) => operation.perform(&host, body),
            None if UNSUPPORTED.contains(&id) => {
                Err(Refusal::new(501, "not_implemented", "opta has nothing of the kind"))
            }
            None => Err(Refusal::new(404, "not_found", format!("there is no operation '{id}'"))),
        };
        let safety = operation.map(|operation| operation.safety.name().to_owned());
        let id = id.to_owned();
        match performed {
            Ok(result) => (200, json::text(&OperationResult { ok: true, id, safety, result })),
            Err(Refusal { status, code, message }) => {
                let error = ErrorDetail::new(code, &message);
                (status, json::text(&OperationFailure { ok: false, id, safety, error }))
            }
        }
    }

    fn model_server(&self, view: ModelServerView) -> Result<String, String> {
        model_server::show(&self.paths, view).map(|shown| shown.as_str().to_owned())
    }
}

impl Operation {
    fn description(&self) -> Raw {
        let text = |text: &str| text.to_owned();
        let (id, title, safety) = (text(self.id), text(self.title), text(self.safety.name()));
        let (description, input) = (text(self.description), schema(self.input));
        Raw::of(&Object(&[
            ("id", &id),
            ("title", &title),
            ("description", &description),
            ("safety", &safety),
            ("inputSchema", &input),
        ]))
    }

    fn perform(&self, host: &Host<'_>, body: &[u8]) -> Result<Raw, Refusal> {
        let (members, confirmed) = read(body).map_err(Refusal::invalid)?;
        let input = Input::check(self.input, &members).map_err(Refusal::invalid)?;
        if self.safety == Safety::Dangerous && !confirmed {
            let message = format!("{} is dangerous: confirm it with confirmDangerous", self.id);
            return Err(Refusal::new(403, "dangerous_confirmation_required", message));
        }
        match self.result {
            Outcome::Of(perform) => perform(host, &input),
            Outcome::Always(result) => Ok(Raw::parse(result).unwrap_or_else(|_| Raw::empty())),
        }
    }
}

/// Returns the input in a body, and whether the body confirms a dangerous operation. The input may
/// be a member, or the body itself.
fn read(body: &[u8]) -> Result<(Members, bool), String> {
    if body.is_empty() {
        return Ok((Members(Vec::new()), false));
    }
    let body: Members = json::parse(body).map_err(|error| error.to_string())?;
    let last = |name| body.0.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value);
    let is_true = |value: &Lenient| matches!(value, Lenient::Other(raw) if raw.as_str() == "true");
    let confirmed = last("confirmDangerous").is_some_and(is_true);
    let input = match last("input").or_else(|| last("params")) {
        None => body,
        Some(Lenient::Other(input)) if input.as_str() == "null" => Members(Vec::new()),
        Some(Lenient::Other(input)) => {
            let input = json::parse(input.as_str().as_bytes());
            input.map_err(|error| format!("input is an object: {error}"))?
        }
        Some(Lenient::Text(_)) => return Err("input is an object".to_owned()),
    };
    Ok((input, confirmed))
}

/// The id of a session, or a prefix that no other has, as commands take it.
const SESSION: InputField =
    InputField::text("sessionId", "The id of the session.").or("id").required();

const BROWSER_HOST: &str = concat!(
    r#"{"running":false,"safePorts":[],"slots":[],"#,
    r#""requiredPortCount":0,"maxSessionSlots":0}"#
);

const KEYCHAIN: &str = concat!(
    r#"{"providers":{"anthropic":{"stored":false},"lmx":{"stored":false},"#,
    r#""gemini":{"stored":false},"openai":{"stored":false},"opencode-zen":{"stored":false}}}"#
);

/// The name of a setting.
const KEY: InputField = InputField::text("key", "The name of the setting.").required();

/// What clients ask for and opta cannot do: their results are no part of the list.
const UNSUPPORTED: [&str; 7] = [
    "env.delete",
    "env.save",
    "env.show",
    "env.use",
    "models.aliases.delete",
    "models.aliases.set",
    "vault.pull",
];

const OPERATIONS: &[Operation] = &[
    Operation {
        id: "sessions.list",
        title: "List sessions",
        description: "Returns the newest sessions.",
        safety: Safety::Read,
        input: &[InputField::up_to("limit", limits::SESSIONS_PAGE_MAX, "The number of sessions.")],
        result: Outcome::Of(perform::sessions_list),
    },
    Operation {
        id: "sessions.search",
        title: "Search sessions",
        description: "Returns the newest sessions whose title or text contains the query.",
        safety: Safety::Read,
        input: &[
            InputField::text("query", "The words, whatever their case.").required(),
            InputField::up_to("limit", limits::SESSIONS_PAGE_MAX, "The number of sessions."),
        ],
        result: Outcome::Of(perform::sessions_search),
    },
    Operation {
        id: "sessions.get",
        title: "Show a session",
        description: "Returns a session without its messages.",
        safety: Safety::Read,
        input: &[SESSION],
        result: Outcome::Of(perform::sessions_get),
    },
    Operation {
        id: "sessions.rename",
        title: "Rename a session",
        description: "Gives a session another title.",
        safety: Safety::Write,
        input: &[SESSION, InputField::text("title", "The new title.").required()],
        result: Outcome::Of(perform::sessions_rename),
    },
    Operation {
        id: "sessions.export",
        title: "Export a session",
        description: "Writes a session to a file, and returns its path.",
        safety: Safety::Write,
        input: &[
            SESSION,
            InputField::one_of("format", &["json", "markdown", "text"], "The default is json."),
            InputField::text("outputPath", "The absolute path of the new file."),
        ],
        result: Outcome::Of(perform::sessions_export),
    },
    Operation {
        id: "sessions.delete",
        title: "Delete a session",
        description: "Permanently deletes a session.",
        safety: Safety::Write,
        input: &[SESSION],
        result: Outcome::Of(perform::sessions_delete),
    },
    Operation {
        id: "config.list",
        title: "List settings",
        description: "Returns the settings in the file, except those that opta does not know.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Of(settings::list),
    },
    Operation {
        id: "config.get",
        title: "Show a setting",
        description: "Returns the value of a setting in the file.",
        safety: Safety::Read,
        input: &[KEY],
        result: Outcome::Of(settings::get),
    },
    Operation {
        id: "config.set",
        title: "Change a setting",
        description: "Changes a setting in the file, if the result can be used.",
        safety: Safety::Write,
        input: &[KEY, InputField::any("value", "The new value.").required()],
        result: Outcome::Of(settings::set),
    },
    Operation {
        id: "config.reset",
        title: "Remove a setting",
        description: "Removes a setting from the file, so that its default applies again.",
        safety: Safety::Write,
        input: &[KEY],
        result: Outcome::Of(settings::reset),
    },
    Operation {
        id: "doctor",
        title: "Run the doctor",
        description: "Checks everything and changes nothing.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Of(perform::run_doctor),
    },
    Operation {
        id: "version.check",
        title: "Show the version",
        description: "Returns the version of the program. It does not look for a newer one.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Of(perform::version_check),
    },
    Operation {
        id: "daemon.status",
        title: "Daemon status",
        description: "Returns the status of the daemon.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Of(perform::daemon_status),
    },
    Operation {
        id: "daemon.logs",
        title: "Daemon log",
        description: "Returns the last lines of the log, oldest first.",
        safety: Safety::Read,
        input: &[InputField::up_to(
            "lines",
            limits::LOG_LINES_OPERATION_MAX,
            "The number of lines.",
        )],
        result: Outcome::Of(perform::daemon_logs),
    },
    Operation {
        id: "daemon.start",
        title: "Start the daemon",
        description: "Reports the running daemon.",
        safety: Safety::Write,
        input: &[],
        result: Outcome::Of(perform::daemon_start),
    },
    Operation {
        id: "daemon.stop",
        title: "Stop the daemon",
        description: "Stops the daemon after the reply.",
        safety: Safety::Write,
        input: &[],
        result: Outcome::Of(perform::daemon_stop),
    },
    Operation {
        id: "daemon.restart",
        title: "Restart the daemon",
        description: "Replaces the daemon after the reply. The new one has another token.",
        safety: Safety::Dangerous,
        input: &[],
        result: Outcome::Of(perform::daemon_restart),
    },
    Operation {
        id: "daemon.install",
        title: "Install the service",
        description: "Installs the daemon as a service of the user.",
        safety: Safety::Write,
        input: &[],
        result: Outcome::Of(perform::daemon_install),
    },
    Operation {
        id: "daemon.uninstall",
        title: "Remove the service",
        description: "Removes the service and stops the daemon, after the reply.",
        safety: Safety::Write,
        input: &[],
        result: Outcome::Of(perform::daemon_uninstall),
    },
    Operation {
        id: "models.aliases.list",
        title: "List model aliases",
        description: "There are no aliases.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"{"aliases":[]}"#),
    },
    Operation {
        id: "env.list",
        title: "List environments",
        description: "There are no environments.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"{"profiles":[]}"#),
    },
    Operation {
        id: "account.status",
        title: "Account status",
        description: "There are no accounts.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"{"loggedIn":false}"#),
    },
    Operation {
        id: "vault.status",
        title: "Vault status",
        description: "There is no vault.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"{"syncStatus":"disabled","keyCount":0,"ruleCount":0}"#),
    },
    Operation {
        id: "keychain.status",
        title: "Keychain status",
        description: "No keys are stored.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(KEYCHAIN),
    },
    Operation {
        id: "mcp.list",
        title: "List MCP servers",
        description: "There are no MCP servers.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"{}"#),
    },
    Operation {
        id: "apps.list",
        title: "List apps",
        description: "There are no apps.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(r#"[]"#),
    },
    Operation {
        id: "browser.host",
        title: "Browser host",
        description: "There is no browser host.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(BROWSER_HOST),
    },
    Operation {
        id: "browser.runtime",
        title: "Browser sessions",
        description: "There are no browser sessions.",
        safety: Safety::Read,
        input: &[],
        result: Outcome::Always(
            r#"{"enabled":false,"slots":[],"activeSessions":0,"maxSessions":0}"#,
        ),
    },
];
