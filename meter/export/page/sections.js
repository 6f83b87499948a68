// What each section of the page says of a snapshot.

import { bar } from "./charts.js";
import { refresh, table } from "./tables.js";
import { CAUSES, TERMS, WASTE_MEANINGS, boardName, element, joules, missing, number, percent, reason, share, span, time, unit } from "./words.js";

const SHOWN_REQUESTS = 12;
const WASTES = ["abandoned", "retry", "truncated", "draft"];
const CATEGORIES = ["preamble", "restatement", "hedge", "meta", "repetition", "closing", "junk", "unspecified"];

/** A value, or a dash with its reason. */
function known(value, write, code) {
  return value === null || value === undefined ? missing(code) : write(value);
}

function figure(name, value, name_of_unit, source, below) {
  const figures = value.length ? value : [value];
  return element(
    "div",
    { class: "figure" },
    element("h3", {}, name),
    element("p", { class: "value" }, ...figures, " ", element("span", { class: "unit" }, unit(name_of_unit, source))),
    ...below.map((line) => element("p", { class: "below" }, ...[line].flat())),
  );
}

export function figures(holder, snapshot, lost) {
  const { now, source, gpus, window_s: window } = snapshot;
  const unknown = gpus.find((gpu) => gpu.power_w === null);
  const watts = lost || unknown ? null : gpus.reduce((sum, gpu) => sum + gpu.power_w, 0);
  const why = lost ? "no_connection" : unknown?.power_reason;
  const over = `over the last ${window} s`;
  const running = snapshot.engines.reduce((sum, engine) => sum + engine.running, 0);
  const finished = snapshot.arms.reduce((sum, arm) => sum + arm.requests, 0);
  const eta = lost ? null : now.eta;
  const eta_code = lost ? "no_connection" : now.eta_reason;
  const perToken = (name, energy, wh, code) => {
    const shown = lost ? null : energy;
    const because = lost ? "no_connection" : code;
    return figure(name, known(shown, number, because), "J/token", source, [
      ...(shown === null ? [reason(because)] : [[`${number(1e6 * wh)} `, unit("µWh/token", source)], over]),
    ]);
  };
  const boards = gpus.length === 1 ? gpus[0].board : `${gpus.length} boards`;
  const cards = [
    figure("Power", known(watts, number, why), "W", source, [watts === null ? reason(why) : boards, "over the last second read"]),
    perToken("Output", now.output_j_per_token, now.output_wh_per_token, now.output_reason),
    perToken("Prompt", now.prompt_j_per_token, now.prompt_wh_per_token, now.prompt_reason),
    figure("η, lenient", eta === null ? missing(eta_code) : ["≤ ", share(eta.lenient_at_most)], "of output tokens were asked for, or informed", null, eta === null ? [reason(eta_code)] : [
      `between ${share(eta.low)} and ${share(eta.lenient_at_most)}; ${percent(eta.unclassified)} not classified`,
      `reliability ${eta.reliability === null ? "–, not audited yet" : `${share(eta.reliability)} [${eta.reliability_interval.map(share).join(", ")}]`}${eta.reliable === false ? ": UNRELIABLE by audits" : ""}, ${over}`,
    ]),
    figure("Requests", lost ? missing("no_connection") : String(running), "running", null, [`${finished.toLocaleString("en-US")} settled since the meter began`]),
  ];
  refresh(holder, cards.map((card) => card.textContent), () => cards);
}

/** Slack by category, as a bar whose rest is what isn't shown to be slack. Where it is known, each span stands at its place in the answer. */
function slack(eta, code) {
  if (!eta) return missing(code);
  const parts = CATEGORIES.filter((name) => eta.slack[name] > 0).map((name) => piece(name, eta.slack[name]));
  const shown = parts.reduce((sum, part) => sum + part.value, 0);
  const told = parts.length ? parts.map((part) => `${part.name} ${part.told}`).join(", ") : "none is shown to be slack";
  return element("div", { class: "slack" }, bar(eta.spans ? placed(eta.spans) : parts, 1, told), element("span", { class: "told" }, percent(shown)));
}

