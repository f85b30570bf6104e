// A click on a header sorts its table: ascending, descending, as it was. All tables of results hold
// the same arms, and are sorted alike. Empty cells are last.
const rowsOf = new Map([...document.querySelectorAll("table.sortable")].map((table) => [table, [...table.tBodies[0].rows]]));

function order(rows, column, direction) {
  const texts = rows.map((row) => row.cells[column].textContent.trim());
  const numbers = texts.map(parseFloat);
  const numeric = texts.every((text, i) => !text || !Number.isNaN(numbers[i]));
  const compare = (a, b) => (numeric ? numbers[a] - numbers[b] : texts[a].localeCompare(texts[b]));
  const last = (a, b) => !texts[a] - !texts[b];
  return [...rows.keys()].sort((a, b) => last(a, b) || direction * compare(a, b) || a - b);
}

for (const [table, rows] of rowsOf) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    header.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[header.ariaSort] ?? "ascending";
      const sorted = next === "none" ? [...rows.keys()] : order(rows, column, next === "ascending" ? 1 : -1);
      const alike = table.classList.contains("results") ? [...rowsOf.keys()].filter((t) => t.classList.contains("results")) : [table];
      for (const each of alike) {
        each.querySelectorAll("th").forEach((th) => (th.ariaSort = "none"));
        each.tBodies[0].append(...sorted.map((i) => rowsOf.get(each)[i]));
      }
      header.ariaSort = next;
    });
  });
}
