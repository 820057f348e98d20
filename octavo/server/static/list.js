// The list of conversations: search, rename, delete with undo, export and import.
import { $, button, download, make, toast } from "./dom.js";
import { exported, imported } from "./transfer.js";

const UNDO = 10; // seconds
const IMPORT_MAX = 256 << 20; // bytes

const dayOf = (time) => {
  const day = new Date(time);
  const today = new Date();
  if (day.toDateString() === today.toDateString())
    return day.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return day.toLocaleDateString([], {
    day: "numeric",
    month: "short",
    ...(day.getFullYear() !== today.getFullYear() && { year: "numeric" }),
  });
};

const fileName = (title) =>
  `octavo-${
    title
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 40) || "chat"
  }.json`;

export class List {
  constructor(store, chat) {
    this.store = store;
    this.chat = chat;
    this.drawn = 0; // how often
    this.drawing = ""; // what of
    store.addEventListener("changed", ({ detail }) => {
      if (detail.table === "conversations" || $("search").value) this.draw();
    });
    chat.addEventListener("shown", () => this.draw());
    chat.addEventListener("running", () => this.draw());
    $("search").addEventListener("input", () => this.draw());
    $("export").addEventListener("click", async () => download("octavo-conversations.json", await exported(store)));
    $("import").addEventListener("click", () => $("import-file").click());
    $("import-file").addEventListener("change", () => this.read());
  }

  async draw() {
    const turn = ++this.drawn;
    const wanted = $("search").value.trim().toLowerCase();
    const found = [];
    for (const record of await this.store.conversations()) {
      const hit = wanted && (await this.#find(record, wanted));
      if (!wanted || hit) found.push([record, hit]);
      if (turn !== this.drawn) return;
    }
    const drawing = JSON.stringify([
      this.chat.conversation.id,
      ...found.map(([record, hit]) => [record, hit, this.chat.running.has(record.id)]),
    ]);
    if (drawing === this.drawing) return; // a row that is being clicked stays
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    if ($("conversations").querySelector(".renaming")) return;
    this.drawing = drawing;
    $("conversations").replaceChildren(...found.map(([record, hit]) => this.#row(record, hit)));
    if (focused) $("conversations").querySelector(`li[data-id="${focused}"] .open`)?.focus();
    $("none").hidden = found.length > 0;
    $("none").textContent = wanted ? "Nothing that was said has this in it." : "No conversations yet.";
  }

  /** Where a conversation has what is looked for: in its title (true), or some text around it. */
  async #find(record, wanted) {
    if (record.title.toLowerCase().includes(wanted)) return true;
    for (const { content } of await this.store.messages(record.id)) {
      const at = content.toLowerCase().indexOf(wanted);
      if (at >= 0)
        return (at > 20 ? "…" : "") + content.slice(Math.max(0, at - 20), at + wanted.length + 40).replace(/\s+/g, " ");
    }
    return null;
  }

  #row(record, hit) {
    const isShown = record.id === this.chat.conversation.id;
    const name = record.title || "New chat";
    const when = this.chat.running.has(record.id) ? "writing…" : dayOf(record.updated);
    const open = button("", () => this.open(record.id), { className: "open", "aria-current": isShown ? "true" : null });
    open.append(
      make("span", { className: "title", dir: "auto", textContent: name }),
      make("span", { className: "when", textContent: typeof hit === "string" && hit ? hit : when, dir: "auto" }),
    );
    const menu = make(
      "details",
      { className: "menu" },
      make("summary", { "aria-label": `More for ${name}`, textContent: "⋯" }),
      make(
        "div",
        {},
        button("Rename", () => this.rename(record)),
        button("Export", () => this.export(record)),
        button("Delete", () => this.remove(record), { className: "delete" }),
      ),
    );
    const row = make("li", {}, open, menu);
    row.dataset.id = record.id;
    return row;
  }

  async open(id) {
    await this.chat.open(id);
    closeDrawer();
    if (!matchMedia("(pointer: coarse)").matches) $("question").focus();
  }

  #rowOf(id) {
    return $("conversations").querySelector(`li[data-id="${id}"]`);
  }

