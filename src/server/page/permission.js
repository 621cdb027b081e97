// What a tool call is about, and the question whether it is allowed: the words of the terminal.

import { diff } from "./diff.js";
import { el, oneLine, visible } from "./dom.js";

const COMMANDS = new Set(["run_command", "shell"]);

/** Returns what a call is about: the command, the pattern or the path. */
export function subject(input) {
  const { command, pattern, path } = input ?? {};
  const known = command ?? pattern ?? path;
  return typeof known === "string" ? known : Object.keys(input ?? {}).length ? JSON.stringify(input) : ".";
}

/** Returns the lines that a call changes in a file; null if it changes none. */
export function change(input) {
  const { content, old_text: before, new_text: after } = input ?? {};
  if (typeof content === "string") return diff("", content);
  if (typeof before === "string" && typeof after === "string") return diff(before, after);
  return null;
}

/** Makes the element that shows such lines. */
export function changeTable(lines) {
  const names = { "+": "added", "-": "removed", "…": "gap" };
  const rows = lines.map(([mark, line]) =>
    el("span", { class: names[mark] ?? null }, `${mark} ${visible(line)}\n`),
  );
  return el("pre", { class: "diff", tabindex: "0", "aria-label": "Changes" }, ...rows);
}

/** Returns the question about a call. */
export function question({ toolName, input }) {
  const about = oneLine(subject(input)).replace(/ {9,}/g, (blanks) => `␣×${blanks.length}`);
  return `Allow ${oneLine(toolName)} ${JSON.stringify(about).replaceAll("\\\\u{", "\\u{")}?`;
}

/** Whether a shell runs a command as one, and opens no file for it. */
const isOneCommand = (command) => !/[;|&`<>\n\r\0]|\$\(/.test(command);
const words = (command) => command.split(/[ \t]+/).filter(Boolean);

/** Returns which calls "always" allows, in words and as a test. */
function scope({ toolName, input }) {
  if (!COMMANDS.has(toolName)) {
    return { text: `every ${oneLine(toolName)}`, allows: (other) => other.toolName === toolName };
  }
  const command = String(input?.command ?? "");
  const first = words(command).slice(0, 2);
  const isPlain = first.length > 0 && first.every((word) => /^[\p{L}\p{N}\-_./:+@,]+$/u.test(word));
  if (!isPlain || !isOneCommand(command)) {
    const isSame = (other) => COMMANDS.has(other.toolName) && other.input?.command === command;
    return { text: "this command", allows: isSame };
  }
  const allows = (other) => {
    const typed = String(other.input?.command ?? "");
    const begins = first.every((word, at) => words(typed)[at] === word);
    return COMMANDS.has(other.toolName) && isOneCommand(typed) && begins;
  };
  return { text: `every "${first.join(" ")} …"`, allows };
}

/** Makes the elements that ask. `answer` gets the decision and, for "always", the scope. */
export function questionPanel(asked, answer) {
  const always = scope(asked);
  const lines = change(asked.input);
  const button = (name, key, text, onclick) => {
    const attributes = { type: "button", class: name, onclick, "aria-keyshortcuts": key };
    return el("button", attributes, text, el("kbd", { "aria-hidden": "true" }, key));
  };
  const at = new Date(asked.expiresAt);
  const until = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const everAfter = `Always ${always.text} until this page closes`;
  return [
    el("h2", {}, question(asked)),
    lines ? changeTable(lines) : "",
    el(
      "div",
      { class: "buttons" },
      button("primary", "y", "Yes", () => answer("allow")),
      button("", "n", "No", () => answer("deny")),
      button("quiet", "a", everAfter, () => answer("allow", always)),
    ),
    el("p", { class: "note" }, `Without an answer, it is denied at ${until}.`),
  ];
}
