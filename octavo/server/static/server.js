// What is asked of the server, and what a person can do where it fails.
import { values } from "./store.js";

/** An error with what to do about it. `action` names a button: "settings", "models" or "retry". */
export class ServerError extends Error {
  constructor(message, remedy = "", action = "retry") {
    super(message);
    this.remedy = remedy;
    this.action = action;
  }
}

export const headers = () => {
  const key = values.get("settings", {}).key;
  return { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
};

const REMEDIES = {
  401: ["Enter the API key of this server in the settings.", "settings"],
  403: ["Ask whoever runs the server for access, or enter another API key in the settings.", "settings"],
  404: ["Choose another model; those that are served are listed above.", "models"],
  413: ["Take attachments away, or start the server with a larger --max-body-size."],
  429: ["Too much is asked of the server at the moment. Wait a little, then try again."],
  500: ["The server's log says what happened. Try again."],
  503: ["The engine is starting or down; the statistics page says which. Try again in a moment."],
  504: ["It took longer than the server allows (--request-timeout). Ask for a shorter answer."],
};
const GATEWAY =
  "A proxy in front of Octavo answered, because it could not reach Octavo. See whether `octavo serve` is running, then try again.";

/** What a response that is no success says. */
async function refusal(response) {
  const body = await response.text().catch(() => "");
  let told = null;
  try {
    told = JSON.parse(body).error?.message ?? null;
  } catch {
    /* HTML of a proxy, or nothing */
  }
  if (typeof told !== "string") {
    const name = `${response.status} ${response.statusText}`.trim();
    const isGateway = [502, 503, 504].includes(response.status);
    return new ServerError(
      `The server answered ${name}, without a reason that this page could read.`,
      isGateway ? GATEWAY : (REMEDIES[response.status]?.[0] ?? "Look at the server's log, then try again."),
    );
  }
  if (/maximum context length|context window|too long|longer than/i.test(told))
    return new ServerError(
      told,
      "Start a new chat, edit a message to be shorter, or ask for fewer tokens in the settings.",
      "settings",
    );
  const [remedy, action] = REMEDIES[response.status] ?? [
    "Change what the message names, in the settings or in your text.",
    "settings",
  ];
  return new ServerError(told, remedy, action);
}

/** A response that is a success. Raises a ServerError otherwise; an AbortError passes. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(
      "The server does not answer.",
      `See whether \`octavo serve\` still runs at ${location.host}, and whether this device is online. Nothing that you wrote is lost.`,
    );
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** JSON of a path. */
export async function askJSON(path) {
  const response = await ask(path);
  try {
    return await response.json();
  } catch {
    throw notOctavo(response);
  }
}

function notOctavo(response) {
  const kind = response.headers.get("content-type") ?? "nothing";
  return new ServerError(
    `What came is no answer of Octavo, but ${kind.split(";")[0]}.`,
    "Something between this page and the server answers for it: a proxy, or a page that wants you to sign in. Reload this page.",
  );
}

/** The events of an answer: each `data:` of the stream as JSON. Whether the stream said that it was complete. */
export async function* events(response) {
  if (!(response.headers.get("content-type") ?? "").includes("text/event-stream")) throw notOctavo(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return false; // the connection broke
    }
    held += piece.done ? "\n\n" : piece.value;
    const parts = held.replace(/\r\n?(?!$)/g, "\n").split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (!data) continue; // a comment that keeps the connection open
      if (data === "[DONE]") return true;
      let event;
      try {
        event = JSON.parse(data);
      } catch {
        if (piece.done) return false; // the last one was cut
        throw new ServerError(
          "A part of the answer could not be read.",
          "Something between this page and the server changes what it says. Try again.",
        );
      }
      if (event.error)
        throw new ServerError(
          event.error.message ?? "The server ended the answer.",
          "What had come is kept. Go on from there, or try again.",
        );
      yield event;
    }
    if (piece.done) return false;
  }
}
