// Shows what the server pushes: everything once, then what changed. Data only ever becomes text nodes.
"use strict";

const TRAIL = 60; // as many as the server keeps
const MAX_ROWS = 1000; // in the document at once; the filter reaches the rest
const series = new Map(); // key → { view, trail, row }
const devices = new Map(); // gateway and device → { card, body }
let skewMs = 0; // server's clock minus ours
let failures = 0;

const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const keyOf = (view) => JSON.stringify([view.gateway, view.device, view.point]);

/** What lies outside the calendar is shown as it is: a wrong stamp of one device must not stop the page. */
function utc(ms) {
  const moment = new Date(ms);
  return Number.isNaN(moment.getTime()) ? `${ms} ms` : moment.toISOString();
}

function ago(ms) {
  const s = Math.round((Date.now() + skewMs - ms) / 1000);
  if (s < 0) return utc(ms).slice(0, 19).replace("T", " ");
  if (s < 2) return "now";
  return s < 172800 ? `${span(s)} ago` : utc(ms).slice(0, 10);
}

function span(s) {
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

// ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

function spark(svg, trail) {
  const known = trail.filter((n) => n !== null);
  const line = svg.firstChild;
  if (known.length < 2) {
    line.setAttribute("points", "");
    return;
  }
  const low = Math.min(...known);
  const span = Math.max(...known) - low;
  const points = [];
  trail.forEach((n, i) => {
    if (n === null) return;
    const x = (100 * (TRAIL - trail.length + i)) / (TRAIL - 1);
    const y = span > 0 ? 20 - (18 * (n - low)) / span : 11;
    points.push(`${x.toFixed(1)},${y.toFixed(1)}`);
  });
  line.setAttribute("points", points.join(" "));
}

function newRow(view) {
  const tr = element("tr");
  const name = element("th", view.point);
  name.scope = "row";
  name.title = view.point;
  const value = element("td", undefined, "value");
  const number = element("span", "");
  const unit = element("span", view.unit, "unit");
  value.append(number, unit);
  const trail = element("td", undefined, "trail");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "trail");
  svg.setAttribute("viewBox", "0 0 100 22");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  trail.append(svg);
  const quality = element("td", "", "quality");
  tr.append(name, value, trail, quality);
  return { tr, number, unit, svg, quality, value };
}

function paint(entry, fresh) {
  const { view, row } = entry;
  if (!row) return;
  const [kind, reason] = view.status.split(":");
  row.number.textContent = view.text === "" ? "–" : view.text;
  row.unit.textContent = view.unit;
  row.value.title = `${view.text} ${view.unit}, acquired ${utc(view.ts_ms)}`;
  row.value.className = view.text.length > 12 ? "value long" : "value";
  row.tr.className = `quality-${kind}${fresh ? " fresh" : ""}`;
  row.reason = kind === "good" ? "" : `${kind}: ${(reason || "").replaceAll("_", " ")}`;
  if (view.trust === "server") row.reason += `${row.reason ? ", " : ""}clock by server time`;
  if (view.trust === "unsynced") row.reason += `${row.reason ? ", " : ""}clock not set`;
  age(entry);
  spark(row.svg, entry.trail);
  if (fresh) setTimeout(() => row.tr.classList.remove("fresh"), 350);
}

function age(entry) {
  const { row, view } = entry;
  if (!row) return;
  const when = ago(view.ts_ms).replaceAll("-", "\u2011").replaceAll(" ", "\u00a0"); // a date is not broken in two
  row.quality.textContent = row.reason ? `${row.reason} ·\u00a0${when}` : when;
}

function cardOf(view) {
  const key = JSON.stringify([view.gateway, view.device]);
  let device = devices.get(key);
  if (!device) {
    const card = element("div", undefined, "device");
    const title = element("h3", view.device);
    title.append(element("span", view.gateway, "of"));
    const table = element("table");
    table.append(element("caption", `Latest values of ${view.device} on ${view.gateway}`));
    const head = element("tr");
    const columns = element("colgroup"); // their widths: the cells' own do not count, as the hidden head is the first row
    for (const word of ["Point", "Value", "Trend", "Quality and age"]) {
      columns.append(element("col"));
      const th = element("th", word);
      th.scope = "col";
      head.append(th);
    }
    const thead = element("thead");
    thead.append(head);
    const body = element("tbody");
    table.append(columns, thead, body);
    card.append(title, table);
    device = { card, body };
    devices.set(key, device);
    byId("values").append(card);
  }
  return device;
}

function show(entry) {
  entry.row = newRow(entry.view);
  cardOf(entry.view).body.append(entry.row.tr);
  paint(entry, false);
}

