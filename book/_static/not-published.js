/* The repository is not published yet: each link that needs it says so where it is pointed at. `_config.yml` loads
   this file, with the repository's address, until the repository is published. */
"use strict";

(() => {
  const address = document.currentScript.dataset.address;
  const words = "Not published yet: this link works once the repository is.";
  const colab = `colab.research.google.com${new URL(address).pathname.replace(/^/, "/github")}`;
  for (const link of document.querySelectorAll(`a[href^="${address}"], a[href*="${colab}"]`)) {
    // The theme's buttons keep their words here once their tooltips are made.
    link.setAttribute(link.dataset.bsOriginalTitle === undefined ? "title" : "data-bs-original-title", words);
  }
})();
