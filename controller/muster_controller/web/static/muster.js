// The frame of every page. What lives where: live.js keeps the page current, orders.js sends what people decide,
// keys.js is the keyboard, times.js shows times in the viewer's zone, plots.js draws, upload.js publishes.

import { connect } from "./live.js";
import "./orders.js";
import "./keys.js";
import { localise } from "./times.js";

const THEMES = { "": "as the system", light: "light", dark: "dark" };
const button = document.getElementById("theme");

function themed(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  document.getElementById("theme-words").textContent = THEMES[name];
  document.dispatchEvent(new CustomEvent("muster:theme"));
}

button?.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  localStorage.setItem("muster-theme", next);
  themed(next);
});

// Called at first, and on whatever was put into the page since.
async function furnish(root) {
  localise(root);
  if (root.querySelector?.("[data-plot]")) (await import("./plots.js")).draw(root);
  if (root.querySelector?.("form[data-upload]")) (await import("./upload.js")).prepare(root);
}

themed(document.documentElement.dataset.theme ?? "");
furnish(document);
document.querySelector("nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
document.addEventListener("htmx:after:swap", () => furnish(document));
if (document.getElementById("link")) connect(); // Who is not logged in is told nothing.
