// Elements, made and found.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (`data-`, `aria-` and `role`) and children. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A button of text. */
export const button = (text, onclick, properties = {}) =>
  make("button", { type: "button", textContent: text, onclick, ...properties });

/** An id that no other has. crypto.randomUUID is there on secure pages only. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Text into the clipboard, also on pages that are not secure (http:// in a local network). */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      /* not permitted: the older way */
    }
  }
  const area = make("textarea", { value: text, className: "hidden", readOnly: true });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus?.();
  return done;
}

/** A button that copies what `read` gives, and says that it has. */
export function copyButton(read, what) {
  const made = button(
    "Copy",
    async () => {
      made.textContent = (await copyText(read())) ? "Copied" : "Not permitted";
      setTimeout(() => {
        made.textContent = "Copy";
      }, 1500);
    },
    { className: "copy", "aria-label": what ? `Copy ${what}` : null },
  );
  return made;
}

/** A file for the person to keep. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** What a screen reader says, once; visible to nobody. */
export function announce(text) {
  const place = $("said");
  place.textContent = "";
  place.textContent = text;
}

/** A line at the bottom, with a button or none, for some seconds or (`seconds` 0) until it is closed. */
export function toast(text, { action, act, seconds = 10, onend } = {}) {
  const box = make("div", { className: "toast", role: "status" }, make("span", { textContent: text }));
  let timer = 0;
  let ended = false;
  const end = (acted) => {
    if (ended) return;
    ended = true;
    clearTimeout(timer);
    box.remove();
    onend?.(acted);
  };
  const start = () => {
    if (seconds) timer = setTimeout(end, seconds * 1000, false);
  };
  if (action)
    box.append(
      button(action, () => {
        act();
        end(true);
      }),
    );
  box.append(button("×", () => end(false), { "aria-label": "Close this message" }));
  for (const [stop, go] of [
    ["mouseenter", "mouseleave"],
    ["focusin", "focusout"],
  ]) {
    box.addEventListener(stop, () => clearTimeout(timer));
    box.addEventListener(go, start);
  }
  $("toasts").append(box);
  start();
  return end;
}
