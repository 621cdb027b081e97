// What a user does with the local page, in a real browser. Nothing here waits for a fixed time.
//
// `node flows.mjs [WORD]` runs the flows whose names contain the word.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { launch, open, problems, until, violations } from "./browser.mjs";
import { Home } from "./home.mjs";
import { HOSTILE, startModel } from "./model.mjs";
import { measure } from "./speed.mjs";
import {
  REFUSED,
  address,
  answered,
  enter,
  enterSession,
  flow,
  flows,
  gate,
  noteSockets,
  send,
} from "./steps.mjs";
import "./trouble.mjs";

flow("the private file leads to the page, and the token stays out of sight", async ({ home, context }) => {
  const opened = join(home.path, "opened");
  const { stdout } = await home.opta("web", { BROWSER: `>"${opened}" echo` });
  const { token } = home.info;
  assert.ok(!stdout.includes(token));
  assert.equal(statSync(home.file("open.html")).mode & 0o777, 0o600);
  const page = await context.newPage();
  const referrers = [];
  context.on("request", (request) => referrers.push(request.headers().referer ?? ""));
  await page.goto(readFileSync(opened, "utf8").trim());
  await page.waitForSelector('body[data-connection="open"]');
  assert.equal(page.url(), address(home));
  assert.ok(
    referrers.every((referrer) => !referrer.includes(token)),
    String(referrers),
  );
  assert.ok(
    context.asked.every((url) => !url.startsWith("http") || !url.slice(0, -token.length).includes(token)),
  );
  const client = await context.newCDPSession(page);
  const { entries } = await client.send("Page.getNavigationHistory");
  assert.ok(
    entries.every(({ url }) => !url.includes(token)),
    JSON.stringify(entries.map(({ url }) => url.length)),
  );
  assert.equal(await page.evaluate(() => localStorage.length), 0);
  assert.ok(!readFileSync(home.file("daemon.log"), "utf8").includes(token));
});

flow("a turn is typed, streams, and ends", async ({ home, context }) => {
  context.expected.push(/status of 400/);
  const page = await enter(context, home);
  await page.click("#new");
  await page.fill("#answer", "/nowhere");
  await page.press("#answer", "Enter");
  await page.waitForSelector("dialog p:has-text('/nowhere')");
  await page.fill("#answer", home.work);
  await page.press("#answer", "Enter");
  await page.waitForSelector("#session:not([hidden])");
  await page.fill("#input", "hello");
  await page.press("#input", "Shift+Enter");
  await page.keyboard.type("two lines");
  await page.press("#input", "Enter");
  await page.waitForSelector(".row .end");
  assert.equal(await page.inputValue("#input"), "");
  assert.equal(await page.textContent(".user"), "You: hello\ntwo lines");
  assert.equal(await page.textContent(".answer h2"), "Two things");
  assert.equal(await page.getAttribute(".answer a", "rel"), "noreferrer noopener");
  assert.equal(await page.textContent(".answer table th"), "file");
  assert.equal(await page.textContent(".answer pre code"), 'fn main() {\n    println!("hello");\n}');
  assert.match(await page.textContent("#sessions a[aria-current]"), /hello/);
});

flow("one permission is allowed, one is denied", async ({ home, context }) => {
  const id = await home.session("Permissions");
  const page = await enterSession(context, home, id);
  await send(page, "edit the notes");
  await page.waitForSelector("#question:not([hidden])");
  assert.equal(await page.textContent("#question h2"), 'Allow edit_file "notes.txt"?');
  assert.match(await page.textContent("#question .removed"), /- Tuesday at ten/);
  assert.match(await page.textContent("#question .added"), /\+ Wednesday at ten/);
  await page.waitForSelector("#sessions .state.waiting");
  await page.focus("#log");
  await page.keyboard.press("n");
  await page.waitForSelector(".tool.denied");
  await page.waitForSelector(".row .end");
  assert.match(readFileSync(join(home.work, "notes.txt"), "utf8"), /Tuesday/);
  await send(page, "edit again");
  await page.waitForSelector("#question:not([hidden])");
  await page.click("#question button:has-text('Yes')");
  await page.waitForSelector(".tool.done");
  assert.match(readFileSync(join(home.work, "notes.txt"), "utf8"), /Wednesday/);
  await send(page, "run it");
  await page.waitForSelector("#question:not([hidden])");
  assert.equal(await page.textContent("#question h2"), `Allow run_command "printf 'one\\\\ntwo\\\\n'"?`);
  await page.click("#question button:has-text('this command')");
  await page.waitForSelector("summary:has-text('exit 0')");
  await send(page, "run it once more");
  await until(page, () => document.querySelectorAll(".tool").length === 4);
  await until(page, () => document.querySelectorAll(".row .end").length === 4);
  assert.equal(await page.isHidden("#question"), true);
});

