// Sends what people decide to the API as JSON, and says what it answers where the button is.
//
//   <form data-order="/api/v1/…/{field}" [data-method="PUT"] [data-then="/where/{id}"]>   its fields are the body, by name;
//                                       those in braces go into the address instead
//     name="a.b" nests, name="n:number" is a number, name="s:minutes" is minutes sent as seconds, name="x:json" is parsed, name="on:flag" is a boolean,
//     name="l:list" is split at commas and lines; empty ones are left out
//     <p role="alert" hidden></p>         where a refusal is said
//     <div data-answer hidden> <code data-field="token"></code> </div>    what is shown once instead of the fields
//
// `data-then` is the page to open afterwards, with fields of the answer in braces; else the dialog closes.

import { refreshSoon } from "./live.js";

export function bodyOf(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.type === "submit" || field.type === "file") continue;
    if (field.type === "radio" && !field.checked) continue;
    const [path, kind = "text"] = field.name.split(":");
    const value = valued(kind, field);
    if (value === undefined) continue;
    const steps = path.split(".");
    const last = steps.pop();
    steps.reduce((inside, step) => (inside[step] ??= {}), body)[last] = value;
  }
  return body;
}

function valued(kind, field) {
  if (kind === "flag") return field.checked;
  const said = field.value.trim();
  if (!said) return undefined;
  if (kind === "number") return Number(said);
  if (kind === "minutes") return Number(said) * 60;
  if (kind === "json") return JSON.parse(said);
  if (kind === "list") return said.split(/[,\n]+/).map((each) => each.trim()).filter(Boolean);
  return said;
}

// Send it; returns the answer's JSON. Raises Error with the problem's detail. The same click is never two orders.
export async function order(url, body, method = "POST", key = crypto.randomUUID?.() ?? `${Math.random()}${Date.now()}`) {
  const answer = await fetch(url, {
    method,
    headers: { "Content-Type": "application/json", "Idempotency-Key": key },
    body: method === "DELETE" ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  const said = text && answer.headers.get("content-type")?.includes("json") ? JSON.parse(text) : {};
  if (!answer.ok) throw new Error(worded(said) || `The controller answered ${answer.status}.`);
  return said;
}

function worded(problem) {
  const where = (problem.errors ?? []).map((each) => `${(each.loc ?? []).slice(1).join(".")}: ${each.msg}`);
  return [problem.detail, ...where].filter((each) => typeof each === "string").join(" ");
}

async function send(form) {
  const said = form.querySelector("[role=alert]");
  const buttons = form.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  said.hidden = true;
  try {
    const body = bodyOf(form);
    const url = form.dataset.order.replace(/\{(\w+)\}/g, (_, name) => {
      const value = body[name];
      delete body[name];
      return encodeURIComponent(value ?? "");
    });
    const found = await order(url, body, form.dataset.method);
    if (form.dataset.then) {
      location.assign(form.dataset.then.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(found[name])));
      return;
    }
    const answer = form.querySelector("[data-answer]");
    if (answer) {
      for (const field of answer.querySelectorAll("[data-field]")) field.textContent = found[field.dataset.field] ?? "";
      form.querySelectorAll("[data-asks]").forEach((each) => { each.hidden = true; });
      answer.hidden = false;
      answer.querySelector("[data-closes]")?.focus();
    } else form.closest("dialog")?.close();
    refreshSoon(0);
  } catch (error) {
    said.textContent = `${error.message}`;
    said.hidden = false;
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
  }
}

// What was shown once is gone, and the form is as new. Not by a reload, which would cut off an order that is under way.
function renew(form) {
  const answer = form.querySelector("[data-answer]");
  for (const field of answer.querySelectorAll("[data-field]")) field.textContent = "";
  answer.hidden = true;
  form.querySelectorAll("[data-asks]").forEach((each) => { each.hidden = false; });
  form.reset();
  refreshSoon(0);
}

document.addEventListener("click", (event) => {
  const opens = event.target.closest("[data-opens]");
  if (opens) document.getElementById(opens.dataset.opens).showModal();
  const closes = event.target.closest("[data-closes]");
  if (closes) {
    closes.closest("dialog").close();
    if (closes.closest("[data-answer]")) renew(closes.closest("form"));
  }
});

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.order) return;
  event.preventDefault();
  send(event.target);
});
