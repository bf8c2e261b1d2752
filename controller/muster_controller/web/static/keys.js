// The keyboard: `/` search, `g` and a page's key, `j` `k` rows, `?` help. Never while something is typed.

const WAIT_MS = 1200; // After `g`, for the page's key.

let isGoing = 0;

function isTyping(event) {
  return event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog[open]");
}

// The rows are those of the table where the focus is, else of the first one.
function step(by) {
  const table = document.activeElement.closest("table") ?? document.querySelector("main tbody a")?.closest("table");
  const rows = [...(table?.querySelectorAll("tbody a[href]") ?? [])].filter((each) => each.closest("tr").querySelector("a[href]") === each);
  if (!rows.length) return;
  const row = document.activeElement.closest("tr");
  const at = rows.findIndex((each) => each.closest("tr") === row);
  rows[Math.min(Math.max(at + by, 0), rows.length - 1)].focus();
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  if (isGoing && Date.now() - isGoing < WAIT_MS) {
    isGoing = 0;
    const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (page) {
      event.preventDefault();
      page.click();
    }
    return;
  }
  switch (event.key) {
    case "/": document.querySelector("[data-search], main [role=search] input")?.focus(); break;
    case "?": document.getElementById("keys")?.showModal(); break;
    case "g": isGoing = Date.now(); break;
    case "j": step(1); break;
    case "k": step(-1); break;
    default: return;
  }
  event.preventDefault();
});
