"use strict";
// The plots and the sorting of tables. Plotly is in the page as text and runs when the first plot comes into view.
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);
const page = { ...parsed("plotted"), curves: [] };
const dark = matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito's colours, in an order in which neighbours differ in lightness too
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];
const MOST_BARS = 60;
const FEW_POINTS = 40; // a line of up to so many has its points marked

document.documentElement.classList.add("scripted");

// Plotly reads some HTML in texts; ids and names are to be shown as they are.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const number = (value) => value.toFixed(4);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4);

// Names that fit: without their makers where one is too long, then with the middle left out.
function short(names, most) {
  const long = names.some((name) => name.length > most);
  return names.map((name) => {
    const own = long ? name.slice(name.indexOf("/") + 1) : name;
    if (own.length <= most) return plain(own);
    const head = Math.ceil(most / 3);
    return plain(own.slice(0, head) + "…" + own.slice(head + 1 - most));
  });
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const [back, text, soft, line] = ["--back", "--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  return { back, text, soft, line };
}

function show(box, traces, own) {
  const { back, text, line } = look();
  const axis = (given) => ({ gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: true, automargin: true, ...given });
  const layout = {
    width: box.clientWidth, paper_bgcolor: back, plot_bgcolor: back, dragmode: false, hovermode: "closest",
    font: { color: text, size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 10, r: 10, t: 10, b: 10 }, hoverlabel: { align: "left", bgcolor: back, font: { color: text } },
    legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
    ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis), ...(own.yaxis2 && { yaxis2: axis(own.yaxis2) }),
  };
  Plotly.react(box, traces, layout, { displaylogo: false, modeBarButtons: [["toImage"]] });
}

function bars(box) {
  const chosen = byId("bars-group").value;
  const groups = chosen === "all" ? page.groups : [page.groups[chosen]];
  const { text } = look();
  const most = box.clientWidth < 600 ? 16 : 40;
  const several = groups.length > 1;
  // One bar a line from the top; a gap between data sets.
  let line = 0;
  const marks = [], middles = [];
  for (const group of groups) {
    const begin = line;
    const rows = several ? [...group.rows].sort((a, b) => a.system - b.system) : group.rows;
    for (const row of rows) marks.push({ ...row, group, line: line++ });
    middles.push((begin + line - 1) / 2);
    line += 0.7;
  }
  const systems = several ? page.systems.map((_, i) => i) : [null];
  const legend = short(page.systems, 60);
  const traces = systems.map((system) => {
    const mine = marks.filter((mark) => system === null || mark.system === system);
    return {
      type: "bar", orientation: "h", width: 0.82, name: legend[system ?? 0], showlegend: several,
      y: mine.map((mark) => mark.line), x: mine.map((mark) => mark.mean),
      marker: { color: COLOURS[system ?? 0], line: { color: text, width: several ? 0.5 : 0 } },
      error_x: {
        type: "data", symmetric: false, color: text, thickness: 1.2, width: 3,
        array: mine.map((mark) => mark.interval ? mark.interval[1] - mark.mean : 0),
        arrayminus: mine.map((mark) => mark.interval ? mark.mean - mark.interval[0] : 0),
      },
      hoverinfo: "text",
      hovertext: mine.map((mark) => `${plain(page.systems[mark.system])}<br>${plain(mark.group.name)}<br>${number(mark.mean)}`
        + (mark.interval ? ` (${number(mark.interval[0])} to ${number(mark.interval[1])})` : "")),
      textposition: "none",
    };
  });
  const ticks = several
    ? { tickvals: middles, ticktext: short(groups.map((group) => group.name), most) }
    : { tickvals: marks.map((mark) => mark.line), ticktext: short(marks.map((mark) => page.systems[mark.system]), most) };
  show(box, traces, {
    height: 90 + 20 * line + (several ? 10 * systems.length : 0), bargap: 0, barmode: "overlay",
    xaxis: { rangemode: "tozero", title: { text: page.measure }, side: "bottom" },
    yaxis: { ...ticks, range: [line - 0.7 + 0.1, -0.7], showgrid: false, zeroline: false, ticks: "" },
  });
}

const queries = (group) => (page.groups[group].queries ??= parsed(`queries-${group}`));

