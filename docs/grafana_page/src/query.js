// Asks Prometheus what a panel asks, with Grafana's variables set as for a scrape each second.
const WORDS = {
  "$__rate_interval": "15s", "$__range": "5m",
  $cluster: ".*", $model: ".*", $arm: ".*", $gpu: ".*", $source: ".*",
};

async function asked(address, path, parameters) {
  const answer = await fetch(`http://${address}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const told = await answer.json();
  if (told.status !== "success") throw new Error(told.error);
  return told.data;
}

// One entry for each series: {legend, labels, points: [[seconds, value]]}.
export async function series(address, target, from, to, step) {
  let query = target.expr;
  for (const [word, value] of Object.entries(WORDS)) query = query.replaceAll(word, value);
  const found = target.instant
    ? (await asked(address, "query", { query, time: to })).result.map(({ metric, value }) => ({ metric, values: [value] }))
    : (await asked(address, "query_range", { query, start: from, end: to, step })).result;
  return found.map(({ metric, values }) => ({
    refId: target.refId,
    labels: metric,
    legend: (target.legendFormat || "").replace(/\{\{(\w+)\}\}/g, (_, name) => metric[name] ?? "").trim(),
    points: values.map(([t, value]) => [t, Number(value)]).filter(([, value]) => Number.isFinite(value)),
  })).filter(({ points }) => points.length);
}

// [[seconds, value]] of single requests.
export async function exemplars(address, metric, from, to) {
  const found = await asked(address, "query_exemplars", { query: metric, start: from, end: to });
  return found.flatMap((each) => each.exemplars.map(({ timestamp, value }) => [timestamp, Number(value)]));
}
