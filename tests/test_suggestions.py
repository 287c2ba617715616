"""What a key that does not exist may have meant. Oracle: the settings meant, written by hand."""

import pathlib

import pytest
from user_errors import message_of

from bsq_jax.config import default_config, load_config_file, set_value
from bsq_jax.config import suggestions as table
from bsq_jax.config.settings import SECTIONS, declared
from bsq_jax.config.suggestions import suggestions

ROOT = pathlib.Path(__file__).parents[1]


# What newcomers type, and the setting that has its place; written by hand.
MEANT = {
    "lr": "optimizer.learning_rate",
    "optimizer.lr": "optimizer.learning_rate",
    "train.learning_rate": "optimizer.learning_rate",
    "discriminator.lr": "discriminator.learning_rate",
    "optimiser.learning-rate": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "warmup": "optimizer.warmup_steps",
    "grad_clip": "optimizer.clip_norm",
    "bs": "train.batch_size",
    "batch": "train.batch_size",
    "optimizer.batch_size": "train.batch_size",
    "steps": "train.steps",
    "train_steps": "train.steps",
    "max_steps": "train.steps",
    "epochs": "train.steps",
    "ckpt": "train.checkpoint_every",
    "seed": "seed",
    "train.seed": "seed",
    "L": "model.bits",
    "num_bits": "model.bits",
    "modle.bits": "model.bits",
    "patch": "model.patch_size",
    "res": "model.image_size",
    "image_size": "model.image_size",
    "prior.widht": "prior.width",
    "dim": "model.width",
    "codebook_size": "quantizer.codes",
    "dataset": "data.source",
    "num_workers": "data.threads",
}


@pytest.mark.smoke
@pytest.mark.parametrize("typed", MEANT)
def test_what_was_meant_comes_first(typed):
    found = suggestions(typed)
    assert found[0].key == MEANT[typed]
    assert 1 <= len(found) <= 3
    if typed != "seed":  # which is one
        message = message_of(set_value, default_config(), typed, "1")
        assert f"{typed} does not exist: did you mean {MEANT[typed]} (" in message


def test_suggestions_are_settings_and_say_what_they_are():
    assert {key for key, _, _ in table.NAMES} <= set(declared())
    for word in [word for _, _, words in table.NAMES for word in words.split()[1::4]]:
        for key, meaning in suggestions(word):
            assert key in declared() or key in SECTIONS
            assert meaning
    # Every setting is found by its own name, whatever section it is typed with.
    for key in list(declared())[::3]:
        leaf = key.rpartition(".")[2]
        namesakes = [other for other in declared() if other.rpartition(".")[2] == leaf]
        assert {found.key for found in suggestions(f"nowhere.{leaf}")} & set(namesakes)
    assert "epochs x examples / train.batch_size" in suggestions("epochs")[0].meaning
    assert suggestions("qwerty") == []
    message = message_of(set_value, default_config(), "qwerty", "1")
    assert message.endswith(f"no setting is called like it, see {table.SETTINGS_PAGE} for all")
    assert (ROOT / table.SETTINGS_PAGE).exists()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("bit=36", "argument bit does not exist: did you mean bits ("),
        ("L=36", "argument L does not exist: did you mean bits ("),
        ("patch=8", "did you mean the setting --config.model.patch_size ("),
        ("epochs=8", "did you mean the setting --config.train.steps ("),
        ("qwerty=8", "argument qwerty does not exist (there are: bits, codes, cosine, "),
        ("bits", "argument bits has no value: write bits=VALUE"),
        ("imagenet", "variant 'imagenet' does not exist: did you mean imagenet"),
        ("run_local", "did you mean runlocal?"),
    ],
)
def test_arguments_of_a_config_file_that_do_not_exist(argument, words):
    assert words in message_of(load_config_file, f"tokenizer:{argument}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "config.optimizer.lr = 3",
            "line 5: lr does not exist: did you mean optimizer.learning_ra",
        ),
        ("config.optimizer.update(lr=3)", "line 5: lr does not exist: did you mean optimizer.lea"),
        ("config.optimizer['bs']", "line 5: bs does not exist: did you mean train.batch_size ("),
        ("config.optimiser.b1 = 3", "optimiser does not exist: did you mean optimizer (a group"),
        ("{}['lr']", "line 5: KeyError: 'lr'"),
    ],
)
def test_a_key_that_a_config_file_invents_is_one_line(tmp_path, line, words):
    path = tmp_path / "broken.py"
    path.write_text(
        "from bsq_jax.config import default_config\n\ndef get_config(argument):\n"
        f"    config = default_config()\n    {line}\n    return config\n"
    )
    message = message_of(load_config_file, str(path))
    assert words in message
    assert len(message) < 400  # not the whole config
