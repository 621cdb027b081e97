// The events of a session, made into the items that are shown. Nothing here touches the document.
//
// Events come from the end of the session first, in stretches: `append` adds the next event, and
// `prepend` an earlier stretch.

import { openFence } from "./markdown.js";

/** An item with more text is followed by another one, so that only a short end changes. */
const TEXT_MAX = 3000;
/** The part of a tool's result that is kept. */
export const RESULT_MAX = 20_000;

const ENDS = new Set(["turn.done", "turn.error"]);

export class Conversation {
  items = [];
  /** What is known of each turn: input, client and state. */
  turns = new Map();
  /** The questions that wait for an answer. */
  questions = new Map();
  /** The numbers of the first and the last event. */
  first = Infinity;
  last = 0;
  summary = null;

  append({ event, seq, ts, payload }) {
    this.first = Math.min(this.first, seq);
    this.last = seq;
    const turn = payload.turnId;
    switch (event) {
      case "session.snapshot":
        this.summary = payload.snapshot;
        break;
      case "turn.queued":
        this.turn(turn, { text: payload.content, client: payload.clientId, state: "queued" });
        break;
      case "turn.start":
        this.turn(turn, { state: "running", client: payload.clientId });
        this.push({ kind: "user", turn, ts, text: this.turns.get(turn).text });
        break;
      case "turn.token":
        this.addText("answer", turn, payload.text);
        break;
      case "turn.thinking":
        this.addText("thinking", turn, payload.text);
        break;
      case "turn.notice":
        this.push({ kind: "notice", turn, text: payload.text });
        break;
      case "tool.start":
        this.push({ kind: "tool", turn, id: payload.id, name: payload.name, input: payload.input });
        break;
      case "tool.end":
        this.endTool(turn, payload);
        break;
      case "permission.request":
        this.questions.set(payload.requestId, payload);
        break;
      case "permission.resolved":
        this.questions.delete(payload.requestId);
        this.push({ kind: "decision", turn, decision: payload.decision, by: payload.decidedBy });
        break;
    }
    if (ENDS.has(event)) this.endTurn(turn, payload);
  }

  turn(id, more) {
    this.turns.set(id, { ...this.turns.get(id), ...more });
  }

  push(item) {
    this.items.push({ version: 0, ...item });
  }

  addText(kind, turn, text) {
    let item = this.items.at(-1);
    if (item?.kind !== kind || item.turn !== turn) {
      this.push({ kind, turn, text: "", continued: false });
      item = this.items.at(-1);
    }
    item.text += text;
    item.version += 1;
    if (item.text.length > TEXT_MAX) this.split(item);
  }

  /** Moves the last paragraph of a long text to an item of its own; of one without, the last line. */
  split(item) {
    const { text, fence = "" } = item;
    const end = text.lastIndexOf("\n\n");
    const isWhole =
      end > 0 &&
      !openFence(fence + text.slice(0, end)) &&
      !/^\n*(\s|[-*+>|]|\d+\.)/.test(text.slice(end + 2));
    if (!isWhole && text.length < 8 * TEXT_MAX) return;
    const at = isWhole ? end + 2 : text.lastIndexOf("\n") + 1 || text.length;
    item.text = text.slice(0, at);
    this.push({ kind: item.kind, turn: item.turn, text: text.slice(at), continued: true });
    this.items.at(-1).fence = openFence(fence + item.text);
  }

  endTool(turn, { id, name, result, success, durationMs }) {
    const isThis = (item) => item.kind === "tool" && item.id === id && item.turn === turn;
    let item = this.items.findLast(isThis);
    if (!item) {
      // It began in an earlier stretch.
      this.push({ kind: "tool", turn, id, name });
      item = this.items.at(-1);
    }
    item.cut = Math.max(0, result.length - RESULT_MAX);
    item.result = result.slice(0, RESULT_MAX);
    // A command's end says how it exited.
    item.tail = item.cut ? result.slice(-200) : "";
    item.success = success;
    item.ms = durationMs;
    item.version += 1;
  }

  endTurn(turn, { stats, code, message }) {
    const known = this.turns.get(turn);
    this.turn(turn, { state: "ended" });
    // It was removed from the queue.
    if (known?.state === "queued" && code === "cancelled") return;
    for (const [id, question] of this.questions) {
      if (question.turnId === turn) this.questions.delete(id);
    }
    for (const item of this.items) {
      if (item.turn === turn && item.kind === "tool") item.over = item.version += 1;
    }
    this.push(stats ? { kind: "done", turn, stats } : { kind: "error", turn, code, message });
  }

  /** The inputs that wait, in order. */
  get queue() {
    return [...this.turns].filter(([, turn]) => turn.state === "queued");
  }

  get running() {
    return [...this.turns].find(([, turn]) => turn.state === "running")?.[0];
  }

  /** Adds an earlier stretch, which ends just before this one. */
  prepend(earlier) {
    for (const [id, turn] of earlier.turns) {
      const known = this.turns.get(id);
      this.turns.set(id, { ...turn, ...known, text: known?.text ?? turn.text });
    }
    this.completeItems(earlier);
    const [end, begin] = [earlier.items.at(-1), this.items[0]];
    const isText = begin?.kind === "answer" || begin?.kind === "thinking";
    if (isText && end?.kind === begin.kind && end.turn === begin.turn) {
      begin.text = end.text + begin.text;
      begin.version += 1;
      [begin.continued, begin.fence] = [end.continued, end.fence];
      earlier.items.pop();
      // Only now is it known whether a block of code had begun.
      for (let at = 1; this.items[at]?.continued; at += 1) {
        const before = this.items[at - 1];
        this.items[at].fence = openFence((before.fence ?? "") + before.text);
        this.items[at].version += 1;
      }
    }
    this.items = earlier.items.concat(this.items);
    this.first = earlier.first;
    this.summary ??= earlier.summary;
    for (const [id, question] of earlier.questions) {
      if (
        this.turns.get(question.turnId)?.state === "running" &&
        !this.items.some((item) => item.kind === "decision" && item.turn === question.turnId)
      )
        this.questions.set(id, question);
    }
  }

  completeItems(earlier) {
    const calls = new Map();
    for (const item of earlier.items) {
      if (item.kind === "tool") calls.set(`${item.turn} ${item.id}`, item);
    }
    this.items = this.items.filter((item) => {
      if (item.kind === "user" && item.text == null) {
        item.text = this.turns.get(item.turn)?.text;
        item.version += 1;
      }
      const call = item.kind === "tool" && !item.input && calls.get(`${item.turn} ${item.id}`);
      if (!call) return true;
      const { result, cut, tail, success, ms, over } = item;
      Object.assign(call, { result, cut, tail, success, ms, over, version: call.version + 1 });
      return false;
    });
  }
}
