"""Our tokenizers against open_clip's, on any text that hypothesis comes up with."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import lru_cache

import numpy as np
import open_clip.tokenizer as peer
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_equal

from vitrail.errors import InputError, MissingExtraError
from vitrail.models import clip
from vitrail.text.tokenizer import BPETokenizer, FileTokenizer, _word_pattern, canonicalize, load_tokenizer

CAPTION = "a photo of a cat"


@lru_cache
def ours(clean: str = "lower") -> BPETokenizer:
    return BPETokenizer(clean=clean)


@lru_cache
def theirs(clean: str = "lower") -> peer.SimpleTokenizer:
    return peer.SimpleTokenizer(clean=clean)


# Text that reaches every branch: any Unicode, and pieces that cleaning and the word pattern treat apart.
PIECES = st.sampled_from(
    [
        *("'s", "'t", "'RE", "'ve", "'m", "'LL", "'d", "'ſ", "’s", "ﬁ", "İ", "ẞ", "ß", "Σς", "ǅ", "ıı"),
        *("&amp;", "&amp;amp;lt;", "&#x1F600;", "&nbsp;", "&#xD800;", "&lt;end_of_text&gt;"),
        *("<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "</w>", "<|endoftext|>"),
        *("cafÃ©", "â€œquotedâ€\x9d", "ï¿½", "\ufffd", "\x1b[31mred", "\r\n", "\u2028", "\u200b", "\ufeff"),
        *(
            "12345",
            "½",
            "٣",
            "Ⅷ",
            "０",
            "日本語の文章",
            "ไทย",
            "עברית",
            "नमस्ते",
            "👩‍👩‍👧‍👦",
            "🇫🇷",
            "e\u0301",
            "\U000e0041",
        ),
        *(
            "_",
            "__",
            "a_b",
            "-",
            "...",
            "!?",
            "$%",
            "aaaaaaaaa",
            "abababab",
            "the",
            "photograph",
            " ",
            "\t",
            "\xa0",
        ),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(codec="utf-8", max_codepoint=0x2FF), max_size=60),
    st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=20).map("".join),
    st.lists(PIECES, max_size=20).map(" ".join),
    # Few letters in long runs: overlapping and repeated merges.
    st.text(alphabet="aehnotr", min_size=1, max_size=120),
    st.text(alphabet="あいの日本の的是", max_size=80),
)


@settings(max_examples=1500, deadline=None)
@given(TEXTS)
@example("")
@example("\ud800 lone surrogate")
@example("it's John's 3 dogs' café, naïve—really?!")
def test_ids_equal_open_clips(text):
    assert ours().encode(text) == theirs().encode(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_of_canonical_text_equal_open_clips(text):
    assert ours("canonicalize").encode(text) == theirs("canonicalize").encode(text)
    assert canonicalize(text) == peer.canonicalize_text(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["a " * 75])
@example(["a " * 76])
@example(["the <end_of_text> in the middle " * 20, ""])
def test_batches_equal_open_clips(texts):
    rows = ours()(texts, truncate=True)
    assert rows.dtype == np.int64
    assert_equal(rows, theirs()(texts).numpy())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 49_407), max_size=30))
def test_decoding_equals_open_clips(ids):
    assert ours().decode(ids) == theirs().decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=60))
def test_plain_text_survives_a_round_trip(text):
    assert ours().decode(ours().encode(text)) == "".join(f"{word} " for word in text.split())


def test_every_symbol_has_open_clips_id():
    assert {s: i for i, s in enumerate(ours()._symbols)} == theirs().encoder
    assert ours().vocab_size == 49_408
    assert (ours().start_id, ours().end_id) == (49_406, 49_407)


def test_the_vocabulary_is_the_published_file():
    from importlib.resources import files

    data = (files("vitrail.text") / "data" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    assert hashlib.sha256(data).hexdigest().startswith("924691ac288e5440")
    assert "MIT License" in (files("vitrail.text") / "data" / "NOTICE").read_text()


def test_merges_only_join_what_earlier_merges_made():
    """What lets the merges be done from a heap: no new pair comes before the one that made it."""
    rank_of = {first + second: rank for rank, (first, second) in enumerate(ours()._merges)}
    for rank, pair in enumerate(ours()._merges):
        assert all(rank_of.get(symbol, -1) < rank for symbol in pair)


def test_a_long_run_of_letters():
    """Equal where the original can still be waited for; forty times as long would take it minutes."""
    letters = "".join(chr(97 + i) for i in np.random.default_rng(2).integers(0, 26, 120_000))
    assert ours().encode(letters[:3000]) == theirs().encode(letters[:3000])
    assert ours().decode(ours().encode(letters)) == letters + " "


def test_a_context_of_another_length():
    rows = BPETokenizer(context_length=8)(["one", "a b c d e f"])
    assert_equal(rows, theirs()(["one", "a b c d e f"], context_length=8).numpy())


class TestBadInput:
    def test_a_long_text_is_refused_with_the_limit(self):
        with pytest.raises(
            InputError, match=r"is 202 tokens long, but the model reads only 77.*truncate=True"
        ):
            ours()("cat " * 200)
        assert ours()("cat " * 200, truncate=True)[0, -1] == ours().end_id

    def test_the_longest_text_fits(self):
        assert ours()("cat " * 75)[0, -1] == ours().end_id

    def test_no_texts(self):
        with pytest.raises(InputError, match="at least one"):
            ours()([])

    @pytest.mark.parametrize("texts", [[CAPTION, 3], [None], [b"cat"]])
    def test_not_a_text(self, texts):
        with pytest.raises(InputError, match="not a string"):
            ours()(texts)

    @pytest.mark.parametrize("texts", [None, 7, b"cat", {"cat": 1}])
    def test_not_texts_at_all(self, texts):
        with pytest.raises(InputError, match="list of texts"):
            ours()(texts)

    def test_encode_takes_one_text(self):
        with pytest.raises(InputError, match="not a string"):
            ours().encode([CAPTION])

    @pytest.mark.parametrize("number", [-1, 49_408])
    def test_no_such_token(self, number):
        with pytest.raises(InputError, match="0 to 49407"):
            ours().decode([number])

    def test_no_such_cleaning(self):
        with pytest.raises(InputError, match="'lower' or 'canonicalize'"):
            BPETokenizer(clean="shout")

    def test_a_context_without_room(self):
        with pytest.raises(InputError, match="no room"):
            BPETokenizer(context_length=1)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A small Unigram vocabulary laid out as SigLIP's: </s> is id 1, ends each text and pads."""
    import tokenizers as hf
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = hf.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    corpus = ["a photo of a cat", "a photo of two dogs", "the quick brown fox jumps over the lazy dog"] * 5
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("sentencepiece")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "</s>",
                "pad_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def pair(sentencepiece_folder):
    mine = FileTokenizer(sentencepiece_folder / "tokenizer.json", context_length=12, pad_id=1)
    reference = peer.HFTokenizer(str(sentencepiece_folder), context_length=12, clean="canonicalize")
    return mine, reference


