// The list of sessions: newest first, and as they are at the moment.

import { call, events, now } from "./api.js";
import { Conversation } from "./conversation.js";
import { ask, byId, duration, el, nextFrame, oneLine, say, setText } from "./dom.js";

const PAGE = 250;
/** Events of a running session among which its open question must be. */
const RECENT = 50;
const STATES = { running: "running", waiting: "waiting for an answer", idle: "idle" };

const sessions = new Map();
/** The open questions of each session. */
const questions = new Map();
const rows = new Map();
/** Sessions that a list may still have that was read before. */
const deleted = new Set();
let next = null;
let current = null;
const schedule = nextFrame(render);

export const session = (id) => sessions.get(id);
export const titleOf = (summary) => oneLine(summary?.title || "New session");
export const placeOf = (summary) => oneLine(summary?.directory ?? summary?.workspace ?? "");

export function stateOf(summary) {
  if (questions.get(summary.sessionId)?.size) return "waiting";
  return summary.activeTurnId || summary.queuedTurns > 0 ? "running" : "idle";
}

/** Reads the list again: at the start, and after the connection was lost. */
export async function load() {
  const known = new Set(sessions.values());
  const asked = new Map(questions);
  // What was deleted earlier may have been created again.
  deleted.clear();
  const first = await call("GET", `/v3/sessions?limit=${PAGE}`);
  // Events of these arrived while the list was on its way.
  const changed = [...sessions.values()].filter((summary) => !known.has(summary));
  sessions.clear();
  add(first);
  for (const summary of changed) {
    const { sessionId: id, seq } = summary;
    if (!(sessions.get(id)?.seq >= seq)) sessions.set(id, summary);
  }
  byId("list-loading")?.remove();
  const isOld = (id) => questions.get(id) === asked.get(id);
  const running = [...sessions.values()].filter((summary) => summary.activeTurnId);
  for (const id of asked.keys()) if (!sessions.get(id)?.activeTurnId && isOld(id)) questions.delete(id);
  await Promise.all(
    running.map(async ({ sessionId, seq }) => {
      const recent = new Conversation();
      const reply = await events(sessionId, Math.max(0, seq - RECENT));
      reply.events.forEach((event) => recent.append(event));
      if (deleted.has(sessionId)) return;
      const open = recent.questions;
      if (isOld(sessionId)) questions.set(sessionId, new Set(open.keys()));
      // An event of now has said more, but not which were answered before.
      else
        for (const old of asked.get(sessionId) ?? []) open.has(old) || questions.get(sessionId)?.delete(old);
    }),
  );
  schedule();
  if (byId("filter").value) await loadAll();
}

async function loadAll() {
  while (next) add(await call("GET", `/v3/sessions?limit=${PAGE}&before=${next}`));
}

function add(page) {
  for (const summary of page.sessions) {
    if (!deleted.has(summary.sessionId)) sessions.set(summary.sessionId, summary);
  }
  next = page.next;
  schedule();
}

/** Returns a session, also one that is not on a page that was read; nothing if it was deleted. */
export async function find(id) {
  if (!sessions.has(id)) {
    const found = await call("GET", `/v3/sessions/${id}`);
    if (!sessions.has(id) && !deleted.has(id)) sessions.set(id, found);
  }
  return sessions.get(id);
}

function noteQuestion(id, request, isOpen) {
  // Another set each time: `load` sees that something has changed.
  const open = new Set(questions.get(id));
  if (isOpen) open.add(request);
  else open.delete(request);
  questions.set(id, open);
}

