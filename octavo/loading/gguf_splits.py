"""How byte-level vocabularies split text before they merge, by `tokenizer.ggml.pre`.

The names and what belongs to them are llama.cpp's (llama-vocab.cpp). Where llama.cpp approximates a published pattern
(its engine has no classes of letters' cases), the published one stands here. The patterns of one entry act one after
the other, each on the pieces that those before it have left.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Split:
    """How text is split.

    Args:
        patterns: their matches become pieces, and so does what lies between.
        ignore_merges: a piece that is a token is that token, whatever the merges say.
        add_bos: texts begin with bos where the file does not say.
        raw: tokens are text with `▁` for spaces, and not GPT-2's letters for bytes.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    raw: bool = False


_CLITIC = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(numbers: str, *, clitic: str = _CLITIC + "|", spaces: str = _SPACES) -> str:
    """The pattern that OpenAI's cl100k began, with numbers as they are cut."""
    return rf"{clitic}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{spaces}"


def _cased(numbers: str, *, clitic: str = "", tail: str = "/", but: str = "") -> str:
    """The pattern that OpenAI's o200k began: words are cut before capitals."""
    upper, lower = (rf"[\p{{L{c}}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]" for c in ("u}\\p{Lt", "l"))
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{upper}*{lower}+{clitic}|{start}{upper}+{lower}*{clitic}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{tail}]*|{_SPACES}"


_DEEPSEEK_LATIN = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\x{1F5F}-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌ"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-\x{212D}ℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_CJK_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_MARKED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|[\n]+"
_HAN_FREE = r"&&[^\p{Han}]"
_ASIAN = r"[一-鿿㐀-䶿\x{F900}-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_YOUTU_CJK = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_TINY_AYA_DIGITS = r"\d{1,3}(?=(?:\d{3})*\b)"
_JAIS2_SPACES = r"\s*[\r\n]+|" + "".join(rf"\s{{{1 << n}}}(?!\S)|" for n in range(9, 1, -1)) + r"\s{1,2}(?!\S)|\s{1}"
_EXAONE_MOE = (
    rf"{_CLITIC}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED_CODER = rf"{_CLITIC}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_QWEN35 = rf"{_CLITIC}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"

_GPT2_SPLIT = Split((_GPT2,))
_DIGITS = Split((r"\p{N}", _GPT2))
_LLAMA3 = Split((_words(r"\p{N}{1,3}"),))
_QWEN2 = Split((_words(r"\p{N}"),))
_GPT_4O = Split((_cased(r"\p{N}{1,3}", clitic=_CLITIC + "?"),))
_DEEPSEEK3 = Split((r"\p{N}{1,3}", _CJK_KANA, _MARKED + _SPACES))
_BLOOM_SPLIT = Split((_BLOOM,))
_RAW = Split((_LINES,), raw=True)
_BEGIN = replace(_LLAMA3, ignore_merges=True, add_bos=True)

_BY_SPLIT: tuple[tuple[Split, tuple[str, ...]], ...] = (
    (Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), ("default",)),
    (
        _BEGIN,
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    ),
    (_LLAMA3, ("dbrx", "smaug-bpe", "chatglm-bpe")),
    (replace(_LLAMA3, ignore_merges=True), ("glm4", "glm5")),
    (
        _QWEN2,
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
    ),
    (
        _GPT2_SPLIT,
        (
            *("gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0"),
            *("mellum", "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4"),
            *("trillion", "granite-docling"),
        ),
    ),
    (_DIGITS, ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")),
    (_GPT_4O, ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    (replace(_GPT_4O, ignore_merges=True), ("granite-embed-multi-97m",)),
    (Split((_cased(r"\p{N}"),), ignore_merges=True, add_bos=True), ("tekken",)),
    (Split((_YOUTU_CJK, _cased(r"\p{N}", clitic=_CLITIC + "?")), ignore_merges=True), ("youtu",)),
    (Split((_TINY_AYA_DIGITS, *_GPT_4O.patterns)), ("tiny_aya", "cohere2moe")),
    (
        Split((r"[\p{Han}]+|" + _cased(r"\p{N}{1,3}", clitic=_CLITIC + "?", tail="", but=_HAN_FREE),)),
        ("kimi-k2",),
    ),
    (Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), ("falcon",)),
    (
        Split(("[\r\n]", _DEEPSEEK_LATIN, "\\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _DEEPSEEK_CJK, r"\p{N}+")),
        ("deepseek-llm",),
    ),
    (Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")), ("deepseek-coder",)),
    (_DEEPSEEK3, ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")),
    (_BLOOM_SPLIT, ("bloom", "poro-chat", "gpt3-finnish")),
    (Split((_BLOOM, r"\p{N}")), ("viking",)),
    (Split((_words(r"\p{N}{1,3}", spaces=_JAIS2_SPACES),)), ("jais-2",)),
    (Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), ("superbpe",)),
    (Split((_BAILING,)), ("bailingmoe", "bailingmoe2", "llada-moe")),
    (Split((_SEED_CODER,)), ("seed-coder",)),
    (Split((_QWEN35,)), ("qwen35",)),
    (Split((_words(r"\p{N}", clitic=""),)), ("ufakzeka",)),
    (Split((_LINES, *_QWEN2.patterns)), ("laguna",)),
    (Split((_EXAONE_MOE,)), ("exaone-moe",)),
    (Split((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _ASIAN, _MARKED + _SPACES)), ("afmoe",)),
    (Split((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True), ("minicpm5",)),
    (
        Split(
            (
                *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}"),
                *(r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
            ),
            add_bos=True,
        ),
        ("chameleon",),
    ),
    (_RAW, ("sarvam-moe",)),
    (replace(_RAW, add_bos=True), ("gemma4", "granite-embed-multi-311m")),
)
SPLITS: dict[str, Split] = {name: split for split, names in _BY_SPLIT for name in names}
"""By `tokenizer.ggml.pre`."""
