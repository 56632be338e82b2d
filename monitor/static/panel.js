// The page: state in the URL, one poll at a time, tabs. Mounted by gr.HTML (server functions) or, while Gradio is
// still starting, by the door's own page (the same functions over fetch).
import { clear, debounce, duration, el, number, store, stored } from "./util.js";
import { language, setLanguage, t } from "./strings.js";
import { Charts } from "./charts.js";
import { Samples } from "./samples.js";
import { RunsTab } from "./runs.js";
import { GpuTab, HealthTab } from "./status.js";

const COLOURS = ["#2f6fdb", "#e0662c", "#1c9a6c", "#b5439b", "#c99a06", "#0f9bb3", "#d64550", "#6a55d4", "#7a8a2a", "#8c6b52"];
const TABS = ["curves", "samples", "runs", "gpu", "health"];

class App {
  constructor(root, server, lang) {
    this.root = root;
    this.server = server;
    this.runs = new Map();
    this.labels = stored("labels", {});
    this.sequence = 0;
    this.session = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
    this.viewDirty = true;
    this.fresh = true;
    this.busy = false;
    this.stats = { polls: 0, bytes: 0, ms: [] };
    setLanguage(new URLSearchParams(location.search).get("lang") ?? stored("lang", null) ?? lang);
  }

  async start() {
    this.root.classList.add("vt");
    this.root.dataset.theme = stored("theme", null) ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    this.boot = await this.call("boot", { lang: language() });
    if (this.boot.error) {
      this.root.textContent = this.boot.error;
      return;
    }
    this.readUrl();
    this.build();
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
    addEventListener("popstate", () => {
      this.readUrl();
      this.showTab(this.state.tab);
      this.charts.refreshNames();
      this.changed();
    });
    await this.poll();
    await this.loop();
  }

  async call(name, request) {
    try {
      return await this.server[name](request);
    } catch (error) {
      return { error: String(error?.message ?? error), offline: true };
    }
  }

  // ---- state ----------------------------------------------------------------------------------------
  readUrl() {
    const query = new URLSearchParams(location.search);
    const list = (name) => (query.get(name) ? query.get(name).split("~").filter(Boolean) : null);
    const zoom = {};
    for (const item of list("zoom") ?? []) {
      const [name, from, to] = item.split("|");
      if (Number.isFinite(+from) && Number.isFinite(+to)) zoom[name] = [+from, +to];
    }
    this.state = {
      tab: TABS.includes(query.get("tab")) ? query.get("tab") : "curves",
      runs: list("runs") ?? [], chosen: query.has("runs"),
      charts: list("charts") ?? this.boot.charts, extra: list("extra") ?? [],
      smoothing: Math.min(0.99, Math.max(0, +query.get("smooth") || 0)),
      axis: ["step", "time", "tokens"].includes(query.get("x")) ? query.get("x") : "step",
      log: list("log") ?? [], search: query.get("find") ?? "", zoom, sync: query.get("sync") === "1",
      sample: { run: query.get("srun"), kind: query.get("skind"), step: query.has("sstep") ? +query.get("sstep") : null },
      mark: null,
    };
  }

  writeUrl = debounce(150, () => {
    const { state } = this;
    const query = new URLSearchParams(location.search);
    const put = (name, value) => (value ? query.set(name, value) : query.delete(name));
    put("tab", state.tab === "curves" ? "" : state.tab);
    put("runs", state.chosen ? state.runs.join("~") || "~" : "");
    put("extra", state.extra.join("~"));
    put("smooth", state.smoothing ? String(state.smoothing) : "");
    put("x", state.axis === "step" ? "" : state.axis);
    put("log", state.log.join("~"));
    put("find", state.search);
    put("sync", state.sync ? "1" : "");
    put("zoom", Object.entries(state.zoom).map(([name, [a, b]]) => `${name}|${+a.toPrecision(8)}|${+b.toPrecision(8)}`).join("~"));
    put("srun", state.tab === "samples" ? state.sample.run : "");
    put("skind", state.tab === "samples" ? state.sample.kind : "");
    put("sstep", state.tab === "samples" && state.sample.step !== null ? String(state.sample.step) : "");
    const text = query.toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
  });