/** Notes an event of any session. */
export async function receive({ event, sessionId: id, seq, ts, payload }) {
  if (event === "turn.token" || event === "turn.thinking") return;
  if (event === "session.deleted") return remove(id);
  if (event === "session.snapshot" || event === "session.updated") {
    deleted.delete(id);
    sessions.set(id, payload.snapshot);
    return schedule();
  }
  if (event === "permission.request") noteQuestion(id, payload.requestId, true);
  if (event === "permission.resolved") noteQuestion(id, payload.requestId, false);
  const isEnd = event === "turn.done" || event === "turn.error";
  if (isEnd) questions.set(id, new Set());
  const known = await find(id);
  if (deleted.has(id)) return;
  // The list, which was read later, counts it already.
  if (seq <= known.seq) return schedule();
  const more = { seq, lastActivityAt: ts };
  if (event === "turn.queued") {
    more.queuedTurns = known.queuedTurns + 1;
    more.title = known.title ?? payload.content.trim().split("\n", 1)[0].slice(0, 80);
  }
  if (event === "turn.start") {
    more.activeTurnId = payload.turnId;
    more.queuedTurns = Math.max(0, known.queuedTurns - 1);
  }
  if (isEnd && known.activeTurnId === payload.turnId) more.activeTurnId = null;
  else if (isEnd) more.queuedTurns = Math.max(0, known.queuedTurns - 1);
  sessions.set(id, { ...known, ...more });
  schedule();
}

/** Removes a session that no longer exists. */
export function remove(id) {
  deleted.add(id);
  rows.delete(id);
  questions.delete(id);
  if (sessions.delete(id)) schedule();
}

/** Marks the session that is shown. */
export function choose(id) {
  current = id;
  schedule();
}

function render() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (summary) => {
    const text = [titleOf(summary), placeOf(summary), modelOf(summary), summary.sessionId];
    return words.every((word) => text.join(" ").toLowerCase().includes(word));
  };
  const shown = [...sessions.values()].filter(fits);
  shown.sort((a, b) => b.createdAt.localeCompare(a.createdAt));
  const elements = shown.map(rowOf);
  const list = byId("sessions");
  const isSame =
    list.childElementCount === elements.length &&
    elements.every((element, at) => list.children[at] === element);
  if (!isSame) list.replaceChildren(...elements);
  const none = words.length ? "No session fits." : "There are no sessions yet.";
  setText(byId("none"), shown.length ? "" : none);
  byId("more").hidden = !next;
}

const modelOf = ({ lastModel, model }) => oneLine(lastModel ?? model ?? "");

function rowOf(summary) {
  const id = summary.sessionId;
  let row = rows.get(id);
  if (!row) {
    const [state, title, meta, age] = ["state", "title", "meta", "age"].map((name) =>
      el("span", { class: name }),
    );
    const link = el("a", { href: `#/session/${id}` }, state, title, age, meta);
    row = { element: el("li", {}, link), link, state, title, meta, age };
    rows.set(id, row);
  }
  const state = stateOf(summary);
  row.state.className = `state ${state}`;
  setText(row.state, STATES[state]);
  setText(row.title, titleOf(summary));
  setText(row.age, duration(now() - Date.parse(summary.lastActivityAt)));
  const place = placeOf(summary).split("/").pop();
  setText(row.meta, [state !== "idle" && STATES[state], place, modelOf(summary)].filter(Boolean).join(" · "));
  row.link.title = placeOf(summary);
  if (id === current) row.link.setAttribute("aria-current", "page");
  else row.link.removeAttribute("aria-current");
  return row.element;
}

/** Asks for a directory, and creates a session there. */
async function create() {
  const hint = "The model works in this directory. Without one, it gets no tools.";
  const newest = [...sessions.values()].find((summary) => placeOf(summary).startsWith("/"));
  let [value, text] = [placeOf(newest), hint];
  for (;;) {
    const asked = { title: "New session", text, label: "Directory", value, action: "Create" };
    const directory = await ask(asked);
    if (directory == null) return;
    try {
      const body = directory ? { metadata: { workspace: directory } } : { metadata: {} };
      const made = await call("POST", "/v3/sessions", body);
      sessions.set(made.sessionId, made);
      location.hash = `#/session/${made.sessionId}`;
      return;
    } catch (error) {
      [value, text] = [directory, `${error.message}.`];
    }
  }
}

/** Connects the list with the page. */
export function start() {
  byId("filter").addEventListener("input", () => {
    schedule();
    loadAll().catch((error) => say(error.message));
  });
  byId("more").addEventListener("click", () => {
    const older = call("GET", `/v3/sessions?limit=${PAGE}&before=${next}`);
    older.then(add).catch((error) => say(error.message));
  });
  byId("new").addEventListener("click", create);
  setInterval(() => document.hidden || schedule(), 15_000);
}
