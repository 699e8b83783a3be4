"""The CTC head: loss, freezing, masks, and what it counts."""

import math

import numpy as np
import pytest
import torch

from speechssl.downstream.ctc import BLANK_SHARE, CTC, frames_needed
from speechssl.downstream.readout import weighted_sum
from speechssl.errors import ConfigError, DataError
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from speechssl.objectives.masking import ChannelMask, SpanMask
from speechssl.rng import generator
from speechssl.types import Progress, Utterance
from tests.unit.downstream.heads import VOCABULARY, make_batch, small_backbone, text_batch

NO_MASK = {"mask": SpanMask(0.0), "channel_mask": ChannelMask(0.0)}


def small_ctc(backbone=None, **settings):
    return CTC(backbone or small_backbone(), CTC.Config(**NO_MASK | settings), VOCABULARY)


def rate(loss, name):
    return float(loss.logs[name].total) / float(loss.logs[name].count)


class Fixed(CTC):
    """A head whose log-probabilities are given."""

    answer: tuple

    def log_probs(self, batch):
        return self.answer


def fixed(log_probs, lens, classes=VOCABULARY):
    head = Fixed(small_backbone(), CTC.Config(**NO_MASK), classes).eval()
    head.answer = (log_probs, torch.tensor(lens))
    return head


def test_uniform_scores_give_the_closed_form_loss():
    # 20 different labels in 100 frames over 32 classes have C(120, 40) alignments.
    head = fixed(torch.full((1, 100, 32), -math.log(32)), [100], [str(i) for i in range(32)])
    loss = head(text_batch([tuple(range(1, 21))], seconds=(0.5,)))
    expected = 100 * math.log(32) - math.log(math.comb(120, 40))
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert float(loss.total) == pytest.approx(272.8, abs=0.05)
    assert rate(loss, "loss_per_char") == pytest.approx(expected / 20, rel=1e-5)


def test_right_answers_have_no_errors_and_wrong_ones_are_counted():
    path = torch.tensor([[2, 2, 0, 2, 1, 3, 0], [4, 0, 0, 3, 3, 3, 3]])
    log_probs = torch.nn.functional.one_hot(path, 5).float().clamp(min=1e-9).log()
    head = fixed(log_probs, [7, 3])
    loss = head(text_batch([(2, 2, 1, 3), (4,)]))
    assert (rate(loss, "wer"), rate(loss, "cer")) == (0.0, 0.0)
    assert rate(loss, "blank_rate") == pytest.approx(4 / 10)  # of 7 + 3 valid frames
    loss = head(text_batch([(2, 1, 3), (4, 1, 4)]))  # "A B" and "C C" against "AA B" and "C"
    assert loss.logs["wer"] == (torch.tensor(2), torch.tensor(4))
    assert loss.logs["cer"] == (torch.tensor(3), torch.tensor(6))
    assert head.predict(text_batch()) == ["AA B", "C"]


def test_unreachable_targets_add_nothing_and_are_counted():
    head = small_ctc().eval()
    batch = text_batch([(2,) * 30, (3, 4)], seconds=(0.3, 0.3))
    loss = head(batch)
    alone = head(text_batch([(3, 4)], seconds=(0.3,), seed=0))
    assert loss.count == 2
    assert loss.logs["unreachable"] == (torch.tensor(1), torch.tensor(2))
    assert loss.logs["loss_per_char"].count == 2
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in head.lm_head.parameters())
    assert alone.logs["unreachable"].total == 0


def test_an_utterance_without_frames_counts_as_unreachable():
    head = small_ctc().eval()
    loss = head(text_batch([(2, 3), (4,)], seconds=(0.3, 0.01)))
    assert loss.logs["unreachable"].total == 1
    assert loss.total.isfinite()


def test_frames_needed_counts_blanks_between_equal_neighbours():
    tokens = torch.tensor([[2, 2, 3, 3], [2, 2, 2, 2], [1, 2, 1, 2], [5, 5, 0, 0], [0, 0, 0, 0]])
    lens = torch.tensor([4, 4, 4, 1, 0])
    assert frames_needed(tokens, lens).tolist() == [6, 7, 4, 1, 0]
    assert frames_needed(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("token", [-1, 0, 5])
def test_tokens_outside_the_vocabulary_are_refused(token):
    with pytest.raises(DataError, match=r"'u1' has token .* at position 1, expected 1 to 4"):
        small_ctc()(text_batch([(2,), (3, token)]))


def test_tokens_in_the_padding_do_not_matter():
    head = small_ctc().eval()
    batch = text_batch()
    before = head(batch).total
    batch.tokens[1, 1:] = -1
    torch.testing.assert_close(head(batch).total, before)


def test_batches_without_text_and_heads_without_vocabulary_are_refused():
    with pytest.raises(DataError, match="no tokens"):
        small_ctc()(make_batch())
    with pytest.raises(ConfigError, match="expected a vocabulary"):
        CTC(small_backbone(), CTC.Config(), ())


def test_sum_over_batches_equals_the_batch_and_padding_changes_nothing():
    head = small_ctc().eval()
    both = text_batch([(2, 3), (4, 4, 2)], seconds=(0.5, 0.3))
    whole = head(both)
    parts = []
    for row, target in enumerate([(2, 3), (4, 4, 2)]):
        one = text_batch([target], seconds=((0.5, 0.3)[row],))
        one.wave = both.wave[row : row + 1, : int(both.wave_lens[row])]
        parts.append(head(one))
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total, rtol=1e-4, atol=1e-4)
    assert whole.count == 2


