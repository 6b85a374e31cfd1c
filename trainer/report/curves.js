// Numbers along the run: the journal's, and measured ones of the whole model.

// An exponential mean whose half-life is `half` steps, over points that may lie unevenly; the start is not pulled to 0.
function smoothed(steps, values, half) {
  let sum = 0, weight = 0, before = null;
  return values.map((value, i) => {
    if (!isNumber(value)) return null;
    const keep = before === null ? 0 : Math.pow(0.5, (steps[i] - before) / half);
    sum = keep * sum + value;
    weight = keep * weight + 1;
    before = steps[i];
    return sum / weight;
  });
}

// Steps in the half-life: a share of the run.
const SMOOTHING = [0, 0.005, 0.01, 0.02, 0.05, 0.1];
function halfLife(curve) {
  const share = SMOOTHING[view.smooth];
  return share === 0 ? 0 : Math.max(1, Number((share * (curve.step[curve.step.length - 1] - curve.step[0] + 1)).toPrecision(1)));
}

// One curve of one run as traces. `style`: {colour, dash, label, points: with markers, smooth, log}
function curveTraces(curve, style) {
  const x = places(curve);
  if (!x) return [];
  const usable = (values) => values.map((v) => (style.log && !(v > 0) ? null : v));
  const line = (y, more) => ({ type: "scatter", mode: style.points || y.length < 4 ? "lines+markers" : "lines", x, y: usable(y), name: plain(style.label),
    line: { color: style.colour, width: 2, dash: style.dash }, marker: { color: style.colour, size: 6 }, hovertemplate: "%{y:.5~g}", ...more });
  const half = style.smooth ? halfLife(curve) : 0, traces = [];
  const quiet = { hoverinfo: "skip", hovertemplate: undefined };
  if (curve.per > 1) {
    const edge = { mode: "lines", line: { width: 0.8, color: faded(style.colour, 0.4) }, ...quiet };
    traces.push(line(curve.low, edge), line(curve.high, { ...edge, fill: "tonexty", fillcolor: faded(style.colour, 0.2) }));
  }
  if (half > 0) {
    if (curve.per === 1) traces.push(line(curve.mean, { opacity: 0.3, line: { color: style.colour, width: 1 }, name: plain(`${style.label}, raw`) }));
    traces.push(line(smoothed(curve.step, curve.mean, half), {}));
  } else {
    traces.push(line(curve.mean, {}));
  }
  return traces;
}

// Says what a curve does, for the caption and for those who cannot see it.
function curveWords(curve, label) {
  if (curve.values === 0) return `${label}: no finite value.`;
  if (curve.values === 1) return `${label}: one value, ${number(curve.last)}.`;
  return `${label}: ${number(curve.first)} at first, ${number(curve.last)} at last, ${number(curve.lowest)} to ${number(curve.highest)}.`;
}

// An axis for what the traces hold. Values that are all but equal would get an axis of their rounding errors.
function valueAxis(traces, log) {
  const [low, high] = span(traces.map((trace) => trace.y)) || [0, 0], size = Math.max(Math.abs(low), Math.abs(high));
  const axis = { type: log ? "log" : "linear", exponentformat: "e", tickformat: size >= 10000 ? "~s" : log ? "~g" : "", nticks: log ? undefined : 6 };
  if (high - low > 1e-5 * size) return axis;
  const room = size > 0 ? 0.1 * size : 1, range = [low - room, high + room];
  return { ...axis, autorange: false, range: log ? range.map(Math.log10) : range };
}

// Said in the plot itself where there is nothing in it.
const emptiness = (traces) => (traces.some((trace) => trace.y.some(isNumber)) ? []
  : [{ text: "no finite value", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { color: css("--soft"), size: 13 } }]);

const setOf = (name) => name.split("/").slice(1, -1).join("/");

