// Each figure of the data in its panel.

for (const [anchor, figure] of Object.entries(data.figures)) drawFigure(document.getElementById(anchor), figure.data, figure.layout);
