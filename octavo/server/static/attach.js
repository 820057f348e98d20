// Pictures, films and sounds of messages, where the model takes them: shown, attached by button, drop and paste, sent.
// It stands within the page's own script.
let kinds = []; // of media that the model takes
let attached = []; // to the next message: { kind, name, url }

function gallery(media) {
  const box = document.createElement("div");
  box.className = "media";
  box.append(...media.map(figure));
  return box;
}

function figure({ kind, name, url }) {
  const box = document.createElement("figure");
  if (url) {
    const shown = document.createElement(kind === "image" ? "img" : kind);
    shown.src = url;
    if (kind === "image") shown.alt = name;
    else shown.controls = true;
    box.append(shown);
  }
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  box.append(caption);
  return box;
}

function parts(text, media) {
  const seen = media.filter((one) => one.url).map(({ kind, url }) => ({ type: kind + "_url", [kind + "_url"]: { url } }));
  return text || !seen.length ? [...seen, { type: "text", text }] : seen;
}

function attach(media) {
  attached = media;
  $("attached").replaceChildren(...media.map((one) => {
    const box = figure(one);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.ariaLabel = "Remove " + one.name;
    remove.addEventListener("click", () => { attach(attached.filter((other) => other !== one)); $("question").focus(); });
    box.append(remove);
    return box;
  }));
}

const read = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(file);
});

async function take(files) {
  for (const file of files) {
    const kind = file.type.split("/")[0];
    if (!kinds.includes(kind)) { refuse(file.name + ": this model takes " + ["text", ...kinds].join(", ") + "."); continue; }
    try { attach([...attached, { kind, name: file.name, url: await read(file) }]); }
    catch (error) { refuse(file.name + ": " + error.message); }
  }
  $("question").focus();
}

function refuse(reason) {
  const note = document.createElement("p");
  note.className = "note error";
  note.role = "alert";
  note.textContent = reason;
  $("attached").append(note);
}

function offer(modalities) {
  kinds = modalities.filter((kind) => ["image", "video", "audio"].includes(kind));
  $("attach").hidden = !kinds.length;
  $("attach").textContent = "+";
  $("attach").ariaLabel = $("attach").title = "Attach " + kinds.join(", ");
  $("files").accept = kinds.map((kind) => kind + "/*").join(",");
}
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => { take([...$("files").files]); $("files").value = ""; });
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (kinds.length && files.length) { event.preventDefault(); take(files); }
});
const dropping = (event, on) => {
  if (!kinds.length || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", on);
};
document.addEventListener("dragover", (event) => dropping(event, true));
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropping(event, false); });
document.addEventListener("drop", (event) => {
  dropping(event, false);
  if (kinds.length && event.dataTransfer.files.length) take([...event.dataTransfer.files]);
});
