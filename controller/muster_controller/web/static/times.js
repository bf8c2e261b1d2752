// Times in the viewer's zone: the server writes UTC into `datetime`, and the words that age with it.

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

export function localise(root) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const at = new Date(each.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    each.title = exact.format(at);
    if (each.dataset.clock !== undefined) each.textContent = at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
    if (each.dataset.day !== undefined) each.textContent = at.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  }
}
