"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

// Colours of one hue per errand: compute blue, weights teal, activations orange, gradients pink, states green.
const OP_COLOURS = {
  forward: "#6ea0dc", backward: "#2f62a8", turn: "#1b4378", score: "#9dbfe8",
  fetch_weights: "#7cc9be", upload_weights: "#2a9d8f",
  offload: "#f2b264", spill: "#d9822b", unspill: "#c06a1a", upload: "#e69a4a",
  download_gradient: "#e79ab8", spill_gradient: "#cc6f97", fetch_gradient: "#b85584", norm: "#93386a",
  read_states: "#a9cf8e", update: "#6a994e", update_on_gpu: "#6a994e", write_states: "#47752f",
};
const LANE_COLOURS = Object.fromEntries(
  ["gpu", "h2d", "d2h", "ssd_read", "ssd_write", "cpu"].map((lane) =>
    [lane, getComputedStyle(document.documentElement).getPropertyValue(`--${lane}`).trim()]),
);
const MARK_COLOURS = ["#c0392b", "#2471a3", "#1e8449", "#8e44ad", "#d68910", "#117a65", "#5d6d7e", "#a04000"];
const CURVE_COLOURS = ["#44515e", "#3e7c8f", "#8f7a3e", "#7a5c8f"];
const PAPER_COLOUR = "#9aa8b5";
const WORK_UNITS = { gpu: "s predicted", cpu: "parameters" };

