// What is attached to the next message, by button, drop and paste: text files, and pictures, films and sounds where the
// model takes them.
import { $, button, make } from "./dom.js";

const TEXT_MAX = 1 << 20; // bytes of a text file: more fits into no model's context
let kinds = []; // of media that the model takes
let largest = 4 << 20; // bytes of a request
let attached = []; // { kind, name, url } or { kind: "text", name, text }

export const attachments = () => attached;

export function gallery(media) {
  return make("div", { className: "media" }, ...media.map(figure));
}

function figure({ kind, name, url, text }) {
  const box = make("figure");
  if (url) {
    const shown = make(kind === "image" ? "img" : kind, { src: url });
    if (kind === "image") shown.alt = name;
    else Object.assign(shown, { controls: true, ariaLabel: name });
    box.append(shown);
  }
  if (kind === "text") {
    const lines = text.split("\n").length;
    box.append(
      make(
        "details",
        {},
        make("summary", { textContent: `${name} (${lines} ${lines === 1 ? "line" : "lines"})` }),
        make("pre", { textContent: text.slice(0, 20_000), tabIndex: 0, dir: "auto" }),
      ),
    );
  } else box.append(make("figcaption", { textContent: name, title: name }));
  return box;
}

export function attach(media) {
  attached = media;
  $("attached").replaceChildren(
    ...media.map((one) => {
      const box = figure(one);
      const remove = button(
        "×",
        () => {
          attach(attached.filter((other) => other !== one));
          $("question").focus();
        },
        { ariaLabel: "Remove " + one.name },
      );
      (box.querySelector("figcaption") ?? box).append(remove);
      box.dataset.name = one.name;
      return box;
    }),
  );
}

const read = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

/** A file's text, or null where it is none. */
async function textOf(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return /[\u0000-\u0008\u000e-\u001a]/.test(text) ? null : text.replace(/\r\n?/g, "\n");
  } catch {
    return null;
  }
}

async function one(file) {
  const kind = file.type.split("/")[0];
  if (kinds.includes(kind)) {
    const used = attached.reduce((sum, other) => sum + (other.url?.length ?? 0), 0);
    if (used + (file.size * 4) / 3 > largest)
      throw new Error(`it is too large: a request may have ${Math.round(largest / (1 << 20))} MiB in all.`);
    return { kind, name: file.name, url: await read(file) };
  }
  const takes = ["text", ...kinds].join(", ");
  if (["image", "video", "audio"].includes(kind)) throw new Error(`this model takes ${takes}.`);
  if (file.size > TEXT_MAX)
    throw new Error(`it is too large: a text may have ${TEXT_MAX >> 20} MiB. Paste the part that matters.`);
  const text = await textOf(file);
  if (text === null) throw new Error(`it is no text in UTF-8; this model takes ${takes}. Save it as plain text first.`);
  return { kind: "text", name: file.name, text };
}

export async function take(files) {
  for (const file of files) {
    try {
      attach([...attached, await one(file)]);
    } catch (error) {
      refuse(`${file.name}: ${error.message}`);
    }
  }
  $("question").focus();
}

function refuse(reason) {
  $("attached").append(make("p", { className: "note error", role: "alert", textContent: reason }));
}

/** What the model takes from now on. */
export function offer(modalities, limit) {
  kinds = modalities.filter((kind) => ["image", "video", "audio"].includes(kind));
  largest = limit ?? largest;
  const label = "Attach " + ["text files", ...kinds].join(", ");
  $("attach").ariaLabel = $("attach").title = label;
}

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

export function installAttachments() {
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    take([...$("files").files]);
    $("files").value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      take(files);
    }
  });
  const dropping = (event, on) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", on);
  };
  document.addEventListener("dragover", (event) => dropping(event, true));
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dropping(event, false);
  });
  document.addEventListener("drop", (event) => {
    dropping(event, false);
    if (event.dataTransfer?.files.length) take([...event.dataTransfer.files]);
  });
}
