"""What a network's answers tell: against hand-made numbers and scikit-learn; the table, the pictures, the page."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn import metrics

from runner.evaluation import metrics as scores
from runner.evaluation import plots, predictions, report_page, statistics
from runner.evaluation.predictions import Outcomes, Prediction, read_csv, softmax
from runner.evaluation.statistics import Confusion
from runner.utils.errors import UserError

ODD = ("a,b", "<b>$x_1$</b>", "line\r\nbreak", 'quo"te', "Ωμέγα 犬", "_^{x}$")


def outcomes_of(logits: object, labels: list[int], classes: tuple[str, ...] | None = None) -> Outcomes:
    values = np.array(logits, dtype=np.float64)
    return Outcomes(
        paths=tuple(f"{place:04}.png" for place in range(len(labels))),
        digests=tuple(f"{place:064x}" for place in range(len(labels))),
        labels=np.array(labels, dtype=np.int64),
        logits=values,
        classes=classes or tuple(f"class {place:03}" for place in range(values.shape[1])),
    )


def answered(pairs: list[tuple[int, int]], classes: int, names: tuple[str, ...] | None = None) -> Outcomes:
    """Outcomes of (true, predicted) pairs."""
    return outcomes_of(5 * np.eye(classes)[[said for _, said in pairs]], [true for true, _ in pairs], names)


def drawn(images: int, classes: int, seed: int = 0, scale: float = 1.0) -> Outcomes:
    """Images of every class, whose labels are drawn from softmax(logits): calibrated where `scale` is 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (images, classes))
    odds = np.log(
        -np.log(random.random((images, classes)))
    )  # Gumbel: argmax(logits - odds) is softmax's draw
    labels = (logits - odds).argmax(axis=1)
    return outcomes_of(logits * scale, labels.tolist())


