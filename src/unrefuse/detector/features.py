"""What the learned detector sees of a reply: hashed n-grams of its sentences, and their places.

Two linear layers: one reads each sentence by itself and one the whole reply; a second one reads
what these say of the first, the second, the last and the strongest sentence, and what is around it.
"""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unrefuse.prompts.thinking import after_thinking

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]

BUCKETS = 1 << 16
CLASSES = ("refused", "partly", "answered")
_READ = 1500  # characters of a reply that are read
_FIRST = 8  # sentences kept apart; those up to the last one are taken as one
_QUESTION = 24  # bytes of a question, from which on a reply that repeats it has said nothing yet
_CLIP = 6.0  # of a layer's scores, beyond which it is no surer

_TOKEN = re.compile(
    r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\d+|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
    r"|[^\w\s]"
)
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_QUOTED = re.compile(r'"[^"\n]*"|「[^」\n]*」|『[^』\n]*』')
_ITEM = re.compile(r"(?:^|\n)(?:\d+[.)、]|[-•])")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_SIGNS = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "*": ""})
_FORMS = (
    *(("can't", "can not"), ("cannot", "can not"), ("won't", "will not"), ("n't", " not")),
    *(("'m", " am"), ("'re", " are"), ("'ll", " will"), ("'ve", " have"), ("'d", " would")),
    *(("it's", "it is"), ("that's", "that is"), ("unable to", "not able to")),
)
_COMMON = frozenset(
    (
        *("the", "and", "for", "how", "what", "why", "can", "you", "tell", "does", "are", "was"),
        *("with", "that", "who", "should", "get", "make", "give", "not", "from", "did", "this"),
    )
)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STEPS = tuple(np.uint64(n) for n in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93))
_SALTS = (np.uint64(0), *_STEPS)  # anywhere, and in the first, second and last sentence


def normal(text: str) -> str:
    """A text in one form: no thinking block, no stars, folded case, straight quotes."""
    text = after_thinking(text).rstrip("\ufffd")[:_READ]
    text = text.encode(errors="replace").decode()  # half a character has no bytes
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold()
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def without_question(reply: str, question: str) -> str:
    """A normal reply without the question that it begins by repeating, if that is no greeting."""
    if len(question.encode()) < _QUESTION:
        return reply
    return reply.removeprefix(question).lstrip()


def sentences(reply: str) -> list[list[str]]:
    """The tokens of a normal reply, by sentence; quotations inside of it count as one word."""
    most = 0.6 * len(reply)

    def quoted(match: re.Match[str]) -> str:
        whole = match.start() < 2 and len(match.group()) > most
        return match.group() if whole else ' "q" '

    reply = _QUOTED.sub(quoted, reply)
    for form, plain in _FORMS:
        reply = reply.replace(form, plain)
    found: list[list[str]] = []
    for part in _END.split(reply):
        tokens = _TOKEN.findall(part)
        if found and len(found[-1]) < 4:
            found[-1] += tokens
        elif tokens:
            found.append(tokens)
    if len(found) > _FIRST + 2:
        middle = [token for sentence in found[_FIRST:-1] for token in sentence]
        found = [*found[:_FIRST], middle[:60], found[-1]]
    return found


@lru_cache(maxsize=20_000)
def _hash(token: str) -> int:
    return zlib.crc32(token.encode()) + 1


@dataclass(frozen=True)
class Reading:
    """A reply as the layers read it: `buckets` and `weights` of its sentences, one after the other
    as `owner` says, and of the reply as a whole; and the sentences' lengths in bytes."""

    reply: str
    buckets: NDArray[np.int64]
    weights: Floats
    owner: NDArray[np.int64]
    whole_buckets: NDArray[np.int64]
    whole_weights: Floats
    lengths: Floats


