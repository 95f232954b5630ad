// Tables that a click on a column's head sorts; a cell's data-value goes before its text. What is undefined stays last.
"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };
  const undefinedValue = (v) => v === "" || v === "\u2013" || v === "nan";
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const button of document.querySelectorAll("th button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = head.cellIndex;
      const body = button.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row, value(row, column)]);
      rows.sort(([, a], [, b]) => {
        const [none, other] = [undefinedValue(a), undefinedValue(b)];
        return none || other ? none - other : down ? compare(b, a) : compare(a, b);
      });
      body.append(...rows.map(([row]) => row));
    });
  }
})();
