// Numbers of /metrics over time: what was at a moment, and what changed between two.

const KEPT = 3600; // seconds
const PREFIX = "octavo:";

/** Prometheus' text as sums over all labels by name; buckets of histograms by name and bound; replicas by state. */
export function parseMetrics(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const found = line.match(/^([\w:]+)(?:\{(.*)\})? ([-+.\deE]+|NaN|[+-]Inf)$/);
    if (!found) continue;
    const bound = /(?:^|,)le="([^"]+)"/.exec(found[2] ?? "")?.[1];
    const state = found[1] === PREFIX + "replicas" ? /(?:^|,)state="(\w+)"/.exec(found[2] ?? "")?.[1] : null;
    const name = found[1].replace(PREFIX, "") + (bound ? ` ${bound}` : "") + (state ? ` ${state}` : "");
    const value = Number(found[3]);
    if (Number.isFinite(value)) values[name] = (values[name] ?? 0) + value;
  }
  return values;
}

export class Samples {
  constructor() {
    this.all = [];
  }

  /** `values` null: there were none, as the server did not answer or the engine was down. */
  add(time, values) {
    this.all.push({ time, values });
    while (this.all[0].time < time - KEPT - 60) this.all.shift();
  }

  /** The samples between two times in seconds, with the one before them. */
  between(from, to) {
    const first = this.all.findLastIndex((one) => one.time <= from);
    return this.all.slice(Math.max(0, first)).filter((one) => one.time <= to);
  }
}

const known = (samples) => samples.filter((one) => one.values);

/** How much a counter grew; null where that is not known. A server that began anew counts from nothing. */
function growth(samples, name) {
  const there = known(samples);
  if (there.length < 2) return null;
  let sum = 0;
  for (let i = 1; i < there.length; i++) {
    const [before, now] = [there[i - 1].values[name] ?? 0, there[i].values[name] ?? 0];
    sum += now >= before ? now - before : now;
  }
  return sum;
}

/** What a tile shows, each a function of some samples. */
export const mean = (name) => (samples) => {
  const there = known(samples);
  return there.length ? there.reduce((sum, { values }) => sum + (values[name] ?? 0), 0) / there.length : null;
};
export const latest =
  (name, of = (values) => values[name] ?? 0) =>
  (samples) => {
    const last = samples.at(-1);
    return last?.values ? of(last.values) : null;
  };
export const perSecond = (name) => (samples) => {
  const there = known(samples);
  const grown = growth(samples, name);
  return grown === null ? null : grown / (there.at(-1).time - there[0].time);
};
export const share = (part, whole) => (samples) => {
  const all = growth(samples, whole);
  return all ? (100 * growth(samples, part)) / all : null;
};
export const average = (name) => (samples) => {
  const count = growth(samples, name + "_count");
  return count ? growth(samples, name + "_sum") / count : null;
};

/** The bound below which a share of a histogram's new entries lie; null without entries, Infinity above the last bound. */
export function quantile(samples, name, part) {
  const last = known(samples).at(-1);
  if (!last) return null;
  const bounds = Object.keys(last.values)
    .filter((key) => key.startsWith(name + "_bucket "))
    .map((key) => key.split(" ")[1]);
  const counts = bounds.map((bound) => [
    bound === "+Inf" ? Infinity : Number(bound),
    growth(samples, `${name}_bucket ${bound}`),
  ]);
  const all = counts.find(([bound]) => bound === Infinity)?.[1];
  if (!all) return null;
  return counts.sort(([a], [b]) => a - b).find(([, count]) => count >= part * all)[0];
}
