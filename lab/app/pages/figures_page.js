"use strict";
// Each figure in its panel, in the colours of the page.

const data = JSON.parse(document.getElementById("data").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  for (const [anchor, figure] of Object.entries(data.figures)) {
    const { template, ...look } = figure.layout;
    Plotly.react(anchor, figure.data, {
      ...look, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--sans"), size: 12, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: { ...axis, ...look.xaxis }, yaxis: { ...axis, ...look.yaxis },
    }, { responsive: true, displayModeBar: false });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
