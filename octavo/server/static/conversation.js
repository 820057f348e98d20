// A conversation is a tree: an edited question or another answer stands beside the old one, which stays. What is shown
// is one path through it, by the child that was chosen last at each message.
import { newId } from "./dom.js";

const TITLE = 60; // characters

export function titleOf(text) {
  const line = text.trim().split("\n")[0].trim();
  return line.length > TITLE ? line.slice(0, TITLE - 1).trimEnd() + "…" : line || "New chat";
}

export class Conversation {
  /** Of records as the store has them: `record` of the conversation, and its messages. */
  constructor(record, messages = []) {
    this.record = record;
    this.byId = new Map();
    this.children = new Map(); // by the parent's id, "" for the first ones
    for (const message of messages) this.put(message);
  }

  static empty() {
    const now = Date.now();
    return new Conversation({ id: newId(), title: "", created: now, updated: now, chosen: {} });
  }

  get id() {
    return this.record.id;
  }
  get isEmpty() {
    return this.byId.size === 0;
  }

  /** A message that is new, or newer than the one of its id. */
  put(message) {
    const siblings = this.children.get(message.parent ?? "") ?? [];
    const at = siblings.findIndex((one) => one.id === message.id);
    if (at < 0) siblings.push(message);
    else siblings[at] = message;
    this.children.set(message.parent ?? "", siblings);
    this.byId.set(message.id, message);
  }

  /** A message behind `parent` (null: the first), which is shown from now on. */
  add(parent, fields) {
    const latest = Math.max(0, ...[...this.byId.values()].map((one) => one.created));
    const created = Math.max(Date.now(), latest + 1); // their order is that of these times
    const message = { id: newId(), conversation: this.id, parent: parent?.id ?? null, created, content: "", ...fields };
    this.put(message);
    this.choose(message);
    this.record.updated = Date.now();
    if (!this.record.title && message.role === "user")
      this.record.title = titleOf(message.content || (message.media?.[0]?.name ?? ""));
    return message;
  }

  /** Those that stand in each other's place, the oldest first. */
  siblings(message) {
    return this.children.get(message.parent ?? "") ?? [message];
  }

  choose(message) {
    this.record.chosen = { ...this.record.chosen, [message.parent ?? ""]: message.id };
  }

  /** What is shown, from the first message on. */
  get path() {
    const path = [];
    for (let here = ""; this.children.has(here) && path.length <= this.byId.size; here = path.at(-1).id) {
      const children = this.children.get(here);
      path.push(children.find((one) => one.id === this.record.chosen[here]) ?? children.at(-1));
    }
    return path;
  }

  /** The messages up to this one, with it. */
  upTo(message) {
    const found = [];
    for (let here = message; here && found.length <= this.byId.size; here = this.byId.get(here.parent))
      found.unshift(here);
    return found;
  }
}

/** A thought that stands in the text itself, and what follows it. */
export function splitThought(content) {
  const opened = content.match(/^\s*<think(?:ing)?>/);
  if (!opened) return { thought: "", text: content, open: false };
  const rest = content.slice(opened[0].length);
  const closed = rest.match(/<\/think(?:ing)?>\s*/);
  if (!closed) return { thought: rest.trim(), text: "", open: true };
  return {
    thought: rest.slice(0, closed.index).trim(),
    text: rest.slice(closed.index + closed[0].length),
    open: false,
  };
}
