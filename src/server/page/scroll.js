// A list of which only the visible part is in the document. It stays at its end while the end
// grows, and what is on the screen stays there when something is added before it.

import { nextFrame } from "./dom.js";

/** What is rendered beyond the edges, in pixels. */
const MARGIN = 800;
const END = 40;

export class VirtualList {
  items = [];
  #rows = new Map();
  #anchor = null;
  #atEnd = true;
  #width = 0;
  #height = 0;

  /** `make` returns the element of an item; `onTop` is called when the top comes near. */
  constructor(scroller, make, onTop) {
    this.scroller = scroller;
    this.make = make;
    this.onTop = onTop;
    this.before = document.createElement("div");
    this.after = document.createElement("div");
    scroller.replaceChildren(this.before, this.after);
    scroller.addEventListener(
      "scroll",
      () => {
        const { scrollTop, scrollHeight, clientHeight } = scroller;
        // After a resize, it is not where it was left.
        if (!this.#isResized) this.#atEnd = scrollHeight - scrollTop - clientHeight < END;
        this.#anchor = null;
        this.schedule();
      },
      { passive: true },
    );
    // What was rendered is measured already: it needs no other frame.
    this.observer = new ResizeObserver(() => {
      if (this.#isResized || this.#measure()) this.schedule();
    });
    this.observer.observe(scroller);
  }

  get isAtEnd() {
    return this.#atEnd;
  }

  get #isResized() {
    const { clientHeight, clientWidth } = this.scroller;
    return clientHeight !== this.#height || clientWidth !== this.#width;
  }

  /** Shows these items; their `version` says whether one has changed. */
  show(items) {
    this.items = items;
    this.#update();
  }

  toEnd() {
    this.#atEnd = true;
    this.schedule();
  }

  schedule = nextFrame(() => this.#update());

  #update() {
    const { scroller } = this;
    const { clientHeight, clientWidth } = scroller;
    this.#height = clientHeight;
    if (clientHeight === 0) return;
    if (clientWidth !== this.#width) {
      for (const item of this.items) item.height = undefined;
      this.#width = clientWidth;
    }
    // Heights are estimated until an item is rendered: a few rounds make what is visible exact.
    for (let round = 0; round < 4; round += 1) {
      const tops = this.#tops();
      const height = tops.at(-1);
      let top = scroller.scrollTop;
      if (this.#atEnd) top = Math.max(0, height - clientHeight);
      else if (this.#anchor) {
        const at = this.items.indexOf(this.#anchor.item);
        if (at >= 0) top = tops[at] + this.#anchor.delta;
      }
      const first = this.#at(tops, top - MARGIN);
      const last = this.#at(tops, top + clientHeight + MARGIN);
      this.before.style.height = `${tops[first]}px`;
      this.after.style.height = `${height - tops[Math.min(last + 1, this.items.length)]}px`;
      this.#render(first, last);
      if (!this.#atEnd) this.#anchorAt(tops, top);
      if (!this.#measure(first, last)) {
        // The end is that of the padding.
        if (this.#atEnd) top = scroller.scrollHeight - clientHeight;
        if (Math.abs(scroller.scrollTop - top) > 1) scroller.scrollTop = top;
        break;
      }
    }
    if (scroller.scrollTop < MARGIN) this.onTop?.();
  }

  /** Returns the top of each item, and the height of all. */
  #tops() {
    const tops = [0];
    for (const item of this.items) {
      tops.push(tops.at(-1) + (item.height ?? 40 + (item.text?.length ?? 0) / 3));
    }
    return tops;
  }

  /** Returns the item at a height. */
  #at(tops, y) {
    let [low, high] = [0, Math.max(0, this.items.length - 1)];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (tops[middle] <= y) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #anchorAt(tops, top) {
    const at = this.#at(tops, top);
    this.#anchor = this.items[at] && { item: this.items[at], delta: top - tops[at] };
  }

  #render(first, last) {
    const wanted = new Set(this.items.slice(first, last + 1));
    for (const [item, row] of this.#rows) {
      if (wanted.has(item)) continue;
      this.observer.unobserve(row.element);
      row.element.remove();
      this.#rows.delete(item);
    }
    let previous = this.before;
    for (const item of wanted) {
      let row = this.#rows.get(item);
      if (!row) {
        row = { element: document.createElement("div"), version: -1 };
        row.element.className = "row";
        this.#rows.set(item, row);
        this.observer.observe(row.element);
      }
      if (row.version !== item.version) {
        row.element.replaceChildren(this.make(item));
        row.version = item.version;
      }
      if (previous.nextSibling !== row.element) previous.after(row.element);
      previous = row.element;
    }
  }

  /** Measures what is rendered. Returns whether a height was another one. */
  #measure() {
    let changed = false;
    for (const [item, { element }] of this.#rows) {
      const { height } = element.getBoundingClientRect();
      if (Math.abs(height - (item.height ?? -1)) < 0.5) continue;
      item.height = height;
      changed = true;
    }
    return changed;
  }
}