  changed(remember = true) {
    this.viewDirty = true;
    if (remember) this.writeUrl();
    this.soon();
  }

  soon = debounce(30, () => this.poll());

  colour(run) {
    return this.labels[run]?.colour ?? COLOURS[this.order(run) % COLOURS.length];
  }

  order(run) {
    this.slots ??= new Map();
    if (!this.slots.has(run)) this.slots.set(run, this.slots.size);
    return this.slots.get(run);
  }

  title(run) {
    return this.labels[run]?.name ?? this.runs.get(run)?.title ?? run;
  }

  label(run, change) {
    this.labels[run] = { ...this.labels[run], ...change };
    store("labels", this.labels);
    this.drawList();
    this.charts.refreshAll();
  }

  // ---- polling --------------------------------------------------------------------------------------
  async loop() {
    for (;;) {
      const wait = this.root.dataset.loaded ? this.boot.refresh * 1000 : 200;
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (!document.hidden && this.root.isConnected) await this.poll();
    }
  }

  async poll() {
    if (this.busy || !this.charts) {
      this.again = true;
      return;
    }
    this.busy = true;
    const begin = performance.now();
    const request = { session: this.session, sequence: this.sequence };
    if (this.viewDirty || this.fresh) {
      const { runs, smoothing, axis } = this.state;
      const charts = this.state.tab === "curves" ? this.charts.wanted() : [];
      request.view = { runs, smoothing, axis, charts, fresh: this.fresh };
      this.viewDirty = false;
    }
    const reply = await this.call("poll", request);
    this.busy = false;
    if (reply.error) {
      this.tell(reply.offline ? t("connection") : reply.error);
      this.viewDirty = this.fresh = true;
      return;
    }
    if (reply.resync) {
      this.viewDirty = this.fresh = true;
      this.soon();
      return;
    }
    this.fresh = false;
    this.sequence = reply.sequence;
    if (reply.list) this.takeList(reply.list);
    if (reply.lines) this.charts.take(reply.lines);
    this.loading.hidden = !reply.loading;
    this.tell(reply.failure ?? "");
    this.root.dataset.loaded = reply.loading ? "" : "1";
    this.stats.polls++;
    this.stats.ms.push(performance.now() - begin);
    if (this.stats.ms.length > 500) this.stats.ms.shift();
    if (this.again) {
      this.again = false;
      this.soon();
    }
    this.tabs[this.state.tab].tick?.();
  }

  takeList(list) {
    const before = this.metricMark();
    if (list.full) this.runs.clear();
    for (const id of list.gone) {
      const entry = this.runs.get(id);
      if (entry && this.state.runs.includes(id)) this.runs.set(id, { ...entry, state: "deleted", why: "" });
      else this.runs.delete(id);
    }
    for (const entry of list.runs) this.runs.set(entry.id, entry);
    this.notes = list.notes;
    if (!this.state.chosen) {
      const newest = this.sorted().filter((entry) => entry.metrics).slice(0, this.boot.selected_at_start).map((entry) => entry.id);
      if (newest.join() !== this.state.runs.join()) {
        this.state.runs = newest;
        this.viewDirty = true;
      }
    }
    this.drawList();
    if (before !== this.metricMark()) this.charts.refreshNames();
    this.tabs[this.state.tab].news?.();
  }

  metricMark() {
    return this.state.runs.map((run) => `${run}:${this.runs.get(run)?.metrics ?? 0}`).join();
  }

  sorted() {
    const rank = (entry) => (this.labels[entry.id]?.pinned ? 0 : 1);
    return [...this.runs.values()].sort((a, b) => rank(a) - rank(b) || b.written - a.written || a.id.localeCompare(b.id));
  }

  select(runs) {
    this.state.runs = runs;
    this.state.chosen = true;
    this.charts.forget();
    this.fresh = true;
    this.drawList();
    this.charts.refreshNames().then(() => this.charts.refreshAll());
    this.changed();
    this.tabs[this.state.tab].news?.();
  }

