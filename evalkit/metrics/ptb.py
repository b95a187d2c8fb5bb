"""The Penn Treebank tokenizer that published caption scores were computed with, in Python.

The official scorer (pycocoevalcap, and coco-caption before it) runs Stanford CoreNLP 3.4.1's PTBTokenizer with
`-preserveLines -lowerCase` over one file with a caption a line, then drops punctuation tokens. This module was
written from what that program does, observed by running it on real captions and on strings made up for the
purpose; it holds no code of it.

Two things decide how far it can be relied on:

* **The guard** (`guarded`): captions made of plain words with simple clitics and punctuation. Inside it this
  tokenizer is meant to be exact (see `benchmarks/captions.py` for the check on all 616,767 COCO captions). Outside
  it (emoticons, URLs, markup, odd apostrophes) it is a good guess, and the caller may ask the Java program.
* **The context rule**: the program reads a file, and what stands on the next line can change a token: "the letter T."
  gives `t` before "A man" and `t.` before "a man", and "we'll" at the very end of the file loses its apostrophe.
  Context "file" is what published numbers were computed with: the captions in the order given are the lines of a file.
  Context "isolated" treats each caption as a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from evalkit.metrics.java import Failure, Java, Setup, Worker, answer_each, scorer_file, worker

Context: TypeAlias = Literal["file", "isolated"]

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens the official wrapper drops. It compares after lower-casing, so "-lrb-" stays, as in every published score."""

LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
"""What some program on the way takes for the end of a line; a caption is one line, so each becomes a space."""


def one_line(caption: str) -> str:
    r"""Return the caption with line breaks of every kind, and NUL, as spaces, and lone surrogates as U+FFFD.

    >>> one_line("a man\r\nand\u2028a dog")
    'a man  and a dog'
    """
    line = LINE_BREAKS.sub(" ", caption).replace("\0", " ")
    return line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def tokenize(captions: Sequence[str], *, context: Context = "isolated") -> list[str]:
    """Return each caption's tokens joined by spaces: lower case, punctuation dropped.

    Args:
        captions: raw captions; with context "file" their order is that of the lines.
        context: see the module's text.

    >>> tokenize(["A man's dog isn't on the couch.", 'A "STOP" sign, at 10:30 a.m.'])
    ["a man 's dog is n't on the couch", 'a stop sign at 10:30 a.m.']
    >>> tokenize(["the letter T.", "A man"], context="file"), tokenize(["the letter T.", "A man"])
    (['the letter t', 'a man'], ['the letter t.', 'a man'])
    """
    lines = [_chunks(caption) for caption in captions]
    result: list[str] = []
    behind = _END
    for index in range(len(lines) - 1, -1, -1):
        chunks, spaced = lines[index]
        if context == "isolated":
            behind = _END
        elif behind == _END and index < len(lines) - 1:
            behind = _PLAIN  # a line break follows, be it before empty lines only
        if behind == _END and spaced:
            behind = _PLAIN
        result.append(_line(chunks, behind))
        if chunks:
            kind = _kind(chunks[0])
            # An opener needs white space behind it.
            behind = _PLAIN if kind == _OPENER and len(chunks) == 1 and behind == _END else kind
    result.reverse()
    return result


def guarded(caption: str) -> bool:
    """Return whether every chunk is a plain word with simple clitics and punctuation, so that `tokenize` is exact.

    >>> guarded("Two dogs' owners can't park at 10:30, by the T-shirt store."), guarded("so cute :-) www.x.com")
    (True, False)
    """
    return _GUARD.fullmatch(caption) is not None and _SPANNING.search(caption) is None


# --- the official program, for what is outside the guard --------------------------------------------------------------


def tokenizer_worker(java: Java) -> Worker:
    """Return the living worker of this process that runs the official tokenizer's Java classes."""
    return worker(
        Setup(
            service="evalkit.metrics.ptb:TokenizerService",
            java=java,
            jars=(scorer_file("tokenizer/stanford-corenlp-3.4.1.jar"),),
            options=("-Xmx512m", "-XX:+UseSerialGC", "-Duser.language=en", "-Duser.country=US"),
        )
    )


