// Clicks into a photo: what they mean is asked of the server, and the mask painted, at once.
"use strict";

const MASK_COLOUR = colourOf(1), DRAGGED = 5, STEP = 0.02, SVG = "http://www.w3.org/2000/svg", RADIUS = 8;
const INSIDE = 1, OUTSIDE = 0;
// The photo that is clicked into; null: none.
let clicked = null, asking = false, again = false;

function begin(file, one, result) {
  const [height, width] = result.size;
  clicked = { file, one, id: result.image_id, size: result.size, points: [], box: null, before: [], cross: null, corner: null, drag: null };
  paint(by("over"), result.size, []);
  by("marks").setAttribute("viewBox", `0 0 ${width} ${height}`);
  by("stage").classList.add("asked");
  Object.assign(by("stage"), { tabIndex: 0, role: "application" });
  by("stage").setAttribute("aria-label", "The photo: click on a thing");
  by("tools").hidden = by("hint").hidden = false;
  by("answer").textContent = "Click on a thing";
  draw();
}

function end() {
  clicked = null;
  by("stage").classList.remove("asked");
  for (const name of ["tabindex", "role", "aria-label"]) by("stage").removeAttribute(name);
  by("tools").hidden = by("hint").hidden = true;
  by("marks").replaceChildren();
}

// --- what is asked ----------------------------------------------------------------------------------

function prompted() { return clicked.points.length > 0 || clicked.box !== null; }

function change(make) {
  const { points, box } = clicked;
  clicked.before.push({ points, box });
  make(clicked);
  draw();
  refine();
}

function undo() {
  if (!clicked?.before.length) return;
  Object.assign(clicked, clicked.before.pop(), { corner: null });
  draw();
  refine();
}

function clear() {
  if (clicked && (prompted() || clicked.corner)) change((it) => Object.assign(it, { points: [], box: null, corner: null }));
}

// One question at a time; what changes meanwhile is asked after it, and only as it is by then.
async function refine() {
  if (asking) { again = true; return; }
  asking = true;
  do {
    again = false;
    const it = clicked, since = performance.now();
    if (!it) break;
    if (!prompted()) { nothing(); continue; }
    try {
      const answer = await question(it);
      if (it !== clicked || again || !prompted()) continue;
      by("trouble").hidden = true;
      await found(answer, since);
    } catch (error) {
      if (it === clicked) complain(error);
    }
  } while (again);
  asking = false;
}

function query(it) {
  const points = it.points.map(({ at, label }) => [...at, label]), asked = new URLSearchParams({ model: it.one.name });
  if (points.length) asked.set("points", JSON.stringify(points));
  if (it.box) asked.set("box", JSON.stringify(it.box));
  return [asked, { image_id: it.id, points, ...(it.box ? { box: it.box } : {}) }];
}

// By the photo's id; where its embeddings are kept no more, with the photo.
async function question(it) {
  const [asked, prompt] = query(it), model = new URLSearchParams({ model: it.one.name });
  try {
    const headers = { "Content-Type": "application/json" };
    return await call(`v1/segment?${model}`, { method: "POST", body: JSON.stringify(prompt), headers });
  } catch (error) {
    if (error.code !== "unknown_image") throw error;
    const headers = { "Content-Type": "application/octet-stream" };
    return call(`v1/segment?${asked}`, { method: "POST", body: it.file, headers });
  }
}

async function found(answer, since) {
  const [result] = answer.results, [mask] = result.masks;
  paint(by("over"), result.size, [{ ...mask, colour: MASK_COLOUR }]);
  await new Promise(requestAnimationFrame);
  const taken = performance.now() - since, { run, finish } = answer.timing_ms;
  by("answer").textContent = mask.share ? `${share(mask.share)} of the photo` : "Nothing found";
  by("timing").dataset.ms = taken;
  by("timing").textContent = `${NUMBER.format(taken)} ms from the click to the mask: engine ${NUMBER.format(run)} ms, `
    + `making the mask ${NUMBER.format(finish)} ms. The model expects an IoU of ${mask.iou.toFixed(2)}.`;
  by("actions").hidden = true;
  const [asked] = query(clicked);
  if (mask.share) savers([["Save the mask (PNG)", "png"], ["Save the cut-out (PNG)", "cutout"]], asked);
}

function nothing() {
  paint(by("over"), clicked.size, []);
  by("answer").textContent = "Click on a thing";
  by("timing").textContent = "";
  by("actions").hidden = true;
}

// --- what is shown ----------------------------------------------------------------------------------

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function rectangle([left, top, right, bottom], className) {
  return shape("rect", { x: left, y: top, width: right - left, height: bottom - top, class: className });
}