def train_once(head, step, batch=None):
    head.train()
    head.begin_step(Progress(step=step))
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=0.01)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    head(batch or text_batch()).total.backward()
    optimizer.step()
    return {n for n, p in head.named_parameters() if not torch.equal(p, before[n])}


def test_only_the_head_learns_first_then_all_but_the_convolutions():
    head = small_ctc(freeze_steps=3)
    assert train_once(head, 2) == {"lm_head.weight", "lm_head.bias"}
    changed = train_once(head, 3)
    assert any(name.startswith("backbone.encoder.layers.0.") for name in changed)
    assert "backbone.feature_projection.projection.weight" in changed
    assert not any("feature_extractor" in name for name in changed)
    frozen = [n for n, p in head.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("feature_extractor" in n for n in frozen)


def test_convolutions_learn_when_asked():
    assert any("feature_extractor" in n for n in train_once(small_ctc(freeze_features=False), 0))


def test_backbone_stays_in_training_mode_while_only_the_head_learns():
    head = small_ctc(freeze_steps=3, **{"mask": SpanMask(), "channel_mask": ChannelMask()})
    head.train()
    head.begin_step(Progress(step=0))
    assert head.backbone.training
    batch = text_batch()
    torch.manual_seed(5)
    clean = head.log_probs(batch)[0]
    batch.mask = torch.zeros(2, clean.shape[1], dtype=torch.bool)
    batch.mask[:, 3:8] = True
    torch.manual_seed(5)  # the same dropout, so that only the mask differs
    assert (head.log_probs(batch)[0] - clean).abs().max() > 1e-3


def test_frozen_probe_reads_all_layers_in_evaluation_mode():
    head = small_ctc(small_backbone(dropout=0.5), frozen=True, layers="weighted")
    changed = train_once(head, 0)
    assert changed == {"layer_weights", "lm_head.weight", "lm_head.bias"}
    assert head.training
    assert not head.backbone.training
    torch.testing.assert_close(head(text_batch()).total, head(text_batch()).total)


def test_statistics_over_time_leave_the_masked_frames_of_the_batch_out():
    """As in evaluation, where none is masked; else train and test would be scaled differently."""
    settings = {"mask": SpanMask(), "layers": "weighted", "norm": "time"}
    head = small_ctc(small_backbone(dropout=0.0), **settings)
    batch = text_batch()
    frames = head.backbone(batch.wave, batch.wave_lens)
    batch.mask = torch.zeros(frames.x.shape[:2], dtype=torch.bool)
    batch.mask[:, 3:8] = True
    z = head.backbone.encode(batch.wave, batch.wave_lens)
    states = head.backbone.context(z, batch.mask, layers=True)
    seen = weighted_sum(states, head.layer_weights, "time", batch.mask)
    everything = weighted_sum(states, head.layer_weights, "time")
    got = head.log_probs(batch)[0]
    torch.testing.assert_close(got, head.lm_head(seen).log_softmax(-1))
    assert (got - head.lm_head(everything).log_softmax(-1)).abs().max() > 1e-3


def test_log_mel_runs_under_the_same_probe():
    head = CTC(build_backbone(preset("logmel")), CTC.Config(frozen=True), VOCABULARY)
    assert train_once(head, 0) == {"lm_head.weight", "lm_head.bias"}


def test_masks_are_drawn_for_training_only():
    lens, cfg = np.array([100, 60]), CTC.Config()
    plan = CTC.plan(cfg, 256, lens, [generator(1, "a"), generator(1, "b")], True)
    assert plan.num_targets == 2
    assert plan.mask is not None
    assert plan.mask.shape == (2, 100)
    assert not plan.mask[1, 60:].any()
    assert plan.channel_mask is not None
    assert plan.channel_mask.shape == (2, 256)
    for settings, train in ((cfg, False), (CTC.Config(frozen=True), True)):
        bare = CTC.plan(settings, 256, lens, [generator(1), generator(2)], train)
        assert bare.mask is None
        assert bare.channel_mask is None
    off = CTC.plan(CTC.Config(**NO_MASK), 256, lens, [generator(1), generator(2)], True)
    assert off.mask is None


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="frozen already"):
        CTC.Config(frozen=True, freeze_steps=5)
    with pytest.raises(ConfigError, match="runs without masks, but mask is"):
        CTC.Config(frozen=True, mask=SpanMask(prob=0.3))
    CTC.Config(frozen=True, mask=SpanMask(prob=0.0))
    with pytest.raises(ConfigError, match="final_dropout"):
        CTC.Config(final_dropout=1.0)
    with pytest.raises(ConfigError, match="takes no masks"):
        CTC(build_backbone(preset("wav2vec-tiny")), CTC.Config(), VOCABULARY)


