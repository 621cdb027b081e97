// The difference between two texts, by lines. Pure.

/** Longer texts are shown one after the other. */
const CELLS_MAX = 1_000_000;
/** Equal lines that are shown around a change. */
const CONTEXT = 3;

const split = (text) => {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines;
};

/** Returns the lines that differ, each with its mark ("-", "+", " " or "…"), and some around them. */
export function diff(oldText, newText) {
  const [a, b] = [split(oldText), split(newText)];
  let begin = 0;
  while (begin < a.length && begin < b.length && a[begin] === b[begin]) begin += 1;
  let end = 0;
  const isSame = () => a.at(-1 - end) === b.at(-1 - end);
  while (end < a.length - begin && end < b.length - begin && isSame()) end += 1;
  const same = (lines) => lines.map((line) => [" ", line]);
  const steps = [
    ...same(a.slice(0, begin)),
    ...middle(a.slice(begin, a.length - end), b.slice(begin, b.length - end)),
    ...same(a.slice(a.length - end)),
  ];
  const isNear = steps.map((_, at) =>
    steps.slice(Math.max(0, at - CONTEXT), at + CONTEXT + 1).some(([mark]) => mark !== " "),
  );
  return steps.flatMap((step, at) => {
    if (isNear[at]) return [step];
    return isNear[at + 1] && at > 0 ? [["…", ""]] : [];
  });
}

/** Compares the parts that differ: a longest common subsequence. */
function middle(a, b) {
  const steps = [];
  const width = b.length + 1;
  const isShort = width * (a.length + 1) <= CELLS_MAX;
  const table = new Uint32Array(isShort ? width * (a.length + 1) : 0);
  for (let i = isShort ? a.length - 1 : -1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const skip = Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1 : skip;
    }
  }
  let [i, j] = [0, 0];
  const skipsOld = () => j === b.length || !isShort || table[(i + 1) * width + j] >= table[i * width + j + 1];
  while (i < a.length || j < b.length) {
    if (isShort && i < a.length && j < b.length && a[i] === b[j]) {
      steps.push([" ", a[i]]);
      [i, j] = [i + 1, j + 1];
    } else if (i < a.length && skipsOld()) steps.push(["-", a[i++]]);
    else steps.push(["+", b[j++]]);
  }
  return steps;
}