// Points are as large whatever the photo's size: a plus inside, a minus outside.
function draw() {
  if (!clicked) return;
  const scale = clicked.size[1] / (by("stage").clientWidth || clicked.size[1]), shapes = [];
  if (clicked.box) shapes.push(rectangle(clicked.box, "box"));
  if (clicked.drag?.box) shapes.push(rectangle(clicked.drag.box, "box"));
  for (const { at: [x, y], label } of clicked.points) {
    const arm = RADIUS * scale * 0.55, group = shape("g", { class: label ? "inside" : "outside" });
    group.append(shape("circle", { cx: x, cy: y, r: RADIUS * scale }), shape("path", {
      d: `M${x - arm} ${y}h${2 * arm}${label ? `M${x} ${y - arm}v${2 * arm}` : ""}` }));
    shapes.push(group);
  }
  if (clicked.cross && document.activeElement === by("stage")) {
    const [x, y] = clicked.cross, arm = 2 * RADIUS * scale, [left, top] = clicked.corner || clicked.cross;
    if (clicked.corner) shapes.push(rectangle(boxOf([left, top], clicked.cross), "box"));
    shapes.push(shape("path", { class: "cross", d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}` }));
  }
  by("marks").replaceChildren(...shapes);
}

function boxOf([ax, ay], [bx, by_]) {
  return [Math.min(ax, bx), Math.min(ay, by_), Math.max(ax, bx), Math.max(ay, by_)];
}

function within([x, y]) {
  const [height, width] = clicked.size, round = (value, most) => Math.round(10 * Math.min(Math.max(value, 0), most)) / 10;
  return [round(x, width), round(y, height)];
}

// --- by pointer -------------------------------------------------------------------------------------

function place(event) {
  const area = by("over").getBoundingClientRect(), [height, width] = clicked.size;
  return within([(event.clientX - area.left) / area.width * width, (event.clientY - area.top) / area.height * height]);
}

function tool() { return document.querySelector("input[name=tool]:checked").value; }

function put(at, label) { change((it) => { it.points = [...it.points, { at, label }]; }); }

function putBox(box) { if (box[2] > box[0] && box[3] > box[1]) change((it) => { it.box = box; }); }

by("stage").addEventListener("pointerdown", (event) => {
  if (!clicked || event.button > 2) return;
  clicked.cross = clicked.corner = null;
  clicked.drag = { at: place(event), from: [event.clientX, event.clientY], box: null };
  if (event.pointerType !== "touch" || tool() === "box") by("stage").setPointerCapture(event.pointerId);
});
by("stage").addEventListener("pointermove", (event) => {
  const drag = clicked?.drag;
  if (!drag || (event.pointerType === "touch" && tool() !== "box")) return;
  const far = Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) > DRAGGED;
  if (far || drag.box) { drag.box = boxOf(drag.at, place(event)); draw(); }
});
by("stage").addEventListener("pointerup", (event) => {
  const drag = clicked?.drag;
  if (!drag) return;
  clicked.drag = null;
  if (drag.box) putBox(drag.box);
  else if (tool() !== "box") put(drag.at, event.button === 2 || event.shiftKey ? OUTSIDE : Number(tool()));
  draw();
});
by("stage").addEventListener("pointercancel", () => { if (clicked) { clicked.drag = null; draw(); } });
by("stage").addEventListener("contextmenu", (event) => { if (clicked) event.preventDefault(); });
document.getElementById("tools").addEventListener("change", () => by("stage").classList.toggle("boxes", tool() === "box"));
by("undo").addEventListener("click", undo);
by("clear").addEventListener("click", clear);
new ResizeObserver(draw).observe(by("stage"));

// --- by keyboard ------------------------------------------------------------------------------------

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function enter(outside) {
  if (tool() !== "box") { put(clicked.cross, outside ? OUTSIDE : Number(tool())); return; }
  if (!clicked.corner) { clicked.corner = clicked.cross; draw(); return; }
  const box = boxOf(clicked.corner, clicked.cross);
  clicked.corner = null;
  putBox(box);
}

by("stage").addEventListener("keydown", (event) => {
  if (!clicked) return;
  const [height, width] = clicked.size, move = MOVES[event.key];
  if (move) {
    const step = event.shiftKey ? 1 : Math.max(1, STEP * Math.max(height, width)), [x, y] = clicked.cross || [width / 2, height / 2];
    clicked.cross = within([x + step * move[0], y + step * move[1]]);
    draw();
  } else if (event.key === "Enter" || event.key === " ") {
    clicked.cross = clicked.cross || within([width / 2, height / 2]);
    enter(event.shiftKey);
  } else if (event.key === "Backspace" || (event.key === "z" && (event.ctrlKey || event.metaKey))) undo();
  else if (event.key === "Escape") clear();
  else return;
  event.preventDefault();
});
for (const name of ["focus", "blur"]) by("stage").addEventListener(name, () => {
  if (clicked && name === "focus" && by("stage").matches(":focus-visible")) clicked.cross = clicked.cross || within([clicked.size[1] / 2, clicked.size[0] / 2]);
  draw();
});