  rename(record) {
    const row = this.#rowOf(record.id);
    const field = make("input", { value: record.title, "aria-label": "Its new name", maxLength: 200, dir: "auto" });
    const form = make("form", { className: "renaming" }, field);
    let ended = false;
    const end = async (keep) => {
      if (ended) return;
      ended = true;
      form.remove();
      const latest = await this.store.get("conversations", record.id);
      if (keep && latest && field.value.trim()) await this.#change(latest, { title: field.value.trim() });
      await this.draw();
      this.#rowOf(record.id)?.querySelector(".open").focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    field.addEventListener("blur", () => end(true));
    this.drawing = "";
    row.replaceChildren(form);
    field.select();
  }

  async #change(record, fields) {
    const changed = { ...record, ...fields };
    await this.store.put("conversations", changed);
    if (this.chat.conversation.id === record.id) Object.assign(this.chat.conversation.record, fields);
    const running = this.chat.running.get(record.id);
    if (running) Object.assign(running.conversation.record, fields);
  }

  async export(record) {
    download(fileName(record.title), await exported(this.store, [record.id]));
    this.#rowOf(record.id)?.querySelector("details").removeAttribute("open");
  }

  /** It is gone from the list at once, and from the store when nothing brings it back. */
  async remove(record) {
    const latest = (await this.store.get("conversations", record.id)) ?? record;
    this.chat.running.get(record.id)?.stop();
    await this.#change(latest, { deleted: Date.now() });
    const wasShown = this.chat.conversation.id === record.id;
    if (wasShown) this.chat.fresh();
    toast(`Deleted “${record.title || "New chat"}”.`, {
      action: "Undo",
      act: async () => {
        await this.#change((await this.store.get("conversations", record.id)) ?? latest, { deleted: undefined });
        if (wasShown) await this.chat.open(record.id);
        await this.draw();
      },
      onend: async (undone) => {
        const now = await this.store.get("conversations", record.id);
        if (!undone && now?.deleted) await this.store.remove(record.id);
      },
      seconds: UNDO,
    });
    await this.draw();
  }

  async read() {
    const [file] = $("import-file").files;
    $("import-file").value = "";
    if (!file) return;
    try {
      if (file.size > IMPORT_MAX) throw new Error("it is larger than 256 MiB");
      const count = await imported(this.store, await file.text());
      toast(`${count} ${count === 1 ? "conversation" : "conversations"} imported.`);
    } catch (error) {
      toast(`${file.name} cannot be imported: ${error.message}.`, { seconds: 0 });
    }
    await this.draw();
  }
}

// ---- the list is beside the conversation, or on a phone in front of it ---------------------------------------------------
const isNarrow = () => matchMedia("(max-width: 48rem)").matches;

export function closeDrawer() {
  if (isNarrow()) showDrawer(false);
}

function showDrawer(shown) {
  document.body.classList.toggle("listed", shown);
  $("lists").ariaExpanded = String(shown);
  $("side").inert = !shown;
  $("chat").inert = shown && isNarrow();
}

export function installDrawer() {
  showDrawer(!isNarrow());
  matchMedia("(max-width: 48rem)").addEventListener("change", () => showDrawer(!isNarrow()));
  $("lists").addEventListener("click", () => {
    const shown = !document.body.classList.contains("listed");
    showDrawer(shown);
    if (shown) $("close-lists").focus();
  });
  $("close-lists").addEventListener("click", () => {
    showDrawer(false);
    $("lists").focus();
  });
  $("shade").addEventListener("click", () => {
    showDrawer(false);
    $("lists").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (
      event.key === "Escape" &&
      isNarrow() &&
      document.body.classList.contains("listed") &&
      !document.querySelector("dialog[open]")
    ) {
      event.stopImmediatePropagation();
      showDrawer(false);
      $("lists").focus();
    }
  });
  document.addEventListener("click", (event) => {
    // one menu at a time
    for (const menu of document.querySelectorAll("details.menu[open]"))
      if (!menu.contains(event.target)) menu.open = false;
  });
}