function layOut() {
  const wanted = byId("filter").value.trim().toLowerCase();
  byId("values").replaceChildren();
  devices.clear();
  let shown = 0;
  let hidden = 0;
  for (const key of [...series.keys()].sort()) {
    const entry = series.get(key);
    entry.row = null;
    const text = `${entry.view.gateway} ${entry.view.device} ${entry.view.point}`.toLowerCase();
    if (wanted && !text.includes(wanted)) continue;
    if (shown < MAX_ROWS) {
      show(entry);
      shown += 1;
    } else {
      hidden += 1;
    }
  }
  byId("values-empty").hidden = series.size > 0;
  const more = byId("values-more");
  more.hidden = hidden === 0;
  more.textContent = `${hidden} more: use the filter to see them.`;
}

function takeSeries(all) {
  series.clear();
  for (const { view, trail } of all) series.set(keyOf(view), { view, trail, row: null });
  layOut();
}

function takeChanges(changed) {
  let added = false;
  for (const view of changed) {
    const known = series.get(keyOf(view));
    if (known) {
      known.view = view;
      known.trail.push(view.number);
      if (known.trail.length > TRAIL) known.trail.shift();
      paint(known, true);
    } else {
      series.set(keyOf(view), { view, trail: [view.number], row: null });
      added = true;
    }
  }
  if (added) layOut();
}

// ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────

function fill(id, rows) {
  const table = byId(id);
  table.parentElement.hidden = rows.length === 0;
  byId(`${id}-empty`).hidden = rows.length > 0;
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, i) => {
    const tr = body.rows[i] || body.insertRow();
    cells.forEach(([text, className], k) => {
      let cell = tr.cells[k];
      if (!cell) {
        cell = element(k === 0 ? "th" : "td");
        if (k === 0) cell.scope = "row";
        tr.append(cell);
      }
      if (cell.textContent !== text) cell.textContent = text;
      if (cell.className !== (className || "")) cell.className = className || "";
    });
  });
}

function gaps(g) {
  if (!g.gaps) return "none";
  const lost = g.lost_unknown ? `at least ${g.lost}` : `${g.lost}`;
  return `${g.gaps}, ${lost} readings lost`;
}

function backlog(g) {
  const n = g.stats.waiting;
  return typeof n === "number" ? n.toLocaleString() : "–";
}

function takeGateways(gateways) {
  fill("gateways", gateways.map((g) => [
    [g.name],
    [g.online ? (g.standbys ? `online + ${g.standbys} standby` : "online") : "offline", `state ${g.online ? "online" : "offline"}`],
    [g.rate ? g.rate.toFixed(1) : "0", "number"],
    [g.lag_ms === null ? "–" : g.lag_ms < 10000 ? `${g.lag_ms} ms` : span(Math.round(g.lag_ms / 1000)), "number"],
    [backlog(g), "number"],
    [gaps(g)],
    [g.trust || "–"],
    [g.endpoints.join(", ") || (g.seen_ms ? `seen ${ago(g.seen_ms)}` : "–")],
    [g.software || "–"],
  ]));
}

function takeCommands(commands) {
  fill("commands", commands.map((c) => [
    [ago(c.issued_ms)],
    [c.gateway],
    [`${c.device} / ${c.point}`],
    [c.value, "number"],
    [c.state + (c.result ? ` → ${c.result}` : ""), `state ${c.state === "ok" ? "ok" : ""}`],
    [c.reason],
  ]));
}

// ── link ────────────────────────────────────────────────────────────────────────────────────────────────────────────

function linkState(text, className) {
  const link = byId("link");
  if (link.textContent !== text) link.textContent = text;
  link.className = className;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/live`, "gateway.live.v1");
  socket.onmessage = (event) => {
    failures = 0;
    const news = JSON.parse(event.data);
    skewMs = news.now_ms - Date.now();
    linkState("live", "up");
    const alarm = byId("alarm");
    alarm.hidden = news.storing;
    alarm.textContent = news.storing ? "" : "The store takes no data at present. Gateways keep theirs; nothing is acked.";
    takeGateways(news.gateways);
    takeCommands(news.commands);
    if (news.series) takeSeries(news.series);
    else takeChanges(news.changed);
  };
  socket.onclose = () => {
    linkState("no connection to the server", "down");
    failures += 1;
    setTimeout(connect, Math.min(5000, 250 * 2 ** failures));
  };
}

byId("filter").addEventListener("input", layOut);
setInterval(() => series.forEach(age), 1000);
connect();
