// The page is whole without this script; it adds sorting by column and buttons that copy a command, and says of no table that it
// scrolls where it does not.
for (const table of document.querySelectorAll("table.results")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      // Numbers are first sorted from the largest down, words from A on.
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => {
        const cell = row.cells[column];
        return numeric ? parseFloat(cell.dataset.value) : cell.dataset.value ?? cell.textContent;
      };
      const compare = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (!numeric) return sign * left.localeCompare(right, "en", { numeric: true });
        // Rows without a number stay at the end in either order.
        if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
        return sign * (left - right);
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
// The line above a table that says that it scrolls, only where it does.
const told = [...document.querySelectorAll(".scrolls")].map((line) => [line, line.nextElementSibling]);
const tell = () => told.forEach(([line, table]) => { line.hidden = table.scrollWidth <= table.clientWidth; });
addEventListener("resize", tell);
tell();
if (navigator.clipboard) {
  for (const block of document.querySelectorAll("pre")) {
    const code = block.querySelector("code");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  }
}
