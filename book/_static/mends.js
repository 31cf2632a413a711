/* Two faults of the theme that keep a page from being read aloud well, and one of browsers. */
"use strict";

// The arrows that unfold the contents in the sidebar have no name.
for (const summary of document.querySelectorAll(".bd-sidebar details > summary:not([aria-label])")) {
  const page = summary.closest("li").querySelector("a").textContent.trim();
  summary.setAttribute("aria-label", `Pages under ${page}`);
}

// Entries of the bibliography say they are a list of documents, which their markup is not.
for (const element of document.querySelectorAll(".citation-list, .citation-list > [role]")) {
  element.removeAttribute("role");
}

// A line may end between a formula, which is a picture, and the comma after it: the comma would begin the next line.
for (const formula of document.querySelectorAll(".bd-article span.math")) {
  const after = formula.nextSibling;
  const [mark] = (after?.nodeType === Node.TEXT_NODE && after.data.match(/^[,.;:?!)\u2019\u201d-]+/)) || [""];
  if (!mark) continue;
  after.splitText(mark.length);
  const unbroken = document.createElement("span");
  unbroken.className = "unbroken";
  formula.before(unbroken);
  unbroken.append(formula, after);
}

// On a phone a table that is wider than its box becomes a list: row after row, each cell beside its column's name.
for (const table of document.querySelectorAll(".bd-article table:has(thead)")) {
  const names = [...table.querySelectorAll("thead tr:last-child th")].map((cell) => cell.textContent.trim());
  for (const row of table.querySelectorAll("tbody tr")) {
    [...row.cells].forEach((cell, i) => { cell.dataset.name = names[i] ?? ""; });
  }
  const box = table.parentElement;
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth;
    table.classList.remove("listed");
    table.classList.toggle("listed", innerWidth <= 600 && table.scrollWidth > width + 1);
  }).observe(box);
}
