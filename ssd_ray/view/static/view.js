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
    for (const log of document.querySelectorAll("[data-log]")) {
      const text = seen.logs[log.dataset.log];
      if (text !== undefined && text !== log.textContent) log.textContent = text;
    }
  });
  events.addEventListener("end", () => { events.close(); location.reload(); });
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
