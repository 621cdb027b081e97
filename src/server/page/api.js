// Requests to the daemon, with the token: the same API that every other client uses.

const KEPT = "opta-token";
/** The name under which this tab writes turns. */
export const CLIENT = "web-" + crypto.randomUUID().slice(0, 8);

let token = sessionStorage.getItem(KEPT);
let clockAhead = 0;
const listeners = new Set();

export const hasToken = () => Boolean(token);
/** Calls `listener` when there is a new token. */
export const onToken = (listener) => listeners.add(listener);

function setToken(next) {
  if (next === token) return;
  token = next;
  sessionStorage.setItem(KEPT, token);
  for (const listener of listeners) listener();
}

/** Takes the token out of the address bar. `view` is the fragment of what is shown. */
export function takeToken(view = "") {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  history.replaceState(null, "", `/${view}`);
  setToken(found[1]);
}

const tokens = new BroadcastChannel(KEPT);
tokens.addEventListener("message", ({ data }) => setToken(data));
/** Hands the token to the other tabs of this page. Only one that the daemon has accepted: any page
 * may open this one with another. */
export const shareToken = () => tokens.postMessage(token);

/** The time on the daemon's clock: this machine may be another one, with a wrong clock. */
export const now = () => Date.now() + clockAhead;
export const setClock = (ts) => (clockAhead = ts - Date.now());

/** An answer of the daemon that is an error, or no answer at all (status 0). */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends a request. Returns the object in the reply. `limit` is in milliseconds. */
export async function call(method, path, body, limit) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const options = { method, headers, body: body && JSON.stringify(body), cache: "no-store" };
  if (limit) options.signal = AbortSignal.timeout(limit);
  const reply = await fetch(path, options).catch(() => {
    throw new Refused(0, "the daemon cannot be reached");
  });
  const text = await reply.text();
  const answer = text ? JSON.parse(text) : {};
  if (reply.ok) return answer;
  throw new Refused(reply.status, answer.error?.message ?? `the status is ${reply.status}`);
}

/** Performs an operation. */
export async function operation(id, input = {}) {
  return (await call("POST", `/v3/operations/${id}`, { input })).result;
}

/** Returns the events of a session after number `after`, `limit` at most, and the last number. */
export const events = (id, after, limit = 1000) =>
  call("GET", `/v3/sessions/${id}/events?afterSeq=${after}&limit=${limit}&answers=0`);

/** The address of the stream of all events. A WebSocket has no headers. */
export const streamUrl = () => `ws://${location.host}/v3/ws?token=${token}`;
