// Spectra, profiles (index x step) and matrices.

function nameChoice(figure, current, change) {
  const names = [...new Set(figure.of.flatMap(({ run, measure }) => runs[run].measures[measure].names.map((one) => one.name)))];
  return names.length > 1 ? [choice("tensor", names, current, change)] : [];
}
const firstName = (figure) => runs[figure.of[0].run].measures[figure.of[0].measure].names[0].name;
const oneOf = (of, name) => runs[of.run].measures[of.measure].names.find((one) => one.name === name);

function absent(of, name) {
  return { traces: [], layout: layoutOf({ height: 160 }), caption: `${runs[of.run].name} has no values of ${name}.` };
}

// Of an axis that counts places: a few of them have no ticks between.
const wholeTicks = (count) => (count <= 12 ? { dtick: 1, tickformat: "d" } : { tickformat: "~s", nticks: 8 });

function toggle(label, pressed, change) {
  const button = make("button", { type: "button", "aria-pressed": String(pressed), onclick: () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    change(now);
  } }, label);
  return button;
}

// Sorted values over their rank, a line a step, from dark (early) to bright (late).
function spectraFigure(figure) {
  let of = figure.of[0], name = firstName(figure), logRank = false;
  const redraw = () => made.redraw();
  const made = frame({
    id: figure.id, title: figure.title, unit: "value over rank", linked: false,
    choices: [...runChoice(figure, (chosen) => { of = chosen; redraw(); }), ...nameChoice(figure, name, (chosen) => { name = chosen; redraw(); }),
      toggle("log rank", logRank, (on) => { logRank = on; redraw(); })],
    draw: () => {
      const one = oneOf(of, name);
      if (!one) return absent(of, name);
      const last = Math.max(1, one.lines.length - 1);
      const positive = one.lines.some((line) => line.some((v) => v > 0));
      const traces = one.lines.map((line, i) => ({ type: "scatter", mode: one.index.length < 4 ? "lines+markers" : "lines", x: one.index, y: line.map((v) => (positive && !(v > 0) ? null : v)),
        line: { color: shade(i / last), width: i === last ? 2.4 : 1.5 }, name: `step ${number(one.steps[i])}`, hovertemplate: `step ${number(one.steps[i])}, rank %{x}: <b>%{y:.5~g}</b><extra></extra>` }));
      const shownKey = traces.length <= 4 ? [...traces.keys()] : [0, Math.round(last / 3), Math.round((2 * last) / 3), last];
      const drawn = one.index.length < one.length ? ` ${one.index.length} of ${number(one.length)} ranks are drawn.` : "";
      return { traces, key: shownKey.map((i) => ({ colour: shade(i / last), text: `step ${number(one.steps[i])}` })),
        layout: layoutOf({ height: 290, x: { title: { text: "rank" }, type: logRank ? "log" : "linear", tickformat: "~s" }, y: { type: positive ? "log" : "linear", exponentformat: "e" } }),
        caption: `${count(one.lines.length, "step")} of ${name}; the largest value goes from ${number(one.lines[0][0])} to ${number(one.lines[last][0] ?? one.lines[0][0])}.${drawn}${every(one)}` };
    },
  });
  return made;
}

function profileFigure(figure) {
  let of = figure.of[0], name = firstName(figure);
  const redraw = () => made.redraw();
  const made = frame({
    id: figure.id, title: figure.title, unit: "index × step", linked: true,
    choices: [...runChoice(figure, (chosen) => { of = chosen; redraw(); }), ...nameChoice(figure, name, (chosen) => { name = chosen; redraw(); })],
    draw: () => {
      const one = oneOf(of, name), x = one && places(one);
      if (!one) return absent(of, name);
      const layout = layoutOf({ height: 290, x: { ...sharedAxis(), showgrid: false }, y: { title: { text: "index" }, showgrid: false, fixedrange: true, range: [0.5, one.length + 0.5], ...wholeTicks(one.length) } });
      if (!x) return { traces: [], layout, caption: "The tokens of these steps are not known: choose steps." };
      const kept = columns(one.steps, x);
      const rows = one.index.map((_, i) => kept.map((k) => one.lines[k][i]));
      const { trace, words } = mapTrace(axisEdges(kept.map((k) => x[k])), edges(one.index), rows, { hover: "%{text}" });
      trace.text = one.index.map((index) => kept.map((k) => `index ${index}, ${axisName()} ${number(x[k])}`));
      const drawn = one.index.length < one.length ? ` ${one.index.length} of ${number(one.length)} places are drawn.` : "";
      return { traces: [trace], layout, caption: `${name}: ${count(one.length, "place")}, ${count(kept.length, "step")}: ${words}${drawn}${every(one)}` };
    },
  });
  return made;
}

function matrixFigure(figure) {
  let of = figure.of[0], name = firstName(figure), at = oneOf(of, name).matrices.length - 1;
  const redraw = () => made.redraw();
  const slider = make("input", { type: "range", min: 0, max: at, value: at, "aria-label": "step", oninput: (event) => { at = Number(event.target.value); redraw(); } });
  const where = make("output", { class: "unit" });
  const toEnd = () => {
    at = Math.max(0, (oneOf(of, name)?.matrices.length || 1) - 1);
    slider.max = at;
    slider.value = at;
    redraw();
  };
  const made = frame({
    id: figure.id, title: figure.title, unit: "a matrix at each step", linked: false,
    choices: [...runChoice(figure, (chosen) => { of = chosen; toEnd(); }), ...nameChoice(figure, name, (chosen) => { name = chosen; toEnd(); }), ...(at > 0 ? [make("label", { class: "group" }, where, slider)] : [])],
    draw: () => {
      const one = oneOf(of, name);
      if (!one) return absent(of, name);
      where.textContent = `step ${number(one.steps[at])} `;
      const { trace, words } = mapTrace(one.columns, one.rows, one.matrices[at], { hover: "row %{y}, column %{x}" });
      const drawn = one.rows.length < one.height || one.columns.length < one.width ? ` ${one.rows.length} of ${one.height} rows and ${one.columns.length} of ${one.width} columns are drawn.` : "";
      return { traces: [trace], layout: layoutOf({ height: 300, x: { showgrid: false, ...wholeTicks(one.width) }, y: { showgrid: false, autorange: "reversed", ...wholeTicks(one.height) } }),
        caption: `${name}, step ${number(one.steps[at])}: ${one.height} × ${one.width}, ${words}${drawn}${every(one)}` };
    },
  });
  return made;
}
