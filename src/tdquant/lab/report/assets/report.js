"use strict";
// The page is whole without this script, which adds sorting, filters, sliders, readouts and themes.
// It asks for nothing, and keeps nothing but the theme.

const COLOURS = 8;
const KEY = "tdquant-theme";

// The style sheet hides what sliders will choose from, before it is drawn.
document.documentElement.dataset.script = "loading";

// The theme comes first, before anything is drawn. Pages from files may be denied storage.
const dark = matchMedia("(prefers-color-scheme: dark)");
function recall() {
  try { return localStorage.getItem(KEY); } catch { return null; }
}
function remember(theme) {
  try { localStorage.setItem(KEY, theme); } catch { /* it is forgotten, then */ }
}
const kept = recall();
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const content = (root) => JSON.parse(root.querySelector(':scope > script[type="application/json"]').textContent);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const show = (element) => { element.hidden = false; return element; };

function make(name, words = "", classes = "") {
  const element = document.createElement(name);
  element.textContent = words;
  if (classes) element.className = classes;
  return element;
}

function say(words) {
  document.getElementById("said").textContent = words;
}

function numeral(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return String(Number(value.toPrecision(3)).toExponential()).replace("e+", "e").replaceAll("-", "\u2212");
  return String(Number(value.toPrecision(4))).replace("-", "\u2212");
}

function setUpTheme() {
  const button = show(document.querySelector(".theme"));
  const root = document.documentElement;
  const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const other = () => (current() === "dark" ? "light" : "dark");
  const label = () => { button.textContent = other() === "dark" ? "Dark theme" : "Light theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = other();
    remember(root.dataset.theme);
    label();
  });
  dark.addEventListener("change", label);
  label();
}

// Contents: the section in view is marked.
function setUpContents() {
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    const seen = entries.find((entry) => entry.isIntersecting);
    if (!seen) return;
    for (const [id, link] of links) {
      if (id === seen.target.getAttribute("aria-labelledby")) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const section of all("main > section")) watch.observe(section);
}

async function copy(button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    // Browsers deny the clipboard to some pages; the old way needs a selection.
    const area = make("textarea", button.dataset.copy);
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : "Not allowed";
  say(done ? "Command copied" : "The browser does not allow copying");
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Tables: rows are sorted within their group; what has no value stays last either way.
function keyOf(row, column) {
  const cell = row.cells[column];
  const number = Number(cell.dataset.value ?? NaN);
  return Number.isNaN(number) ? (cell.dataset.value ?? cell.textContent).trim() : number;
}

function compare(a, b, sign) {
  const none = (value) => value === "\u2013" || value === "";
  if (none(a) || none(b)) return none(a) - none(b);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sort(table, head) {
  const column = head.cellIndex;
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    const keys = new Map(rows.map((row) => [row, keyOf(row, column)]));
    rows.sort((a, b) => compare(keys.get(a), keys.get(b), ascending ? 1 : -1));
    body.append(...rows);
  }
}

function setUpTable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const label = head.querySelector(".label");
    if (!label) continue;
    const cells = all(`tbody tr:not(.group) > :nth-child(${head.cellIndex + 1})`, table);
    if (cells.some((cell) => cell.classList.contains("number"))) head.classList.add("right");
    const button = make("button", label.textContent, "label");
    button.type = "button";
    button.addEventListener("click", () => sort(table, head));
    label.replaceWith(button);
  }
}

// Samples: a slider shows one position of each row.
function setUpSamples(figure) {
  const slider = figure.querySelector(":scope > .slider");
  if (!slider) return;
  const input = slider.querySelector("input");
  const words = input.dataset.words.split("\n");
  const view = figure.querySelector(".view");
  const single = () => !view || view.getAttribute("aria-pressed") === "true";
  const update = () => {
    input.setAttribute("aria-valuetext", words[input.value]);
    slider.querySelector("output").textContent = words[input.value];
    for (const each of all("[data-value]", figure)) each.hidden = single() && each.dataset.value !== input.value;
  };
  input.addEventListener("input", update);
  if (view) {
    show(view).addEventListener("click", () => {
      view.setAttribute("aria-pressed", String(!single()));
      slider.hidden = !single();
      figure.querySelector(".grids").classList.toggle("single", single());
      update();
    });
  } else {
    show(slider);
  }
  update();
}

