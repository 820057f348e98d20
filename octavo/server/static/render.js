// Messages as elements. An answer that grows changes only where it grows.
import { gallery } from "./attach.js";
import { cutReason } from "./answer.js";
import { splitThought } from "./conversation.js";
import { $, button, copyButton, make } from "./dom.js";
import { GrowingMarkdown, renderMarkdown } from "./markdown.js";
import { shortName } from "./models.js";

const NAMES = { user: "You", assistant: "Answer", tool: "Result of a tool" };

/** A message's element. `act` has what its buttons do: edit, again, go, choose, retry, settings, result. */
export function messageElement(message, conversation, act) {
  const box = make(
    "article",
    { className: "message " + message.role },
    make("h2", { className: "hidden", textContent: NAMES[message.role] ?? message.role }),
  );
  box.dataset.id = message.id;
  if (message.role === "assistant") new AnswerView(box, message).draw();
  else {
    if (message.media?.length) box.append(gallery(message.media));
    if (message.content) box.append(make("div", { className: "content", dir: "auto", textContent: message.content }));
  }
  box.append(make("div", { className: "footer" }));
  drawFooter(box, message, conversation, act);
  return box;
}

const views = new WeakMap();

/** The element of a message that has grown. */
export const grow = (box, message, ended) => views.get(box)?.draw(message, ended);

class AnswerView {
  constructor(box, message) {
    this.box = box;
    this.message = message;
    this.growing = null;
    this.thought = make(
      "details",
      { className: "thought", hidden: true },
      make("summary"),
      make("div", { className: "content", dir: "auto" }, ""),
    );
    this.content = make("div", { className: "content" });
    this.calls = make("div", { className: "calls" });
    box.append(this.thought, this.content, this.calls);
    views.set(box, this);
  }

  draw(message = this.message, ended = message.state !== "writing") {
    this.message = message;
    const split = splitThought(message.content);
    this.#drawThought([message.reasoning, split.thought].filter(Boolean).join("\n\n"), !split.text && !ended);
    if (ended && !this.growing) renderMarkdown(this.content, split.text);
    else {
      this.growing ??= new GrowingMarkdown(this.content);
      if (this.growing.source !== split.text) this.growing.show(split.text);
      if (ended) {
        this.growing.end();
        this.growing = null;
      }
    }
    if (message.calls) this.calls.replaceChildren(...message.calls.map(callElement));
  }

  #drawThought(text, isOpen) {
    this.thought.hidden = !text;
    if (!text) return;
    const [summary, place] = this.thought.children;
    const took = this.message.thoughtFor;
    summary.textContent = isOpen ? "Thinking…" : took ? `Thought for ${took} s` : "Thought";
    const shown = place.firstChild;
    if (text.startsWith(shown.data)) shown.appendData(text.slice(shown.data.length));
    else shown.data = text;
  }
}

function callElement({ name, arguments: text }) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    /* it is still being written */
  }
  return make(
    "div",
    { className: "call", role: "group", "aria-label": `Call of the tool ${name}` },
    make(
      "div",
      { className: "bar" },
      make("span", { textContent: `Tool call: ${name}` }),
      copyButton(() => text, "these arguments"),
    ),
    make("pre", { tabIndex: 0, dir: "ltr" }, make("code", { textContent: shown })),
  );
}

// ---- below a message: how it ended, and what can be done with it ---------------------------------------------------------

/** Draw it anew: the message has another state, or another place. */
export function drawFooter(box, message, conversation, act) {
  const footer = box.querySelector(":scope > .footer");
  const isLast = conversation.path.at(-1) === message;
  const isWriting = message.state === "writing";
  const parts = [];
  if (isWriting) parts.push(waiting(message));
  if (message.role === "assistant" && !isWriting) parts.push(ending(message, isLast, act), note(message));
  if (isLast && message.calls?.length && !isWriting)
    parts.push(...message.calls.map((call) => resultForm(call, message, act)));
  if (!isWriting) parts.push(actions(message, conversation, isLast, act));
  footer.replaceChildren(...parts.filter(Boolean));
}

function waiting(message) {
  const box = make(
    "p",
    { className: "note waiting" },
    make("span", { className: "dots", "aria-hidden": "true" }),
    make("span", { className: "what", textContent: "Waiting for the model…" }),
  );
  box.hidden = Boolean(message.content || message.reasoning || message.calls);
  return box;
}

/** Seconds that have been waited for the first token; it is hidden once that is there. */
export function drawWaiting(box, message, seconds) {
  const place = box.querySelector(".waiting");
  if (!place) return;
  place.hidden = Boolean(message.content || message.reasoning || message.calls);
  const what = seconds < 2 ? "Waiting for the model…" : `Waiting for the model… ${Math.floor(seconds)} s`;
  place.querySelector(".what").textContent =
    seconds < 20 ? what : what + " (it may be busy with others: Statistics shows it)";
}

