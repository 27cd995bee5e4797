"use strict";
{
  const figures = JSON.parse(document.getElementById("figures").textContent);
  for (const [name, figure] of Object.entries(figures)) {
    Plotly.newPlot("chart-" + name, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
  const resize = () => document.querySelectorAll(".chart").forEach((chart) => Plotly.Plots.resize(chart));
  addEventListener("beforeprint", resize);
  addEventListener("afterprint", resize);
}
