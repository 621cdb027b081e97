// The elements of a conversation: one for each item.

import { el, oneLine, plural, visible } from "./dom.js";
import { markdown } from "./markdown.js";
import { change, changeTable, subject } from "./permission.js";

/** Diffs with more lines are folded. */
const OPEN_LINES_MAX = 24;

/** Makes the element of an item. `sessionId` is for what has to be looked up elsewhere. */
export function card(item, sessionId) {
  return MAKERS[item.kind](item, sessionId);
}

const prose = ({ fence = "", text }) => markdown(fence + text);

const MAKERS = {
  user: ({ text }) =>
    el("div", { class: "user" }, el("span", { class: "sr" }, "You: "), visible(text ?? "…")),
  answer: (item) => el("div", { class: "answer" }, ...prose(item)),
  thinking: (item) => folded(item, "thinking", ["Thinking"], () => [el("div", {}, ...prose(item))]),
  notice: ({ text }) => el("p", { class: "note" }, oneLine(text)),
  decision: ({ decision, by }) => {
    const words = decision === "allow" ? "Allowed" : "Denied";
    return el("p", { class: "note" }, `${words} by ${oneLine(by)}`);
  },
  tool,
  done: ({ stats }) => el("p", { class: "note end" }, statistics(stats)),
  error: ({ code, message }) =>
    el("p", { class: "failure", role: "note" }, el("strong", {}, oneLine(code)), " ", visible(message)),
};

/** Makes an element whose content is made when it is opened. It stays open when it is made again. */
function folded(item, name, summary, content, isOpen = false) {
  const details = el("details", { class: name, open: item.open ?? isOpen });
  const fill = () => details.append(...content());
  details.append(el("summary", {}, ...summary));
  if (details.open) fill();
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) fill();
    item.open = details.open;
  });
  return details;
}

function tool(item, sessionId) {
  const { name, input, result, success } = item;
  const lines = change(input);
  const [state, words] = outcome(item, lines);
  const content = () =>
    [
      lines && changeTable(lines),
      !lines &&
        input &&
        Object.keys(input).length > 1 &&
        el("pre", { tabindex: "0" }, visible(JSON.stringify(input, null, 2))),
      result != null &&
        (!lines || !success) &&
        el("pre", { class: "output", tabindex: "0" }, visible(result)),
      item.cut > 0 &&
        el(
          "p",
          { class: "note" },
          `… ${plural(item.cut, "more character")}; all of it: `,
          el("code", {}, `opta sessions export ${sessionId}`),
        ),
    ].filter(Boolean);
  const summary = [
    el("span", { class: "mark", "aria-hidden": "true" }),
    el("span", { class: "name" }, oneLine(name)),
    " ",
    el("span", { class: "subject" }, input ? oneLine(subject(input)).slice(0, 400) : ""),
    " ",
    el("span", { class: "outcome" }, words),
  ];
  const isOpen = lines != null && success !== false && lines.length <= OPEN_LINES_MAX;
  return folded(item, `tool ${state}`, summary, content, isOpen);
}

/** Returns the state of a call, and what became of it in a few words. */
function outcome({ input, result, success, ms, tail, over }, lines) {
  if (result == null) return over ? ["failed", "no result"] : ["busy", "running"];
  const denied = /^error: permission denied: (.*)/.exec(result);
  if (denied) {
    const why = denied[1].includes("the user has not allowed") ? "" : `: ${oneLine(denied[1])}`;
    return ["denied", `denied${why}`];
  }
  const took = `${(ms / 1000).toFixed(1)} s`;
  const exit = /\[exit code: (-?\d+)\]\s*$/.exec(tail || result);
  if (exit) return [exit[1] === "0" ? "done" : "failed", `exit ${exit[1]}, ${took}`];
  if (!success) {
    return ["failed", `failed: ${oneLine(result.replace(/^error: /, "").split("\n", 1)[0]).slice(0, 200)}`];
  }
  if (!lines) return ["done", ms < 1000 ? "" : took];
  const count = (mark) => lines.filter(([other]) => other === mark).length;
  const isNew = input.content != null && result.includes(" was created");
  return ["done", `${plural(Math.max(count("-"), count("+")), "line")} ${isNew ? "written" : "changed"}`];
}

function statistics({
  promptTokens,
  completionTokens,
  speed,
  elapsed,
  finishReason,
  contextTokens,
  contextSize,
  model,
}) {
  return [
    model && oneLine(model),
    promptTokens > 0 && `${plural(promptTokens, "token")} in`,
    `${plural(completionTokens, "token")} out`,
    speed > 0 && elapsed >= 1000 && `${Math.round(speed)} tokens/s`,
    `${Math.round(elapsed / 1000)} s`,
    contextSize > 0 && `${Math.ceil((contextTokens * 100) / contextSize)}% of the context used`,
    finishReason && `ended by ${oneLine(finishReason)}`,
  ]
    .filter(Boolean)
    .join(" · ");
}
