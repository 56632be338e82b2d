// Samples: answers grouped by prompt, with filters, a histogram of scores and the same prompt across steps.
import { clear, debounce, el, number } from "./util.js";
import { t } from "./strings.js";

export class Samples {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.filter = {};
    this.page = 0;
    this.ticket = 0;
    this.load = debounce(60, () => this.fetch());
    this.build();
  }

  build() {
    const change = () => {
      this.page = 0;
      this.readFilter();
      this.load();
    };
    const slow = debounce(250, change);
    const input = (props) => el("input", { class: "vt-input", oninput: slow, ...props });
    const number = (placeholder, size = "vt-narrow") => input({ type: "number", step: "any", placeholder, class: `vt-input ${size}` });
    this.runSelect = el("select", { class: "vt-input", "aria-label": t("run"), onchange: () => this.go({ run: this.runSelect.value, step: null, kind: null }) });
    this.kindSelect = el("select", { class: "vt-input", onchange: () => this.go({ kind: this.kindSelect.value, step: null }) });
    this.stepRange = el("input", { type: "range", min: 0, max: 0, "aria-label": t("step"), oninput: () => this.go({ step: this.steps[+this.stepRange.value] }) });
    this.stepLabel = el("output", { class: "vt-step" });
    const move = (by) => () => this.go({ step: this.steps[Math.min(this.steps.length - 1, Math.max(0, +this.stepRange.value + by))] });
    this.fields = {
      text: input({ type: "search", placeholder: t("text"), class: "vt-input vt-broad" }), regex: el("input", { type: "checkbox", onchange: change }),
      low: number(t("min_score")), high: number(t("max_score"), "vt-small"), shortest: number(t("min_length")), longest: number(t("max_score"), "vt-small"),
      outcome: el("select", { class: "vt-input", onchange: change }, [["", "any"], ["wrong", "wrong"], ["right", "right"], ["mixed", "mixed"]].map(([value, key]) => el("option", { value }, t(key)))),
      truncated: el("input", { type: "checkbox", onchange: change }),
      sort: el("select", { class: "vt-input", onchange: change }, [["", "as_written"], ["worst", "worst"], ["best", "best_first"], ["spread", "spread"], ["longest", "longest"]].map(([value, key]) => el("option", { value }, t(key)))),
    };
    const f = this.fields;
    this.bar = el("div", { class: "vt-toolbar" }, this.runSelect, this.kindSelect, el("button", { class: "vt-mini", onclick: move(-1), "aria-label": "-" }, "◀"),
      this.stepRange, el("button", { class: "vt-mini", onclick: move(1), "aria-label": "+" }, "▶"), this.stepLabel);
    this.filters = el("div", { class: "vt-toolbar" }, f.text, el("label", {}, f.regex, t("regex")), f.low, f.high, f.shortest, f.longest, f.outcome,
      el("label", {}, f.truncated, t("truncated")), el("label", {}, t("sort"), f.sort), el("button", { class: "vt-mini", onclick: () => this.reset() }, t("clear")));
    this.summary = el("div", { class: "vt-summary" });
    this.list = el("div", { class: "vt-groups" });
    this.pager = el("div", { class: "vt-pager" });
    this.empty = el("div", { class: "vt-empty", hidden: true }, el("h2", {}, t("no_samples")), el("p", {}, t("no_samples_help")));
    this.full = el("div", {}, this.filters, this.summary, this.list, this.pager);
    clear(this.root, this.bar, this.empty, this.full);
  }

  reset() {
    for (const field of Object.values(this.fields)) field.type === "checkbox" ? (field.checked = false) : (field.value = "");
    this.page = 0;
    this.readFilter();
    this.load();
  }

  readFilter() {
    const f = this.fields;
    const value = (field) => (field.value === "" ? null : +field.value);
    this.filter = { text: f.text.value, regex: f.regex.checked, low: value(f.low), high: value(f.high), shortest: value(f.shortest),
      longest: value(f.longest), outcome: f.outcome.value, truncated: f.truncated.checked };
  }

  go(change) {
    Object.assign(this.app.state.sample, change);
    this.page = 0;
    this.app.writeUrl();
    this.load();
  }

  show() {
    const { app } = this;
    if (!app.runs.size) return this.nothing(); // the list is still to come: the link's own choice must stay
    const withSamples = app.list.sorted().filter((e) => e.rollouts || e.validations || e.results);
    const sample = app.state.sample;
    if (!sample.run || !app.runs.has(sample.run)) {
      const selected = withSamples.find((entry) => app.state.runs.includes(entry.id));
      sample.run = (selected ?? withSamples[0])?.id ?? null;
    }
    clear(this.runSelect, withSamples.map((e) => el("option", { value: e.id, selected: e.id === sample.run }, app.title(e.id))));
    this.load();
  }

  news() {
    const entry = this.app.runs.get(this.app.state.sample.run);
    const mark = entry ? `${entry.rollouts}|${entry.validations}|${entry.results}` : "";
    if (mark !== this.mark) {
      this.mark = mark;
      this.show();
    }
  }

  async fetch() {
    const { sample } = this.app.state;
    const ticket = ++this.ticket;
    if (!sample.run) return this.nothing();
    const begin = performance.now();
    const reply = await this.app.call("samples", { run: sample.run, kind: sample.kind, step: sample.step, filter: this.filter, sort: this.fields.sort.value, page: this.page });
    if (ticket !== this.ticket) return;
    if (reply.error) {
      clear(this.summary, el("div", { class: "vt-note vt-bad" }, reply.error));
      clear(this.list);
      return;
    }
    if (!reply.kinds.length) return this.nothing();
    this.empty.hidden = true;
    this.full.hidden = false;
    this.draw(reply);
    this.root.dataset.ms = String(Math.round(performance.now() - begin));
    this.root.dataset.matched = String(reply.matched);
  }

  nothing() {
    this.empty.hidden = false;
    this.full.hidden = true;
    clear(this.kindSelect);
    this.stepLabel.textContent = "";
  }

  draw(reply) {
    this.reply = reply;
    this.steps = reply.steps;
    const { sample } = this.app.state;
    sample.kind = reply.kind;
    clear(this.kindSelect, reply.kinds.map((kind) => el("option", { value: kind, selected: kind === reply.kind }, t(kind === "validation" ? "validation_kind" : kind))));
    const at = reply.steps.indexOf(reply.step);
    this.stepRange.max = String(Math.max(0, reply.steps.length - 1));
    this.stepRange.value = String(at);
    this.stepLabel.textContent = reply.kind === "results" ? reply.results[reply.step] : `${t("step")} ${reply.step}`;
    const chip = (label, value) => el("span", { class: "vt-fact" }, el("small", {}, label), number(value, 3));
    const facts = Object.entries(reply.metrics ?? this.lastMetrics ?? {});
    if (reply.metrics) this.lastMetrics = reply.metrics;
    clear(this.summary, el("div", { class: "vt-facts" },
      el("span", { class: "vt-fact" }, el("small", {}, t("total")), `${reply.matched} ${t("of")} ${reply.total}`),
      el("span", { class: "vt-fact" }, el("small", {}, t("of_groups")), String(reply.group_count)),
      facts.filter(([name]) => reply.kind !== "results" || name !== "zero_advantage_share").map(([name, value]) => chip(t(`fact_${name}`), value))), this.histogram(reply.histogram));
    if (!reply.groups.length) clear(this.list, el("div", { class: "vt-empty" }, t("nothing_matches")));
    else clear(this.list, reply.groups.map((group) => this.group(group)));
    const turn = (by) => () => {
      this.page = reply.page + by;
      this.fetch();
      this.root.scrollIntoView();
    };
    clear(this.pager, reply.pages > 1 && [el("button", { class: "vt-mini", disabled: reply.page === 0, onclick: turn(-1) }, "◀"),
      `${t("page")} ${reply.page + 1} / ${reply.pages}`, el("button", { class: "vt-mini", disabled: reply.page >= reply.pages - 1, onclick: turn(1) }, "▶")]);
  }

  histogram({ edges, counts, missing }) {
    if (!counts.length) return missing ? el("div", { class: "vt-note" }, `${missing} ${t("missing_scores")}`) : null;
    const top = Math.max(...counts, 1);
    const bars = counts.map((count, i) => el("div", { class: "vt-hist-bar", title: `${t("score")} ${number(edges[i], 3)} – ${number(edges[i + 1], 3)}: ${count}`,
      onclick: () => {
        this.fields.low.value = edges[i];
        this.fields.high.value = edges[i + 1];
        this.page = 0;
        this.readFilter();
        this.load();
      } }, el("i", { style: { height: `${Math.round((100 * count) / top)}%` } })));
    return el("div", { class: "vt-hist" }, el("div", { class: "vt-hist-bars" }, bars),
      el("div", { class: "vt-hist-axis" }, el("span", {}, number(edges[0], 3)), el("span", {}, t("score")), el("span", {}, number(edges.at(-1), 3))));
  }

  group(group) {
    const outcome = group.size > 1 && group.std < 1e-9 ? "same" : "";
    const history = el("div", {});
    const promptText = this.text(group.prompt, this.filter.text);
    const more = group.prompt_length > group.prompt.length && el("button", { class: "vt-mini", onclick: async () => {
      const reply = await this.whole(group.first);
      if (!reply.error) clear(promptText, reply.prompt);
    } }, t("show_all"));
    return el("section", { class: "vt-group" },
      el("header", {}, el("b", {}, t("prompt")), el("span", { class: "vt-fact" }, el("small", {}, t("group_mean")), number(group.mean, 3)),
        el("span", { class: `vt-fact ${outcome && "vt-warn"}` }, el("small", {}, t("group_std")), number(group.std, 3)),
        el("span", { class: "vt-meta" }, `n = ${group.size}`), el("span", { class: "vt-spring" }),
        this.reply.kind !== "results" && el("button", { class: "vt-mini", onclick: () => this.history(group, history) }, t("history"))),
      el("div", { class: "vt-prompt" }, promptText, more),
      group.truth && el("div", { class: "vt-truth" }, el("small", {}, t("truth")), " ", group.truth),
      history, el("div", { class: "vt-answers" }, group.answers.map((answer) => this.answer(answer))));
  }

  answer(answer) {
    const body = this.text(answer.text, this.filter.text);
    const good = answer.final === null ? "none" : answer.final >= 0.5 ? "good" : answer.final > 0 ? "mid" : "poor";
    const parts = Object.entries(answer.parts).map(([name, value]) => el("span", { class: "vt-fact" }, el("small", {}, name), value));
    const more = answer.length > answer.text.length && el("button", { class: "vt-mini", onclick: async () => {
      const reply = await this.whole(answer.i);
      if (!reply.error) {
        clear(body, reply.text);
        more.remove();
      }
    } }, `${t("show_all")} (${answer.length} ${t("chars")})`);
    return el("article", { class: "vt-answer" },
      el("header", {}, el("span", { class: `vt-score vt-score-${good}`, title: t("score") }, number(answer.final, 4)),
        answer.score !== answer.final && el("span", { class: "vt-meta" }, `${t("score")} ${number(answer.score, 4)}`),
        this.reply.kind !== "results" && el("span", { class: "vt-meta", title: "(r − mean) / std" }, `${t("advantage")} ${number(answer.advantage, 3)}`),
        el("span", { class: "vt-meta" }, `${answer.length} ${t("chars")}`), answer.truncated && el("span", { class: "vt-pill vt-s-stalled" }, t("truncated"))),
      parts.length > 0 && el("div", { class: "vt-facts" }, parts), body, more);
  }

  // Plain text with the searched words marked; never HTML.
  text(value, needle) {
    const node = el("pre", { class: "vt-text" });
    if (!needle || this.filter.regex) {
      node.textContent = value;
      return node;
    }
    const low = value.toLowerCase();
    const word = needle.toLowerCase();
    let from = 0;
    for (let hits = 0; hits < 200; hits++) {
      const at = low.indexOf(word, from);
      if (at < 0) break;
      node.append(value.slice(from, at), el("mark", {}, value.slice(at, at + word.length)));
      from = at + word.length;
    }
    node.append(value.slice(from));
    return node;
  }

  whole(index) {
    return this.app.call("sample_text", { run: this.app.state.sample.run, kind: this.reply.kind, step: this.reply.step, i: index });
  }

  async history(group, place) {
    if (place.firstChild) {
      if (place.firstChild._fullLayout) Plotly.purge(place.firstChild);
      return void clear(place);
    }
    const reply = await this.app.call("history", { run: this.app.state.sample.run, kind: this.reply.kind, step: this.reply.step, i: group.first });
    if (reply.error || !reply.rows.length) return;
    const plot = el("div", { class: "vt-plot" });
    clear(place, plot);
    const style = getComputedStyle(this.app.root);
    Plotly.newPlot(plot, [{ x: reply.rows.map((r) => r.step), y: reply.rows.map((r) => r.mean), mode: "lines+markers", line: { color: this.app.colour(this.app.state.sample.run) }, hovertemplate: `${t("step")} %{x}: %{y:.3f}<extra></extra>` }],
      { height: 160, margin: { l: 44, r: 8, t: 8, b: 28 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 10, color: style.getPropertyValue("--vt-ink-2").trim() },
        xaxis: { gridcolor: style.getPropertyValue("--vt-grid").trim() }, yaxis: { gridcolor: style.getPropertyValue("--vt-grid").trim(), title: { text: t("mean_reward") } } }, { displayModeBar: false });
    plot.on("plotly_click", (event) => this.go({ step: event.points[0].x }));
  }
}
