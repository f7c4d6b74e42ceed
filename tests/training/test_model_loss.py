"""Models that return their own loss, as those of Hugging Face do."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from minifast import DataBunch, DataError, Learner, TensorDataBunch, accuracy
from minifast.losses import ModelLoss, loss_weight

X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class WithLoss(nn.Module):
    """A model that returns its loss where it gets the labels; twice the cross entropy, so that it is seen."""

    form = staticmethod(Output)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return self.form(logits, None if labels is None else 2 * functional.cross_entropy(logits, labels))


def batches(*sizes, labels=Y):
    xs, ys = X.split(sizes), labels.split(sizes)
    return [{"x": x, "labels": y} for x, y in zip(xs, ys, strict=True)]


def learner(model=None, parts=None, **options):
    parts = batches(12, 11, 7) if parts is None else parts
    return Learner(DataBunch(parts, parts, device="cpu"), model or WithLoss(), silent=True, **options)


FORMS = {
    "object": Output,
    "dict": lambda logits, loss: {"loss": loss, "logits": logits},
    "dict of another name": lambda logits, loss: {"loss": loss, "scores": logits},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["to_fp32", "to_bf16"])
def test_the_loss_of_the_model_is_used_and_metrics_see_the_logits(form, precision):
    model = WithLoss()
    model.form = FORMS[form]
    learn = learner(model, metrics=[accuracy])
    assert isinstance(learn.loss_func, ModelLoss)
    getattr(learn, precision)()
    learn.fit_one_cycle(2, 1e-2)
    loss, score = learn.validate()
    with torch.no_grad(), learn.in_precision():
        logits = model.layer(X).float()
    assert loss == pytest.approx(2 * float(functional.cross_entropy(logits, Y)), rel=1e-2)
    assert score == pytest.approx(float((logits.argmax(1) == Y).float().mean()))
    assert torch.allclose(learn.get_preds()[0], logits, atol=1e-2)


def test_training_steps_are_those_of_the_model_s_loss():
    model, twin = WithLoss(), WithLoss()
    twin.load_state_dict(model.state_dict())
    learner(model, opt_func=torch.optim.SGD, wd=0).fit(1, 0.1)
    opt = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in batches(12, 11, 7):
        twin(**batch).loss.backward()
        opt.step()
        opt.zero_grad()
    assert torch.equal(model.layer.weight, twin.layer.weight)


def test_a_loss_that_is_given_wins_over_that_of_the_model():
    given = nn.CrossEntropyLoss()
    assert learner(loss_func=given).loss_func is given
    data = DataBunch(batches(15, 15), device="cpu", loss_func=given)
    assert Learner(data, WithLoss()).loss_func is given
    learn = learner(loss_func=given)
    assert learn.validate()[0] == pytest.approx(given(learn.model.layer(X), Y).item(), rel=1e-5)


def test_pairs_keep_the_default_loss_of_the_data():
    learn = Learner(TensorDataBunch.from_arrays(X, Y, bs=8, device="cpu"), WithLoss(), silent=True)
    assert isinstance(learn.loss_func, nn.CrossEntropyLoss)
    learn.fit(1)


def test_a_collate_function_that_makes_dicts_is_seen():
    def collate(samples):
        return {"x": torch.stack([x for x, _ in samples]), "labels": torch.tensor([y for _, y in samples])}

    loader = DataLoader([*zip(X, Y.tolist(), strict=True)], 10, collate_fn=collate)
    assert isinstance(Learner(DataBunch(loader, device="cpu"), WithLoss()).loss_func, ModelLoss)


def test_ignored_targets_do_not_count_in_the_validation_loss():
    labels = Y.clone()
    labels[::4] = -100
    learn = learner(parts=batches(20, 3, 7, labels=labels))
    expected = 2 * functional.cross_entropy(learn.model.layer(X), labels).item()
    assert learn.validate()[0] == pytest.approx(expected, rel=1e-5)


def test_check_reports_a_loss_with_another_weight_than_assumed():
    class Sum(WithLoss):
        def forward(self, x, labels=None):
            output = super().forward(x, labels)
            return Output(output.logits, output.loss * len(x))

    assert "weighted by their samples" in str(learner(Sum()).check())
    assert "weighted by their samples" not in str(learner().check())


def test_lr_find_and_bitwise_resume_work(tmp_path):
    torch.manual_seed(0)
    learn = learner(path=tmp_path)
    before = learn.model.layer.weight.clone()
    assert learn.lr_find(num_it=5).lrs
    assert torch.equal(before, learn.model.layer.weight)
    learn.fit(1, checkpoint="run")
    other = learner(path=tmp_path)
    other.fit(1, checkpoint="run")
    assert torch.equal(other.model.layer.weight, learn.model.layer.weight)
    pickle.dumps(learn.loss_func)


def test_a_model_without_loss_raises_one_sentence():
    class Without(WithLoss):
        def forward(self, x, labels=None):
            return self.layer(x)

    with pytest.raises(DataError, match=r"The loss should come from the model, but its output, a Tensor, came without"):
        learner(Without()).fit(1)


def test_the_loss_of_each_sample_is_unknown_and_says_so():
    with pytest.raises(DataError, match=r"The model computes its loss itself, for a whole batch .* pass `loss_func`"):
        learner().interpret()


def test_a_callback_that_changes_outputs_raises():
    from minifast import Callback

    class Change(Callback):
        def on_loss_begin(self, last_output):
            return {"last_output": last_output * 2}

    with pytest.raises(DataError, match="The model computes its loss itself"):
        learner().fit(1, callbacks=[Change()])


def test_several_targets_reach_the_model_by_name():
    class Span(WithLoss):
        def forward(self, x, start=None, end=None):
            logits = self.layer(x)
            loss = None if start is None else functional.cross_entropy(logits, start) + logits[:, 0].mul(end).mean()
            return {"loss": loss, "logits": logits}

    parts = [{"x": X, "start": Y, "end": torch.ones(30)}]
    learn = Learner(DataBunch(parts, parts, device="cpu", target=("start", "end")), Span(), silent=True)
    learn.fit(1)
    assert isinstance(learn.get_preds()[1], tuple)


def test_the_weight_of_a_batch():
    loss = ModelLoss()
    assert loss_weight(loss, torch.tensor([[1, -100], [2, 3]])) == 3
    assert loss_weight(loss, torch.zeros(4, 2)) == 8
    assert loss_weight(loss, None, {"x": torch.zeros(5, 2)}) == 5


SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40
}  # fmt: skip


class TestTransformers:
    """The models themselves, with random weights."""

    def tokens(self, n, length, seed=0):
        return torch.randint(1, 40, (n, length), generator=torch.Generator().manual_seed(seed))

    def plain(self, model, parts, weights):
        model.eval()
        with torch.no_grad():
            losses = [float(model(**part).loss) for part in parts]
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)

    @pytest.mark.parametrize("kind", ["class", "float", "labels"])
    def test_sequence_classification(self, kind):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(**SIZES, num_labels=1 if kind == "float" else 3)
        model = transformers.BertForSequenceClassification(config)
        make = {
            "class": lambda n: torch.arange(n) % 3,
            "float": lambda n: torch.rand(n),
            "labels": lambda n: (torch.rand(n, 3) > 0.5).float(),
        }[kind]
        parts = [
            transformers.BatchEncoding({"input_ids": self.tokens(n, t, n), "labels": make(n)})
            for n, t in [(8, 5), (8, 7), (3, 4)]
        ]
        learn = Learner(DataBunch(parts, parts, device="cpu"), model, silent=True)
        assert learn.validate()[0] == pytest.approx(self.plain(model, parts, [8, 8, 3]), rel=1e-5)
        learn.fit_one_cycle(1, 1e-3)
        predictions, _ = learn.get_preds()
        assert predictions.shape == (19, config.num_labels)
        if kind == "class":
            assert torch.allclose(predictions.sum(1), torch.ones(19), atol=1e-5)
            assert learn.interpret().confusion_matrix().sum() == 19

    def test_tokens_and_accuracy(self):
        transformers = pytest.importorskip("transformers")
        model = transformers.BertForTokenClassification(transformers.BertConfig(**SIZES, num_labels=4))
        parts = []
        for n, t in [(6, 5), (2, 9)]:
            labels = self.tokens(n, t) % 4
            labels[:, -2:] = -100
            parts.append({"input_ids": self.tokens(n, t), "labels": labels})
        learn = Learner(DataBunch(parts, parts, device="cpu"), model, metrics=[accuracy], silent=True)
        loss, score = learn.validate()
        assert loss == pytest.approx(self.plain(model, parts, [18, 14]), rel=1e-5)
        hits = total = 0
        for part in parts:
            counted = part["labels"] != -100
            hits += int((model(input_ids=part["input_ids"]).logits.argmax(-1) == part["labels"])[counted].sum())
            total += int(counted.sum())
        assert score == pytest.approx(hits / total)

    def test_next_token(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"
        )
        model = transformers.GPT2LMHeadModel(config)
        parts = [{"input_ids": ids, "labels": ids} for ids in (self.tokens(4, 6), self.tokens(1, 20))]
        learn = Learner(DataBunch(parts, parts, device="cpu"), model, silent=True)
        learn.fit(1)
        assert learn.validate()[0] == pytest.approx(self.plain(model, parts, [20, 19]), rel=1e-5)
        with pytest.raises(DataError, match="compares its outputs with the labels of the next position"):
            learn.validate(metrics=[accuracy])


# --- predictions of one sample


def samples(labels=Y):
    return [{"x": x, "labels": y} for x, y in zip(X, labels, strict=True)]


class OfTransformers(WithLoss):
    """A model with the configuration of transformers' classifiers."""

    config = SimpleNamespace(problem_type="single_label_classification")


