// A temporary home with a daemon of its own, and a client of its API.

import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const OPTA = process.env.OPTA;

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export class Home {
  /** Makes a home whose daemon always has the same port. */
  static async make(modelUrl) {
    const home = new Home();
    home.path = mkdtempSync(join(tmpdir(), "opta web ü "));
    home.port = await freePort();
    home.work = join(home.path, "work");
    mkdirSync(home.work);
    writeFileSync(join(home.work, "notes.txt"), "Meeting with Ada:\nTuesday at ten\nin the library\n");
    writeFileSync(join(home.work, "large.txt"), "a line of a large file, as any other\n".repeat(20_000));
    const config = join(home.path, ".config/opta");
    mkdirSync(config, { recursive: true, mode: 0o700 });
    const settings = { connection: { url: modelUrl }, model: { default: "scripted" } };
    writeFileSync(join(config, "config.json"), JSON.stringify(settings), { mode: 0o600 });
    return home;
  }

  file(name) {
    return join(this.path, ".config/opta/daemon", name);
  }

  get info() {
    return JSON.parse(readFileSync(this.file("state.json"), "utf8"));
  }

  /** Runs a command. Returns what it printed; fails if it fails. */
  opta(words, variables = {}) {
    const { PATH, LANG } = process.env;
    const env = { PATH, LANG, HOME: this.path, OPTA_DAEMON_PORT: String(this.port), ...variables };
    const child = spawn(OPTA, words.split(" "), { env, cwd: this.path, stdio: ["ignore", "pipe", "pipe"] });
    const text = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"]) child[name].on("data", (chunk) => (text[name] += chunk));
    return new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (status) =>
        status === 0 ? resolve(text) : reject(new Error(`opta ${words}: ${text.stderr}`)),
      );
    });
  }

  /** Kills the daemon as a crash would. */
  kill() {
    process.kill(this.info.pid, "SIGKILL");
  }

  async call(method, path, body) {
    const headers = { Authorization: `Bearer ${this.info.token}`, "Content-Type": "application/json" };
    const url = `http://127.0.0.1:${this.port}${path}`;
    const reply = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
    const text = await reply.text();
    if (!reply.ok) throw new Error(`${method} ${path}: ${text}`);
    return text ? JSON.parse(text) : {};
  }

  /** Creates a session. Returns its id. */
  async session(title) {
    const made = await this.call("POST", "/v3/sessions", { title, metadata: { workspace: this.work } });
    return made.sessionId;
  }

  submit(id, content, more = {}) {
    return this.call("POST", `/v3/sessions/${id}/turns`, {
      content,
      clientId: "test",
      writerId: "test",
      ...more,
    });
  }

  /** Waits until no turn of a session runs. */
  async idle(id) {
    for (let after = 0; ; ) {
      const { events, lastSeq } = await this.call(
        "GET",
        `/v3/sessions/${id}/events?afterSeq=${after}&timeout=30000&answers=0`,
      );
      if (
        events.some(({ event }) => event === "turn.done" || event === "turn.error") &&
        events.at(-1).seq === lastSeq
      )
        return lastSeq;
      after = events.at(-1)?.seq ?? after;
    }
  }

  /** Runs a turn to its end. */
  async turn(id, content, more) {
    await this.submit(id, content, more);
    return this.idle(id);
  }

  async remove() {
    await this.opta("daemon stop").catch(() => {});
    rmSync(this.path, { recursive: true, force: true });
  }
}