function tell(output, head, items) {
  output.replaceChildren(make("b", head), ...items.map(([k, words]) => make("span", words, k < 0 ? "neutral" : `c${k % COLOURS}`)));
}

function hint(output, words) {
  output.replaceChildren(make("i", words));
}

// Plots: the slider beneath a plot is what reads it; a pointer moves the slider.
function setUpPlot(figure) {
  const drawing = figure.querySelector(".drawing");
  const svg = drawing.querySelector("svg");
  const reader = show(drawing.querySelector(".reader"));
  const cursor = svg.querySelector(".cursor");
  const output = figure.querySelector(".readout");
  const plot = { figure, rows: content(figure) };
  hint(output, "Point at the plot, or go to it with Tab and press arrow keys, to read values.");
  const read = () => {
    const row = plot.rows[reader.value];
    if (!row) return;
    cursor.setAttribute("x1", row.at);
    cursor.setAttribute("x2", row.at);
    drawing.classList.add("reading");
    tell(output, row.head, row.items);
    reader.setAttribute("aria-valuetext", [row.head, ...row.items.map((item) => item[1])].join("; "));
  };
  reader.addEventListener("input", read);
  reader.addEventListener("focus", read);
  const point = (event) => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    let best = 0;
    plot.rows.forEach((row, i) => {
      if (Math.abs(row.at - x) < Math.abs(plot.rows[best].at - x)) best = i;
    });
    reader.value = best;
    read();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => {
    if (document.activeElement !== reader) drawing.classList.remove("reading");
  });
  reader.addEventListener("blur", () => drawing.classList.remove("reading"));
  return plot;
}

// Layers: ticks in the table, a click or Enter in the heat map choose whose curve is drawn.
class Layers {
  constructor(root) {
    this.root = root;
    this.setUpFilter();
    // Where no step moves, there is a table and nothing to draw.
    if (!root.querySelector(".heat")) return;
    this.data = content(root);
    this.chosen = this.data.chosen;
    this.plot = setUpPlot(root.querySelector(".curves"));
    this.relative = this.data.steps.map((steps) => {
      const mean = steps.reduce((sum, step) => sum + Math.log(step), 0) / steps.length;
      return steps.map((step) => step / Math.exp(mean));
    });
    const curves = all(".drawing .line", this.plot.figure);
    this.curves = new Map(curves.map((curve, i) => [this.data.order[i], curve]));
    this.mark = this.plot.figure.querySelector(".drawing use");
    this.entry = this.plot.figure.querySelector(".legend li");
    this.ticks = new Map(all("input[data-layer]", root).map((tick) => [Number(tick.dataset.layer), show(tick)]));
    for (const [layer, tick] of this.ticks) tick.addEventListener("change", () => this.toggle(layer));
    this.setUpHeat();
    this.check();
  }

  toggle(layer) {
    const at = this.chosen.indexOf(layer);
    if (at >= 0) this.chosen.splice(at, 1);
    else this.chosen.push(layer);
    if (this.chosen.length > COLOURS) this.chosen.shift();
    this.check();
    this.draw();
  }

  check() {
    for (const [layer, tick] of this.ticks) tick.checked = this.chosen.includes(layer);
    this.names.forEach((name, layer) => name.classList.toggle("chosen", this.chosen.includes(layer)));
  }

  // About eight marks of a curve that the page had hidden, beside those of the other colours.
  addMarks(curve, k) {
    const points = curve.querySelector("path").getAttribute("d").match(/[\d.]+ [\d.]+/g);
    const stride = Math.ceil(points.length / COLOURS);
    for (let i = Math.floor(k * stride / COLOURS); i < points.length; i += stride) {
      const mark = this.mark.cloneNode();
      const [x, y] = points[i].split(" ");
      mark.setAttribute("x", x);
      mark.setAttribute("y", y);
      curve.append(mark);
    }
  }