flow("stop ends a turn, and a waiting turn can be removed", async ({ home, context }) => {
  const id = await home.session("Stop");
  const page = await enterSession(context, home, id);
  await send(page, "slow");
  await answered(page, "part3 ");
  await send(page, "hello later");
  await page.waitForSelector("#queue li");
  assert.match(await page.textContent("#queue"), /hello later/);
  await page.click("#queue button");
  await page.waitForSelector("#queue li", { state: "detached" });
  await page.click("#stop");
  await page.waitForSelector(".failure:has-text('cancelled')");
  await page.waitForSelector("#stop", { state: "hidden" });
});

flow("a reload in the middle of an answer loses nothing, and keeps the draft", async ({ home, context }) => {
  const id = await home.session("Reload");
  const page = await enterSession(context, home, id);
  await send(page, "paced 80 20");
  await page.fill("#input", "a draft");
  await answered(page, "word20 ");
  await page.reload();
  assert.equal(await page.inputValue("#input"), "a draft");
  await page.waitForSelector(".row .end");
  await assertWords(page, 80);
});

async function assertWords(page, count) {
  const text = await page.$$eval(".answer", (all) => all.map((one) => one.innerText).join(" "));
  const expected = Array.from({ length: count }, (_, at) => `word${at}`);
  assert.deepEqual(text.split(/\s+/).filter(Boolean), expected);
}

flow("an event between the reading and the connection is not lost", async ({ home, context }) => {
  const id = await home.session("Between");
  const page = await enterSession(context, home, id);
  const [connect, read, reading] = [gate(), gate(), gate()];
  await page.route("**/v3/health", (route) => connect.opened.then(() => route.continue()));
  await page.route("**/events?afterSeq=0&*", (route) => {
    reading.open();
    return read.opened.then(() => route.continue());
  });
  await page.reload();
  await reading.opened;
  await home.turn(id, "hello");
  connect.open();
  await page.waitForSelector('body[data-connection="open"]');
  read.open();
  await page.waitForSelector(".row .end");
});

flow("a daemon that is killed is missed within two seconds, and found again", async ({ home, context }) => {
  context.expected.push(REFUSED);
  await noteSockets(context);
  const id = await home.session("Crash");
  const page = await enterSession(context, home, id);
  await send(page, "slow");
  await answered(page, "part3 ");
  await page.evaluate(() => {
    // As the page sees it, whatever else the machine does.
    const trouble = document.getElementById("trouble");
    const socket = globalThis.sockets.at(-1);
    socket.addEventListener("close", () => (globalThis.closed = performance.now()));
    new MutationObserver(() => (globalThis.missed ??= performance.now())).observe(trouble, {
      attributes: true,
    });
  });
  home.kill();
  await page.waitForSelector("#trouble:not([hidden])");
  const delay = await page.evaluate(() => globalThis.missed - globalThis.closed);
  assert.ok(delay < 2000, `${delay} ms`);
  await home.opta("daemon start");
  await page.waitForSelector('body[data-connection="refused"]');
  assert.match(await page.textContent("#trouble"), /opta web/);
  assert.match(await page.textContent("#log"), /part3/);
  // The same tab gets the new address; what it shows is still there.
  await page.evaluate((hash) => (location.hash = hash), `#token=${home.info.token}`);
  await page.waitForSelector('body[data-connection="open"]');
  assert.equal(page.url(), address(home, `#/session/${id}`));
  await page.waitForSelector(".failure:has-text('interrupted')");
  await send(page, "hello again");
  await page.waitForSelector(".row .end");
});

flow("a rotated token comes from another tab", async ({ home, context }) => {
  context.expected.push(REFUSED);
  const id = await home.session("Rotation");
  const page = await enterSession(context, home, id);
  await home.opta("daemon restart");
  await page.waitForSelector('body[data-connection="refused"]');
  await enter(context, home);
  await page.waitForSelector('body[data-connection="open"]');
  assert.equal(page.url(), address(home, `#/session/${id}`));
  await send(page, "hello");
  await page.waitForSelector(".row .end");
});

