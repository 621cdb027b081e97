// Chromium shows the local page of a daemon that has the sessions "first" and "second":
// PAGE TOKEN DIRECTORY. The browser is driven through a pipe, with one JSON message for each zero.
import { spawn } from "node:child_process"

const [page, token, directory] = process.argv.slice(2)
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
flags.push("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")
flags.push("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", `--user-data-dir=${directory}`)
const chromium = spawn("chromium", flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] })
const ended = new Promise((done) => chromium.on("exit", done))
const waiting = new Map()
let [unread, count] = ["", 0]
chromium.stdio[4].setEncoding("utf8").on("data", (data) => {
  const messages = (unread + data).split("\0")
  unread = messages.pop()
  for (const { id, result, error } of messages.map((message) => JSON.parse(message))) waiting.get(id)?.({ result, error })
})
const ask = async (method, params = {}, sessionId) => {
  const id = (count += 1)
  chromium.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0")
  const { result, error } = await new Promise((done) => waiting.set(id, done))
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}
/** Opens a tab. Returns a function that runs the body of a function in it. */
const open = async (url) => {
  const { targetId } = await ask("Target.createTarget", { url })
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true })
  // It exists before its page does.
  const isThere = { expression: "location.protocol === 'http:' && Boolean(document.body)" }
  for (;;) {
    const seen = await ask("Runtime.evaluate", isThere, sessionId).catch(() => null)
    if (seen?.result.value) break
  }
  return async (body) => {
    const until = "const until = async (is) => { while (!is()) await new Promise((done) => setTimeout(done, 20)) };"
    const byId = "const byId = (id) => document.getElementById(id);"
    const expression = `(async () => { ${until} ${byId} ${body} })()`
    const options = { expression, awaitPromise: true, returnByValue: true }
    const { result, exceptionDetails } = await ask("Runtime.evaluate", options, sessionId)
    if (exceptionDetails) throw new Error(exceptionDetails.exception.description)
    return result.value
  }
}
const check = (found, expected, what) => {
  if (found !== expected) throw new Error(`${what}: ${found} is not ${expected}`)
}
const connected = (state) => `await until(() => document.body?.dataset.connection === "${state}");`

const CHECKS = {
  async nested(tab) {
    const deep = `const { markdown } = await import("/page/markdown.js");
      return [">", "+ ", "1. "].map((mark) => markdown(mark.repeat(8000) + "end")[0].textContent.endsWith("end")).join()`
    check(await tab(deep), "true,true,true", "deep quotes and lists")
  },
  async counted(tab) {
    const twice = `const sessions = await import("/page/sessions.js");
      await until(() => sessions.session("first"));
      const payload = { turnId: "t", content: "x", clientId: "c" };
      const event = { event: "turn.queued", sessionId: "first", seq: 2, ts: new Date().toISOString(), payload };
      await sessions.receive(event);
      await sessions.receive(event);
      return sessions.session("first").queuedTurns`
    check(await tab(twice), 1, "turns that wait")
  },
  async question(tab) {
    const ask = `const { receive } = await import("/page/session.js");
      location.hash = "#/session/first";
      await until(() => !byId("empty").hidden);
      const input = { command: "ls ".repeat(20000) };
      const payload = { requestId: "r", turnId: "t", toolName: "run_command", input, expiresAt: Date.now() + 60000 };
      receive({ event: "permission.request", sessionId: "first", seq: 2, payload });
      await until(() => !byId("question").hidden);
      const isWithin = byId("question").querySelector("button").getBoundingClientRect().bottom <= innerHeight;
      const shown = new Promise((done) => addEventListener("hashchange", done));
      location.hash = "#/session/second";
      await shown;
      return [isWithin, byId("question").hidden].join()`
    check(await tab(ask), "true,true", "whether a long question leaves room, and stays in its session")
  },
  async token(tab) {
    const stranger = await open(`${page}#token=wrong`)
    await stranger(connected("refused"))
    await tab("await new Promise((done) => setTimeout(done))")
    check(await tab("return document.body.dataset.connection"), "open", "the tab next to a wrong token")
    await open(`${page}#token=${token}`)
    await stranger(connected("open"))
    check(await tab("return sessionStorage['opta-token']"), token, "the token")
    check(await tab("return localStorage.length"), 0, "what is kept")
  },
}

const tab = await open(`${page}#token=${token}`)
await tab(connected("open"))
const failures = []
for (const [name, run] of Object.entries(CHECKS)) await run(tab).catch((error) => failures.push(`${name}: ${error.stack}`))
await ask("Browser.close").catch(() => {})
await ended
if (failures.length) throw new Error(failures.join("\n"))