@pytest.mark.parametrize("model", [WithLoss, OfTransformers])
@pytest.mark.parametrize("as_batch", [False, True], ids=["sample", "batch of one"])
def test_a_sample_is_predicted_as_a_class_as_with_cross_entropy(model, as_batch):
    learn = Learner(DataBunch.create(samples(), bs=10, device="cpu"), model(), silent=True)
    plain = Learner(learn.data, learn.model, loss_func=nn.CrossEntropyLoss(), silent=True)
    for x in X[:3]:
        item = {"x": x[None] if as_batch else x}
        name, number, output = learn.predict(item)
        expected = plain.predict({"x": x})
        assert (name, int(number)) == (expected[0], int(expected[1]))
        assert torch.allclose(output if model is OfTransformers else output.softmax(0), expected[2])


def test_float_labels_of_a_model_with_its_own_loss_are_no_classes():
    class Regression(WithLoss):
        def forward(self, x, labels=None):
            output = self.layer(x)
            return Output(output, None if labels is None else functional.mse_loss(output, labels))

    data = DataBunch.create(samples(torch.randn(30, 3)), bs=10, device="cpu")
    learn = Learner(data, Regression(), silent=True)
    assert all(part.shape == (3,) for part in learn.predict({"x": X[0]}))


def test_a_batch_of_several_for_one_sample_raises():
    learn = Learner(DataBunch.create(samples(), bs=10, device="cpu"), WithLoss(), silent=True)
    with pytest.raises(DataError, match="`item` must be one sample, got a batch of 2; get_preds predicts many"):
        learn.predict({"x": X[:2]})


@pytest.mark.parametrize("as_lists", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_of_different_lengths_name_the_collate_function(as_lists, num_workers):
    rows = [[1.0] * (1 + i % 3) for i in range(12)]
    unpadded = [{"x": row if as_lists else torch.tensor(row), "labels": 0} for row in rows]
    data = DataBunch.create(unpadded, bs=4, device="cpu", num_workers=num_workers)
    with pytest.raises(DataError, match=r"differ in length or size, .* DataCollatorWithPadding\(tokenizer\)"):
        Learner(data, WithLoss(), silent=True).fit(1)
