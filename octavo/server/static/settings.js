// Settings: every sampling value with the model's own default, checked as it is written. An empty field means that
// default. What is valid holds at once, so closing the dialog, also by Escape, loses nothing and stops nothing.
import { $, button, make } from "./dom.js";
import { askJSON } from "./server.js";
import { values } from "./store.js";

export const settings = { system: "", key: "", tools: "", thinking: "", sampling: {}, ...values.get("settings", {}) };
/** What the server says of the model; empty until it has. */
export const about = { sampling: [], model: null, version: "", thinkingSwitch: null };

const LABELS = {
  temperature: "Temperature",
  top_p: "Top p",
  top_k: "Top k",
  min_p: "Min p",
  repetition_penalty: "Repetition penalty",
  presence_penalty: "Presence penalty",
  frequency_penalty: "Frequency penalty",
  max_tokens: "Longest answer, in tokens",
  min_tokens: "Shortest answer, in tokens",
  seed: "Seed",
  stop: "Stop texts, one a line",
  ignore_eos: "Go on after the end token",
};

/** The older page kept these two beside the others. */
for (const name of ["temperature", "max_tokens"])
  if (name in settings) {
    if (!["", 0.7, "0.7", 512, "512"].includes(settings[name])) settings.sampling[name] = Number(settings[name]);
    delete settings[name];
  }

/** What a field's text means, or an Error that says what it must be. An empty text is undefined. */
export function readValue(field, text) {
  if (text.trim() === "") return undefined;
  if (field.kind === "text") return text.split("\n").filter(Boolean);
  if (field.kind === "boolean") return text === "true";
  const value = Number(text.trim().replace(",", "."));
  if (!Number.isFinite(value)) throw new Error("Write a number.");
  if (field.kind === "integer" && !Number.isSafeInteger(value)) throw new Error("Write a whole number.");
  const low = field.low ?? null;
  if (low !== null && value < low) throw new Error(`Write ${low} or more.`);
  if (field.above !== null && field.above !== undefined && value <= field.above)
    throw new Error(`Write more than ${field.above}.`);
  if (field.high !== null && field.high !== undefined && value > field.high)
    throw new Error(`Write ${field.high} or less.`);
  return value;
}

/** The sampling values that a request has: those that are set. */
export const sampling = (of, fields) =>
  Object.fromEntries(
    fields.map(({ name }) => [name, of.sampling[name]]).filter(([, value]) => value !== undefined && value !== null),
  );

function keep() {
  if (!values.set("settings", settings))
    $("settings-problem").textContent = "The browser does not keep these: they hold until this tab is closed.";
}

const shown = (field) => {
  const value = settings.sampling[field.name];
  return value === undefined || value === null ? "" : Array.isArray(value) ? value.join("\n") : String(value);
};
const defaultText = ({ default: value, kind }) =>
  value === null || value === undefined || (Array.isArray(value) && !value.length)
    ? "none"
    : kind === "boolean"
      ? value
        ? "yes"
        : "no"
      : String(value);

function input(field) {
  const id = "set-" + field.name;
  const placeholder = field.name === "max_tokens" && field.default === null ? "as many as fit" : defaultText(field);
  if (field.kind === "boolean")
    return make(
      "select",
      { id },
      ...[
        ["", `Model's own (${placeholder})`],
        ["true", "Yes"],
        ["false", "No"],
      ].map(([value, text]) => new Option(text, value)),
    );
  if (field.kind === "text") return make("textarea", { id, rows: 2, dir: "auto", placeholder });
  return make("input", {
    id,
    inputMode: field.kind === "integer" && field.low >= 0 ? "numeric" : "decimal",
    autocomplete: "off",
    placeholder,
  });
}

