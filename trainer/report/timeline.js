// Checkpoints, events and stages of all runs over the steps.
const EVENTS = {  // marker and colour of a kind; others are circles
  spike: ["triangle-up", 4], nonfinite: ["x", 1], signal: ["square", 3], resume: ["diamond", 2], "other machine": ["diamond", 1], setting: ["square", 0], fork: ["diamond", 6], stage: ["line", 5],
};
const eventStyle = (kind) => EVENTS[Object.keys(EVENTS).find((known) => kind.startsWith(known))] || ["circle", 5];

function eventWords(event) {
  const rest = Object.entries(event).filter(([name]) => !["step", "event", "tokens"].includes(name))
    .map(([name, value]) => `${name} ${isNumber(value) ? number(value) : typeof value === "string" ? value : JSON.stringify(value)}`);
  return `step ${number(event.step)}: ${event.event}${rest.length ? `, ${rest.join(", ")}` : ""}`;
}

// Tokens of a step out of the run's curves: that of the point whose step it is, or the next one.
function tokensOf(run, step) {
  const curve = (run.curves || [])[0];
  if (!curve || !curve.tokens) return null;
  if (step <= 0) return 0;
  const at = curve.step.findIndex((s) => s >= step);
  return at < 0 ? null : curve.tokens[at];
}

function timelineFigure(figure) {
  return frame({
    id: figure.id, title: figure.title, unit: "checkpoints, events, stages", full: true, linked: true,
    draw: () => {
      const traces = [], annotations = [], key = new Map(), said = [];
      let row = 0;
      const at = (run, thing) => (view.x === "tokens" ? thing.tokens ?? tokensOf(run, thing.step) : thing.step);
      const addRow = (run, text) => {
        annotations.push({ xref: "paper", x: 0, xanchor: "left", y: -row, yanchor: "bottom", yshift: 7, showarrow: false, text: plain(runs.length > 1 ? `${cut(run.name, 26)}: ${text}` : text), font: { color: css("--soft"), size: 11 } });
        return -row++;
      };
      const markers = (run, things, y, style, words) => {
        const found = things.map((thing) => [at(run, thing), words(thing)]).filter(([x]) => isNumber(x) && (!view.logx || x > 0));
        traces.push({ type: "scatter", mode: "markers", x: found.map(([x]) => x), y: found.map(() => y), text: found.map(([, text]) => plain(text)), hovertemplate: "%{text}<extra></extra>",
          marker: { symbol: style.marker, size: style.marker === "line" ? 4 : 10, color: style.colour, line: { width: style.open ? 2 : 0, color: style.colour } } });
      };
      for (const r of shownRuns()) {
        const run = runs[r], before = said.length;
        if ((run.stages || []).length) {
          const y = addRow(run, "stages");
          run.stages.forEach((stage, n) => {
            const last = stage.last ?? run.summary.step ?? stage.first;
            const x = view.x === "tokens" ? [stage.first_tokens, stage.last_tokens ?? run.summary.tokens] : [stage.first, last];
            if (!x.every(isNumber)) return;
            const words = `stage ${stage.name}: steps ${number(stage.first)} to ${number(last)}`;
            traces.push({ type: "scatter", mode: "lines", x, y: [y, y], line: { width: 9, color: colour(n) }, text: [plain(words), plain(words)], hovertemplate: "%{text}<extra></extra>" });
            key.set(`stage ${stage.name}`, { colour: colour(n), text: `stage ${stage.name}` });
          });
          said.push(`${count(run.stages.length, "stage")}.`);
        }
        if ((run.checkpoints || []).length) {
          const y = addRow(run, "checkpoints");
          const kinds = [...new Set(run.checkpoints.map((c) => c.kind || "full"))];
          for (const kind of kinds) {
            const style = { marker: kind === "full" ? "circle" : "circle-open", colour: colour(runs.length > 1 ? r : 0), open: kind !== "full" };
            markers(run, run.checkpoints.filter((c) => (c.kind || "full") === kind), y, style, (c) => `step ${number(c.step)}: ${kind} checkpoint, ${bytes(c.bytes)}, digest ${c.digest || "not given"}`);
            key.set(`checkpoint, ${kind}`, { ...style, colour: runs.length > 1 ? css("--soft") : style.colour, text: `checkpoint, ${kind}` });
          }
          said.push(`${count(run.checkpoints.length, "checkpoint")} stored, ${bytes(run.checkpoints.reduce((sum, c) => sum + c.bytes, 0))} in all.`);
        }
        if ((run.events || []).length) {
          const y = addRow(run, "events");
          const kinds = [...new Set(run.events.map((e) => e.event))];
          for (const kind of kinds) {
            const [marker, n] = eventStyle(kind), style = { marker: marker === "line" ? "line-ns" : marker, colour: colour(n) };
            markers(run, run.events.filter((e) => e.event === kind), y, style, eventWords);
            key.set(kind, { ...style, text: kind });
          }
          said.push(`Events: ${kinds.map((kind) => `${kind} ${number(run.events.filter((e) => e.event === kind).length)} ×`).join(", ")}.`);
        }
        if (runs.length > 1 && said.length > before) said[before] = `${run.name}: ${said[before]}`;
      }
      const layout = layoutOf({ height: Math.max(110, 62 + 46 * row), x: sharedAxis(), annotations,
        y: { range: [-row + 0.55, 0.75], fixedrange: true, showticklabels: false, showgrid: true, tickvals: [...Array(row).keys()].map((i) => -i) } });
      layout.margin = { ...layout.margin, l: 12 };
      return { traces, layout, key: [...key.values()], caption: said.join(" ") };
    },
  });
}
