// One answer while it is written: what is sent for it, what comes, and how it ends. It goes on whatever is shown.
import { splitThought } from "./conversation.js";
import { ask, events } from "./server.js";
import { sampling } from "./settings.js";

const SAVE_EVERY = 400; // milliseconds: what a reload in mid-answer can lose

const fenced = ({ name, text }) => {
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((run) => run[0].length + 1)));
  return `${name}:\n${fence}\n${text}\n${fence}\n\n`;
};

/** A message as the API takes it. */
function sent(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.answers, content: message.content };
  if (message.role === "assistant") {
    const calls = message.calls?.map((one, i) => ({
      id: one.id || `call_${i}`,
      type: "function",
      function: { name: one.name, arguments: one.arguments || "{}" },
    }));
    return {
      role: "assistant",
      content: splitThought(message.content).text,
      ...(calls?.length && { tool_calls: calls }),
    };
  }
  const text =
    (message.media ?? [])
      .filter((one) => one.kind === "text")
      .map(fenced)
      .join("") + message.content;
  const seen = (message.media ?? []).filter((one) => one.url);
  if (!seen.length) return { role: message.role, content: text };
  const parts = seen.map(({ kind, url }) => ({ type: kind + "_url", [kind + "_url"]: { url } }));
  return { role: message.role, content: text ? [...parts, { type: "text", text }] : parts };
}

/** The body of a request: the conversation so far, and what is set. */
export function requestBody(messages, { settings, model, fields, continued }) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const all = [...system, ...messages.map(sent)];
  if (continued) all.push({ role: "assistant", content: continued.content });
  const thinking = fields.thinkingSwitch && settings.thinking !== "" && settings.thinking !== undefined;
  return {
    ...(model && { model }),
    messages: all,
    stream: true,
    stream_options: { include_usage: true },
    ...sampling(settings, fields.sampling),
    ...(settings.tools?.trim() && { tools: JSON.parse(settings.tools) }),
    ...(thinking && { chat_template_kwargs: { [fields.thinkingSwitch]: settings.thinking === "on" } }),
    ...(continued && { continue_final_message: true, add_generation_prompt: false }),
  };
}

export class Answer {
  /**
   * @param message the assistant's message that is written
   * @param hooks { grown(), ended() }, called as it goes
   */
  constructor(message, store, hooks) {
    this.message = message;
    this.store = store;
    this.hooks = hooks;
    this.abort = new AbortController();
    this.started = performance.now();
    this.first = 0; // when the first token came
    this.tokens = 0;
    this.saving = 0; // a timer
  }

  /** Ask for it and take what comes, until it ends in whatever way. Never raises. */
  async run(body) {
    const message = this.message;
    this.store.writing.add(message.id);
    Object.assign(message, { state: "writing", error: undefined, finish: undefined });
    if (body.continue_final_message && message.reasoning && !message.content) {
      message.content = body.messages.at(-1).content; // the thought goes on in the text
      message.reasoning = "";
    }
    try {
      await this.#save();
      const response = await ask("v1/chat/completions", {
        method: "POST",
        body: JSON.stringify(body),
        signal: this.abort.signal,
      });
      const complete = await this.#take(events(response));
      if (message.finish) message.state = "done";
      else if (complete) message.state = "done";
      else message.state = "cut";
    } catch (error) {
      if (error.name === "AbortError") message.state = "stopped";
      else
        Object.assign(message, {
          state: "failed",
          error: { message: error.message, remedy: error.remedy ?? "", action: error.action ?? "retry" },
        });
    }
    this.#note();
    this.store.writing.delete(message.id);
    await this.#save();
    this.hooks.ended(this);
  }

  async #take(stream) {
    for (;;) {
      const { value, done } = await stream.next();
      if (done) return value;
      this.#event(value);
      this.hooks.grown(this);
      this.saving ||= setTimeout(() => this.#save(), SAVE_EVERY);
    }
  }

  #event(event) {
    const message = this.message;
    if (event.usage) message.usage = { prompt: event.usage.prompt_tokens, completion: event.usage.completion_tokens };
    if (event.model) message.model = event.model;
    const choice = event.choices?.[0];
    if (!choice) return;
    const { content, reasoning, reasoning_content: older, tool_calls: calls } = choice.delta ?? {};
    const thought = reasoning ?? older;
    if (content || thought || calls) {
      this.first ||= performance.now();
      this.tokens++;
    }
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
    if (content) {
      if (message.reasoning && !message.thoughtFor)
        message.thoughtFor = Math.round((performance.now() - this.first) / 1000);
      message.content += content;
    }
    for (const call of calls ?? []) this.#call(call);
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }

  #call({ index = 0, id, function: { name, arguments: text } = {} }) {
    const calls = (this.message.calls ??= []);
    calls[index] ??= { id: "", name: "", arguments: "" };
    if (id) calls[index].id = id;
    if (name) calls[index].name = name;
    if (text) calls[index].arguments += text;
  }

  /** How much and how fast, for the line below the answer. */
  #note() {
    const seconds = (performance.now() - (this.first || this.started)) / 1000;
    const tokens = this.message.usage?.completion ?? this.tokens;
    const speed = tokens > 1 && seconds > 0.05 ? (tokens - 1) / seconds : 0;
    Object.assign(this.message, { tokens, speed, waited: this.first ? this.first - this.started : undefined });
  }

  async #save() {
    clearTimeout(this.saving);
    this.saving = 0;
    await this.store.put("messages", this.message);
  }

  stop() {
    this.abort.abort();
  }
}

/** What a message that was cut goes on from. */
export function continuation(message) {
  const thought = message.reasoning && !message.content;
  return { content: thought ? `<think>\n${message.reasoning}` : message.content };
}

/** Whether a message ended before it was done, and why; empty where it is done. */
export function cutReason(message) {
  if (message.state === "stopped") return "You stopped this answer.";
  if (message.state === "cut")
    return "This answer was cut off: the connection or the page was closed while it was written.";
  if (message.state === "done" && message.finish === "length")
    return `This answer ends at the longest length (${message.tokens ?? "?"} tokens): max_tokens, or the model's context.`;
  if (message.state === "done" && !message.finish && !message.note) return "";
  return "";
}
