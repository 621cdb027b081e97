// A model server that answers as its task says, on 127.0.0.1.
//
// The first word of the last message of the user chooses what it does; see `SCRIPTS`.

import { createServer } from "node:http";

const ANSWER = `Here is what I found.

## Two things

1. The **first** is in \`src/main.rs\`, and it is *small*.
2. The second is [documented](https://example.com/docs).

| file | lines |
| --- | --- |
| \`main.rs\` | 111 |
| \`text.rs\` | 252 |

\`\`\`rust
fn main() {
    println!("hello");
}
\`\`\`

> Nothing else was touched.`;

/** Text that must stay text: HTML, a script's link, direction marks, control characters. */
export const HOSTILE = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>
[click](javascript:alert(1)) [data](data:text/html,x) <a href="javascript:alert(1)">x</a> \u202egnp.exe \u0007 \u200b`;

const call = (name, input) => ({ call: { name, arguments: JSON.stringify(input) } });
const EDIT = { path: "notes.txt", old_text: "Tuesday at ten\n", new_text: "Wednesday at ten\n" };
const COMMAND = { command: "printf 'one\\ntwo\\n'" };
const NEW = (name) => call("write_file", { path: name, content: "text\n" });
const words = (count) => Array.from({ length: count }, (_, at) => `word${at}${at % 12 ? " " : "\n\n"}`);

/** The parts of an answer, for a task and the number of results so far. */
const SCRIPTS = {
  hello: () => [ANSWER.slice(0, 60), ANSWER.slice(60)],
  think: () => [{ thinking: "The user wants an answer. " }, { thinking: "I give one." }, "Thought."],
  edit: (_, results) =>
    results ? ["I moved the meeting to Wednesday."] : ["I edit it. ", call("edit_file", EDIT)],
  twice: (_, results) => [[NEW("first.txt")], [NEW("second.txt")], ["Asked twice."]][results],
  code: ([, count]) => [
    "Here:\n\n```rust\n",
    ...Array.from({ length: Number(count) }, (_, at) => `let line${at} = ${"x".repeat(50)};\n`),
    "```\n\nDone.",
  ],
  run: (_, results) => (results ? ["The command printed two lines."] : [call("run_command", COMMAND)]),
  read: (_, results) => (results ? ["Read."] : [call("read_file", { path: "large.txt" })]),
  file: (_, results) => (results ? ["Read."] : [call("read_file", { path: "page.html" })]),
  html: () => [HOSTILE],
  slow: () => Array.from({ length: 600 }, (_, at) => ({ pause: 50, text: `part${at} ` })),
  many: ([, count]) => words(Number(count)),
  paced: ([, count, pause]) => words(Number(count)).map((text) => ({ pause: Number(pause), text })),
};

const delta = (part) => {
  if (typeof part === "string") return { content: part };
  if (part.thinking) return { reasoning_content: part.thinking };
  if (part.text) return { content: part.text };
  return { tool_calls: [{ index: 0, id: "call_1", type: "function", function: part.call }] };
};

async function answer(request, reply) {
  let body = "";
  for await (const chunk of request) body += chunk;
  const { messages } = JSON.parse(body);
  const at = messages.findLastIndex(({ role }) => role === "user");
  const task = String(messages[at].content).split(/\s+/);
  const results = messages.slice(at).filter(({ role }) => role === "tool").length;
  reply.writeHead(200, { "Content-Type": "text/event-stream", Connection: "close" });
  const send = (choice) => reply.write(`data: ${JSON.stringify({ id: "c", choices: [choice] })}\n\n`);
  let reason = "stop";
  for (const part of (SCRIPTS[task[0]] ?? SCRIPTS.hello)(task, results)) {
    if (reply.destroyed) return;
    if (part.pause) await new Promise((resolve) => setTimeout(resolve, part.pause));
    if (part.call) reason = "tool_calls";
    send({ index: 0, delta: delta(part) });
  }
  send({ index: 0, delta: {}, finish_reason: reason });
  const usage = { prompt_tokens: 1200, completion_tokens: 180 };
  reply.end(`data: ${JSON.stringify({ id: "c", choices: [], usage })}\n\ndata: [DONE]\n\n`);
}

/** Starts the server. Returns its URL and how to end it. */
export async function startModel() {
  const server = createServer((request, reply) => {
    if (request.method === "POST") return void answer(request, reply).catch(() => reply.destroy());
    reply.writeHead(200, { "Content-Type": "application/json" });
    reply.end(JSON.stringify({ object: "list", data: [{ id: "scripted", object: "model" }] }));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const stop = () => (server.closeAllConnections(), server.close());
  return { url: `http://127.0.0.1:${server.address().port}/v1`, stop };
}
