"""Languages that Whisper's checkpoints have tokens for, by the codes that these tokens are called by."""

from octavo.errors import InvalidRequestError, did_you_mean

_NAMES = """
en english  zh chinese  de german  es spanish  ru russian  ko korean  fr french  ja japanese  pt portuguese
tr turkish  pl polish  ca catalan  nl dutch  ar arabic  sv swedish  it italian  id indonesian  hi hindi  fi finnish
vi vietnamese  he hebrew  uk ukrainian  el greek  ms malay  cs czech  ro romanian  da danish  hu hungarian  ta tamil
no norwegian  th thai  ur urdu  hr croatian  bg bulgarian  lt lithuanian  la latin  mi maori  ml malayalam  cy welsh
sk slovak  te telugu  fa persian  lv latvian  bn bengali  sr serbian  az azerbaijani  sl slovenian  kn kannada
et estonian  mk macedonian  br breton  eu basque  is icelandic  hy armenian  ne nepali  mn mongolian  bs bosnian
kk kazakh  sq albanian  sw swahili  gl galician  mr marathi  pa punjabi  si sinhala  km khmer  sn shona  yo yoruba
so somali  af afrikaans  oc occitan  ka georgian  be belarusian  tg tajik  sd sindhi  gu gujarati  am amharic
yi yiddish  lo lao  uz uzbek  fo faroese  ht haitian_creole  ps pashto  tk turkmen  nn nynorsk  mt maltese
sa sanskrit  lb luxembourgish  my myanmar  bo tibetan  tl tagalog  mg malagasy  as assamese  tt tatar  haw hawaiian
ln lingala  ha hausa  ba bashkir  jw javanese  su sundanese  yue cantonese
"""
_WORDS = _NAMES.replace("\n", "  ").split()
LANGUAGES = {code: name.replace("_", " ") for code, name in zip(_WORDS[::2], _WORDS[1::2], strict=True)}
"""Names by codes."""
_ALSO = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}
_CODES = {name: code for code, name in LANGUAGES.items()} | _ALSO


def language_code(language: str) -> str:
    """The code of a language that is given by its code, also with a region (pt-BR), or by its English name.

    Raises InvalidRequestError for one that is not known.
    """
    given = language.strip().lower()
    code = given if given in LANGUAGES else _CODES.get(given.replace("_", " "), given.replace("_", "-").split("-")[0])
    if code not in LANGUAGES:
        hint = did_you_mean(given, [*_CODES])
        raise InvalidRequestError(f"language {language!r:.60} is not known.{hint} Give a code such as en, or a name.")
    return code
