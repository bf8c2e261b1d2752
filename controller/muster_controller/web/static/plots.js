// Draws what `web/plots.py` describes, with ECharts, in the colours of the style sheet. Loaded where a page has plots.

const charts = new Map(); // Canvas element -> {chart, text}

const loaded = new Promise((resolve, reject) => {
  if (window.echarts) return resolve();
  const script = document.createElement("script");
  script.src = "/static/lib/echarts.min.js";
  script.onload = () => resolve();
  script.onerror = () => reject(new Error("the drawing library could not be loaded"));
  document.head.append(script);
});

export async function draw(root) {
  await loaded;
  for (const [canvas, { chart }] of charts) {
    if (canvas.isConnected) continue;
    chart.dispose();
    charts.delete(canvas);
  }
  for (const figure of root.querySelectorAll("[data-plot]")) {
    const canvas = figure.querySelector(".canvas");
    const text = figure.querySelector("script[type='application/json']")?.textContent;
    if (!canvas || !text || charts.get(canvas)?.text === text) continue;
    const chart = charts.get(canvas)?.chart ?? opened(canvas);
    chart.setOption(options(figure.dataset.plot, JSON.parse(text), canvas.clientWidth), { notMerge: true });
    charts.set(canvas, { chart, text });
    canvas.dataset.drawn = "yes";
  }
}

function opened(canvas) {
  const chart = window.echarts.init(canvas, null, { renderer: "canvas" });
  new ResizeObserver(() => chart.resize()).observe(canvas);
  chart.on("click", ({ data }) => { if (data?.href) location.assign(data.href); });
  return chart;
}

document.addEventListener("muster:theme", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw); // Paper is light.

function redraw() {
  for (const kept of charts.values()) kept.text = "";
  draw(document);
}

// The style sheet's custom properties are `light-dark(…)`: an element of that colour knows which it is now.
const probe = document.createElement("span");
probe.hidden = true;

function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.className = `tone-${name}`;
  return getComputedStyle(probe).color;
}

function options(kind, said, width) {
  return { ...framed(), ...(kind === "graph" ? graphed(said) : plotted(said, width)) };
}

function framed() {
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: colour("ink") },
    tooltip: { renderMode: "richText", confine: true, backgroundColor: colour("card"), borderColor: colour("edge"), textStyle: { color: colour("ink"), fontSize: 12 } },
  };
}

// Pixels for the names of the lines across, which stand right of the plot.
function beside(marks) {
  const longest = Math.max(0, ...marks.filter((each) => each.y !== null).map((each) => each.name.length));
  return longest ? Math.max(84, 14 + 6.5 * longest) : 16;
}

// Of one moment alone ECharts would show two days.
function around(said, scale) {
  if (said.x !== "time") return {};
  const all = said.series.flatMap((each) => each.points.map(([x]) => x * scale));
  return all.length && Math.min(...all) === Math.max(...all) ? { min: all[0] - 60_000, max: all[0] + 60_000 } : {};
}

// `width`: of the canvas, pixels.
function plotted(said, width) {
  const isNarrow = width < 480; // Then there is no room beside the plot.
  const quiet = { color: colour("quiet"), fontSize: 11 };
  const line = { lineStyle: { color: colour("edge") } };
  const scale = said.x === "time" ? 1000 : 1; // The page has seconds, ECharts wants milliseconds.
  const format = (value) => (value === null || value === undefined ? "–" : `${Number(value.toPrecision(4))}${said.unit}`);
  const drawn = said.series.flatMap((each) => [...banded(each, scale), lined(each, scale)]);
  if (drawn.length) drawn[drawn.length - 1].markLine = marked(said.marks, scale, isNarrow);
  const names = said.series.map((each) => each.name);
  const isCounted = !said.is_log && said.series.every((each) => each.points.every(([, y]) => y === null || Number.isInteger(y)));
  return {
    grid: { left: 8, right: isNarrow ? 16 : beside(said.marks), top: (names.length > 1 ? 30 : 12) + (said.marks.some((each) => each.y === null) ? 14 : 0), bottom: 6, containLabel: true },
    legend: names.length > 1 ? { data: names, top: 0, left: 0, itemHeight: 8, itemWidth: 14, textStyle: { color: colour("ink"), fontSize: 12 } } : undefined,
    tooltip: { ...framed().tooltip, trigger: "axis", valueFormatter: format },
    xAxis: {
      type: { time: "time", number: "value", name: "category" }[said.x],
      data: said.x === "name" ? said.names : undefined,
      axisLabel: { ...quiet, ...(said.x === "name" ? { interval: (width - 80) / said.names.length < 36 ? "auto" : 0, width: Math.max(40, (width - 80) / said.names.length), overflow: isNarrow ? "truncate" : "break" } : { hideOverlap: true, alignMaxLabel: "right" }) }, axisLine: line, axisTick: line, splitLine: { show: false }, ...around(said, scale),
    },
    yAxis: {
      type: said.is_log ? "log" : "value", minInterval: isCounted ? 1 : undefined, min: said.low ?? undefined, max: said.high ?? undefined,
      axisLabel: { ...quiet, formatter: (value) => `${Number(value.toPrecision(3)).toLocaleString()}` }, splitLine: line, scale: said.low === null && said.series.every((each) => each.shape === "line"),
    },
    series: drawn,
  };
}