function scatter(box) {
  const group = page.groups[byId("scatter-group").value];
  const { ids, scores } = queries(byId("scatter-group").value);
  const [a, b] = ["scatter-a", "scatter-b"].map((id) => Number(byId(id).value));
  const points = new Map();
  ids.forEach((id, i) => {
    const key = `${scores[a][i]} ${scores[b][i]}`;
    if (!points.has(key)) points.set(key, { x: scores[a][i], y: scores[b][i], ids: [] });
    points.get(key).ids.push(id);
  });
  const { text, soft } = look();
  const all = [...points.values()];
  const count = (found) => found.reduce((sum, point) => sum + point.ids.length, 0);
  const kinds = [
    ["B better", all.filter((point) => point.y > point.x), COLOURS[0], "circle"],
    ["A better", all.filter((point) => point.y < point.x), COLOURS[1], "square"],
    ["equal", all.filter((point) => point.y === point.x), soft, "diamond"],
  ];
  const traces = kinds.map(([name, found, color, symbol]) => ({
    type: "scatter", mode: "markers", name: `${name}: ${count(found)}`, x: found.map((point) => point.x), y: found.map((point) => point.y),
    marker: { color, symbol, opacity: 0.75, size: found.map((point) => Math.min(40, 5 + 2.5 * Math.sqrt(point.ids.length))), line: { color: text, width: 0.5 } },
    hoverinfo: "text", showlegend: true,
    hovertext: found.map((point) => `A ${number(point.x)}, B ${number(point.y)}<br>`
      + (point.ids.length > 1 ? `${point.ids.length} queries: ` : "query ")
      + plain(point.ids.slice(0, 6).join(", ")) + (point.ids.length > 6 ? ", …" : "")),
  }));
  const values = all.flatMap((point) => [point.x, point.y]);
  const low = Math.min(0, ...values), high = Math.max(1, ...values), room = 0.04 * (high - low);
  const range = [low - room, high + room];
  const sum = (row) => scores[row].reduce((total, value) => total + value, 0);
  byId("verdict").textContent = `B − A: ${signed((sum(b) - sum(a)) / ids.length)} ${page.measure} over ${ids.length} queries. `
    + `B is better on ${count(kinds[0][1])}, A on ${count(kinds[1][1])}, equal on ${count(kinds[2][1])}.`;
  const changed = ids.map((id, i) => [id, scores[a][i], scores[b][i], scores[b][i] - scores[a][i]]).sort((p, q) => q[3] - p[3]);
  const gains = changed.filter((row) => row[3] > 0).slice(0, 7), losses = changed.filter((row) => row[3] < 0).slice(-7);
  byId("largest").replaceChildren(...[...gains, ...losses].map(([id, ...rest]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = id;
    row.append(head);
    rest.forEach((value, i) => Object.assign(row.insertCell(), { className: "n", textContent: i < 2 ? number(value) : signed(value) }));
    return row;
  }));
  const width = Math.min(box.clientWidth, 600);
  const [nameA, nameB] = short([a, b].map((row) => page.systems[group.rows[row].system]), Math.floor(width / 12));
  show(box, traces, {
    width, height: width + 20,
    xaxis: { range, title: { text: `A: ${nameA}` } }, yaxis: { range, title: { text: `B: ${nameB}` } },
    shapes: [{ type: "line", x0: range[0], y0: range[0], x1: range[1], y1: range[1], line: { color: soft, width: 1, dash: "dot" }, layer: "below" }],
  });
}

const latency = (box) => against(box, (cost) => cost.ms_per_query, "ms a query (log scale)", (value) => `${value.toPrecision(3)} ms`);
const bytes = (box) => against(box, (cost) => cost.index_bytes ?? cost.vector_bytes, "bytes searched (log scale)", (value) => `${(value / 1e6).toPrecision(3)} MB`);

