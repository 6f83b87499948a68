// Power over time with a band for each request, and bars that are divided. SVG, drawn anew with each snapshot.

import { element, missing, number, time, unit } from "./words.js";

export const SHOWN_S = 120;
const LEFT = 46, RIGHT = 10, TOP = 24, AXIS = 20, PLOT = 190, LANE = 8, GAP = 3;

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A round number above `value`, and how far apart the lines are that lead there. */
export function scale(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 1e-6) / 3));
  const each = [1, 2, 5, 10].map((times) => times * step).find((times) => value / times <= 4);
  return { top: Math.max(1, Math.ceil(value / each)) * each, each };
}

/** Puts each request on the first lane that is free when it arrives; who has a lane keeps it. */
export class Lanes {
  #lanes = new Map();

  place(requests, most) {
    const known = new Set(requests.map((request) => request.key));
    for (const key of this.#lanes.keys()) if (!known.has(key)) this.#lanes.delete(key);
    const busy = [];
    for (const request of requests) {
      const lane = this.#lanes.get(request.key);
      if (lane !== undefined) (busy[lane] ??= []).push(request);
    }
    for (const request of requests) {
      if (this.#lanes.has(request.key)) continue;
      let lane = 0;
      while ((busy[lane] ?? []).some((other) => overlap(other, request))) lane += 1;
      (busy[lane] ??= []).push(request);
      this.#lanes.set(request.key, lane);
    }
    const placed = requests.map((request) => ({ request, lane: this.#lanes.get(request.key) }));
    return { shown: placed.filter((each) => each.lane < most), hidden: placed.filter((each) => each.lane >= most).length, lanes: Math.min(most, busy.length) };
  }
}

function overlap(one, other) {
  return one.arrival_s < (other.finished_s ?? Infinity) && other.arrival_s < (one.finished_s ?? Infinity);
}

/** The power of all boards together, by step; null where that of one of them isn't known, undefined where nothing was told. */
export function total(boards, from, to) {
  const sums = [];
  for (let step = from; step <= to; step += 1) {
    const each = boards.map((board) => board.watts.get(step));
    sums.push(each.some((watts) => watts === undefined) ? undefined : each.some((watts) => watts === null) ? null : each.reduce((sum, watts) => sum + watts, 0));
  }
  return sums;
}

/** Means of so many steps each: as unknown as the least known of them. */
function joined(sums, many) {
  const means = [];
  for (let at = 0; at < sums.length; at += many) {
    const each = sums.slice(at, at + many);
    means.push(each.includes(undefined) ? undefined : each.includes(null) ? null : each.reduce((sum, watts) => sum + watts, 0) / many);
  }
  return means;
}

export class PowerChart {
  #lanes = new Lanes();
  #cursor = null; // instant (s) that is read out
  #last = null;

  constructor(holder, readout) {
    this.holder = holder;
    this.readout = readout;
    holder.tabIndex = 0;
    holder.setAttribute("role", "img");
    holder.addEventListener("pointermove", (event) => this.#read(this.#instant(event.clientX)));
    holder.addEventListener("pointerleave", () => this.#read(null));
    holder.addEventListener("blur", () => this.#read(null));
    holder.addEventListener("keydown", (event) => this.#key(event));
    readout.setAttribute("aria-live", "polite");
    new ResizeObserver(() => this.#last && this.draw(this.#last)).observe(holder);
  }

  /** `view`: {now_s, wall_ms (of now_s), step_s, boards: [{name, watts: Map}], requests, source, hue(request)} */
  draw(view) {
    this.#last = view;
    if (this.#cursor !== null && this.#cursor < view.now_s - SHOWN_S) { // it has left the picture
      this.#cursor = null;
      this.readout.replaceChildren();
    }
    const width = Math.max(this.holder.clientWidth, 200);
    const start_s = view.now_s - SHOWN_S;
    const x = (t_s) => LEFT + ((t_s - start_s) / SHOWN_S) * (width - LEFT - RIGHT);
    const many = width < 700 ? 4 : 1; // so many steps are drawn as one
    const step_s = many * view.step_s;
    const from = Math.ceil(start_s / step_s), to = Math.floor(view.now_s / step_s);
    const power = (boards) => joined(total(boards, many * from, many * to - 1), many);
    const sums = power(view.boards);
    const { top, each } = scale(Math.max(1, ...sums.filter((watts) => watts)));
    const y = (watts) => TOP + PLOT * (1 - watts / top);
    const bands = this.#lanes.place(view.requests.filter((request) => (request.finished_s ?? Infinity) > start_s), width < 500 ? 10 : 16);
    const height = TOP + PLOT + AXIS + (bands.lanes ? bands.lanes * (LANE + GAP) + 22 : 0);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    this.#axes(picture, view, { width, x, y, top, each, start_s });
    this.#unknown(picture, sums, from, step_s, x);
    if (view.boards.length > 1) {
      for (const board of view.boards) {
        picture.append(svg("path", { class: "board", d: path(power([board]), from, step_s, x, y) }));
      }
    }
    picture.append(svg("path", { class: "area", d: path(sums, from, step_s, x, y, y(0)) }));
    picture.append(svg("path", { class: "line", d: path(sums, from, step_s, x, y) }));
    this.#bands(picture, bands, view, x, { width, floor: TOP + PLOT + AXIS + 18, start_s });
    if (view.source === "simulated") {
      for (let at = 0; LEFT + 250 + at * 320 < width; at += 1) {
        picture.append(svg("text", { class: "watermark", x: LEFT + 30 + at * 320, y: TOP + 40 }, "SIMULATED"));
      }
    }
    if (this.#cursor !== null) {
      picture.append(svg("line", { class: "cursor", x1: x(this.#cursor), x2: x(this.#cursor), y1: TOP, y2: height }));
    }
    this.holder.replaceChildren(picture);
    this.holder.setAttribute("aria-label", `${this.#told(sums, view)} Arrow keys read single instants; a table follows.`);
  }

  #told(sums, view) {
    const known = sums.filter((watts) => typeof watts === "number");
    if (!known.length) return "Power over the last two minutes: none is known yet.";
    const name = unit("watts", view.source);
    return `Power over the last two minutes, ${number(Math.min(...known))} to ${number(Math.max(...known))} ${name}, ${number(known.at(-1))} at the end, with ${view.requests.length} requests.`;
  }

  #axes(picture, view, { width, x, y, top, each, start_s }) {
    picture.append(svg("text", { class: "label", x: 4, y: 11 }, unit("W", view.source)));
    for (let watts = 0; watts <= top * 1.001; watts += each) {
      picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(watts), y2: y(watts) }));
      picture.append(svg("text", { class: "tick end", x: LEFT - 6, y: y(watts) + 4 }, Number(watts.toPrecision(4)).toLocaleString("en-US")));
    }
    const apart_s = width < 500 ? 40 : 20;
    const offset_s = view.wall_ms / 1000 - view.now_s; // ticks stand at round times of the wall clock
    for (let wall_s = Math.ceil((start_s + offset_s) / apart_s) * apart_s; wall_s < view.now_s + offset_s; wall_s += apart_s) {
      const at = x(wall_s - offset_s);
      picture.append(svg("line", { class: "grid", x1: at, x2: at, y1: TOP, y2: TOP + PLOT }));
      if (at > LEFT + 20 && at < width - 34) picture.append(svg("text", { class: "tick middle", x: at, y: TOP + PLOT + 14 }, time(wall_s * 1000)));
    }
  }

  #unknown(picture, sums, from, step_s, x) {
    sums.forEach((watts, index) => {
      if (watts !== null) return;
      const left = x((from + index) * step_s);
      const right = x((from + index + 1) * step_s);
      picture.append(svg("rect", { class: "unknown", x: left, y: TOP, width: right - left, height: PLOT }));
    });
  }

  #bands(picture, bands, view, x, { width, floor, start_s }) {
    if (!bands.lanes) return;
    picture.append(svg("text", { class: "label", x: LEFT, y: floor - 2 }, bands.hidden ? `requests (${bands.hidden} more at once than are drawn)` : "requests"));
    for (const { request, lane } of bands.shown) {
      const y = floor + 5 + lane * (LANE + GAP);
      const begin = x(Math.max(request.arrival_s, start_s));
      const first = request.first_token_s === null ? null : x(Math.max(request.first_token_s, start_s));
      const end = Math.min(x(request.finished_s ?? view.now_s), width - RIGHT);
      const group = svg("g", { class: `band ${view.hue(request)}` });
      group.append(svg("rect", { class: "prompt", x: begin, y, width: Math.max((first ?? end) - begin, 1), height: LANE }));
      if (first !== null) group.append(svg("rect", { class: "output", x: first, y, width: Math.max(end - first, 1), height: LANE }));
      picture.append(group);
    }
  }

  #instant(client_x) {
    const box = this.holder.getBoundingClientRect();
    const part = (client_x - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return this.#last && this.#last.now_s - SHOWN_S * (1 - Math.min(1, Math.max(0, part)));
  }

  #key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") this.#read(null);
    if (move === undefined || !this.#last) return;
    event.preventDefault();
    const { now_s } = this.#last;
    this.#read(Math.min(now_s, Math.max(now_s - SHOWN_S, (this.#cursor ?? now_s) + move)));
  }

  #read(t_s) {
    this.#cursor = t_s;
    const view = this.#last;
    if (t_s === null || !view) {
      this.readout.replaceChildren();
    } else {
      const step = Math.floor(t_s / view.step_s);
      const [watts] = total(view.boards, step, step);
      const requests = view.requests.filter((each) => each.arrival_s <= t_s && t_s < (each.finished_s ?? Infinity)).length;
      const at = time(view.wall_ms - (view.now_s - t_s) * 1000);
      const power = typeof watts === "number" ? `${number(watts)} ${unit("W", view.source)}` : missing(watts === null ? "not_trusted" : "not_read_yet");
      this.readout.replaceChildren(`${at}: `, power, `, ${requests} ${requests === 1 ? "request" : "requests"}`);
    }
    if (view) this.draw(view);
  }
}

/** Steps, as wide as they are; a gap where nothing is known. With `base`, closed down to it. */
function path(sums, from, step_s, x, y, base = null) {
  let drawn = "";
  let open = false;
  sums.forEach((watts, index) => {
    if (typeof watts !== "number") {
      if (open && base !== null) drawn += `V${base.toFixed(1)}Z`;
      open = false;
      return;
    }
    const left = x((from + index) * step_s).toFixed(1), right = x((from + index + 1) * step_s).toFixed(1);
    if (!open) drawn += base === null ? `M${left} ${y(watts).toFixed(1)}` : `M${left} ${base.toFixed(1)}V${y(watts).toFixed(1)}`;
    drawn += `L${left} ${y(watts).toFixed(1)}H${right}`;
    open = true;
  });
  if (open && base !== null) drawn += `V${base.toFixed(1)}Z`;
  return drawn;
}

/** A bar of `parts` ({name, value, hue, told}), each as wide as its share of `whole`. */
export function bar(parts, whole, label) {
  const pieces = parts
    .filter((part) => part.value > 0)
    .map((part) => element("span", { class: `piece ${part.hue}`, title: `${part.name}: ${part.told}`, style: { width: `${(100 * part.value) / whole}%` } }));
  return element("div", { class: "bar", role: "img", "aria-label": label }, ...pieces);
}
