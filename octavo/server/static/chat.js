// The conversation that is shown, and the answers that are being written, also of conversations that are not shown.
import { Answer, continuation, requestBody } from "./answer.js";
import { Conversation } from "./conversation.js";
import { $, announce } from "./dom.js";
import { chosenModel, learnModels, longest } from "./models.js";
import { drawContext, drawFooter, drawWaiting, editForm, emptyElement, grow, messageElement } from "./render.js";
import { about, openSettings, settings } from "./settings.js";
import { values } from "./store.js";

const FRAME = 16; // milliseconds between two drawings, and more where a drawing takes long
const REST = 3; // times what the last drawing took

export class Chat extends EventTarget {
  /** Events: "shown" (another conversation), "running" (an answer begins or ends). */
  constructor(store) {
    super();
    this.store = store;
    this.conversation = Conversation.empty();
    this.running = new Map(); // Answers by their conversation's id
    this.act = {
      edit: (message) => this.edit(message),
      again: (message) => this.again(message),
      retry: (message) => this.retry(message),
      go: (message) => this.goOn(message),
      choose: (message) => this.choose(message),
      settings: () => openSettings("key"),
      result: (message) => this.sendResults(message),
    };
    store.addEventListener("changed", ({ detail }) => {
      if (detail.other) this.#changedElsewhere(detail);
    });
    setInterval(() => this.#tick(), 1000);
  }

  get answer() {
    return this.running.get(this.conversation.id);
  }

  // ---- what is shown ---------------------------------------------------------------------------------------------------
  async open(id) {
    const record = id && (await this.store.get("conversations", id));
    const running = this.running.get(id);
    if (running) this.conversation = running.conversation;
    else if (record && !record.deleted) this.conversation = new Conversation(record, await this.store.messages(id));
    else this.conversation = Conversation.empty();
    this.#remember();
    this.draw();
    this.toEnd();
    this.dispatchEvent(new Event("shown"));
    await this.#findCut();
  }

  fresh() {
    this.conversation = Conversation.empty();
    this.#remember();
    this.draw();
    this.dispatchEvent(new Event("shown"));
    $("question").focus();
  }

  #remember() {
    try {
      sessionStorage.setItem("octavo.shown", this.conversation.isEmpty ? "" : this.conversation.id);
    } catch {
      /* the address has it */
    }
    const { title } = this.conversation.record;
    document.title = title ? `${title} – Octavo` : "Octavo";
    history.replaceState(
      null,
      "",
      this.conversation.isEmpty ? location.pathname + location.search : "#" + this.conversation.id,
    );
  }

  draw() {
    const { path } = this.conversation;
    $("talk").replaceChildren(
      ...(path.length ? path.map((one) => messageElement(one, this.conversation, this.act)) : [emptyElement()]),
    );
    this.#drawState();
  }

