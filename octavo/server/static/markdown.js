// Markdown to elements. Nothing of an answer becomes markup of its own: raw HTML is shown as text but for a few harmless
// tags, what markdown-it makes passes DOMPurify, and pictures of other machines are links.
import MarkdownIt from "./vendor/markdown-it.min.js";
import "./vendor/purify.min.js";
import { decorate, finish } from "./decorate.js";
import { math } from "./math.js";

const HARMLESS = /^<\/?(?:br|sub|sup|kbd|mark|u|small)\s*\/?>$/i;
const TAGS =
  "p br strong em s code pre h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td a hr input sub sup kbd mark u small span".split(
    " ",
  );
const PURIFY = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "class", "start", "type", "checked", "disabled", "target", "rel", "aria-label"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["start", "type", "target", "rel"], // the expression above is not for these
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const purify = globalThis.DOMPurify;

/** How much has been parsed, in characters: what the tests hold to be linear in an answer. */
export const work = { parsed: 0 };

const md = new MarkdownIt({ html: true, linkify: true, breaks: false });
md.disable("html_block");
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.use(math);
md.validateLink = (url) => /^(?:https?:|mailto:)/i.test(url);
const { rules } = md.renderer;
const escape = md.utils.escapeHtml;
rules.html_inline = (tokens, i) => (HARMLESS.test(tokens[i].content) ? tokens[i].content : escape(tokens[i].content));
rules.image = (tokens, i) => {
  const [href, name] = [tokens[i].attrGet("src") ?? "", tokens[i].content || "picture"];
  return /^https?:/i.test(href)
    ? `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${escape(name)}</a>`
    : escape(name);
};
rules.fence = (tokens, i) => {
  const language = (tokens[i].info.trim().split(/\s+/)[0] ?? "").replace(/[^\w+#.-]/g, "").slice(0, 30);
  return `<pre><code class="language-${language}">${escape(tokens[i].content)}</code></pre>`;
};
rules.code_block = (tokens, i) => `<pre><code class="language-">${escape(tokens[i].content)}</code></pre>`;
rules.link_open = (tokens, i, options, env, self) => {
  tokens[i].attrSet("target", "_blank");
  tokens[i].attrSet("rel", "noopener noreferrer");
  return self.renderToken(tokens, i, options);
};
for (const name of ["th_open", "td_open"])
  rules[name] = (tokens, i, options, env, self) => {
    // styles are not allowed to stand in the text
    const side = /text-align:(\w+)/.exec(tokens[i].attrGet("style") ?? "")?.[1];
    tokens[i].attrs = side ? [["class", "align-" + side]] : null;
    return self.renderToken(tokens, i, options);
  };
rules.heading_open = rules.heading_close = (tokens, i, options, env, self) => {
  // The page has two levels above; a screen reader is to find none missing.
  if (tokens[i].nesting > 0) env.heading = Math.min(Number(tokens[i].tag[1]) + 2, (env.heading ?? 2) + 1, 6);
  tokens[i].tag = "h" + env.heading;
  return self.renderToken(tokens, i, options);
};

/** `- [x] done` */
md.core.ruler.after("inline", "tasks", ({ tokens, Token }) => {
  for (let i = 2; i < tokens.length; i++) {
    if (tokens[i].type !== "inline" || tokens[i - 2].type !== "list_item_open") continue;
    const first = tokens[i].children[0];
    const found = /^\[([ xX])\]\s/.exec(tokens[i].content);
    if (!found || first?.type !== "text") continue;
    first.content = first.content.slice(4);
    const box = new Token("task", "", 0);
    box.meta = found[1] !== " ";
    tokens[i].children.unshift(box);
    tokens[i - 2].attrJoin("class", "task");
  }
});
rules.task = (tokens, i) =>
  `<input type="checkbox" disabled aria-label="${tokens[i].meta ? "done" : "to do"}"${tokens[i].meta ? " checked" : ""}> `;

function parse(source, env) {
  work.parsed += source.length;
  return md.parse(source, env);
}

const fragment = (tokens, env) => purify.sanitize(md.renderer.render(tokens, md.options, env), PURIFY);

/** All of a text at once. */
export function renderMarkdown(box, source) {
  const env = {};
  box.replaceChildren(fragment(parse(source, env), env));
  decorate(box);
  finish(box);
}

const DECISIVE = 12; // characters of a line after which it is certain what kind of block it begins

/**
 * A text that grows. What stands before the last block does not change any more, so it is parsed once; of a list, what
 * stands before its last item; of code that is not closed yet, new lines are added as they are.
 */
export class GrowingMarkdown {
  constructor(box) {
    this.box = box;
    this.source = "";
    this.settled = 0; // characters that are never parsed again
    this.env = {};
    this.tail = []; // elements of what is behind them
    this.list = null; // the list that the tail may go on
    this.code = null; // { fence, text, from }: an open block of code
    box.replaceChildren();
  }

  /** The text is this now; what was there is its beginning. */
  show(source) {
    this.source = source;
    if (!this.#addToCode()) this.#parseTail(false);
  }

  /** It grows no more. */
  end() {
    this.code = null;
    this.#parseTail(true);
  }

  #addToCode() {
    if (!this.code) return false;
    const { fence, text, from } = this.code;
    const rest = this.source.slice(from);
    if (new RegExp(`^ {0,3}${fence[0] === "~" ? "~" : "`"}{${fence.length},}[ \\t]*$`, "m").test(rest)) {
      this.code = null;
      return false;
    }
    const complete = rest.slice(0, rest.lastIndexOf("\n") + 1); // a last line may be the end
    text.appendData(complete);
    this.code.from += complete.length;
    return true;
  }

  #parseTail(ended) {
    const text = this.source.slice(this.settled);
    const tokens = parse(text, this.env);
    const cut = ended ? { tokens: tokens.length, line: 0 } : this.#lastBlock(tokens, text);
    for (const node of this.tail) node.remove();
    if (cut.item) this.#settleItems(tokens, cut, text);
    else {
      for (const node of this.#append(tokens.slice(0, cut.tokens)))
        if (node.nodeType === Node.ELEMENT_NODE) finish(node);
      if (cut.tokens) this.list = null;
      this.settled += offsetOf(text, cut.line);
      const { heading } = this.env; // of what stays
      this.tail = this.#append(tokens.slice(cut.tokens));
      this.env.heading = heading;
    }
    if (!ended) this.#watchCode(tokens.at(-1), text);
  }

  /** Where the last block begins, or within a list that is alone its last item. */
  #lastBlock(tokens, text) {
    const lines = text.split("\n");
    const isSure = (line) => line < lines.length - 1 || lines[line].trim().length >= DECISIVE;
    const tops = tokens
      .map((token, i) => ({ token, i }))
      .filter(({ token }) => token.level === 0 && token.nesting >= 0 && token.map);
    let last = tops.pop();
    if (last && !isSure(last.token.map[0])) last = tops.pop();
    if (!last) return { tokens: 0, line: 0 };
    if (tops.length || !/^(bullet|ordered)_list_open$/.test(last.token.type))
      return { tokens: last.i, line: last.token.map[0] };
    const items = tokens
      .map((token, i) => ({ token, i }))
      .filter(({ token }) => token.type === "list_item_open" && token.level === 1);
    const item = items.filter(({ token }) => isSure(token.map[0])).at(-1);
    if (!item || item === items[0]) return { tokens: 0, line: 0 };
    return { tokens: 0, line: item.token.map[0], item: items.indexOf(item) };
  }

  /** Items before the last one belong to the list for good; the others are drawn again when more has come. */
  #settleItems(tokens, cut, text) {
    const nodes = this.#append(tokens);
    const goesOn = nodes[0]?.tagName === "LI";
    const list = goesOn ? this.list : nodes.find((node) => /^[UO]L$/.test(node.tagName));
    const items = goesOn ? nodes.filter((node) => node.tagName === "LI") : [...list.children];
    items.slice(0, cut.item).forEach(finish);
    this.list = list;
    const others = nodes.filter((node) => node !== list && node.tagName !== "LI"); // begun, and not certain yet
    this.tail = [...items.slice(cut.item), ...others];
    this.settled += offsetOf(text, cut.line);
  }

  /** Elements of these tokens at the end; the items of a list go on the list that is there. */
  #append(tokens) {
    if (!tokens.length) return [];
    const made = fragment(tokens, this.env);
    decorate(made);
    const first = made.firstElementChild;
    let nodes = [...made.childNodes];
    if (this.list && first?.tagName === this.list.tagName && this.list === this.box.lastElementChild) {
      const items = [...first.children];
      this.list.append(...items);
      first.remove();
      nodes = [...items, ...made.childNodes];
    }
    this.box.append(made);
    return nodes;
  }

  /** Whether the text ends in a block of code that is not closed: then its lines are added without parsing. */
  #watchCode(token, text) {
    if (token?.type !== "fence" || token.level !== 0) return;
    const lines = text.split("\n");
    const opening = /^(`{3,}|~{3,})/.exec(lines[token.map[0]]);
    const isClosed = new RegExp(`^ {0,3}${token.markup[0]}{${token.markup.length},}[ \\t]*$`).test(
      lines.slice(token.map[0] + 1).findLast((line) => line.trim()) ?? "",
    );
    const code = this.box.lastElementChild?.querySelector("code");
    if (!opening || isClosed || !code) return;
    const shown = text.lastIndexOf("\n") + 1; // whole lines only
    const from = offsetOf(text, token.map[0] + 1);
    code.textContent = shown > from ? text.slice(from, shown) : "";
    if (!code.firstChild) code.append("");
    this.code = { fence: token.markup, text: code.firstChild, from: this.settled + Math.max(shown, from) };
  }
}

function offsetOf(text, line) {
  let at = 0;
  for (let i = 0; i < line; i++) {
    const end = text.indexOf("\n", at);
    if (end < 0) return text.length;
    at = end + 1;
  }
  return at;
}
