// Brings files to the controller: a bundle with its signatures, trust metadata, a revocation.
//
//   <form data-upload="release">   #bundle-files, #bundle-loose, #signed-file
//   <form data-upload="trust">     #trust-file, #trust-folder
//   <form data-upload="metadata">  #metadata-file, #metadata-model, #metadata-dialog
//
// Nothing is hashed here: the signed manifest says every digest, and the controller keeps nothing that is not what it
// says. So it works over plain HTTP in a local network too, where browsers give no cryptography to a page.

import { refreshSoon } from "./live.js";
import { order } from "./orders.js";

const API = "/api/v1";
const TRIES = 3; // Of one file, when the connection breaks; then the person presses again, and it goes on there.
const WAIT_MS = 1500;
const MANIFEST = "bundle.json";
const MANIFEST_BYTES_MAX = 8 * 1024 * 1024;
const METADATA = /^([1-9]\d*)\.(root|targets|assignment|release-[a-z0-9_-]+)\.json$/; // Nothing else is ever read.

const KINDS = { release: publish, trust: bringTrust, metadata: bringMetadata };
let underWay = 0;

export function prepare(root) {
  for (const form of root.querySelectorAll("form[data-upload]")) {
    if (form.dataset.ready) continue;
    form.dataset.ready = "yes";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(form, KINDS[form.dataset.upload]);
    });
    form.addEventListener("change", () => { clear(form); });
    if (form.dataset.upload === "release") form.addEventListener("change", () => attempt(form, look));
    if (form.dataset.upload === "metadata") form.querySelector("#metadata-file").addEventListener("change", () => suggest(form));
    // Somebody may have chosen before this was loaded.
    if ([...form.querySelectorAll("input[type=file]")].some((each) => each.files.length)) form.dispatchEvent(new Event("change"));
  }
}

window.addEventListener("beforeunload", (event) => { if (underWay) event.preventDefault(); });

// -- what every form does ---------------------------------------------------------------------------------------------

async function attempt(form, step) {
  const buttons = form.querySelectorAll("button");
  buttons.forEach((each) => { each.disabled = true; });
  form.querySelector("[role=alert]").hidden = true;
  form.setAttribute("aria-busy", "true");
  try {
    await step(form);
  } catch (error) {
    const said = form.querySelector("[role=alert]");
    // What `fetch` raises when nobody answers says nothing to people.
    said.textContent = error instanceof TypeError ? "The controller cannot be reached. Nothing is lost: try again." : error.message;
    said.hidden = false;
    say(form, "");
  } finally {
    form.removeAttribute("aria-busy");
    buttons.forEach((each) => { each.disabled = false; });
  }
}

function say(form, words) {
  form.querySelector(".said").textContent = words;
}

function clear(form) {
  say(form, "");
  form.querySelector(".transfers")?.replaceChildren();
  form.querySelector("[role=alert]").hidden = true;
}

async function textOf(file, most) {
  if (file.size > most) throw new Error(`${file.name} has ${sized(file.size)}; that is no such file.`);
  return file.text();
}