def official(living: Worker, captions: Sequence[tuple[str, str | None]]) -> list[str | Failure]:
    """Return what the official program makes of each caption, given the line after it (None: it is the last).

    A caption's tokens never reach into another caption here, as they can in the official file.

    Raises:
        WorkerError: The program does not run here.
    """
    asked = [(one_line(caption), None if after is None else one_line(after)) for caption, after in captions]
    answers = answer_each(living, lambda part: list(part), asked, chunk=1000, seconds=30.0, chunk_seconds=120.0)
    return [
        answer if isinstance(answer, Failure) else " ".join(token for token in answer if token not in PUNCTUATION)
        for answer in answers
    ]


class TokenizerService:
    """Runs in the worker: one PTBTokenizer a caption, so that nothing can shift the captions behind it."""

    def __init__(self) -> None:
        import jpype

        self._string = jpype.JString
        self._reader = jpype.JClass("java.io.StringReader")
        self._tokenizer = jpype.JClass("edu.stanford.nlp.process.PTBTokenizer")
        self._factory = jpype.JClass("edu.stanford.nlp.process.CoreLabelTokenFactory")()

    def answer(self, request: Any) -> list[list[str]]:
        """Tokenize (caption, next line or None) pairs."""
        return [self._tokens(caption, after) for caption, after in request]

    def _tokens(self, caption: str, after: str | None) -> list[str]:
        size = int(self._string(caption).length())
        text = caption if after is None else f"{caption}\n{after}"
        tokenizer = self._tokenizer(self._reader(self._string(text)), self._factory, "tokenizeNLs")
        tokens: list[str] = []
        while tokenizer.hasNext():
            token = tokenizer.next()
            if token.beginPosition() >= size:
                break
            if token.endPosition() > size:
                return self._tokens(caption, None)  # a tag that would go on in the next caption
            # The official wrapper splits at spaces, and drops the empty strings between two of them.
            tokens += [part for part in str(token.word().toLowerCase()).split(" ") if part]
        return tokens


# --- chunks and what follows them ------------------------------------------------------------------------------------

_WHITESPACE = re.compile("[ \t\xa0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff\n]+")
_END, _PLAIN, _OPENER, _DIGIT = "end", "plain", "opener", "digit"