  #drawState() {
    const isRunning = Boolean(this.answer);
    $("send").hidden = isRunning;
    $("stop").hidden = !isRunning;
    $("talk").ariaBusy = String(isRunning);
    drawContext(
      this.conversation.path.findLast((one) => one.usage),
      longest(),
    );
  }

  toEnd() {
    $("talk").scrollTop = $("talk").scrollHeight;
  }

  #element(message) {
    return $("talk").querySelector(`[data-id="${message.id}"]`);
  }

  /** Answers that no tab writes any more were cut by a reload; they say so, and can be gone on with. */
  async #findCut() {
    const { conversation } = this;
    for (const message of [...conversation.byId.values()].filter((one) => one.state === "writing")) {
      if (await this.store.isWritten(message.id)) continue;
      const latest = (await this.store.get("messages", message.id)) ?? message;
      if (latest.state !== "writing") continue;
      const cut = { ...latest, state: "cut" };
      await this.store.put("messages", cut);
      conversation.put(cut);
    }
    if (conversation === this.conversation) this.draw();
  }

  /** Another tab has written something. */
  async #changedElsewhere({ table, id, conversation }) {
    const { conversation: here } = this;
    if (conversation !== here.id || this.store.writing.has(id)) return;
    const record = await this.store.get(table, id);
    if (here !== this.conversation) return;
    if (table === "conversations") {
      if (record && !record.deleted)
        here.record = { ...record, chosen: { ...record.chosen, ...(this.answer && here.record.chosen) } };
      else if (!record || record.deleted) {
        if (!this.answer) this.fresh();
        return;
      }
    } else if (record) here.put(record);
    else return;
    const element = table === "messages" && here.path.includes(record) && this.#element(record);
    if (element && record.state === "writing") {
      grow(element, record, false);
      drawWaiting(element, record, 0);
    } else if (!$("talk").querySelector(".editing")) this.draw();
  }

  /** Whether another tab is writing the last answer here: what is asked meanwhile would follow half of it. */
  async isWrittenElsewhere() {
    const isWriting = () => !this.answer && this.conversation.path.at(-1)?.state === "writing";
    if (isWriting()) await this.#findCut();
    return isWriting();
  }

  // ---- asking ----------------------------------------------------------------------------------------------------------
  /** A message of the person's, at the end or beside another one, and the answer to it. */
  async send(content, media, beside) {
    const { conversation } = this;
    const parent = beside ? (conversation.byId.get(beside.parent) ?? null) : (conversation.path.at(-1) ?? null);
    const message = conversation.add(parent, { role: "user", content, ...(media?.length && { media }), state: "done" });
    await this.#keep(conversation, message);
    await this.#answer(conversation, message);
  }

  async #keep(conversation, message) {
    if (message) await this.store.put("messages", message);
    await this.store.put("conversations", conversation.record);
    this.#remember();
  }

  /** A new answer behind `parent`, or more of `continued`. */
  async #answer(conversation, parent, continued) {
    if (this.running.has(conversation.id)) return;
    const model = chosenModel();
    const message = continued ?? conversation.add(parent, { role: "assistant", state: "writing", model });
    let body;
    const answer = new Answer(message, this.store, {
      grown: (one) => this.#grown(one),
      ended: (one) => this.#ended(one),
    });
    Object.assign(answer, { conversation, drawnAt: 0, cost: 0, timer: 0 });
    this.running.set(conversation.id, answer);
    message.state = "writing";
    if (conversation === this.conversation) {
      this.draw();
      this.toEnd();
    }
    this.dispatchEvent(new Event("running"));
    const before = conversation.upTo(message).slice(0, -1);
    body = requestBody(before, { settings, model, fields: about, continued: continued && continuation(message) });
    this.store.put("conversations", conversation.record);
    await answer.run(body);
  }

  #grown(answer) {
    if (answer.timer || answer.conversation !== this.conversation) return;
    const since = performance.now() - answer.drawnAt;
    answer.timer = setTimeout(
      () => {
        answer.timer = 0;
        this.#drawGrown(answer, false);
      },
      Math.max(0, FRAME - since, REST * answer.cost - since),
    );
  }

  #drawGrown(answer, ended) {
    if (answer.conversation !== this.conversation) return;
    const element = this.#element(answer.message);
    if (!element) return;
    const talk = $("talk");
    const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
    const start = performance.now();
    grow(element, answer.message, ended);
    drawWaiting(element, answer.message, 0);
    if (atEnd) this.toEnd();
    answer.drawnAt = performance.now();
    answer.cost = answer.drawnAt - start;
  }

  #ended(answer) {
    clearTimeout(answer.timer);
    this.running.delete(answer.conversation.id);
    const { message, conversation } = answer;
    if (conversation === this.conversation) {
      this.#drawGrown(answer, true);
      const element = this.#element(message);
      for (const one of conversation.path.slice(-2)) {
        // the one before is no longer the last
        const box = this.#element(one);
        if (box) drawFooter(box, one, conversation, this.act);
      }
      this.#drawState();
      if (element) announce(this.#said(message, element));
      if (
        !document.querySelector("dialog[open]") &&
        (document.activeElement === document.body || document.activeElement === null)
      )
        $("question").focus();
    }
    if (message.state === "failed") learnModels();
    this.dispatchEvent(new Event("running"));
  }

  /** What a screen reader is told, once. */
  #said(message, element) {
    if (message.error) return `${message.error.message} ${message.error.remedy}`;
    const calls = (message.calls ?? []).map((one) => `The model calls the tool ${one.name}.`).join(" ");
    const ending = message.state === "stopped" ? "Stopped." : message.state === "cut" ? "The answer was cut off." : "";
    return ["Answer:", element.querySelector(":scope > .content").innerText, calls, ending].filter(Boolean).join(" ");
  }

  #tick() {
    const { answer } = this;
    if (!answer) return;
    const element = this.#element(answer.message);
    if (element) drawWaiting(element, answer.message, (performance.now() - answer.started) / 1000);
  }

  stop() {
    this.answer?.stop();
  }

  // ---- what the buttons below a message do -------------------------------------------------------------------------------
  /** Another answer beside this one, which stays. */
  async again(message) {
    if (this.answer) return;
    await this.#answer(this.conversation, this.conversation.byId.get(message.parent) ?? null);
  }

  /** In place of one that failed before anything came; beside one that has something. */
  async retry(message) {
    if (this.answer) return;
    if (message.content || message.reasoning || message.calls?.length) return this.again(message);
    Object.assign(message, { error: undefined, model: chosenModel() });
    return this.#answer(this.conversation, null, message);
  }

  async goOn(message) {
    if (!this.answer) await this.#answer(this.conversation, null, message);
  }

  async choose(message) {
    this.conversation.choose(message);
    await this.#keep(this.conversation);
    this.draw();
    this.#element(message)?.querySelector(".actions button:not(:disabled)")?.focus();
  }

  edit(message) {
    if (this.answer) return;
    const box = this.#element(message);
    editForm(box, message, async (text) => {
      if (text === null || text === message.content) {
        this.draw();
        this.#element(message)?.querySelector(".edit")?.focus();
      } else if (message.role === "user") await this.send(text, message.media, message);
      else {
        const { conversation } = this;
        const edited = conversation.add(conversation.byId.get(message.parent) ?? null, {
          role: "assistant",
          content: text,
          state: "done",
          finish: "stop",
          note: "edited by you",
        });
        await this.#keep(conversation, edited);
        this.draw();
      }
    });
  }

  /** What the tools gave, as the person has written it, and the answer to that. */
  async sendResults(message) {
    if (this.answer) return;
    const { conversation } = this;
    const fields = [...this.#element(message).querySelectorAll(".result textarea")];
    let last = message;
    for (const [i, call] of message.calls.entries()) {
      last = conversation.add(last, {
        role: "tool",
        content: fields[i].value,
        answers: call.id || `call_${i}`,
        state: "done",
      });
      await this.store.put("messages", last);
    }
    await this.#keep(conversation);
    await this.#answer(conversation, last);
  }

  /** The only conversation that the older page had. */
  async takeOver() {
    const old = values.get("messages", null);
    if (!Array.isArray(old) || !old.length) return null;
    const conversation = Conversation.empty();
    let last = null;
    for (const { role, content, media, note } of old) {
      if (typeof content !== "string" || !["user", "assistant"].includes(role)) continue;
      last = conversation.add(last, { role, content, media, note, state: "done" });
      if (!(await this.store.put("messages", last))) return null; // it stays where it is
    }
    if (last && (await this.store.put("conversations", conversation.record))) values.remove("messages");
    return conversation.id;
  }
}
