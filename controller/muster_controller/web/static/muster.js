// Keeps the page current: on each change told by the stream, fetch the page again and swap the regions that differ.
// Regions are elements with `data-live` and an id. Orders are sent to the API as JSON.

const GATHER_MS = 500; // Changes are gathered this long before the page is fetched.
const SILENCE_MS = 25_000; // Two heartbeats and a half: the connection is dead even if nobody says so.

const link = document.getElementById("link");
const linkWords = document.getElementById("link-words");
const lost = document.getElementById("lost");
const announce = document.getElementById("announce");

let source = null;
let silence = 0;
let timer = 0;
let fetching = false;
let again = false;
let fresh = new Date();
let announced = spoken(document);

function spoken(root) {
  return [...root.querySelectorAll("[data-announce]")].map((each) => each.textContent.trim()).join(" ");
}

function show(state) {
  if (link.dataset.state === state) return;
  link.dataset.state = state;
  linkWords.textContent = state;
  lost.hidden = state !== "lost";
  if (state === "lost") {
    lost.textContent = `Connection lost. This is the fleet as of ${fresh.toLocaleTimeString()}; trying again.`;
  }
}

function refreshSoon() {
  if (fetching) again = true;
  else if (!timer) timer = setTimeout(refresh, GATHER_MS);
}

async function refresh() {
  timer = 0;
  fetching = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected) location.assign(answer.url); // The session is over: log in.
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of document.querySelectorAll("[data-live]")) swap(region, page.getElementById(region.id));
    fresh = new Date();
    const words = spoken(document);
    if (words !== announced) announce.textContent = announced = words;
  } catch {
    again = true; // The stream says "lost" when it is the connection.
  } finally {
    fetching = false;
    if (again) {
      again = false;
      timer = setTimeout(refresh, 2 * GATHER_MS);
    }
  }
}

function swap(region, next) {
  if (!next || region.querySelector("dialog[open]")) return;
  for (const details of region.querySelectorAll("details[open]")) {
    next.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
  }
  if (region.innerHTML === next.innerHTML) return;
  const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
  const scrolled = [...region.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  region.replaceChildren(...next.childNodes);
  [...region.querySelectorAll(".scroll")].forEach((each, index) => each.scrollTo(...(scrolled[index] ?? [0, 0])));
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function connect() {
  source?.close();
  source = new EventSource("/api/v1/stream");
  source.onopen = () => {
    if (link.dataset.state === "lost") refreshSoon(); // Catch up with what was missed.
    show("live");
    heard();
  };
  source.onerror = () => {
    show("lost");
    // After a refusal the browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000 + 3000 * Math.random());
  };
  source.addEventListener("heartbeat", () => { heard(); refreshSoon(); });
  for (const kind of ["device", "rollout", "model", "note", "alert", "reset"]) {
    source.addEventListener(kind, () => { heard(); refreshSoon(); });
  }
}

function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => { show("lost"); connect(); }, SILENCE_MS);
}

async function send(form) {
  const said = form.querySelector("[role=alert]");
  const buttons = form.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  said.hidden = true;
  try {
    const answer = await fetch(form.dataset.order, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(Object.fromEntries(new FormData(form))),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    form.closest("dialog").close();
    refreshSoon();
  } catch (error) {
    said.textContent = `${error.message}`;
    said.hidden = false;
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
  }
}

document.addEventListener("click", (event) => {
  const opens = event.target.closest("[data-opens]");
  if (opens) document.getElementById(opens.dataset.opens).showModal();
  if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
});

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.order) return;
  event.preventDefault();
  send(event.target);
});

if (link) connect(); // Who is not logged in is told nothing.