_OPENING = (
    "A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our "
    "She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
"""Words, capitalised or in capitals, that open a new sentence after a single letter with a full stop."""
_OPENERS = frozenset(_OPENING.split()) | frozenset(_OPENING.upper().split())


@lru_cache(maxsize=1 << 16)
def _chunks(caption: str) -> tuple[tuple[str, ...], bool]:
    """Return what stands between white space, and whether the caption ends with some."""
    split = _WHITESPACE.split(one_line(caption).replace("\xad", ""))
    return tuple(chunk for chunk in split if chunk), not split[-1]


def _kind(chunk: str) -> str:
    if chunk in _OPENERS:
        return _OPENER
    return _DIGIT if "0" <= chunk[0] <= "9" else _PLAIN


@lru_cache(maxsize=1 << 16)
def _line(chunks: tuple[str, ...], behind: str) -> str:
    """Return the tokens of one caption, given what follows its last chunk."""
    text = " ".join(chunks)
    if _MAY_SPAN.search(text):
        for pattern in _SPANS:
            text = pattern.sub(lambda match: match[0].replace(" ", "\xa0"), text)
        chunks = tuple(text.split(" "))
    tokens: list[str] = []
    last = len(chunks) - 1
    for index, chunk in enumerate(chunks):
        following = _PLAIN
        if index == last:
            following = behind
        elif chunk[-1] == ".":
            following = _kind(chunks[index + 1])
            if following == _OPENER and index + 1 == last and behind == _END:
                following = _PLAIN
        tokens += _tokens(chunk, following)
    return " ".join(tokens)


# Chunks that make one token, with U+00A0 between: mixed numbers, telephone numbers, tags.
_MAY_SPAN = re.compile(r" \d+/\d|\d\)? \d|<[A-Za-z!/?]")
_SPANS = (
    re.compile(r"\d+ \d+/\d+(?![\w/-]|\.\w)"),
    re.compile(r"(?<!\S)\(?\d{2,4}\)? \d{3,4}[ -]\d{3,4}(?!\w)"),
    re.compile(r"<[A-Za-z!/?][^<>]*>"),
)
_SPANNING = re.compile(r"\d[ \t]+\d+/\d|\d\)?[ \t]+\d{3,4}[- \t]+\d{3,4}")


# --- inside a chunk: the longest match wins, as in every lexer -------------------------------------------------------

_NUMERIC = r"\xb2\xb3\xb9\xbc-\xbe\u2070-\u2089\u2150-\u218b\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
_L = rf"[^\W\d_{_NUMERIC}]"
_A = rf"[^\W_{_NUMERIC}]"
_WORD = rf"{_A}+(?:_{_A}+)*"
_Q = "['’]"

_KEEPING = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf "
    "cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga "
    "gen gov hon inc ind insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar md messrs mfg mich minn "
    "mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof pte pty ptys "
    "pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue "
    "tues univ va vs vt wed wis wisc wm wyo"
)
"""Abbreviations that keep their full stop wherever they stand, in any case but for the next two sets."""
_ABBREVIATIONS = frozenset(_KEEPING.split())
_CAPITALISED_ONLY = frozenset(("ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"))
_NOT_UPPER = frozenset(("mfg", "mtg", "pte", "pty", "ptys"))
_BEFORE_DIGITS = frozenset(("art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"))
"""Keep it before a number only: "no. 7", but "said no."."""

_CONTRACTED = dict.fromkeys(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"), 3)
"""Words cut in two, after that many letters."""

_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": ""}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SYMBOLS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¤": "$", "¢": "cents", "…": "..."}
_SYMBOLS |= dict.fromkeys("“”‟«»\x93\x94", "''") | dict.fromkeys("‘’‛‹›\x91\x92", "'")
_SYMBOLS |= dict.fromkeys("‐‑‒–—―\x96\x97", "--")

