// What elements of Markdown get beside their text: directions, code with its language, colours and a button, formulas.
import { copyButton, make } from "./dom.js";

const HIGHLIGHT_MAX = 100_000; // characters: more would hold the page up

let highlighter = null;
let katex = null;

async function highlight(code, language) {
  highlighter ??= import("./vendor/highlight.min.js").then((module) => module.default);
  const hljs = await highlighter;
  const text = code.textContent;
  if (!language || !hljs.getLanguage(language) || text.length > HIGHLIGHT_MAX) return;
  code.innerHTML = hljs.highlight(text, { language, ignoreIllegals: true }).value; // escaped by highlight.js
  code.classList.add("hljs");
}

async function formula(code) {
  katex ??= import("./vendor/katex.min.js").then(() => {
    document.head.append(make("link", { rel: "stylesheet", href: "static/vendor/katex.min.css" }));
    return globalThis.katex;
  });
  const tex = code.textContent;
  const displayMode = code.classList.contains("display");
  const box = make("span", { className: displayMode ? "formula display" : "formula", title: tex, dir: "ltr" });
  if (displayMode) box.tabIndex = 0;
  try {
    (await katex).render(tex, box, {
      displayMode,
      throwOnError: true,
      trust: false,
      strict: "ignore",
      maxSize: 50,
      maxExpand: 500,
    });
    code.replaceWith(box);
  } catch {
    code.title = "KaTeX cannot draw this";
  } // it stays as it was written
}

/** What every drawing needs. */
export function decorate(root) {
  for (const element of root.querySelectorAll("p, h3, h4, h5, h6, ul, ol, li, blockquote, th, td"))
    element.dir = "auto";
  for (const table of root.querySelectorAll("table")) {
    const box = make("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  for (const code of root.querySelectorAll("pre > code")) {
    const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
    const pre = code.parentElement;
    pre.tabIndex = 0;
    pre.dir = "ltr";
    const box = make("div", { className: "code" });
    pre.replaceWith(box);
    box.append(
      make(
        "div",
        { className: "bar" },
        make("span", { textContent: language || "text" }),
        copyButton(() => code.textContent, "this code"),
      ),
      pre,
    );
  }
}

/** What is only worth it once an element does not change any more. */
export function finish(root) {
  for (const code of root.querySelectorAll("pre > code"))
    highlight(code, /language-(\S+)/.exec(code.className)?.[1] ?? "");
  for (const code of root.querySelectorAll("code.math")) formula(code);
}
