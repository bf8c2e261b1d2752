// Keeps the page current: on a change told by the stream, htmx fetches the page again and morphs what differs in it.
// Elements with `hx-morph-skip` and open dialogs stay as they are; focus, scroll and opened details are kept.
//
//   <main data-hears="rollout:digits-1-0-0 alert">   this page shows that rollout and alerts; empty: anything may change it

const GATHER_MS = 50; // What changes together is told together.
const EVERY_MS = 600; // A page that changes all the time is fetched this often, and no more.
const SILENCE_MS = 25_000; // Two heartbeats and a half: the connection is dead even if nobody says so.
const RETRY_MS = 1_000;
const KINDS = ["device", "rollout", "model", "note", "alert", "reset"];

const link = document.getElementById("link");
const words = document.getElementById("link-words");
const lost = document.getElementById("lost");
const announce = document.getElementById("announce");

let source = null;
let silence = 0;
let timer = 0;
let isFetching = false;
let again = false;
let hasFailed = false;
let fresh = new Date();
let began = 0;
let announced = spoken();

function spoken() {
  return [...document.querySelectorAll("[data-announce]")].map((each) => each.textContent.trim()).join(" ");
}

function show(state) {
  if (link.dataset.state === state) return;
  link.dataset.state = state;
  words.textContent = state;
  lost.hidden = state !== "lost";
  if (state === "lost") {
    lost.textContent = `Connection lost. This is the fleet as of ${fresh.toLocaleTimeString()}; trying again.`;
  }
}

// Fetch the page again soon. Pages without `data-live` in their <main> stay as they were loaded.
export function refreshSoon(after = GATHER_MS) {
  if (!document.querySelector("[data-live]")) return;
  if (isFetching) again = true;
  else if (!timer) timer = setTimeout(refresh, Math.max(after, began + EVERY_MS - Date.now()));
}

async function refresh() {
  timer = 0;
  began = Date.now();
  isFetching = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected) location.assign(answer.url); // The session is over: log in.
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const next = page.getElementById(region.id);
      if (next && !region.isEqualNode(next)) await morph(region, next);
    }
    fresh = new Date();
    hasFailed = false;
    const now = spoken();
    if (now !== announced) announce.textContent = announced = now;
  } catch {
    again = hasFailed = true; // The stream says "lost" when it is the connection.
  } finally {
    isFetching = false;
    if (again) {
      again = false;
      refreshSoon(hasFailed ? RETRY_MS : GATHER_MS);
    }
  }
}

async function morph(region, next) {
  const scrolled = [...region.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  await window.htmx.swap({ text: next.outerHTML, sourceElement: region, target: region, swap: "outerMorph", transition: false });
  const now = document.getElementById(region.id);
  [...now.querySelectorAll(".scroll")].forEach((each, index) => each.scrollTo(...(scrolled[index] ?? [0, 0])));
}

export function connect() {
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
  for (const kind of KINDS) {
    source.addEventListener(kind, ({ data }) => {
      heard();
      if (concerns(kind, data)) refreshSoon();
    });
  }
}

function concerns(kind, data) {
  const hears = document.getElementById("main").dataset.hears?.split(" ").filter(Boolean) ?? [];
  return !hears.length || kind === "reset" || hears.includes(kind) || hears.includes(`${kind}:${JSON.parse(data).id}`);
}

function heard() {
  clearTimeout(silence);
  silence = setTimeout(() => { show("lost"); connect(); }, SILENCE_MS);
}
