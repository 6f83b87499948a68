import { FieldType, dateTime, getValueFormat } from "@grafana/data";
import { BarGauge, BigValue, Table, TimeSeries } from "@grafana/ui";
import { interpolateViridis } from "d3-scale-chromatic";
import React from "react";

import { field, time } from "./frames.js";

const last = ({ points }) => points[points.length - 1][1];

function Empty({ panel, width, height }) {
  const words = panel.fieldConfig?.defaults?.noValue ?? "No data";
  return <div style={{ width, height, display: "grid", placeItems: "center", textAlign: "center", padding: 8 }}>{words}</div>;
}

function Lines({ panel, theme, found, from, to, width, height }) {
  const frames = found.map((each, index) => {
    const values = field(panel, theme, each.legend, each.points.map(([, value]) => value), index);
    return { length: each.points.length, refId: each.refId, fields: [time(theme, each.points.map(([t]) => t * 1000)), values] };
  });
  const range = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: "", to: "" } };
  const legend = { ...panel.options.legend, calcs: [], displayMode: "list" };
  return <TimeSeries {...{ frames, width, height, timeRange: range, timeZone: "utc", legend, options: panel.options }} />;
}

function Figures({ panel, theme, found, width, height }) {
  const each = width / found.length;
  return (
    <div style={{ display: "flex" }}>
      {found.map((one, index) => {
        const y = field(panel, theme, one.legend, one.points.map(([, value]) => value), index);
        const value = { ...y.display(last(one)), title: y.config.displayName };
        if (panel.options.textMode === "name") value.color = y.config.color?.fixedColor ?? value.color;
        const amounts = one.points.map(([, amount]) => amount);
        const [min, max] = [Math.min(...amounts), Math.max(...amounts)];
        y.state.range = { min, max, delta: max - min };
        const graphMode = panel.options.graphMode;
        const sparkline = graphMode === "area" && one.points.length > 1 ? { y, x: time(theme, one.points.map(([t]) => t * 1000)) } : undefined;
        return <BigValue key={index} {...{ theme, width: each, height, value, sparkline, graphMode, colorMode: panel.options.colorMode, textMode: panel.options.textMode }} />;
      })}
    </div>
  );
}

function Bars({ panel, theme, found, width, height }) {
  const most = Math.max(...found.map(last));
  const each = Math.min(height / found.length, 64);
  const [, chosen] = /^(topk|bottomk)/.exec(panel.targets[0].expr) ?? []; // the worst come first, as Prometheus tells them
  const byName = (one, other) => one.legend.localeCompare(other.legend, "en", { numeric: true });
  const byValue = (one, other) => (chosen === "topk" ? last(other) - last(one) : last(one) - last(other));
  const shown = [...found].sort(chosen ? byValue : byName);
  return shown.map((one, index) => {
    const made = field(panel, theme, one.legend, [last(one)], index);
    made.config.max ??= most;
    const value = { ...made.display(last(one)), title: one.legend };
    const options = { orientation: "horizontal", displayMode: "basic", showUnfilled: true, namePlacement: panel.options.namePlacement };
    return (
      <div key={index} style={{ height: each }}>
        <BarGauge {...{ theme, width, height: each - 6, value, field: made.config, display: made.display, ...options }} />
      </div>
    );
  });
}

