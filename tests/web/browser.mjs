// Chromium, and pages in it that fail a test if anything is wrong with them.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.MODULES, "package.json"));
export const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** Far more than anything here takes, even on a machine that is busy with something else. */
const TIMEOUT = 30_000;

export function launch(...more) {
  const args = ["--no-sandbox", "--disable-dev-shm-usage", ...more];
  return chromium.launch({ executablePath: process.env.CHROMIUM, args });
}

/** Opens a context whose pages may only ask the daemon, and say nothing. */
export async function open(browser, home, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(TIMEOUT);
  context.problems = [];
  context.asked = [];
  /** Errors in the console that a test expects. */
  context.expected = [];
  context.on("request", (request) => {
    const url = request.url();
    context.asked.push(url);
    const isOurs = url.startsWith(`http://127.0.0.1:${home.port}/`) || /^(file|data):/.test(url);
    if (!isOurs) context.problems.push(`a request to ${url}`);
  });
  context.on("console", (message) => {
    if (message.type() === "error") context.problems.push(message.text());
  });
  context.on("weberror", (error) => context.problems.push(String(error.error().stack)));
  return context;
}

/**
 * Opens a page that Playwright does not see: it has Chromium report each message of a WebSocket,
 * which takes more time than the page does. `script` runs before those of each document.
 */
export async function openUnwatched(browser, script) {
  const client = await browser.newBrowserCDPSession();
  const { browserContextId } = await client.send("Target.createBrowserContext");
  const target = { url: "about:blank", browserContextId, width: 1280, height: 800 };
  const { targetId } = await client.send("Target.createTarget", target);
  const { sessionId } = await client.send("Target.attachToTarget", { targetId });
  const waiting = new Map();
  client.on("Target.receivedMessageFromTarget", ({ message }) => {
    const { id, method, result, error } = JSON.parse(message);
    waiting.get(id ?? method)?.({ result, error });
    waiting.delete(id ?? method);
  });
  let last = 0;
  const send = async (method, params = {}) => {
    const message = JSON.stringify({ id: (last += 1), method, params });
    const answer = new Promise((resolve) => waiting.set(last, resolve));
    await client.send("Target.sendMessageToTarget", { sessionId, message });
    const { result, error } = await answer;
    if (error) throw new Error(`${method}: ${error.message}`);
    return result;
  };
  await send("Page.enable");
  await send("Page.addScriptToEvaluateOnNewDocument", { source: `(${script})()` });
  const load = async (method, params) => {
    const loaded = new Promise((resolve) => waiting.set("Page.loadEventFired", resolve));
    await send(method, params);
    await loaded;
  };
  return {
    goto: (url) => load("Page.navigate", { url }),
    reload: () => load("Page.reload"),
    async evaluate(run, argument) {
      const expression = `(${run})(${JSON.stringify(argument)})`;
      const how = { expression, awaitPromise: true, returnByValue: true };
      const { result, exceptionDetails: thrown } = await send("Runtime.evaluate", how);
      if (thrown) throw new Error(thrown.exception?.description ?? thrown.text);
      return result.value;
    },
    close: () => client.send("Target.disposeBrowserContext", { browserContextId }),
  };
}

export function problems({ problems, expected }) {
  return problems.filter((text) => !expected.some((pattern) => pattern.test(text)));
}

/** Returns what axe finds wrong with a page. CSP forbids scripts, so it is evaluated. */
export async function violations(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" ; ")}`,
  );
}

/** Waits until a function is true in a page. CSP forbids what Playwright has for it. */
export async function until(page, isSo, argument) {
  const deadline = Date.now() + TIMEOUT;
  while (!(await page.evaluate(isSo, argument))) {
    if (Date.now() > deadline) throw new Error(`not in time: ${isSo} (${argument ?? ""})`);
    await page.evaluate(() => new Promise(requestAnimationFrame));
  }
}
