/* Two faults of the theme that keep a page from being read aloud well. */
"use strict";

// The arrows that unfold the contents in the sidebar have no name.
for (const summary of document.querySelectorAll(".bd-sidebar details > summary:not([aria-label])")) {
  const page = summary.closest("li").querySelector("a").textContent.trim();
  summary.setAttribute("aria-label", `Pages under ${page}`);
}

// Entries of the bibliography say they are a list of documents, which their markup is not.
for (const element of document.querySelectorAll(".citation-list, .citation-list > [role]")) {
  element.removeAttribute("role");
}