  draw() {
    const { figure } = this.plot;
    const { times, paths } = this.data;
    const paint = (line, k) => {
      line.setAttribute("class", `line c${k}`);
      for (const mark of all("use", line)) mark.setAttribute("href", `#mark-${k}`);
    };
    for (const curve of this.curves.values()) curve.setAttribute("class", "off");
    figure.querySelector(".legend").replaceChildren(...this.chosen.map((layer, k) => {
      const curve = this.curves.get(layer);
      if (this.mark && !curve.querySelector("use")) this.addMarks(curve, k); // one curve alone has none
      paint(curve, k);
      const entry = this.entry.cloneNode(true);
      paint(entry.querySelector(".line"), k);
      entry.lastChild.textContent = paths[layer];
      return entry;
    }));
    const svg = figure.querySelector(".drawing svg");
    const names = this.chosen.map((layer) => paths[layer]);
    svg.setAttribute("aria-label", svg.getAttribute("aria-label").replace(/, for .*$/s, `, for ${names.join(", ")}.`));
    this.plot.rows.forEach((row, i) => {
      row.items = this.chosen.map((layer, k) => [k, `${paths[layer]}: ${numeral(this.relative[layer][i])}`]);
    });
    const table = figure.querySelector("details table");
    const heads = ["timestep", ...names].map((name) => Object.assign(make("th", name), { scope: "col" }));
    table.tHead.rows[0].replaceChildren(...heads);
    table.tBodies[0].replaceChildren(...times.map((time, i) => {
      const row = make("tr");
      row.append(Object.assign(make("th", numeral(time)), { scope: "row" }),
        ...this.chosen.map((layer) => make("td", numeral(this.relative[layer][i]))));
      return row;
    }));
  }

  setUpHeat() {
    const heat = this.root.querySelector(".heat");
    const field = heat.querySelector(".field");
    const cross = field.querySelector(".cross");
    const output = heat.querySelector(".readout");
    const [row, column] = [".row", ".column"].map((name) => show(field.querySelector(name)));
    const { times, paths, steps } = this.data;
    this.names = all(".names li", heat);
    hint(output, "Point at the map, or go to it with Tab and press arrow keys, to read steps; a click or Enter draws a layer.");
    const read = () => {
      const [i, j] = [Number(row.value), Number(column.value)];
      field.classList.add("reading");
      Object.assign(cross.style, {
        left: `${100 * j / times.length}%`, width: `${100 / times.length}%`,
        top: `${100 * i / paths.length}%`, height: `${100 / paths.length}%`,
      });
      const words = `s = ${numeral(steps[i][j])}, ${numeral(this.relative[i][j])} times its geometric mean`;
      output.replaceChildren(make("b", paths[i]), make("i", `timestep ${numeral(times[j])}: ${words}`));
      for (const input of [row, column]) {
        input.setAttribute("aria-valuetext", `${paths[i]}, timestep ${numeral(times[j])}: ${words}`);
      }
    };
    // One slider is for up and down, one for left and right: any arrow works on either.
    const keys = { ArrowUp: [row, -1], ArrowDown: [row, 1], ArrowLeft: [column, -1], ArrowRight: [column, 1] };
    for (const input of [row, column]) {
      input.addEventListener("focus", read);
      input.addEventListener("input", read);
      input.addEventListener("blur", () => field.classList.remove("reading"));
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter") this.toggle(Number(row.value));
        else if (event.key in keys) {
          const [moved, by] = keys[event.key];
          moved.value = Number(moved.value) + by;
          read();
        } else return;
        event.preventDefault();
      });
    }
    const point = (event) => {
      const box = field.getBoundingClientRect();
      column.value = clamp(Math.floor((event.clientX - box.left) / box.width * times.length), 0, times.length - 1);
      row.value = clamp(Math.floor((event.clientY - box.top) / box.height * paths.length), 0, paths.length - 1);
      read();
    };
    field.addEventListener("pointermove", point);
    field.addEventListener("pointerleave", () => field.classList.remove("reading"));
    field.addEventListener("click", (event) => { point(event); this.toggle(Number(row.value)); });
    this.names.forEach((name, layer) => name.addEventListener("click", () => this.toggle(layer)));
  }

  setUpFilter() {
    const box = show(this.root.querySelector(".filter"));
    const rows = all(".tabular tbody tr", this.root);
    const input = box.querySelector("input");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      const left = rows.filter((row) => !row.hidden).length;
      box.querySelector("output").textContent = `${left} of ${rows.length} layers`;
    });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  setUpTheme();
  setUpContents();
  for (const button of all(".copy")) show(button).addEventListener("click", () => copy(button));
  for (const table of all(".sortable")) setUpTable(table);
  for (const figure of all("figure.samples")) setUpSamples(figure);
  document.documentElement.dataset.script = "ready";
  for (const figure of all("figure.plot:not(.curves)")) setUpPlot(figure);
  for (const root of all(".layers")) new Layers(root);
});
