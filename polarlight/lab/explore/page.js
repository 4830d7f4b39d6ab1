// The page: controls, and four pictures drawn anew when one of them moves.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const make = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  return node;
};
const NAMES = { muon: "Muon", aurora: "Aurora", normuon: "NorMuon, first step", muoneq: "MuonEq",
  "newton-schulz": "Newton-Schulz, step by step" };
const ABOUT = { muon: "polar factor", aurora: "rows balanced, polar factor, again",
  normuon: "rows of the polar factor made equal", muoneq: "rows made equal, then the polar factor" };
const WIDTH = 420, HEIGHT = 240, LEFT = 46, BOTTOM = 44, TOP = 10, RIGHT = 14;
const short = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.01) ? x.toExponential(0) : +x.toPrecision(3));

// Round numbers between low and high, about `most` of them.
function ticks(low, high, most) {
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((k) => k * power >= rough * (1 - 1e-9)) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(+(i * step).toPrecision(6));
  return found;
}
function decades(low, high) {
  const found = [];
  for (let k = Math.round(Math.log10(low)); k <= Math.round(Math.log10(high)); k++) found.push(10 ** k);
  return found;
}
function frame(id, { low, high, left, right, logarithmic = false, whole = false, across }) {
  const svg = get(id);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const f = logarithmic ? Math.log10 : (x) => x;
  const x = (v) => LEFT + ((f(v) - f(left)) / (f(right) - f(left) || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (v) => HEIGHT - BOTTOM - ((v - low) / (high - low || 1)) * (HEIGHT - BOTTOM - TOP);
  const text = (words, at) => {
    const label = make("text", at);
    label.textContent = words;
    svg.append(label);
  };
  ticks(low, high, 5).forEach((value) => {
    svg.append(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    text(short(value), { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" });
  });
  const below = logarithmic ? decades(left, right) : ticks(left, right, 6);
  below.filter((value) => !whole || Number.isInteger(value)).forEach((value) =>
    text(short(value), { x: x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }));
  text(across, { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" });
  return { svg, x, y };
}
function bars(id, values, high, across) {
  const { svg, y } = frame(id, { low: 0, high, left: 0.5, right: values.length + 0.5, whole: true, across });
  const slot = (WIDTH - LEFT - RIGHT) / values.length, width = 0.7 * slot;
  values.forEach((value, i) => {
    const height = Math.max(value < 0.1 ? 2 : 0, y(0) - y(value));  // a starved row stays visible
    svg.append(make("rect", { class: value < 0.1 ? "starved" : "bar",
      x: LEFT + (i + 0.15) * slot, y: y(0) - height, width, height }));
  });
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
    rowSpread: number("spread"), seed: number("seed"), methods: [get("method").value, get("beside").value],
    steps: DATA.schedules[get("schedule").value], round: number("round"), matrix: get("matrix").value,
    sigma: 10 ** number("sigma") };
}
// A method's rounds with their measures, and the one that the slider chose.
function followed(M, method, s) {
  const all = Matrices.rounds(M, method, s.steps).map((U) => Matrices.measures(M, U));
  const k = Math.min(s.round, all.length - 1);
  const where = method === "newton-schulz" ? `step ${k} of ${all.length - 1}` : `round ${k + 1} of ${all.length}`;
  return { method, name: NAMES[method], all, k, now: all[k], where };
}
const inWords = ({ name, where, now }) => `${name} (${where}): starved rows ${short(100 * now.starved)} %, `
  + `spread of row shares ${short(now.spread)}, alignment ${short(now.alignment)}, `
  + `singular values ${short(now.singular.at(-1))} to ${short(now.singular[0])}`;
function draw() {
  const s = settings();
  const M = s.matrix === "" ? Matrices.example(s) : Matrices.of(DATA.recorded[s.matrix].rows);
  const two = s.methods.map((method) => followed(M, method, s));
  const most = Math.max(...two.map((one) => one.all.length)) - 1;
  get("round").max = most;
  const high = Math.max(1.2, ...two.flatMap((one) => one.now.shares));
  two.forEach((one, i) => {
    const which = ["first", "second"][i];
    bars(`${which}-shares`, one.now.shares, high, "row of the matrix; its share, 1 is equal");
    get(`${which}-name`).textContent = get(`${which}-key`).textContent = one.name;
  });
  curves("singular", two.map((one, i) => ({ name: ["first", "second"][i],
    points: one.now.singular.map((x, j) => [j + 1, x]) })),
  { low: 0, high: Math.max(1.2, ...two.flatMap((one) => one.now.singular)), left: 1,
    right: two[0].now.singular.length, whole: true, across: "singular value, largest first" });
  const shown = two[0].all.length > 1 ? two[0] : two[1];
  const line = (key) => shown.all.map((one, i) => [i, one[key]]);
  get("rounds-name").textContent = shown.name;
  curves("rounds", [{ name: "alignment", points: line("alignment") }, { name: "spread", points: line("spread") },
    { name: "starvation", points: line("starved") }],
  { low: 0, high: Math.max(1, ...shown.all.map((one) => one.spread)), left: 0, whole: true,
    right: Math.max(shown.all.length - 1, 1), across: "rounds since the first", mark: shown.k });
  const sigmas = Array.from({ length: 241 }, (_, i) => 10 ** (-6 + i / 40));
  curves("map", [{ name: "alignment", points: sigmas.map((x) => [x, Matrices.outputs(x, s.steps).at(-1)]) }],
    { low: 0, high: 1.4, left: 1e-6, right: 1, logarithmic: true, across: "singular value / norm", mark: s.sigma });
  get("round-said").textContent = `${Math.min(s.round, most) + 1}`;
  get("said").textContent = `${M.m} x ${M.n}. ${two.map(inWords).join(". ")}.`;
  get("sigma-said").textContent = Matrices.outputs(s.sigma, s.steps).map(short).join(" → ");
  ["rows", "columns", "spread", "seed"].forEach((id) => { get(`${id}-said`).textContent = get(id).value; });
  get("condition-said").textContent = short(s.condition);
}
function start() {
  const option = (select, value, text) => get(select).append(new Option(text, value));
  for (const select of ["method", "beside"]) {
    Object.entries(NAMES).forEach(([value, name]) => option(select, value, ABOUT[value] ? `${name}: ${ABOUT[value]}` : name));
  }
  get("beside").value = "aurora";
  Object.keys(DATA.schedules).forEach((name) => option("schedule", name, name));
  Object.entries(DATA.recorded).forEach(([name, one]) => option("matrix", name, `${name}: ${one.about}`));
  document.querySelectorAll("input, select").forEach((node) => node.addEventListener("input", draw));
  draw();
  document.body.dataset.ready = "yes";
}
start();
