// LaTeX within Markdown: $...$, $$...$$, \(...\) and \[...\] become <code class="math">, which decorate.js draws by KaTeX.

/** `$` opens before something, and closes behind something and not before a digit: "$5 and $10" is money. */
function inlineDollar(state, silent) {
  const { src, pos, posMax } = state;
  if (src[pos] !== "$") return false;
  const marker = src[pos + 1] === "$" ? "$$" : "$";
  const start = pos + marker.length;
  if (marker === "$" && /\s/.test(src[start] ?? " ")) return false;
  for (let end = src.indexOf(marker, start); end >= 0 && end < posMax; end = src.indexOf(marker, end + 1)) {
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
  const end = src.indexOf(src[pos + 1] === "(" ? "\\)" : "\\]", pos + 2);
  if (end < 0 || end >= posMax) return false;
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
  for (let line = startLine; line < endLine; line++) {
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