function piece(name, value) {
  return { name, value, hue: CATEGORIES.includes(name) ? `slack-${name}` : "rest", told: percent(value) };
}

/** The spans of an answer from its beginning to its end, with what lies between them. */
function placed(spans) {
  const pieces = [];
  let end = 0;
  for (const [from, to, name] of spans) {
    if (from > end) pieces.push(piece("not shown to be slack", from - end));
    pieces.push(piece(name, to - from));
    end = to;
  }
  return pieces;
}

function swatch(name, hue) {
  return element("span", { class: "named" }, element("span", { class: `swatch ${hue}`, "aria-hidden": "true" }), name);
}

export function legend(holder, names) {
  refresh(holder, names, () => names.map(([name, hue]) => element("li", {}, swatch(name, hue))));
}

/** Joules of answers that were lost whatever they say, by what became of them. */
function wasted(by_waste) {
  const lost = WASTES.filter((waste) => by_waste[waste] > 0);
  if (!lost.length) return "0";
  const words = lost.map((waste) => element("span", { class: "waste", title: WASTE_MEANINGS[waste] }, `${waste} ${joules(by_waste[waste])}`));
  return element("span", { class: "wastes" }, ...words);
}

function slackLegend(etas) {
  const seen = CATEGORIES.filter((name) => etas.some((eta) => eta?.slack[name] > 0));
  if (!seen.length) return null;
  return element("ul", { class: "legend" }, element("li", {}, "slack:"), ...seen.map((name) => element("li", {}, swatch(name, `slack-${name}`))));
}

export function arms(holder, snapshot, hue) {
  refresh(holder, snapshot.arms, () => {
    if (!snapshot.arms.length) return element("p", { class: "empty" }, "No request has been charged yet.");
    const { source } = snapshot;
    const models = new Set(snapshot.arms.map((arm) => arm.model)).size > 1;
    const columns = [
      { name: "Arm", text: true },
      { name: "Requests" },
      { name: "Output", unit: unit("J/token", source) },
      { name: "Output", unit: unit("µWh/token", source) },
      { name: "Prompt", unit: unit("J/token", source) },
      { name: "Output tokens", unit: "per request" },
      { name: "η ≤" },
      { name: "Slack", unit: "of output", text: true },
      { name: "Wasted", unit: unit("J", source), text: true },
    ];
    const rows = snapshot.arms.map((arm) => [
      swatch(models ? `${arm.arm} · ${arm.model}` : arm.arm, hue(arm)),
      arm.requests.toLocaleString("en-US"),
      known(arm.output_j_per_token, number, "no_tokens_yet"),
      known(arm.output_wh_per_token, (wh) => number(1e6 * wh), "no_tokens_yet"),
      known(arm.prompt_j_per_token, number, "no_tokens_yet"),
      arm.requests ? number(arm.output_tokens / arm.requests) : missing("none_settled_yet"),
      known(arm.eta, (eta) => share(eta.lenient_at_most), "none_classified_yet"),
      slack(arm.eta, "none_classified_yet"),
      arm.requests ? wasted(arm.wasted_j) : missing("none_settled_yet"),
    ]);
    return [table("Arms side by side", columns, rows), slackLegend(snapshot.arms.map((arm) => arm.eta))].filter(Boolean);
  });
}