function against(box, cost, title, unit) {
  const group = page.groups[byId("cost-group").value];
  const found = group.rows.map((row, i) => ({ ...row, rank: i + 1, x: cost(row.cost) })).filter((row) => row.x > 0);
  found.sort((p, q) => p.x - q.x || q.mean - p.mean);
  if (!found.length) {
    if (box.data) Plotly.purge(box);
    box.textContent = `Left out: no result on ${group.name} has this cost.`;
    return;
  }
  if (!box.data) box.textContent = "";
  const { back, text } = look();
  let best = -Infinity;
  const front = found.filter((row) => row.mean > best && (best = row.mean, true));
  found.sort((p, q) => front.includes(p) - front.includes(q)); // drawn last, so on top
  const logs = found.map((row) => Math.log10(row.x));
  const room = Math.max(0.2, 0.08 * (Math.max(...logs) - Math.min(...logs)));
  const [x, y] = [found.map((row) => row.x), found.map((row) => row.mean)];
  const isFront = (yes, no) => found.map((row) => front.includes(row) ? yes : no);
  show(box, [
    { type: "scatter", mode: "lines", x: front.map((row) => row.x), y: front.map((row) => row.mean), line: { color: COLOURS[1], width: 1.5 }, hoverinfo: "skip", showlegend: false },
    {
      type: "scatter", mode: "markers+text", x, y, showlegend: false,
      marker: { size: 19, color: isFront(COLOURS[0], back), line: { width: 1.5, color: isFront(COLOURS[0], text) } },
      text: found.map((row) => row.rank), textfont: { size: 11, color: isFront("#ffffff", text) }, cliponaxis: false, hoverinfo: "text",
      hovertext: found.map((row) => `${row.rank}. ${plain(page.systems[row.system])}<br>${number(row.mean)}, ${unit(row.x)}`),
      error_y: {
        type: "data", symmetric: false, color: text, thickness: 0.8, width: 0,
        array: found.map((row) => row.interval ? row.interval[1] - row.mean : 0), arrayminus: found.map((row) => row.interval ? row.mean - row.interval[0] : 0),
      },
    },
  ], {
    height: 380, yaxis: { title: { text: page.measure } },
    xaxis: { type: "log", title: { text: title }, dtick: "D2", exponentformat: "SI", range: [Math.min(...logs) - room, Math.max(...logs) + room] },
  });
}

const curves = (run) => (page.curves[run] ??= parsed(`curve-${run}`));

function curve(box) {
  const run = curves(byId("curve-run").value);
  const panels = [run.losses, run.scores].filter((lines) => lines.length);
  if (!panels.length) {
    if (box.data) Plotly.purge(box);
    box.textContent = "This run has logged nothing.";
    return;
  }
  if (!box.data) box.textContent = "";
  const { text, soft } = look();
  const traces = [], [red] = COLOURS.slice(-1);
  panels.forEach((lines, i) => {
    const others = lines.filter((line) => line.name !== "loss");
    for (const line of lines) {
      const place = others.indexOf(line);
      const color = place < 0 ? text : COLOURS[place % COLOURS.length];
      const name = plain(line.name);
      // a value alone in its episode has no line
      const marked = line.values.length <= FEW_POINTS || line.values.some((_, at) => (line.values[at - 1] ?? line.values[at + 1] ?? null) === null);
      const common = { type: "scatter", x: line.steps, yaxis: i ? "y2" : "y" };
      if (line.means) traces.push({ ...common, mode: "lines", y: line.values, line: { color, width: 0.7 }, opacity: 0.35, hoverinfo: "skip", showlegend: false });
      traces.push({
        ...common, name, mode: marked ? "lines+markers" : "lines", y: line.means ?? line.values,
        line: { color, width: 2, dash: place < COLOURS.length ? "solid" : "dash" }, marker: { color, size: 5 }, hovertemplate: `${name} %{y:.4~f}<extra></extra>`,
      });
    }
  });
  const shapes = run.begins.slice(1).map((x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: soft, width: 1 } }));
  const room = box.clientWidth / run.begins.length; // pixels an episode
  const annotations = run.begins.length < 2 ? [] : run.begins.map((x, i) => ({
    x, y: 1, yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: soft, size: 11 },
    text: room > 80 ? `episode ${i + 1}` : `${i + 1}`,
  })).filter((_, i) => i % Math.ceil(30 / room) === 0);
  if (run.best) {
    const [value, step, name] = run.best;
    shapes.push({ type: "line", x0: step, x1: step, y0: 0, y1: 1, yref: "paper", line: { color: red, width: 1.5, dash: "dot" } });
    traces.push({
      type: "scatter", mode: "markers", x: [step], y: [value], yaxis: panels.length > 1 ? "y2" : "y", name: `best ${name}: ${number(value)} at step ${step.toLocaleString("en")}`,
      marker: { color: red, size: 14, symbol: "star" }, hoverinfo: "skip",
    });
  }
  const names = panels.map((lines) => lines === run.losses ? "loss" : lines[0].name);
  const scale = panels[0] === run.losses && run.logarithmic ? { type: "log", dtick: 1 } : {};
  const height = 140 + 210 * panels.length;
  show(box, traces, {
    height, hovermode: "x unified", dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false, shapes, annotations,
    legend: { orientation: "h", x: 0, y: 1 + (annotations.length ? 22 / height : 0), yanchor: "bottom", traceorder: "normal" },
    xaxis: { title: { text: "step" }, range: [0, run.steps * 1.01], fixedrange: false, anchor: panels.length > 1 ? "y2" : "y", tickformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" } },
    yaxis: { title: { text: names[0] }, ...scale, domain: panels.length > 1 ? [0.5, 1] : [0, 1], zeroline: false },
    ...(panels.length > 1 && { yaxis2: { title: { text: names[1] }, domain: [0, 0.46], zeroline: false } }),
  });
}