function ending(message, isLast, act) {
  const { error } = message;
  if (error) {
    const box = make(
      "div",
      { className: "ending error" },
      make("p", {}, make("strong", { textContent: error.message }), " ", error.remedy),
    );
    const buttons = make(
      "div",
      { className: "buttons" },
      button("Try again", () => act.retry(message), { className: "retry" }),
    );
    if (error.action === "settings") buttons.append(button("Open settings", () => act.settings()));
    if (isLast && (message.content || message.reasoning))
      buttons.append(button("Continue", () => act.go(message), { className: "go" }));
    box.append(buttons);
    return box;
  }
  const reason = cutReason(message);
  if (!reason) return null;
  const box = make("div", { className: "ending" }, make("p", { textContent: reason }));
  if (isLast) {
    const has = message.content || message.reasoning;
    box.append(
      make(
        "div",
        { className: "buttons" },
        has
          ? button("Continue", () => act.go(message), { className: "go" })
          : button("Try again", () => act.retry(message), { className: "retry" }),
      ),
    );
  }
  return box;
}

function note(message) {
  if (message.note) return make("p", { className: "note", textContent: message.note });
  const { tokens, speed, model } = message;
  if (!tokens) return null;
  const parts = [
    `${tokens} ${tokens === 1 ? "token" : "tokens"}`,
    speed ? `${speed.toFixed(1)} tokens/s` : "",
    model ? shortName(model) : "",
  ];
  return make("p", { className: "note", textContent: parts.filter(Boolean).join(", ") });
}

function actions(message, conversation, isLast, act) {
  const box = make("div", {
    className: "actions",
    role: "group",
    "aria-label": message.role === "assistant" ? "This answer" : "This message",
  });
  const siblings = conversation.siblings(message);
  if (siblings.length > 1) {
    const at = siblings.indexOf(message);
    box.append(
      button("‹", () => act.choose(siblings[at - 1]), {
        ariaLabel: "The one before",
        disabled: at === 0,
        className: "before",
      }),
      make("span", { className: "which", textContent: `${at + 1} of ${siblings.length}` }),
      button("›", () => act.choose(siblings[at + 1]), {
        ariaLabel: "The next one",
        disabled: at === siblings.length - 1,
        className: "after",
      }),
    );
  }
  if (message.content)
    box.append(
      copyButton(
        () => splitThought(message.content).text,
        message.role === "assistant" ? "this answer" : "this message",
      ),
    );
  if (message.role !== "tool") box.append(button("Edit", () => act.edit(message), { className: "edit" }));
  if (message.role === "assistant") box.append(button("Regenerate", () => act.again(message), { className: "again" }));
  return box;
}

function resultForm(call, message, act) {
  const id = `result-${message.id}-${message.calls.indexOf(call)}`;
  const field = make("textarea", { id, rows: 2, dir: "auto" });
  return make(
    "form",
    {
      className: "result",
      onsubmit: (event) => {
        event.preventDefault();
        act.result(message);
      },
    },
    make("label", { htmlFor: id, textContent: `What ${call.name} gives` }),
    field,
    call === message.calls.at(-1) ? make("button", { className: "main", textContent: "Send the result" }) : null,
  );
}

/** A message as a field to change; `done` gets the new text, or null. */
export function editForm(box, message, done) {
  const field = make("textarea", {
    value: message.content,
    rows: Math.min(12, message.content.split("\n").length + 1),
    dir: "auto",
    "aria-label": "The message, to be changed",
  });
  const save = message.role === "user" ? "Send" : "Save";
  const form = make(
    "form",
    {
      className: "editing",
      onsubmit: (event) => {
        event.preventDefault();
        done(field.value);
      },
    },
    field,
    make(
      "div",
      { className: "buttons" },
      make("button", { className: "main", textContent: save }),
      button("Cancel", () => done(null)),
    ),
  );
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    done(null);
  });
  for (const child of [...box.children]) if (!child.matches("h2, .media")) child.hidden = true;
  box.append(form);
  field.focus();
}

/** What stands where no message is yet. */
export const emptyElement = () =>
  make(
    "div",
    { className: "empty" },
    make("p", { textContent: "Ask something. Conversations are kept in this browser." }),
  );

/** How much of the model's context the conversation takes. */
export function drawContext(message, longest) {
  const used = message?.usage ? message.usage.prompt + message.usage.completion : 0;
  const box = $("context");
  box.hidden = !used;
  if (!used) return;
  const share = longest ? used / longest : 0;
  $("context-bar").max = longest || used;
  $("context-bar").value = used;
  const all = longest ? ` of ${longest.toLocaleString("en")}` : "";
  const advice = share > 0.9 ? " – nearly full: start a new chat soon" : "";
  $("context-text").textContent =
    `Context: ${used.toLocaleString("en")}${all} tokens${longest ? ` (${Math.round(100 * share)} %)` : ""}${advice}`;
}
