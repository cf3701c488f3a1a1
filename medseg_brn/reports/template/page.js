// A click on a heading sorts its table by that column; a second click turns the order round.
// Without scripts the tables stay as they are written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(body, heading, column));
  });
}

function sort(body, heading, column) {
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  const numeric = heading.classList.contains("number");
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...body.rows].map((row) => [key(row.cells[column], numeric), row]);
  rows.sort(([a], [b]) => compare(a, b, numeric, ascending));
  body.append(...rows.map(([, row]) => row));
}

function key(cell, numeric) {
  if (!numeric) return cell.textContent;
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

// Undefined values stay last in either order.
function compare(a, b, numeric, ascending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return ascending ? order : -order;
}
