// The composer: Enter sends, Shift-Enter breaks the line, and a draft survives a reload.

import { CLIENT, call } from "./api.js";
import { byId } from "./dom.js";

let id = null;
/** The turn that is being sent: sent again, it is still one turn. */
let turn = null;

/** Shows the draft of a session. */
export function open(next) {
  id = next;
  turn = null;
  byId("input").value = sessionStorage.getItem(`draft ${id}`) ?? "";
  fit();
}

/** Makes the composer as high as its text. */
function fit() {
  const { style } = byId("input");
  style.height = "auto";
  style.height = `${Math.min(byId("input").scrollHeight + 2, innerHeight / 3)}px`;
}

async function send(attempt) {
  const content = byId("input").value;
  if (!content.trim()) return false;
  if (turn?.content !== content) turn = { content, turnId: `turn_${crypto.randomUUID()}` };
  const to = id;
  const body = { ...turn, clientId: CLIENT, writerId: CLIENT };
  byId("send").disabled = true;
  const accepted = await attempt(call("POST", `/v3/sessions/${to}/turns`, body));
  byId("send").disabled = false;
  if (!accepted) return false;
  // What was typed meanwhile is the next draft.
  if (sessionStorage.getItem(`draft ${to}`) === content) sessionStorage.removeItem(`draft ${to}`);
  if (to === id && byId("input").value === content) open(id);
  return true;
}

/** Connects the composer with the page. `attempt` says what fails; `onSent` is called after. */
export function start(attempt, onSent) {
  const input = byId("input");
  const submit = async (event) => {
    event.preventDefault();
    if (await send(attempt)) onSent();
  };
  byId("composer").addEventListener("submit", submit);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  input.addEventListener("input", () => {
    if (input.value) sessionStorage.setItem(`draft ${id}`, input.value);
    else sessionStorage.removeItem(`draft ${id}`);
    fit();
  });
}
