// The list of runs at the left: filter, state, progress, colour, pin and name of each.
import { clear, duration, el, number } from "./util.js";
import { t } from "./strings.js";

const MAX_LISTED = 500;
const MAX_SELECTED = 50;

export class RunList {
  constructor(app) {
    this.app = app;
    this.items = new Map();
    this.filter = el("input", { type: "search", placeholder: t("search_runs"), class: "vt-input", oninput: () => this.draw() });
    this.body = el("div", { class: "vt-runlist" });
    const pick = (count, word) => el("button", { class: "vt-mini", onclick: () => app.select(this.filtered().slice(0, count).map((e) => e.id)) }, t(word));
    this.node = el("aside", { class: "vt-side" }, this.filter,
      el("div", { class: "vt-quick" }, pick(MAX_SELECTED, "select_all"), pick(0, "select_none"), pick(1, "newest")), this.body);
  }

  // Pinned runs first, then the one written last.
  sorted() {
    const { app } = this;
    const rank = (entry) => (app.labels[entry.id]?.pinned ? 0 : 1);
    return [...app.runs.values()].sort((a, b) => rank(a) - rank(b) || b.written - a.written || a.id.localeCompare(b.id));
  }

  filtered() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (entry) => `${entry.id} ${this.app.title(entry.id)} ${entry.method} ${entry.model} ${t(entry.state)} ${entry.state}`.toLowerCase();
    return this.sorted().filter((entry) => words.every((word) => text(entry).includes(word)));
  }

  draw() {
    const { app } = this;
    const notes = (count) => (app.notes ?? []).slice(0, count).map((note) => el("div", { class: "vt-note" }, `${t("notes")}: ${note}`));
    if (!app.runs.size) {
      clear(this.body);
      clear(app.chartRoot, el("div", { class: "vt-empty" }, el("h2", {}, t("no_runs")), el("p", {}, `${t("no_runs_help")} `, el("code", {}, app.boot.root)), el("p", {}, t("no_runs_hint")), notes(5)));
      return;
    }
    const nodes = this.filtered().slice(0, MAX_LISTED).map((entry) => this.item(entry));
    const same = nodes.length === this.body.children.length && nodes.every((node, i) => node === this.body.children[i]);
    if (!same) clear(this.body, nodes, notes(3));
  }

  // A list item is built once and then only its changing texts are set: a new step must not cost a new list.
  item(entry) {
    const { app } = this;
    let item = this.items.get(entry.id);
    if (!item) {
      const box = el("input", { type: "checkbox", "aria-label": entry.id, onchange: () => {
        const rest = app.state.runs.filter((run) => run !== entry.id);
        app.select(box.checked ? [...rest, entry.id] : rest);
      } });
      const parts = { box, title: el("b", {}), state: el("span", {}), meta: el("span", { class: "vt-meta" }), bar: el("i", {}), foot: el("span", { class: "vt-meta" }) };
      const colour = el("input", { type: "color", title: t("colour"), oninput: () => app.label(entry.id, { colour: colour.value }) });
      const pin = el("button", { class: "vt-mini", title: t("pin"), onclick: () => app.label(entry.id, { pinned: !app.labels[entry.id]?.pinned }) }, "☆");
      const rename = el("button", { class: "vt-mini", title: t("rename"), onclick: () => {
        const name = prompt(t("rename"), app.title(entry.id));
        if (name !== null) app.label(entry.id, { name: name.trim() || undefined });
      } }, "✎");
      parts.colour = colour;
      parts.pin = pin;
      const node = el("div", { class: "vt-run", data: { run: entry.id } },
        el("label", {}, box, colour, parts.title, parts.state),
        el("div", { class: "vt-row" }, parts.meta, el("span", { class: "vt-spring" }), pin, rename),
        el("div", { class: "vt-bar" }, parts.bar), parts.foot);
      item = { node, parts };
      this.items.set(entry.id, item);
    }
    const { parts } = item;
    const set = (node, text) => node.textContent !== text && (node.textContent = text);
    const selected = app.state.runs.includes(entry.id);
    parts.box.checked = selected;
    item.node.classList.toggle("vt-selected", selected);
    const colour = app.colour(entry.id);
    if (parts.colour.value !== colour) parts.colour.value = colour;
    set(parts.title, app.title(entry.id));
    parts.title.title = entry.id;
    set(parts.state, entry.state === "samples" ? t("state_samples") : t(entry.state));
    parts.state.className = `vt-pill vt-s-${entry.state}`;
    parts.state.title = entry.why;
    set(parts.pin, app.labels[entry.id]?.pinned ? "★" : "☆");
    set(parts.meta, [entry.method?.toUpperCase(), entry.model?.split("/").at(-1)].filter(Boolean).join(" · "));
    const steps = entry.step < 0 ? "" : `${t("step")} ${entry.step}${entry.total ? ` / ${entry.total}` : ""}`;
    const eta = entry.eta !== null && entry.eta !== undefined ? t("left").replace("%", duration(entry.eta)) : "";
    const score = entry.last !== null ? `${t("validation")} ${number(entry.last, 3)} (${t("best")} ${number(entry.best, 3)})` : "";
    set(parts.foot, [steps, eta, score].filter(Boolean).join(" · "));
    parts.foot.title = entry.validation ? `${entry.validation}\n${t("best")} ${t("at")} ${entry.best_step}` : "";
    parts.bar.style.width = entry.total ? `${Math.min(100, (100 * Math.max(0, entry.step)) / entry.total)}%` : "0";
    return item.node;
  }
}