@st.composite
def cases(draw: st.DrawFn) -> Outcomes:
    """Few images and classes, with ties, and with numbers that are none."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    numbers = st.integers(-2, 2).map(float) | st.sampled_from([0.0, 1e300, math.nan, math.inf, -math.inf])
    logits = draw(arrays(np.float64, (images, classes), elements=numbers))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    return outcomes_of(logits, labels)


class TestOutcomes:
    @settings(deadline=None, max_examples=150)
    @given(cases())
    def test_they_are_what_scores_are_counted_from(self, case: Outcomes) -> None:
        judged = scores.judge(torch.tensor(case.logits), torch.tensor(case.labels))
        rank, predicted = judged[:, 1].numpy(), judged[:, 2].numpy()
        assert (case.finite == np.isfinite(rank)).all()
        assert (case.ranks[case.finite] == rank[case.finite]).all()
        assert (case.predicted[case.finite] == predicted[case.finite]).all()
        assert (case.right == (rank == 0)).all()
        counted = scores.count(judged, case.labels.tolist(), len(case.classes))
        intervals = statistics.bootstrap(case, resamples=20)
        assert intervals["top1"].value == pytest.approx(counted.top1, abs=1e-12)
        assert intervals["top5"].value == pytest.approx(counted.top5, abs=1e-12)
        assert intervals["recall"].value == pytest.approx(
            counted.balanced_accuracy, abs=1e-6
        )  # judge counts in float32 here
        known = [each.recall for each in statistics.per_class(case) if each.support]
        assert np.mean(known) == pytest.approx(intervals["recall"].value, abs=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(cases())
    def test_probabilities_are_torchs(self, case: Outcomes) -> None:
        expected = torch.softmax(torch.tensor(case.logits), dim=1).numpy()
        assert case.probabilities[case.finite] == pytest.approx(expected[case.finite], abs=1e-12)
        assert np.isnan(case.probabilities[~case.finite]).all()

    def test_probabilities_of_known_numbers(self) -> None:
        case = outcomes_of([[0, math.log(3)], [1000, 1000], [-1e4, 0]], [0, 1, 1])
        assert case.probabilities == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5], [0, 1]]))
        assert case.confidence.tolist() == pytest.approx([0.75, 0.5, 1])
        assert case.true_probability.tolist() == pytest.approx([0.25, 0.5, 1])
        assert case.predicted.tolist() == [1, 0, 1]
        assert case.ranks.tolist() == [1, 1, 0]
        assert case.right.tolist() == [False, False, True]

    def test_k_is_that_of_the_scores(self) -> None:
        assert predictions.TOP_K == scores.TOP_K

    @pytest.mark.parametrize("labels", [[], [0], [0, 2], [0, -1], [0, 1, 1]])
    def test_parts_that_do_not_fit_are_refused(self, labels: list[int]) -> None:
        with pytest.raises(ValueError, match="classes"):
            Outcomes(("a", "b"), ("1", "2"), np.array(labels, dtype=np.int64), np.zeros((2, 2)), ("x", "y"))

    def test_analysis_needs_no_torch(self) -> None:
        for module in (predictions, statistics):
            assert "torch" not in vars(module)
            assert not re.search(
                r"^(from|import) (torch|runner\.scores)", Path(module.__file__).read_text(), re.M
            )


class TestTable:
    def test_rows_say_what_was_said(self) -> None:
        case = outcomes_of([[0, math.log(3)], [0, math.log(4)]], [0, 1], ("no", "yes"))
        header, first, second, end = case.as_csv().split("\r\n")
        assert header == "path,digest,true,predicted,probability,true_probability,rank"
        assert first == f"0000.png,{0:064x},no,yes,0.750000,0.250000,1"
        assert second == f"0001.png,{1:064x},yes,yes,0.800000,0.800000,0"
        assert end == ""

    def test_odd_names_survive(self, tmp_path: Path) -> None:
        case = Outcomes(
            tuple(f"{name}/{name}.png" for name in ODD),
            tuple(map(str, range(len(ODD)))),
            np.arange(len(ODD)),
            np.roll(np.eye(len(ODD)), 1, axis=1),
            ODD,
        )
        file = tmp_path / "predictions.csv"
        file.write_bytes(case.as_csv().encode())
        read = read_csv(file.read_bytes().decode())
        assert [each.path for each in read] == list(case.paths)
        assert [each.true for each in read] == list(ODD)
        assert [each.predicted for each in read] == [*ODD[1:], ODD[0]]
        assert [each.digest for each in read] == list(case.digests)

    @settings(deadline=None, max_examples=60)
    @given(cases(), st.text(st.characters(exclude_characters="\0"), max_size=8))
    def test_what_was_written_is_read(self, case: Outcomes, name: str) -> None:
        named = Outcomes(
            tuple(name + path for path in case.paths), case.digests, case.labels, case.logits, case.classes
        )
        for place, row in enumerate(read_csv(named.as_csv())):
            assert (row.path, row.digest) == (named.paths[place], named.digests[place])
            assert row.true == named.classes[named.labels[place]]
            assert row.predicted == named.classes[named.predicted[place]]
            assert row.probability == pytest.approx(named.confidence[place], abs=1e-6, nan_ok=True)
            assert (row.rank, row.right) == (named.ranks[place], named.right[place])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "path,class,split,size,digest\r\n",
            ",".join(predictions.COLUMNS) + "\r\na,b,c\r\n",
            ",".join(predictions.COLUMNS) + "\r\na,b,c,d,much,0.1,0\r\n",
            ",".join(predictions.COLUMNS) + "\r\na,b,c,d,0.9,0.1,first\r\n",
            ",".join(predictions.COLUMNS) + "\r\na,b,c,d,1.5,0.1,0\r\n",
            ",".join(predictions.COLUMNS) + "\r\na,b,c,d,0.5,0.1,-1\r\n",
            ",".join(predictions.COLUMNS) + '\r\n"a,b,c,d,0.5,0.1,1\r\n',
        ],
    )
    def test_another_table_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match=r"^The table of predictions is not one that the runner wrote\.$"):
            read_csv(text)

    def test_no_rows_are_no_predictions(self) -> None:
        assert read_csv(",".join(predictions.COLUMNS) + "\r\n") == []
        row = ",".join(predictions.COLUMNS) + "\r\na,b,c,d,0.5,0.1,2\r\n"
        assert read_csv(row) == [Prediction("a", "b", "c", "d", 0.5, 2)]


class TestClasses:
    def test_reports_of_known_answers(self) -> None:
        case = answered([(0, 0), (0, 0), (0, 1), (1, 1), (2, 1)], 4, ("a", "b", "c", "d"))
        a, b, c, d = statistics.per_class(case)
        assert (a.name, a.precision, a.recall, a.f1, a.support, a.predicted) == ("a", 1, 2 / 3, 0.8, 3, 2)
        assert (b.precision, b.recall, b.f1, b.support, b.predicted) == (1 / 3, 1, 0.5, 1, 3)
        assert math.isnan(c.precision)
        assert (c.recall, c.f1, c.support, c.predicted) == (0, 0, 1, 0)
        assert all(map(math.isnan, (d.precision, d.recall, d.f1)))
        assert (d.support, d.predicted) == (0, 0)

    def test_class_that_is_predicted_but_has_no_image(self) -> None:
        report = statistics.per_class(answered([(0, 1)], 2))[1]
        assert (report.precision, report.support, report.predicted) == (0, 0, 1)
        assert math.isnan(report.recall)
        assert math.isnan(report.f1)

    def test_confusion_is_scikit_learns(self) -> None:
        case = drawn(300, 7)
        expected = metrics.confusion_matrix(case.labels, case.predicted, labels=range(7))
        assert (statistics.confusion(case) == expected).all()

    def test_pairs_come_by_number_and_then_by_name(self) -> None:
        pairs = [(0, 1), (2, 0), (2, 0), (1, 0), (0, 0), (0, 0), (1, 2)]
        case = answered(pairs, 3, ("z", "y", "x"))
        assert statistics.confused(case) == [
            Confusion("x", "z", 2, 1.0),
            Confusion("y", "x", 1, 1 / 2),
            Confusion("y", "z", 1, 1 / 2),
            Confusion("z", "y", 1, 1 / 3),
        ]
        assert len(statistics.confused(case, most=2)) == 2
        assert len(statistics.confused(drawn(500, 20), most=None)) > 20

    def test_answers_that_are_no_numbers_are_no_classs(self) -> None:
        case = outcomes_of([[math.nan, 0], [1, 0]], [0, 0])
        assert statistics.confusion(case).tolist() == [[1, 0], [0, 0]]
        assert statistics.confused(case) == []
        first = statistics.per_class(case)[0]
        assert (first.recall, first.precision, first.predicted) == (0.5, 1, 1)

    @pytest.mark.parametrize("classes", [3, 8, 30])
    def test_topk_is_scikit_learns(self, classes: int) -> None:
        case = drawn(200, classes)
        curve = statistics.topk(case)
        assert len(curve) == min(20, classes)
        assert (np.diff(curve) >= 0).all()
        for k in range(1, len(curve)):
            expected = metrics.top_k_accuracy_score(case.labels, case.logits, k=k, labels=range(classes))
            assert curve[k - 1] == pytest.approx(expected)
        assert classes > 20 or curve[-1] == 1

    def test_no_number_is_in_no_top_k(self) -> None:
        assert statistics.topk(outcomes_of(np.full((4, 3), np.nan), [0, 1, 2, 0])).tolist() == [0, 0, 0]


class TestCalibration:
    def test_of_known_numbers(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
        measured = statistics.calibration(probabilities, np.array([0, 1, 0, 1]), bins=5)
        # (0.4, 0.6] holds two right ones of 0.6; (0.6, 0.8] a wrong one; (0.8, 1] a right one.
        assert [each.count for each in measured.bins] == [0, 0, 2, 1, 1]
        assert measured.ece == pytest.approx(2 / 4 * 0.4 + 1 / 4 * 0.8 + 1 / 4 * 0.1)
        assert measured.mce == pytest.approx(0.8)
        middle = measured.bins[2]
        assert (middle.low, middle.high) == pytest.approx((0.4, 0.6))
        assert (middle.confidence, middle.accuracy) == pytest.approx((0.6, 1))
        assert math.isnan(measured.bins[0].confidence)
        assert math.isnan(measured.bins[0].accuracy)

    def test_of_calibrated_answers_is_nearly_nothing(self) -> None:
        case = drawn(20000, 10)
        assert statistics.calibration(case.probabilities, case.labels).ece < 0.015
        sure = drawn(20000, 10, scale=4)
        assert statistics.calibration(sure.probabilities, sure.labels).ece > 0.1

    @settings(deadline=None, max_examples=60)
    @given(cases(), st.integers(1, 20))
    def test_every_answer_is_in_a_bin(self, case: Outcomes, bins: int) -> None:
        measured = statistics.calibration(case.probabilities, case.labels, bins)
        assert len(measured.bins) == bins
        assert sum(each.count for each in measured.bins) == case.finite.sum()
        for each in measured.bins:
            assert not each.count or each.low - 1e-9 <= each.confidence <= each.high + 1e-9
        if case.finite.any():
            assert 0 <= measured.ece <= measured.mce <= 1 + 1e-9
        else:
            assert math.isnan(measured.ece)
            assert math.isnan(measured.mce)

    def test_one_is_in_the_last_bin(self) -> None:
        measured = statistics.calibration(np.array([[1.0000000002, 0.0]]), np.array([0]))
        assert measured.bins[-1].count == 1

    @pytest.mark.parametrize("known", [0.3, 1.0, 2.5, 7.0])
    def test_temperature_is_found_again(self, known: float) -> None:
        case = drawn(20000, 10, scale=known)
        assert statistics.temperature(case.logits, case.labels) == pytest.approx(known, rel=0.05)

    def test_temperature_is_the_smallest_loss(self) -> None:
        case = drawn(400, 5, scale=3)
        found = statistics.temperature(case.logits, case.labels)

        def loss(temperature: float) -> float:
            return float(metrics.log_loss(case.labels, softmax(case.logits / temperature), labels=range(5)))

        assert all(loss(found) < loss(found * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
        before = statistics.calibration(case.probabilities, case.labels).ece
        assert statistics.calibration(softmax(case.logits / found), case.labels).ece < before

    def test_temperature_has_its_bounds(self) -> None:
        right, wrong = np.eye(3) * 9, np.roll(np.eye(3), 1, axis=1) * 9
        low, high = statistics.TEMPERATURES
        assert statistics.temperature(right, np.arange(3)) == pytest.approx(low, rel=1e-3)
        assert statistics.temperature(wrong, np.arange(3)) == pytest.approx(high)

    def test_temperature_leaves_out_what_is_no_number(self) -> None:
        case = drawn(400, 5, scale=3)
        more = np.vstack([case.logits, np.full((1, 5), np.nan)])
        expected = statistics.temperature(case.logits, case.labels)
        assert statistics.temperature(more, np.append(case.labels, 0)) == expected
        assert statistics.temperature(np.full((2, 3), np.inf), np.array([0, 1])) == 1


class TestBootstrap:
    def test_is_that_of_resampled_images(self) -> None:
        case = drawn(300, 6, seed=3)
        random = np.random.default_rng(5)
        tops, recalls = [], []
        for _ in range(3000):
            taken = random.integers(0, 300, 300)
            tops.append(case.right[taken].mean())
            labels, right = case.labels[taken], case.right[taken]
            recalls.append(np.mean([right[labels == each].mean() for each in np.unique(labels)]))
        ours = statistics.bootstrap(case, resamples=3000)
        for name, samples in (("top1", tops), ("recall", recalls)):
            assert ours[name].low == pytest.approx(np.quantile(samples, 0.025), abs=0.008)
            assert ours[name].high == pytest.approx(np.quantile(samples, 0.975), abs=0.008)

    def test_interval_holds_the_value_and_repeats(self) -> None:
        for seed in range(8):
            case = drawn(150, 9, seed)
            intervals = statistics.bootstrap(case)
            assert list(intervals) == ["top1", "top5", "recall"]
            for each in intervals.values():
                assert 0 <= each.low <= each.value <= each.high <= 1
            assert intervals == statistics.bootstrap(case)
            assert intervals != statistics.bootstrap(case, seed=1)

    def test_more_images_and_less_confidence_are_narrower(self) -> None:
        def width(case: Outcomes, confidence: float = 0.95) -> float:
            found = statistics.bootstrap(case, confidence=confidence)["top1"]
            return found.high - found.low

        few, many = drawn(100, 5), drawn(10000, 5)
        assert width(many) == pytest.approx(width(few) / 10, rel=0.3)
        assert width(few, 0.5) < width(few)

    def test_without_errors_there_is_no_doubt(self) -> None:
        for each in statistics.bootstrap(answered([(0, 0), (1, 1), (1, 1)], 3)).values():
            assert (each.value, each.low, each.high) == (1, 1, 1)

    def test_is_fast(self) -> None:
        case = drawn(2206, 101)
        start = time.perf_counter()
        statistics.bootstrap(case)
        assert time.perf_counter() - start < 2


class TestPlaces:
    def test_surest_errors_and_least_sure_hits(self) -> None:
        case = outcomes_of([[0, 3], [1, 0], [0, 1], [0, 3], [5, 0], [math.nan, 0]], [0, 0, 0, 0, 0, 0])
        assert statistics.errors_by_confidence(case, 9) == [0, 3, 2, 5]
        assert statistics.errors_by_confidence(case, 2) == [0, 3]
        assert statistics.hits_by_doubt(case, 9) == [1, 4]
        assert statistics.hits_by_doubt(case, 1) == [1]

    def test_equal_ones_come_by_path(self) -> None:
        case = outcomes_of([[0, 3]] * 3, [0, 0, 0])
        turned = Outcomes(case.paths[::-1], case.digests, case.labels, case.logits, case.classes)
        assert statistics.errors_by_confidence(turned, 3) == [2, 1, 0]


def checked(path: Path, least: int, most: int) -> Image.Image:
    """The picture, which is of sane size, in more colours than one, and leaves its rim white."""
    image = Image.open(path).convert("RGB")
    assert least <= min(image.size) <= max(image.size) <= most
    assert len(image.getcolors(image.width * image.height)) > 20
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (rim == 255).all(), "something is cut off"
    return image


class TestFigures:
    @pytest.mark.parametrize("classes", [2, 10, 41])
    def test_confusion_matrix(self, classes: int, tmp_path: Path) -> None:
        case = drawn(20 * classes, classes)
        plots.confusion_matrix(case, tmp_path / "picture.png")
        checked(tmp_path / "picture.png", 400, 1800)

    def test_confusion_matrix_shows_one_image_in_a_hundred(self, tmp_path: Path) -> None:
        names = ("cat", "dog")
        clean = answered([(0, 0)] * 100 + [(1, 1)] * 100, 2, names)
        other = answered([(0, 0)] * 99 + [(0, 1)] + [(1, 1)] * 100, 2, names)
        for name, case in (("clean", clean), ("other", other)):
            plots.confusion_matrix(case, tmp_path / f"{name}.png")
        one, two = (
            np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("clean", "other")
        )
        assert one.shape == two.shape
        changed = (one == 255) & (two < 225)
        assert changed.sum() > 10000  # the whole cell, not its number only

    def test_names_may_be_anything(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        names = (*ODD, "x" * 200, "bad \udcff bytes")
        case = outcomes_of(drawn(200, 8).logits, drawn(200, 8).labels.tolist(), names)
        plots.confusion_matrix(case, tmp_path / "matrix.png")
        plots.recall_by_class(statistics.per_class(case), tmp_path / "recall.png")
        checked(tmp_path / "matrix.png", 400, 1300)
        checked(tmp_path / "recall.png", 250, 1000)
        assert not [str(each.message) for each in recwarn]

    def test_reliability(self, tmp_path: Path) -> None:
        case = drawn(500, 5, scale=3)
        before = statistics.calibration(case.probabilities, case.labels)
        after = statistics.calibration(softmax(case.logits / 3), case.labels)
        plots.reliability(before, after, 3.0, tmp_path / "picture.png")
        checked(tmp_path / "picture.png", 600, 900)

    @pytest.mark.parametrize("curve", [[0.5, 1.0], [1.0, 1.0, 1.0], np.linspace(0.1, 0.9, 20), [0.0, 0.0]])
    def test_topk(self, curve: list[float], tmp_path: Path) -> None:
        plots.topk_curve(np.array(curve), tmp_path / "picture.png")
        checked(tmp_path / "picture.png", 400, 900)

    @pytest.mark.parametrize(("classes", "rows"), [(2, 2), (30, 30), (50, 40)])
    def test_recall(self, classes: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plots, "LISTED", 40)
        plots.recall_by_class(statistics.per_class(drawn(2 * classes, classes)), tmp_path / "picture.png")
        height = checked(tmp_path / "picture.png", 250, 1000).height
        assert height == max(260, 140 + 20 * rows)

    def test_lowest_recall_comes_first(self) -> None:
        reports = statistics.per_class(answered([(0, 0), (1, 0), (3, 3)], 4, ("b", "c", "none", "a")))
        assert [each.name for each in plots.by_recall(reports)] == ["c", "a", "b", "none"]


class Tags(HTMLParser):
    """Counts the tags of a page and collects its addresses and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


