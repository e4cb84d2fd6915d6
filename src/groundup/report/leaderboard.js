// A table is sorted by the column whose title is pressed, and the other way when it is pressed again.
for (const table of document.querySelectorAll(".board")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  for (const [column, head] of heads.entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const value = (row) => row.cells[column].dataset.value;
      const numbers = [...body.rows].every((row) => value(row) !== "" && !Number.isNaN(Number(value(row))));
      const order = (a, b) => numbers ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b));
      for (const row of [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b))) body.append(row);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  }
}
