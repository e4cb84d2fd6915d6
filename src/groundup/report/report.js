// The next-token view: every table is in the page, and the last of each text is shown; a token's button shows its own.
for (const view of document.querySelectorAll(".next")) {
  const buttons = view.querySelectorAll("button"), tables = view.querySelectorAll("table");
  for (const [index, button] of buttons.entries()) {
    button.disabled = false;
    button.addEventListener("click", () => {
      for (const [other, table] of tables.entries()) {
        table.hidden = other !== index;
        buttons[other].setAttribute("aria-pressed", String(other === index));
      }
    });
  }
}
for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
