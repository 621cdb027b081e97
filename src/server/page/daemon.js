// The daemon: its state, its log as it grows, and the last hour.

import { call, events, now, operation } from "./api.js";
import { byId, duration, el, oneLine, plural, setText } from "./dom.js";
import { graph } from "./graph.js";

const HOUR = 3_600_000;
/** How often the log is read while it is on the screen. */
const LOG_EVERY = 2000;
const LOG_LINES = 1000;
/** What is read back for the graphs: sessions, and stretches of events of each. */
const SESSIONS_MAX = 20;
const STRETCHES_MAX = 5;
const LEVELS = ["debug", "info", "warn", "error"];

let shown = false;
let timer = 0;
let lines = [];
/** The turns that ended within the last hour, by their ids. */
const turns = new Map();
let hasHistory = false;

export function show(isShown) {
  shown = isShown;
  load();
}

/** Reads everything again, if it is on the screen. */
export async function load() {
  clearTimeout(timer);
  if (!shown || document.hidden) return;
  try {
    await Promise.all([loadState(), loadLog(), hasHistory || loadHistory()]);
  } catch {
    // The banner says what is wrong.
  }
  clearTimeout(timer);
  timer = setTimeout(load, LOG_EVERY);
}

async function loadState() {
  const [status, metrics] = await Promise.all([operation("daemon.status"), call("GET", "/v3/metrics")]);
  const { activeTurnCount, queuedTurnCount, sessionCount } = metrics.runtime;
  const facts = {
    State: status.state,
    Version: status.version,
    Uptime: duration(status.uptime * 1000),
    Pid: status.pid,
    Port: status.port,
    Memory: `${metrics.memoryMB} MB`,
    Sessions: `${sessionCount} in memory`,
    Turns: `${activeTurnCount} running, ${queuedTurnCount} waiting, ${metrics.totalTurns} in all`,
    Runs: status.managedBy ? `as a service of ${status.managedBy}` : "on its own",
  };
  const rows = Object.entries(facts).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, oneLine(value))),
  );
  byId("facts").replaceChildren(...rows);
  drawGraphs();
}

async function loadLog() {
  const { logs } = await operation("daemon.logs", { lines: LOG_LINES });
  if (logs.at(-1)?.raw === lines.at(-1)?.raw && logs.length === lines.length) return;
  lines = logs;
  renderLog();
}

function renderLog() {
  const least = LEVELS.indexOf(byId("level").value);
  const text = byId("log-filter").value.toLowerCase();
  const fits = (line) => LEVELS.indexOf(line.level) >= least && line.raw.toLowerCase().includes(text);
  const box = byId("log-lines");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const rows = lines.filter(fits).map(({ timestamp, level, message, raw }) => {
    const { ts, level: _, msg, ...fields } = JSON.parse(raw);
    const more = Object.entries(fields).map(
      ([name, value]) => ` ${name}=${typeof value === "string" ? value : JSON.stringify(value)}`,
    );
    const time = new Date(timestamp ?? ts).toLocaleTimeString([], { hour12: false });
    return el(
      "div",
      { class: level },
      el("time", { datetime: timestamp }, time),
      " ",
      el("span", { class: "level" }, level),
      " ",
      oneLine(message ?? msg),
      el("span", { class: "fields" }, oneLine(more.join(""))),
    );
  });
  box.replaceChildren(...rows);
  setText(byId("log-count"), rows.length ? "" : "No line fits.");
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** Notes the end of a turn. */
export function receive({ event, ts, payload }) {
  if (event !== "turn.done" && event !== "turn.error") return;
  const { completionTokens = 0, elapsed = 0 } = payload.stats ?? {};
  for (const [id, { end }] of turns) {
    if (end >= now() - HOUR) break;
    turns.delete(id);
  }
  turns.set(payload.turnId, { end: Date.parse(ts), tokens: completionTokens, elapsed });
}

/** Reads the turns that ended before the page was opened. */
async function loadHistory() {
  const { sessions } = await call("GET", `/v3/sessions?limit=${SESSIONS_MAX}`);
  const since = now() - HOUR;
  const recent = sessions.filter((summary) => Date.parse(summary.lastActivityAt) > since);
  await Promise.all(
    recent.map(async ({ sessionId, seq }) => {
      for (let last = seq, count = 0; last > 0 && count < STRETCHES_MAX; last -= 1000, count += 1) {
        const stretch = (await events(sessionId, Math.max(0, last - 1000))).events;
        stretch.forEach(receive);
        if (!stretch.length || Date.parse(stretch[0].ts) < since) break;
      }
    }),
  );
  hasHistory = true;
  drawGraphs();
}

/** Spreads the turns of the last hour over its minutes, the oldest first. */
function drawGraphs() {
  const minutes = 60;
  const [ended, tokens] = [new Array(minutes).fill(0), new Array(minutes).fill(0)];
  const start = now() - HOUR;
  const minute = HOUR / minutes;
  for (const [id, turn] of turns) {
    if (turn.end < start) {
      turns.delete(id);
      continue;
    }
    const last = Math.min(minutes - 1, Math.floor((turn.end - start) / minute));
    ended[last] += 1;
    const first = Math.max(0, Math.floor((turn.end - turn.elapsed - start) / minute));
    for (let at = first; at <= last; at += 1) tokens[at] += turn.tokens / (last - first + 1) / 60;
  }
  const total = ended.reduce((sum, count) => sum + count, 0);
  const peak = Math.max(...tokens);
  byId("graphs").replaceChildren(
    graph("Turns", `${plural(total, "turn")} in the last hour`, ended),
    graph("Tokens a second", `at most ${peak.toFixed(1)} in a minute`, tokens),
  );
}

/** Connects the view with the page. */
export function start() {
  byId("level").addEventListener("change", renderLog);
  byId("log-filter").addEventListener("input", renderLog);
  document.addEventListener("visibilitychange", load);
}
