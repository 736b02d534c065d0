"""What a run needs before its first step: questions, tokenizer, layout, start."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import reference_tokenizers
import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.config import MeshConfig, PoolConfig, TokenizerConfig
from rft_jax.data.prompts import prompt_tokens, with_ends
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import ConfigError, DataError, ModelError
from rft_jax.rollout.engine import rows_for
from rft_jax.runs import setup
from rft_jax.types import Question


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny_experiment.write_questions(tmp_path)


def test_the_tokenizer_is_trained_once(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    first = setup.ensure_tokenizer(config, tmp_path / "work")
    path = tmp_path / "work/tokenizer.model"
    assert first.path == path
    assert first.vocab_size == 274
    before = path.stat().st_mtime_ns
    again = setup.ensure_tokenizer(config, tmp_path / "work")
    assert path.stat().st_mtime_ns == before
    assert again.encode("1+1?") == first.encode("1+1?")


def test_the_tokenizer_of_a_path_is_read_there(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    trained = setup.ensure_tokenizer(config, tmp_path)
    named = replace(config, tokenizer=TokenizerConfig(path=str(trained.path)))
    assert setup.ensure_tokenizer(named, tmp_path / "other").path == trained.path
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("before", ["", "hf:"])
def test_the_tokenizer_of_a_published_model_is_read_there(
    source: str, tmp_path: Path, before: str
) -> None:
    folder = reference_tokenizers.qwen(tmp_path / "qwen")
    config = tiny_experiment.sft(source)
    config = replace(config, update=replace(config.update, row_length=70))
    chat = replace(config.data, prompt_format="chat", system="Add.", max_prompt_tokens=60)
    named = replace(config, tokenizer=TokenizerConfig(path=f"{before}{folder}"), data=chat)
    tokenizer = setup.ensure_tokenizer(named, tmp_path / "other")
    assert tokenizer.path == folder
    assert setup.load_questions(named, tokenizer).train
    tight = replace(named, data=replace(chat, max_prompt_tokens=10))
    with pytest.raises(DataError, match=r"16 of 16 prompts have more tokens than data\.max_pr"):
        setup.load_questions(tight, tokenizer)


def test_a_chat_without_a_template_is_refused_with_the_questions(
    source: str, tmp_path: Path
) -> None:
    config = tiny_experiment.sft(source)
    chat = replace(config, data=replace(config.data, prompt_format="chat"))
    with pytest.raises(ModelError, match=r"tokenizer.model: the tokenizer has no chat "):
        setup.load_questions(chat, setup.ensure_tokenizer(chat, tmp_path))


def test_the_first_prompt_and_its_end_are_shown(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = reference_tokenizers.qwen(tmp_path / "qwen")
    config = tiny_experiment.sft(source)
    asked = replace(config.data, prompt_format="chat", system="Add.").prompting
    (folder / "prompting.json").write_text(json.dumps(asked))
    chat = replace(config.data, prompt_format="chat", max_prompt_tokens=60)
    config = replace(
        config,
        init_from=f"hf:{folder}",
        tokenizer=TokenizerConfig(path=str(folder)),
        update=replace(config.update, row_length=70),
        data=chat,
    )
    tokenizer = with_ends(setup.ensure_tokenizer(config, tmp_path), chat)
    questions = setup.load_questions(config, tokenizer)
    with caplog.at_level(logging.INFO, "rft_jax"):
        setup.show_prompts("sft", config, tmp_path, questions, tokenizer)
    first, ends, warning = caplog.messages
    assert first.startswith("sft: first prompt: '<|im_start|>system\\nSolve it.<|im_end|>\\n<|im")
    assert ends == (
        "sft: a demonstration ends with '<|im_end|>', a sampled output with '<|im_end|>' or "
        "'<|endoftext|>'"
    )
    assert warning == (
        f"sft: init_from, hf:{folder}, was asked in another way: data.system is '', was 'Add.'"
    )


def test_questions_by_their_use(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    questions = setup.load_questions(config, tokenizer)
    assert [len(part) for part in (questions.train, questions.validation, questions.test)] == [
        tiny_experiment.NUM_QUESTIONS, 5, 6,
    ]  # fmt: skip
    never = replace(config, evaluation=replace(config.evaluation, every_steps=0))
    assert setup.load_questions(never, tokenizer).validation == ()
    untested = replace(config, data=replace(config.data, test=""))
    assert setup.load_questions(untested, tokenizer).test == ()
    logged = tiny_experiment.rft(source, rollout=None, pool=PoolConfig(from_rollouts=("a",)))
    assert setup.load_questions(logged, tokenizer).train == ()


def test_what_is_too_long_is_left_out_where_that_is_asked(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "questions.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = json.dumps(json.loads(rows[2]) | {"question": "2+0?" * 5})
    rows[5] = json.dumps(json.loads(rows[5]) | {"solution": "#### 2" * 5})
    path.write_text("\n".join(rows))
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    with pytest.raises(DataError) as error:
        setup.load_questions(config, tokenizer)
    said = str(error.value).removesuffix(
        ": raise it, or leave them out with data.drop_too_long=True."
    )
    assert said.count("question 2 has") == 3
    assert "1 of 16 demonstrations have more tokens than data.max_completion_tokens, 8 (q" in said
    config = replace(config, data=replace(config.data, drop_too_long=True))
    questions = setup.load_questions(config, tokenizer)
    assert f"{said}: left out, as data.drop_too_long says" in caplog.text
    # Ids stay row numbers, and what is evaluated needs no solution.
    assert [q.id for q in questions.train] == [0, 1, 3, 4, *range(6, 16)]
    assert [q.id for q in questions.validation] == [0, 1, 3, 4]
    assert [q.id for q in questions.test] == [0, 1, 3, 4, 5]
    assert questions.too_long == {"train": 2, "validation": 1, "test": 1}
    none = replace(config, data=replace(config.data, max_prompt_tokens=2))
    with pytest.raises(DataError, match=r"would hold all\): none is left for data\.train\.$"):
        setup.load_questions(none, tokenizer)


def test_parts_that_share_questions_are_warned_of(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def parts(train: str, validation: str, test: str) -> dict[str, list[Question]]:
        texts = {"data.train": train, "data.validation": validation, "data.test": test}
        return {
            name: [Question(row, text, "1") for row, text in enumerate(names.split(","))]
            for name, names in texts.items()
        }

    setup.warn_of_shared("rft", parts("a,b,c", "d,e", "f"))
    assert caplog.messages == []
    setup.warn_of_shared("rft", parts("a,b,c", "e, b ,a", "a"))
    (said,) = caplog.messages
    assert said.startswith(
        "rft: questions of the same text stand in several parts of the data: data.train and "
        "data.validation share 2, data.train and data.test share 1, data.validation and data.test "
        "share 1; an accuracy on "
    )


def test_more_questions_than_there_are(source: str, tmp_path: Path) -> None:
    whole = tiny_experiment.sft(source).tokenizer
    config = tiny_experiment.online_rft(f"{source}[:7]", tokenizer=whole)
    config = replace(config, data=replace(config.data, test=""))
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    with pytest.raises(ConfigError) as error:
        setup.load_questions(config, tokenizer)
    assert str(error.value) == (
        f"rollout.questions_per_step is 8 and {source}[:7] has 7 questions: ask at most that many "
        "in a step."
    )


def test_rows_that_the_mesh_cannot_split(source: str) -> None:
    config = tiny_experiment.sft(source)
    setup.check_devices(config, make_mesh(MeshConfig(data=4, fsdp=2)))
    setup.check_devices(replace(config, update=replace(config.update, rows_per_microbatch=4)),
                     make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))  # fmt: skip
    config = replace(config, update=replace(config.update, rows_per_microbatch=4))
    with pytest.raises(ConfigError) as error:
        setup.check_devices(config, make_mesh(MeshConfig(data=4, fsdp=2)))
    assert str(error.value) == (
        "update.rows_per_microbatch is 4: it must be a multiple of mesh.data x mesh.fsdp, 8."
    )


def test_all_sizes_that_the_mesh_cannot_split_are_one_error(source: str) -> None:
    """Of the model, the vocabulary that is to be trained included, and of the update."""
    config = tiny_experiment.sft(source)
    model = replace(config.model, d_model=18, mlp_dim=22, num_heads=4)
    config = replace(config, model=model, update=replace(config.update, rows_per_microbatch=3))
    with pytest.raises(ConfigError) as error:
        setup.check_devices(config, make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)))
    assert str(error.value) == (
        "mesh.tensor is 4: it must divide model.num_kv_heads, 2, and model.mlp_dim, 22, and the "
        "rows of the embedding (model.vocab_size, or else the pieces of the tokenizer), 274; "
        "choose another mesh or model size. update.rows_per_microbatch is 3: it must be a multiple "
        "of mesh.data x mesh.fsdp, 2."
    )
    # The rows of a published model's embedding count, not the pieces of its tokenizer.
    config = replace(config, model=replace(model, vocab_size=280, num_kv_heads=4, mlp_dim=24))
    with pytest.raises(ConfigError, match=r"^update\.rows_per_microbatch is 3: .*, 2\.$"):
        setup.check_devices(config, make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)))


def test_float64_is_refused_where_jax_would_compute_in_float32(source: str) -> None:
    model = replace(tiny_experiment.sft(source).model, compute_dtype="float64")
    config = replace(tiny_experiment.sft(source), model=model)
    with pytest.raises(ConfigError, match=r"compute_dtype is float64.* set JAX_ENABLE_X64=1"):
        setup.check_devices(config, make_mesh(MeshConfig()))


def test_prompts_fit_their_limit_exactly(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    questions = setup.load_questions(config, tokenizer).train
    longest = max(
        len(prompt_tokens(question.text, config.data, tokenizer)) for question in questions
    )
    tight = replace(config, data=replace(config.data, max_prompt_tokens=longest))
    assert setup.load_questions(tight, tokenizer).train == questions


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (8, []),
        (
            10,
            [
                "study: rollout.questions_per_step is 10 and a rollout is split over mesh.data x "
                "mesh.fsdp, 8: 6 of 16 rows stay empty; ask 16 questions for as much memory."
            ],
        ),
    ],
)
def test_rows_that_stay_empty_are_told(
    asked: int, said: list[str], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_experiment.online_rft(source)
    assert config.rollout is not None
    config = replace(config, rollout=replace(config.rollout, questions_per_step=asked))
    setup.warn_of_fillers("study", config, make_mesh(MeshConfig()))
    setup.warn_of_fillers("sft", tiny_experiment.sft(source), make_mesh(MeshConfig()))
    assert [record.message for record in caplog.records] == said


@given(count=st.integers(1, 200), batch=st.integers(1, 50), shards=st.integers(1, 16))
def test_a_batch_has_rows_for_whole_batches_and_all_shards(
    count: int, batch: int, shards: int
) -> None:
    rows = rows_for(count, batch, shards)
    assert rows % shards == 0
    whole = -(-count // batch) * batch
    assert whole <= rows < whole + shards
