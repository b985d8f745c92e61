"""A byte-pair tokenizer in CLIP's layout, learned from the captions and from plain English."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import json
from importlib.resources import files

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from t2iedit.shapes.training.scenes_by_step import caption_of

POSITIONS = 77
MERGES = 1200
SUFFIX = "</w>"


def learn_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """Bytes, bytes that end a word, merges, then the two special tokens, as in CLIP."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + SUFFIX for letter in alphabet]
    merges = _merges(_sentences(captions), alphabet)
    pieces += [left + right for left, right in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)


def english() -> list[str]:
    return (
        files("t2iedit.shapes.training").joinpath("english.txt").read_text(encoding="utf-8").split()
    )


def _sentences(captions: int) -> list[str]:
    return [caption_of(index, 0) for index in range(captions)] + english() * 40


def _merges(sentences: list[str], alphabet: list[str]) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + MERGES,
            initial_alphabet=alphabet,
            end_of_word_suffix=SUFFIX,
            show_progress=False,
        ),
    )
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