function svg(name, attributes = {}, parent = null, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function seconds(value) {
  return value >= 1 ? `${value.toPrecision(3)} s` : value >= 1e-3 ? `${(1e3 * value).toPrecision(3)} ms`
    : `${(1e6 * value).toFixed(0)} µs`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${power ? (value / 1024 ** power).toPrecision(3) : Math.round(value)} ${units[power]}`;
}

function percent(part, whole) {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : "0 %";
}

// Round numbers, some five of them, that a scale to `most` is marked with.
function ticks(most) {
  const rough = most / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, index) => index * step);
}

function legend(target, title, entries) {
  const box = document.getElementById(target);
  box.replaceChildren();
  box.insertAdjacentHTML("beforeend", `<b>${title}</b>`);
  for (const [name, colour] of entries) {
    const entry = document.createElement("span");
    const key = document.createElement("i");
    key.className = "key";
    key.style.background = colour;
    entry.append(key, name.replaceAll("_", " "));
    box.appendChild(entry);
  }
}

const LEFT = 92, RIGHT = 230, WIDTH = 1400, ROW = 26, GAP = 6;

function describePiece(ops, lane, [start, end, op, tasks, block, microBatch, chunk, work]) {
  const places = [["block", block], ["micro-batch", microBatch], ["chunk", chunk]]
    .filter(([, value]) => value >= 0).map(([name, value]) => `${name} ${value}`);
  const unit = WORK_UNITS[lane];
  const amount = unit ? `${work.toPrecision(3)} ${unit}` : bytes(work);
  const what = tasks > 1 ? `${tasks} tasks, mostly ${ops[op]}, from ${places.join(", ")}`
    : [ops[op], ...places, amount].join(", ");
  return `${what}\n${seconds(end - start)}, from ${seconds(start)} to ${seconds(end)}`;
}

function drawLane(group, lane, step, scale, y) {
  svg("rect", { class: "row", x: LEFT, y, width: WIDTH - LEFT - RIGHT, height: ROW }, group);
  svg("rect", { x: 0, y: y + ROW / 2 - 5, width: 10, height: 10, rx: 2, fill: LANE_COLOURS[lane.lane] }, group);
  svg("text", { x: 16, y: y + ROW / 2 + 4 }, group, lane.lane);
  for (const [start, end, cause] of lane.waits) {
    if (cause === null) continue;
    const wait = svg("rect", {
      class: "wait", "data-cause": cause, x: scale(start), y: y + ROW / 2 - 2,
      width: Math.max(0.5, scale(end) - scale(start)), height: 4, fill: LANE_COLOURS[cause],
    }, group);
    svg("title", {}, wait, `${lane.lane} waits for ${cause}\n${seconds(end - start)}, from ${seconds(start)}`);
  }
  for (const piece of lane.pieces) {
    const [start, end, op, tasks] = piece;
    const drawn = svg("rect", {
      class: "piece", "data-op": step.ops[op], "data-tasks": tasks, x: scale(start), y: y + 2,
      width: Math.max(0.6, scale(end) - scale(start) - 0.3), height: ROW - 4, fill: OP_COLOURS[step.ops[op]],
    }, group);
    svg("title", {}, drawn, describePiece(step.ops, lane.lane, piece));
  }
}

function mostWaited(lane) {
  const causes = Object.entries(lane.waited_seconds).sort((one, other) => other[1] - one[1]);
  return causes.length ? causes[0] : null;
}

function drawTimeline(chart, timeline, step, scale, top) {
  const group = svg("g", { class: "timeline", "data-kind": timeline.kind }, chart);
  svg("text", { class: "kind", x: 0, y: top + 14 }, group, `${timeline.kind} ${seconds(timeline.seconds)}`);
  let y = top + 24;
  for (const lane of timeline.lanes) {
    const row = svg("g", { class: "lane", "data-lane": lane.lane }, group);
    drawLane(row, lane, step, scale, y);
    const waited = mostWaited(lane);
    const text = `busy ${percent(lane.busy_seconds, timeline.seconds)}`
      + (waited && waited[1] >= 0.01 * timeline.seconds ? `, waits for ${waited[0]} ${percent(waited[1], timeline.seconds)}` : "");
    svg("text", { class: "faint", x: WIDTH - RIGHT + 10, y: y + ROW / 2 + 4 }, row, text);
    y += ROW + GAP;
  }
  const end = scale(timeline.seconds);
  svg("line", { x1: end, x2: end, y1: top + 20, y2: y, stroke: "#1c2733", "stroke-dasharray": "3 3" }, group);
  return y + 10;
}

function drawStep(step) {
  const rows = step.timelines.reduce((sum, timeline) => sum + timeline.lanes.length, 0);
  const height = rows * (ROW + GAP) + step.timelines.length * 34 + 24;
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `timeline of ${step.name}` });
  const scale = (at) => LEFT + (at / step.seconds) * (WIDTH - LEFT - RIGHT);
  for (const at of ticks(step.seconds)) {
    svg("line", { class: "grid", x1: scale(at), x2: scale(at), y1: 20, y2: height - 20 }, chart);
    svg("text", { class: "faint", x: scale(at), y: height - 6, "text-anchor": "middle" }, chart, seconds(at));
  }
  let top = 0;
  for (const timeline of step.timelines) top = drawTimeline(chart, timeline, step, scale, top);
  return chart;
}

function showSteps() {
  const bar = document.querySelector("#timelines nav");
  const place = document.getElementById("steps");
  const select = (step, button) => {
    place.replaceChildren(drawStep(step));
    place.dataset.step = step.name;
    window.location.hash = encodeURIComponent(step.name);
    for (const other of bar.children) other.setAttribute("aria-selected", other === button);
    const lanes = step.timelines.flatMap((timeline) => timeline.lanes);
    const used = new Set(lanes.flatMap((lane) => lane.pieces.map((piece) => step.ops[piece[2]])));
    const causes = new Set(lanes.flatMap((lane) => lane.waits.map((wait) => wait[2])));
    legend("ops", "tasks", Object.entries(OP_COLOURS).filter(([op]) => used.has(op)));
    legend("causes", "waits for", Object.entries(LANE_COLOURS).filter(([lane]) => causes.has(lane)));
  };
  for (const step of data.steps) {
    const button = document.createElement("button");
    button.textContent = step.name;
    button.addEventListener("click", () => select(step, button));
    bar.appendChild(button);
  }
  bar.hidden = data.steps.length < 2;
  const wanted = data.steps.findIndex((step) => window.location.hash === `#${encodeURIComponent(step.name)}`);
  if (data.steps.length) bar.children[Math.max(0, wanted)].click();
  else document.getElementById("timelines").hidden = true;
}

function path(points, x, y) {
  return points.map(([a, b], index) => `${index ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
}

// Labels that would lie on each other are pushed down.
function placeLabels(labels, width) {
  labels.sort((one, other) => one.y - other.y);
  labels.forEach((label, index) => {
    for (const above of labels.slice(0, index)) {
      if (Math.abs(above.x - label.x) < width && label.y - above.y < 15) label.y = above.y + 15;
    }
  });
  return labels;
}

function drawSweep() {
  if (!data.sweeps) return;
  const { curves, marks, blocks } = data.sweeps;
  const width = 1400, height = 420, left = 70, right = 40, top = 16, bottom = 44;
  const points = curves.flatMap((curve) => curve.points);
  const most = Math.max(1, ...points.map((point) => point.moved_bytes), ...marks.map((mark) => mark.moved_bytes));
  const tall = 1.08 * Math.max(
    ...points.flatMap((point) => [point.lanes_seconds, point.paper_seconds]),
    ...marks.flatMap((mark) => [mark.predicted_seconds, mark.measured_seconds ?? 0]),
  );
  const x = (moved) => left + (moved / most) * (width - left - right);
  const y = (time) => height - bottom - (time / tall) * (height - top - bottom);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "step over moved bytes" });
  const unit = 1024 ** Math.floor(Math.log2(most) / 10);
  for (const at of ticks(most / unit)) {
    svg("line", { class: "grid", x1: x(at * unit), x2: x(at * unit), y1: top, y2: height - bottom }, chart);
    svg("text", { class: "faint", x: x(at * unit), y: height - bottom + 16, "text-anchor": "middle" }, chart, bytes(at * unit));
  }
  for (const at of ticks(tall)) {
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(at), y2: y(at) }, chart);
    svg("text", { class: "faint", x: left - 8, y: y(at) + 4, "text-anchor": "end" }, chart, seconds(at));
  }
  svg("text", { class: "faint", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, chart,
    "activations that leave the GPU in a step");
  const colour = (index) => CURVE_COLOURS[index % CURVE_COLOURS.length];
  curves.forEach((curve, index) => {
    const line = curve.points.map((point) => [point.moved_bytes, point.lanes_seconds]);
    svg("path", { class: "curve", stroke: colour(index), d: path(line, x, y) }, chart);
  });
  // The paper's equations know no placement: one curve is all of them.
  const published = curves[0].points.map((point) => [point.moved_bytes, point.paper_seconds]);
  svg("path", { class: "paper", d: path(published, x, y) }, chart);
  legend("curves", "in host memory", [
    ...curves.map((curve, index) => [
      `states of ${curve.host_states}, gradients of ${curve.host_gradients} of ${blocks} blocks, ` +
        `updates of ${curve.deferred} deferred` +
        (curve.gpu_states ? `; states of ${curve.gpu_states} on the GPU` : ""), colour(index)]),
    ["dashed: by the published equations", PAPER_COLOUR],
  ]);
  const labels = marks.map((mark, index) => ({
    x: x(mark.moved_bytes) + 14, y: y(mark.predicted_seconds) + 4, text: mark.planner,
    fill: MARK_COLOURS[index % MARK_COLOURS.length],
  }));
  marks.forEach((mark, index) => {
    const stroke = MARK_COLOURS[index % MARK_COLOURS.length];
    const group = svg("g", { class: "mark", "data-planner": mark.planner }, chart);
    const at = x(mark.moved_bytes);
    // Plans alike are rings around each other.
    const twins = marks.slice(0, index).filter((other) => Math.abs(x(other.moved_bytes) - at) < 3
      && Math.abs(y(other.predicted_seconds) - y(mark.predicted_seconds)) < 3).length;
    svg("title", {}, group, `${mark.planner}: ${bytes(mark.moved_bytes)}, predicted ${seconds(mark.predicted_seconds)}`
      + (mark.measured_seconds === null ? "" : `, measured ${seconds(mark.measured_seconds)}`));
    if (mark.measured_seconds !== null) {
      svg("line", { x1: at, x2: at, y1: y(mark.predicted_seconds), y2: y(mark.measured_seconds), stroke }, group);
      svg("circle", { class: "measured", cx: at, cy: y(mark.measured_seconds), r: 4.5, fill: stroke }, group);
    }
    svg("circle", { class: "predicted", cx: at, cy: y(mark.predicted_seconds), r: 6 + 3.5 * twins, fill: "none",
      stroke, "stroke-width": 2.5 }, group);
  });
  for (const label of placeLabels(labels, 110)) {
    svg("text", { class: "name", x: label.x, y: label.y, style: `fill: ${label.fill}` }, chart, label.text);
  }
  document.querySelector("#sweep .chart").appendChild(chart);
}

showSteps();
drawSweep();
document.body.dataset.drawn = "yes";
