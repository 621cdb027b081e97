// One session: its conversation as it grows, its questions, and the composer.

import { CLIENT, call, events, operation } from "./api.js";
import { card } from "./cards.js";
import * as composer from "./composer.js";
import { Conversation } from "./conversation.js";
import { ask, byId, eachFrame, el, oneLine, say, setText } from "./dom.js";
import { question, questionPanel } from "./permission.js";
import { VirtualList } from "./scroll.js";
import * as list from "./sessions.js";

/** The events that are read at once. */
const STRETCH = 1000;

let id = null;
let conversation = new Conversation();
/** Events that arrived and are not shown yet. */
let pending = [];
/** What is being read now; events wait for it. */
let reading = null;
/** The connection was opened while something was being read, which may not have the newest. */
let missed = false;
let readingEarlier = false;
let shownQuestion = null;
/** What the user always allows in turns of this page. */
const always = [];

const view = new VirtualList(byId("log"), (item) => card(item, id), readEarlier);

/** Shows a session. */
export async function open(next) {
  if (id === next) return;
  id = next;
  [conversation, pending, reading] = [new Conversation(), [], null];
  composer.open(id);
  byId("gone").hidden = true;
  byId("composer").hidden = false;
  view.show([]);
  view.toEnd();
  render();
  await read(readEnd);
  if (matchMedia("(pointer: fine)").matches && id === next) byId("input").focus();
}

/** Shows no session. */
export function close() {
  id = null;
}

/** Reads what was missed while the connection was lost. */
export async function catchUp() {
  if (reading) missed = true;
  else if (id) await read(readNew);
}

/** Reads; only then come the events that have arrived meanwhile. */
async function read(reader) {
  const mine = (reading = {});
  try {
    await reader();
  } catch (error) {
    if (mine !== reading) return;
    // The next event, or the next connection, reads them again.
    pending = [];
    if (error.status === 404) gone();
    else if (error.status !== 401 && error.status !== 0) say(error.message);
  }
  if (mine !== reading) return;
  reading = null;
  if (missed) {
    missed = false;
    return read(readNew);
  }
  drain();
  render();
}

async function readStretch(from, after, last) {
  const stretch = new Conversation();
  while (after < last) {
    const reply = await events(from, after, Math.min(STRETCH, last - after));
    if (!reply.events.length) break;
    reply.events.forEach((event) => stretch.append(event));
    after = stretch.last;
  }
  stretch.last = Math.max(stretch.last, last);
  return stretch;
}

/** Reads the end of the session, and shows it. */
async function readEnd() {
  const from = id;
  const { lastSeq } = await events(from, Number.MAX_SAFE_INTEGER, 1);
  const stretch = await readStretch(from, Math.max(0, lastSeq - STRETCH), lastSeq);
  if (id !== from) return;
  conversation = stretch;
  for (const payload of stretch.questions.values()) react({ event: "permission.request", payload });
  await list.find(id);
}

/** Reads the events after those that are known. */
async function readNew() {
  const [from, target, missed] = [id, conversation, []];
  if (!target.last) return readEnd();
  for (;;) {
    const reply = await events(from, target.last);
    const fresh = reply.events.filter(({ seq }) => seq > target.last);
    if (!fresh.length) break;
    fresh.forEach((event) => target.append(event));
    missed.push(...fresh);
  }
  if (target === conversation) missed.forEach(react);
}

async function readEarlier() {
  if (readingEarlier || reading || !id || conversation.first <= 1 || conversation.first === Infinity) return;
  readingEarlier = true;
  const target = conversation;
  const last = target.first - 1;
  try {
    const stretch = await readStretch(id, Math.max(0, last - STRETCH), last);
    // What is damaged is left out.
    stretch.first = Math.max(1, last - STRETCH + 1);
    target.prepend(stretch);
    if (target === conversation) render();
  } catch {
    // The banner says why; scrolling tries again.
  }
  readingEarlier = false;
}

/** Notes an event of any session. */
export function receive(event) {
  if (event.sessionId !== id) return;
  if (event.event === "session.deleted") return gone();
  if (event.event === "session.updated") return schedule();
  pending.push(event);
  if (!reading) drain();
}

function drain() {
  while (pending.length) {
    const [event] = pending;
    if (event.seq > conversation.last + 1) {
      const before = conversation.last;
      read(async () => {
        await readNew();
        // It cannot be read: there is nothing to wait for.
        if (conversation.last === before) conversation.last = event.seq - 1;
      });
      return;
    }
    pending.shift();
    if (event.seq > conversation.last) {
      conversation.append(event);
      react(event);
    }
  }
  schedule();
}

