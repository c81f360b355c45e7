"use strict";
// Optional features of the page: tooltips in charts, sortable tables, and the score threshold of the galleries.

/** Show the label of the chart mark under the pointer. */
function tooltips(figure) {
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  figure.addEventListener("pointerleave", () => { tip.hidden = true; });
  figure.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[aria-roledescription]");
    const label = mark && ["bar", "point", "rect mark", "rule mark"].includes(mark.getAttribute("aria-roledescription")) && mark.getAttribute("aria-label");
    tip.hidden = !label;
    if (!label) return;
    tip.textContent = label;
    const area = figure.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
    tip.style.left = `${x > area.width / 2 ? x - tip.offsetWidth - 14 : x + 14}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight / 2)}px`;
  });
}

/** Sort key of a cell: its number, else its text; null for a dash. */
function sortKey(cell) {
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
      const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

/** Hide detections below the threshold, mark objects without a true positive as missed, and update the counts. */
function threshold(label) {
  const input = label.querySelector("input"), output = label.querySelector("output");
  const cards = [...document.querySelectorAll(".card")].map((card) => {
    const [objects, detections] = card.querySelectorAll(".shot");
    return {counts: card.querySelector(".counts"), objects: [...objects.querySelectorAll(".m")], detections: [...detections.querySelectorAll(".m")]};
  });
  const count = (marks, outcome) => marks.filter((mark) => mark.classList.contains(outcome) && mark.querySelector(".b")).length;
  label.hidden = false;
  input.addEventListener("input", () => {
    const score = Number(input.value);
    output.textContent = score.toFixed(2);
    for (const {counts, objects, detections} of cards) {
      for (const mark of detections) mark.classList.toggle("low", Number(mark.dataset.s) < score);
      for (const mark of objects) mark.classList.toggle("missed", !mark.classList.contains("ignored") && Number(mark.dataset.s) < score);
      const shown = detections.filter((mark) => !mark.classList.contains("low"));
      counts.textContent = `${count(shown, "tp")} TP, ${count(shown, "fp")} FP, ${count(objects, "missed")} missed`;
    }
  });
}

document.documentElement.classList.add("scripted");
document.querySelectorAll("figure.chart").forEach(tooltips);
document.querySelectorAll("table.sorts").forEach(sorts);
document.querySelectorAll("#threshold").forEach(threshold);
