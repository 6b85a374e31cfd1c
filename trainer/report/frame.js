// A plot's frame: title, choices, key, the plot, a caption; redrawing, and zoom that all linked plots share.
const figures = [];  // {plot, draw, linked, redraw}
const MODEBAR = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"];
const touched = () => matchMedia("(pointer: coarse)").matches;
const narrow = () => window.innerWidth < 560;

// draw() gives {traces, layout, key, caption}; `linked`: its x axis is the page's.
function frame({ id, title, unit, full, linked, draw, choices = [] }) {
  const plot = make("div", { class: "plot", id, role: "group" });
  const key = make("ul", { class: "key" });
  const caption = make("p", { class: "caption" });
  const choice = make("span", { class: "choice" }, ...choices);
  const root = make("figure", { class: full ? "card full" : "card", "aria-labelledby": `${id}-title` },
    make("header", {}, make("h3", { id: `${id}-title` }, title), unit ? make("span", { class: "unit" }, unit) : null, choices.length ? choice : null),
    key, plot, caption);
  const figure = { id, title, plot, linked, root };
  figure.redraw = () => {
    const { traces, layout, key: entries = [], caption: text = "" } = draw();
    key.replaceChildren(...entries.map((entry) => make("li", {}, mark(entry), entry.text)));
    key.hidden = entries.length === 0;
    caption.textContent = text;
    plot.setAttribute("aria-label", `Plot: ${title}. ${text}`);
    figure.height = layout.yaxis.range && [...layout.yaxis.range];
    plot.style.height = `${layout.height}px`;
    const config = { displaylogo: false, responsive: true, modeBarButtons: [MODEBAR], displayModeBar: "hover",
      toImageButtonOptions: { format: "svg", filename: title.toLowerCase().replace(/[^a-z0-9]+/g, "-") } };
    return Plotly.react(plot, traces, layout, config).then(() => {
      plot.dataset.traces = traces.length;
      if (!figure.listens && linked) {
        figure.listens = true;
        plot.on("plotly_relayout", (change) => zoomed(figure, change));
        plot.on("plotly_doubleclick", () => zoomTo(null));
      }
    });
  };
  figures.push(figure);
  return figure;
}

// The little line or marker before a key's entry.
function mark({ colour: stroke, dash = "solid", marker, band }) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 26 10");
  svg.setAttribute("aria-hidden", "true");
  const add = (tag, attributes) => {
    const part = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    svg.append(part);
  };
  if (band) add("rect", { x: 0, y: 0, width: 26, height: 10, fill: stroke, opacity: 0.25 });
  if (!marker || marker === "line") {
    const dashes = { solid: "none", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3" };
    add("line", { x1: 0, y1: 5, x2: 26, y2: 5, stroke, "stroke-width": 2.4, "stroke-dasharray": dashes[dash] });
  }
  if (marker) {
    const shapes = { "triangle-up": "13,1 18,9 8,9", diamond: "13,0 18,5 13,10 8,5", square: "9,1 17,1 17,9 9,9", x: "9,1 11,0 13,3 15,0 18,1 15,5 18,9 15,10 13,7 11,10 8,9 11,5" };
    if (shapes[marker]) add("polygon", { points: shapes[marker], fill: stroke });
    else add("circle", { cx: 13, cy: 5, r: 4, fill: marker === "circle-open" ? "none" : stroke, stroke, "stroke-width": 1.6 });
  }
  return svg;
}

// ---- layouts ----
function layoutOf({ height = 300, x = {}, y = {}, ...rest } = {}) {
  const ink = css("--ink"), soft = css("--soft"), grid = css("--grid");
  const axis = { gridcolor: grid, linecolor: css("--line"), zeroline: false, automargin: true, tickfont: { color: soft, size: narrow() ? 11 : 12 },
    title: { font: { color: soft, size: 12 }, standoff: 6 }, showline: false, ticks: "" };
  const merge = (own) => ({ ...axis, ...own, title: { ...axis.title, ...(own.title || {}) } });
  return {
    height, autosize: true, margin: { l: 44, r: 10, t: touched() ? 30 : 10, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--sans"), size: 12, color: ink }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: ink, family: css("--sans"), size: 12 }, namelength: 28 },
    // A finger that moves over a plot scrolls the page; the buttons above the plot zoom.
    dragmode: touched() ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)" }, xaxis: merge(x), yaxis: merge(y), ...rest,
  };
}

// The x axis that linked plots share.
function sharedAxis() {
  return { type: view.logx ? "log" : "linear", range: [...(view.range || wholeRange())], title: { text: axisName() },
    tickformat: view.x === "tokens" ? "~s" : view.logx ? "~s" : ",~r", nticks: narrow() ? 5 : 9 };
}

function wholeRange() {
  let low = Infinity, high = -Infinity;
  const look = (thing) => {
    for (const at of places(thing) || []) {
      if (view.logx && at <= 0) continue;
      low = Math.min(low, at);
      high = Math.max(high, at);
    }
  };
  for (const run of runs) {
    (run.curves || []).forEach(look);
    for (const measure of run.measures) {
      look(measure);
      (measure.curves || []).forEach(look);
      if (measure.kind === "profile") measure.names.forEach(look);
    }
    if (view.x === "step") look({ steps: (run.checkpoints || []).map((c) => c.step) });
  }
  if (low > high) [low, high] = [1, 2];
  if (low === high) [low, high] = view.logx ? [low / 1.5, high * 1.5] : [low - 1, high + 1];
  if (view.logx) [low, high] = [Math.log10(low), Math.log10(high)];
  const room = 0.015 * (high - low);
  return [low - room, high + room];
}

// ---- linked zoom ----
let applying = false;
function zoomed(figure, change) {
  if (applying) return;
  if (change["xaxis.autorange"]) return zoomTo(null);
  const low = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0], high = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
  if (low !== undefined && high !== undefined) zoomTo([low, high], figure);
}

async function zoomTo(range, from = null) {
  view.range = range;
  applying = true;
  const whole = range || wholeRange();
  for (const figure of nearestFirst()) {
    if (!figure.linked || figure === from) continue;
    const change = { "xaxis.range": [...whole] };
    // The height that draw() gave, which another zoom may have changed.
    if (!range && figure.height) change["yaxis.range"] = [...figure.height];
    else if (!range) change["yaxis.autorange"] = true;
    await Plotly.relayout(figure.plot, change);
  }
  applying = false;
  document.getElementById("whole").disabled = !range;
}

// What the reader sees comes first.
function nearestFirst() {
  const away = new Map(figures.map((figure) => {
    const { top, bottom } = figure.root.getBoundingClientRect();
    return [figure, bottom < 0 ? -bottom : Math.max(0, top - window.innerHeight)];
  }));
  return [...figures].sort((a, b) => away.get(a) - away.get(b));
}

// Between two plots the page stays alive.
const breathe = () => new Promise((done) => setTimeout(done));
let drawing = Promise.resolve(), waiting = 0;
function redrawAll() {
  ++waiting;
  document.documentElement.dataset.ready = "false";
  drawing = drawing.then(async () => {
    // Of several that were asked for meanwhile only the last one draws.
    if (--waiting > 0) return;
    for (const figure of nearestFirst()) {
      try {
        await figure.redraw();
      } catch (error) {
        console.error(`${figure.title}: ${error.stack || error}`);
      }
      await breathe();
    }
    if (waiting === 0) document.documentElement.dataset.ready = "true";
  });
  return drawing;
}