_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"[nN]['’`‘][tT]{_L}*",
        # Words with an apostrophe inside: O'Brien, d'Artagnan, Hawai'i, ma'am.
        rf"(?:[dlnoA-XZ]|[Qq]u|[Nn]e|[Jj]usqu){_Q}(?!(?:ll|LL|re|RE|ve|VE)(?!{_L})){_L}{_L}+(?:-{_WORD})*",
        rf"{_L}+[aeiouAEIOU]{_Q}[aeiouAEIOU]{_L}*",
        rf"(?i:(?:c{_Q}(?:est|mon)|[eo]{_Q}er|(?:e|hallowe){_Q}en|ma{_Q}am|s{_Q}mores|li{_Q}l|nat{_Q}l))(?![^\W_])",
        rf"[yY]{_Q}(?={_L})",
        rf"(?:[dljDLJ]|(?i:ol|dunkin)){_Q}(?!{_L})",
        # Compounds; the first part may hold full stops and commas ("3.5-inch").
        rf"(?:[doDO]{_Q})?{_A}+(?:[.,]{_A}+)*(?:-(?:[doDO]{_Q})?{_WORD})+(?:/{_WORD}(?:-{_WORD})*)*",
        rf"{_WORD}(?:/[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)+",
        _WORD,
        # Joined by full stops: web addresses, file names, a missing space after a sentence.
        rf"{_L}+(?:[.!?]{_L}+)+",
        rf"(?:[A-Za-z]\.)+(?:-{_WORD})+(?:\.(?:[A-Za-z]\.)+)?",
        r"(?:[A-Za-z]\.){2,}",
        r"(?:[A-Za-z]\.)+[A-Za-z](?![^\W_])",
        r"[A-Z]+(?:[&+][A-Z]+)+",
        r"[A-Za-z]\+\+|[A-Za-z]#(?![^\W_])",
        # Numbers, with sign, times and groups of digits.
        r"[-+]?[0-9]*(?:[.,:][0-9]+)+|[-+]?[0-9]+",
        r"[0-9]+\xa0[0-9]+/[0-9]+",
        r"\(?[0-9]{2,4}\)?\xa0[0-9]{3,4}[-\xa0][0-9]{3,4}",
        # Addresses, handles, tags, entities, faces.
        r"(?:https?|ftp)://[^\s<>|\"]*[^\s<>|\"'.,;:!?)(]",
        r"[A-Za-z0-9][^\s<>|\"@,;:()]*@[A-Za-z0-9](?:[^\s<>|\"(),;:!?]*[A-Za-z0-9])?",
        r"[#@][A-Za-z][A-Za-z0-9_]*",
        r"<[A-Za-z!/?][^<>]*>",
        r"&(?i:amp|lt|gt|quot|apos|nbsp);",
        r"[:;=]-?[)(]|[:;=][DPpO\[\]\\](?![^\W_])|\^_\^|-_-|[oO]_[oO]",
        r"-(?i:lrb|rrb|lcb|rcb|lsb|rsb)-",
        r"US\$|C\$|A\$|HK\$",
        r"[!?]+", r"\.\.+", r"--+", r"\*+", r"#+", r"@+", r"_+", r"<<", r">>",
    )
)  # fmt: skip
_BEFORE_NT = re.compile(rf"({_L}+?)n['’`‘]t", re.IGNORECASE)
_CLITIC = re.compile(rf"{_Q}(?:[sSdDmMnN](?!{_L})|(?:ll|LL|re|RE|ve|VE)(?!{_L})(.|$))", re.DOTALL)
_SPECIAL_QUOTE = re.compile(
    rf"{_Q}(?:(?i:em|till|til|cause)|[nN]{_Q}|[0-9][0-9]s(?![^\W_])|[0-9][0-9](?=$))", re.DOTALL
)
_TIS = re.compile(rf"{_Q}(?i:t(is|was))(?![^\W_])")
_STOP_BEFORE = re.compile(r"\.(?=[,;:])")
_COMPOUND = re.compile(rf"{_WORD}(?:-{_WORD})*")
_APOSTROPHE = re.compile(rf"{_Q}{_L}")


@lru_cache(maxsize=1 << 17)
def _tokens(chunk: str, following: str) -> tuple[str, ...]:
    """Return the tokens of a chunk that are kept, given what follows its white space."""
    return tuple(token for token in _lex(chunk, following) if token and token not in PUNCTUATION)


def _lex(chunk: str, following: str) -> Iterator[str]:
    position = 0
    size = len(chunk)
    while position < size:
        char = chunk[position]
        if char in "'’":
            token, position = _quote(chunk, position, following)
            yield from token
            continue
        end = position
        for pattern in _PATTERNS:
            match = pattern.match(chunk, position)
            if match and match.end() > end:
                end = match.end()
        negated = _BEFORE_NT.match(chunk, position)
        if negated and negated.end() > end:
            end = negated.end(1)  # what is looked at behind the word counts for the length of the match
        if end == position:
            position += 1
            yield _symbol(char)
            continue
        text = chunk[position:end]
        if end < size and chunk[end] == "." and text[0].isalnum():
            kept = _keeps_stop(text, chunk, end, following)
            if kept:
                text, end = text + ".", end + 1
        position = end
        if text.lower() in _CONTRACTED and not _APOSTROPHE.match(chunk, end):
            cut = _CONTRACTED[text.lower()]
            yield from (text[:cut].lower(), text[cut:].lower())
        else:
            yield _written(text)


