// How fast the page is. The figures are printed; only those that the machine's load hardly moves
// are asserted.

import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { join } from "node:path";

import { launch, open, until } from "./browser.mjs";

const STREAMS = 16;
const EVENTS = 100_000;

const at = (values, share) => values.slice().sort((a, b) => a - b)[Math.floor((values.length - 1) * share)];
const print = (name, text) => console.log(`        ${name}: ${text}`);

/** Notes in the page when each word of an answer reached the document, and when its event came. */
function watch() {
  globalThis.delays = [];
  globalThis.frames = [];
  const request = requestAnimationFrame;
  globalThis.requestAnimationFrame = (draw) =>
    request((time) => {
      const began = performance.now();
      draw(time);
      globalThis.frames.push(performance.now() - began);
    });
  const waiting = [];
  const Real = WebSocket;
  globalThis.WebSocket = class extends Real {
    constructor(...args) {
      super(...args);
      this.addEventListener("message", ({ data }) => {
        const { event, sessionId, ts, payload } = JSON.parse(data);
        if (event === "turn.token" && location.hash.endsWith(sessionId)) {
          waiting.push({
            word: payload.text.trim().split(/\s/)[0],
            sent: Date.parse(ts),
            came: performance.timeOrigin + performance.now(),
          });
        }
      });
    }
  };
  new MutationObserver(() => {
    const text = document.getElementById("log")?.textContent ?? "";
    while (waiting.length && text.includes(waiting[0].word)) {
      const { sent, came } = waiting.shift();
      // A task after the frame: it is painted.
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        const now = performance.timeOrigin + performance.now();
        globalThis.delays.push([now - sent, now - came]);
      };
      port2.postMessage(null);
    }
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
function writeLongJournal(path) {
  const lines = [];
  let seq = 1;
  const add = (event, payload) => {
    seq += 1;
    const ts = new Date(Date.now() - 60_000 + (seq / EVENTS) * 50_000).toISOString();
    const record = { v: "3", event, daemonId: "daemon_AAAAAAAA", seq, ts, payload };
    const text = JSON.stringify(record).slice(0, -1);
    lines.push(`${text},"crc":"${crc32c(text)}"}\n`);
  };
  for (let turn = 0; seq < EVENTS; turn += 1) {
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
  appendFileSync(path, lines.join(""));
}

export async function measure({ home, context, enter }) {
  const page = await enter(context, home);
  const paints = [];
  for (let round = 0; round < 5; round += 1) {
    await page.reload();
    await page.waitForSelector('body[data-connection="open"]');
    paints.push(
      await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime),
    );
  }
  print("first paint", `${at(paints, 0.5).toFixed(0)} ms (median of 5)`);

  const ids = await Promise.all(Array.from({ length: STREAMS }, (_, n) => home.session(`Stream ${n}`)));
  const watched = await context.newPage();
  await watched.addInitScript(watch);
  await watched.goto((await home.opta("web --print")).stdout.trim());
  await watched.goto(`http://127.0.0.1:${home.port}/#/session/${ids[0]}`);
  await watched.reload();
  await until(watched, () => document.getElementById("title").textContent.startsWith("Stream"));
  await Promise.all(ids.map((id) => home.submit(id, "paced 300 20")));
  await watched.waitForSelector(".row .end");
  const delays = await watched.evaluate(() => globalThis.delays);
  assert.ok(delays.length > 50, `${delays.length} words were seen`);
  const [sent, came] = [0, 1].map((which) => delays.map((pair) => pair[which]));
  print(
    "a token on the screen",
    `${delays.length} events, p50 ${at(sent, 0.5).toFixed(1)} ms, p99 ${at(sent, 0.99).toFixed(1)} ms after the daemon's event`,
  );
  print("of that in the page", `p50 ${at(came, 0.5).toFixed(1)} ms, p99 ${at(came, 0.99).toFixed(1)} ms`);
  const frames = await watched.evaluate(() => globalThis.frames);
  print("drawing a frame", `p50 ${at(frames, 0.5).toFixed(1)} ms, p99 ${at(frames, 0.99).toFixed(1)} ms`);
  await watched.close();
  await page.close();

  const large = await home.session("A long session");
  await home.opta("daemon stop");
  writeLongJournal(join(home.path, ".config/opta/sessions", large, "journal.jsonl"));
  await home.opta("daemon start");
  const browser = await launch();
  const alone = await open(browser, home);
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
  await browser.close();

  while ((await home.call("GET", "/v3/metrics")).runtime.subscriberCount > 0);
  print("no page", "no follower is left in the daemon");
}
