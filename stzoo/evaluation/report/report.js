"use strict";
// Choices, tooltips, the sorting of tables, and the chart of single queries; all other charts are in the page.
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);
const page = parsed("plotted");
const number = (value) => value.toFixed(4);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4);
const MOST = 7; // rows of gains, and of losses
const FEW = 4; // queries that a tooltip names

document.documentElement.classList.add("scripted");

function make(tag, attributes, text = "") {
  const node = document.createElementNS(byId("scatter").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// Query by query

const queries = (group) => (page.groups[group].queries ??= parsed(`queries-${group}`));
const shown = ({ ids, texts }, i) => texts?.[i] || ids[i];

function scatter() {
  const place = byId("scatter-group").value, group = page.groups[place], data = queries(place);
  const [a, b] = ["scatter-a", "scatter-b"].map((id) => Number(byId(id).value));
  const { scores, ticks, range: [low, high] } = data;
  const at = (value) => 100 * (value - low) / (high - low);
  const chart = byId("scatter"), parts = [];
  for (const [x, label] of ticks) {
    parts.push(make("line", { class: "grid", x1: `${x}%`, x2: `${x}%`, y2: "100%" }), make("text", { x: `${x}%`, y: "100%", dy: 17 }, label));
    parts.push(make("line", { class: "grid", y1: `${100 - x}%`, y2: `${100 - x}%`, x2: "100%" }), make("text", { class: "y", x: -7, y: `${100 - x}%`, dy: 4 }, label));
  }
  const [nameA, nameB] = [a, b].map((row) => page.systems[group.rows[row]]);
  parts.push(make("line", { class: "diagonal", x1: 0, y1: "100%", x2: "100%", y2: 0 }), make("text", { class: "title", x: "50%", y: "100%", dy: 36 }, `A: ${short(nameA)}`));
  parts.push(make("text", { class: "title", x: 0, y: -6, style: "text-anchor: start" }, `B: ${short(nameB)}`));
  const points = new Map();
  data.ids.forEach((_, i) => {
    const key = `${scores[a][i]} ${scores[b][i]}`;
    if (!points.has(key)) points.set(key, []);
    points.get(key).push(i);
  });
  const counts = { a: 0, b: 0, equal: 0 };
  for (const members of [...points.values()].sort((p, q) => q.length - p.length)) {
    const [x, y] = [scores[a][members[0]], scores[b][members[0]]];
    const kind = y > x ? "b" : y < x ? "a" : "equal";
    counts[kind] += members.length;
    const circle = make("circle", { class: kind, cx: `${at(x)}%`, cy: `${100 - at(y)}%`, r: Math.min(22, 3.5 + 1.3 * Math.sqrt(members.length)) });
    const names = members.slice(0, FEW).map((i) => shown(data, i));
    circle.dataset.tip = [`A ${number(x)}, B ${number(y)}` + (members.length > 1 ? `, ${members.length} queries` : ""), ...names, ...(members.length > FEW ? ["…"] : [])].join("\n");
    parts.push(circle);
  }
  chart.replaceChildren(...parts);
  const mean = (row) => scores[row].reduce((total, value) => total + value, 0) / data.ids.length;
  const key = (kind, text) => Object.assign(document.createElement("span"), { className: kind, textContent: text });
  byId("verdict").replaceChildren(
    `B − A: ${signed(mean(b) - mean(a))} ${page.measure} over ${data.ids.length} queries. `,
    key("b", `B is better on ${counts.b}`), " ", key("a", `A on ${counts.a}`), " ", key("equal", `equal on ${counts.equal}`),
  );
  const changed = data.ids.map((_, i) => [i, scores[a][i], scores[b][i], scores[b][i] - scores[a][i]]).sort((p, q) => q[3] - p[3]);
  const gains = changed.filter((row) => row[3] > 0).slice(0, MOST), losses = changed.filter((row) => row[3] < 0).slice(-MOST).reverse();
  byId("largest").replaceChildren(...[...gains, ...losses].map(([i, ...rest]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    Object.assign(head, { scope: "row", className: "text", dir: "auto", textContent: shown(data, i) });
    if (data.texts?.[i]) head.append(" ", Object.assign(document.createElement("code"), { textContent: data.ids[i] }));
    row.append(head);
    rest.forEach((value, j) => Object.assign(row.insertCell(), { className: "n", textContent: j < 2 ? number(value) : signed(value) }));
    return row;
  }));
}

// A name that fits below the chart: without its maker, then with the middle left out.
function short(name) {
  const own = name.length > 40 ? name.slice(name.indexOf("/") + 1) : name;
  return own.length > 40 ? `${own.slice(0, 13)}…${own.slice(-26)}` : own;
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map(([value, name]) => new Option(name, value, false, String(value) === String(chosen))));
}

function fillSystems() {
  const group = page.groups[byId("scatter-group").value];
  const names = group.rows.map((system, i) => [i, page.systems[system]]);
  ["a", "b"].forEach((side, i) => fill(byId(`scatter-${side}`), names, group.pair[i]));
}

const onChange = (id, run) => byId(id)?.addEventListener("change", run);
if (byId("scatter-group")) {
  fill(byId("scatter-group"), Object.entries(page.groups).map(([i, group]) => [i, group.name]), page.first);
  fillSystems();
  scatter();
  onChange("scatter-group", () => { fillSystems(); scatter(); });
  onChange("scatter-a", scatter);
  onChange("scatter-b", scatter);
}

// Costs of one data set at a time

const costs = document.querySelectorAll("#cost [data-group]");
function showCosts() {
  for (const one of costs) one.hidden = one.dataset.group !== byId("cost-group").value;
}
if (byId("cost-group")) {
  const places = [...new Set([...costs].map((one) => one.dataset.group))];
  fill(byId("cost-group"), places.map((place) => [place, page.names[place]]), places.includes(String(page.first)) ? page.first : places[0]);
  showCosts();
  onChange("cost-group", showCosts);
}

// Tooltips at once, and by touch: the titles of charts become texts of our own

for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));
document.addEventListener("pointerover", (event) => {
  const text = event.target.dataset?.tip;
  tip.hidden = !text;
  tip.textContent = text ?? "";
});
document.addEventListener("pointermove", ({ clientX, clientY }) => {
  if (tip.hidden) return;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${clientY + 16 + height < innerHeight ? clientY + 16 : clientY - height - 10}px`;
});

// On paper all is open

const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed.splice(0)) one.open = false; });

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
