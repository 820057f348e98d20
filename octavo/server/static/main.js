// The page's parts, put together.
import { attach, attachments, installAttachments } from "./attach.js";
import { Chat } from "./chat.js";
import { $, announce, toast } from "./dom.js";
import { List, closeDrawer, installDrawer } from "./list.js";
import { installModels, learnModels } from "./models.js";
import { installSettings } from "./settings.js";
import { Store } from "./store.js";

const UNDONE_AFTER = 60_000; // milliseconds after which a deletion that a closed tab left is for good

const store = new Store();
const chat = new Chat(store);
const list = new List(store, chat);

const ready = Promise.resolve().then(begin); // once all of this is defined

// ---- the message that is being written -----------------------------------------------------------------------------------
const question = $("question");
const grow = () => {
  question.style.height = "auto";
  question.style.height = question.scrollHeight + 2 + "px";
};
const draft = {
  keep() {
    try {
      sessionStorage.setItem("octavo.draft", question.value);
    } catch {
      /* private mode */
    }
  },
  read() {
    try {
      return sessionStorage.getItem("octavo.draft") ?? "";
    } catch {
      return "";
    }
  },
};
question.addEventListener("input", () => {
  grow();
  draft.keep();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await ready; // what is sent before the store is open stays in its field until it is
  const text = question.value.trim();
  const media = attachments();
  if ((!text && !media.length) || chat.answer) return;
  if (await chat.isWrittenElsewhere()) {
    toast("Another tab is writing an answer here. Send this once it is there.");
    return;
  }
  attach([]);
  question.value = "";
  draft.keep();
  grow();
  chat.send(text, media);
});
$("stop").addEventListener("click", () => chat.stop());
$("new").addEventListener("click", () => {
  closeDrawer();
  chat.fresh();
});
document.addEventListener("keydown", (event) => {
  // Escape closes what is open, and only where nothing is, stops the answer.
  const isFree =
    !event.target.closest?.("#side") && !$("chat").inert && !document.querySelector("dialog[open], details.menu[open]");
  if (event.key === "Escape" && isFree) chat.stop();
  if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
});
addEventListener("hashchange", () => {
  if (location.hash.slice(1) !== chat.conversation.id) chat.open(location.hash.slice(1));
});

// ---- what the browser cannot keep ----------------------------------------------------------------------------------------
store.addEventListener("problem", ({ detail: error }) => {
  $("unkept").hidden = !error;
  if (!error) return;
  const full = error.name === "QuotaExceededError";
  const text = full
    ? "The browser's storage is full. What is new is kept only until this tab is closed: export it, or delete conversations that you no longer need."
    : `The browser keeps nothing here (${error.message}). What you write is kept only until this tab is closed: export it before that.`;
  if ($("unkept-text").textContent !== text) announce(text);
  $("unkept-text").textContent = text;
});
$("unkept-again").addEventListener("click", () => store.retry());
addEventListener("beforeunload", (event) => {
  if (store.hasUnsaved) event.preventDefault();
});

async function begin() {
  installSettings(() => learnModels());
  installModels();
  installAttachments();
  installDrawer();
  learnModels().then(() => chat.dispatchEvent(new Event("shown")));
  await store.open();
  await store.purge(Date.now() - UNDONE_AFTER);
  const old = await chat.takeOver();
  const shown = location.hash.slice(1) || old || shownBefore();
  await chat.open(shown);
  question.value ||= draft.read();
  grow();
  if (!matchMedia("(pointer: coarse)").matches) question.focus();
  document.documentElement.dataset.ready = "true";
  await list.draw();
}

function shownBefore() {
  try {
    return sessionStorage.getItem("octavo.shown") ?? "";
  } catch {
    return "";
  }
}