function Rows({ panel, theme, found, width, height }) {
  const organize = panel.transformations.find(({ id }) => id === "organize").options;
  const names = Object.entries(organize.indexByName).sort(([, one], [, other]) => one - other).map(([name]) => name);
  const lines = new Map();
  for (const one of found) {
    const key = names.map((name) => one.labels[name] ?? "").join("|");
    lines.set(key, { ...lines.get(key), ...one.labels, [`Value #${one.refId}`]: last(one) });
  }
  const sorted = [...lines.entries()].sort(([one], [other]) => one.localeCompare(other, "en", { numeric: true })).map(([, line]) => line);
  for (const { displayName, desc } of panel.options.sortBy ?? []) {
    const column = names.find((name) => (organize.renameByName[name] ?? name) === displayName);
    const order = (line) => (desc ? -1 : 1) * (line[column] ?? -Infinity);
    sorted.sort((one, other) => order(one) - order(other));
  }
  const fields = names.map((name, index) => {
    const isValue = name in organize.renameByName;
    const type = isValue ? FieldType.number : FieldType.string;
    return field(panel, theme, organize.renameByName[name] ?? name, sorted.map((line) => line[name] ?? null), index, type);
  });
  for (const each of fields) each.config.color = { mode: "fixed", fixedColor: theme.colors.text.primary };
  return <Table data={{ length: sorted.length, fields }} width={width} height={height} />;
}

// Grafana's heatmap is no part of its packages: cells are drawn here, with its colours.
function Heat({ panel, theme, found, points, from, to, step, width, height }) {
  const numberOf = (bound) => (bound === "+Inf" ? Infinity : Number(bound));
  const bounds = [...new Set(found.map(({ labels }) => labels.le))].sort((one, other) => numberOf(one) - numberOf(other));
  const upTo = new Map();
  for (const { labels, points: told } of found) {
    for (const [t, value] of told) upTo.set(`${labels.le} ${t}`, (upTo.get(`${labels.le} ${t}`) ?? 0) + value);
  }
  const cells = [];
  for (let t = from; t <= to; t += step) {
    bounds.forEach((bound, row) => {
      const below = row ? (upTo.get(`${bounds[row - 1]} ${t}`) ?? 0) : 0;
      cells.push({ row, t, count: (upTo.get(`${bound} ${t}`) ?? 0) - below });
    });
  }
  const most = Math.max(...cells.map(({ count }) => count), 1e-9);
  const left = 76, bottom = 22, w = (width - left) / ((to - from) / step + 1), h = (height - bottom) / bounds.length;
  const format = getValueFormat(panel.fieldConfig.defaults.unit);
  const label = (bound) => { const told = format(Number(bound), 0); return bound === "+Inf" ? "all" : `≤ ${told.text}${told.suffix ?? ""}`; };
  const clock = (t) => new Date(t * 1000).toISOString().slice(11, 16);
  const rowOf = (value) => bounds.findIndex((bound) => value <= numberOf(bound));
  return (
    <svg width={width} height={height} fontSize="11" fill={theme.colors.text.secondary}>
      {cells.filter(({ count }) => count > 1e-6).map(({ row, t, count }) => (
        <rect key={`${row} ${t}`} x={left + ((t - from) / step) * w} y={(bounds.length - 1 - row) * h} width={w - 1} height={h - 1} fill={interpolateViridis(count / most)} />
      ))}
      {bounds.map((bound, row) => <text key={bound} x={left - 6} y={(bounds.length - 1 - row) * h + h / 2 + 4} textAnchor="end">{label(bound)}</text>)}
      {points.filter(([t]) => t >= from).map(([t, value], index) => {
        const x = left + ((t - from) / step) * w, y = (bounds.length - 1 - rowOf(value)) * h + h / 2;
        return <path key={index} d={`M${x - 4} ${y}L${x} ${y - 4}L${x + 4} ${y}L${x} ${y + 4}Z`} fill="#fff" stroke="#000" />;
      })}
      {[0.1, 0.5, 0.9].map((share) => <text key={share} x={left + (width - left) * share} y={height - 6} textAnchor="middle">{clock(from + (to - from) * share)}</text>)}
    </svg>
  );
}

const KINDS = { timeseries: Lines, stat: Figures, bargauge: Bars, table: Rows, heatmap: Heat };

export function Drawn(props) {
  const Kind = KINDS[props.panel.type];
  return props.found.length ? <Kind {...props} /> : <Empty {...props} />;
}