flow("a daemon that hangs is noticed, and found again", async ({ home, context }) => {
  const page = await enter(context, home);
  const { pid } = home.info;
  const before = Date.now();
  process.kill(pid, "SIGSTOP");
  try {
    await page.waitForSelector("#trouble:not([hidden])");
    console.log(`        noticed after ${Date.now() - before} ms`);
  } finally {
    process.kill(pid, "SIGCONT");
  }
  await page.waitForSelector("#trouble", { state: "hidden" });
});

flow("what is full of HTML stays text", async ({ home, context }) => {
  const id = await home.session("<img src=x onerror=alert(1)> \u202egnp <b>title</b>");
  const page = await enterSession(context, home, id);
  await send(page, `html ${HOSTILE.replaceAll("\n", " ")}`);
  await page.waitForSelector(".row .end");
  assert.equal(await page.$$eval("#app :is(img, script, b, iframe)", (all) => all.length), 0);
  const links = await page.$$eval("#log a", (all) => all.map(({ href }) => href));
  assert.deepEqual(links, []);
  const text = await page.textContent(".answer");
  assert.ok(
    text.includes("<img src=x onerror=") && text.includes("\\u{202e}") && text.includes("\\u{7}"),
    text,
  );
  assert.equal(await page.textContent("#title"), "<img src=x onerror=alert(1)> \\u{202e}gnp <b>title</b>");
  assert.match(await page.title(), /^<img src=x/);
  // A path, and the content of a file.
  const place = join(home.path, "<b>place");
  mkdirSync(place);
  writeFileSync(join(place, "page.html"), HOSTILE);
  const { sessionId } = await home.call("POST", "/v3/sessions", { metadata: { workspace: place } });
  await home.turn(sessionId, "file");
  await page.goto(address(home, `#/session/${sessionId}`));
  await page.click(".tool summary");
  await page.waitForSelector(".output:has-text('<img src=x')");
  assert.match(await page.textContent("#about"), /<b>place/);
  assert.equal(await page.$$eval("#app :is(img, script, b, iframe)", (all) => all.length), 0);
  await page.goto(address(home, "#/daemon"));
  await page.waitForSelector("#log-lines div");
  assert.equal(await page.$$eval("#app :is(img, script, b, iframe)", (all) => all.length), 0);
});

flow("two tabs show the same, and one deletes", async ({ home, context }) => {
  const id = await home.session("Two tabs");
  const [one, two] = [await enterSession(context, home, id), await enterSession(context, home, id)];
  // A tab in the background paints nothing.
  const front = (page) => page.bringToFront();
  await front(one);
  await send(one, "hello from one");
  await front(two);
  await two.waitForSelector(".row .end");
  await send(two, "edit from two");
  await two.waitForSelector("#question:not([hidden])");
  await front(one);
  await one.click("#question button:has-text('No')");
  await until(one, () => document.querySelectorAll(".row .end").length === 2);
  await front(two);
  await two.waitForSelector("#question", { state: "hidden" });
  await two.waitForSelector("#said:has-text('answered elsewhere: deny')");
  await front(one);
  await one.click("#rename");
  await one.fill("#answer", "Another title");
  await one.press("#answer", "Enter");
  await one.waitForSelector("#title:has-text('Another title')");
  await front(two);
  await two.waitForSelector("#title:has-text('Another title')");
  await front(one);
  await one.click("#export");
  await one.waitForSelector("#said:has-text('/exports/')");
  await one.click("#delete");
  await one.click("dialog button:has-text('Cancel')");
  await one.click("#delete");
  await one.click("dialog .danger");
  await one.waitForSelector("#welcome:not([hidden])");
  await front(two);
  await two.waitForSelector("#gone:not([hidden])");
  assert.equal(await two.isHidden("#composer"), true);
});

