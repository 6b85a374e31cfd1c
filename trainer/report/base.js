// What all parts of the page share: the data, what the reader chose, numbers and colours.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;

// What the reader chose. `range` is in the units of the axis (its logarithm where that is on); null: everything.
const view = { x: "step", logx: false, logy: false, smooth: 2, range: null, hidden: new Set(), theme: "system" };

// Elements: make("p", {class: "x"}, "text", child). Texts are always texts, never HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// For the plot library, which reads a little HTML in its texts.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

// ---- numbers ----
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function number(value, digits = 4) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const places = Math.max(0, Math.min(6, digits - Math.max(1, Math.floor(Math.log10(size || 1)) + 1)));
  return value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: Math.max(places, size < 1 ? digits : 0) });
}

function short(value) {
  if (!isNumber(value)) return "–";
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return (value / size).toFixed(value / size < 10 ? 2 : 1) + letter;
  return number(value, 4);
}

const bytes = (value) => short(value) + "B";

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const count = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

// ---- colours: safe for the colour-blind (after Okabe and Ito), with contrast on both grounds ----
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#00805d", "#b04f88", "#946200", "#3f4a5a", "#2a8fc7"],
  dark: ["#5bb5ec", "#f08a4b", "#31c79c", "#e293bf", "#e3b341", "#b9c3d0", "#9ad0f5"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const isDark = () => document.documentElement.dataset.theme === "dark";
const colour = (n) => COLOURS[isDark() ? "dark" : "light"][n % COLOURS.light.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Cividis, which reads the same with any kind of colour vision; its dark end is left out on a dark ground.
const CIVIDIS = [[0, 34, 78], [33, 61, 110], [77, 88, 112], [113, 114, 116], [150, 141, 116], [189, 171, 101], [228, 204, 69], [254, 232, 56]];
function shade(share) {
  const [from, to] = isDark() ? [0.25, 1] : [0, 0.9];
  const at = (from + (to - from) * Math.min(1, Math.max(0, share))) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2), rest = at - low;
  return `rgb(${CIVIDIS[low].map((c, i) => Math.round(c + (CIVIDIS[low + 1][i] - c) * rest)).join(",")})`;
}
const scale = () => [...Array(12).keys()].map((i) => [i / 11, shade(i / 11)]);
// Around zero: blue below, orange above.
const aroundZero = () => (isDark()
  ? [[0, "#5bb5ec"], [0.5, "#232b35"], [1, "#f08a4b"]]
  : [[0, "#00588a"], [0.25, "#7fb4d6"], [0.5, "#f4f4f2"], [0.75, "#eba274"], [1, "#a84300"]]);

const faded = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");

// ---- runs ----
const shownRuns = () => runs.map((run, i) => i).filter((i) => !view.hidden.has(i));
const hasTokens = runs.some((run) => (run.curves || []).some((curve) => curve.tokens));
const curveOf = (run, name) => (run.curves || []).find((curve) => curve.name === name);
// The places of points on the x axis; null where tokens are asked for and not known.
const places = (thing) => (view.x === "tokens" ? thing.tokens || null : thing.steps || thing.step);
const axisName = () => (view.x === "tokens" ? "tokens" : "step");
