// The flows, and the steps that many of them take.

import { until } from "./browser.mjs";

export const flows = [];
export const flow = (name, run) => flows.push({ name, run });

/** What the console says of a daemon that is gone, or was restarted. */
export const REFUSED =
  /Failed to load resource: (the server responded with a status of (401|503)|net::ERR_CONNECTION_REFUSED|net::ERR_)/;

export const address = (home, path = "") => `http://127.0.0.1:${home.port}/${path}`;

export async function send(page, text) {
  await page.fill("#input", text);
  await page.press("#input", "Enter");
}

export const answered = (page, text) =>
  until(page, (wanted) => document.getElementById("log").textContent.includes(wanted), text);

/** Opens the page with the token, as a pasted URL does. */
export async function enter(context, home) {
  const page = await context.newPage();
  await page.goto((await home.opta("web --print")).stdout.trim());
  await page.waitForSelector('body[data-connection="open"]');
  return page;
}

export async function enterSession(context, home, id) {
  const page = await enter(context, home);
  await page.goto(address(home, `#/session/${id}`));
  await until(page, () => document.getElementById("title").textContent !== "Session");
  return page;
}

/** Returns something to wait for, and how to let go what waits. */
export function gate() {
  let open;
  const opened = new Promise((resolve) => (open = resolve));
  return { open, opened };
}

/** Has each page note its WebSockets in `sockets`. */
export const noteSockets = (context) =>
  context.addInitScript(() => {
    globalThis.sockets = [];
    const Real = WebSocket;
    globalThis.WebSocket = class extends Real {
      constructor(...args) {
        super(...args);
        globalThis.sockets.push(this);
      }
    };
  });
