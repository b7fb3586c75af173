"use strict";
for (const list of document.querySelectorAll("[role=tablist]")) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const show = (chosen) => {
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
  };
  list.addEventListener("click", (event) => tabs.includes(event.target) && show(event.target));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
  show(tabs[0]);
}
const contents = document.getElementById("contents");
for (const section of document.querySelectorAll("main > section[id]")) {
  const link = Object.assign(document.createElement("a"), {
    href: `#${section.id}`,
    textContent: section.querySelector("h2").textContent,
  });
  contents.append(Object.assign(document.createElement("li"), {}));
  contents.lastElementChild.append(link);
}
