// Drop a photo, see what the model says. Talks to /v1 alone; nothing else is loaded.
"use strict";

const by = (id) => document.getElementById(id);
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const MASKS = ["segment", "promptable"], SHOWN = 5, VECTOR_SHOWN = 8, POLL_MS = 5000, KEPT_MS = 60000;
let models = [], key = "", last = null, asked = 0;

class Trouble extends Error {
  constructor(status, message, code) { super(message); Object.assign(this, { status, code }); }
}

async function call(path, options = {}, read = (answer) => answer.json().catch(() => null)) {
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Trouble(0, "The server does not answer.");
  }
  if (answer.ok) return read(answer);
  const body = await answer.json().catch(() => null);
  throw new Trouble(answer.status, body?.error?.message || `The server answered ${answer.status}.`, body?.error?.code);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function model() { return models[by("models").selectedIndex] || models[0]; }

function complain(error) {
  by("key").hidden = error.status !== 401;
  by("trouble").hidden = false;
  by("trouble").textContent = error.status === 401 && !key ? "This server asks for an API key." : error.message;
  if (error.status === 401 && document.activeElement === document.body) by("key-text").focus();
}

async function load() {
  try {
    const found = (await call("v1/models")).models;
    const names = found.map((one) => one.name).join();
    if (names !== models.map((one) => one.name).join()) {
      by("models").replaceChildren(...found.map((one) => new Option(one.name)));
      by("choice").hidden = found.length < 2;
    }
    const first = !models.length;
    models = found;
    describe();
    if (first) { by("key").hidden = true; by("trouble").hidden = true; }
  } catch (error) {
    complain(error);
  }
}

function describe() {
  const one = model();
  by("state").textContent = one.ready ? "Ready" : `Not ready: ${one.reasons.join("; ")}`;
  by("state").classList.toggle("none", !one.ready);
  by("name").textContent = one.name;
  document.title = `${one.name} · Vitrail`;
  const facts = [one.artifact, `${one.runtime} ${one.precision}`, one.image_size && `${one.image_size} × ${one.image_size} px`,
    one.classes && (one.task === "segment" && one.classes === 1 ? "cuts one thing out" : `${one.classes} classes`), `version ${one.version}`, one.license && `license ${one.license}`];
  by("shape").replaceChildren(...facts.filter(Boolean).map((text) => element("span", text)));
  const evidence = one.evidence || {}, tiles = [];
  if (evidence.accuracy) {
    const from = evidence.accuracy.provenance;
    tiles.push(tile("Accuracy", NUMBER.format(evidence.accuracy.value), `% ${evidence.accuracy.metric.replace(/ in %$/, "")}`, from));
  }
  if (evidence.latency_ms) {
    const detail = `p${evidence.percentile} of a ${evidence.scope}, batch ${evidence.batch_size}`;
    tiles.push(tile("Latency", NUMBER.format(evidence.latency_ms), "ms", detail));
  }
  if (evidence.memory_mib) tiles.push(tile("Memory", NUMBER.format(evidence.memory_mib), "MiB", "peak when measured"));
  if (one.kept) {
    const ms = one.kept.prompt_ms;
    if (ms) tiles.push(tile("A click", NUMBER.format(ms), "ms", "p95 of the engine, here"));
  } else if (one.batching) tiles.push(tile("Largest batch", one.batching.largest, one.batching.largest === 1 ? "image" : "images", "found on this machine"));
  by("evidence").replaceChildren(...tiles);
  const said = [evidence.accuracy?.source, evidence.machine && `Measured on ${evidence.machine}.`];
  by("provenance").textContent = said.filter(Boolean).join(" · ");
}

function tile(name, value, unit, detail) {
  const made = element("div", undefined, "tile"), line = element("p", value, "tile-value");
  line.append(" ", element("small", unit));
  made.append(element("p", name, "tile-name"), line, element("p", detail, "tile-detail"));
  return made;
}

async function ask(file) {
  const mine = ++asked, one = model();
  if (!one || !file) return;
  last = file;
  show(file, one);
  by("drop").classList.add("busy");
  const begin = performance.now();
  try {
    const path = `v1/${one.task === "promptable" ? "segment" : one.task}`;
    const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
    const answer = await call(`${path}?model=${encodeURIComponent(one.name)}`, options);
    if (mine !== asked) return;
    by("trouble").hidden = true;
    tell(answer, performance.now() - begin, one);
  } catch (error) {
    if (mine !== asked) return;
    by("result").hidden = true;
    complain(error);
  } finally {
    if (mine === asked) by("drop").classList.remove("busy");
  }
}

