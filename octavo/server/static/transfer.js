// Conversations to and from a file. A file may come from anywhere: everything in it is checked, and everything gets a
// new id, so that nothing that is here is ever written over.
import { titleOf } from "./conversation.js";
import { newId } from "./dom.js";

const FORMAT = "octavo-conversations";
const ROLES = ["user", "assistant", "tool", "system"];
const MEDIA = /^data:(image|video|audio)\/[\w.+-]+[;,]/;
const STATES = ["done", "stopped", "cut", "failed"];

export async function exported(store, ids) {
  const conversations = [];
  for (const record of await store.conversations())
    if (!ids || ids.includes(record.id)) conversations.push({ ...record, messages: await store.messages(record.id) });
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

class ImportError extends Error {}

const refuse = (reason) => {
  throw new ImportError(reason);
};
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value, name, otherwise = "") =>
  value === undefined || value === null ? otherwise : typeof value === "string" ? value : refuse(`${name} is no text`);
const time = (value) => (Number.isFinite(value) && value > 0 && value < 1e14 ? value : Date.now());

function media(list, where) {
  if (list === undefined) return undefined;
  if (!Array.isArray(list)) refuse(`${where}: media is no list`);
  return list.map((one) => {
    if (!isObject(one) || !["image", "video", "audio", "text"].includes(one.kind))
      refuse(`${where}: an attachment has no kind`);
    const made = { kind: one.kind, name: text(one.name, `${where}: an attachment's name`, one.kind) };
    if (one.kind === "text") return { ...made, text: text(one.text, `${where}: an attachment's text`) };
    if (one.url !== undefined && !MEDIA.test(text(one.url, `${where}: an attachment's url`)))
      refuse(`${where}: an attachment is no data: URL of media`);
    return { ...made, url: one.url };
  });
}

function calls(list, where) {
  if (!Array.isArray(list)) return undefined;
  return list.map((one) => {
    if (!isObject(one) || typeof one.name !== "string") refuse(`${where}: a tool call has no name`);
    return {
      id: text(one.id, `${where}: a call's id`),
      name: one.name,
      arguments: text(one.arguments, `${where}: arguments`),
    };
  });
}

/** OpenAI's content: a text, or parts of which the texts are taken. */
function content(value, where) {
  if (!Array.isArray(value)) return text(value, `${where}: content`);
  return value.map((part) => (isObject(part) && typeof part.text === "string" ? part.text : "")).join("");
}

function message(given, index, ids, conversation) {
  const where = `message ${index + 1}`;
  if (!isObject(given) || !ROLES.includes(given.role)) refuse(`${where} has no role (${ROLES.join(", ")})`);
  const made = {
    id: newId(),
    conversation,
    role: given.role,
    content: content(given.content, where),
    created: index + 1,
    reasoning: text(given.reasoning ?? given.reasoning_content, `${where}: reasoning`),
    media: media(given.media, where),
    calls: calls(given.calls, where),
    note: text(given.note, `${where}: note`),
    model: text(given.model, `${where}: model`),
    answers: text(given.answers, `${where}: answers`),
    state: given.state === "writing" ? "cut" : STATES.includes(given.state) ? given.state : "done",
  };
  const id = text(given.id, `${where}: id`, `#${index}`);
  if (ids.has(id)) refuse(`${where}: its id is that of another message`);
  if (given.parent === undefined)
    made.parent = index ? [...ids.values()].at(-1) : null; // a plain list
  else if (given.parent === null) made.parent = null;
  else
    made.parent =
      ids.get(text(given.parent, `${where}: parent`)) ?? refuse(`${where} follows a message that is not before it`);
  ids.set(id, made.id);
  return made;
}

function conversation(given, index) {
  if (!isObject(given) || !Array.isArray(given.messages)) refuse(`conversation ${index + 1} has no messages`);
  const id = newId();
  const ids = new Map();
  const said = given.messages.filter((one) => one?.role !== "system");
  const messages = said.map((one, at) => message(one, at, ids, id));
  const chosen = {};
  for (const [parent, child] of Object.entries(isObject(given.chosen) ? given.chosen : {}))
    if (ids.has(child) && (parent === "" || ids.has(parent))) chosen[parent && ids.get(parent)] = ids.get(child);
  const first = messages.find((one) => one.role === "user")?.content ?? "";
  const title = text(given.title, `conversation ${index + 1}: title`).slice(0, 200) || titleOf(first);
  return { record: { id, title, created: time(given.created), updated: time(given.updated), chosen }, messages };
}

/** Read a file's text into the store; how many conversations it had. Raises an Error that says what is wrong. */
export async function imported(store, source) {
  let data;
  try {
    data = JSON.parse(source);
  } catch (error) {
    throw new ImportError(`it is not JSON: ${error.message}`);
  }
  const given = Array.isArray(data) ? [{ messages: data }] : (data?.conversations ?? (data?.messages ? [data] : null));
  if (!Array.isArray(given)) throw new ImportError("it has no conversations; choose a file that was exported here");
  const read = given.map(conversation); // all of it is checked before any of it is kept
  for (const { record, messages } of read) {
    for (const one of messages) await store.put("messages", one);
    await store.put("conversations", record);
  }
  return read.length;
}
