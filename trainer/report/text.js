// Everything that is not a plot: the numbers at the top, tables, samples, settings.

const titleOf = (run) => run.model?.model_type || "";
function modelWords(run) {
  const m = run.model || {};
  const pick = (...names) => names.map((name) => m[name]).find((value) => value !== undefined && value !== null);
  const heads = pick("num_attention_heads", "n_head"), pairs = m.num_key_value_heads;
  return [
    [titleOf(run), run.settings?.objective].filter(Boolean).join(" "),
    run.parameters ? `${short(run.parameters)} parameters` : null,
    isNumber(pick("num_hidden_layers", "n_layer")) ? count(pick("num_hidden_layers", "n_layer"), "layer") : null,
    pick("hidden_size", "n_embd") ? `width ${pick("hidden_size", "n_embd")}` : null,
    heads ? count(heads, "head") + (pairs && pairs !== heads ? ` (${pairs} of keys and values)` : "") : null,
    run.settings?.["data.context"] ? `context ${number(run.settings["data.context"])}` : null,
    m.vocab_size ? `vocabulary ${number(m.vocab_size)}` : null,
  ].filter(Boolean).join(" · ");
}

const evalOf = (run, measure) => (run.summary.eval || []).filter((one) => one.measure === measure);
const finished = (run) => run.planned !== undefined && run.summary.step >= run.planned;

function tile(name, value, aside) {
  return make("div", { class: "tile" }, make("dt", {}, name), make("dd", {}, value, aside ? make("span", { class: "aside" }, aside) : null));
}

function tilesOf(run) {
  const s = run.summary, tiles = [];
  for (const one of evalOf(run, "bits_per_byte").slice(0, 2)) {
    const of = one.set === "validation" ? "" : `, ${one.set}`;
    tiles.push(tile(`Validation${of}, bits per byte`, number(one.last), one.best_step === one.last_step ? `best, at step ${number(one.last_step)}` : `best ${number(one.best)} at step ${number(one.best_step)}`));
  }
  for (const one of evalOf(run, "nll").slice(0, 1))
    tiles.push(tile("Validation, nats per token", number(one.last), `at step ${number(one.last_step)}`));
  if (s.loss !== undefined) tiles.push(tile("Training loss", number(s.loss), s.loss_steps > 1 ? `mean of the last ${s.loss_steps} steps` : "last step"));
  if (s.step !== undefined) tiles.push(tile("Steps", number(s.step), run.planned ? (finished(run) ? "as planned" : `of ${number(run.planned)}: stopped, or still running`) : "no end planned"));
  if (s.tokens !== undefined) tiles.push(tile("Tokens", short(s.tokens), run.parameters ? `${number(s.tokens / run.parameters, 2)} per parameter` : null));
  if (s.tokens_per_s !== undefined) tiles.push(tile("Tokens per second", short(s.tokens_per_s), `median; ${duration(s.seconds)} in steps`));
  if (s.nonfinite || s.spikes) tiles.push(tile("Anomalies", number(s.nonfinite + s.spikes), [s.nonfinite ? `${s.nonfinite} not finite` : null, s.spikes ? `${count(s.spikes, "spike")}` : null].filter(Boolean).join(", ")));
  return make("dl", { class: "tiles" }, ...tiles);
}

function section(title, id, ...content) {
  return make("section", { "aria-labelledby": id }, make("h2", { id }, title), ...content);
}

// What went wrong stands at the top; what is merely not there ("No ...") at the end.
function notesOf(missing) {
  const lines = runs.flatMap((run) => run.notes.filter((note) => note.startsWith("No ") === missing).map((note) => (runs.length > 1 ? `${run.name}: ${note}` : note)));
  for (const run of runs)
    if (!missing && run.summary.nonfinite) lines.unshift(`${runs.length > 1 ? `${run.name}: ` : ""}${count(run.summary.nonfinite, "step")} without a finite loss.`);
  if (lines.length === 0) return null;
  return make("div", { class: missing ? "notice quiet" : "notice", role: "note" }, make("ul", {}, ...lines.map((line) => make("li", {}, line))));
}

// A table whose rows become blocks on a narrow screen: cells carry their column's name.
function table(head, rows, numeric) {
  return make("table", { class: "compare" },
    make("thead", {}, make("tr", {}, ...head.map((name, i) => make("th", { scope: "col", class: numeric && i > 0 ? "number" : null }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, i) =>
      i === 0 ? make("th", { scope: "row" }, ...[cell].flat()) : make("td", { "data-label": head[i], class: numeric ? "number" : null }, ...[cell].flat()))))));
}

const swatch = (r) => make("span", { class: "swatch", "data-run": r });

