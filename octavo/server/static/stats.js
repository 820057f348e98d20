// The live view of the engine: a tile a number, with a curve over the window that is chosen and a scale to read it by.
import { $, make } from "./dom.js";
import { Samples, average, latest, mean, parseMetrics, perSecond, quantile, share } from "./samples.js";

const EVERY = 1000; // milliseconds
const NOW = 10; // seconds that the large numbers are of
const POINTS = 60; // of a curve
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [300, 110, 46, 6, 8, 18];

const seconds = (value) => (value < 1 ? `${digits(1000 * value)} ms` : `${digits(value)} s`);
const digits = (value) =>
  value >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toFixed(value < 10 ? 2 : 1));
const percent = (value) => `${digits(value)} %`;
const within = (name) => (samples) => {
  const bound = quantile(samples, name, 0.95);
  return bound === null ? "" : bound === Infinity ? "95 %: longer than is counted" : `95 % within ${seconds(bound)}`;
};

/** `read` gives the number of now, `curve` that of a part of the curve (the same unless it is said). */
const TILES = [
  { title: "Requests running", read: latest("num_requests_running"), curve: mean("num_requests_running") },
  { title: "Requests waiting", read: latest("num_requests_waiting"), curve: mean("num_requests_waiting") },
  { title: "Tokens written a second", read: perSecond("generation_tokens_total") },
  { title: "Prompt tokens read a second", read: perSecond("prompt_tokens_total") },
  {
    title: "Time to the first token",
    read: average("time_to_first_token_seconds"),
    format: seconds,
    more: within("time_to_first_token_seconds"),
  },
  {
    title: "Time between two tokens",
    read: average("time_per_output_token_seconds"),
    format: seconds,
    more: within("time_per_output_token_seconds"),
  },
  {
    title: "KV cache in use",
    read: latest("", (v) => (100 * (v.kv_cache_usage_perc ?? 0)) / Math.max(1, engines(v))),
    format: percent,
    top: 100,
  },
  {
    title: "Prompt tokens from the prefix cache",
    read: share("prefix_cache_hits_total", "prefix_cache_queries_total"),
    format: percent,
    top: 100,
  },
  { title: "Preemptions", read: latest("num_preemptions_total"), unit: "since the start" },
  { title: "Pictures, films, sounds read", read: latest("media_items_total"), unit: "since the start" },
];
const engines = (values) =>
  ["running", "starting", "restarting", "dead"].reduce((sum, state) => sum + (values["replicas " + state] ?? 0), 0);

const samples = new Samples();
const tiles = TILES.map((tile) => {
  const made = {
    format: digits,
    curve: tile.read,
    ...tile,
    out: make("output", { textContent: "–" }),
    under: make("p", { className: "more", textContent: tile.unit ?? "" }),
  };
  made.box = make(
    "section",
    { className: "tile", "aria-label": tile.title },
    make("h2", { textContent: tile.title }),
    made.out,
    made.under,
  );
  made.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  made.box.append(made.svg);
  $("tiles").append(made.box);
  return made;
});

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The least round number that is not below: 1, 2 or 5 times a power of ten. */
export function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

const spanName = (span) => (span >= 3600 ? `${span / 3600} h ago` : `${span / 60} min ago`);

/** A number for each part of the window; null where there is none. */
function points(tile, now, span) {
  const step = span / POINTS;
  return Array.from({ length: POINTS }, (_, i) => {
    const from = now - span + i * step;
    const part = samples.between(from, from + step);
    return part.length && part.at(-1).time > from ? tile.curve(part) : null;
  });
}

function drawCurve(tile, now, span) {
  const found = points(tile, now, span);
  const values = found.filter((one) => one !== null);
  const top = tile.top ?? niceTop(Math.max(0, ...values));
  const x = (i) => LEFT + ((WIDTH - LEFT - RIGHT) * (i + 1)) / POINTS;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / top;
  const parts = [
    ...[0, top / 2, top].flatMap((mark) => [
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark) }),
      svg("text", { x: LEFT - 4, y: y(mark) + 4, "text-anchor": "end" }, tile.format(mark)),
    ]),
    svg("text", { x: LEFT, y: HEIGHT - 3 }, spanName(span)),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "now"),
  ];
  for (let i = 0; i < found.length;) {
    // a line for each run of numbers; a number alone is a dot
    let end = i;
    while (end < found.length && found[end] !== null) end++;
    if (end - i === 1) parts.push(svg("circle", { class: "dot", cx: x(i), cy: y(found[i]), r: 2 }));
    else if (end > i)
      parts.push(
        svg("polyline", {
          class: "line",
          points: found
            .slice(i, end)
            .map((value, k) => `${x(i + k)},${y(value)}`)
            .join(" "),
        }),
      );
    i = Math.max(end, i + 1);
  }
  tile.svg.replaceChildren(...parts);
  const range = values.length
    ? `from ${tile.format(Math.min(...values))} to ${tile.format(Math.max(...values))}`
    : "no numbers";
  tile.svg.setAttribute("aria-label", `${tile.title}, ${$("window").selectedOptions[0].text}: ${range}`);
}

function draw(isDown) {
  const now = Date.now() / 1000;
  const span = Number($("window").value);
  const recent = samples.between(now - NOW, now);
  for (const tile of tiles) {
    const value = isDown ? null : tile.read(recent);
    tile.out.textContent = value === null ? "–" : tile.format(value);
    if (tile.more) tile.under.textContent = isDown ? "" : tile.more(samples.between(now - span, now));
    drawCurve(tile, now, span);
  }
}

let since = null; // { state, at }

function show(state, text) {
  if (since?.text !== text) {
    since = { text, at: new Date() };
    $("state").textContent = text;
  }
  $("status").className = state;
  $("since").textContent = state === "down" ? `since ${since.at.toLocaleTimeString()}` : "";
  document.title = state === "down" ? "Down – Octavo: statistics" : "Octavo: statistics";
}

async function ask() {
  let isDown = true;
  try {
    const response = await fetch("metrics", { cache: "no-store" });
    const values = response.ok ? parseMetrics(await response.text()) : {};
    if (!("engine_up" in values)) show("down", `Down: the server answers ${response.status}, without numbers.`);
    else {
      const [up, all] = [values.engine_up, Math.max(1, engines(values))];
      isDown = up < 1;
      if (isDown)
        show(
          "down",
          `Down: the engine is ${values["replicas starting"] || values["replicas restarting"] ? "starting again" : "not running"}.`,
        );
      else show("up", up < all ? `Up: ${up} of ${all} engines run.` : "Up: the engine runs.");
    }
    samples.add(Date.now() / 1000, isDown ? null : values);
  } catch {
    show("down", "Down: the server does not answer.");
    samples.add(Date.now() / 1000, null);
  }
  draw(isDown);
  setTimeout(ask, EVERY);
}

$("window").addEventListener("change", () => draw(since?.text.startsWith("Down")));
ask();
