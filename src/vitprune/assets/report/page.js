"use strict";
// Tips beside the pointer: every titled mark of a picture says what it is. Without this script the titles do.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg .tip > title")) {
  const mark = title.parentNode;
  mark.dataset.tip = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  title.remove();
}
function show(event) {
  const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect(), room = 8, away = 14;
  const left = Math.min(event.clientX + away, innerWidth - box.width - room);
  const above = event.clientY - box.height - away;
  tip.style.left = Math.max(room, left) + "px";
  tip.style.top = (above > room ? above : event.clientY + away) + "px";
}
for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
// The SVG of a picture out of the page itself, in the colours of a light page, so that this one file is complete.
for (const link of document.querySelectorAll("a[data-svg]")) {
  const picture = document.querySelector("#panel-" + CSS.escape(link.dataset.svg) + " svg").cloneNode(true);
  for (const mark of picture.querySelectorAll("[data-tip]")) {
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = mark.dataset.tip;
    mark.prepend(title);
    delete mark.dataset.tip;
  }
  picture.style.fontFamily = "sans-serif";
  const text = new XMLSerializer().serializeToString(picture).replace(/var\(--[\w-]+, (#[0-9a-f]{6})\)/gi, "$1");
  link.href = "data:image/svg+xml," + encodeURIComponent(text);
}