/** A labelled field whose value is checked when it changes; `set` takes what is valid. */
function row(label, control, help, read, set) {
  const wrong = make("span", { className: "error", id: control.id + "-wrong", role: "alert" });
  const text = make("span", { className: "help", id: control.id + "-help", textContent: help });
  control.setAttribute("aria-describedby", `${text.id} ${wrong.id}`);
  const check = () => {
    try {
      set(read(control.value));
      wrong.textContent = "";
      control.removeAttribute("aria-invalid");
      keep();
    } catch (error) {
      wrong.textContent = `${error.message} Until then the value before holds.`;
      control.setAttribute("aria-invalid", "true");
    }
  };
  control.addEventListener("input", check);
  return make(
    "div",
    { className: "field" },
    make("label", { htmlFor: control.id, textContent: label }),
    control,
    text,
    wrong,
  );
}

function tools(text) {
  if (!text.trim()) return "";
  let read;
  try {
    read = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}.`);
  }
  if (!Array.isArray(read) || !read.every((one) => typeof one?.function?.name === "string"))
    throw new Error('Write a list such as [{"type": "function", "function": {"name": "weather", "parameters": {}}}].');
  return text;
}

function draw() {
  const box = $("settings-fields");
  const system = make("textarea", { id: "system", rows: 3, dir: "auto", value: settings.system });
  const key = make("input", { id: "key", type: "password", autocomplete: "off", value: settings.key });
  const list = make("textarea", { id: "tools", rows: 3, spellcheck: false, value: settings.tools, dir: "ltr" });
  const rows = about.sampling.map((field) => {
    const control = input(field);
    control.value = shown(field);
    const text = field.help.replace(/; None .*/, "");
    const help = `${text[0].toUpperCase()}${text.slice(1)}. The model's own: ${control.placeholder ?? defaultText(field)}.`;
    return row(
      LABELS[field.name] ?? field.name,
      control,
      field.kind === "boolean" ? field.help + "." : help,
      (written) => readValue(field, written),
      (value) => {
        if (value === undefined) delete settings.sampling[field.name];
        else settings.sampling[field.name] = value;
      },
    );
  });
  if (!rows.length)
    rows.push(
      make("p", {
        className: "note",
        textContent: "The model's sampling values are shown here once the server answers.",
      }),
    );
  box.replaceChildren(
    row(
      "System prompt",
      system,
      "What the model is told before every conversation.",
      (text) => text,
      (text) => {
        settings.system = text;
      },
    ),
    ...(about.thinkingSwitch ? [thinkingRow()] : []),
    make("h3", { textContent: "Sampling" }),
    ...rows,
    button(
      "Back to the model's own",
      () => {
        settings.sampling = {};
        keep();
        draw();
      },
      { id: "settings-reset" },
    ),
    make("h3", { textContent: "Server" }),
    row(
      "Tools",
      list,
      "Functions that the model may call, as OpenAI's API takes them (JSON). Calls are shown, and you write their results.",
      tools,
      (text) => {
        settings.tools = text;
      },
    ),
    row(
      "API key",
      key,
      "Where the server asks for one. It is kept in this browser.",
      (text) => text.trim(),
      (text) => {
        settings.key = text;
      },
    ),
  );
}

function thinkingRow() {
  const select = make(
    "select",
    { id: "thinking" },
    new Option("As the model does", ""),
    new Option("Think before answering", "on"),
    new Option("Answer at once", "off"),
  );
  select.value = settings.thinking;
  return row(
    "Thinking",
    select,
    "Whether the model thinks before it answers.",
    (text) => text,
    (text) => {
      settings.thinking = text;
    },
  );
}

export function openSettings(field) {
  draw();
  $("settings").showModal();
  if (field) $(field)?.focus();
}

/** Ask the server for the model's own values. Raises a ServerError. */
export async function learn() {
  const told = await askJSON("page/model");
  Object.assign(about, { ...told, thinkingSwitch: told.model.thinking_switch });
  if ($("settings").open && !$("settings").contains(document.activeElement)) draw();
  return about;
}

export function installSettings(onclosed) {
  $("settings-button").addEventListener("click", () => openSettings());
  $("settings-done").addEventListener("click", () => $("settings").close());
  $("settings").addEventListener("close", onclosed);
  addEventListener("storage", (event) => {
    // another tab has changed them
    if (event.key === "octavo.settings") Object.assign(settings, values.get("settings", {}));
  });
}
