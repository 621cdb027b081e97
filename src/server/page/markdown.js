// Markdown, made into elements: what models write, and no HTML. Pure but for the elements.
//
// A text takes time in proportion to its length, whatever it is: an expression fails without looking
// at the same characters from many places.

import { el, visible } from "./dom.js";

const FENCE = /^ {0,3}(```+(?!`)|~~~+(?!~))([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const TABLE = /^\|?( *:?-+:? *\|)+( *:?-+:? *)?$/;

/** Quotes and lists in one another: deeper ones are shown as they were written. */
const DEPTH_MAX = 20;

/** Returns the elements of a text. */
export function markdown(text) {
  return blocks(visible(text).split("\n"), 0);
}

/** Returns the line that opens the block of code in which a text ends, or nothing. */
export function openFence(text) {
  const lines = visible(text).split("\n");
  for (let at = 0; at < lines.length; ) {
    const { kind, end } = part(lines, at);
    if (kind === "code" && end > lines.length) return `${lines[at]}\n`;
    at = end;
  }
  return "";
}

/** Returns what begins in a line, how it was found, and the line after it. Code without an end goes on. */
function part(lines, at) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() !== found[1]) end += 1;
    return { kind: "code", end: end + 1, found };
  }
  if ((found = HEADING.exec(line))) return { kind: "heading", end: at + 1, found };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) return { kind: "quote", end: endOf(lines, at, (other) => QUOTE.test(other)) };
  if ((found = ITEM.exec(line))) {
    const isPart = (other) => ITEM.test(other) || /^\s{2,}\S/.test(other) || other.trim() === "";
    return { kind: "list", end: endOf(lines, at, isPart), found };
  }
  if (line.includes("|") && TABLE.test(lines[at + 1]?.trim() ?? "")) {
    return { kind: "table", end: endOf(lines, at, (other) => other.includes("|")) };
  }
  return { kind: line.trim() ? "text" : "space", end: at + 1 };
}

function blocks(lines, depth) {
  if (depth > DEPTH_MAX) return [el("p", {}, lines.join("\n"))];
  const out = [];
  let paragraph = [];
  // The page has a heading of level 1; no level is left out.
  let level = 1;
  const flush = () => {
    if (paragraph.length) out.push(el("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const { kind, end, found } = part(lines, at);
    const own = lines.slice(at, end);
    if (kind === "text") paragraph.push(...own);
    else flush();
    if (kind === "code") {
      const code = lines.slice(at + 1, end - 1).join("\n");
      const [language] = /^[\w+#.-]*/.exec(found[2].trim());
      out.push(el("pre", { tabindex: "0", "data-language": language || null }, el("code", {}, code)));
    } else if (kind === "heading") {
      level = Math.min(6, found[1].length + 1, level + 1);
      out.push(el(`h${level}`, {}, ...inline(heading(found[2].trim()))));
    } else if (kind === "rule") {
      out.push(el("hr"));
    } else if (kind === "quote") {
      const quoted = own.map((other) => other.replace(/^ {0,3}> ?/, ""));
      out.push(el("blockquote", {}, ...blocks(quoted, depth + 1)));
    } else if (kind === "list") {
      out.push(list(own, found[1].length, depth + 1));
    } else if (kind === "table") {
      out.push(table(own));
    }
    at = end;
  }
  flush();
  return out;
}

/** Returns the text of a heading without the marks that may end it. */
function heading(text) {
  const last = text.slice(text.lastIndexOf(" ") + 1);
  return /^#+$/.test(last) ? text.slice(0, -last.length).trimEnd() : text;
}

function endOf(lines, at, isPart) {
  let end = at + 1;
  while (end < lines.length && isPart(lines[end])) end += 1;
  while (lines[end - 1].trim() === "") end -= 1;
  return end;
}

function list(lines, indent, depth) {
  const ordered = /^\s*\d/.test(lines[0]);
  const start = ordered ? parseInt(lines[0].trim(), 10) : null;
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent + 1) items.push([found[3]]);
    else items.at(-1)?.push(line.replace(/^\s{1,4}/, ""));
  }
  const children = items.map((item) => el("li", {}, ...tight(blocks(item, depth))));
  return el(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {}, ...children);
}

/** An item that is one paragraph needs no space around it. */
function tight(elements) {
  const [first, ...rest] = elements;
  return first?.localName === "p" ? [...first.childNodes, ...rest] : elements;
}

function table(lines) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split("|");
  const row = (line, name) =>
    el("tr", {}, ...cells(line).map((cell) => el(name, {}, ...inline(cell.trim()))));
  const body = lines.slice(2).map((line) => row(line, "td"));
  const head = el("thead", {}, row(lines[0], "th"));
  return el("div", { class: "table", tabindex: "0" }, el("table", {}, head, el("tbody", {}, ...body)));
}

const INLINE = new RegExp(
  [
    "(?<ticks>`+)",
    "(?<strong>\\*\\*(?=\\S)(.+?\\S?)\\*\\*)",
    "(?<em>(?<![\\w*])[*_](?=[^\\s*_])([^*_\\n]*[^\\s*_])[*_](?![\\w*]))",
    '(?<link>!?\\[([^[\\]\\n]*)\\]\\(([^\\s()<>]+)(?: "[^"\\n]*")?\\))',
    "(?<url>https?://[^\\s<>\"'`)\\]]*[^\\s<>\"'`)\\].,;:!?])",
  ].join("|"),
  "gsu",
);

/** Returns the nodes of a text without blocks. */
function inline(text) {
  const out = [];
  const ends = codeEnds(text);
  for (let [end, at] = [0, 0]; ; ) {
    INLINE.lastIndex = at;
    const found = INLINE.exec(text);
    if (!found) return [...out, text.slice(end)].filter((part) => part !== "");
    const { ticks, strong, em, link, url } = found.groups;
    at = INLINE.lastIndex;
    let node;
    if (ticks) {
      const close = ends.get(found.index);
      if (!close) continue;
      const code = text.slice(at, close);
      node = el("code", {}, code.trim() || code);
      at = close + ticks.length;
    } else if (strong) node = el("strong", {}, ...inline(found[3]));
    else if (em) node = el("em", {}, ...inline(found[5]));
    else if (link) node = anchor(found[8], found[7] || found[8], found[0]);
    else node = anchor(url, url, url);
    out.push(text.slice(end, found.index), node);
    end = at;
  }
}

/** Returns, for the place of each run of backticks, that of the next run of the same length. */
function codeEnds(text) {
  const [ends, next] = [new Map(), new Map()];
  for (const { 0: run, index } of [...text.matchAll(/`+/g)].reverse()) {
    ends.set(index, next.get(run.length));
    next.set(run.length, index);
  }
  return ends;
}

/** Returns a link, or what was written if it leads to something else than a web page. */
function anchor(target, text, written) {
  const isWeb = /^https?:\/\//i.test(target) && URL.canParse(target);
  if (!isWeb) return written;
  return el("a", { href: target, rel: "noreferrer noopener", target: "_blank", title: target }, text);
}
