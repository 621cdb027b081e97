// What goes wrong: lost connections, failed reads, races, hostile texts, and keys that mean another
// thing.

import assert from "node:assert/strict";

import { until } from "./browser.mjs";
import { writeLongJournal } from "./speed.mjs";
import { REFUSED, address, answered, enter, enterSession, flow, gate, noteSockets, send } from "./steps.mjs";

/** Cuts the connection of a page. It comes back when the returned function is called. */
async function disconnect(page) {
  const [asked, again] = [gate(), gate()];
  await page.route("**/v3/health", async (route) => {
    asked.open();
    await again.opened;
    await route.continue();
  });
  await page.evaluate(() => globalThis.sockets.at(-1).close());
  await asked.opened;
  return async () => {
    again.open();
    // The route stays: without one, Chromium may lose the answers that are on their way.
    await page.waitForSelector('body[data-connection="open"]');
  };
}

flow("a session that a command deletes leaves the page", async ({ home, context }) => {
  const [id, other] = [await home.session("In a terminal"), await home.session("Another")];
  const page = await enterSession(context, home, id);
  await page.waitForSelector("#sessions li:has-text('In a terminal')");
  await home.opta(`sessions rm --force ${other}`);
  await page.waitForSelector("#sessions li:has-text('Another')", { state: "detached" });
  await home.opta(`sessions rm --force ${id}`);
  await page.waitForSelector("#gone:not([hidden])");
  await page.waitForSelector("#sessions li", { state: "detached" });
});

flow("what happens while the list is read is in it", async ({ home, context }) => {
  const page = await enter(context, home);
  const early = await home.session("Early");
  await page.route("**/v3/sessions?*", async (route) => {
    const reply = await route.fetch();
    await home.session("Late");
    await page.waitForSelector("#sessions li:has-text('Late')");
    await home.opta(`sessions rm --force ${early}`);
    await home.session("Last");
    await page.waitForSelector("#sessions li:has-text('Last')");
    await route.fulfill({ response: reply });
  });
  await page.reload();
  await page.waitForSelector("#list-loading", { state: "detached" });
  assert.deepEqual(await listed(page), ["Last", "Late"]);
});

/** Returns the titles in the list when the next frame shows what was read. */
async function listed(page) {
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  return page.$$eval("#sessions .title", (all) => all.map(({ textContent }) => textContent));
}

flow("a session that is deleted while it is read stays away", async ({ home, context }) => {
  context.expected.push(/status of 404/);
  const id = await home.session("Early");
  const page = await context.newPage();
  await page.route("**/v3/sessions?*", (route) => route.fulfill({ json: { sessions: [], next: null } }));
  const [asked, deleted] = [gate(), gate()];
  let reads = 0;
  await page.route(`**/v3/sessions/${id}`, async (route) => {
    reads += 1;
    const reply = await route.fetch();
    asked.open();
    await deleted.opened;
    await route.fulfill({ response: reply });
    reads -= 1;
  });
  await page.goto((await home.opta("web --print")).stdout.trim());
  await page.waitForSelector("#list-loading", { state: "detached" });
  await home.turn(id, "hello");
  await asked.opened;
  await home.opta(`sessions rm --force ${id}`);
  await home.session("Last");
  await page.waitForSelector("#sessions li:has-text('Last')");
  deleted.open();
  while (reads) await listed(page);
  assert.deepEqual(await listed(page), ["Last"]);
});

flow("a session that is there again is shown again", async ({ home, context }) => {
  await noteSockets(context);
  const page = await enter(context, home);
  const id = await home.session("Again");
  await page.waitForSelector("#sessions li:has-text('Again')");
  const list = await home.call("GET", "/v3/sessions?limit=250");
  await home.opta(`sessions rm --force ${id}`);
  await page.waitForSelector("#sessions li", { state: "detached" });
  const reconnect = await disconnect(page);
  await page.route("**/v3/sessions?*", (route) => route.fulfill({ json: list }));
  await reconnect();
  await page.waitForSelector("#sessions li:has-text('Again')");
});

