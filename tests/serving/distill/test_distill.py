"""`flashlet distill` from end to end on the tiny model: a corpus, a draft and a student."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from flashlet.kernels.cpu import TokenHistory
from flashlet.model.draft import DraftConfig, load_draft, read_card, save_draft
from flashlet.model.draft_module import DraftModule
from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.hf_config import read_hf_config
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, Step
from flashlet.model.tokenizer import load_tokenizer
from flashlet.model.weights import open_weights
from flashlet.serving.cli.app import app
from flashlet.serving.distill.corpus import Corpus
from flashlet.serving.distill.draft_loss import DraftLoss
from flashlet.serving.distill.draft_run import DraftRun, DraftShape
from flashlet.serving.distill.evaluation import StepCosts
from flashlet.serving.distill.reminders import reminders
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.training import Trainer, TrainingOptions
from flashlet.serving.distill.windows import batches, make_windows
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.loading import LoadOptions, load_engine

CONTEXT = 512  # of the tiny model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distill(*arguments: object) -> tuple[str, str]:
    """Run a command that must succeed; returns standard output and standard error."""
    result = CliRunner().invoke(app, ["distill", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def generate(path: Path, draft: str, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy and sampled answers of 24 tokens."""
    loaded = load_engine(path, LoadOptions(draft=draft, threads=1, max_sequences=8))
    try:
        requests = [
            GenerationRequest(tuple(prompt), SamplingParams(temperature=float(index % 2), seed=index), 24)
            for index, prompt in enumerate(prompts)
        ]
        sequences = [loaded.engine.submit(request) for request in requests]
        while loaded.engine.has_work:
            loaded.engine.step()
        return [sequence.output for sequence in sequences]
    finally:
        loaded.executor.close()


