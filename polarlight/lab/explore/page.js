// The page: controls, and four pictures drawn anew when one of them moves.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const make = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  return node;
};
const WIDTH = 420, HEIGHT = 240, LEFT = 46, BOTTOM = 30, TOP = 10, RIGHT = 8;
const short = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.01) ? x.toExponential(0) : +x.toPrecision(3));

function frame(id, { low, high, left, right, logarithmic = false, across }) {
  const svg = get(id);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const f = logarithmic ? Math.log10 : (x) => x;
  const x = (v) => LEFT + ((f(v) - f(left)) / (f(right) - f(left) || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (v) => HEIGHT - BOTTOM - ((v - low) / (high - low || 1)) * (HEIGHT - BOTTOM - TOP);
  for (let i = 0; i <= 4; i++) {
    const value = low + (i * (high - low)) / 4;
    svg.append(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    const label = make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" });
    label.textContent = short(value);
    svg.append(label);
  }
  [[left, "start"], [right, "end"]].forEach(([value, anchor]) => {
    const label = make("text", { x: x(value), y: HEIGHT - 12, "text-anchor": anchor });
    label.textContent = short(value);
    svg.append(label);
  });
  const title = make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 12, "text-anchor": "middle" });
  title.textContent = across;
  svg.append(title);
  return { svg, x, y };
}
function bars(id, values, across, line) {
  const high = Math.max(1.2, ...values);
  const { svg, y } = frame(id, { low: 0, high, left: 1, right: values.length, across });
  const slot = (WIDTH - LEFT - RIGHT) / values.length, width = 0.7 * slot;
  values.forEach((value, i) => svg.append(make("rect", { class: value < 0.1 && line ? "starved" : "bar",
    x: LEFT + (i + 0.15) * slot, y: y(value), width, height: Math.max(0, y(0) - y(value)) })));
  svg.append(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(1), y2: y(1), class: "one" }));
}
function curves(id, list, options) {
  const { svg, x, y } = frame(id, options);
  list.forEach(({ points, name }) => svg.append(make("polyline", { class: name, fill: "none",
    points: points.map(([a, b]) => `${x(a)},${y(Math.min(Math.max(b, options.low), options.high))}`).join(" ") })));
  if (options.mark !== undefined) {
    svg.append(make("line", { x1: x(options.mark), x2: x(options.mark), y1: TOP, y2: HEIGHT - BOTTOM, class: "one" }));
  }
}

function settings() {
  const number = (id) => Number(get(id).value);
  return { m: number("rows"), n: number("columns"), condition: 10 ** number("condition"),
    rowSpread: number("spread"), seed: number("seed"), method: get("method").value,
    steps: DATA.schedules[get("schedule").value], round: number("round"), matrix: get("matrix").value,
    sigma: 10 ** number("sigma") };
}
function draw() {
  const s = settings();
  const M = s.matrix === "" ? Matrices.example(s) : Matrices.of(DATA.recorded[s.matrix].rows);
  const all = Matrices.rounds(M, s.method, s.steps).map((U) => Matrices.measures(M, U));
  get("round").max = all.length - 1;
  const k = Math.min(s.round, all.length - 1), now = all[k];
  bars("singular", now.singular, "singular value of the update, largest first", false);
  bars("shares", now.shares, "row of the update: its share, 1 is equal", true);
  const last = Math.max(all.length - 1, 1);
  const line = (key) => all.map((one, i) => [i, one[key]]);
  curves("rounds", [{ name: "alignment", points: line("alignment") }, { name: "spread", points: line("spread") },
    { name: "starvation", points: line("starved") }],
  { low: 0, high: Math.max(1, ...all.map((one) => one.spread)), left: 0, right: last, across: "rounds since the first", mark: k });
  const sigmas = Array.from({ length: 241 }, (_, i) => 10 ** (-6 + i / 40));
  curves("map", [{ name: "alignment", points: sigmas.map((x) => [x, Matrices.outputs(x, s.steps).at(-1)]) }],
    { low: 0, high: 1.4, left: 1e-6, right: 1, logarithmic: true, across: "singular value / norm", mark: s.sigma });
  const where = s.method === "newton-schulz" ? `step ${k} of ${all.length - 1}` : `round ${k + 1} of ${all.length}`;
  get("round-said").textContent = where;
  get("said").textContent = `${M.m} x ${M.n}, ${where}: singular values `
    + `${short(now.singular.at(-1))} to ${short(now.singular[0])}, spread of row shares ${short(now.spread)}, `
    + `starved rows ${short(100 * now.starved)} %, alignment ${short(now.alignment)}`;
  get("sigma-said").textContent = Matrices.outputs(s.sigma, s.steps).map(short).join(" → ");
  ["rows", "columns", "spread", "seed"].forEach((id) => { get(`${id}-said`).textContent = get(id).value; });
  get("condition-said").textContent = short(s.condition);
}
function start() {
  const option = (select, value, text) => get(select).append(new Option(text, value));
  Object.keys(DATA.schedules).forEach((name) => option("schedule", name, name));
  Object.entries(DATA.recorded).forEach(([name, one]) => option("matrix", name, `${name}: ${one.about}`));
  document.querySelectorAll("input, select").forEach((node) => node.addEventListener("input", draw));
  draw();
  document.body.dataset.ready = "yes";
}
start();
