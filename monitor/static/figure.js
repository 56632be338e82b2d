// What Plotly is given for one chart: the lines of its runs, marks for resumes and for values that are not finite.
import { t } from "./strings.js";

// Returns traces, layout, and in words what could not be drawn.
export function figure(card, app) {
  const { state } = app;
  const style = getComputedStyle(app.root);
  const ink = style.getPropertyValue("--vt-ink-2").trim();
  const rule = style.getPropertyValue("--vt-grid").trim();
  const bad = style.getPropertyValue("--vt-bad").trim();
  const traces = [];
  const shapes = [];
  const missing = [];
  for (const run of state.runs) {
    const line = card.lines.get(run);
    if (!line) continue;
    const colour = app.colour(run);
    const name = app.title(run);
    if (line.none) {
      missing.push(`${name}: ${t(`no_axis_${line.none}`)}`);
      continue;
    }
    const smooth = line.sx && state.smoothing > 0;
    for (const [x, y] of line.branches) {
      traces.push({ x, y, mode: "lines", line: { color: colour, width: 1, dash: "dot" }, opacity: 0.55, hoverinfo: "skip", showlegend: false });
    }
    const few = line.x.length <= 40;
    traces.push({
      x: line.x, y: line.y, name, mode: few && !smooth ? "lines+markers" : "lines", marker: { size: 4, color: colour },
      line: { color: colour, width: smooth ? 1 : 1.6 }, opacity: smooth ? 0.28 : 1, meta: run,
      hoverinfo: smooth ? "skip" : undefined, hovertemplate: smooth ? undefined : "%{y:.5~g}",
    });
    if (smooth) {
      traces.push({ x: line.sx, y: line.sy, name, mode: few ? "lines+markers" : "lines", marker: { size: 4, color: colour }, line: { color: colour, width: 2 }, meta: run, hovertemplate: "%{y:.5~g}" });
    }
    for (const x of line.marks) {
      shapes.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colour, width: 1, dash: "dash" }, opacity: 0.6 });
    }
    for (const [x] of line.broken.slice(-200)) {
      shapes.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 0.08, line: { color: bad, width: 2 } });
    }
    if (line.broken.length) missing.push(`${name}: ${line.broken.at(-1)[1]} ×${line.broken.length} (${t("not_finite")})`);
  }
  const mark = state.mark && state.mark.metric === card.name ? state.mark.x : null;
  if (mark !== null && state.axis === "step") {
    shapes.push({ type: "line", x0: mark, x1: mark, yref: "paper", y0: 0, y1: 1, line: { color: bad, width: 1.5, dash: "dot" } });
  }
  const layout = {
    uirevision: `${state.axis}|${card.name}`, margin: { l: 54, r: 10, t: 6, b: 30 }, height: card.node.classList.contains("vt-wide") ? 380 : 230,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "x unified",
    hoverlabel: { font: { size: 11 }, bgcolor: style.getPropertyValue("--vt-card").trim(), bordercolor: rule },
    font: { size: 11, color: ink, family: "inherit" }, shapes,
    xaxis: { gridcolor: rule, zeroline: false, linecolor: rule, exponentformat: "SI", nticks: 6, tickfont: { size: 10 } },
    yaxis: { gridcolor: rule, zeroline: false, linecolor: rule, type: state.log.includes(card.name) ? "log" : "linear", exponentformat: "SI", nticks: 6, tickfont: { size: 10 } },
  };
  Object.assign(layout.yaxis, valueAxis(traces.filter((trace) => trace.meta), layout.yaxis.type));
  return { traces, layout, missing };
}

// Small numbers as people write them (1e-6, not 1µ); a constant far from 1 would be drawn on an axis from -1 to 1.
function valueAxis(traces, type) {
  let low = Infinity, high = -Infinity;
  for (const trace of traces) {
    for (const value of trace.y) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  const size = Math.max(Math.abs(low), Math.abs(high));
  const axis = { exponentformat: size < 0.01 ? "e" : "SI" };
  if (type === "linear" && low === high && size > 0 && size < 0.1) axis.range = [Math.min(0, 2 * low), Math.max(0, 2 * low)];
  return axis;
}