@pytest.fixture(scope="module")
def corpus(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "corpus"
    arguments = (folder, "--model", tiny_model_path, "--features", "1,2", "--threads", 1, "--seed", 4)
    distill("data", *arguments, "--tokens", 6_000)
    distill("data", *arguments, "--tokens", 24_000)  # goes on behind the first ones
    return folder


@pytest.fixture(scope="module")
def run(tiny_model_path: Path, corpus: Path) -> Path:
    folder = corpus.parent / "run"
    arguments = (folder, "--corpus", corpus, "--model", tiny_model_path, "--vocab", 256)
    distill("train", *arguments, "--rows", 10_000)
    _, log = distill("train", *arguments, "--rows", 200_000)
    assert "going on after" in log
    return folder


@pytest.fixture(scope="module")
def draft(tiny_model_path: Path, corpus: Path, run: Path) -> Path:
    file = corpus.parent / "draft.safetensors"
    distill("export", run, file, "--corpus", corpus, "--model", tiny_model_path)
    return file


def test_corpus_holds_what_the_model_wrote(corpus: Path) -> None:
    opened = Corpus(corpus)
    assert opened.num_tokens >= 24_000
    assert len({item.index for item in opened.conversations}) == len(opened.conversations)
    assert len({item.kind for item in opened.conversations}) > 3
    assert {item.temperature for item in opened.conversations} == {0.0, 0.7}
    assert 0 < sum(item.held_out for item in opened.conversations) < len(opened.conversations) / 4
    for item in opened.conversations:
        features = opened.features(item)
        assert features.shape == (item.length, 2, opened.info.hidden_size)
        assert features[:-1].any(axis=(1, 2)).all()
        assert all(0 < answer.start < answer.end <= item.length for answer in item.answers)


def test_features_are_those_of_the_tokens(corpus: Path, tiny_model_path: Path) -> None:
    """Greedy answers follow from the stored stream: its head's best token is the next one."""
    source = open_weights(tiny_model_path)
    target = TargetParts.load(source, np.arange(source.config.vocab_size, dtype=np.int32))
    opened, agreed = Corpus(corpus), []
    for item in opened.conversations:
        if item.temperature == 0:
            stream = torch.from_numpy(opened.features(item)[:, -1].astype(np.float32))
            best = target.reduced_logits(stream).argmax(-1).numpy()
            for answer in item.answers:
                tokens = opened.tokens(item)[answer.start : answer.end]
                agreed.append((best[answer.start - 1 : answer.end - 1] == tokens).mean())
    assert np.mean(agreed) > 0.95  # int8 weights wrote, fp32 weights check


def test_other_corpora_are_not_mixed(corpus: Path, tiny_model_path: Path) -> None:
    command = ["distill", "data", str(corpus), "--model", str(tiny_model_path), "--seed", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "holds another corpus" in result.stderr


def test_training_makes_the_draft_better(tiny_model_path: Path, corpus: Path, run: Path) -> None:
    """Far above chance, which is 1 in 300, and nearer to the target than what training began with."""
    stdout, _ = distill("eval", run, "--corpus", corpus, "--model", tiny_model_path, "--positions", 3)
    greedy: dict[str, Any] = json.loads(stdout)["greedy"]["all"]
    assert greedy["rows"] > 100 and greedy["acceptance"][0] > 0.02
    fresh = DraftRun(corpus.parent / "fresh", tiny_model_path, [Corpus(corpus)])
    shape = DraftConfig.from_json((run / "config.json").read_text())
    fresh.begin(DraftShape(shape.output_vocab_size), 0)
    draft, target = fresh.load()
    windows = make_windows([Corpus(corpus)], True, 64)
    divergences = []
    for weights in (draft.state_dict(), torch.load(run / "checkpoint.pt")["model"]):
        draft.load_state_dict(weights)
        with torch.no_grad():
            losses = [DraftLoss(draft, target)(batch).item() for batch in batches(windows, 256, 2)]
        divergences.append(np.mean(losses))
    assert divergences[1] < 0.9 * divergences[0]


def test_a_run_begins_with_the_weights_of_a_draft(
    tiny_model_path: Path, corpus: Path, run: Path, draft: Path, tmp_path: Path
) -> None:
    """What the file holds is what was trained, rounded; training goes on from there, also in bfloat16."""
    arguments = ("--corpus", corpus, "--model", tiny_model_path)
    begun = DraftRun(tmp_path / "begun", tiny_model_path, [Corpus(corpus)])
    begun.begin_with(draft)
    trained = DraftRun(run, tiny_model_path, [Corpus(corpus)]).evaluate(3).greedy["all"]
    found = begun.evaluate(3).greedy["all"]
    assert (found.tried[0], found.right[0]) == (trained.tried[0], trained.right[0])
    options = ("--start-from", draft, "--bf16", "--rows", 10_000, "--learning-rate", 1e-4)
    distill("train", tmp_path / "more", *arguments, *options)
    more = DraftRun(tmp_path / "more", tiny_model_path, [Corpus(corpus)]).evaluate(3)
    assert more.tokens >= begun.evaluate(3).tokens


def test_a_draft_of_other_features_is_refused(tiny_model_path: Path, draft: Path, tmp_path: Path) -> None:
    other = tmp_path / "corpus"
    arguments = ("--model", str(tiny_model_path), "--threads", "1", "--features", "0,2", "--tokens", "500")
    distill("data", other, *arguments)
    command = ["distill", "train", str(tmp_path / "run"), "--corpus", str(other), "--start-from", str(draft)]
    result = CliRunner().invoke(app, [*command, "--model", str(tiny_model_path)])
    assert result.exit_code == 1
    assert "features: expected some of [0, 2], got 1" in result.stderr
    result = CliRunner().invoke(app, [*command, "--model", str(tiny_model_path), "--vocab", "99"])
    assert result.exit_code == 2
    assert "--vocab" in result.stderr


def test_training_that_destroys_leaves_the_weights_that_were_better(
    tiny_model_path: Path, corpus: Path, draft: Path, tmp_path: Path
) -> None:
    arguments = ("--corpus", corpus, "--model", tiny_model_path, "--start-from", draft)
    distill("train", tmp_path / "run", *arguments, "--rows", 3_000, "--learning-rate", 10.0)
    run = DraftRun(tmp_path / "run", tiny_model_path, [Corpus(corpus)])
    expected = DraftRun(tmp_path / "other", tiny_model_path, [Corpus(corpus)])
    expected.begin_with(draft)
    for name, weight in expected.load()[0].state_dict().items():
        assert torch.equal(run.load()[0].state_dict()[name], weight), name


def test_bfloat16_is_what_products_are_made_in(corpus: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    run = DraftRun(tmp_path / "run", tiny_model_path, [Corpus(corpus)])
    run.begin(DraftShape(256, attention=True), 0)
    draft, target = run.load()
    found: set[torch.dtype] = set()
    draft.head.register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
    windows = make_windows([Corpus(corpus)], False, 64)
    for bf16 in (True, False):
        options = TrainingOptions(num_rows=1, bf16=bf16)
        trainer = Trainer(
            draft,
            DraftLoss(draft, target),
            lambda rng, skip: batches(windows, 256, 2),
            options,
            tmp_path / "x",
        )
        trainer.run(lambda line: None, lambda: None)
        assert found == {torch.bfloat16 if bf16 else torch.float32}
        assert all(parameter.dtype == torch.float32 for parameter in draft.parameters())
        found.clear()


def test_exported_draft_fits_its_target_only(tiny_model_path: Path, draft: Path) -> None:
    target = read_hf_config(tiny_model_path)
    config, arrays = load_draft(draft, target)
    assert (config.features, config.output_vocab_size, len(arrays["vocab_ids"])) == ((1, 2), 256, 256)
    card = read_card(draft)
    assert card["corpus_tokens"] >= 12_000
    assert card["greedy"]["all"]["acceptance"]
    assert config.shortlist_gap > 0 and 0 < card["shortlist_panels"] <= 16


def test_a_vocabulary_of_broken_panels_has_no_shortlist(
    tiny_model_path: Path, corpus: Path, tmp_path: Path
) -> None:
    run = DraftRun(tmp_path / "run", tiny_model_path, [Corpus(corpus)])
    run.begin(DraftShape(200), 0)
    file = tmp_path / "draft.safetensors"
    _, log = distill("export", tmp_path / "run", file, "--corpus", corpus, "--model", tiny_model_path)
    assert "no shortlist: its vocabulary is no multiple of 256" in log
    assert load_draft(file, read_hf_config(tiny_model_path))[0].shortlist_gap == 0


def test_speculation_with_the_draft_changes_no_token(
    tiny_model_path: Path, corpus: Path, draft: Path
) -> None:
    opened = Corpus(corpus)
    prompts = [opened.tokens(item)[: item.answers[0].start].tolist() for item in opened.conversations[:8]]
    assert generate(tiny_model_path, str(draft), prompts) == generate(tiny_model_path, "none", prompts)


@pytest.mark.parametrize(
    "shape",
    [
        DraftShape(256),
        DraftShape(256, bits=8),
        DraftShape(256, attention=True),
        DraftShape(200, features=(2,), num_layers=2, attention=True, window=9),
    ],
    ids=str,
)
def test_server_drafts_what_training_does(
    tiny_model_path: Path, corpus: Path, tmp_path: Path, shape: DraftShape
) -> None:
    """The same states, rows and positions in both, but for the server's int8 weights."""
    opened = Corpus(corpus)
    run = DraftRun(tmp_path / "run", tiny_model_path, [opened])
    run.begin(shape, 0)
    module, target = run.load()
    with torch.no_grad():
        for parameter in module.layers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    draft = tmp_path / "draft.safetensors"
    save_draft(draft, module.config, {**module.tensors(), "vocab_ids": target.vocab_ids})
    opened = opened.with_features(module.config.features)
    executor = NativeExecutor(tiny_model_path, ExecutorOptions(draft=draft, threads=1))
    blocks = list(range(CONTEXT // executor.block_size))
    equal = []
    for item in [item for item in opened.conversations if item.temperature == 0][:12]:
        length = item.answers[0].start
        prompt = opened.tokens(item)[: length + 1].tolist()  # and the first token of the answer
        sample = SampleRequest(SamplingParams(temperature=0.0), length)
        history = TokenHistory()
        history.extend(prompt[:-1])
        order = DraftRequest(3, 0, history=history)
        piece = SequenceSlice(prompt[:-1], 0, blocks, [sample], draft=order)
        (output,) = executor.execute(Step([piece]))
        assert output.token_ids == (prompt[-1],)
        features = np.pad(opened.features(item)[:length].astype(np.float32), ((0, 3), (0, 0), (0, 0)))
        expected = _draft(module, target, features, prompt)
        equal += [a == b for a, b in zip(output.proposed, expected, strict=True)]
    executor.close()
    assert np.mean(equal) > 0.8, equal


def _draft(
    module: DraftModule, target: TargetParts, features: NDArray[np.float32], tokens: list[int]
) -> list[int]:
    """Three greedy tokens after `tokens`, by the rollout that training uses."""
    known, row = list(tokens), torch.tensor([[len(tokens) - 2]])
    with torch.inference_mode():
        for step in range(3):
            padded = torch.tensor([known[1:] + [0] * (len(features) - len(known) + 1)])
            outputs = module.rollout(
                torch.from_numpy(features)[None], target.embed(padded), torch.tensor([0]), row, step + 1
            )
            said = (torch.from_numpy(part)[None] for part in reminders(known, len(known), 1))
            best = int(target.remind(module.logits(outputs[-1]), *said).argmax())
            known.append(int(target.vocab_ids[best]))
    return known[len(tokens) :]


def test_student_is_a_folder_that_serves(tiny_model_path: Path, corpus: Path) -> None:
    folder = corpus.parent / "student"
    arguments = (folder, "--corpus", corpus, "--model", tiny_model_path, "--layers", 1)
    _, log = distill("student", *arguments, "--rows", 20_000, "--learning-rate", 2e-3)
    quality = {
        line.split(":")[0]: float(line.split("divergence")[1])
        for line in log.splitlines()
        if line.startswith(("teacher:", "pruned:", "distilled:"))
    }
    assert quality["teacher"] < 0.01
    assert quality["distilled"] < 0.8 * quality["pruned"]
    assert read_hf_config(folder).num_layers == 1
    text = "the weather in the city<|im_end|>"
    assert load_tokenizer(folder).encode(text) == load_tokenizer(tiny_model_path).encode(text)
    (tokens,) = generate(folder, "none", [[1, 5, 9]])
    assert len(tokens) == 24


def test_speedup_weighs_acceptance_against_cost() -> None:
    costs = StepCosts(target=4.0, further_row=0.0, draft=1.0)
    assert costs.speedup([1.0]) == (1.6, 1)  # 2 tokens in 5 ms against 1 in 4
    assert costs.speedup([0.5, 0.0]) == (1.2, 1)
    assert costs.speedup([0.2]) == (1.0, 0)  # 1.2 tokens in 5 ms: not worth it
