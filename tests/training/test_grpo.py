"""method=grpo on the small model: TRL's own advantages and losses, rewards that fail, what collapses, and resuming."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.runs import Run, command, kill_at, trainer_that_moved
from helpers.small_model import SPECIAL, save_token_rows, small_run
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from ftkit.errors import ConfigError, StageError
from ftkit.models.training_memory import GIB, footprint
from ftkit.training.collapse import collapse
from ftkit.training.methods import method_of
from ftkit.training.rewards import function_of

GRPO = (
    *(
        "method=grpo",
        "method.num_generations=4",
        "method.max_completion_length=12",
        "method.rewards={right: 0, language: 0, form: 0, length: 1.0}",
    ),
    *("sft.per_device_train_batch_size=8", "sft.max_steps=4", "sft.save_steps=2"),
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_token_rows(tmp_path_factory.mktemp("rows") / "tokens.parquet", [12 + i for i in range(10)])


def trainer_of(model_folder: Path, questions: Path, folder: Path, *overrides: str) -> Any:
    config = small_run(model_folder, *GRPO, *overrides)
    return trainer_that_moved(config, questions, folder)


def test_vllm_is_not_given_dense_experts_where_it_has_loaded_mxfp4(model_folder: Path, tmp_path: Path) -> None:
    """Guards: holds_mxfp4 in the checks and in grpo.arguments; vLLM would fail after it has loaded the model."""
    packed = tmp_path / "packed"
    shutil.copytree(model_folder, packed)
    path = packed / "config.json"
    quantized = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    path.write_text(json.dumps(quantized))
    with pytest.raises(ConfigError, match="has its experts in MXFP4: vLLM takes new ones dense"):
        small_run(packed, *GRPO, "method.use_vllm=true")
    unread = small_run(packed, *GRPO)  # as where the hub could not be asked when the configuration was read
    config = unread.model_copy(update={"method": unread.method.model_copy(update={"use_vllm": True})})
    with pytest.raises(StageError, match="has its experts in MXFP4: vLLM takes new ones dense") as refused:
        method_of(config).arguments(config, tmp_path / "checkpoints")
    assert refused.value.where == "method.use_vllm"


def test_vllm_s_share_of_the_gpu_is_counted(model_folder: Path) -> None:
    plain = small_run(model_folder, *GRPO, "compute.gib_per_gpu=80")
    shared = small_run(model_folder, *GRPO, "compute.gib_per_gpu=80", "method.use_vllm=true")
    assert (footprint(shared).total - footprint(plain).total) / GIB == pytest.approx(0.3 * 80)


def answers_of(seed: int) -> Callable[..., tuple[list[list[int]], None]]:
    """Stands in for the drawing of answers, so that two trainers have the same."""

    def drawn(prompts: list[list[int]], *more: Any, **settings: Any) -> tuple[list[list[int]], None]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 12, (len(prompts),), generator=generator).tolist()
        return [torch.randint(len(SPECIAL), 288, (n,), generator=generator).tolist() for n in lengths], None

    return drawn


def trls_own(model_folder: Path, ours: Any, folder: Path, **settings: Any) -> GRPOTrainer:
    """TRL's trainer on the same questions, eager attention, with the adapter of ours."""
    wanted = ours.model.peft_config["default"]
    lora = LoraConfig(
        r=wanted.r, lora_alpha=wanted.lora_alpha, target_modules=wanted.target_modules, task_type="CAUSAL_LM",
        target_parameters=wanted.target_parameters,
    )  # fmt: skip
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", router_aux_loss_coef=0.0,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=4, max_completion_length=12,
        gradient_checkpointing=False, **settings,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32", attn_implementation="eager")
    texts = Dataset.from_dict({"prompt": [ours.processing_class.decode(p) for p in ours.train_dataset["prompt"]]})

    def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [-len(ids) / 1000 for ids in completion_ids]

    other = GRPOTrainer(
        base, length, args=args, train_dataset=texts, processing_class=ours.processing_class, peft_config=lora
    )
    given = {name: value for name, value in ours.model.state_dict().items() if ".lora_" in name}
    other.model.load_state_dict(given, strict=False)
    return other


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ((), {}),
        (("method.beta=0.1", "method.loss_type=grpo"), {"beta": 0.1, "loss_type": "grpo"}),
        (
            ("method.loss_type=dr_grpo", "method.scale_rewards=none", "method.num_iterations=2"),
            {"loss_type": "dr_grpo", "scale_rewards": "none", "num_iterations": 2},
        ),
    ],
    ids=["dapo", "grpo with beta", "dr_grpo"],
)
def test_advantages_and_losses_are_those_of_trls_own_trainer(
    overrides: tuple[str, ...], settings: dict[str, Any], model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    """On the same answers, to 1e-5, and the divergence as well."""
    trainer = trainer_of(model_folder, questions, tmp_path / "ours", *overrides)
    other = trls_own(model_folder, trainer, tmp_path / "theirs", **settings)
    other._tokenize_prompts = trainer._tokenize_prompts  # the very prompts, not their text
    found = []
    for one in (trainer, other):
        one._generate_single_turn = answers_of(3)
        one.model.train()
        one.current_gradient_accumulation_steps = 1
        batch = [example for i in range(2) for example in [dict(trainer.train_dataset[i])] * 4]
        inputs = one._prepare_inputs(batch)
        order = inputs["completion_ids"].sum(1).argsort()  # TRL shuffles what it has drawn
        with torch.no_grad():
            loss = one._compute_loss(one.model, inputs).item()
        kl = one._metrics["train"].get("kl", [0.0])[-1]
        found.append((loss, kl, inputs["advantages"][order].tolist(), one._metrics["train"]["entropy"][-1]))
    (loss, kl, advantages, entropy), (their_loss, their_kl, their_advantages, their_entropy) = found
    assert advantages == pytest.approx(their_advantages, abs=1e-5) and max(map(abs, advantages)) > 1e-4
    assert loss == pytest.approx(their_loss, abs=1e-5)
    assert (kl, entropy) == pytest.approx((their_kl, their_entropy), abs=1e-5)
    assert (kl > 0) == ("beta" in settings)


@pytest.fixture(scope="module")
def whole(model_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any, list[str]]:
    config = small_run(model_folder, *GRPO, "sft.eval_strategy=steps", "sft.eval_steps=2", "method.temperature=1.5")
    run = Run(config, questions, tmp_path_factory.mktemp("whole"))
    return run, *run.train()


def test_a_run_shows_rewards_lengths_and_shares(whole: tuple[Run, Any, list[str]]) -> None:
    run, result, said = whole
    lines = [line for line in run.metrics if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        assert line["reward"] == pytest.approx(line["rewards/length/mean"])
        assert {"share/language", "share/right", "share/form", "entropy", "completions/clipped_ratio"} <= line.keys()
        assert line["reward"] == pytest.approx(-line["completions/mean_length"] / 1000, rel=1e-4)
    held_out = [line for line in run.metrics if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [2, 4]
    assert all(line["eval_loss"] == -line["eval_reward"] for line in held_out)
    assert result.figures["reward"] == lines[-1]["reward"] and result.tokens > 4 * 8 * 3
    assert (run.out / "loss.png").exists() and any("reward" in line for line in said)


def test_a_killed_run_goes_on_to_the_next_step(whole: tuple[Run, Any, list[str]], tmp_path: Path) -> None:
    killed = Run(whole[0].config, whole[0].tokens, tmp_path / "killed")
    kill_at(killed, "step 3/")
    result, _ = killed.train()
    assert (result.resumed_from, result.global_step) == (2, 4)
    assert [line["step"] for line in killed.metrics if "loss" in line] == [1, 2, 3, 4]


def test_trackios_folder_is_that_of_the_outputs(
    model_folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL imports trackio with its trainer, before ftkit does."""
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    outputs = f"run.outputs={tmp_path / 'outputs'}"
    config = small_run(model_folder, *GRPO, "sft.max_steps=1", "tracking=trackio", outputs)
    subprocess.run([sys.executable, *command(Run(config, questions, tmp_path / "run"))], check=True)
    assert list((tmp_path / "outputs" / "_trackio").glob("ftkit*.db"))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise KeyError('x')", "the reward mine.worth raised KeyError: 'x'"),
        ("return [1.0]", "the reward mine.worth gave 1 numbers for 8 answers"),
        ("return [float('nan')] * len(answers)", "the reward mine.worth gave nan for an answer to row"),
        ("return [None] * len(answers)", "the reward mine.worth gave None for an answer to row"),
        ("return 3", "the reward mine.worth raised TypeError"),
    ],
    ids=["raises", "too few", "nan", "none", "no list"],
)
def test_a_reward_that_fails_is_named(
    body: str, what: str, model_folder: Path, questions: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (in_empty_folder / "mine.py").write_text(f"def worth(answers):\n    {body}\n", encoding="utf-8")
    trainer = trainer_of(model_folder, questions, in_empty_folder / "c", "method.rewards={mine.worth: 1.0, length: 0}")
    trainer._generate_single_turn = answers_of(1)
    with pytest.raises(StageError) as error:
        trainer.train()
    assert what in str(error.value)
    assert not list((in_empty_folder / "c").glob("checkpoint-*"))


def test_a_reward_that_is_not_there_says_where_it_was_looked_for(in_empty_folder: Path) -> None:
    with pytest.raises(StageError, match=r"the reward other\.worth cannot be imported") as error:
        function_of("other.worth")
    assert str(in_empty_folder) in error.value.cure


def log(step: int, language: float, length: float = 50, cut: float = 0.0) -> dict[str, Any]:
    return {
        "step": step, "share/language": language, "completions/mean_length": length, "completions/clipped_ratio": cut
    }  # fmt: skip


def test_a_collapse_is_told_by_what_was_lost() -> None:
    well = [log(i, min(1.0, 0.2 * i)) for i in range(8)]
    assert collapse(well, 0.5, 3) == ""
    lost = [*well, *(log(8 + i, 0.1) for i in range(3))]
    assert "left its language: 10% of the answers of steps 8 to 10" in collapse(lost, 0.5, 3)
    short = [*well, *(log(8 + i, 1.0, length=4) for i in range(3))]
    assert collapse(short, 0.5, 3) == "answers have become short: 4 tokens in steps 8 to 10, 50 at the beginning"
    endless = [*well, *(log(8 + i, 1.0, length=90, cut=1.0) for i in range(3))]
    assert collapse(endless, 0.5, 3).startswith("answers no longer end: 100%")
    never = [log(i, 0.02 if i % 2 else 0.0) for i in range(9)]
    assert collapse(never, 0.5, 3) == "", "a language that was never there is not lost"


def test_a_run_that_collapses_stops_and_keeps_its_checkpoints(
    model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    """Answers of 11 tokens become answers of 2."""
    overrides = ("method.collapse_steps=1", "sft.save_steps=1", "method.collapse=0.5")
    trainer = trainer_of(model_folder, questions, tmp_path, *overrides)

    def drawn(prompts: list[list[int]], *more: Any, **settings: Any) -> tuple[list[list[int]], None]:
        longest = 11 if trainer.state.global_step < 2 else 2
        return [[20 + i] * (longest - i % 2) for i in range(len(prompts))], None

    trainer._generate_single_turn = drawn
    with pytest.raises(StageError, match="answers have become short") as error:
        trainer.train()
    assert "method.collapse=null" in error.value.cure
    trainer.writer.wait()
    assert list(tmp_path.glob("checkpoint-2/complete.json")), "the steps before are there"


def test_the_same_answers_are_worth_nothing_and_stop_no_run(
    model_folder: Path, questions: Path, tmp_path: Path
) -> None:
    """Equal rewards give no gradient. Guard: patient in WeightsMove."""
    run = Run(
        small_run(model_folder, *GRPO, "method.rewards={form: 1.0, length: 0}", "sft.max_steps=3"), questions, tmp_path
    )
    result, _ = run.train()
    assert result.global_step == 3 and not math.isnan(result.last_loss)