flow("a list that cannot be read takes no mark of a question away", async ({ home, context }) => {
  context.expected.push(REFUSED);
  await noteSockets(context);
  const id = await home.session("Asks");
  const page = await enter(context, home);
  // Another one follows all the time, or else the daemon denies at once.
  await enter(context, home);
  await page.bringToFront();
  await page.goto(address(home, `#/session/${id}`));
  await page.waitForSelector("#title:has-text('Asks')");
  await send(page, "run it");
  await page.waitForSelector("#sessions .state.waiting");
  const reconnect = await disconnect(page);
  const failed = page.waitForEvent("requestfailed");
  await page.route("**/v3/sessions?*", (route) => route.abort());
  await reconnect();
  await failed;
  await home.session("Last");
  await page.waitForSelector("#sessions li:has-text('Last')");
  assert.equal(await page.$$eval("#sessions .state.waiting", (all) => all.length), 1);
});

flow("a first read that fails is repeated, and reads only the end", async ({ home, context }) => {
  context.expected.push(REFUSED);
  const id = await home.session("Long");
  await home.opta("daemon stop");
  writeLongJournal(home, id, 3000);
  await home.opta("daemon start");
  const page = await enter(context, home);
  const failed = gate();
  let fails = true;
  await page.route(`**/${id}/events?*`, (route) => {
    failed.open();
    return fails ? route.abort() : route.continue();
  });
  await page.goto(address(home, `#/session/${id}`));
  await failed.opened;
  fails = false;
  const from = context.asked.length;
  await home.turn(id, "hello");
  await page.waitForSelector(".row .end");
  await answered(page, "Nothing else was touched.");
  assert.ok(Number(await page.getAttribute("#log", "data-first")) > 1);
  const asked = context.asked.slice(from).filter((url) => url.includes("/events?afterSeq=0&"));
  assert.deepEqual(asked, []);
});

flow("a daemon that is gone in the middle of a read loses nothing", async ({ home, context }) => {
  context.expected.push(REFUSED);
  const id = await home.session("Gone");
  await home.turn(id, "paced 40 1");
  const page = await enter(context, home);
  let kills = true;
  await page.route(`**/${id}/events?*`, async (route) => {
    // The first reply says which events there are.
    if (kills && !route.request().url().includes("limit=1&")) home.kill();
    await route.continue();
  });
  await page.goto(address(home, `#/session/${id}`));
  await page.waitForSelector("#trouble:not([hidden])");
  kills = false;
  await home.opta("daemon start");
  await page.evaluate((hash) => (location.hash = hash), `#token=${home.info.token}`);
  await page.waitForSelector('body[data-connection="open"]');
  await page.waitForSelector(".row .end");
  await answered(page, "word1 ");
  await answered(page, "word39");
});

flow("what was missed is answered and announced as what comes", async ({ home, context }) => {
  await noteSockets(context);
  const id = await home.session("Missed");
  const page = await enterSession(context, home, id);
  // Another one follows all the time, or else the daemon denies at once.
  await enter(context, home);
  await page.bringToFront();
  let reconnect = await disconnect(page);
  await send(page, "run it");
  await waiting(home, id);
  await reconnect();
  await until(page, () =>
    document.getElementById("announcement").textContent.startsWith("Allow run_command"),
  );
  await page.click("#question button:has-text('this command')");
  await page.waitForSelector(".row .end");
  reconnect = await disconnect(page);
  await send(page, "run it again");
  await waiting(home, id);
  await reconnect();
  await until(page, () => document.querySelectorAll(".row .end").length === 2);
  assert.equal(await page.$$eval(".tool.done", (all) => all.length), 2);
});

/** Waits until a session asks. */
async function waiting(home, id) {
  for (let after = 0; ; ) {
    const { events } = await home.call("GET", `/v3/sessions/${id}/events?afterSeq=${after}&timeout=30000`);
    const asked = events.filter(({ event }) => event === "permission.request").length;
    const resolved = events.filter(({ event }) => event === "permission.resolved").length;
    if (asked > resolved) return;
    after = events.at(-1)?.seq ?? after;
  }
}

flow("a draft that is typed while a message is sent survives a reload", async ({ home, context }) => {
  const id = await home.session("Draft");
  const page = await enterSession(context, home, id);
  const [asked, typed] = [gate(), gate()];
  await page.route("**/turns", async (route) => {
    asked.open();
    await typed.opened;
    await route.continue();
  });
  await send(page, "hello");
  await asked.opened;
  await page.fill("#input", "the next one");
  typed.open();
  await page.waitForSelector(".row .end");
  await page.waitForSelector("#send:enabled");
  assert.equal(await page.inputValue("#input"), "the next one");
  await page.reload();
  await page.waitForSelector(".row .end");
  assert.equal(await page.inputValue("#input"), "the next one");
});