function curveFigure(figure, full) {
  const single = runs.length === 1;
  return frame({
    id: figure.id, title: figure.title, unit: figure.unit, full, linked: true,
    draw: () => {
      const log = view.logy && figure.log;
      const traces = [], key = [], said = [];
      let unplaced = 0, nonpositive = 0, thinned = 1, half = 0;
      for (const r of shownRuns()) {
        figure.names.forEach((name, n) => {
          const curve = curveOf(runs[r], name);
          if (!curve) return;
          const evaluated = name.startsWith("eval/");
          const what = evaluated ? (setOf(name) === "validation" ? "validation" : `validation: ${setOf(name)}`) : figure.id === "figure-1" ? "training" : figure.title.toLowerCase();
          const label = single ? what : figure.names.length > 1 ? `${cut(runs[r].name, 24)}, ${what}` : cut(runs[r].name, 32);
          const style = { colour: colour(single ? n : r), label, points: evaluated && curve.step.length <= 60, smooth: figure.smooth && !evaluated, log,
            dash: single ? "solid" : DASHES[(n + Math.floor(r / COLOURS.light.length)) % DASHES.length] };
          const made = curveTraces(curve, style);
          if (made.length === 0) ++unplaced;
          traces.push(...made);
          key.push({ colour: style.colour, dash: style.dash, text: label, marker: style.points ? "line" : undefined, band: curve.per > 1 });
          if (log && curve.lowest <= 0) ++nonpositive;
          if (style.smooth) half = Math.max(half, halfLife(curve));
          thinned = Math.max(thinned, curve.per);
          if (said.length < 3) said.push(curveWords(curve, single ? label.charAt(0).toUpperCase() + label.slice(1) : label) + (curve.missing ? ` ${count(curve.missing, "value")} missing or not finite: gaps.` : ""));
        });
      }
      if (half > 0) said.push(`Smoothed with a half-life of ${count(half, "step")}${thinned > 1 ? ", over the means" : "; pale: each step"}.`);
      if (thinned > 1) said.push(`A point stands for ${number(thinned)} steps: band from the lowest to the highest, line their mean.`);
      if (unplaced) said.push("Curves without token counts are left out.");
      if (nonpositive) said.push("Values of zero or below have no place on a logarithmic axis.");
      const layout = layoutOf({ height: full ? (narrow() ? 300 : 380) : 270, x: sharedAxis(), hovermode: "x unified",
        y: valueAxis(traces, log), annotations: emptiness(traces),
        shapes: single ? turningPoints(runs[0]) : [] });
      return { traces, layout, key: key.length > 1 || !single ? key : [], caption: said.join(" ") };
    },
  });
}

// Thin lines where the run entered a stage.
function turningPoints(run) {
  const at = (step, tokens) => (view.x === "tokens" ? tokens : step);
  const places = (run.stages || []).slice(1).map((stage) => at(stage.first, stage.first_tokens));
  return places.filter((x) => isNumber(x) && (!view.logx || x > 0)).map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } }));
}

// Numbers of the whole model out of probes/ and analysis/.
function measuredFigure(figure) {
  const all = figure.of.flatMap(({ run, measure }) => runs[run].measures[measure].curves);
  const names = [...new Set(all.map((curve) => curve.name))].sort((a, b) => (b === "model") - (a === "model"));
  // Too many for one plot, or of sizes that hide one another: one at a time.
  const sizes = names.map((name) => Math.max(...all.filter((curve) => curve.name === name).map((curve) => Math.max(Math.abs(curve.lowest), Math.abs(curve.highest))))).filter((size) => size > 0);
  const many = names.length > 7 || Math.max(...sizes) > 100 * Math.min(...sizes);
  let chosen = names[0];
  const choose = choice("what is drawn", names, chosen, (name) => { chosen = name; made.redraw(); });
  const made = frame({
    id: figure.id, title: figure.title, unit: names.length > 1 ? "outside the layers" : names[0] === "model" ? "whole model" : names[0], linked: true, choices: many ? [choose] : [],
    draw: () => {
      const traces = [], key = [], said = [];
      for (const { run, measure } of figure.of.filter(({ run }) => !view.hidden.has(run))) {
        names.forEach((name, n) => {
          const curve = runs[run].measures[measure].curves.find((c) => c.name === name);
          if (!curve || (many && name !== chosen)) return;
          const log = view.logy && curve.lowest > 0;
          const label = [runs.length > 1 ? cut(runs[run].name, 24) : null, names.length > 1 ? name : null].filter(Boolean).join(", ") || figure.title;
          const style = { colour: colour(runs.length > 1 ? run : many ? 0 : n), dash: runs.length > 1 ? DASHES[many ? 0 : n % DASHES.length] : "solid", label, points: curve.step.length <= 60, log };
          traces.push(...curveTraces(curve, style));
          key.push({ colour: style.colour, dash: style.dash, text: label });
          if (said.length < 3) said.push(curveWords(curve, label));
          if (curve.per > 1) said.push(`A point stands for ${curve.per} values.`);
        });
      }
      const positive = traces.every((trace) => trace.y.every((v) => v === null || v > 0));
      return { traces, key: key.length > 1 ? key : [], caption: said.join(" "),
        layout: layoutOf({ height: 270, x: sharedAxis(), hovermode: "x unified", y: valueAxis(traces, view.logy && positive), annotations: emptiness(traces) }) };
    },
  });
  return made;
}

// A labelled choice among names.
function choice(label, names, chosen, change) {
  return make("select", { "aria-label": label, onchange: (event) => change(event.target.value) },
    ...names.map((name) => make("option", { value: name, selected: name === chosen }, cut(String(name), 44))));
}
