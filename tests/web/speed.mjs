// How fast the page is. The figures are printed; only those that the machine's load hardly moves
// are asserted.

import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { join } from "node:path";

import { launch, open, openUnwatched, until } from "./browser.mjs";

const STREAMS = 16;
const EVENTS = 100_000;

const at = (values, share) => values.slice().sort((a, b) => a - b)[Math.floor((values.length - 1) * share)];
const print = (name, text) => console.log(`        ${name}: ${text}`);

/**
 * Notes of each word of the answer that is shown when its event was made (by the daemon's clock, in
 * whole milliseconds), came, was in the document, and was in a frame that was handed over to be drawn.
 */
function watch() {
  const now = () => performance.timeOrigin + performance.now();
  const words = (globalThis.words = []);
  globalThis.ended = new Promise((resolve) => {
    globalThis.end = resolve;
  });
  const Real = WebSocket;
  globalThis.WebSocket = class extends Real {
    constructor(...args) {
      super(...args);
      this.addEventListener("message", ({ data }) => {
        const id = location.hash.split("/")[2];
        if (!id || !data.includes(id) || !data.includes("turn.token")) return;
        const { ts, payload } = JSON.parse(data);
        // The daemon may send several in one event.
        const text = payload.text.trim().split(/\s/)[0];
        words.push({ text, made: Date.parse(ts), came: now() });
      });
    }
  };
  let drawing = false;
  const request = requestAnimationFrame.bind(globalThis);
  globalThis.requestAnimationFrame = (draw) =>
    request((time) => {
      drawing = true;
      draw(time);
      queueMicrotask(() => (drawing = false));
    });
  let [shown, drawn] = [0, 0];
  // A task after the frame: it is handed over.
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    while (drawn < data) words[drawn++].drawn = now();
  };
  const note = () => port2.postMessage(shown);
  new MutationObserver(() => {
    const rows = [...document.querySelectorAll(".row")].slice(-2);
    const text = rows.map(({ textContent }) => textContent).join(" ");
    const before = shown;
    while (shown < words.length && text.includes(words[shown].text)) words[shown++].shown = now();
    if (shown > before) (drawing ? (run) => run() : request)(note);
    if (document.querySelector(".row .end")) request(() => setTimeout(globalThis.end));
  }).observe(document, { subtree: true, childList: true, characterData: true });
}

