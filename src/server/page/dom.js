// Elements and texts: the only way in which anything that a model, a file or a user wrote gets into
// the document. There is no HTML anywhere else but in index.html.

// The characters that the terminal escapes, too: controls, direction marks, invisible ones.
const HIDDEN = new RegExp(
  "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f" +
    "\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb" +
    "\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}]",
  "gu",
);

/** Returns a text in which no character is hidden: `\u{202e}` instead. */
export function visible(text) {
  const escape = (c) => `\\u{${c.codePointAt(0).toString(16)}}`;
  return String(text ?? "")
    .replaceAll("\r\n", "\n")
    .replace(HIDDEN, escape);
}

/** Returns a text as `visible` does, on one line. */
export const oneLine = (text) => visible(text).replace(/[\n\t]+/g, " ");

/** Makes an element. An attribute `onclick` is a listener; false and null are left out. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  // One by one: thousands of arguments take the stack.
  for (const child of children) if (child != null && child !== false) element.append(child);
  return element;
}

/** Returns the element of index.html with this id. */
export const byId = (id) => document.getElementById(id);

/** Sets the text of an element, if it is another one. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Returns a duration in its largest unit. A clock that is wrong makes it 0 at least. */
export function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000)) || 0;
  for (const [unit, length] of [
    ["d", 86400],
    ["h", 3600],
    ["m", 60],
  ]) {
    if (seconds >= length) return `${Math.floor(seconds / length)}${unit}`;
  }
  return `${seconds}s`;
}

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** Shows a sentence for a while, also to screen readers. */
export function say(text) {
  setText(byId("said"), oneLine(text));
  byId("said").hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (byId("said").hidden = true), 8000);
}

/** Asks in a dialog. Returns what was typed, or true; null if the user does not want to. */
export function ask({ title, text, label, value = "", action, danger }) {
  const dialog = byId("dialog");
  const input = label && el("input", { id: "answer", value, autocomplete: "off", spellcheck: "false" });
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.close();
      resolve(answer);
    };
    const submit = (event) => {
      event.preventDefault();
      close(input ? input.value.trim() : true);
    };
    dialog.oncancel = () => resolve(null);
    dialog.replaceChildren(
      el(
        "form",
        { onsubmit: submit },
        el("h2", { id: "dialog-title" }, title),
        text && el("p", {}, text),
        label && el("label", { for: "answer" }, label),
        input,
        el(
          "div",
          { class: "buttons" },
          el("button", { type: "button", onclick: () => close(null) }, "Cancel"),
          el("button", { class: danger ? "danger" : "primary" }, action),
        ),
      ),
    );
    dialog.showModal();
    input?.select();
  });
}

/** Returns a function that has `draw` called in the next frame, once however often it is called. */
export function nextFrame(draw) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
    });
  };
}

/** Returns a function that calls `draw`, at most once for each frame: again only in the next one. */
export function eachFrame(draw) {
  let [drawn, again] = [false, false];
  const run = () => {
    [drawn, again] = [true, false];
    requestAnimationFrame(() => {
      drawn = false;
      if (again) run();
    });
    draw();
  };
  return () => (drawn ? (again = true) : run());
}
