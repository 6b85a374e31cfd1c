// Puts the page together: text first, then the plot library is unpacked and the plots are drawn one by one.

function segmented(label, entries, current, change) {
  const buttons = entries.map(([value, text]) => make("button", { type: "button", "aria-pressed": String(value === current), onclick: () => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === buttons[entries.findIndex(([v]) => v === value)]));
    change(value);
  } }, text));
  return make("div", { class: "group", role: "group", "aria-label": label }, make("span", { class: "label" }, label), make("span", { class: "switch" }, ...buttons));
}

function onAxis(change) {
  change();
  view.range = null;
  document.getElementById("whole").disabled = true;
  redrawAll();
}

function applyTheme() {
  const dark = view.theme === "dark" || (view.theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.querySelectorAll(".swatch").forEach((swatch) => { swatch.style.background = colour(Number(swatch.dataset.run)); });
}

function controls() {
  const smoothing = make("input", { type: "range", min: 0, max: SMOOTHING.length - 1, value: view.smooth, id: "smooth", "aria-label": "smoothing", oninput: (event) => { view.smooth = Number(event.target.value); redrawAll(); } });
  const chips = runs.length > 1 ? make("div", { class: "group", role: "group", "aria-label": "Runs" }, make("span", { class: "label" }, "Runs"),
    make("span", { style: "display:flex;flex-wrap:wrap;gap:6px" }, ...runs.map((run, r) => {
      const button = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
        view.hidden.has(r) ? view.hidden.delete(r) : view.hidden.add(r);
        button.setAttribute("aria-pressed", String(!view.hidden.has(r)));
        redrawAll();
      } }, swatch(r), cut(run.name, 28));
      return button;
    }))) : null;
  return make("div", { class: "bar", role: "toolbar", "aria-label": "How the plots are drawn" },
    hasTokens ? segmented("Across", [["step", "steps"], ["tokens", "tokens"]], view.x, (x) => onAxis(() => { view.x = x; })) : null,
    segmented("x", [[false, "linear"], [true, "log"]], view.logx, (log) => onAxis(() => { view.logx = log; })),
    segmented("y", [[false, "linear"], [true, "log"]], view.logy, (log) => { view.logy = log; redrawAll(); }),
    make("label", { class: "group", for: "smooth" }, make("span", { class: "label" }, "Smooth"), smoothing),
    make("button", { type: "button", id: "whole", disabled: true, onclick: () => zoomTo(null) }, "Whole run"),
    chips, make("span", { class: "spacer" }),
    segmented("Theme", [["system", "auto"], ["light", "light"], ["dark", "dark"]], view.theme, (theme) => { view.theme = theme; applyTheme(); redrawAll(); }));
}

const MAKERS = { curves: curveFigure, timeline: timelineFigure, measured: measuredFigure, layers: layersFigure, spectra: spectraFigure, profile: profileFigure, matrix: matrixFigure };

function build() {
  const content = document.getElementById("content");
  const many = runs.length > 1;
  document.getElementById("lead").textContent = many ? runs.map((run) => run.name).join(" · ") : modelWords(runs[0]) || (runs[0].kind === "series" ? "Measured series of a model" : "");
  if (many) content.append(section("Where they stand", "standing", comparison()));
  else content.append(tilesOf(runs[0]));
  const notices = notesOf(false), missing = notesOf(true);
  if (notices) content.append(notices);
  if (data.figures.length === 0) content.append(make("p", { class: "card", style: "margin-top:16px" }, "There is nothing to draw yet."));

  const wanted = (test) => data.figures.map((figure, i) => [figure, i]).filter(([figure]) => test(figure)).map(([figure, i]) => MAKERS[figure.kind](figure, i === 0).root);
  if (data.figures.length) content.append(controls());
  const curves = wanted((figure) => figure.kind === "curves");
  if (curves.length) content.append(make("section", { "aria-label": "Curves" }, make("div", { class: "grid" }, ...curves)));
  const differences = many ? differing() : null;
  if (differences) content.append(section("What differs", "differs", differences));
  const timeline = wanted((figure) => figure.kind === "timeline");
  if (timeline.length) content.append(section("Along the run", "along", make("div", { class: "grid" }, ...timeline)));
  const areas = [...new Set(data.figures.map((figure) => figure.area).filter((area) => area !== undefined))];
  for (const area of areas) {
    const title = { probes: "Inside the steps: probes", analysis: "Over the states: analysis" }[area] || area;
    content.append(section(title, `area-${areas.indexOf(area)}`, make("div", { class: "grid" }, ...wanted((figure) => figure.area === area))));
  }

  const sampled = runs.filter((run) => run.samples?.length);
  if (sampled.length) content.append(section("Samples along the run", "samples", ...sampled.flatMap((run) => [many ? make("h3", { style: "margin:18px 0 8px" }, run.name) : null, samplesOf(run)].filter(Boolean))));
  if (missing) content.append(section("Not in this report", "missing", missing));
  const settings = runs.map((run) => [run, settingsOf(run)]).filter(([, parts]) => parts.length);
  if (settings.length) content.append(section("How it was made", "made", ...settings.flatMap(([run, parts]) => [many ? make("h3", { style: "margin:18px 0 8px" }, run.name, make("span", { class: "caption" }, ` ${modelWords(run)}`)) : null, ...parts].filter(Boolean))));
  const jumps = [...content.querySelectorAll("h2")];
  if (jumps.length > 1) document.getElementById("lead").after(make("nav", { "aria-label": "On this page" }, ...jumps.map((heading) => make("a", { href: `#${heading.id}` }, heading.textContent))));
  document.getElementById("foot").append(make("p", {}, `Made ${data.made.replace("T", " ").replace("Z", " UTC")} by cairn report from ${runs.map((run) => run.path).join(", ")}. Numbers are rounded to 7 digits; the run's own files have all of them. Plots: ${data.library} (MIT licence). The page asks no network.`));
}

async function loadLibrary() {
  const element = document.getElementById("library");
  const packed = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  element.remove();
  document.head.append(make("script", {}, text));
}

async function start() {
  applyTheme();
  build();
  applyTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (view.theme === "system") { applyTheme(); redrawAll(); } });
  if (typeof DecompressionStream === "undefined") {
    document.getElementById("content").prepend(make("p", { class: "notice" }, "This browser cannot unpack the plots (it has no DecompressionStream): open the page in one of 2023 or later."));
    return;
  }
  await loadLibrary();
  await redrawAll();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if ((width < 560) !== narrow()) redrawAll();
    width = window.innerWidth;
  });
}
start();