flow("a daemon that accepts and says nothing is asked again", async ({ home, context }) => {
  await context.addInitScript(() => {
    const real = AbortSignal.timeout;
    // In a hundredth of the time.
    AbortSignal.timeout = (ms) => real.call(AbortSignal, ms / 100);
  });
  const page = await context.newPage();
  let asked = 0;
  await page.route("**/v3/health", (route) => (asked += 1) > 1 && route.continue());
  await page.goto((await home.opta("web --print")).stdout.trim());
  await page.waitForSelector('body[data-connection="open"]');
});

flow("a long block of code stays one, also when its end is read first", async ({ home, context }) => {
  const id = await home.session("Code");
  const page = await enterSession(context, home, id);
  // All of it is in the document.
  await page.setViewportSize({ width: 1280, height: 3000 });
  await send(page, "code 1200");
  await page.waitForSelector(".row .end");
  const names = (count) => Array.from({ length: count }, (_, at) => `line${at}`);
  const inCode = (texts) => texts.join("\n").match(/line\d+/g);
  assert.ok((await page.$$eval(".answer", (all) => all.length)) > 1);
  const texts = (selector) => page.$$eval(selector, (all) => all.map(({ textContent }) => textContent));
  assert.deepEqual(await texts(".answer p"), ["Here:", "Done."]);
  assert.deepEqual(inCode(await texts(".answer code")), names(1200));
  const found = await page.evaluate(async () => {
    const { Conversation } = await import("/page/conversation.js");
    const { card } = await import("/page/cards.js");
    const lines = Array.from({ length: 1200 }, (_, at) => `let line${at} = ${"x".repeat(50)};\n`);
    const parts = ["Here:\n\n```rust\n", ...lines, "```\n\nDone."];
    const [early, late] = [new Conversation(), new Conversation()];
    parts.forEach((text, at) => {
      const stretch = at < 200 ? early : late;
      stretch.append({ event: "turn.token", seq: at + 1, payload: { turnId: "t", text } });
    });
    late.prepend(early);
    const whole = document.createElement("div");
    whole.append(...late.items.map((item) => card(item)));
    return ["p", "code"].map((name) => [...whole.querySelectorAll(name)].map((one) => one.textContent));
  });
  assert.deepEqual(found[0], ["Here:", "Done."]);
  assert.deepEqual(inCode(found[1]), names(1200));
});

flow("a block of code that ended does not begin again in a long answer", async ({ home, context }) => {
  const page = await enter(context, home);
  const shown = await page.evaluate(async () => {
    const { Conversation } = await import("/page/conversation.js");
    const { card } = await import("/page/cards.js");
    const prose = `${"word ".repeat(20)}\n\n`;
    const begin = [
      "- ```js\n  code\n  ```\n\n",
      "```\ncode\n     ```\n\n",
      "code\u2028```\n\n",
      "code\r```\n\n",
    ];
    return begin.map((text) => {
      const conversation = new Conversation();
      [text, ...Array(600).fill(prose)].forEach((part, at) =>
        conversation.append({ event: "turn.token", seq: at + 1, payload: { turnId: "t", text: part } }),
      );
      const whole = document.createElement("div");
      whole.append(...conversation.items.map((item) => card(item)));
      const code = [...whole.querySelectorAll("pre code")].map(({ textContent }) => textContent);
      return [conversation.items.length > 2, ...code];
    });
  });
  assert.deepEqual(shown, [[true, "code"], [true, "code"], [true], [true]]);
});

flow("the end stays on the screen when a question takes its place", async ({ home, context }) => {
  const id = await home.session("End");
  await home.turn(id, "paced 900 0");
  const page = await enterSession(context, home, id);
  await page.waitForSelector(".row .end");
  const isAtEnd = () => {
    const { scrollHeight, scrollTop, clientHeight } = document.getElementById("log");
    return scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 2;
  };
  await until(page, isAtEnd);
  await page.evaluate(() => {
    // As when the last row and the question come together.
    document.getElementById("log").scrollTop -= 5;
    document.getElementById("queue").style.height = "200px";
  });
  await until(page, isAtEnd);
  assert.equal(await page.isHidden("#latest"), true);
});

