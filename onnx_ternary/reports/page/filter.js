"use strict";
(() => {
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const rows = [...document.querySelectorAll("#rows tr")];
  const buttons = [...document.querySelectorAll("#legend button")];
  const update = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const groups = buttons.filter((each) => each.getAttribute("aria-pressed") === "true")
      .map((each) => each.dataset.group);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word))
        && (groups.length === 0 || groups.includes(row.dataset.group)));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} products`;
  };
  filter.addEventListener("input", update);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      update();
    });
  }
  update();
})();
