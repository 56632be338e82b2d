// The page: state in the URL, one poll at a time, tabs. Mounted by gr.HTML (server functions) or, while Gradio is
// still starting, by the door's own page (the same functions over fetch).
import { clear, debounce, el, store, stored } from "./util.js";
import { language, setLanguage, t } from "./strings.js";
import { readView, TABS, viewAddress } from "./url.js";
import { Charts } from "./charts.js";
import { RunList } from "./runlist.js";
import { Samples } from "./samples.js";
import { RunsTab } from "./runs.js";
import { GpuTab, HealthTab } from "./status.js";

const COLOURS = ["#2f6fdb", "#e0662c", "#1c9a6c", "#b5439b", "#c99a06", "#0f9bb3", "#d64550", "#6a55d4", "#7a8a2a", "#8c6b52"];

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
    this.stats = { polls: 0, ms: [] };
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
    this.state = readView(location.search, this.boot.charts);
    this.build();
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
    addEventListener("popstate", () => {
      this.state = readView(location.search, this.boot.charts);
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

  writeUrl = debounce(150, () => history.replaceState(null, "", viewAddress(this.state)));

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
    this.list.draw();
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
      const newest = this.list.sorted().filter((entry) => entry.metrics).slice(0, this.boot.selected_at_start).map((entry) => entry.id);
      if (newest.join() !== this.state.runs.join()) {
        this.state.runs = newest;
        this.viewDirty = true;
      }
    }
    this.list.draw();
    if (before !== this.metricMark()) this.charts.refreshNames();
    this.tabs[this.state.tab].news?.();
  }

  metricMark() {
    return this.state.runs.map((run) => `${run}:${this.runs.get(run)?.metrics ?? 0}`).join();
  }

  select(runs) {
    this.state.runs = runs;
    this.state.chosen = true;
    this.charts.forget();
    this.fresh = true;
    this.list.draw();
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

    this.list = new RunList(this);
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
    clear(this.root, header, this.banner, el("div", { class: "vt-body" }, this.list.node, el("main", { class: "vt-main" }, Object.values(panes))));
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

// Reading and running Plotly takes most of a second, so nothing waits for it but the drawing itself.
function plotlyReady() {
  if (window.Plotly) return null;
  const script = document.querySelector('script[src$="/plotly.min.js"]')
    ?? document.head.appendChild(el("script", { src: new URL("plotly.min.js", import.meta.url).href }));
  return new Promise((resolve) => script.addEventListener("load", resolve));
}

async function mount(root, server, lang) {
  if (root.dataset.mounted) return;
  root.dataset.mounted = "1";
  // A shadow root keeps Gradio's styles out of the panel and the panel's out of Gradio.
  const shadow = root.attachShadow({ mode: "open" });
  const page = el("div", {});
  const style = el("link", { rel: "stylesheet", href: new URL("panel.css", import.meta.url).href });
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