function json(text, name) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON; it may have been cut short on its way here.`);
  }
}

function sized(bytes) {
  for (const [size, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (bytes >= size) return `${Number((bytes / size).toPrecision(3))} ${unit}`;
  }
  return `${bytes} B`;
}

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// -- a release --------------------------------------------------------------------------------------------------------

// Once both are chosen, say what would happen, and what is wrong, before anything large is sent.
async function look(form) {
  const { bundle, loose, signed } = chosen(form);
  if (!bundle.length && !loose.length) return;
  const found = await understood([...bundle, ...loose]);
  if (!signed) return say(form, `${found.manifest.model} ${found.manifest.version}, ${counted(found.files.length, "file")}. Choose its signed metadata too.`);
  const check = await checked(found, await textOf(signed, MANIFEST_BYTES_MAX));
  say(form, words(found, check));
}

async function publish(form) {
  const { bundle, loose, signed } = chosen(form);
  if (!bundle.length && !loose.length) throw new Error("Choose the bundle's folder.");
  if (!signed) throw new Error("Choose the signed metadata, as `muster model sign` wrote it.");
  const found = await understood([...bundle, ...loose]);
  const metadata = await textOf(signed, MANIFEST_BYTES_MAX);
  const check = await checked(found, metadata);
  say(form, words(found, check));
  const missing = new Set(check.missing.map((each) => each.sha256));
  const list = form.querySelector(".transfers");
  const lines = found.files.map((each) => line(list, each, missing.has(each.sha256)));
  underWay += 1;
  try {
    const sent = new Set();
    for (const [index, each] of found.files.entries()) {
      if (!missing.has(each.sha256) || sent.has(each.sha256)) continue;
      await sending(each, lines[index]);
      sent.add(each.sha256);
      for (const [other, twin] of found.files.entries()) if (twin.sha256 === each.sha256) lines[other].done("sent");
    }
    await order(`${API}/models/${found.manifest.model}/releases`, { metadata, manifest: found.text });
  } finally {
    underWay -= 1;
  }
  location.assign(`/models/${found.manifest.model}/versions/${encodeURIComponent(found.manifest.version)}`);
}

function chosen(form) {
  return {
    bundle: [...form.querySelector("#bundle-files").files],
    loose: [...form.querySelector("#bundle-loose").files],
    signed: form.querySelector("#signed-file").files[0],
  };
}

const pathOf = (file) => file.webkitRelativePath || file.name;

// Returns the manifest, its exact text, and of each of its files the one that was chosen.
async function understood(files) {
  const manifests = files.filter((each) => each.name === MANIFEST);
  manifests.sort((one, other) => pathOf(one).length - pathOf(other).length);
  if (!manifests.length) throw new Error(`There is no ${MANIFEST} among them. Choose the folder that \`muster model build\` made.`);
  const folder = pathOf(manifests[0]).slice(0, -MANIFEST.length);
  const text = await textOf(manifests[0], MANIFEST_BYTES_MAX);
  const manifest = json(text, MANIFEST);
  if (!Array.isArray(manifest.files) || typeof manifest.model !== "string" || typeof manifest.version !== "string") {
    throw new Error(`${MANIFEST} is no manifest of a bundle.`);
  }
  const found = manifest.files.map(({ path, sha256, length }) => ({ path, sha256, length, file: named(files, folder, path) }));
  const wrong = found.flatMap(({ path, length, file }) => {
    if (!file) return [`${path} is missing`];
    return file.size === length ? [] : [`${path} has ${file.size} bytes and should have ${length}`];
  });
  if (wrong.length) throw new Error(`This is not the bundle that ${MANIFEST} describes: ${wrong.slice(0, 8).join("; ")}${wrong.length > 8 ? `; and ${wrong.length - 8} more` : ""}.`);
  return { manifest, text, files: found };
}

function named(files, folder, path) {
  const exact = files.find((each) => pathOf(each) === folder + path);
  if (exact) return exact;
  const alike = files.filter((each) => !each.webkitRelativePath && each.name === path.split("/").pop());
  return alike.length === 1 ? alike[0] : undefined;
}

async function checked(found, metadata) {
  json(metadata, "The signed metadata");
  return order(`${API}/models/${encodeURIComponent(found.manifest.model)}/releases/check`, { metadata, manifest: found.text });
}

function words(found, check) {
  const name = `${found.manifest.model} ${found.manifest.version}`;
  if (!check.is_new) return `${name} was published before, exactly so.`;
  const here = found.files.length - found.files.filter((each) => check.missing.some((one) => one.sha256 === each.sha256)).length;
  const sends = check.missing.length ? `${counted(check.missing.length, "file")} to send, ${sized(check.bytes)}` : "nothing to send";
  return `${name} is signed as it must be: ${sends}${here ? `; ${here} here already` : ""}.`;
}

function line(list, { path, length, sha256 }, isMissing) {
  let item = [...list.children].find((each) => each.dataset.path === path);
  if (!item) {
    item = document.createElement("li");
    item.dataset.path = path;
    item.innerHTML = "<span class='name'></span> <progress max='1'></progress> <span class='state quiet'></span>";
    item.querySelector(".name").textContent = path;
    item.querySelector("progress").setAttribute("aria-label", path);
    list.append(item);
  }
  item.dataset.sha256 = sha256;
  const bar = item.querySelector("progress");
  const state = item.querySelector(".state");
  const show = (share, said) => { bar.value = share; state.textContent = said; };
  show(isMissing ? 0 : 1, isMissing ? sized(length) : "here already");
  return {
    at: (bytes) => show(bytes / length, `${sized(bytes)} of ${sized(length)}`),
    done: (said) => show(1, said),
    failed: () => show(0, "not sent"),
    waits: (tries) => { state.textContent = `the connection broke; trying again (${tries} of ${TRIES})`; },
  };
}

async function sending(each, progress) {
  for (let tries = 1; ; tries += 1) {
    try {
      await put(`${API}/blobs/${each.sha256}`, each.file, progress.at);
      return;
    } catch (error) {
      if (!error.isBroken || tries === TRIES) {
        progress.failed();
        throw new Error(`${each.path}: ${error.message}${error.isBroken ? " What was sent whole stays: press Publish again to go on." : ""}`);
      }
      progress.waits(tries + 1);
      await new Promise((resolve) => { setTimeout(resolve, WAIT_MS * tries); });
    }
  }
}

