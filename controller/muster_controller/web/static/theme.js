// Before the first paint: the theme that this browser chose, else the system's.
const chosen = localStorage.getItem("muster-theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