flow("the list is live and can be filtered", async ({ home, context }) => {
  const page = await enter(context, home);
  const [a, b] = [await home.session("Apples"), await home.session("Pears")];
  await page.waitForSelector("#sessions li:has-text('Pears')");
  await home.submit(a, "slow");
  await page.waitForSelector("#sessions li:has-text('Apples') .state.running");
  await page.fill("#filter", "apple");
  await page.waitForSelector("#sessions li:has-text('Pears')", { state: "detached" });
  await page.fill("#filter", "no such thing");
  await page.waitForSelector("#none:has-text('No session fits.')");
  await page.fill("#filter", "");
  await home.call("POST", `/v3/sessions/${a}/cancel`, {});
  await page.waitForSelector("#sessions li:has-text('Apples') .state.idle");
  assert.ok(b);
});

flow("a large result is folded and cut", async ({ home, context }) => {
  const id = await home.session("Large");
  await home.turn(id, "read");
  const page = await enterSession(context, home, id);
  await page.waitForSelector(".row .end");
  assert.equal(await page.$$eval(".output", (all) => all.length), 0);
  await page.click(".tool summary");
  await page.waitForSelector(".output");
  const shown = (await page.textContent(".output")).length;
  assert.ok(shown <= 20_000, String(shown));
  assert.match(await page.textContent(".tool"), /more characters.*opta sessions export/);
});

flow("the daemon's view follows its state and its log", async ({ home, context }) => {
  const id = await home.session("Turns");
  await home.turn(id, "hello");
  const page = await enter(context, home);
  await page.goto(address(home, "#/daemon"));
  await page.waitForSelector("#log-lines div");
  assert.match(await page.textContent("#facts"), new RegExp(`running.*${home.info.pid}.*${home.port}`));
  await page.waitForSelector("svg[aria-label^='Turns: ']");
  await until(page, () => document.querySelectorAll("svg rect").length >= 2);
  await page.fill("#log-filter", "no such line");
  await page.waitForSelector("#log-count:has-text('No line fits.')");
  await page.fill("#log-filter", "");
  await page.selectOption("#level", "error");
  await page.waitForSelector("#log-lines div", { state: "detached" });
  await page.selectOption("#level", "debug");
  const before = await page.$$eval("#log-lines > div", (all) => all.length);
  await home.turn(id, "hello", { overrides: { dangerous: true } });
  await home.turn(id, "read", { overrides: { dangerous: true } });
  await until(page, (count) => document.querySelectorAll("#log-lines > div").length > count, before);
});

flow("an idle page makes no request but its stream", async ({ home, context }) => {
  const id = await home.session("Idle");
  await home.turn(id, "hello");
  const page = await enterSession(context, home, id);
  await page.waitForSelector(".row .end");
  const count = context.asked.length;
  const client = await context.newCDPSession(page);
  await client.send("Network.enable");
  let pongs = 0;
  const heard = new Promise((resolve) =>
    client.on("Network.webSocketFrameReceived", () => (pongs += 1) === 3 && resolve()),
  );
  await heard;
  assert.deepEqual(context.asked.slice(count), []);
});

flow("a clock that is wrong shows no nonsense", async ({ home, context }) => {
  await home.session("Clock");
  await context.addInitScript(() => {
    const real = Date.now;
    Date.now = () => real() - 90 * 86_400_000;
  });
  const page = await enter(context, home);
  await page.waitForSelector("#sessions li:has-text('Clock')");
  await until(page, () =>
    [...document.querySelectorAll(".age")].every(({ textContent }) => /^\d+[smh]$/.test(textContent)),
  );
});

flow("without a token or JavaScript, the page says what to do", async ({ home, context, browser }) => {
  const page = await context.newPage();
  await page.goto(address(home));
  await page.waitForSelector("#entry:not([hidden])");
  assert.match(await page.textContent("#entry"), /opta web/);
  assert.deepEqual(await violations(page), []);
  const bare = await open(browser, home, { javaScriptEnabled: false });
  const plain = await bare.newPage();
  await plain.goto(address(home));
  assert.match(await plain.textContent("noscript"), /needs JavaScript/);
  await bare.close();
});

flow("no other page can frame this one or read its answers", async ({ home, context }) => {
  context.expected.push(
    /frame-ancestors|ERR_BLOCKED_BY_RESPONSE|blocked by CORS|403|ERR_FAILED|a request to http:\/\/evil|Content Security/,
  );
  await context.route("http://evil.test/", (route) =>
    route.fulfill({ contentType: "text/html", body: `<iframe src="${address(home)}"></iframe>` }),
  );
  const page = await context.newPage();
  await page.goto("http://evil.test/");
  const frame = page.frames()[1];
  const text = await frame.evaluate(() => document.body?.innerText ?? "").catch(() => "");
  assert.ok(!text.includes("opta web"), text);
  const read = await page.evaluate(
    (url) =>
      fetch(url).then(
        (reply) => reply.text(),
        () => "refused",
      ),
    address(home),
  );
  assert.equal(read, "refused");
});

