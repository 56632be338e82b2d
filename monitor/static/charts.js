// Curves: one Plotly chart per metric, fed with increments; a zoom is never touched by new data.
import { clear, el, number, save, store, stored } from "./util.js";
import { t } from "./strings.js";
import { figure } from "./figure.js";
import { Line } from "./line.js";

const MAX_PER_SECTION = 60;
// A change of less than half a pixel is not drawn at once, but at the latest after this time.
const STALE_MS = 10000;

export class Charts {
  // app: {state, boot, colour(run), title(run), changed(), server, openSamples(run, step), entry(run)}
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.cards = new Map();
    this.names = { metrics: [], plain: {} };
    this.dirty = new Set();
    this.times = [];
    this.open = new Set(stored("open", []));
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const card = this.cards.get(entry.target.dataset.metric);
        if (card) card.visible = entry.isIntersecting;
      }
      this.app.changed(false);
    }, { rootMargin: "150px" });
    this.resizer = new ResizeObserver((entries) => {
      for (const entry of entries) {
        const card = this.cards.get(entry.target.dataset.metric);
        if (card?.drawn && card.visible && entry.contentRect.width !== card.width) {
          card.width = entry.contentRect.width;
          Plotly.Plots.resize(card.plot);
          this.app.changed(false);
        }
      }
    });
  }

  async refreshNames() {
    if (!this.app.state.runs.length) {
      this.names = { metrics: [], plain: {} };
    } else {
      const reply = await this.app.call("metrics", { runs: this.app.state.runs });
      if (reply.error) return;
      this.names = reply;
    }
    this.layout();
  }

  // Which charts belong in which section, for the present search and the present runs.
  sections() {
    const { boot, state } = this.app;
    const { metrics, plain } = this.names;
    if (state.search) {
      const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
      const hit = (name) => words.every((word) => name.toLowerCase().includes(word));
      const names = Object.keys(plain).filter((n) => hit(n) || plain[n].some(hit));
      const drawn = new Set(names.flatMap((n) => plain[n]));
      const found = [...names, ...metrics.filter((n) => hit(n) && !drawn.has(n))];
      return [{ id: "matches", title: t("matches"), items: found, open: true }];
    }
    const main = [...new Set([...state.charts, ...state.extra])].filter((n) => n in plain || metrics.includes(n));
    const sections = [{ id: "main", title: t("main"), items: main, open: true }];
    const grouped = new Map(boot.groups.map((group) => [group.id, []]));
    const patterns = boot.groups.map((group) => [group.id, new RegExp(group.match)]);
    for (const metric of metrics) grouped.get(patterns.find(([, p]) => p.test(metric))?.[0])?.push(metric);
    for (const group of boot.groups) {
      const items = grouped.get(group.id);
      if (items.length) sections.push({ id: group.id, title: group.title, items, open: this.open.has(group.id) });
    }
    return sections;
  }

  layout() {
    const { state } = this.app;
    if (!state.runs.length || !this.names.metrics.length) {
      for (const card of this.cards.values()) this.drop(card);
      const text = !this.app.runs.size ? null : state.runs.length ? t("no_metrics") : t("nothing_selected");
      clear(this.root, text && el("div", { class: "vt-empty" }, text));
      return;
    }
    const wanted = new Map();
    const nodes = this.sections().map((section) => {
      const count = el("span", { class: "vt-count" }, String(section.items.length));
      const body = el("div", { class: "vt-grid" });
      if (section.open) {
        for (const name of section.items.slice(0, MAX_PER_SECTION)) {
          if (wanted.has(name)) continue;
          wanted.set(name, true);
          body.append(this.card(name).node);
        }
        if (section.items.length > MAX_PER_SECTION) {
          body.append(el("div", { class: "vt-note" }, `${section.items.length - MAX_PER_SECTION} ${t("more")}`));
        }
        if (!section.items.length) body.append(el("div", { class: "vt-note" }, t("no_metric_matches")));
      }
      const toggle = () => {
        if (["main", "matches"].includes(section.id)) return;
        this.open.has(section.id) ? this.open.delete(section.id) : this.open.add(section.id);
        store("open", [...this.open]);
        this.layout();
        this.app.changed();
      };
      const head = el("button", { class: "vt-section-head", onclick: toggle, "aria-expanded": String(section.open) },
        el("span", { class: "vt-caret" }, section.open ? "▾" : "▸"), section.title, count);
      return el("section", { class: "vt-section" }, head, body);
    });
    for (const [name, card] of this.cards) if (!wanted.has(name)) this.drop(card);
    clear(this.root, nodes);
    this.app.changed(false);
  }

  card(name) {
    if (this.cards.has(name)) return this.cards.get(name);
    const { boot, state } = this.app;
    const plain = boot.names[name];
    const keys = this.names.plain[name] ?? [];
    const plot = el("div", { class: "vt-plot" });
    const readout = el("div", { class: "vt-readout" });
    const button = (text, title, action) => el("button", { class: "vt-mini", title, onclick: action }, text);
    const log = button(state.log.includes(name) ? t("log") : t("linear"), "y", () => {
      state.log = state.log.includes(name) ? state.log.filter((n) => n !== name) : [...state.log, name];
      log.textContent = state.log.includes(name) ? t("log") : t("linear");
      this.draw(card);
      this.app.changed();
    });
    const node = el("article", { class: "vt-card", data: { metric: name } },
      el("header", {},
        el("h3", { title: plain ? `${keys.join(", ")}\n\n${plain.text}` : name }, name),
        plain && el("span", { class: "vt-key", title: plain.text }, keys.join(", ")),
        el("span", { class: "vt-tools" }, log,
          !state.charts.includes(name) && button(state.extra.includes(name) ? "★" : "☆", t(state.extra.includes(name) ? "unpin" : "pin"), (event) => {
            const pinned = state.extra.includes(name);
            state.extra = pinned ? state.extra.filter((n) => n !== name) : [...state.extra, name];
            event.target.textContent = pinned ? "☆" : "★";
            this.layout();
            this.app.changed();
          }),
          button("⤢", t("wide"), () => {
            node.classList.toggle("vt-wide");
            this.draw(card);
          }),
          button("⟲", t("reset"), () => this.resetZoom(card)),
          button(t("csv"), "CSV", () => this.csv(name)),
          button(t("png"), "PNG", () => Plotly.downloadImage(plot, { format: "png", scale: 2, width: 1200, height: 600, filename: name.replaceAll("/", "_") })),
        )),
      plot, readout);
    const card = { name, node, plot, readout, lines: new Map(), visible: false, drawn: false, width: 0 };
    this.cards.set(name, card);
    this.observer.observe(node);
    node.dataset.metric = name;
    plot.dataset.metric = name;
    this.resizer.observe(plot);
    return card;
  }

  drop(card) {
    this.observer.unobserve(card.node);
    this.resizer.unobserve(card.plot);
    if (card.drawn) Plotly.purge(card.plot);
    this.cards.delete(card.name);
  }

  async csv(name) {
    const reply = await this.app.call("export_csv", { runs: this.app.state.runs, metric: name });
    if (reply.error) this.app.tell(reply.error);
    else save(`${name.replaceAll("/", "_")}.csv`, reply.csv, "text/csv");
  }

  // The charts the server should keep up to date: those on screen.
  wanted() {
    const { zoom, runs } = this.app.state;
    const scale = this.scale();
    const density = runs.length > 4 ? 0.5 : 0.8; // buckets per pixel; each keeps its lowest and highest value
    return [...this.cards.values()].filter((card) => card.visible).map((card) => ({
      id: card.name, metric: card.name, pixels: Math.round((card.plot.clientWidth || 400) * density),
      span: zoom[card.name] ? zoom[card.name].map((x) => x / scale) : null,
    }));
  }

  scale() {
    return this.app.state.axis === "time" ? 1 / 3600 : 1;
  }

  take(updates) {
    const scale = this.scale();
    for (const update of updates) {
      const card = this.cards.get(update.chart);
      if (!card) continue;
      let line = card.lines.get(update.run);
      if (!line) card.lines.set(update.run, (line = new Line()));
      card.moved = (card.moved ?? 0) + this.pixelsMoved(card, line.take(update, scale));
      if (card.moved >= 0.5 || performance.now() - (card.drawnAt ?? 0) > STALE_MS) this.dirty.add(card);
    }
    this.flush();
  }

  // How far, in pixels, an update moved a line; infinite when that cannot be told.
  pixelsMoved(card, change) {
    const layout = card.drawn && card.plot._fullLayout;
    if (!layout || !change?.before) return Infinity;
    const [x0, low0, high0] = change.before;
    const [x1, low1, high1] = change.after;
    const far = (axis, a, b) => (a === b ? 0 : Math.abs(axis.d2p(a) - axis.d2p(b)));
    const moved = Math.max(far(layout.xaxis, x0, x1), far(layout.yaxis, low0, low1), far(layout.yaxis, high0, high1));
    return Number.isNaN(moved) ? Infinity : moved;
  }

  // Charts whose data came before Plotly was there.
  drawWaiting() {
    for (const card of this.cards.values()) if (!card.drawn && card.lines.size) this.dirty.add(card);
    this.flush();
  }

  refreshAll() {
    for (const card of this.cards.values()) if (card.drawn) this.dirty.add(card);
    this.flush();
  }

  flush() {
    const begin = performance.now();
    let drew = 0;
    for (const card of this.dirty) {
      this.dirty.delete(card);
      this.draw(card);
      drew++;
      if (!this.shown && card.drawn) {
        this.shown = true;
        setTimeout(() => this.flush()); // let the first chart be seen before the others are drawn
        break;
      }
    }
    if (drew) {
      this.times.push({ charts: drew, ms: performance.now() - begin });
      if (this.times.length > 500) this.times.shift();
    }
  }

  draw(card) {
    if (!window.Plotly || !card.node.isConnected) return;
    card.moved = 0;
    card.drawnAt = performance.now();
    const { app } = this;
    const { state } = app;
    const { traces, layout, missing } = figure(card, app);
    card.readout.textContent = card.readout.title = missing.join(" · ");
    card.node.classList.toggle("vt-nodata", !traces.length);
    const zoom = state.zoom[card.name];
    if (zoom && !card.drawn) {
      layout.xaxis.range = zoom.slice();
      layout.xaxis.autorange = false;
    }
    const config = { displayModeBar: false, responsive: false, showTips: false, doubleClick: "reset" };
    if (!card.drawn) {
      card.drawn = true;
      card.width = card.plot.clientWidth;
      Plotly.newPlot(card.plot, traces, layout, config);
      this.wire(card);
    } else {
      Plotly.react(card.plot, traces, layout, config);
    }
    if (traces.length && !app.root.dataset.painted) app.root.dataset.painted = String(Math.round(performance.now()));
    card.node.dataset.points = String(traces.reduce((sum, trace) => sum + trace.x.length, 0));
  }

  wire(card) {
    const { app } = this;
    card.plot.on("plotly_relayout", (event) => {
      if (event["xaxis.range[0]"] !== undefined || event["xaxis.range"]) {
        const range = event["xaxis.range"] ?? [event["xaxis.range[0]"], event["xaxis.range[1]"]];
        this.setZoom(card, range.map(Number));
      } else if (event["xaxis.autorange"]) {
        this.setZoom(card, null);
      }
    });
    card.plot.on("plotly_hover", (event) => this.crosshair(card, event.xvals?.[0] ?? event.points?.[0]?.x));
    card.plot.on("plotly_unhover", () => this.crosshair(card, null));
    card.plot.on("plotly_click", (event) => {
      const point = event.points?.[0];
      const run = point?.data?.meta;
      const entry = run && app.runs.get(run);
      if (entry && app.state.axis === "step" && (entry.rollouts || entry.validations)) app.openSamples(run, Math.round(point.x), entry.rollouts ? "rollouts" : "validation");
    });
  }

  setZoom(card, range) {
    const { state } = this.app;
    if (this.syncing) return;
    const targets = state.sync ? [...this.cards.values()] : [card];
    for (const target of targets) {
      if (range) state.zoom[target.name] = range;
      else delete state.zoom[target.name];
      if (target !== card && target.drawn) {
        this.syncing = true;
        Plotly.relayout(target.plot, range ? { "xaxis.range": range.slice() } : { "xaxis.autorange": true }).finally(() => (this.syncing = false));
      }
    }
    this.app.changed();
  }

  resetZoom(card) {
    if (!card.drawn) return;
    Plotly.relayout(card.plot, { "xaxis.autorange": true, "yaxis.autorange": true });
  }

  // A hairline at the same x in every chart on screen.
  crosshair(source, x) {
    for (const card of this.cards.values()) {
      if (!card.visible || !card.drawn) continue;
      let hair = card.hair;
      if (!hair) card.plot.append((hair = card.hair = el("div", { class: "vt-hair" }, el("span", {}))));
      else if (!hair.isConnected) card.plot.append(hair);
      const layout = card.plot._fullLayout;
      const axis = layout?.xaxis;
      const pixel = x === null || x === undefined || card === source ? -1 : axis?.d2p(x);
      if (!(pixel >= 0) || pixel > axis._length) {
        hair.style.display = "none";
        continue;
      }
      hair.style.display = "block";
      hair.style.left = `${axis._offset + pixel}px`;
      hair.firstChild.textContent = this.valuesAt(card, x);
    }
  }

  valuesAt(card, x) {
    const parts = [];
    for (const run of this.app.state.runs) {
      const line = card.lines.get(run);
      if (!line?.x.length) continue;
      let low = 0, high = line.x.length - 1;
      while (low < high) {
        const mid = (low + high) >> 1;
        if (line.x[mid] < x) low = mid + 1;
        else high = mid;
      }
      parts.push(number(line.y[low]));
    }
    return parts.slice(0, 4).join("  ");
  }

  forget() {
    for (const card of this.cards.values()) card.lines.clear();
  }
}
