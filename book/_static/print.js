// A printed page has nothing to click on: solutions and dropdowns are unfolded, and it is light as paper is.
(() => {
  let opened = [];
  let theme = null;
  const root = document.documentElement;
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("article details:not([open])")];
    opened.forEach((details) => (details.open = true));
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((details) => (details.open = false));
    opened = [];
    if (theme) root.dataset.theme = theme;
  });
})();
