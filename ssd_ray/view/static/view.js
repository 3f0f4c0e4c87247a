// Keys, live bars, and the two ticks of a comparison. Pages work without it.
"use strict";

function follow(selector) {
  const link = document.querySelector(selector);
  if (link) link.click();
  return Boolean(link);
}

function step(by) {
  const rows = [...document.querySelectorAll("a.row")];
  const at = rows.indexOf(document.activeElement);
  const next = rows[Math.max(0, Math.min(rows.length - 1, at + by))];
  if (next) next.focus();
  return Boolean(next);
}

const keys = {
  ArrowRight: () => follow("a[rel=next]"),
  ArrowLeft: () => follow("a[rel=prev]"),
  j: () => follow("a[rel=next]") || step(1),
  k: () => follow("a[rel=prev]") || step(-1),
  "/": () => {
    const search = document.getElementById("q");
    if (search) search.focus();
    return Boolean(search);
  },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  // A box with its own scroll bar keeps its arrows.
  if (event.key.startsWith("Arrow") && event.target.scrollWidth > event.target.clientWidth) return;
  if (keys[event.key]()) event.preventDefault();
});

function ticks() {
  const button = document.getElementById("compare-button");
  if (!button) return;
  const chosen = document.querySelectorAll("#compare-form input:checked").length;
  button.disabled = chosen !== 2;
}
document.addEventListener("change", ticks);
ticks();

// On a narrow screen, filters begin folded.
const facets = document.getElementById("facets");
if (facets && innerWidth < 640 && !facets.classList.contains("set")) facets.open = false;

for (const place of document.querySelectorAll("[data-events]")) {
  const events = new EventSource(place.dataset.events);
  events.addEventListener("state", (event) => {
    const seen = JSON.parse(event.data);
    const loss = document.createElement("p");
    loss.textContent = seen.loss;
    place.replaceChildren(...seen.bars.map(bar), loss);
    for (const [name, text] of Object.entries(seen.logs)) {
      const log = logOf(name);
      if (log && text !== log.textContent) log.textContent = text;
    }
  });
  events.addEventListener("end", () => { events.close(); location.reload(); });
}

// Tokens of an answer: one of them is in the order of the keyboard, arrows move from there.
const shown = document.querySelector("[data-tokens]");
const tip = document.getElementById("tip");
if (shown && tip) {
  const known = JSON.parse(shown.dataset.tokens);
  const places = [...shown.querySelectorAll(".t")];
  const show = (place) => {
    const at = places.indexOf(place);
    tip.hidden = at < 0;
    if (at >= 0) tip.replaceChildren(...details(known, known.tokens[at]));
  };
  const of = (event) => event.target.closest(".t");
  shown.addEventListener("mouseover", (event) => show(of(event)));
  shown.addEventListener("mouseleave", () => show(document.activeElement));
  shown.addEventListener("focusin", (event) => {
    for (const place of places) if (place.tabIndex === 0) place.tabIndex = -1;
    of(event).tabIndex = 0;
    show(of(event));
  });
  shown.addEventListener("focusout", () => { tip.hidden = true; });
  shown.addEventListener("keydown", (event) => {
    const at = places.indexOf(event.target);
    const line = () => places[at].getBoundingClientRect();
    const below = (by) => {
      // The next token on another line that is not left of this one.
      const { left, top } = line();
      for (let i = at + by; places[i]; i += by) {
        const box = places[i].getBoundingClientRect();
        if (by * (box.top - top) > 4 && (by > 0 ? box.right >= left : box.left <= left)) return i;
      }
      return at;
    };
    const next = {
      ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => places.length - 1,
      ArrowDown: () => below(1), ArrowUp: () => below(-1),
    }[event.key];
    if (event.key === "Escape") { tip.hidden = true; return; }
    if (at < 0 || !next) return;
    event.preventDefault();
    event.stopPropagation();
    const place = places[Math.max(0, Math.min(places.length - 1, next()))];
    place.focus();
  });
}

// Engines and workers start later than the page, and their logs with them.
function logOf(name) {
  const logs = document.getElementById("logs");
  if (!logs) return null;
  const known = [...logs.querySelectorAll("[data-log]")].find((log) => log.dataset.log === name);
  if (known) return known;
  const folded = document.createElement("details");
  const log = element("pre", "", "text");
  log.dataset.log = name;
  log.tabIndex = 0;
  folded.append(element("summary", name), log);
  logs.append(folded);
  return log;
}

function element(name, text, ...classes) {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes.join(" ");
  return made;
}

function details(known, [size, token, views]) {
  const kind = size === 1 ? "lock" : size === 2 ? "two tokens" : `fork of ${size}`;
  const parts = [element("p", `${known.texts[token]} `, "head")];
  parts[0].append(element("span", kind, "quiet"));
  const columns = element("div", "", "views");
  views.forEach(([entropy, probability, top], number) => {
    const view = element("div", "");
    view.append(element("p", `${known.models[number]} `, "model"));
    view.lastChild.append(element("span", `H ${entropy.toFixed(2)}, here ${probability.toFixed(1)} %`, "quiet"));
    for (const [text, percent, kept] of top) {
      const row = element("div", "", "top", kept ? "kept" : "cut", text === token ? "there" : "");
      const meter = element("span", "", "meter");
      meter.append(element("span", ""));
      meter.firstChild.style.inlineSize = `${percent}%`;
      row.append(element("code", known.texts[text]), meter, element("span", percent.toFixed(1), "n"));
      view.append(row);
    }
    columns.append(view);
  });
  return [...parts, columns];
}

function bar(task) {
  const row = document.createElement("div");
  row.className = "task";
  const name = document.createElement("span");
  name.textContent = task.stage;
  const meter = document.createElement("progress");
  meter.setAttribute("aria-label", task.stage);
  if (task.total) { meter.max = task.total; meter.value = task.done; }
  const figures = document.createElement("span");
  figures.textContent = task.text;
  row.append(name, meter, figures);
  return row;
}