function lined(each, scale) {
  const data = each.points.map(([x, y]) => [x * scale, y]);
  const tone = colour(each.tone);
  if (each.shape === "bar") return { name: each.name, type: "bar", data, itemStyle: { color: tone }, barMaxWidth: 28 };
  if (each.shape === "dots") return { name: each.name, type: "scatter", data, symbolSize: 7, itemStyle: { color: tone } };
  return {
    name: each.name, type: "line", data, symbol: "circle", symbolSize: 5, showSymbol: data.length < 40,
    step: each.shape === "step" ? "end" : false, stack: each.shape === "area" ? "all" : undefined,
    areaStyle: each.shape === "area" ? { color: tone, opacity: 0.55 } : undefined,
    itemStyle: { color: tone }, lineStyle: { color: tone, width: each.shape === "area" ? 1 : 2 },
  };
}

// The interval: an unseen line at its lower end, and the height of the interval stacked upon it.
function banded(each, scale) {
  if (!each.band.length) return [];
  const tone = colour(each.tone);
  const unseen = { type: "line", stack: `band ${each.name}`, symbol: "none", silent: true, lineStyle: { opacity: 0 }, tooltip: { show: false } };
  return [
    { ...unseen, name: `${each.name} from`, data: each.band.map(([x, low]) => [x * scale, low]) },
    { ...unseen, name: `${each.name} to`, data: each.band.map(([x, low, high]) => [x * scale, low === null ? null : high - low]), areaStyle: { color: tone, opacity: 0.18 } },
  ];
}

function marked(marks, scale, isNarrow) {
  if (!marks.length) return undefined;
  return {
    symbol: "none", silent: true, animation: false,
    data: marks.map((mark) => ({
      name: mark.name,
      ...(mark.y === null ? { xAxis: mark.x * scale } : { yAxis: mark.y }),
      label: { formatter: mark.name, color: colour(["idle", "edge"].includes(mark.tone) ? "quiet" : mark.tone), position: isNarrow && mark.y !== null ? "insideStartTop" : "end", align: mark.y === null ? "left" : undefined, fontSize: 11 },
      lineStyle: { color: colour(mark.tone), type: "dashed", width: 1.2 },
    })),
  };
}

// Upon axes that are not shown: left to itself, a graph whose nodes stand in one row is stretched.
function graphed(said) {
  const last = (name) => Math.max(0, ...said.nodes.map((each) => each[name]));
  const places = new Map(said.nodes.map((each) => [each.id, each]));
  const bent = (source, target) => {
    const [from, to] = [places.get(source), places.get(target)];
    return from && to && from.row === to.row && Math.abs(to.column - from.column) > 1 ? 0.25 : 0;
  };
  return {
    grid: { left: 50, right: 70, top: 10, bottom: 22 },
    xAxis: { type: "value", min: 0, max: Math.max(1, last("column")), show: false },
    yAxis: { type: "value", min: -0.5, max: last("row") + 0.5, inverse: true, show: false },
    series: [{
      type: "graph", coordinateSystem: "cartesian2d", layout: "none", roam: false,
      symbol: "roundRect", symbolSize: 16, edgeSymbol: ["none", "arrow"], edgeSymbolSize: 8,
      label: { show: true, position: "bottom", color: colour("ink"), fontSize: 12, formatter: ({ data }) => data.name },
      edgeLabel: { show: true, fontSize: 11, color: colour("quiet"), formatter: ({ data }) => data.what },
      lineStyle: { color: colour("quiet"), width: 1.4 },
      data: said.nodes.map((each) => ({
        id: each.id, name: each.name, href: each.href, value: [each.column, each.row], itemStyle: { color: colour(each.tone) },
      })),
      links: said.edges.map(([source, target, what]) => ({ source, target, what, lineStyle: { curveness: bent(source, target) } })),
    }],
  };
}
