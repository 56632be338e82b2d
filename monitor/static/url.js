// The view lives in the address: what is read from it at start and written back at every change.
export const TABS = ["curves", "samples", "runs", "gpu", "health"];

export function readView(search, charts) {
  const query = new URLSearchParams(search);
  const list = (name) => (query.get(name) ? query.get(name).split("~").filter(Boolean) : null);
  const zoom = {};
  for (const item of list("zoom") ?? []) {
    const [name, from, to] = item.split("|");
    if (Number.isFinite(+from) && Number.isFinite(+to)) zoom[name] = [+from, +to];
  }
  return {
    tab: TABS.includes(query.get("tab")) ? query.get("tab") : "curves",
    runs: list("runs") ?? [], chosen: query.has("runs"),
    charts: list("charts") ?? charts, extra: list("extra") ?? [],
    smoothing: Math.min(0.99, Math.max(0, +query.get("smooth") || 0)),
    axis: ["step", "time", "tokens"].includes(query.get("x")) ? query.get("x") : "step",
    log: list("log") ?? [], search: query.get("find") ?? "", zoom, sync: query.get("sync") === "1",
    sample: { run: query.get("srun"), kind: query.get("skind"), step: query.has("sstep") ? +query.get("sstep") : null },
    mark: null,
  };
}

// The address of a view; parts of the present one that are not ours (lang, charts, ...) stay.
export function viewAddress(state) {
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
  return text ? `?${text}` : location.pathname;
}