export function balance(holder, snapshot) {
  const told = snapshot.balance;
  refresh(holder, [told, snapshot.arms.map((arm) => arm.wasted_j)], () => {
    if (told.source === null) return element("p", { class: "empty" }, "No interval has been settled yet: the meter waits for an engine.");
    const causes = Object.entries(told.unattributed_j).map(([cause, value]) => ({ key: cause, value, hue: "lost" }));
    const parts = [
      { key: "requests", value: told.requests_j, hue: "paid" },
      { key: "idle", value: told.idle_j, hue: "idle" },
      { key: "engine_overhead", value: told.engine_overhead_j, hue: "overhead" },
      ...causes,
    ].map((part) => ({ ...part, name: CAUSES[part.key] ?? `unattributed: ${reason(part.key)}` }));
    const name_of_unit = unit("J", told.source);
    const rows = parts.map((part) => [swatch(part.name, part.hue), joules(part.value), told.measured_j > 0 ? percent(part.value / told.measured_j) : missing("no_energy_yet")]);
    const close = Math.abs(told.residual_j) <= 1e-6 * Math.max(told.measured_j, 1);
    const wastes = WASTES.map((waste) => [waste, snapshot.arms.reduce((sum, arm) => sum + (arm.wasted_j[waste] ?? 0), 0)]);
    const wasted_j = wastes.reduce((sum, [, value]) => sum + value, 0);
    return [
      bar(
        parts.map((part) => ({ ...part, told: `${joules(part.value)} ${name_of_unit}` })),
        Math.max(told.measured_j, 1e-12),
        `Of ${joules(told.measured_j)} ${name_of_unit}: ${parts.map((part) => `${part.name} ${joules(part.value)}`).join(", ")}`,
      ),
      table("Where the joules went", [{ name: "Part", text: true }, { name: "Energy", unit: name_of_unit }, { name: "Share" }], rows),
      element(
        "p",
        { class: close ? "sum" : "sum wrong" },
        `Together ${joules(told.measured_j - told.residual_j)} ${name_of_unit}; the counter says ${joules(told.measured_j)} ${name_of_unit}. `,
        close ? "They agree." : `They differ by ${number(told.residual_j)} ${name_of_unit}.`,
      ),
      element(
        "p",
        { class: "below" },
        `Wasted of what requests took: ${joules(wasted_j)} ${name_of_unit}`,
        wasted_j > 0 ? ` (${wastes.filter(([, value]) => value > 0).map(([waste, value]) => `${waste} ${joules(value)}`).join(", ")}).` : ".",
      ),
    ];
  });
}

export function requests(holder, note, latest, snapshot, hue, wall) {
  const shown = latest.slice(0, SHOWN_REQUESTS);
  note.textContent = latest.length > shown.length ? "those that ended last" : "";
  refresh(holder, shown, () => {
    if (!shown.length) return element("p", { class: "empty" }, "No request is settled yet.");
    const { source } = snapshot;
    const columns = [
      { name: "Request", text: true },
      { name: "Arm", text: true },
      { name: "Ended" },
      { name: "Tokens", unit: "in + out" },
      { name: "Prompt", unit: unit("J", source) },
      { name: "Output", unit: unit("J", source) },
      { name: "±", unit: unit("J", source) },
      { name: "Output", unit: unit("µWh/token", source) },
      { name: "η ≤" },
      { name: "Slack", unit: "of output", text: true },
      { name: "Wasted", unit: unit("J", source), text: true },
    ];
    const rows = shown.map((request) => [
      request.id === null ? missing("server_told_no_id") : element("code", { title: request.id }, short(request.id)),
      swatch(request.arm, hue(request)),
      known(request.finished_s, (t_s) => time(wall(t_s)), "not_known"),
      `${request.prompt_tokens.toLocaleString("en-US")} + ${request.output_tokens.toLocaleString("en-US")}`,
      known(request.prompt_j, (value) => least(request) + joules(value), request.energy_reason),
      known(request.output_j, (value) => least(request) + joules(value), request.energy_reason),
      known(request.error_j, joules, request.energy_reason),
      known(request.output_wh_per_token, (wh) => number(1e6 * wh), request.energy_reason ?? "a_single_token"),
      known(request.eta, (eta) => share(eta.lenient_at_most), request.eta_reason),
      slack(request.eta, request.eta_reason),
      request.energy_reason === null ? wasted(request.waste_j) : missing(request.energy_reason),
    ]);
    return [table("Latest requests", columns, rows), slackLegend(shown.map((request) => request.eta))].filter(Boolean);
  });
}

/** Before the figures of one that was metered in part. */
function least(request) {
  return request.method.endsWith("-partial") ? "≥ " : "";
}

function short(id) {
  return id.length > 20 ? `${id.slice(0, 17)}…` : id;
}