def test_a_backbone_frozen_for_some_steps_does_not_move_in_them():
    from speechssl.engine.config import EngineConfig, OptimConfig
    from speechssl.engine.plain import PlainEngine

    head = small_ctc(freeze_steps=2)
    before = {k: v.clone() for k, v in head.backbone.state_dict().items()}

    def moved() -> bool:
        return any(not torch.equal(v, before[k]) for k, v in head.backbone.state_dict().items())

    optim = OptimConfig(lr=1e-2, steps=3, weight_decay=0.0)
    engine = PlainEngine(head, optim, EngineConfig(), torch.device("cpu"), Progress(max_steps=3))
    for _ in range(2):
        engine.step([text_batch()])
    assert not moved()
    engine.step([text_batch()])
    assert moved()


def test_error_rates_only_when_evaluating():
    head = small_ctc()
    assert "wer" not in head.train()(text_batch()).logs
    assert {"wer", "cer", "empty_rate"} <= head.eval()(text_batch()).logs.keys()
    assert {name for name, _ in head.best_metric} <= head.summary(head(text_batch()).logs).keys()


def test_the_best_model_is_picked_by_the_rate_asked_for():
    assert [name for name, _ in small_ctc().best_metric] == ["wer", "cer", "loss_per_char"]
    by_cer = small_ctc(best="cer").best_metric
    assert [name for name, _ in by_cer] == ["cer", "wer", "loss_per_char"]
    assert not any(more for _, more in by_cer)
    assert small_ctc().best_metric[0][0] == "wer"  # the next one is not touched


def test_an_untrained_head_answers_mostly_blanks():
    torch.manual_seed(0)
    head = small_ctc(small_backbone()).eval()
    log_probs, lens = head.log_probs(text_batch([(2, 1, 3), (4, 2)], seconds=(0.4, 0.4)))
    shares = log_probs[:, : int(lens.min())].exp().mean((0, 1))
    assert float(shares[0].detach()) == pytest.approx(BLANK_SHARE, abs=0.05)
    others = (1 - BLANK_SHARE) / (len(shares) - 1)
    torch.testing.assert_close(shares[1:], torch.full_like(shares[1:], others), atol=0.05, rtol=0)


def test_an_untrained_head_that_knows_the_transcripts_answers_with_their_characters():
    torch.manual_seed(0)
    head = small_ctc(small_backbone()).eval()
    frames = head.backbone.geometry.frames(16000)
    one_second = {"audio": "x.wav", "num_samples": 8000, "rate_hz": 8000}
    utterances = [
        Utterance(id="a", text="A A A", **one_second),
        Utterance(id="b", text="B A", **one_second),
        Utterance(id="c", **one_second),  # no transcript: tells nothing
    ]
    head.know_training_data(utterances)
    shares = dict(zip(head.classes, head.lm_head.bias.detach().softmax(0).tolist(), strict=True))
    assert shares["<pad>"] == pytest.approx(1 - 8 / (2 * frames))
    seen = {"A": 4, "B": 1, "|": 3}
    rest = 1 - shares["<pad>"]
    for name, share in shares.items():
        if name != "<pad>":
            expected = (seen.get(name, 0) + 1) / (8 + len(head.classes) - 1)
            assert share == pytest.approx(rest * expected), name
    before = head.lm_head.bias.detach().clone()
    head.know_training_data(utterances[2:])
    assert torch.equal(head.lm_head.bias, before)


def test_it_learns_a_small_batch_by_heart():
    torch.manual_seed(0)
    head = small_ctc(small_backbone(dropout=0.0))
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    batch = text_batch([(2, 1, 3), (4, 2)], seconds=(0.4, 0.4))
    head.train()
    for _ in range(200):
        optimizer.zero_grad()
        loss = head(batch)
        (loss.total / loss.count).backward()
        optimizer.step()
    assert head.eval().predict(batch) == ["A B", "CA"]
    assert head.predict(batch, beam=8) == ["A B", "CA"]


def test_log_probabilities_stay_float32_under_autocast():
    head = small_ctc().eval()
    plain = head(text_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs, _ = head.log_probs(text_batch())
        loss = head(text_batch())
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]))
    torch.testing.assert_close(loss.total, plain.total, rtol=0.02, atol=0.1)