class TestPage:
    def test_holds_everything_and_fetches_nothing(self, tmp_path: Path) -> None:
        source = drawn(400, len(ODD), scale=2)
        test = outcomes_of(source.logits, source.labels.tolist(), ODD)
        source = drawn(400, len(ODD), seed=1, scale=2)
        val = Outcomes(source.paths, ("other",) * 400, source.labels, source.logits, ODD)
        thumb = tmp_path / "thumb.png"
        Image.new("RGB", (20, 20), "red").save(thumb)
        found = report_page.write(
            tmp_path / "page.html",
            title="run <1>",
            under="judged on test",
            test=test,
            val=val,
            folder=tmp_path / "figures",
            galleries=[("Surest errors", [(thumb, "<b>$x_1$</b> taken for a,b")])],
            extra=[("By size", ["size", "top-1"], [["<small>", "90 %"]])],
        )
        text = (tmp_path / "page.html").read_text()
        tags = Tags(text)
        assert not {"script", "link", "b", "small", "iframe"} & set(tags.names)
        assert tags.names.count("img") == 5
        assert all(
            each.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for each in tags.addresses
        )
        assert not re.search(r"https?://|url\(|@import", text)
        assert "&lt;b&gt;$x_1$&lt;/b&gt;" in text
        for said in ("run <1>", "Surest errors", "<b>$x_1$</b> taken for a,b", "By size", "<small>"):
            assert said in tags.said
        assert any("found on 400 validation images" in each for each in tags.said)

        names = {f"{score}_{end}" for score in ("top1", "top5", "recall") for end in ("low", "high")}
        assert set(found) == names | {"ece", "ece_scaled", "temperature"}
        assert found["temperature"] == statistics.temperature(val.logits, val.labels)
        assert found["temperature"] == pytest.approx(2, rel=0.25)
        assert found["ece_scaled"] < found["ece"]
        assert found["top1_low"] < test.right.mean() < found["top1_high"]

        assert {each.name for each in (tmp_path / "figures").iterdir()} == {
            *("confusion_matrix.png", "reliability.png", "topk.png", "recall_by_class.png"),
            *("per_class.csv", "confused.csv"),
        }
        classes = table(tmp_path / "figures" / "per_class.csv")
        assert [row["class"] for row in classes] == list(ODD)
        assert sum(int(row["support"]) for row in classes) == 400
        pairs = table(tmp_path / "figures" / "confused.csv")
        assert sum(int(row["count"]) for row in pairs) == (~test.right).sum()

    def test_same_split_twice_says_so(self, tmp_path: Path) -> None:
        case = drawn(60, 3)
        text = self.written(case, case, tmp_path)
        assert "flattered" in text
        assert "validation images" not in text

    def test_nothing_wrong(self, tmp_path: Path) -> None:
        case = answered([(place % 3, place % 3) for place in range(30)], 3)
        text = self.written(case, case, tmp_path)
        assert '<p class="note">None.</p>' in text
        assert "edge of what was searched" in text
        assert "100.0 %" in text

    def test_network_without_numbers_has_a_page(self, tmp_path: Path) -> None:
        case = outcomes_of(np.full((9, 3), np.nan), [0, 1, 2] * 3)
        text = self.written(case, case, tmp_path)
        assert "For 9 images the network&#x27;s logits were not finite" in text

    def written(self, test: Outcomes, val: Outcomes, folder: Path) -> str:
        page = folder / "page.html"
        report_page.write(page, title="run", under="", test=test, val=val, folder=folder)
        return page.read_text()


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))
