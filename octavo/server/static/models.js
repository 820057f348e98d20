// The model and its adapters: one is chosen where there are several. And what the model is, for people.
import { offer } from "./attach.js";
import { $, make } from "./dom.js";
import { askJSON } from "./server.js";
import { about, learn } from "./settings.js";
import { values } from "./store.js";

export const shortName = (id) => id.split("/").pop();
export const chosenModel = () => ($("models").hidden ? "" : $("models").value);

let ids = [];
/** The longest conversation in tokens; 0 where it is not known. */
export const longest = () => about.model?.max_model_len ?? 0;

function chooseFrom(models) {
  ids = models.map((model) => model.id);
  const list = $("models");
  list.hidden = ids.length < 2;
  $("model").hidden = !list.hidden;
  const wanted = values.get("model", "");
  if ([...list.options].map((option) => option.value).join("\n") !== ids.join("\n"))
    list.replaceChildren(...ids.map((id) => Object.assign(new Option(shortName(id), id), { title: id })));
  if (ids.length) list.value = ids.includes(wanted) ? wanted : ids[0];
}

/** Ask what is served, and show it. */
export async function learnModels() {
  try {
    const found = await askJSON("v1/models");
    const [first] = found.data;
    $("model").textContent = shortName(first.id);
    $("model").title = first.id;
    chooseFrom(found.data);
    await learn();
    offer(first.input_modalities ?? [], about.model.max_body_bytes);
    $("trouble").hidden = true;
  } catch (error) {
    $("model").textContent = error.action === "settings" ? "needs a key" : "not reached";
    $("trouble").hidden = false;
    $("trouble-text").textContent = `${error.message} ${error.remedy ?? ""}`;
  }
}

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);
const yes = (value) => (value ? "yes" : "no");

function rows() {
  const { model, version } = about;
  if (!model) return [["Server", "it has not answered yet"]];
  return [
    ["Name", model.name],
    ["From", model.path],
    ["Task", model.task],
    ["Context", `${model.max_model_len.toLocaleString("en")} tokens`],
    ["Vocabulary", `${model.vocab_size.toLocaleString("en")} tokens`],
    ["Takes", model.input_modalities.join(", ")],
    ["Numbers", [model.dtype, model.quantization].filter(Boolean).join(", ")],
    ["Weights", model.weight_bytes ? size(model.weight_bytes) : "–"],
    ["Runs on", model.device ?? "–"],
    ["Adapters", model.adapters.join(", ") || "none"],
    ["Chat template", yes(model.has_chat_template)],
    ["Thinks", yes(model.can_think)],
    ["Calls tools", yes(model.calls_tools)],
    ["Octavo", version],
  ];
}

export function installModels() {
  $("models").addEventListener("change", () => values.set("model", $("models").value));
  $("trouble-again").addEventListener("click", learnModels);
  addEventListener("focus", () => {
    if (document.visibilityState === "visible") learnModels();
  });
  $("details-button").addEventListener("click", async () => {
    await learn().catch(() => {});
    $("details-list").replaceChildren(
      ...rows().flatMap(([name, value]) => [
        make("dt", { textContent: name }),
        make("dd", { textContent: value, dir: "auto" }),
      ]),
    );
    $("details").showModal();
  });
  $("details-done").addEventListener("click", () => $("details").close());
}
