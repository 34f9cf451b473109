"use strict";
// Sorting, pickers, the contents' marker and parallel coordinates. No library, no request.

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells], head = heads[column], body = table.tBodies[0];
  const numeric = head.classList.contains("n");
  // numbers come largest first on the first click, words from A on
  const now = head.getAttribute("aria-sort");
  const next = now ? (now === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
  const sign = next === "ascending" ? 1 : -1;
  const value = row => {
    const cell = row.cells[column];
    return numeric ? (cell.dataset.v === undefined ? null : Number(cell.dataset.v)) : cell.textContent;
  };
  const rows = [...body.rows].map(row => ({ row, value: value(row) }));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // missing stays last
    const difference = Number(a.value) - Number(b.value);  // settings stand in columns of words, and may be numbers
    if (numeric || (a.value !== "" && b.value !== "" && !Number.isNaN(difference))) return sign * difference;
    return sign * a.value.localeCompare(b.value, undefined, { numeric: true });
  });
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", next);
  body.append(...rows.map(each => each.row));
}

for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.firstElementChild.addEventListener("click", () => sortBy(table, column)));

for (const picker of document.querySelectorAll(".picker")) {
  const menus = [...picker.querySelectorAll("select")];
  const panels = [...picker.querySelectorAll("[data-pick]")];
  const show = () => {
    const wanted = JSON.stringify(menus.map(menu => menu.value));
    let shown = 0;
    for (const panel of panels) {
      panel.hidden = JSON.stringify(JSON.parse(panel.dataset.pick)) !== wanted;
      shown += !panel.hidden;
    }
    picker.querySelector(".none").hidden = shown > 0;
  };
  menus.forEach(menu => menu.addEventListener("change", show));
  show();
}

// the contents mark the section that is being read
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
function mark() {
  let here = null;
  for (const section of document.querySelectorAll("main > section"))
    if (here === null || section.getBoundingClientRect().top < innerHeight * 0.3) here = section.id;
  links.forEach((link, id) => link.classList.toggle("here", id === here));
}
addEventListener("scroll", mark, { passive: true });
mark();

function make(tag, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  parent.append(node);
  return node;
}

function parallel(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const width = 880, height = 340, top = 46, bottom = 14, side = 46, inner = height - top - bottom;
  const plot = figure.querySelector(".plot");
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Parallel coordinates" }, plot);
  const told = document.createElement("p");
  told.className = "told";
  plot.append(told);
  const gap = data.axes.length > 1 ? (width - 2 * side) / (data.axes.length - 1) : 0;
  const axes = data.axes.map((axis, index) => {
    const words = axis.values.some(value => typeof value === "string");
    const levels = [...new Set(axis.values)].sort(
      (a, b) => words ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b);
    const low = levels[0], high = levels[levels.length - 1];
    // few values: one step each, as words have; many: to scale
    const steps = words || levels.length <= 6;
    const share = value => levels.length < 2 ? 0.5
      : steps ? levels.indexOf(value) / (levels.length - 1) : (value - low) / (high - low);
    return { ...axis, x: side + index * gap, levels, steps, share, y: value => top + inner * (1 - share(value)), range: null };
  });
  const last = axes[axes.length - 1];
  // colour by rank: a single bad trial would take the whole scale
  const worse = (a, b) => data.lower ? b - a : a - b;
  const ranks = [...new Set(last.values)].sort(worse);
  const rank = trial => Math.round(100 * (ranks.indexOf(last.values[trial]) + 1) / ranks.length);
  // of many lines only the best stand out
  const opacity = trial => data.labels.length < 40 ? 0.85 : (0.1 + 0.8 * (rank(trial) / 100) ** 6).toFixed(2);
  const text = value => typeof value === "number" ? String(Number(value.toPrecision(4))) : value;
  const order = data.labels.map((_, i) => i).sort((a, b) => worse(last.values[a], last.values[b])); // the best on top
  const lines = order.map(trial => {
    const line = make("polyline", {
      class: "line", points: axes.map(axis => `${axis.x},${axis.y(axis.values[trial]).toFixed(1)}`).join(" "),
      style: `stroke: color-mix(in oklab, var(--hit) ${rank(trial)}%, var(--fade)); opacity: ${opacity(trial)}`,
    }, svg);
    line.addEventListener("mouseenter", () => {
      line.classList.add("on");
      told.textContent = `${data.labels[trial]}: ` + axes.map(axis => `${axis.name} ${text(axis.values[trial])}`).join(", ");
    });
    line.addEventListener("mouseleave", () => { line.classList.remove("on"); tell(); });
    return { trial, line };
  });
  function tell() {
    let kept = 0;
    for (const { trial, line } of lines) {
      const inside = axes.every(axis => {
        const y = axis.y(axis.values[trial]);
        return !axis.range || (y >= axis.range[0] && y <= axis.range[1]);
      });
      line.classList.toggle("off", !inside);
      kept += inside;
    }
    told.textContent = kept === lines.length ? "" : `${kept} of ${lines.length} trials`;
  }
  axes.forEach((axis, index) => {
    make("line", { class: "axis", x1: axis.x, x2: axis.x, y1: top, y2: height - bottom }, svg);
    const anchor = index === 0 ? "start" : index === axes.length - 1 ? "end" : "middle";
    const shift = index === 0 ? -side + 4 : index === axes.length - 1 ? side - 4 : 0;
    const crowded = gap < 125 && index % 2;  // names of narrow axes take two lines
    const head = make("text", { x: axis.x + shift, y: crowded ? 12 : 26, "text-anchor": anchor, "font-weight": 600 }, svg);
    head.textContent = axis.name;
    const ends = axis.levels.length > 1 ? [axis.levels[0], axis.levels[axis.levels.length - 1]] : axis.levels;
    for (const value of axis.steps && axis.levels.length <= 8 ? axis.levels : ends) {
      const right = index === axes.length - 1;
      const label = make("text", {
        x: axis.x + (right ? -6 : 6), y: axis.y(value) + 4, "text-anchor": right ? "end" : "start", class: "label",
      }, svg);
      const most = Math.max(Math.floor((gap - 10) / 6.3), 4), shown = String(text(value));
      label.textContent = shown.length > most ? shown.slice(0, most - 1) + "\u2026" : shown;
    }
    const range = make("rect", { class: "range", x: axis.x - 7, width: 14, y: top, height: 0 }, svg);
    const grip = make("rect", { class: "grip", x: axis.x - 11, width: 22, y: top - 8, height: inner + 16 }, svg);
    const at = event => {
      const box = svg.getBoundingClientRect();
      return (event.clientY - box.top) * height / box.height;
    };
    let from = null;
    const drag = event => {
      if (from === null) return;
      const ends = [from, at(event)].sort((a, b) => a - b);
      axis.range = ends[1] - ends[0] < 4 ? null : ends;
      range.setAttribute("y", ends[0]);
      range.setAttribute("height", axis.range ? ends[1] - ends[0] : 0);
      tell();
    };
    grip.addEventListener("pointerdown", event => { from = at(event); grip.setPointerCapture(event.pointerId); drag(event); });
    grip.addEventListener("pointermove", drag);
    grip.addEventListener("pointerup", event => { drag(event); from = null; });
  });
}
document.querySelectorAll("figure.parallel").forEach(parallel);
