// Maps layer x step, and what they share with the other maps.

// Edges of cells around points: half way to the neighbours.
function edges(at) {
  if (at.length === 1) return [at[0] - 0.5, at[0] + 0.5];
  const between = at.slice(1).map((x, i) => (x + at[i]) / 2);
  return [at[0] - (between[0] - at[0]), ...between, at[at.length - 1] + (at[at.length - 1] - between[between.length - 1])];
}
// The same on a logarithmic axis.
const axisEdges = (at) => (view.logx ? edges(at.map(Math.log10)).map((x) => Math.pow(10, x)) : edges(at));

function span(rows) {
  let low = Infinity, high = -Infinity;
  for (const row of rows)
    for (const value of row)
      if (isNumber(value)) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
  return low <= high ? [low, high] : null;
}

// A heat map of rows of numbers. Colours go by the logarithm where values span more than a factor of 30.
function mapTrace(x, y, rows, { hover }) {
  const range = span(rows);
  const log = range && range[0] > 0 && range[1] / range[0] > 30;
  const mixed = range && range[0] < 0 && range[1] > 0;
  const trace = { type: "heatmap", x, y, z: log ? rows.map((row) => row.map((v) => (v > 0 ? Math.log10(v) : null))) : rows, customdata: rows,
    colorscale: mixed ? aroundZero() : scale(), hoverongaps: false, hovertemplate: `${hover}: <b>%{customdata:.5~g}</b><extra></extra>`, zsmooth: false,
    colorbar: { thickness: 10, outlinewidth: 0, len: 1, xpad: 6, ypad: 0, tickfont: { color: css("--soft"), size: 11 }, nticks: 6, exponentformat: "e" } };
  if (mixed) Object.assign(trace, { zmid: 0 });
  if (log) {
    const from = Math.floor(Math.log10(range[0])), to = Math.ceil(Math.log10(range[1])), ticks = [];
    const parts = to - from <= 2 ? [1, 2, 5] : [1], stride = Math.max(1, Math.ceil((to - from) / 7));
    for (let power = from; power <= to; power += stride) for (const part of parts) ticks.push(part * Math.pow(10, power));
    const shown = ticks.filter((v) => v >= range[0] * 0.999 && v <= range[1] * 1.001);
    Object.assign(trace.colorbar, { tickvals: shown.map(Math.log10), ticktext: shown.map((v) => number(v, 2)) });
  }
  return { trace, words: range ? `${number(range[0])} to ${number(range[1])}${log ? ", colours by the logarithm" : ""}.` : "No finite value." };
}

// Labels of rows, thinned where they would touch. Of "layer.index" the layer alone, at its first row.
function rowTicks(labels, height) {
  const layers = labels.map((label) => label.split(".")[0]), first = layers.map((layer, i) => i).filter((i) => i === 0 || layers[i] !== layers[i - 1]);
  if (first.length < labels.length) {
    const k = Math.max(1, Math.ceil(first.length / (height / 17))), kept = first.filter((_, n) => n % k === 0);
    return { tickvals: kept, ticktext: kept.map((i) => plain(layers[i])) };
  }
  const k = Math.max(1, Math.ceil(labels.length / (height / 17)));
  const kept = labels.map((label, i) => [i, label]).filter(([i]) => i % k === 0);
  return { tickvals: kept.map(([i]) => i), ticktext: kept.map(([, label]) => plain(label)) };
}

// Columns that have a place on the axis.
function columns(steps, x) {
  const kept = x.map((at, i) => i).filter((i) => isNumber(x[i]) && (!view.logx || x[i] > 0));
  return kept.filter((i, n) => n === 0 || x[i] > x[kept[n - 1]]);
}

const ordinal = (n) => n + (n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] || "th");
const every = (measure) => (measure.every > 1 ? ` Every ${ordinal(measure.every)} measured step is drawn, and the last.` : "");

// {run, measure} of a figure by the name of the run.
function runChoice(figure, change) {
  const names = figure.of.map(({ run }) => runs[run].name);
  return figure.of.length > 1 ? [choice("run", names, names[0], (name) => change(figure.of[names.indexOf(name)]))] : [];
}

const wholeLayer = "the layer as a whole";
function layersFigure(figure) {
  let of = figure.of[0];
  const measureOf = () => runs[of.run].measures[of.measure];
  const parts = [...new Set(figure.of.flatMap(({ run, measure }) => runs[run].measures[measure].parts.map((part) => part.part)))];
  // A map that says something first: the layer as a whole, or its first matrix.
  let part = parts.includes("") ? "" : parts.find((name) => !/norm|ln_|bias/.test(name)) ?? parts[0];
  const named = (name) => (name === "" ? wholeLayer : name);
  const choices = runChoice(figure, (chosen) => { of = chosen; made.redraw(); });
  if (parts.length > 1) choices.push(choice("part of the layer", parts.map(named), named(part), (name) => { part = name === wholeLayer ? "" : name; made.redraw(); }));
  const made = frame({
    id: figure.id, title: figure.title, unit: parts.length > 1 || part === "" ? `layer × ${axisName()}` : named(part), linked: true, choices,
    draw: () => {
      const measure = measureOf(), found = measure.parts.find((p) => p.part === part) || { rows: [], values: [] };
      const x = places(measure), height = found.rows.length <= 32 ? 270 : Math.min(560, 70 + 7 * found.rows.length);
      const layout = layoutOf({ height, x: { ...sharedAxis(), showgrid: false },
        y: { title: { text: "layer" }, showgrid: false, range: [-0.5, found.rows.length - 0.5], fixedrange: true, ...rowTicks(found.rows, height - 60) } });
      if (!x || found.rows.length === 0)
        return { traces: [], layout, caption: x ? `${runs[of.run].name} has no values of ${named(part)}.` : "The tokens of these steps are not known: choose steps." };
      const kept = columns(measure.steps, x);
      const { trace, words } = mapTrace(axisEdges(kept.map((i) => x[i])), [...found.rows.keys()], found.values.map((row) => kept.map((i) => row[i])), { hover: "layer %{text}" });
      trace.text = found.rows.map((row) => kept.map((i) => `${plain(row)}, ${axisName()} ${number(x[i])}`));
      return { traces: [trace], layout, caption: `${found.rows.some((row) => row.includes(".")) ? `${count(found.rows.length, "row")} (several a layer)` : count(found.rows.length, "layer")}, ${count(kept.length, "step")}: ${words}${every(measure)}` };
    },
  });
  return made;
}