// `fetch` does not tell how much went out, XMLHttpRequest does.
function put(url, file, at) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const broken = (said) => reject(Object.assign(new Error(said), { isBroken: true }));
    request.open("PUT", url);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => at(event.loaded);
    request.onload = () => {
      if (request.status < 300) return resolve();
      let said = `the controller answered ${request.status}.`;
      try {
        said = JSON.parse(request.responseText).detail ?? said;
      } catch { /* It was no problem of ours. */ }
      return request.status >= 500 ? broken(said) : reject(new Error(said));
    };
    request.onerror = () => broken("the connection to the controller broke, or the file changed on this disk.");
    request.onabort = () => broken("the connection to the controller was closed.");
    request.send(file);
  });
}

// -- trust metadata ---------------------------------------------------------------------------------------------------

async function bringTrust(form) {
  const files = [...form.querySelector("#trust-file").files, ...form.querySelector("#trust-folder").files];
  if (!files.length) throw new Error("Choose the files of the operator's folder metadata/.");
  const known = {}; // Role -> version -> file
  for (const file of files) {
    const match = METADATA.exec(file.name);
    if (match) (known[match[2]] ??= {})[Number(match[1])] = file;
  }
  const newest = (role) => Math.max(0, ...Object.keys(known[role] ?? {}).map(Number));
  for (const role of ["root", "targets"]) if (!newest(role)) throw new Error(`There is no file such as 1.${role}.json among them.`);
  const version = newest("targets");
  const keys = known.assignment?.[version];
  if (!keys) throw new Error(`${version}.assignment.json is missing: the keys that ${version}.targets.json names.`);
  const read = (role, number) => textOf(known[role][number], MANIFEST_BYTES_MAX);
  const targets = await read("targets", version);
  const delegated = (json(targets, `${version}.targets.json`).signed?.delegations?.roles ?? []).map((each) => each.name);
  const releases = {};
  for (const role of delegated) if (newest(role)) releases[role] = await read(role, newest(role));
  const roots = Object.keys(known.root).map(Number).sort((one, other) => one - other);
  const between = await Promise.all(roots.slice(0, -1).slice(-64).map((number) => read("root", number)));
  const body = { root: await read("root", roots.at(-1)), targets, keys: await textOf(keys, MANIFEST_BYTES_MAX), between, releases };
  const { changed } = await order(`${API}/trust/offline`, body);
  say(form, changed ? `Taken: root ${roots.at(-1)}, targets ${version}. Devices are told now.` : "The controller had exactly this already.");
  refreshSoon(0);
}

// -- a revocation or a renewal ----------------------------------------------------------------------------------------

// The metadata's paths name its model; the file's name may, too.
async function suggest(form) {
  const file = form.querySelector("#metadata-file").files[0];
  if (!file || file.size > MANIFEST_BYTES_MAX) return;
  const text = await file.text();
  const name = /"models\/([a-z0-9_-]+)\//.exec(text)?.[1] ?? METADATA.exec(file.name)?.[2].replace(/^release-/, "");
  const select = form.querySelector("#metadata-model");
  if ([...select.options].some((each) => each.value === name)) select.value = name;
}

async function bringMetadata(form) {
  const file = form.querySelector("#metadata-file").files[0];
  if (!file) throw new Error("Choose the signed metadata, as `muster model revoke` wrote it.");
  const metadata = await textOf(file, MANIFEST_BYTES_MAX);
  json(metadata, file.name);
  if (!form.querySelector("#metadata-model").value) await suggest(form);
  const model = form.querySelector("#metadata-model").value;
  if (!model) throw new Error("Choose the model that it is of.");
  const url = `${API}/models/${encodeURIComponent(model)}/releases`;
  const body = { metadata, manifest: null };
  const check = await order(`${url}/check`, body);
  if (!check.is_new) return say(form, "The controller had exactly this already.");
  const gone = Object.entries(check.removed);
  if (gone.length && !(await agreed(form, model, gone))) return say(form, "Left as it was.");
  await order(url, body);
  say(form, gone.length ? `${model} ${gone.map(([version]) => version).join(", ")} is revoked. Devices are told now.` : `${model}: renewed.`);
  refreshSoon(0);
}

function agreed(form, model, gone) {
  const dialog = form.querySelector("#metadata-dialog");
  const said = gone.map(([version, devices]) => `${model} ${version} (${counted(devices, "device")} run it now)`).join(", ");
  dialog.querySelector(".what").textContent = `This takes back ${said}. No device may run it any more, whatever a controller tells it.`;
  dialog.querySelectorAll("button").forEach((each) => { each.disabled = false; });
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("#metadata-confirm").onclick = () => dialog.close("yes");
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