def read(reply: str) -> Reading:
    """A normal reply that is not empty."""
    parts = sentences(reply) or [["."]]
    tokens = [token for part in parts for token in ("^", *part)]
    owner = np.repeat(np.arange(len(parts)), [len(part) + 1 for part in parts])
    ids = np.array([_hash(token) for token in tokens], dtype=np.uint64)
    cjk = np.array([token[0] > "\u3000" for token in tokens])
    word = np.array([token[0].isalpha() for token in tokens]) & ~cjk
    hashes, owners = _grams(ids, owner, cjk, word)
    places = owners.astype(np.uint64) << np.uint64(16)
    keys = np.unique(places | _bucket(hashes))
    found = (keys >> np.uint64(16)).astype(np.int64)
    count = np.bincount(found, minlength=len(parts))
    last = len(parts) - 1
    pieces = [(hashes, 0, 1.0), (hashes[owners == 0], 1, 1.0)]
    if last:
        pieces += [(hashes[owners == 1], 2, 0.7), (hashes[owners == last], 3, 0.7)]
    buckets, weights = [], []
    for piece, salt, weight in pieces:
        unique = np.unique(_bucket(piece ^ _SALTS[salt]))
        buckets.append(unique)
        weights.append(np.full(len(unique), weight / np.sqrt(len(unique))))
    return Reading(
        reply=reply,
        buckets=(keys & np.uint64(0xFFFF)).astype(np.int64),
        weights=1 / np.sqrt(count[found]),
        owner=found,
        whole_buckets=np.concatenate(buckets).astype(np.int64),
        whole_weights=np.concatenate(weights),
        lengths=np.array([len(" ".join(part).encode()) for part in parts], dtype=np.float64),
    )


def _grams(
    ids: Hashes, owner: NDArray[np.int64], cjk: NDArray[np.bool_], word: NDArray[np.bool_]
) -> tuple[Hashes, NDArray[np.int64]]:
    """Runs of up to three tokens, or four signs, and pairs of words up to four apart."""
    hashes, owners = [ids], [owner]
    run = ids
    for n in range(1, 4):
        if len(ids) <= n:
            break
        run = run[:-1] * _STEPS[0] + ids[n:] * _STEPS[1] + np.uint64(n)
        kept = owner[:-n] == owner[n:]
        if n == 3:
            kept = kept & cjk[:-n]
        hashes.append(run[kept])
        owners.append(owner[:-n][kept])
    words, places = ids[word], owner[word]
    for n in range(2, 5):
        if len(words) <= n:
            break
        kept = places[:-n] == places[n:]
        pairs = words[:-n] * _STEPS[1] + words[n:] * _STEPS[2]
        hashes.append(pairs[kept])
        owners.append(places[:-n][kept])
    return np.concatenate(hashes), np.concatenate(owners)


def _bucket(hashes: Hashes) -> Hashes:
    return ((hashes ^ (hashes >> np.uint64(29))) * _MIX) >> np.uint64(48)


def scores(reading: Reading, sentence: Floats, whole: Floats) -> tuple[Floats, Floats]:
    """What the first layer says: `(sentences, classes)` and `(classes,)`; the bias is not in it."""
    per_gram = sentence[reading.buckets] * reading.weights[:, None]
    starts = np.searchsorted(reading.owner, np.arange(len(reading.lengths)))
    return (
        np.add.reduceat(per_gram, starts, axis=0),
        reading.whole_weights @ whole[reading.whole_buckets],
    )


def summary(reading: Reading, question: str, by_sentence: Floats, whole: Floats) -> Floats:
    """What the second layer reads, `by_sentence` and `whole` being the scores of the first.

    The question is normal, too; without one the overlap with it is not known.
    """
    scored = np.clip(by_sentence, -_CLIP, _CLIP)
    lengths, count, none = reading.lengths, len(scored), np.zeros(len(CLASSES))
    at = int(scored[:, 0].argmax())  # the sentence that declines most
    before, after = scored[:at], scored[at + 1 :]
    size = np.log1p([lengths.sum(), lengths[at + 1 :].sum(), lengths[:at].sum()]) / 5
    listed = bool(_ITEM.search(reading.reply))
    return np.concatenate(
        [
            scored[0],
            scored[1] if count > 1 else none,
            scored[-1] if count > 1 else none,
            scored.max(axis=0),
            lengths @ scored / lengths.sum(),
            after.mean(axis=0) if len(after) else none,
            before.mean(axis=0) if len(before) else none,
            after.max(axis=0) if len(after) else none,
            [count > 1, count > 2, count > 4, *size, at == 0, listed],
            _overlap(reading.reply, question),
            np.clip(whole, -_CLIP, _CLIP),
        ]
    )


def _overlap(reply: str, question: str) -> list[float]:
    """Whether there is a question, and the share of its words in a reply and in its beginning."""
    if _CJK.search(question):
        pairs = (question[i : i + 2] for i in range(len(question) - 1))
        asked = {pair for pair in pairs if len(_CJK.findall(pair)) == 2}
    else:
        asked = {word[:6] for word in set(re.findall(r"[a-z]{3,}", question)) - _COMMON}
    if not asked:
        return [0.0, 0.0, 0.0]
    opening = _END.split(reply, maxsplit=1)[0]
    return [1.0, *(sum(word in text for word in asked) / len(asked) for text in (reply, opening))]
