// Drop a photo, see what the model says. Talks to /v1 alone; nothing else is loaded.
"use strict";

const by = (id) => document.getElementById(id);
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const SHOWN = 5, VECTOR_SHOWN = 8, POLL_MS = 5000;
let models = [], key = "", last = null, asked = 0;

class Trouble extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Trouble(0, "The server does not answer.");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Trouble(answer.status, body?.error?.message || `The server answered ${answer.status}.`);
  return body;
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
    one.classes && `${one.classes} classes`, `version ${one.version}`, one.license && `license ${one.license}`];
  by("shape").replaceChildren(...facts.filter(Boolean).map((text) => element("span", text)));
  const evidence = one.evidence || {}, tiles = [];
  if (evidence.accuracy) {
    const from = evidence.accuracy.provenance;
    tiles.push(tile("Accuracy", NUMBER.format(evidence.accuracy.value), "% top-1", from));
  }
  if (evidence.latency_ms) {
    const detail = `p${evidence.percentile} of a ${evidence.scope}, batch ${evidence.batch_size}`;
    tiles.push(tile("Latency", NUMBER.format(evidence.latency_ms), "ms", detail));
  }
  if (evidence.memory_mib) tiles.push(tile("Memory", NUMBER.format(evidence.memory_mib), "MiB", "peak when measured"));
  if (one.batching) tiles.push(tile("Largest batch", one.batching.largest, one.batching.largest === 1 ? "image" : "images", "found on this machine"));
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
  show(file);
  by("drop").classList.add("busy");
  const begin = performance.now();
  try {
    const path = one.task === "embed" ? "v1/embed" : "v1/classify";
    const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
    const answer = await call(`${path}?model=${encodeURIComponent(one.name)}`, options);
    if (mine !== asked) return;
    by("trouble").hidden = true;
    tell(answer, performance.now() - begin);
  } catch (error) {
    if (mine !== asked) return;
    by("result").hidden = true;
    complain(error);
  } finally {
    if (mine === asked) by("drop").classList.remove("busy");
  }
}

function show(file) {
  const photo = by("photo");
  if (photo.src) URL.revokeObjectURL(photo.src);
  photo.onload = () => { photo.hidden = false; by("invite").hidden = true; };
  photo.onerror = () => { photo.hidden = true; by("invite").hidden = false; };
  photo.alt = file.name ? `Your photo ${file.name}` : "Your photo";
  photo.src = URL.createObjectURL(file);
}

function tell(answer, total) {
  const [result] = answer.results;
  by("result").hidden = false;
  if (result.labels) {
    by("answer").textContent = result.labels[0].label;
    by("labels").replaceChildren(...result.labels.slice(0, SHOWN).map(bar));
  } else {
    const some = result.vector.slice(0, VECTOR_SHOWN).map((value) => NUMBER.format(value)).join(", ");
    by("answer").textContent = `${result.vector.length} numbers`;
    by("labels").replaceChildren(element("li", `${some}, …`));
  }
  const { wait, prepare, run } = answer.timing_ms, ms = (value) => `${NUMBER.format(value)} ms`;
  by("timing").textContent =
    `${ms(total)} there and back: decoding and preparing ${ms(prepare)}, engine ${ms(run)}, waiting ${ms(wait)}.`;
}

function bar(one) {
  const made = element("li"), track = element("span", undefined, "track");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("height", "100%");
  rect.setAttribute("width", `${100 * one.probability}%`);
  svg.append(rect);
  track.append(svg);
  const percent = 100 * one.probability;
  const shown = percent > 0 && percent < 0.05 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
  made.append(element("b", one.label), track, element("i", shown));
  return made;
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
