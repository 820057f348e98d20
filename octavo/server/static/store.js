// What is kept in the browser: conversations and their messages in IndexedDB, a record each, so that two tabs that write
// at the same time do not write over one another. What cannot be written (a full or forbidden store) is kept in this
// tab, told of, and written as soon as there is room.

const NAME = "octavo";
const TABLES = ["conversations", "messages"];

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function connect() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds it"));
  });
}

export class Store extends EventTarget {
  /** Events: "problem" (detail: an Error, or null once all is written), "changed" (detail: { table, id, other }). */
  constructor() {
    super();
    this.db = null;
    this.unsaved = { conversations: new Map(), messages: new Map() };
    this.problem = null;
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;
    this.writing = new Set(); // ids of messages that this tab is writing
    this.asked = new Map(); // what waits for other tabs to say that they write it
    this.channel?.addEventListener("message", ({ data }) => this.#heard(data));
  }

  async open() {
    try {
      this.db = await connect();
      this.db.onclose = () => {
        this.db = null;
      }; // the person has cleared it, or the disk is gone
      navigator.storage?.persist?.().catch(() => {}); // not to be cleared when the disk runs low
    } catch (error) {
      this.#failed(error ?? new Error("the browser keeps nothing here"));
    }
    return this;
  }

  /** All records of a table, those that are not written yet with them. */
  async #all(table, index, key) {
    const found = new Map();
    if (this.db) {
      const source = this.db.transaction(table).objectStore(table);
      for (const record of await done(index ? source.index(index).getAll(key) : source.getAll()))
        found.set(record.id, record);
    }
    for (const record of this.unsaved[table].values())
      if (!index || record[index] === key) found.set(record.id, record);
    return [...found.values()];
  }

  /** Conversations, the latest first; those that are deleted and may still be brought back are left out. */
  async conversations() {
    return (await this.#all("conversations")).filter((one) => !one.deleted).sort((a, b) => b.updated - a.updated);
  }

  /** Messages of a conversation, the oldest first. */
  async messages(conversation) {
    return (await this.#all("messages", "conversation", conversation)).sort((a, b) => a.created - b.created);
  }

  async get(table, id) {
    const unsaved = this.unsaved[table].get(id);
    return unsaved ?? (this.db ? done(this.db.transaction(table).objectStore(table).get(id)) : undefined);
  }

  /** Write a record, or keep it here where that fails. Whether it is written. */
  async put(table, record) {
    const copy = structuredClone(record);
    const written = await this.#write(table, copy);
    if (!written) this.unsaved[table].set(copy.id, copy);
    else if (this.unsaved[table].delete(copy.id)) this.#settle();
    this.#tell({ kind: "changed", table, id: copy.id, conversation: copy.conversation ?? copy.id });
    return written;
  }

  async #write(table, record) {
    if (!this.db) return false;
    try {
      const transaction = this.db.transaction(table, "readwrite");
      const ended = new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = () => reject(transaction.error);
      });
      transaction.objectStore(table).put(record);
      await ended;
      return true;
    } catch (error) {
      this.#failed(error);
      return false;
    }
  }

  /** A conversation and its messages, for good. */
  async remove(id) {
    const messages = await this.#all("messages", "conversation", id);
    this.unsaved.conversations.delete(id);
    for (const message of messages) this.unsaved.messages.delete(message.id);
    if (this.db) {
      const transaction = this.db.transaction(TABLES, "readwrite");
      transaction.objectStore("conversations").delete(id);
      for (const message of messages) transaction.objectStore("messages").delete(message.id);
      await new Promise((resolve) => {
        transaction.oncomplete = transaction.onabort = resolve;
      });
    }
    this.#tell({ kind: "changed", table: "conversations", id, conversation: id });
    await this.retry();
  }

  /** Conversations whose deletion can no longer be undone. */
  async purge(before) {
    for (const one of await this.#all("conversations"))
      if (one.deleted && one.deleted < before) await this.remove(one.id);
  }

  /** Write what could not be written. */
  async retry() {
    if (!this.db) await this.open();
    for (const table of TABLES)
      for (const [id, record] of this.unsaved[table]) {
        if (!(await this.#write(table, record))) return;
        if (this.unsaved[table].get(id) === record) this.unsaved[table].delete(id);
      }
    this.#settle();
  }

  get hasUnsaved() {
    return TABLES.some((table) => this.unsaved[table].size > 0);
  }

  #failed(error) {
    this.problem = error;
    this.dispatchEvent(new CustomEvent("problem", { detail: error }));
  }

  #settle() {
    if (!this.problem || this.hasUnsaved || !this.db) return;
    this.problem = null;
    this.dispatchEvent(new CustomEvent("problem", { detail: null }));
  }

  // ---- other tabs ----------------------------------------------------------------------------------------------------
  #tell(message) {
    this.channel?.postMessage(message);
    this.dispatchEvent(new CustomEvent("changed", { detail: { ...message, other: false } }));
  }

  #heard(data) {
    if (data.kind === "changed") this.dispatchEvent(new CustomEvent("changed", { detail: { ...data, other: true } }));
    else if (data.kind === "who writes" && this.writing.has(data.id))
      this.channel.postMessage({ kind: "I write", id: data.id });
    else if (data.kind === "I write") this.asked.get(data.id)?.(true);
  }

  /** Whether some tab is writing a message; one that was closed or reloaded no longer does. */
  isWritten(id, wait = 700) {
    if (this.writing.has(id)) return Promise.resolve(true);
    if (!this.channel) return Promise.resolve(false);
    return new Promise((resolve) => {
      const answer = (value) => {
        this.asked.delete(id);
        resolve(value);
      };
      this.asked.set(id, answer);
      this.channel.postMessage({ kind: "who writes", id });
      setTimeout(answer, wait, false);
    });
  }
}

/** Small values (settings, the chosen model), which may be forbidden too. */
export const values = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem("octavo." + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem("octavo." + name, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
  remove(name) {
    try {
      localStorage.removeItem("octavo." + name);
    } catch {
      /* then there is none */
    }
  },
};
