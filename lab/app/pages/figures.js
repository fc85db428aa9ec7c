// Plots in the colours of the page: titles wrap, the legend stands below as text, and a plot follows its panel's width.

const MARGIN = { l: 12, r: 18, t: 12, b: 12 };
const DASHES = { dot: "2 3", dash: "6 4", longdash: "10 4", dashdot: "6 3 2 3", longdashdot: "10 3 2 3" };
const MARKS = {
  square: "M9 2h8v8h-8z", diamond: "M13 1l5 5-5 5-5-5z", "triangle-up": "M13 1.5l5 9h-10z", x: "M9 2l8 8M17 2l-8 8",
  cross: "M11.5 1h3v3.5H18v3h-3.5V11h-3V7.5H8v-3h3.5z", star: "M13 .5l1.6 3.7 4 .4-3 2.7.9 4-3.5-2.1-3.5 2.1.9-4-3-2.7 4-.4z",
  circle: "M17 6a4 4 0 1 1-8 0 4 4 0 1 1 8 0z",
};
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&#37;": "%", "&amp;": "&" };
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const asText = (name) => String(name).replace(/&(?:lt|gt|#37|amp);/g, (entity) => ENTITIES[entity]).replace(/<br>/g, ", ");
const pen = document.createElement("canvas").getContext("2d");

// The title of an axis in as many lines as it needs at this length in pixels.
function fitted(axis, room) {
  const text = axis.title?.text;
  if (!text) return axis;
  pen.font = `13px ${colour("--sans")}`;
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (lines.at(-1) && pen.measureText(longer).width > room) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return { ...axis, title: { ...axis.title, text: lines.join("<br>"), standoff: 8, font: { size: 12 } } };
}

// Long names at the ticks of a category axis lose their middle; the hover has the whole.
function shortened(axis, values, most) {
  const names = [...new Set(values.flat().filter((value) => typeof value === "string"))];
  if (!names.some((name) => asText(name).length > most)) return axis;
  const short = (name) => (name.length > most ? `${name.slice(0, most / 2 - 1)}…${name.slice(1 - most / 2)}` : name);
  return { ...axis, tickvals: names, ticktext: names.map((name) => short(asText(name)).replace(/&/g, "&amp;").replace(/</g, "&lt;")) };
}

function themed(traces, look, width, height) {
  const { template, margin, legend, title, ...layout } = look;
  const line = colour("--line"), room = width < 500 ? 12 : 24;
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const axes = {
    xaxis: shortened(fitted({ ...axis, ...layout.xaxis }, Math.max(120, width - 110)), traces.map(({ x }) => x ?? []), room),
    yaxis: shortened(fitted({ ...axis, ...layout.yaxis }, Math.max(90, height - 90)), traces.map(({ y }) => y ?? []), room),
  };
  return {
    ...layout, ...axes, width, height, margin: MARGIN, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colour("--sans"), size: 12, color: colour("--soft") },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: line, font: { color: colour("--ink") } },
  };
}

function swatch(trace) {
  const mode = trace.mode ?? "lines", line = trace.line ?? {}, marker = trace.marker ?? {};
  const tint = marker.color ?? line.color ?? colour("--soft");
  const drawing = svg("svg", { viewBox: "0 0 26 12", class: "swatch", "aria-hidden": "true" });
  if (trace.type === "bar") drawing.append(svg("rect", { x: 6, y: 1, width: 14, height: 10, fill: tint }));
  else {
    if (mode.includes("lines"))
      drawing.append(svg("path", { d: "M0 6h26", fill: "none", stroke: line.color ?? tint, opacity: trace.opacity,
        "stroke-width": Math.min(6, line.width ?? 2), "stroke-dasharray": DASHES[line.dash] }));
    if (mode.includes("markers")) {
      const symbol = String(marker.symbol ?? "circle"), open = symbol.includes("open");
      drawing.append(svg("path", { d: MARKS[symbol.replace(/-(thin|open).*$/, "")] ?? MARKS.circle,
        fill: open ? "none" : tint, stroke: tint, "stroke-width": open ? 1.5 : 0 }));
    }
  }
  return drawing;
}

function legend(box, traces, look) {
  const list = box.parentElement.querySelector(".keys") ?? box.insertAdjacentElement("afterend", el("ul", { class: "keys" }));
  const named = traces.map((trace, i) => [trace, i]).filter(([trace]) => trace.name != null && trace.showlegend !== false && trace.type !== "heatmap");
  const wanted = look.showlegend ?? named.length > 1;
  list.replaceChildren(...(wanted ? named : []).map(([trace, i]) => {
    const key = el("button", { type: "button", "aria-pressed": "true" }, swatch(trace), asText(trace.name));
    key.addEventListener("click", () => {
      const shown = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(shown));
      Plotly.restyle(box, { visible: shown }, [i]);
    });
    return el("li", {}, key);
  }));
}

const drawn = new Map();
function drawFigure(box, traces, look) {
  drawn.set(box, { traces, look });
  legend(box, traces, look);
  fill(box);
  watcher.observe(box);
}
function fill(box) {
  const { traces, look } = drawn.get(box);
  const bar = { thickness: 10, outlinewidth: 0, tickfont: { size: 11 } };
  const shown = traces.map((trace) => (trace.type === "heatmap" ? { ...trace, colorbar: { ...trace.colorbar, ...bar } } : trace));
  box.dataset.width = box.clientWidth;
  Plotly.react(box, shown, themed(shown, look, box.clientWidth, box.clientHeight), { displayModeBar: false });
}
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) if (Number(target.dataset.width) !== target.clientWidth) fill(target);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const box of drawn.keys()) fill(box); });