function comparison() {
  const columns = [["Step", (run) => number(run.summary.step)], ["Tokens", (run) => short(run.summary.tokens)], ["Parameters", (run) => short(run.parameters)],
    ["Loss at the end", (run) => run.summary.loss, "least"]];
  const measures = [...new Set(runs.flatMap((run) => (run.summary.eval || []).map((one) => `${one.set} ${one.measure}`)))];
  for (const name of measures.slice(0, 6)) {
    const find = (run) => (run.summary.eval || []).find((one) => `${one.set} ${one.measure}` === name);
    const words = name.replace("bits_per_byte", "bits/byte").replace(/ nll$/, " nats");
    columns.push([`Best ${words}`, (run) => find(run)?.best, "least", (run) => (find(run) ? ` at ${number(find(run).best_step)}` : "")]);
  }
  columns.push(["Tokens/s", (run) => short(run.summary.tokens_per_s)], ["Time in steps", (run) => duration(run.summary.seconds)]);
  const best = columns.map(([, value, rule]) => (rule ? Math.min(...runs.map(value).filter(isNumber)) : null));
  const rows = runs.map((run, r) => [[swatch(r), run.name], ...columns.map(([, value, rule, aside], c) => {
    const v = value(run);
    if (!rule) return v;
    return make("span", {}, make("span", { class: isNumber(v) && v === best[c] ? "best" : null }, number(v)), aside ? make("span", { class: "aside" }, aside(run)) : null);
  })]);
  return make("div", { class: "card scroll" }, table(["Run", ...columns.map(([name]) => name)], rows, true));
}

const shownValue = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : isNumber(value) ? String(value) : String(value));

function differing() {
  const compared = runs.filter((run) => run.kind === "run");
  if (compared.length < 2) return null;
  if (data.differences.length === 0) return make("p", { class: "card" }, "All settings, the program and the machine are the same.");
  return make("div", { class: "card scroll" }, table(["Setting", ...compared.map((run) => run.name)],
    data.differences.map((one) => [make("span", { class: "mono" }, one.key), ...one.values.map((value) => make("span", { class: "mono" }, shownValue(value)))])));
}

// Samples along the run: a few at first, spread over it; the rest on demand.
function samplesOf(run) {
  const all = run.samples || [], first = 8;
  const list = make("div", { class: "samples" });
  const fill = (samples) => list.replaceChildren(...samples.map((sample) => make("article", { class: "card sample" },
    make("p", { class: "when" }, `step ${number(sample.step)}`),
    make("blockquote", {}, sample.prompt ? make("span", { class: "prompt" }, sample.prompt) : null, sample.text))));
  const few = all.length <= first ? all : [...Array(first).keys()].map((i) => all[Math.round((i * (all.length - 1)) / (first - 1))]);
  fill(few);
  if (few.length === all.length) return list;
  const button = make("button", { type: "button", onclick: () => { fill(all); button.remove(); } }, `Show all ${all.length} samples`);
  return make("div", {}, list, make("p", { style: "margin-top:12px" }, button));
}

function pairs(object) {
  return make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, ...Object.entries(object).map(([key, value]) =>
    make("tr", {}, make("th", { scope: "row", class: "mono" }, key), make("td", { class: "mono" }, shownValue(value)))))));
}

function settingsOf(run) {
  const parts = [];
  const add = (title, content) => parts.push(make("details", {}, make("summary", {}, title), content));
  if (run.settings) add(`Settings (${Object.keys(run.settings).length})`, pairs(run.settings));
  const build = run.build || {};
  const machine = Object.fromEntries(Object.entries(build).filter(([, value]) => typeof value !== "object" || value === null));
  if (Object.keys(machine).length) add("Program and machine", pairs(machine));
  if (build.sources?.length) add(`Data (${count(build.sources.length, "source")})`, make("div", {}, ...build.sources.map(pairs)));
  if (build.changes?.length) add(`Settings changed during the run (${build.changes.length})`, pairs(Object.fromEntries(build.changes.map((c) => [`${c.key}, after step ${c.after_step}`, `${shownValue(c.was)} → ${shownValue(c.now)}`]))));
  for (const stage of run.stages || []) if (Object.keys(stage.changes).length) add(`Stage ${stage.name}, from step ${number(stage.first)}`, pairs(stage.changes));
  const others = Object.entries(build).filter(([key, value]) => typeof value === "object" && value !== null && !["sources", "changes"].includes(key));
  for (const [key, value] of others) add(key, pairs(Array.isArray(value) ? Object.fromEntries(value.entries()) : value));
  if (run.model) add("config.json of the model", pairs(run.model));
  return parts;
}
