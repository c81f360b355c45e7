"use strict";
// The page is whole without this: values under the pointer, tables that sort, and a slider for the galleries.

const SVG = "http://www.w3.org/2000/svg";

/** Place of the value nearest to x in a rising list. */
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] < xs[high] - x ? low : high;
}

function short(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

/** A vertical line and the values of every curve where it stands. */
function hover(figure) {
  const svg = figure.querySelector("svg"), charts = JSON.parse(figure.dataset.hover);
  const line = svg.appendChild(document.createElementNS(SVG, "line"));
  line.setAttribute("class", "cursor");
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  const hide = () => { tip.style.display = line.style.display = "none"; };
  hide();
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const chart = charts.find(({box: [x, y, w, h]}) => at.x >= x && at.x <= x + w && at.y >= y && at.y <= y + h);
    if (!chart) { hide(); return; }
    const [left, top, width, height] = chart.box, [low, high] = chart.x;
    const x = low + (at.x - left) / width * (high - low);
    const known = chart.lines.filter(({x: xs}) => xs.length);
    if (!known.length) { hide(); return; }
    const first = known[0].x[nearest(known[0].x, x)], place = left + (first - low) / (high - low) * width;
    for (const [name, value] of [["x1", place], ["x2", place], ["y1", top], ["y2", top + height]]) line.setAttribute(name, value);
    const head = document.createElement("b");
    head.textContent = `${chart.over} ${short(first)}`;
    const rows = known.filter(({x: xs}) => first >= xs[0] && first <= xs[xs.length - 1]).map(({name, colour, x: xs, y: ys}) => {
      const row = document.createElement("div"), dot = document.createElement("i"), value = document.createElement("span");
      dot.style.background = colour;
      value.textContent = short(ys[nearest(xs, first)]);
      row.append(dot, ` ${name} `, value);
      return row;
    });
    tip.replaceChildren(head, ...rows);
    tip.style.display = line.style.display = "block";
    const room = figure.getBoundingClientRect(), over = event.clientX - room.left, up = event.clientY - room.top;
    tip.style.left = `${over > room.width / 2 ? over - tip.offsetWidth - 14 : over + 14}px`;
    tip.style.top = `${Math.max(0, up - tip.offsetHeight / 2)}px`;
  });
}

/** A number where the cell holds one, else its text; a dash comes last. */
function worth(cell) {
  const text = cell.textContent.trim().replaceAll(",", "");
  return text === "—" || text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
}

function sorts(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [worth(row.cells[column]), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

/** Show detections from a score on, objects that none of them finds as missed, and count anew. */
function sift(label) {
  const input = label.querySelector("input"), output = label.querySelector("output");
  const cards = [...document.querySelectorAll(".card")].map((card) => {
    const [objects, found] = card.querySelectorAll(".shot");
    return {tally: card.querySelector(".tally"), objects: [...objects.querySelectorAll(".m")], found: [...found.querySelectorAll(".m")]};
  });
  const boxes = (marks, kind) => marks.filter((mark) => mark.classList.contains(kind) && mark.querySelector(".b"));
  label.hidden = false;
  input.addEventListener("input", () => {
    const score = Number(input.value);
    output.textContent = score.toFixed(2);
    for (const {tally, objects, found} of cards) {
      for (const mark of found) mark.classList.toggle("low", Number(mark.dataset.s) < score);
      for (const mark of objects) mark.classList.toggle("missed", !mark.classList.contains("ignored") && Number(mark.dataset.s) < score);
      const shown = found.filter((mark) => !mark.classList.contains("low"));
      tally.textContent = `${boxes(shown, "right").length} right, ${boxes(shown, "wrong").length} wrong, ${boxes(objects, "missed").length} missed`;
    }
  });
}

document.documentElement.classList.add("scripted");
document.querySelectorAll("figure[data-hover]").forEach(hover);
document.querySelectorAll("table.sorts").forEach(sorts);
document.querySelectorAll("#sift").forEach(sift);