export function sensors(holder, snapshot) {
  const { gpus, sampler, engines, now_s } = snapshot;
  const settled = engines.map((engine) => engine.settled_until_s).filter((t_s) => t_s !== null);
  const behind = settled.length ? now_s - Math.min(...settled) : null;
  const shown = gpus.map(({ trace, power_w, ...rest }) => rest);
  const health = [
    ["Settled up to", known(behind, (seconds) => `${seconds.toFixed(1)} s ago`, "no_engine_yet")],
    ["Reads of counters", sampler.polls.toLocaleString("en-US")],
    ["Late by, mean", known(sampler.mean_lateness_s, (seconds) => `${(1e3 * seconds).toFixed(2)} ms`, "not_read_yet")],
    ["Late by, at worst", known(sampler.worst_lateness_s, (seconds) => `${(1e3 * seconds).toFixed(1)} ms`, "not_read_yet")],
    ["Reads missed", sampler.missed_polls.toLocaleString("en-US")],
    ["Edges dropped", sampler.dropped_edges.toLocaleString("en-US")],
    ["Messages dropped", sampler.dropped_messages.toLocaleString("en-US")],
    ["Step records lost", engines.reduce((sum, each) => sum + each.lost_records + each.torn_records, 0).toLocaleString("en-US")],
  ];
  refresh(holder, [shown, health.map(([name, value]) => name + (value.textContent ?? value))], () => [
    table(
      "Sensors",
      [
        { name: "Board", text: true },
        { name: "Counter", text: true },
        { name: "Source", text: true },
        { name: "Period", unit: "ms" },
        { name: "Lag", unit: "ms" },
        { name: "Missed edges" },
        { name: "Resets" },
        { name: "Neighbours" },
        { name: "Fit is off by" },
        { name: "Costs not told by the load", text: true },
      ],
      gpus.map((gpu) => sensorRow(gpu, boardName(gpu, gpus))),
    ),
    element("dl", {}, ...health.flatMap(([name, value]) => [element("div", {}, element("dt", {}, name), element("dd", {}, value))])),
  ]);
}

function sensorRow(gpu, name) {
  const { sensor, sensor_reason: code } = gpu;
  const milliseconds = (seconds) => (1e3 * seconds).toFixed(0);
  const terms = (names) => (names.length ? names.map((name) => TERMS[name] ?? name).join(", ") : "none");
  return [
    element("span", { title: gpu.gpu_uuid }, name),
    gpu.counter,
    element("span", { class: gpu.source === "simulated" ? "flag" : null }, gpu.source),
    known(sensor?.update_period_s, milliseconds, code ?? "not_known_yet"),
    sensor?.lag_s == null ? missing(code) : `${milliseconds(sensor.lag_s)} ± ${milliseconds(sensor.lag_error_s)}`,
    known(sensor?.missed_edges, String, code),
    known(sensor?.resets, String, code),
    known(sensor?.neighbours, String, "cannot_be_told_here"),
    known(sensor?.residual, percent, code),
    known(sensor?.unidentified, terms, code),
  ];
}

export function powerTable(holder, view) {
  const per = Math.round(5 / view.step_s);
  const last = Math.floor(view.now_s / view.step_s);
  const rows = [];
  for (let end = last - (last % per); end > last - 120 / view.step_s; end -= per) {
    const cells = view.boards.map((board) => {
      const steps = Array.from({ length: per }, (_, place) => board.watts.get(end - per + place));
      if (steps.some((watts) => typeof watts !== "number")) return missing(steps.includes(null) ? "not_trusted" : "not_read_yet");
      return number(steps.reduce((sum, watts) => sum + watts, 0) / per);
    });
    rows.push([`${time(view.wall_ms - (view.now_s - end * view.step_s) * 1000)}`, ...cells]);
  }
  const columns = [{ name: "Up to", text: true }, ...view.boards.map((board) => ({ name: board.name, unit: unit("W", view.source) }))];
  refresh(holder, [view.boards.length, rows[0]?.[0]], () => table("Power, means over 5 s", columns, rows));
}

export function since(snapshot) {
  const { started_s, started_unix_s } = snapshot.meter;
  return `since ${time(1000 * started_unix_s)}, ${span(snapshot.now_s - started_s)} ago`;
}
