"use strict";
// The filter of the replies. All text is there already: nothing is written into the page but a count.
const form = document.getElementById("filter");
if (form) {
  const articles = [...document.querySelectorAll("#replies article")];
  const texts = new Map();
  const textOf = (article) => {
    if (!texts.has(article)) texts.set(article, article.textContent.toLowerCase());
    return texts.get(article);
  };
  const show = () => {
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value);
    const sought = form.querySelector("[data-search]").value.trim().toLowerCase();
    let shown = 0;
    for (const article of articles) {
      const fits =
        chosen.every((select) => article.dataset[select.dataset.by] === select.value) &&
        (!sought || textOf(article).includes(sought));
      article.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${articles.length} shown`;
  };
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  show(); // what the browser remembers of a page that is loaded again
}