flow("the keyboard alone is enough", async ({ home, context }) => {
  const id = await home.session("Keyboard");
  const page = await enter(context, home);
  await page.waitForSelector("#sessions li:has-text('Keyboard')");
  await page.focus("#filter");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await until(page, (end) => location.hash.endsWith(end), id);
  await until(page, () => document.activeElement.id === "input");
  await page.keyboard.type("hello");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".row .end");
});

flow("pictures, without violations, in both schemes and three widths", async ({ home, browser }) => {
  const id = await home.session("Move the meeting to Wednesday");
  await home.turn(id, "hello, what is in this directory?");
  await home.turn(id, "think about it");
  await home.turn(id, "edit the notes", { overrides: { dangerous: true } });
  await home.turn(id, "run a command", { overrides: { dangerous: true } });
  for (const title of ["Fix the login form", "Why is the build slow?", "Write the release notes"]) {
    await home.turn(await home.session(title), "hello");
  }
  const readme = await open(browser, home, { viewport: { width: 1200, height: 720 }, colorScheme: "light" });
  const shown = await enterSession(readme, home, id);
  await send(shown, "edit the notes");
  await shown.waitForSelector("#question:not([hidden])");
  await shown.waitForSelector("#sessions .state.waiting");
  await shown.screenshot({ path: join(process.env.PICTURES, "readme.png") });
  await shown.click("#question button:has-text('No')");
  await shown.waitForSelector("#question", { state: "hidden" });
  await readme.close();
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [360, 800, 1600]) {
      const viewport = { width, height: width < 500 ? 740 : 900 };
      const context = await open(browser, home, { viewport, colorScheme, reducedMotion: "reduce" });
      const page = await enter(context, home);
      const picture = async (name) => {
        // Each colour and each layout once: it takes seconds.
        const isChecked = (width === 360) === (colorScheme === "light") && width !== 800;
        if (isChecked) assert.deepEqual(await violations(page), [], `${name} ${colorScheme} ${width}`);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${name} is ${overflow} pixels too wide at ${width}`);
        await page.screenshot({ path: join(process.env.PICTURES, `${name}-${colorScheme}-${width}.png`) });
      };
      await page.waitForSelector("#sessions li");
      await picture("list");
      await page.goto(address(home, `#/session/${id}`));
      await page.waitForSelector(".row .end");
      await until(page, () => {
        const { scrollHeight, scrollTop, clientHeight } = document.getElementById("log");
        return scrollHeight > clientHeight && scrollHeight - scrollTop - clientHeight < 2;
      });
      await picture("session");
      await page.goto(address(home, "#/daemon"));
      await page.waitForSelector("#log-lines div");
      await picture("daemon");
      const asking = await home.session("A question");
      await page.goto(address(home, `#/session/${asking}`));
      await page.waitForSelector("#title:has-text('A question')");
      await send(page, "edit the notes");
      await page.waitForSelector("#question:not([hidden])");
      await picture("question");
      await page.click("#question button:has-text('No')");
      await page.waitForSelector(".row .end");
      assert.deepEqual(problems(context), []);
      await context.close();
    }
  }
});

flow("speed", measure);

const model = await startModel();
const browser = await launch();
let failed = 0;
for (const { name, run } of flows.filter(({ name }) => name.includes(process.argv[2] ?? ""))) {
  const home = await Home.make(model.url);
  await home.opta("daemon start");
  const context = await open(browser, home);
  const began = Date.now();
  try {
    await run({ home, context, browser, enter, enterSession });
    assert.deepEqual(problems(context), []);
    console.log(`ok      ${name} (${Date.now() - began} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${error.stack}\n${problems(context).join("\n")}`);
    const [page] = context.pages();
    await page?.screenshot({ path: join(process.env.PICTURES, `failed-${failed}.png`) }).catch(() => {});
  }
  await context.close();
  await home.remove();
}
await browser.close();
model.stop();
console.log(failed ? `${failed} flows failed` : "all flows passed");
process.exitCode = failed ? 1 : 0;
