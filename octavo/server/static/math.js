// LaTeX within Markdown: $...$, $$...$$, \(...\) and \[...\] become <code class="math">, which decorate.js draws by KaTeX.

const LONGEST = 5000; // characters of a formula: what begins one and never ends it costs no more than this
const LINES = 100;

/** Where `marker` comes next; -1 where it does not come soon. */
function next(src, marker, start, end) {
  const at = src.slice(start, Math.min(end, start + LONGEST)).indexOf(marker);
  return at < 0 ? -1 : start + at;
}

/** `$` opens before something, and closes behind something and not before a digit: "$5 and $10" is money. */
function inlineDollar(state, silent) {
  const { src, pos, posMax } = state;
  if (src[pos] !== "$") return false;
  const marker = src[pos + 1] === "$" ? "$$" : "$";
  const start = pos + marker.length;
  if (marker === "$" && /\s/.test(src[start] ?? " ")) return false;
  for (
    let end = next(src, marker, start, posMax);
    end >= 0;
    end = next(src, marker, end + 1, Math.min(posMax, start + LONGEST))
  ) {
    if (src[end - 1] === "\\") continue;
    if (marker === "$" && (/\s/.test(src[end - 1]) || /\d/.test(src[end + 1] ?? ""))) return false;
    if (end === start) return false;
    if (!silent) push(state, src.slice(start, end), marker === "$$");
    state.pos = end + marker.length;
    return true;
  }
  return false;
}

function inlineBracket(state, silent) {
  const { src, pos, posMax } = state;
  if (src[pos] !== "\\" || !"([".includes(src[pos + 1] ?? "x")) return false;
  const end = next(src, src[pos + 1] === "(" ? "\\)" : "\\]", pos + 2, posMax);
  if (end < 0) return false;
  if (!silent) push(state, src.slice(pos + 2, end), src[pos + 1] === "[");
  state.pos = end + 2;
  return true;
}

function push(state, text, display) {
  const token = state.push("math", "", 0);
  token.content = text.trim();
  token.meta = display;
}

/** A formula of its own: from a line that begins with `$$` or `\[` to the one that ends with `$$` or `\]`. */
function block(state, startLine, endLine, silent) {
  const from = state.bMarks[startLine] + state.tShift[startLine];
  const marker = state.src.slice(from, from + 2);
  if ((marker !== "$$" && marker !== "\\[") || state.sCount[startLine] - state.blkIndent >= 4) return false;
  const closing = marker === "$$" ? "$$" : "\\]";
  const found = [];
  for (let line = startLine; line < Math.min(endLine, startLine + LINES); line++) {
    const start = line === startLine ? from + 2 : state.bMarks[line] + state.tShift[line];
    const text = state.src.slice(start, state.eMarks[line]);
    const end = text.indexOf(closing);
    if (end >= 0 && text.slice(end + 2).trim()) return false; // text follows: it is within a paragraph
    found.push(end >= 0 ? text.slice(0, end) : text);
    if (end < 0) continue;
    if (silent) return true;
    const token = state.push("math", "", 0);
    Object.assign(token, { block: true, content: found.join("\n").trim(), meta: true, map: [startLine, line + 1] });
    state.line = line + 1;
    return true;
  }
  return false;
}

export function math(md) {
  md.inline.ruler.before("escape", "math_dollar", inlineDollar);
  md.inline.ruler.before("escape", "math_bracket", inlineBracket);
  md.block.ruler.before("fence", "math_block", block, { alt: ["paragraph", "blockquote", "list"] });
  md.renderer.rules.math = (tokens, i) => {
    const code = `<code class="math${tokens[i].meta ? " display" : ""}">${md.utils.escapeHtml(tokens[i].content)}</code>`;
    return tokens[i].block ? `<p>${code}</p>` : code;
  };
}