def _keeps_stop(text: str, chunk: str, stop: int, following: str) -> bool:
    """Return whether the full stop at `stop` belongs to the token before it."""
    last = stop + 1 == len(chunk)
    if len(text) == 1 and text.isascii() and text.isalpha():
        return not (last and following == _OPENER)
    if _STOP_BEFORE.match(chunk, stop) and _COMPOUND.fullmatch(text):
        return True
    lower = text.lower()
    if lower in _BEFORE_DIGITS:
        return following == _DIGIT if last else "0" <= chunk[stop + 1] <= "9"
    if lower in _ABBREVIATIONS:
        return not (lower in _NOT_UPPER and text.isupper())
    return lower in _CAPITALISED_ONLY and text[0].isupper()


def _written(text: str) -> str:
    lower = text.lower()
    if lower in _ENTITIES:
        return _ENTITIES[lower]
    if text[-1] in ")(" and text[0] in ":;=":
        return text[:-1] + _BRACKETS[text[-1]]
    if "\xa0" in text and text[0] != "<":
        return lower.replace("(", "-lrb-").replace(")", "-rrb-")
    if text[0] in ".-" and len(set(text)) == 1:
        return "--"  # dots and dashes are dropped, however many
    return lower.replace("’", "'").replace("‘", "`")


def _quote(chunk: str, position: int, following: str) -> tuple[tuple[str, ...], int]:
    """Return what stands at an apostrophe, and where it ends: a clitic, a shortened word, or a quotation mark."""
    if chunk[position : position + 2] == "''":
        return (), position + 2
    match = _TIS.match(chunk, position)
    if match:
        return ("'t", match[1].lower()), match.end()
    match = _SPECIAL_QUOTE.match(chunk, position)
    if match:
        return (match[0].lower().replace("’", "'"),), match.end()
    match = _CLITIC.match(chunk, position)
    if match:
        behind = match[1]
        if behind is None:
            if not (match[0][1] in "nN" and chunk[match.end() : match.end() + 1] == "."):
                return (f"'{match[0][1].lower()}",), match.end()
        elif behind or following != _END:
            # Two-letter clitics need a character behind them; at the very end of the file there is none.
            end = position + 3
            return (f"'{chunk[position + 1 : end].lower()}",), end
    return ("'",), position + 1


def _symbol(char: str) -> str:
    if char in _BRACKETS:
        return _BRACKETS[char]
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    if char == '"':
        return "''"
    if ord(char) > 0xFFFF or char == "\ufffd" or not char.isprintable():
        return ""  # the program warns of an untokenizable character and goes on
    return char.lower()


# --- the guard -------------------------------------------------------------------------------------------------------

_PLAIN_CHUNK = (
    r"[\"(]{0,2}(?:"
    r"[A-Za-z]+(?:-[A-Za-z]+){0,3}(?:'s|')?"  # words, compounds, possessives
    r"|[A-Za-z]{2,}(?:'(?:ll|re|ve|d|m)|n't)|[Ii]'(?:ll|ve|d|m)"
    r"|[A-Za-z]+/[A-Za-z]+|(?:[A-Za-z]\.){1,4}"
    r"|[#$]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?%?|[0-9]+:[0-9][0-9]|[0-9]+(?:st|nd|rd|th|s|'s)|[0-9]{1,4}[A-Za-z]{1,6}"
    r"|[A-Za-z]{1,4}[0-9]{1,4}|[A-Za-z]{1,6}-[0-9]{1,4}|[0-9]{1,4}-[A-Za-z]+|[0-9]{1,3}/[0-9]{1,3}"
    r")[\")]{0,2}(?:[,;:]|\.|[!?]|\.\")?[\"]?"
)
_GUARD = re.compile(rf"\s*(?:(?:{_PLAIN_CHUNK}|[.,;:!?&\"]|--?)(?:\s+|$))*", re.ASCII)
