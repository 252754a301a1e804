// The sidebar's arrows are pictures alone: they get a name for those who do not see them.
for (const arrow of document.querySelectorAll("summary:has(.toctree-toggle)")) {
  arrow.setAttribute("aria-label", "Pages of this section");
}
