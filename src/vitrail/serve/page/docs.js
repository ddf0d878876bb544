// The OpenAPI document as a page, without anything from elsewhere.
"use strict";

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function list(items) {
  const made = element("ul");
  made.append(...items.map(([name, text]) => {
    const item = element("li");
    item.append(element("code", name), ` ${text}`);
    return item;
  }));
  return made;
}

function section(title, items) {
  return items.length ? [element("p", title), list(items)] : [];
}

function operation(path, method, one) {
  const made = element("details", undefined, "operation"), summary = element("summary");
  summary.append(element("code", `${method.toUpperCase()} ${path}`), ` ${one.description || one.summary || ""}`);
  const parameters = (one.parameters || []).map((p) => [p.name, `${p.in}${p.required ? ", required" : ""}. ${p.description || ""}`]);
  const body = Object.keys(one.requestBody?.content || {}).map((kind) => [kind, one.requestBody.description || ""]);
  const answers = Object.entries(one.responses || {}).map(([status, answer]) => [status, answer.description]);
  made.append(summary, ...section("Parameters", parameters), ...section("Body", body), ...section("Answers", answers));
  return made;
}

async function load() {
  const main = document.getElementById("operations");
  const answer = await fetch("openapi.json");
  const api = await answer.json();
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, one] of Object.entries(methods)) {
      const tag = (one.tags || ["server"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(path, method, one));
    }
  }
  main.append(element("p", api.info.description, "lead"));
  for (const [tag, operations] of groups) main.append(element("h2", tag), ...operations);
}

load().catch(() => document.getElementById("operations").append(element("p", "The server does not answer.", "trouble")));