  tell(text) {
    this.banner.textContent = text;
    this.banner.hidden = !text;
  }

  // ---- building -------------------------------------------------------------------------------------
  build() {
    const { state } = this;
    this.banner = el("div", { class: "vt-banner", role: "status", hidden: true });
    this.loading = el("span", { class: "vt-loading", hidden: true }, t("loading"));
    const tabButtons = TABS.map((tab) => el("button", { class: "vt-tab", data: { tab }, onclick: () => this.showTab(tab) }, t(tab)));
    const theme = el("button", { class: "vt-mini", title: t("theme"), onclick: () => {
      this.root.dataset.theme = this.root.dataset.theme === "dark" ? "light" : "dark";
      store("theme", this.root.dataset.theme);
      this.charts.refreshAll();
      this.tabs[this.state.tab].news?.();
    } }, "◐");
    const lang = el("button", { class: "vt-mini", onclick: () => {
      const next = language() === "zh" ? "en" : "zh";
      store("lang", next);
      const query = new URLSearchParams(location.search);
      query.set("lang", next);
      location.search = query.toString();
    } }, language() === "zh" ? "EN" : "中文");
    const copy = el("button", { class: "vt-mini", onclick: async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        copy.textContent = t("copied");
      } catch {
        prompt(t("copy"), location.href); // no clipboard outside https or localhost
      }
      setTimeout(() => (copy.textContent = t("copy")), 1500);
    } }, t("copy"));
    const header = el("header", { class: "vt-top" },
      el("div", { class: "vt-brand" }, el("b", {}, "verl_training"), el("span", {}, this.boot.root)),
      el("nav", { class: "vt-tabs" }, tabButtons), el("span", { class: "vt-spring" }), this.loading, copy, lang, theme);

    this.listFilter = el("input", { type: "search", placeholder: t("search_runs"), class: "vt-input", oninput: () => this.drawList() });
    this.listBody = el("div", { class: "vt-runlist" });
    const quick = el("div", { class: "vt-quick" },
      el("button", { class: "vt-mini", onclick: () => this.select(this.filtered().slice(0, 50).map((e) => e.id)) }, t("select_all")),
      el("button", { class: "vt-mini", onclick: () => this.select([]) }, t("select_none")),
      el("button", { class: "vt-mini", onclick: () => this.select(this.filtered().slice(0, 1).map((e) => e.id)) }, t("newest")));
    const side = el("aside", { class: "vt-side" }, this.listFilter, quick, this.listBody);

    const smoothValue = el("output", {}, state.smoothing.toFixed(2));
    const smooth = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing, "aria-label": t("smoothing"), oninput: () => {
      state.smoothing = +smooth.value;
      smoothValue.textContent = state.smoothing.toFixed(2);
      this.smoothSoon();
    } });
    this.smoothSoon = debounce(200, () => this.changed());
    const axis = el("select", { class: "vt-input", "aria-label": t("axis"), onchange: () => {
      state.axis = axis.value;
      state.zoom = {};
      this.charts.forget();
      this.changed();
    } }, ["step", "time", "tokens"].map((name) => el("option", { value: name, selected: state.axis === name }, t(name))));
    const find = el("input", { type: "search", class: "vt-input", placeholder: t("search_metrics"), value: state.search, oninput: debounce(200, () => {
      state.search = find.value.trim();
      this.charts.layout();
      this.changed();
    }) });
    const sync = el("input", { type: "checkbox", checked: state.sync, onchange: () => {
      state.sync = sync.checked;
      this.changed();
    } });
    this.healthStrip = el("div", { class: "vt-strip" });
    const toolbar = el("div", { class: "vt-toolbar" }, find,
      el("label", {}, t("smoothing"), smooth, smoothValue), el("label", {}, t("axis"), axis), el("label", {}, sync, t("zoom_sync")));
    this.chartRoot = el("div", { class: "vt-charts" });
    this.charts = new Charts(this, this.chartRoot);
    const panes = { curves: el("div", { class: "vt-pane" }, toolbar, this.healthStrip, this.chartRoot) };
    for (const tab of TABS.slice(1)) panes[tab] = el("div", { class: "vt-pane" });
    this.tabs = {
      curves: { show: () => this.charts.refreshAll(), tick: () => this.strip() },
      samples: new Samples(this, panes.samples), runs: new RunsTab(this, panes.runs),
      gpu: new GpuTab(this, panes.gpu), health: new HealthTab(this, panes.health),
    };
    this.panes = panes;
    this.tabButtons = tabButtons;
    clear(this.root, header, this.banner, el("div", { class: "vt-body" }, side, el("main", { class: "vt-main" }, Object.values(panes))));
    this.showTab(state.tab);
  }

  showTab(tab) {
    this.state.tab = tab;
    for (const [name, pane] of Object.entries(this.panes)) pane.hidden = name !== tab;
    for (const button of this.tabButtons) button.classList.toggle("vt-on", button.dataset.tab === tab);
    this.tabs[tab].show?.();
    this.changed();
  }

  async strip() {
    const now = performance.now();
    const key = this.state.runs.join();
    if (this.stripKey === key && now - this.stripAt < 10000) return;
    this.stripAt = now;
    this.stripKey = key;
    if (!this.state.runs.length) return void clear(this.healthStrip);
    const reply = await this.call("health", { runs: this.state.runs, lang: language() });
    if (reply.error) return;
    const chips = reply.runs.flatMap((run) => run.observations.filter((o) => o.severity !== "info").map((o) => ({ ...o, run: run.id })));
    clear(this.healthStrip, chips.slice(0, 4).map((o) => el("button", { class: `vt-chip vt-${o.severity}`, title: o.advice, onclick: () => this.showTab("health") },
      el("i", { style: { background: this.colour(o.run) } }), o.text)),
    chips.length > 4 && el("button", { class: "vt-chip", onclick: () => this.showTab("health") }, `+${chips.length - 4}`));
  }

  filtered() {
    const words = this.listFilter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (entry) => `${entry.id} ${this.title(entry.id)} ${entry.method} ${entry.model} ${t(entry.state)} ${entry.state}`.toLowerCase();
    return this.sorted().filter((entry) => words.every((word) => text(entry).includes(word)));
  }

  drawList() {
    if (!this.runs.size) {
      clear(this.listBody);
      const notes = (this.notes ?? []).slice(0, 5).map((note) => el("div", { class: "vt-note" }, `${t("notes")}: ${note}`));
      clear(this.chartRoot, el("div", { class: "vt-empty" }, el("h2", {}, t("no_runs")), el("p", {}, `${t("no_runs_help")} `, el("code", {}, this.boot.root)), el("p", {}, t("no_runs_hint")), notes));
      return;
    }
    this.items ??= new Map();
    const shown = this.filtered().slice(0, 500);
    const nodes = shown.map((entry) => this.listItem(entry));
    const same = nodes.length === this.listBody.children.length && nodes.every((node, i) => node === this.listBody.children[i]);
    if (!same) clear(this.listBody, nodes, (this.notes ?? []).slice(0, 3).map((note) => el("div", { class: "vt-note" }, `${t("notes")}: ${note}`)));
  }

  // A list item is built once and then only its changing texts are set: a new step must not cost a new list.
  listItem(entry) {
    let item = this.items.get(entry.id);
    if (!item) {
      const box = el("input", { type: "checkbox", "aria-label": entry.id, onchange: () => {
        const rest = this.state.runs.filter((run) => run !== entry.id);
        this.select(box.checked ? [...rest, entry.id] : rest);
      } });
      const parts = { box, title: el("b", {}), state: el("span", {}), meta: el("span", { class: "vt-meta" }), bar: el("i", {}), foot: el("span", { class: "vt-meta" }) };
      const colour = el("input", { type: "color", title: t("colour"), oninput: () => this.label(entry.id, { colour: colour.value }) });
      const pin = el("button", { class: "vt-mini", title: t("pin"), onclick: () => this.label(entry.id, { pinned: !this.labels[entry.id]?.pinned }) }, "☆");
      const rename = el("button", { class: "vt-mini", title: t("rename"), onclick: () => {
        const name = prompt(t("rename"), this.title(entry.id));
        if (name !== null) this.label(entry.id, { name: name.trim() || undefined });
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
    const selected = this.state.runs.includes(entry.id);
    parts.box.checked = selected;
    item.node.classList.toggle("vt-selected", selected);
    const colour = this.colour(entry.id);
    if (parts.colour.value !== colour) parts.colour.value = colour;
    set(parts.title, this.title(entry.id));
    parts.title.title = entry.id;
    set(parts.state, entry.state === "samples" ? t("state_samples") : t(entry.state));
    parts.state.className = `vt-pill vt-s-${entry.state}`;
    parts.state.title = entry.why;
    set(parts.pin, this.labels[entry.id]?.pinned ? "★" : "☆");
    set(parts.meta, [entry.method?.toUpperCase(), entry.model?.split("/").at(-1)].filter(Boolean).join(" · "));
    const steps = entry.step < 0 ? "" : `${t("step")} ${entry.step}${entry.total ? ` / ${entry.total}` : ""}`;
    const eta = entry.eta !== null && entry.eta !== undefined ? `${duration(entry.eta)} ${t("left")}` : "";
    const score = entry.last !== null ? `${t("validation")} ${number(entry.last, 3)} (${t("best")} ${number(entry.best, 3)})` : "";
    set(parts.foot, [steps, eta, score].filter(Boolean).join(" · "));
    parts.foot.title = entry.validation ? `${entry.validation}\n${t("best")} ${t("at")} ${entry.best_step}` : "";
    parts.bar.style.width = entry.total ? `${Math.min(100, (100 * Math.max(0, entry.step)) / entry.total)}%` : "0";
    return item.node;
  }

  openSamples(run, step, kind) {
    this.state.sample = { run, step, kind };
    this.showTab("samples");
  }

  openCurve(metric, run, step) {
    if (metric && !this.state.charts.includes(metric) && !this.state.extra.includes(metric)) this.state.extra = [metric, ...this.state.extra];
    this.state.search = "";
    this.state.mark = { metric, x: step };
    if (!this.state.runs.includes(run)) this.select([...this.state.runs, run]);
    this.showTab("curves");
    this.charts.layout();
    this.charts.cards.get(metric)?.node.scrollIntoView({ block: "center" });
  }
}

// The same functions over fetch, for the page that the door serves while Gradio starts.
function fetchServer(base) {
  return new Proxy({}, { get: (_, name) => async (request) => {
    const response = await fetch(`${base}/panel/api/${name}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request) });
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
    return response.json();
  } });
}

async function plotlyReady() {
  while (!window.Plotly) await new Promise((resolve) => setTimeout(resolve, 20));
}

async function mount(root, server, lang) {
  if (root.dataset.mounted) return;
  root.dataset.mounted = "1";
  // A shadow root keeps Gradio's styles out of the panel and the panel's out of Gradio.
  const shadow = root.attachShadow({ mode: "open" });
  const page = el("div", {});
  const style = el("link", { rel: "stylesheet", href: new URL(`panel.css${new URL(import.meta.url).search}`, import.meta.url).href });
  const styled = new Promise((resolve) => (style.onload = style.onerror = resolve));
  shadow.append(style, page);
  const app = new App(page, server, lang);
  window.vtPanel.app = app;
  await styled;
  const started = app.start(); // asks for the data while Plotly is still being read
  await plotlyReady();
  // Plotly puts its own rules into the document's head, which a shadow root does not see.
  const rules = [...document.styleSheets].filter((sheet) => sheet.ownerNode?.id?.startsWith("plotly.js-style")).flatMap((sheet) => [...sheet.cssRules]);
  shadow.append(el("style", {}, rules.map((rule) => rule.cssText).join("\n")));
  app.charts?.drawWaiting();
  await started;
}

window.vtPanel = { mount };
const early = document.getElementById("vt-panel");
if (early?.dataset.base !== undefined) mount(early, fetchServer(early.dataset.base), early.dataset.lang);
