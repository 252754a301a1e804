// What a page of its own can do beside being read: tables sort, marks tell their numbers, a threshold moves.
// Nothing is computed here that is measured: all numbers are those that Python has counted and rounded.
"use strict";
(() => {
  const report = document.querySelector(".fairsteer-report");

  // ---- tables

  const value = (cell) => {
    const text = cell.firstChild ? cell.firstChild.textContent.trim() : "";
    const number = parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
    return /^[-+\u2212]?[\d.]/.test(text) ? number : text === "-" || text === "" ? -Infinity : text;
  };

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });

  const sort = (table, column, header) => {
    const descending = header.getAttribute("aria-sort") === "ascending" ||
      (!header.hasAttribute("aria-sort") && header.classList.contains("number"));
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
    rows.sort((a, b) => (descending ? compare(b[0], a[0]) : compare(a[0], b[0])));
    body.append(...rows.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  for (const table of report.querySelectorAll("table.sorts")) {
    if (table.tBodies[0].rows.length < 3) continue;
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (!header.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }

  // ---- what a mark stands for

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  report.append(tip);
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.getAttribute("data-tip");
    const box = mark.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    const limit = document.documentElement.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, Math.min(left, limit)) + window.scrollX}px`;
    tip.style.top = `${box.top + window.scrollY - tip.offsetHeight - 6}px`;
  };
  report.addEventListener("pointerover", show);
  report.addEventListener("pointerdown", show);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  // ---- thresholds

  const explorer = report.querySelector(".explorer");
  if (!explorer) return;
  const data = JSON.parse(explorer.querySelector("script").textContent);
  const slider = explorer.querySelector("input[type=range]");
  const output = explorer.querySelector(".value");
  const table = explorer.querySelector("table");
  const groups = explorer.querySelector("svg.groups");
  const whens = ["before", "after"];

  const text = (thousandths) => (thousandths === null ? "-" : (thousandths / 1000).toFixed(3));
  const make = (name, attributes, ...inside) => {
    const element = document.createElementNS(groups.namespaceURI, name);
    for (const [key, one] of Object.entries(attributes)) element.setAttribute(key, one);
    element.append(...inside);
    return element;
  };
  const mark = (when, x, y) =>
    when === "before"
      ? make("circle", { class: when, cx: x, cy: y, r: 4 })
      : make("path", { class: when, d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z` });

  // From thousandths to places, as in the other figures.
  const across = (thousandths) => 14 + (thousandths / 1000) * 362;
  const axis = (bottom, top) =>
    [0, 200, 400, 600, 800, 1000].flatMap((tick) => [
      make("line", { class: tick ? "grid" : "zero", x1: across(tick), x2: across(tick), y1: top, y2: bottom }),
      make("text", { class: "soft", x: across(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick / 1000)),
    ]);
  const legend = () => [
    mark("before", 14, 10), make("text", { class: "soft", x: 24, y: 14 }, "before"),
    mark("after", 96, 10), make("text", { class: "soft", x: 106, y: 14 }, "after"),
  ];

  const drawGroups = (rates, t) => {
    const parts = legend();
    let top = 40;
    data.groups.forEach((label, a) => {
      parts.push(make("text", { x: 18, y: top }, label.length > 52 ? `${label.slice(0, 51)}\u2026` : label));
      whens.forEach((when, i) => {
        const [at, lower, upper] = rates[when][t][a];
        if (at === null) return;
        const y = top + 12 + 11 * i;
        parts.push(make(
          "g",
          { "data-tip": `${label}, ${when}: ${text(at)} [${text(lower)}, ${text(upper)}]` },
          make("line", { class: when, x1: across(lower), x2: across(upper), y1: y, y2: y }),
          mark(when, across(at), y),
        ));
      });
      top += 44;
    });
    groups.setAttribute("viewBox", `0 0 400 ${top + 16}`);
    groups.replaceChildren(...axis(top - 8, 26), ...parts);
  };

  // The gap at every threshold: dashes before, a line after, and where the slider is.
  const gaps = explorer.querySelector("svg.gaps");
  const drawGaps = (gap, t) => {
    const most = Math.max(50, ...whens.flatMap((when) => gap[when].filter((one) => one !== null)));
    const down = (one) => 120 - (one / most) * 92;
    const parts = [...axis(120, 24), make("text", { class: "soft", x: 14, y: 14 }, `largest difference, up to ${text(most)}`)];
    for (const when of whens) {
      const places = gap[when].map((one, i) => (one === null ? null : `${across(i * 10)},${down(one)}`)).filter(Boolean);
      parts.push(make("polyline", { class: `${when} curve`, points: places.join(" ") }));
    }
    parts.push(make("line", { class: "here", x1: across(t * 10), x2: across(t * 10), y1: 20, y2: 120 }));
    for (const when of whens) {
      if (gap[when][t] === null) continue;
      parts.push(make("g", { "data-tip": `${when}: ${text(gap[when][t])}` }, mark(when, across(t * 10), down(gap[when][t]))));
    }
    gaps.replaceChildren(...parts);
  };

  const fill = (cell, triple) => {
    const [at, lower, upper] = triple;
    cell.replaceChildren(text(at));
    if (lower === null || lower === undefined || at === null) return;
    const below = document.createElement("small");
    below.textContent = `[${text(lower)}, ${text(upper)}]`;
    cell.append(below);
  };

  const update = () => {
    const t = Number(slider.value);
    const name = explorer.querySelector("input[type=radio]:checked").value;
    const { rates, gap } = data.rates[name];
    const threshold = (t / 100).toFixed(2);
    output.textContent = threshold;
    slider.setAttribute("aria-valuetext", `threshold ${threshold}`);
    const rows = [...table.tBodies[0].rows];
    whens.forEach((when, i) => {
      data.groups.forEach((_, a) => fill(rows[a].cells[i + 1], rates[when][t][a]));
      fill(rows[rows.length - 2].cells[i + 1], [gap[when][t]]);
      fill(rows[rows.length - 1].cells[i + 1], [data.accuracy[when][t]]);
    });
    explorer.querySelector(".status").textContent =
      `At threshold ${threshold}, ${data.names[name]}: the largest difference between groups is ` +
      `${text(gap.before[t])} before, ${text(gap.after[t])} after; accuracy ` +
      `${text(data.accuracy.before[t])} before, ${text(data.accuracy.after[t])} after.`;
    drawGroups(rates, t);
    drawGaps(gap, t);
  };

  explorer.addEventListener("input", update);
  for (const part of explorer.querySelectorAll("[hidden]")) part.hidden = false;
  update();
})();
