// Runs: the list as a table, and the settings of the selected runs side by side.
import { clear, clock, duration, el, number, save } from "./util.js";
import { t } from "./strings.js";

export class RunsTab {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.onlyDifferent = true;
  }

  show() {
    this.news();
    this.compare();
  }

  news() {
    const { app } = this;
    if (app.state.tab !== "runs") return;
    const head = [t("run"), t("method"), t("model"), t("state"), t("step"), "ETA", t("validation"), t("best"), t("attempts"), t("source"), t("written")];
    const rows = app.list.filtered().slice(0, 300).map((entry) => el("tr", {},
      el("td", {}, el("i", { class: "vt-dot", style: { background: app.state.runs.includes(entry.id) ? app.colour(entry.id) : "transparent" } }), el("b", { title: entry.id }, app.title(entry.id))),
      el("td", {}, entry.method.toUpperCase()), el("td", {}, entry.model), el("td", { title: entry.why }, el("span", { class: `vt-pill vt-s-${entry.state}` }, entry.state === "samples" ? t("state_samples") : t(entry.state)),
        entry.why && el("div", { class: "vt-meta" }, entry.why)),
      el("td", {}, entry.step < 0 ? "–" : `${entry.step}${entry.total ? ` / ${entry.total}` : ""}`), el("td", {}, duration(entry.eta)),
      el("td", { title: entry.validation }, number(entry.last, 4)), el("td", {}, entry.best === null ? "–" : `${number(entry.best, 4)} (${t("at")} ${entry.best_step})`),
      el("td", {}, String(entry.attempts)), el("td", {}, entry.sources.join(", ")), el("td", {}, clock(entry.written))));
    this.table = el("div", { class: "vt-scroll" }, el("table", { class: "vt-table" }, el("thead", {}, el("tr", {}, head.map((text) => el("th", {}, text)))), el("tbody", {}, rows)));
    this.below ??= el("div", {});
    clear(this.root, this.table, this.below);
    const key = app.state.runs.map((run) => app.title(run)).join(); // again once the list has told the titles
    if (key !== this.key) {
      this.key = key;
      this.compare();
    }
  }

  async compare() {
    const { app } = this;
    const reply = await app.call("compare", { runs: app.state.runs });
    if (reply.error || !this.below) return;
    const several = reply.runs.length > 1;
    const rows = reply.rows.filter((row) => !this.onlyDifferent || !several || row.differs);
    const only = el("input", { type: "checkbox", checked: this.onlyDifferent, onchange: () => {
      this.onlyDifferent = only.checked;
      this.compare();
    } });
    const csv = () => save("settings.csv", [["setting", ...reply.runs], ...rows.map((r) => [r.name, ...r.cells])].map((line) => line.map(quoted).join(",")).join("\n") + "\n", "text/csv");
    clear(this.below, el("h2", {}, t("compare")), el("div", { class: "vt-toolbar" }, several && el("label", {}, only, t("differences")), rows.length > 0 && el("button", { class: "vt-mini", onclick: csv }, t("csv"))),
      !reply.rows.length ? el("div", { class: "vt-empty" }, t("no_knobs")) : el("div", { class: "vt-scroll" }, el("table", { class: "vt-table vt-knobs" },
        el("thead", {}, el("tr", {}, el("th", {}, t("setting")), reply.runs.map((run) => el("th", {}, el("i", { class: "vt-dot", style: { background: app.colour(run) } }), app.title(run))))),
        el("tbody", {}, rows.map((row) => el("tr", { class: row.differs ? "vt-differs" : "" }, el("td", {}, row.name), row.cells.map((cell) => el("td", {}, cell))))))));
  }
}

function quoted(text) {
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}