// Choices

function fill(select, names, chosen) {
  select.replaceChildren(...names.map(([value, name]) => new Option(name, value, false, value === chosen)));
}

const places = page.groups.map((group, i) => [i, group.name]);
const barCount = page.groups.reduce((sum, group) => sum + group.rows.length, 0);
const overall = page.groups.length > 1 && barCount <= MOST_BARS && page.systems.length <= COLOURS.length;
fill(byId("bars-group"), overall ? [["all", "all data sets"], ...places] : places, overall ? "all" : 0);

function fillSystems() {
  const rows = page.groups[byId("scatter-group").value].rows;
  const names = rows.map((row, i) => [i, page.systems[row.system]]);
  fill(byId("scatter-a"), names, 1);
  fill(byId("scatter-b"), names, 0);
}
function showCosts() {
  const chosen = byId("cost-group").value;
  for (const row of byId("costs").tBodies[0].rows) row.hidden = row.dataset.group !== chosen;
}
if (byId("scatter-group")) {
  fill(byId("scatter-group"), places.filter(([i]) => page.groups[i].rows.length > 1));
  fillSystems();
}
if (byId("cost-group")) {
  fill(byId("cost-group"), places.filter(([i]) => page.groups[i].rows.some((row) => Object.keys(row.cost).length)));
  showCosts();
}

if (byId("curve-run")) fill(byId("curve-run"), page.runs.map((name, i) => [i, name]));

// Drawing, each plot when it first comes near the window

const plots = { bars, scatter, latency, bytes, curve };
const drawn = new Set();

function draw(id) {
  if (!window.Plotly) {
    const script = document.createElement("script");
    script.textContent = byId("plotly").textContent;
    document.head.append(script);
  }
  drawn.add(id);
  plots[id](byId(id));
}

const redraw = (...ids) => ids.filter((id) => drawn.has(id)).forEach(draw);
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { near.unobserve(target); draw(target.id); }
  }
}, { rootMargin: "300px" });
Object.keys(plots).filter(byId).forEach((id) => near.observe(byId(id)));

const onChange = (id, run) => byId(id)?.addEventListener("change", run);
onChange("bars-group", () => draw("bars"));
onChange("scatter-group", () => { fillSystems(); draw("scatter"); });
onChange("scatter-a", () => draw("scatter"));
onChange("scatter-b", () => draw("scatter"));
onChange("curve-run", () => draw("curve"));
onChange("cost-group", () => { showCosts(); draw("latency"); draw("bytes"); });
dark.addEventListener("change", () => redraw(...drawn));
let width = innerWidth, waiting;
addEventListener("resize", () => {
  if (innerWidth === width) return; // a phone's address bar came or went
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => redraw(...drawn), 100);
});

// Tables sorted by a click on a head

const worth = (cell) => {
  const text = cell.dataset.value ?? cell.querySelector("a, b")?.textContent ?? cell.textContent;
  return text.trim() !== "" && !isNaN(text) ? Number(text) : text.trim();
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...[...head.childNodes].filter((node) => !node.classList?.contains("mark")));
    head.prepend(button);
    button.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const values = new Map(rows.map((row) => [row, worth(row.cells[column])]));
      const numeric = [...values.values()].some((value) => typeof value === "number");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric || column === 0;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((one, other) => {
        const [a, b] = [values.get(one), values.get(other)];
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what is missing goes last
        return (typeof a === "number" ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
