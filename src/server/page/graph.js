// A graph of the last hour: a bar for each minute.

import { el } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, FOOT] = [480, 120, 18];

function svg(name, attributes, text = "") {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** Makes the figure of these values; `summary` says in words what it shows. */
export function graph(title, summary, values) {
  const top = niceTop(Math.max(...values));
  const step = WIDTH / values.length;
  const drawing = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`,
    role: "img",
    "aria-label": `${title}: ${summary}`,
  });
  for (const part of [0, 0.5, 1]) {
    const y = HEIGHT - part * (HEIGHT - 14);
    drawing.append(svg("line", { x1: 0, x2: WIDTH, y1: y, y2: y, class: "grid" }));
    if (part) drawing.append(svg("text", { x: 0, y: y - 3 }, String(top * part)));
  }
  values.forEach((value, at) => {
    const height = (value / top) * (HEIGHT - 14);
    if (value > 0) {
      const box = {
        x: at * step + 1,
        y: HEIGHT - Math.max(2, height),
        width: step - 2,
        height: Math.max(2, height),
        rx: 1.5,
      };
      drawing.append(svg("rect", box));
    }
  });
  const label = (x, anchor, text) => svg("text", { x, y: HEIGHT + 14, "text-anchor": anchor }, text);
  drawing.append(label(0, "start", "1h ago"), label(WIDTH / 2, "middle", "30m"), label(WIDTH, "end", "now"));
  return el("figure", {}, el("figcaption", {}, el("strong", {}, title), " ", summary), drawing);
}

/** Returns a round number that is not less. */
function niceTop(value) {
  if (value <= 2) return 2;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 10].map((factor) => factor * power).find((top) => top >= value);
}
