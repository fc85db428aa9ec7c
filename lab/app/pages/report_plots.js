// Training curves, histograms over latents and tokens, and each score on a scale with its nulls.

const TINTS = ["#0b76d6", "#e07a0c", "#17936a", "#b3409b", "#7b61d1", "#8a6d3b"]; // COLOURS of monosem.lab.figures
const tint = (i) => TINTS[i % TINTS.length];
const CURVES = [
  ["fvu", "FVU on training rows", {}],
  ["l0", "Active latents a row (L0)", { rangemode: "tozero" }],
  ["dead", data.record.summary?.dead_window_rows ? `Dead latents: silent for ${number(data.record.summary.dead_window_rows)} rows` : "Dead latents", { tickformat: ".1~%", rangemode: "tozero" }],
  ["lr", "Learning rate", { rangemode: "tozero", exponentformat: "power" }],
];

const layout = (x, y, extra = {}) => ({ bargap: 0.06, hovermode: "x unified", xaxis: { showgrid: false, ...x }, yaxis: y, ...extra });

// All panels come before the first plot: a plot takes the width its panel has when it is drawn.
function drawPlots(parent, plots) {
  const figures = plots.map(({ title }) => {
    const known = parent.querySelector(`[data-plot="${CSS.escape(title)}"]`);
    if (known) return known;
    const figure = el("div", { "data-plot": title });
    parent.append(el("figure", { class: "panel plot" }, el("h3", {}, title), figure));
    return figure;
  });
  plots.forEach(({ traces, look }, i) => drawFigure(figures[i], traces, look));
}

function drawCurves(parent) {
  const consumers = Object.entries(data.curves);
  const plots = CURVES.map(([key, title, axis]) => {
    const traces = consumers.filter(([, curve]) => curve[key]).map(([name, curve], i) => ({
      x: curve.rows, y: curve[key], name, type: "scatter", mode: curve.rows.length < 30 ? "lines+markers" : "lines", marker: { size: 4, color: tint(i) },
      line: { color: tint(i), width: 2 }, hovertemplate: "%{y:.4g}",
    }));
    return { title, traces, look: layout({ title: { text: "rows" }, rangemode: "tozero" }, axis) };
  });
  drawPlots(parent, plots.filter(({ traces }) => traces.length));
}

function drawLatents(parent) {
  const { density, l0, dead } = data.latents;
  const bars = (x, y, hovertemplate, more = {}) => [{ x, y, type: "bar", marker: { color: tint(0) }, hovertemplate, ...more }];
  const look = (axis) => layout(axis, {}, { hovermode: "closest" });
  const plots = [];
  if (density.counts.length) {
    const decades = [-7, -6, -5, -4, -3, -2, -1, 0];
    plots.push({
      title: `Latents by density` + (dead ? ` (${number(dead)} silent left out)` : ""),
      traces: bars(density.counts.map((_, i) => (density.edges[i] + density.edges[i + 1]) / 2), density.counts,
        "%{customdata} of tokens: %{y:,} latents<extra></extra>", {
          width: density.edges[1] - density.edges[0],
          customdata: density.counts.map((_, i) => `${percent(10 ** density.edges[i])} to ${percent(10 ** density.edges[i + 1])}`),
        }),
      look: look({ title: { text: "share of tokens on which a latent fires (log scale)" }, tickvals: decades, ticktext: decades.map((d) => percent(10 ** d)) }),
    });
  }
  plots.push({
    title: "Tokens by number of active latents (L0)",
    traces: bars(l0.counts.map((_, i) => l0.first + i), l0.counts, "%{x} active: %{y:,} tokens<extra></extra>"),
    look: look({ title: { text: "active latents" }, ...(l0.counts.length < 12 ? { dtick: 1 } : {}) }),
  });
  drawPlots(parent, plots);
}

function drawScale(cell, score) {
  const marks = [...score.nulls.map((n) => [n.name, n.value]), ["this dictionary", score.value]].filter(([, v]) => v != null);
  const all = [...marks.map(([, v]) => v), score.low, score.high].filter((v) => v != null);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  const logarithmic = low > 0 && high > 30 * low;
  const place = logarithmic ? Math.log : (v) => v;
  if (high - low <= 1e-3 * Math.abs(high)) [low, high] = [low - Math.abs(low || 1), high + Math.abs(high || 1)];
  const x = (v) => 8 + (144 * (place(v) - place(low))) / (place(high) - place(low));
  const text = marks.map(([name, v]) => `${name} ${number(v, 4)}`).join(", ") + (logarithmic ? " (logarithmic)" : "");
  const plot = svg("svg", { viewBox: "0 0 160 22", class: "scale", role: "img", "aria-label": text, "data-tip": text });
  plot.append(svg("line", { x1: 8, x2: 152, y1: 11, y2: 11, stroke: "var(--line)", "stroke-width": 2 }));
  for (const [, v] of marks.slice(0, -1))
    plot.append(svg("circle", { cx: x(v), cy: 11, r: 4, fill: "var(--panel)", stroke: "var(--soft)", "stroke-width": 1.5 }));
  if (score.low != null)
    plot.append(svg("line", { x1: x(score.low), x2: x(score.high), y1: 11, y2: 11, stroke: "var(--accent)", "stroke-width": 5, "stroke-opacity": 0.4 }));
  if (score.value != null) plot.append(svg("circle", { cx: x(score.value), cy: 11, r: 5, fill: "var(--accent)" }));
  cell.replaceChildren(plot);
}

function drawAll() {
  const curves = document.getElementById("curves"), latents = document.getElementById("latents");
  if (curves) drawCurves(curves);
  if (latents) drawLatents(latents);
}
for (const score of data.scores)
  if (score.nulls.length) drawScale(document.querySelector(`[data-scale="${CSS.escape(score.name)}"]`), score);
drawAll();
