// How figures, instants and reasons are written. What isn't known is a dash and its reason, never 0.

export const REASONS = {
  not_read_yet: "the counter has not been seen to change twice yet",
  not_trusted: "the counter could not be trusted then",
  silent: "the counter has told nothing new for 10 s",
  stale: "the counter stands still",
  reset: "the counter was reset",
  readings_missing: "readings of the counter are missing",
  implausible: "the counter claims more than the board can draw",
  no_tokens: "no tokens in the last minute",
  none_classified: "no response of the last minute was looked at for slack",
  classification_off: "looking for slack is off",
  text_not_told: "the server has not told its text",
  not_classified_yet: "not looked at yet",
  classifier_busy: "too many waited to be looked at",
  classifier_failed: "it could not be looked at",
  no_text: "it has no text",
  too_long: "its text is too long",
  not_measured: "the counter was lost meanwhile",
  no_fit_yet: "not enough load yet to learn it",
  not_looked_at_yet: "not looked at yet",
  no_connection: "the meter is gone",
};

export const CAUSES = {
  requests: "requests",
  idle: "idle",
  engine_overhead: "engine overhead",
  steps_missing: "unattributed: steps are missing",
  model_residual: "unattributed: more than steps explain",
  readings_missing: "unattributed: readings are missing",
  reset: "unattributed: counter was reset",
  stale: "unattributed: counter stood still",
  implausible: "unattributed: not to be believed",
};

export const WASTE_MEANINGS = {
  abandoned: "nobody waited for the answer",
  retry: "its user had the answer made anew",
  truncated: "the length limit cut the answer off",
  draft: "drafted tokens that were rejected",
};

export const TERMS = {
  p0_w: "power with nothing running",
  c_j: "per step",
  a_j: "per prompt token",
  a2_j: "per pair of prompt tokens",
  b_j: "per output token",
  d_j: "per attended token",
};

export function reason(code) {
  return REASONS[code] ?? (code ? String(code).replaceAll("_", " ") : "not known");
}

/** Three significant digits, so that a column's figures compare, or whole numbers from 1000 on. */
export function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 0.001) return value.toPrecision(3);
  return value.toExponential(1).replace("e-", "·10⁻").replace(/⁻(\d+)$/, (_, power) => "⁻" + [...power].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join(""));
}

/** Digits after the point are alike in a column: 2 below 10, 1 below 100. */
export function joules(value) {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0);
}

export function share(value) {
  return value.toFixed(2);
}

export function percent(value) {
  const hundredths = 100 * value;
  if (hundredths > 0 && hundredths < 0.05) return "< 0.1 %";
  if (hundredths < 100 && hundredths >= 99.95) return "> 99.9 %";
  const ends = (hundredths > 0 && hundredths < 10) || (hundredths > 99 && hundredths < 100);
  return `${ends ? hundredths.toFixed(1) : Math.round(hundredths)} %`;
}

export function time(milliseconds) {
  return new Date(milliseconds).toLocaleTimeString("en-GB");
}

export function span(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** The unit, with the source where it is any other than a measurement. */
export function unit(name, source) {
  return source && source !== "measured" ? `${name} ${source}` : name;
}

/** An element with text, classes and attributes. Text never becomes markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "style") for (const [property, each] of Object.entries(value)) made.style.setProperty(property, each);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A dash and why, for eyes and ears. */
export function missing(code) {
  return element("span", { class: "missing", title: reason(code), "data-why": reason(code) }, "–", element("span", { class: "heard" }, ` (${reason(code)})`));
}

/** A board's name, with the end of its id where there are several of that name. */
export function boardName(gpu, gpus) {
  const alike = gpus.filter((other) => other.board === gpu.board).length > 1;
  if (!gpu.board) return gpu.gpu_uuid;
  return alike ? `${gpu.board} …${gpu.gpu_uuid.slice(-4)}` : gpu.board;
}
