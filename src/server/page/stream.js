// The stream of all events: one WebSocket for the page. That it is lost is shown within two
// seconds, and it is opened again after pauses of up to ten.

import { call, hasToken, onToken, setClock, shareToken, streamUrl } from "./api.js";

const PAUSE_MIN = 250;
const PAUSE_MAX = 10_000;
const SILENCE_MAX = 10_000;

/**
 * Follows all sessions. `onEvent` gets each event; `onState` gets "open", "silent", "lost" or
 * "refused", and the state before. Nothing is missed between "silent" and "open".
 */
export function follow(onEvent, onState) {
  let socket = null;
  let state = "";
  let pause = PAUSE_MIN;
  let timer = 0;
  let heard = 0;
  let attempt = 0;

  const set = (next) => {
    if (next === state) return;
    const before = state;
    state = next;
    onState(next, before);
  };

  const lose = () => {
    const lost = socket;
    socket = null;
    lost?.close();
    set("lost");
    timer = setTimeout(connect, pause);
    pause = Math.min(pause * 2, PAUSE_MAX);
  };

  const connect = async () => {
    clearTimeout(timer);
    // One that was still opening would stay open.
    socket?.close();
    socket = null;
    if (!hasToken()) return set("refused");
    const mine = (attempt += 1);
    try {
      // A WebSocket that fails does not say why, and shows its address in the console.
      await call("GET", "/v3/health", undefined, SILENCE_MAX);
    } catch (error) {
      if (mine !== attempt) return;
      // The daemon was restarted, and has another token.
      if (error.status === 401) set("refused");
      else lose();
      return;
    }
    if (mine !== attempt) return;
    shareToken();
    const current = (socket = new WebSocket(streamUrl()));
    heard = performance.now();
    current.onopen = () => current.send('{"type":"ping"}');
    current.onclose = () => current === socket && lose();
    current.onmessage = ({ data }) => {
      if (current !== socket) return;
      heard = performance.now();
      const message = JSON.parse(data);
      if (message.type === "pong") {
        setClock(message.ts);
        pause = PAUSE_MIN;
        set("open");
      } else if (message.sessionId) onEvent(message);
    };
  };

  // A connection that is cut elsewhere, or a daemon that hangs, closes nothing.
  setInterval(() => {
    if (document.hidden || !socket) return;
    const silence = performance.now() - heard;
    if (silence > SILENCE_MAX) return lose();
    if (silence > 1200 && state === "open") set("silent");
    if (silence > 500 && socket.readyState === WebSocket.OPEN) socket.send('{"type":"ping"}');
  }, 400);
  document.addEventListener("visibilitychange", () => {
    heard = performance.now();
    if (state === "lost" && !document.hidden) connect();
  });
  onToken(connect);
  connect();
}