class TestFileTokenizer:
    """SigLIP's vocabulary cannot be had here; the path to it is tested with a small one of the same kind."""

    @settings(max_examples=200, deadline=None)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=3))
    @example(texts=["A photo of a CAT!", "a_photo", "", "the lazy dog " * 9])
    def test_equal_to_open_clips_wrapper(self, pair, texts):
        mine, reference = pair
        assert_equal(mine(texts, truncate=True), reference(texts).numpy())

    def test_a_long_text_is_refused_with_the_limit(self, pair):
        with pytest.raises(InputError, match="the model reads only 12"):
            pair[0]("the lazy dog " * 9)
        # The refusal left no state behind.
        assert_equal(pair[0]("a cat"), pair[1]("a cat").numpy())

    def test_loaded_for_the_tower_it_belongs_to(self, sentencepiece_folder):
        config = clip.VARIANTS["ViT-B-16-SigLIP"].text
        tokenizer = load_tokenizer(config, file=sentencepiece_folder / "tokenizer.json")
        row = tokenizer("a cat")[0]
        assert row.shape == (64,)
        assert set(row[-10:].tolist()) == {1}

    def test_no_file(self):
        with pytest.raises(
            InputError, match=r"tokenizer\.json from https://huggingface\.co/timm/ViT-B-16-SigLIP "
        ):
            load_tokenizer(clip.VARIANTS["ViT-B-16-SigLIP"].text)

    def test_a_path_without_a_file(self, tmp_path):
        with pytest.raises(InputError, match="check the path"):
            FileTokenizer(tmp_path / "none.json", context_length=12, pad_id=1)

    def test_a_file_of_something_else(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text('{"a": 1}')
        with pytest.raises(InputError, match=r"not a tokenizer\.json"):
            FileTokenizer(tmp_path / "tokenizer.json", context_length=12, pad_id=1)

    def test_the_library_is_missing(self, monkeypatch, sentencepiece_folder):
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(InputError, match=r"\[siglip\]"):
            FileTokenizer(sentencepiece_folder / "tokenizer.json", context_length=12, pad_id=1)

    def test_a_vocabulary_of_another_tower(self, sentencepiece_folder):
        import dataclasses

        config = dataclasses.replace(clip.VARIANTS["ViT-B-16-SigLIP"].text, vocab_size=10)
        with pytest.raises(InputError, match="the text tower has 10"):
            load_tokenizer(config, file=sentencepiece_folder / "tokenizer.json")


WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "onnx", "transformers", "open_clip"):
    sys.modules[name] = None
from pathlib import Path
from vitrail.text.tokenizer import BPETokenizer, FileTokenizer
print(BPETokenizer(context_length=24)("a photo of a cat").tolist())
print(FileTokenizer(Path(sys.argv[1]), context_length=24, pad_id=1)("a photo of a cat").tolist())
"""


def test_texts_are_read_without_torch(sentencepiece_folder):
    file = sentencepiece_folder / "tokenizer.json"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    expected = theirs()(CAPTION, context_length=24), FileTokenizer(file, context_length=24, pad_id=1)(CAPTION)
    assert done.stdout.splitlines() == [str(rows.tolist()) for rows in expected]


@pytest.mark.parametrize("library", ["ftfy", "regex"])
def test_a_missing_library_names_its_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    _word_pattern.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"^{library}, .* is not installed: run `.*\[text\]"):
        BPETokenizer()


def test_clips_towers_bring_their_vocabulary():
    tokenizer = load_tokenizer(clip.VARIANTS["ViT-B-32"].text)
    assert_equal(tokenizer(CAPTION), theirs()(CAPTION).numpy())
    with pytest.raises(InputError, match="leave the tokenizer file out"):
        load_tokenizer(clip.VARIANTS["ViT-B-32"].text, file="tokenizer.json")
