"use strict";
(() => {
  const table = document.getElementById("ledger");
  const bodies = [...table.tBodies];
  const filter = document.getElementById("filter");
  const toggles = [...document.querySelectorAll("[data-show]")];
  const shown = document.getElementById("shown");
  const text = new Map(bodies.map((body) => [body, body.textContent.toLowerCase()]));

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const on = new Set(toggles.filter((t) => t.getAttribute("aria-pressed") === "true").map((t) => t.dataset.show));
    let count = 0;
    for (const body of bodies) {
      const visible = on.has(body.dataset.is) && words.every((word) => text.get(body).includes(word));
      body.hidden = !visible;
      body.style.display = visible ? "" : "none";
      count += visible;
    }
    shown.textContent = count === bodies.length ? `${count} variant${count === 1 ? "" : "s"}` : `${count} of ${bodies.length} variants`;
  }

  // "" is "no figure": last, whichever way the column is sorted
  function sort(head) {
    const key = head.dataset.key;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = bodies.every((body) => body.dataset[key] === "" || !Number.isNaN(Number(body.dataset[key])));
    bodies.sort((a, b) => {
      const [x, y] = [a.dataset[key], b.dataset[key]];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    table.append(...bodies);
  }

  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", head.dataset.key === "status" ? "ascending" : "none");
    button.addEventListener("click", () => sort(head));
  }
  for (const toggle of toggles) {
    toggle.addEventListener("click", () => {
      toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") !== "true"));
      show();
    });
  }
  filter.addEventListener("input", show);
  document.querySelector(".controls").hidden = false;
  show();
})();

// Without this script the hint shows on narrow windows whether or not the matrix is wider than they are.
(() => {
  const box = document.querySelector(".matrix");
  const hint = document.getElementById("h-wide");
  if (!box) return;
  function look() {
    const hidden = box.scrollWidth - box.clientWidth;
    box.classList.toggle("wide", hidden > 1);
    box.classList.toggle("end", box.scrollLeft >= hidden - 1);
    hint?.classList.toggle("wide", hidden > 1);
    hint?.classList.toggle("narrow", hidden <= 1);
  }
  box.addEventListener("scroll", look, { passive: true });
  addEventListener("resize", look);
  look();
})();
