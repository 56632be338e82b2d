// GPU status and the health card.
import { bytes, clear, el, floats, number } from "./util.js";
import { language, t } from "./strings.js";

const UNITS = { util_percent: ["utilisation", "%"], memory_gb: ["memory", "GB"], power_w: ["power", "W"], temperature_c: ["temperature", "°C"],
  cpu_percent: ["cpu", "%"], ram_gb: ["ram", "GB"] };

export class GpuTab {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.live = el("div", { class: "vt-cards" });
    this.record = el("div", { class: "vt-grid" });
    this.recordHead = el("h2", {}, t("recorded"));
    this.run = el("select", { class: "vt-input", onchange: () => this.tick(true) });
    this.plots = new Map();
    clear(root, el("h2", {}, t("this_host")), this.live, el("div", { class: "vt-toolbar" }, this.recordHead, this.run), this.record);
  }

  show() {
    const chosen = this.app.state.runs;
    clear(this.run, chosen.map((id) => el("option", { value: id }, this.app.title(id))));
    this.tick(true);
  }

  news() {
    this.plots.clear();
    this.show();
  }

  async tick(now) {
    if (this.app.state.tab !== "gpu" || (this.pending && !now)) return;
    this.pending = true;
    const reply = await this.app.call("gpu", { run: this.run.value });
    this.pending = false;
    if (reply.error) return;
    clear(this.live, !reply.live.gpus.length && el("div", { class: "vt-tile vt-quiet" }, el("b", {}, t("no_gpu")), el("p", {}, reply.reason)), this.tiles(reply.live));
    this.draw(reply.recorded);
  }

  tiles(sample) {
    const meter = (label, value, total, text) => el("div", { class: "vt-meter" }, el("small", {}, label), el("b", {}, text),
      total !== null && el("div", { class: "vt-bar" }, el("i", { style: { width: `${Math.min(100, (100 * (value ?? 0)) / total)}%` } })));
    const or = (value, unit) => (value === null || value === undefined ? "–" : `${number(value, 3)} ${unit}`);
    const gpus = sample.gpus.map((gpu) => el("div", { class: "vt-tile" }, el("b", {}, `GPU ${gpu.index} · ${gpu.name ?? ""}`),
      meter(t("utilisation"), gpu.util, 100, or(gpu.util, "%")), meter(t("memory"), gpu.mem_used, gpu.mem_total || 1, `${bytes(gpu.mem_used)} / ${bytes(gpu.mem_total)}`),
      meter(t("power"), null, null, or(gpu.power, "W")), meter(t("temperature"), null, null, or(gpu.temp, "°C"))));
    return [...gpus, el("div", { class: "vt-tile" }, el("b", {}, sample.host), meter(t("cpu"), sample.cpu, 100, or(sample.cpu, "%")),
      meter(t("ram"), sample.ram_used, sample.ram_total, `${bytes(sample.ram_used)} / ${bytes(sample.ram_total)}`))];
  }

  draw(recorded) {
    if (!window.Plotly) return; // not read yet: the next tick draws
    if (!recorded?.count) {
      this.plots.clear();
      return void clear(this.record, el("div", { class: "vt-empty" }, this.run.value ? t("no_record") : t("nothing_selected")));
    }
    const families = new Map();
    for (const [name, data] of Object.entries(recorded.series)) {
      if (/^gpu\/(util_percent|memory_gb)$/.test(name) && Object.keys(recorded.series).length > 4) continue;
      const family = name.split("/").at(-1);
      if (!families.has(family)) families.set(family, []);
      families.get(family).push([name.split("/").slice(0, -1).join(" "), data]);
    }
    const style = getComputedStyle(this.app.root);
    const grid = style.getPropertyValue("--vt-grid").trim();
    for (const [family, lines] of families) {
      if (!lines.some(([, data]) => floats(data.y).some(Number.isFinite))) continue;
      let plot = this.plots.get(family);
      if (!plot) {
        plot = el("div", { class: "vt-plot" });
        if (!this.plots.size) clear(this.record);
        this.plots.set(family, plot);
        this.record.append(el("article", { class: "vt-card" }, el("header", {}, el("h3", {}, UNITS[family] ? `${t(UNITS[family][0])} (${UNITS[family][1]})` : family)), plot));
      }
      const ticks = recorded.steps.filter((_, i) => i % Math.ceil(recorded.steps.length / 6) === 0);
      Plotly.react(plot, lines.map(([name, data]) => ({ x: floats(data.x), y: floats(data.y), name, mode: "lines", line: { width: 1.5 }, hovertemplate: "%{y:.4~g}" })),
        { uirevision: family, height: 220, margin: { l: 48, r: 8, t: 6, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified",
          font: { size: 11, color: style.getPropertyValue("--vt-ink-2").trim() }, legend: { orientation: "h", y: 1.12, font: { size: 10 } }, showlegend: lines.length > 1,
          xaxis: { gridcolor: grid, zeroline: false, ...(ticks.length ? { tickvals: ticks.map(([x]) => x), ticktext: ticks.map(([, step]) => `${t("step")} ${step}`) } : { title: { text: "s" } }) },
          yaxis: { gridcolor: grid, zeroline: false, rangemode: "tozero" } }, { displayModeBar: false, responsive: true });
    }
  }
}

export class HealthTab {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.at = -Infinity;
  }

  show() {
    this.at = -Infinity;
    this.tick();
  }

  news() {
    const key = this.app.state.runs.join();
    if (key !== this.key) this.at = -Infinity;
    this.key = key;
    this.tick();
  }

  async tick() {
    if (this.app.state.tab !== "health" || performance.now() - this.at < 5000) return;
    this.at = performance.now();
    const { app } = this;
    if (!app.state.runs.length) return void clear(this.root, el("div", { class: "vt-empty" }, t("nothing_selected")));
    const reply = await app.call("health", { runs: app.state.runs, lang: language() });
    if (reply.error) return void clear(this.root, el("div", { class: "vt-empty" }, reply.error));
    clear(this.root, reply.runs.map((run) => el("section", { class: "vt-health" },
      el("h2", {}, el("i", { class: "vt-dot", style: { background: app.colour(run.id) } }), app.title(run.id)),
      !run.observations.length ? el("div", { class: "vt-well" }, el("b", {}, `✓ ${t("all_well")}`), el("p", {}, `${reply.rules} ${t("all_well_help")}`))
        : run.observations.map((o) => this.row(run.id, o)))));
  }

  row(run, o) {
    const entry = this.app.runs.get(run);
    return el("article", { class: `vt-observation vt-${o.severity}` }, el("p", {}, o.text), o.advice && el("p", { class: "vt-meta" }, el("b", {}, `${t("try")}: `), o.advice),
      el("div", { class: "vt-row" }, o.metric && el("button", { class: "vt-mini", onclick: () => this.app.openCurve(o.metric, run, o.since) }, t("show_curve")),
        o.metric && entry?.rollouts > 0 && el("button", { class: "vt-mini", onclick: () => this.app.openSamples(run, o.since, "rollouts") }, t("show_samples"))));
  }
}