/** Does and says what an event asks for, now that it happens. */
function react({ event, payload }) {
  // One that was missed may be answered.
  if (event === "permission.request" && conversation.questions.has(payload.requestId)) {
    const isOwn = conversation.turns.get(payload.turnId)?.client === CLIENT;
    if (isOwn && always.some((one) => one.allows(payload))) return decide(payload, "allow");
    setText(byId("announcement"), question(payload));
  }
  if (
    event === "permission.resolved" &&
    payload.requestId === shownQuestion &&
    payload.decidedBy !== CLIENT
  ) {
    say(`answered elsewhere: ${payload.decision}`);
  }
  if (event === "turn.start") setText(byId("announcement"), "");
  if (event === "turn.done") setText(byId("announcement"), "The answer is complete.");
  if (event === "turn.error")
    setText(byId("announcement"), `The turn has failed: ${oneLine(payload.message)}`);
}

const schedule = eachFrame(render);

function render() {
  if (!id) return;
  view.show(conversation.items);
  const summary = list.session(id) ?? conversation.summary;
  const title = list.titleOf(summary);
  setText(byId("title"), title);
  const name = `${title} – opta`;
  if (document.title !== name) document.title = name;
  const model = summary?.lastModel ?? summary?.model;
  setText(byId("about"), [list.placeOf(summary), oneLine(model ?? "")].filter(Boolean).join(" · "));
  const isBusy = Boolean(conversation.running);
  byId("stop").hidden = !isBusy;
  byId("log").setAttribute("aria-busy", String(isBusy));
  byId("log").dataset.first = conversation.first;
  byId("empty").hidden = Boolean(reading) || conversation.items.length > 0 || conversation.queue.length > 0;
  renderQueue();
  renderQuestion();
}

function renderQueue() {
  const rows = conversation.queue.map(([turn, { text }]) => {
    const remove = { type: "button", class: "quiet", onclick: () => cancel(turn) };
    return el("li", {}, el("span", {}, oneLine(text)), el("button", remove, "Remove"));
  });
  const key = conversation.queue.map(([turn]) => turn).join();
  if (byId("queue").dataset.key === key) return;
  byId("queue").dataset.key = key;
  byId("queue").replaceChildren(...rows);
}

function renderQuestion() {
  const panel = byId("question");
  const [asked] = conversation.questions.values();
  if ((asked?.requestId ?? null) === shownQuestion) return;
  shownQuestion = asked?.requestId ?? null;
  panel.hidden = !asked;
  if (!asked) return panel.replaceChildren();
  const answer = (decision, scope) => {
    if (scope) always.push(scope);
    decide(asked, decision);
  };
  panel.replaceChildren(...questionPanel(asked, answer));
}

async function decide({ requestId }, decision) {
  const body = { requestId, decision, decidedBy: CLIENT };
  await attempt(call("POST", `/v3/sessions/${id}/permissions/${requestId}`, body));
}

/** Says what failed. Returns undefined then. */
async function attempt(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.status === 404 && /session/.test(error.message)) gone();
    say(error.message);
  }
}

async function cancel(turnId) {
  await attempt(call("POST", `/v3/sessions/${id}/cancel`, { turnId }));
}

function gone() {
  byId("gone").hidden = false;
  byId("composer").hidden = true;
  byId("empty").hidden = true;
  list.remove(id);
}

async function rename() {
  const value = list.titleOf(list.session(id) ?? conversation.summary);
  const renamed = id;
  const title = await ask({ title: "Rename the session", label: "Title", value, action: "Rename" });
  if (title) await attempt(operation("sessions.rename", { sessionId: renamed, title }));
}

async function exportSession() {
  const done = await attempt(operation("sessions.export", { sessionId: id, format: "markdown" }));
  if (done) say(`Exported to ${done.path}`);
}

async function remove() {
  const title = `Delete “${list.titleOf(list.session(id) ?? conversation.summary)}”?`;
  const text = "The session is deleted permanently, with all that was said in it.";
  // "Back" may show another one while the dialog is open.
  const deleted = id;
  if (!(await ask({ title, text, action: "Delete", danger: true }))) return;
  if (!(await attempt(call("DELETE", `/v3/sessions/${deleted}`)))) return;
  list.remove(deleted);
  if (id === deleted) location.hash = "#/";
}

/** Connects the session with the page. */
export function start() {
  composer.start(attempt, () => view.toEnd());
  byId("stop").addEventListener("click", () => cancel(conversation.running));
  byId("rename").addEventListener("click", rename);
  byId("export").addEventListener("click", exportSession);
  byId("delete").addEventListener("click", remove);
  byId("latest").addEventListener("click", () => view.toEnd());
  byId("log").addEventListener("scroll", () => (byId("latest").hidden = view.isAtEnd), { passive: true });
  document.addEventListener("keydown", ({ key, target, repeat, ctrlKey, metaKey, altKey }) => {
    const isTyping = target.closest("input, select, textarea, dialog") || ctrlKey || metaKey || altKey;
    // A key that is held must not answer the next question.
    if (!isTyping && !repeat && id)
      byId("question")
        .querySelector(`[aria-keyshortcuts="${CSS.escape(key)}"]`)
        ?.click();
  });
}
