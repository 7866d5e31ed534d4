"""metrics.csv to the same bits, TensorBoard's tags and steps, resume, and pictures of labels."""

from __future__ import annotations

import errno
import math
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import DataType, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from utils_.label_pictures import (
    PICTURE_LINES,
    RIGHT,
    WRONG,
    label_picture,
    suspects_picture,
)
from utils_.labels import CORRECTED, MISSING, OBSERVED, PSEUDO
from utils_.rng import derive
from utils_.runlog import RunLog, read_metrics, settings_table, tag_of


def events(folder) -> EventAccumulator:
    """What TensorBoard would show of the run."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def steps(accumulator: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in accumulator.Scalars(tag)]


def wait_for_next_file_name() -> None:
    """TensorBoard reads event files in order of their names, which start with the second."""
    time.sleep(1.01)


def test_columns_may_grow_and_keep_their_order(tmp_path):
    with RunLog(tmp_path) as log:
        log.row({"round": 0.0, "train_loss": 0.7, "val_mAP": 0.3, "bytes_up": 12, "lr": 0.1})
        log.row({"round": 1, "labels_noise_recall": 0.5, "test_mAP": 0.2, "seconds": 1.5})
        log.row({"round": 2, "val_mAP": 0.4, "val_macro_f1": 0.1, "train_loss": 0.6})
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table) == [
        "round",
        "seconds",
        "train_loss",
        "val_mAP",
        "val_macro_f1",
        "test_mAP",
        "labels_noise_recall",
        "bytes_up",
        "lr",
    ]
    assert table["round"].tolist() == [0, 1, 2]
    assert table["test_mAP"].isna().tolist() == [True, False, True]
    assert [p.name for p in tmp_path.glob(".*")] == []


numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.integers(0, 9).map(np.int64),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["val_a", "b", "seconds"]), numbers), min_size=1))
def test_numbers_reread_to_the_same_bits(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("bits")
    written = [{"round": i, **row} for i, row in enumerate(rows)]
    log = RunLog(folder, history=written)
    log.close()
    read = read_metrics(folder)
    assert len(read) == len(written)
    for before, after in zip(written, read, strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            if isinstance(value, float | np.floating):
                assert np.float64(value).tobytes() == np.float64(after[name]).tobytes() or (
                    math.isnan(value) and math.isnan(after[name])
                )
            else:
                assert after[name] == int(value)


def test_a_row_is_appended_unless_it_has_a_new_column(tmp_path):
    """The thousandth round must not write a thousand rows."""
    path = tmp_path / "metrics.csv"
    with RunLog(tmp_path) as log:
        log.row({"round": 0, "val_mAP": 0.1})
        file = path.stat().st_ino
        log.row({"round": 1, "val_mAP": 0.2})
        log.row({"round": 2})
        assert path.stat().st_ino == file
        log.row({"round": 3, "test_mAP": 0.2})
        assert path.stat().st_ino != file
        path.unlink()
        with pytest.raises(FileNotFoundError):  # rows without a header would be no table
            log.row({"round": 4})
        assert not path.exists()


def test_a_row_that_was_being_written_is_no_row(tmp_path):
    with RunLog(tmp_path) as log:
        for number in range(3):
            log.row({"round": number, "val_mAP": 0.125})
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        assert read_metrics(tmp_path) == [{"round": n, "val_mAP": 0.125} for n in range(2)]


def test_resume_equals_a_run_without_interruption(tmp_path):
    rows = [{"round": i, "val_mAP": math.sin(i), "seconds": i / 3} for i in range(6)]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with RunLog(whole) as log:
        for row in rows:
            log.row(row)
    with RunLog(resumed) as log:
        for row in rows[:5]:  # written after the checkpoint of round 2, then killed
            log.row(row | {"val_mAP": row["val_mAP"] + (row["round"] > 2)})
    wait_for_next_file_name()
    with RunLog(resumed, history=rows[:3]) as log:
        assert len(read_metrics(resumed)) == 3
        for row in rows[3:]:
            log.row(row)
    assert (whole / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes()
    shown = events(resumed)
    assert steps(shown, "val/mAP") == [0, 1, 2, 3, 4, 5]
    values = [event.value for event in shown.Scalars("val/mAP")]
    assert values == pytest.approx([row["val_mAP"] for row in rows], abs=1e-6)


def test_resume_before_the_first_round_hides_all_earlier_steps(tmp_path):
    with RunLog(tmp_path) as log:
        log.row({"round": 0, "val_mAP": 0.1})
        log.row({"round": 1, "val_mAP": 0.1})
    wait_for_next_file_name()
    with RunLog(tmp_path, history=[]) as log:
        assert not (tmp_path / "metrics.csv").exists()
        log.row({"round": 0, "val_mAP": 0.2})
    assert steps(events(tmp_path), "val/mAP") == [0]
    assert read_metrics(tmp_path) == [{"round": 0, "val_mAP": 0.2}]


def test_tensorboard_shows_the_run(tmp_path):
    truth = np.array([[1, 0, np.nan], [0, 0, 1], [1, 0, 0]])
    with RunLog(tmp_path) as log:
        log.text("settings", settings_table({"param": {"kd": 0.8}}, {}))
        constant = {"bytes_up": 5.0, "val_classes_tuned": 4.0, "test_classes_evaluated": 4.0}
        log.row({"round": 0, "seconds": 2.0, "train_loss": 0.7, "val_mAP": 0.3, "test_mAP": 0.4})
        log.row({"round": 1} | constant)
        log.scalars("sites/0", {"loss": 0.6, "nothing": math.nan}, step=0)
        log.doubt("sites/0/doubt", np.array([0.2, np.nan, 1.0]), step=0)
        log.doubt("sites/1/doubt", np.array([np.nan]), step=0)
        log.scalars("sites/3", {"loss": 0.8, "noise_recall": 0.5}, step=0)
        log.scalars("gmm", {"separation": 2.0}, step=0)
        log.pr_curves(derive(0, "p").random((3, 3)), truth, ["DR", "none", "A/B ü"], step=0)
        log.figure("labels/corrected", Figure, step=0)
        log.figure("labels/suspects", lambda: None, step=0)
    shown, tags = events(tmp_path), events(tmp_path).Tags()
    assert set(tags["scalars"]) == {
        "cost/seconds",
        "train/loss",
        "val/mAP",
        "test/mAP",
        "sites/0/loss",
        "sites/3/loss",
        "sites/3/noise_recall",
        "gmm/separation",
    }
    # 'none' has no positive, so no curve
    assert {"pr/DR", "pr/A/B ü", "settings/text_summary"} <= set(tags["tensors"])
    assert "pr/none" not in tags["tensors"]
    assert "custom_scalars__config__" in tags["tensors"]
    assert tags["images"] == ["labels/corrected"]
    assert tags["histograms"] == ["sites/0/doubt"]
    assert shown.Histograms("sites/0/doubt")[0].histogram_value.num == 2
    text = shown.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| param.kd | 0.8 |" in text
    assert read_metrics(tmp_path)[1] == {"round": 1} | constant


def hparams_of(folder, tag: str) -> HParamsPluginData:
    content = events(folder).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return HParamsPluginData.FromString(content)


def test_the_row_of_a_run_lies_in_its_own_file(tmp_path):
    settings = {"noise": 0.4, "method": "fednml", "clients": "4"}
    with RunLog(tmp_path) as log:
        log.settings(settings, ["result/mAP", "val/mAP"], first=["method"])
        log.finished({"mAP": 0.5, "f1": math.nan}, step=3)
    assert len(list(tmp_path.iterdir())) == 1, "add_hparams makes a folder, hence another run"
    experiment = hparams_of(tmp_path, "experiment").experiment
    assert {c.name: DataType.Name(c.type) for c in experiment.hparam_infos} == {
        "noise": "DATA_TYPE_FLOAT64",
        "method": "DATA_TYPE_STRING",
        "clients": "DATA_TYPE_STRING",
    }
    assert [c.name for c in experiment.hparam_infos if c.differs] == ["method"]
    assert [m.name.tag for m in experiment.metric_infos] == ["result/mAP", "val/mAP"]
    row = hparams_of(tmp_path, "session_start_info").session_start_info.hparams
    assert (row["noise"].number_value, row["clients"].string_value) == (0.4, "4")
    assert hparams_of(tmp_path, "session_end_info").session_end_info.status == Status.Value(
        "STATUS_SUCCESS"
    )
    assert events(tmp_path).Tags()["scalars"] == ["result/mAP"]


def test_a_run_that_broke_off_is_not_marked_as_done(tmp_path):
    with RunLog(tmp_path) as log:
        log.settings({"noise": 0.4}, ["val/mAP"])
    with pytest.raises(KeyError):
        hparams_of(tmp_path, "session_end_info")


def test_pr_curve_leaves_unknown_cells_out(tmp_path):
    probability, truth = np.array([[0.9], [0.2], [0.8]]), np.array([[1], [0], [np.nan]])
    with RunLog(tmp_path) as log:
        log.pr_curves(probability, truth, ["DR"], step=0)
    data = events(tmp_path).Tensors("pr/DR")[0].tensor_proto
    true_positive, false_positive, true_negative, false_negative = np.array(data.float_val).reshape(
        6, -1
    )[:4]
    total = true_positive + false_positive + true_negative + false_negative
    assert (total == 2).all()


def test_rows_are_visible_before_the_run_ends(tmp_path):
    log = RunLog(tmp_path)
    log.row({"round": 0, "val_mAP": 0.5})
    assert steps(events(tmp_path), "val/mAP") == [0]
    log.close()


def test_a_round_is_written_once(tmp_path):
    with RunLog(tmp_path) as log:
        log.row({"round": 3})
        for bad in ({"round": 3}, {"round": 2}, {"val_mAP": 0.5}):
            with pytest.raises(ValueError, match="round"):
                log.row(bad)
    assert read_metrics(tmp_path) == [{"round": 3}]


def test_columns_and_tags_correspond():
    columns = ["val_mAP", "test_mAP_annotated", "train_loss", "labels_noise_f1", "seconds"]
    columns += ["bytes_up", "lr", "valley", "train", "learning_rate"]
    tags = [tag_of(column) for column in columns]
    assert tags[:6] == [
        "val/mAP",
        "test/mAP_annotated",
        "train/loss",
        "labels/noise_f1",
        "cost/seconds",
        "cost/bytes_up",
    ]
    assert tags[6:] == ["run/lr", "run/valley", "run/train", "run/learning_rate"]


def test_settings_table_puts_what_differs_first():
    settings = {"a": None, "lr": 0.1, "param": {"kd": 2, "trust": 0.5}, "empty": {}}
    usual = {"a": None, "lr": 0.2, "param": {"kd": None, "trust": 0.5}, "empty": {}}
    assert settings_table(settings, usual).splitlines() == [
        "| setting | value | default |",
        "|---|---|---|",
        "| **lr** | **0.1** | 0.2 |",
        "| **param.kd** | **2** |  |",
        "| a |  |  |",
        "| param.trust | 0.5 |  |",
    ]


def test_settings_table_escapes_what_would_break_it():
    assert settings_table({"a": "x|y\nz"}, {}).splitlines()[-1] == "| a | x\\|y z |  |"


def picture(images: int, **changes) -> Figure:
    arrays = {
        "observed": np.array([[1, 0, np.nan, 1, np.nan, 0]]),
        "target": np.array([[0.1, 0, 0.9, 1, 0, 0]]),
        "status": np.array([[CORRECTED, OBSERVED, PSEUDO, OBSERVED, MISSING, OBSERVED]]),
        "true": np.array([[0, 1, 0, 1, 1, 0.0]]),
    } | changes
    arrays = {name: np.repeat(array, images, axis=0) for name, array in arrays.items()}
    pixels = np.zeros((images, 8, 8, 3), np.uint8)
    classes = ["DR", "MH", "$x^$", "MYA", "RS", "A class with a very long name"]
    names = [f"folder/{'x' * 40}{i}.png" for i in range(images)]
    return label_picture(pixels, classes=classes, names=names, **arrays)


def lines_of(figure: Figure) -> list[tuple[str, ...]]:
    """The texts beside the first picture, row by row, with their colour."""
    texts = [(text.get_text(), text.get_color()) for text in figure.axes[1].texts]
    rows = [texts[i : i + 4] for i in range(4, len(texts), 4)]
    return [(*(text for text, _ in row), row[0][1]) for row in rows]


def test_label_picture_colours_right_and_wrong():
    lines = lines_of(picture(1))
    assert lines[:5] == [
        ("$x^$", "blank → 0.90", "0", "✗", WRONG),
        ("MH", "0", "1", "✗", WRONG),
        ("DR", "1 → 0.10", "0", "✓", RIGHT),
        ("MYA", "1", "1", "✓", RIGHT),
        ("RS", "blank", "1", "", "#767676"),
    ]
    assert lines[5][0] == "others: 1 right"


def test_label_picture_shows_a_few_images_and_counts_the_rest():
    assert sum(bool(axis.images) for axis in picture(9).axes) == 6
    many = 3 * PICTURE_LINES
    zeros = np.zeros((1, many))
    figure = label_picture(
        np.zeros((1, 8, 8, 3), np.uint8),
        observed=zeros,
        target=zeros,
        status=np.full((1, many), OBSERVED),
        true=zeros + 1,
        classes=[f"class {i}" for i in range(many)],
        names=["image.png"],
    )
    assert figure.axes[0].get_title() == "image.png"
    lines = lines_of(figure)
    assert len(lines) == PICTURE_LINES + 1
    assert lines[-1][0] == f"others: {many - PICTURE_LINES} wrong"


def test_label_picture_renders_without_truth(tmp_path):
    figure = picture(2, true=np.full((1, 6), np.nan))
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert {line[4] for line in lines_of(figure)} == {"#767676"}


def test_label_picture_names_each_image_by_the_end_of_its_name():
    titles = [axis.get_title() for axis in picture(2).axes if axis.images]
    assert titles == [f"…{'x' * 24}{i}.png" for i in (0, 1)]
    assert len(titles[0]) == 30


def test_suspects_are_counted_against_wrong_labels():
    scores = np.array([0.9, 0.8, 0.5, 0.1, np.nan, 0.7])
    wrong = np.array([True, True, True, False, False, False])
    figure = suspects_picture(scores, wrong)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["2\n67%", "1\n33%", "1\n33%", "2\n67%"]
    assert "3 of 6 images are flagged, 3 have a wrong label" in figure.get_suptitle()


@pytest.mark.parametrize("wrong", [True, False])
def test_suspects_of_one_kind_alone_are_drawn(wrong: bool, tmp_path):
    figure = suspects_picture(np.array([np.nan, 0.6]), np.array([wrong, wrong]))
    figure.savefig(tmp_path / "picture.png")
    assert "0\n0%" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("text", ["round,loss\n0,0.5,0.7\n", "round,loss\n0,many\n"])
def test_a_table_that_is_none_is_a_value_error(text, tmp_path) -> None:
    """As report.py expects, which names the run and goes on with the others."""
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"more cells than the header|could not convert"):
        read_metrics(tmp_path)


# ---- a full disk


def test_a_full_disk_is_one_line_and_no_traceback(
    tmp_path, monkeypatch, caplog, capfd: pytest.CaptureFixture
) -> None:
    """TensorBoard writes in a thread of its own, which would print its own traceback."""

    def full(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hook = threading.excepthook
    with pytest.raises(OSError, match="No space left"), RunLog(tmp_path) as log:
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        log.row({"round": 0, "val_mAP": 0.5})
        log.row({"round": 1, "val_mAP": 0.5})
    assert threading.excepthook == hook
    assert "Traceback" not in capfd.readouterr().err
    told = "TensorBoard's events cannot be written: No space left on device"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: {told}"]