flow("a hostile text takes no longer than another one", async ({ home, context }) => {
  const page = await enter(context, home);
  const slow = await page.evaluate(async () => {
    const { markdown } = await import("/page/markdown.js");
    // The longest item: the ends of two stretches.
    const LENGTH = 48_000;
    const repeated = (part, before = "", after = "") =>
      before + part.repeat(LENGTH / part.length).slice(0, LENGTH) + after;
    const runs = Array.from({ length: 300 }, (_, at) => "`".repeat(at + 1)).join(" ");
    const parts = ["[", "![", "[x", "](", "[]("]
      .concat(["[a](b", '[a](b "', "*", "**", "**a", " *a", "_a ", " _a_", "x**", "`", "`a ", "``a`", "**`"])
      .concat([
        "https://",
        "http://a.,",
        "- ",
        "> ",
        "> - ",
        "- a\n",
        "1. ",
        "```\n",
        "````\n```\n",
        "\n ",
        "\t",
      ])
      .concat(["a|b\n-|-\n", " ", "\u00a0", "\u202e"]);
    const texts = parts
      .map((part) => repeated(part))
      .concat([runs, repeated(" ", "# ", "x"), repeated("#", "# ", "x"), repeated(" #", "# x", " x")])
      .concat([repeated(" ", "```", "`"), repeated("a", "```", "`"), repeated("~", "~~~", "`")])
      .concat([repeated(" ", "a|b\n", "x"), repeated("-", "a|b\n", "x"), repeated("|", "a|b\n-|-\n")])
      .concat([repeated(" ", "- ", "x"), repeated("* ", "", "x"), repeated(" ", "---", "x")]);
    return texts
      .map((text) => {
        const began = performance.now();
        markdown(text);
        return [text.slice(0, 8), Math.round(performance.now() - began)];
      })
      .filter(([, took]) => took > 1000);
  });
  assert.deepEqual(slow, []);
});

flow("a held key answers one question", async ({ home, context }) => {
  const id = await home.session("Held");
  const page = await enterSession(context, home, id);
  await send(page, "twice");
  await page.waitForSelector("#question h2:has-text('first.txt')");
  await page.focus("#log");
  await page.keyboard.down("y");
  await page.waitForSelector("#question h2:has-text('second.txt')");
  for (let repeat = 0; repeat < 5; repeat += 1) await page.keyboard.down("y");
  await page.keyboard.up("y");
  await page.keyboard.press("n");
  await page.waitForSelector(".row .end");
  assert.equal(await page.$$eval(".tool.denied", (all) => all.length), 1);
});

flow("keys answer no question of another session", async ({ home, context }) => {
  const [asking, shown] = [await home.session("Asking"), await home.session("Shown")];
  const page = await enterSession(context, home, asking);
  await send(page, "edit the notes");
  await page.waitForSelector("#question:not([hidden])");
  for (const path of [`#/session/${shown}`, "#/daemon", "#/"]) {
    await page.goto(address(home, path));
    await page.waitForSelector("#question", { state: "hidden" });
    await page.evaluate(() => document.activeElement.blur());
    for (const key of ["y", "n", "a"]) await page.keyboard.press(key);
  }
  await page.goto(address(home, `#/session/${asking}`));
  await page.waitForSelector("#question:not([hidden])");
  await page.focus("#log");
  await page.keyboard.press("n");
  await page.waitForSelector(".row .end");
  assert.equal(await page.$$eval(".tool.denied", (all) => all.length), 1);
});

flow("a dialog is about what was shown when it was opened", async ({ home, context }) => {
  const [stays, goes] = [await home.session("Stays"), await home.session("Goes")];
  const page = await enterSession(context, home, stays);
  await page.goto(address(home, `#/session/${goes}`));
  await page.waitForSelector("#title:has-text('Goes')");
  await page.click("#rename");
  await page.goBack();
  await page.waitForSelector("#title:has-text('Stays')");
  await page.fill("#answer", "Renamed");
  await page.press("#answer", "Enter");
  await page.waitForSelector("#sessions li:has-text('Renamed')");
  await page.goForward();
  await page.waitForSelector("#title:has-text('Renamed')");
  await page.click("#delete");
  await page.goBack();
  await page.waitForSelector("#title:has-text('Stays')");
  await page.click("dialog .danger");
  await page.waitForSelector("#sessions li:has-text('Renamed')", { state: "detached" });
  assert.equal(page.url(), address(home, `#/session/${stays}`));
  assert.equal(await page.textContent("#title"), "Stays");
  assert.equal(await page.isHidden("#gone"), true);
});