// The photo, in the place for photos or, where masks lie over it, below; browsers do not show every kind that is read.
function show(file, one) {
  const masks = MASKS.includes(one.task), photo = by(masks ? "shown" : "photo"), other = by(masks ? "photo" : "shown");
  for (const image of [photo, other]) if (image.src) URL.revokeObjectURL(image.src);
  other.removeAttribute("src");
  other.hidden = true;
  end();
  if (masks) {
    by("result").hidden = false;  // the photo at once; encoding it may take a while
    by("answer").textContent = "…";
    by("labels").replaceChildren();
    by("actions").hidden = true;
    by("timing").textContent = "";
  }
  by("drop").classList.toggle("done", masks);
  by("stage").hidden = !masks;
  by("over").width = 0;  // the last photo's masks
  by("invite").hidden = false;
  photo.onload = () => { photo.hidden = false; by("invite").hidden = !masks; };
  photo.onerror = () => { photo.hidden = true; by("invite").hidden = false; };
  photo.alt = file.name ? `Your photo ${file.name}` : "Your photo";
  photo.src = URL.createObjectURL(file);
}

function tell(answer, total, one) {
  const [result] = answer.results;
  by("result").hidden = false;
  by("actions").hidden = true;
  if (one.task === "promptable") {
    begin(last, one, result);
  } else if (result.masks) {
    tellMasks(result, one);
  } else if (result.labels) {
    by("answer").textContent = result.labels[0].label;
    by("labels").replaceChildren(...result.labels.slice(0, SHOWN).map(bar));
  } else {
    const some = result.vector.slice(0, VECTOR_SHOWN).map((value) => NUMBER.format(value)).join(", ");
    by("answer").textContent = `${result.vector.length} numbers`;
    by("labels").replaceChildren(element("li", `${some}, …`));
  }
  const { wait, prepare, run, finish } = answer.timing_ms, ms = (value) => `${NUMBER.format(value)} ms`;
  const masks = finish === undefined || !result.masks.length ? "" : `making masks ${ms(finish)}, `;
  by("timing").textContent =
    `${ms(total)} there and back: decoding and preparing ${ms(prepare)}, engine ${ms(run)}, ${masks}waiting ${ms(wait)}.`;
}

function tellMasks(result, one) {
  const single = one.classes === 1;
  const masks = result.masks.map((mask) => ({ ...mask, colour: colourOf(mask.index), on: true }));
  masks.sort((a, b) => b.share - a.share);
  const draw = () => paint(by("over"), result.size, masks.filter((mask) => mask.on));
  by("answer").textContent = !masks.length ? "Nothing found" : single ? `${masks[0].label}: ${share(masks[0].share)} of the photo`
    : masks.length === 1 ? masks[0].label : `${masks.length} classes`;
  by("labels").replaceChildren(...masks.map((mask) => legend(mask, draw)));
  const forms = single ? [["Save the cut-out (PNG)", "cutout"], ["Save its alpha (PNG)", "png"]] : [["Save the map of class numbers (PNG)", "png"]];
  savers(forms, new URLSearchParams({ model: one.name }));
  draw();
}

// One mask's name, colour and share; unticked it is not drawn.
function legend(mask, draw) {
  const made = element("li", undefined, "mask"), label = element("label", undefined, "legend"), tick = element("input");
  const [svg, rect] = swatch();
  rect.setAttribute("fill", `rgb(${mask.colour.join()})`);
  rect.setAttribute("rx", "20%");
  Object.assign(tick, { type: "checkbox", checked: true });
  tick.addEventListener("change", () => { mask.on = tick.checked; draw(); });
  label.append(tick, svg, element("b", mask.label), element("i", share(mask.share)));
  made.append(label);
  return made;
}

// A button for each form of the answer that may be kept.
function savers(forms, asked) {
  by("actions").hidden = false;
  by("actions").replaceChildren(...forms.map(([text, form]) => {
    const button = element("button", text);
    button.type = "button";
    button.addEventListener("click", () => save(asked, form));
    return button;
  }));
}

async function save(asked, form) {
  try {
    const options = { method: "POST", body: last, headers: { "Content-Type": "application/octet-stream" } };
    const picture = await call(`v1/segment?${asked}&as=${form}`, options, (answer) => answer.blob());
    const link = element("a"), name = (last.name || "photo").replace(/\.[^.]*$/, "");
    link.href = URL.createObjectURL(picture);
    link.download = `${name}-${form === "cutout" ? "cut-out" : "mask"}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
    by("trouble").hidden = true;
  } catch (error) {
    complain(error);
  }
}

function bar(one) {
  const made = element("li"), track = element("span", undefined, "track"), [svg, rect] = swatch();
  rect.setAttribute("width", `${100 * one.probability}%`);
  track.append(svg);
  made.append(element("b", one.label), track, element("i", share(one.probability)));
  return made;
}

function swatch() {
  const [svg, rect] = ["svg", "rect"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("height", "100%");
  rect.setAttribute("width", "100%");
  svg.append(rect);
  return [svg, rect];
}

function share(value) {
  const percent = 100 * value;
  return percent > 0 && percent < 0.05 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
}

by("file").addEventListener("change", (event) => ask(event.target.files[0]));
by("file").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); by("file").click(); } });
by("models").addEventListener("change", () => { describe(); by("result").hidden = true; if (last) ask(last); });
by("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = by("key-text").value.trim();
  load();
});
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); by("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) by("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  by("drop").classList.remove("over");
  ask(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) ask(event.clipboardData.files[0]); });
load();
setInterval(() => { if (models.length && !document.hidden) load(); }, POLL_MS);