/** Returns the CRC-32C of a text, as the records of a journal have it. */
function crc32c(text) {
  let crc = ~0;
  for (const byte of Buffer.from(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

/** Adds turns to the journal of a new session, as a model that writes word by word would. */
export function writeLongJournal(home, id, count) {
  const lines = [];
  let seq = 1;
  const add = (event, payload) => {
    seq += 1;
    const ts = new Date(Date.now() - 60_000 + (seq / count) * 50_000).toISOString();
    const record = { v: "3", event, daemonId: "daemon_AAAAAAAA", seq, ts, payload };
    const text = JSON.stringify(record).slice(0, -1);
    lines.push(`${text},"crc":"${crc32c(text)}"}\n`);
  };
  for (let turn = 0; seq < count; turn += 1) {
    const head = { turnId: `turn_${turn}`, writerId: "test", clientId: "test", mode: "chat" };
    add("turn.queued", { ...head, queueSize: 1, position: 0, content: `Question ${turn}` });
    add("turn.start", head);
    for (let word = 0; word < 300; word += 1) {
      add("turn.token", { turnId: head.turnId, text: `word${word}${word % 40 ? " " : "\n\n"}` });
    }
    const call = {
      turnId: head.turnId,
      name: "read_file",
      id: "c",
      toolName: "read_file",
      callId: "c",
      toolCallId: "c",
    };
    add("tool.start", { ...call, args: '{"path":"a"}', input: { path: "a" } });
    add("tool.end", { ...call, result: "a line\n".repeat(20), durationMs: 3, elapsed: 3, success: true });
    add("turn.token", { turnId: head.turnId, text: "Done." });
    add("turn.done", {
      turnId: head.turnId,
      writerId: "test",
      clientId: "test",
      stats: { tokens: 301, elapsed: 900, completionTokens: 301 },
    });
  }
  appendFileSync(join(home.path, ".config/opta/sessions", id, "journal.jsonl"), lines.join(""));
}

/** Measures how fast the page appears. */
async function measurePaint(home, browser) {
  const page = await openUnwatched(browser, watch);
  const paint = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  const [first, again] = [[], []];
  for (let round = 0; round < 5; round += 1) {
    await page.goto("about:blank");
    await page.goto((await home.opta("web --print")).stdout.trim());
    await until(page, () => document.body.dataset.connection === "open");
    await until(page, paint);
    first.push(await page.evaluate(paint));
    await page.reload();
    await until(page, paint);
    again.push(await page.evaluate(paint));
  }
  const [opened, reloaded] = [first, again].map((times) => at(times, 0.5).toFixed(0));
  print("first paint", `${opened} ms in a new process of the browser, ${reloaded} ms after a reload`);
  await page.close();
}

/** Measures how fast a token appears while many sessions stream. */
async function measureTokens(home, browser, display) {
  const page = await openUnwatched(browser, watch);
  await page.goto((await home.opta("web --print")).stdout.trim());
  const ids = await Promise.all(Array.from({ length: STREAMS }, (_, n) => home.session(`Stream ${n}`)));
  await until(page, () => document.body.dataset.connection === "open");
  await page.evaluate((id) => (location.hash = `#/session/${id}`), ids[0]);
  await until(page, () => document.getElementById("title").textContent.startsWith("Stream"));
  await Promise.all(ids.map((id) => home.submit(id, "paced 300 20")));
  await page.evaluate(() => globalThis.ended);
  const words = await page.evaluate(() => globalThis.words);
  assert.ok(words.length > 200, `${words.length} events`);
  assert.ok(words.every(({ drawn }) => drawn));
  for (const [name, step] of [
    ["came to the page", "came"],
    ["is in the document", "shown"],
    ["is in a frame", "drawn"],
  ]) {
    const delays = words.map((word) => word[step] - word.made);
    const [p50, p99] = [0.5, 0.99].map((share) => at(delays, share).toFixed(1));
    print(`a token ${name}`, `p50 ${p50} ms, p99 ${p99} ms after the event, ${STREAMS} streams, ${display}`);
  }
  await page.close();
}

export async function measure({ home, browser, enter }) {
  await measurePaint(home, browser);
  await measureTokens(home, browser, "60 frames a second");
  // What the page takes, without the wait for a display.
  const unlimited = await launch("--disable-frame-rate-limit", "--disable-gpu-vsync");
  await measureTokens(home, unlimited, "as many frames as there can be");
  await unlimited.close();

  const large = await home.session("A long session");
  await home.opta("daemon stop");
  writeLongJournal(home, large, EVENTS);
  await home.opta("daemon start");
  const fresh = await launch();
  const alone = await open(fresh, home);
  const reader = await enter(alone, home);
  await reader.waitForSelector(`#sessions a[href$="${large}"]`);
  const opened = await reader.evaluate(async (id) => {
    const start = performance.now();
    location.hash = `#/session/${id}`;
    while (!document.querySelector(".row .end")) await new Promise(requestAnimationFrame);
    return performance.now() - start;
  }, large);
  print("opened", `${opened.toFixed(0)} ms`);
  const asked = alone.asked.filter((url) => url.includes(`/${large}/events`)).length;
  assert.ok(asked <= 3, `${asked} requests, although only the end is shown`);
  const steps = await reader.evaluate(async () => {
    const log = document.getElementById("log");
    const times = [];
    let last = performance.now();
    for (let frame = 0; frame < 300; frame += 1) {
      log.scrollTop -= 150;
      await new Promise(requestAnimationFrame);
      times.push(performance.now() - last);
      last = performance.now();
    }
    return times;
  });
  const total = steps.reduce((sum, time) => sum + time, 0);
  print(
    "scrolled",
    `${(300_000 / total).toFixed(0)} frames a second, the slowest 1% took ${at(steps, 0.99).toFixed(0)} ms`,
  );
  // All of it, to the first message.
  await reader.evaluate(async () => {
    const log = document.getElementById("log");
    const isFirst = () =>
      document.querySelector(".row .user") && log.scrollTop < 1 && log.dataset.first === "1";
    while (!isFirst()) {
      log.scrollTop = 0;
      await new Promise(requestAnimationFrame);
    }
  });
  const rows = await reader.$$eval(".row", (all) => all.length);
  assert.ok(rows < 200, `${rows} rows are in the document`);
  const client = await alone.newCDPSession(reader);
  await client.send("HeapProfiler.collectGarbage");
  await client.send("Performance.enable");
  const { metrics } = await client.send("Performance.getMetrics");
  const heap = metrics.find(({ name }) => name === "JSHeapUsedSize").value / 2 ** 20;
  print("memory", `${heap.toFixed(1)} MiB of JavaScript with all of it read, ${rows} rows in the document`);
  assert.ok(heap <= 150);
  await fresh.close();

  while ((await home.call("GET", "/v3/metrics")).runtime.subscriberCount > 0);
  print("no page", "no follower is left in the daemon");
}
