// Tables by keyboard: Tab enters a table; arrows, Home, End, Page Up and Page Down move between cells; Enter follows a
// cell's link or opens what it folds. Without this script the page shows the same text, and Tab reaches the links.
"use strict";
for (const table of document.querySelectorAll('[role="grid"]')) {
  const lines = [...table.rows].map((row) => [...row.cells]);
  for (const link of table.querySelectorAll("a, summary")) link.tabIndex = -1;
  for (const cell of lines.flat()) cell.tabIndex = -1;
  let current = lines[1] ? lines[1][0] : lines[0][0];
  current.tabIndex = 0;
  const go = (cell) => {
    current.tabIndex = -1;
    current = cell;
    cell.tabIndex = 0;
    cell.focus();
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  table.addEventListener("keydown", (event) => {
    const y = current.parentElement.rowIndex, x = current.cellIndex, last = lines.length - 1;
    const to = {
      ArrowDown: [y + 1, x], ArrowUp: [y - 1, x], ArrowRight: [y, x + 1], ArrowLeft: [y, x - 1],
      Home: [event.ctrlKey ? 0 : y, 0], End: [event.ctrlKey ? last : y, lines[y].length - 1],
      PageDown: [Math.min(last, y + 10), x], PageUp: [Math.max(0, y - 10), x],
    }[event.key];
    if (event.key === "Enter") current.querySelector("a, summary")?.click();
    if (!to) return;
    event.preventDefault();
    const cell = lines[to[0]]?.[to[1]];
    if (cell) go(cell);
  });
  table.addEventListener("mousedown", (event) => {
    const cell = event.target.closest("th, td");
    if (cell && !event.target.closest("a, summary")) { current.tabIndex = -1; current = cell; cell.tabIndex = 0; }
  });
}
const contents = document.querySelector("nav details");
contents.open = matchMedia("(min-width: 75rem)").matches;
const unfolded = new Set(); // unfolded for printing, and folded afterwards
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("main details:not([open])")) unfolded.add(fold);
  for (const fold of unfolded) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of unfolded) fold.open = false;
  unfolded.clear();
});
