"""Sources, against files and datasets written here by the libraries that define the formats."""

import io
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from video_files import write_video

from bsq_jax.core.errors import UserError
from bsq_jax.data import sources, transforms
from bsq_jax.data.command_line_files import find_inputs
from bsq_jax.data.decoding import stills
from bsq_jax.data.decoding.record_frames import open_record
from bsq_jax.data.sources import embedded, folders, make_source
from bsq_jax.evaluation.picture_set import PictureSet


def encode(pixels, file_format="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


def picture(number, side=24):
    return np.random.default_rng(number).integers(0, 256, (side, side + 4, 3), np.uint8)


def ids(source):
    return [source[index].id for index in range(len(source))]


def fill(folder, names):
    for number, name in enumerate(names):
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number, side=4)))


def test_photos_are_real_colour_pictures_split_by_scene():
    splits = {split: make_source("photos", split) for split in sources.SPLITS}
    names = {split: ids(source) for split, source in splits.items()}
    assert len(names["train"]) == 8
    assert names["val"] == ["chelsea.png", "coffee.png", "flower.jpg"]
    assert not set(names["train"]) & set(names["val"])
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= set(names["train"])
    for source in splits.values():
        for index in range(len(source)):
            small = transforms.resize_short_side(stills.decode(source[index].content), 32)
            spread = small.max(axis=-1).astype(int) - small.min(axis=-1)
            assert spread.max() > 60, source[index].id  # not a grey picture


def test_photos_without_the_wheel_is_a_user_error(monkeypatch, tmp_path):
    found = importlib_spec_of(tmp_path)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"astronaut\.png is not in the installed scikit-image"):
        make_source("photos", "train")


def importlib_spec_of(folder):
    """An import spec of a package whose folder is there but holds none of the files."""
    spec = embedded.importlib.util.spec_from_loader("skimage", loader=None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_folder_takes_pictures_of_any_depth_and_case_sorted(tmp_path):
    names = ["b.PNG", "a/z.jpg", "a/b/c.JpEg", "d.webp"]
    fill(tmp_path, [*names, ".hidden.png", ".cache/e.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    source = make_source(f"folder:{tmp_path}", "val", divide=False)
    assert ids(source) == sorted(names)
    position = ids(source).index("b.PNG")
    assert source[position].content == (tmp_path / "b.PNG").read_bytes()


@pytest.mark.parametrize("val_name", ["val", "validation", "test"])
def test_folder_with_split_folders(tmp_path, val_name):
    fill(tmp_path, ["train/a.png", "train/deep/b.png", f"{val_name}/c.png", "stray.png"])
    assert ids(make_source(f"folder:{tmp_path}", "train")) == ["train/a.png", "train/deep/b.png"]
    assert ids(make_source(f"folder:{tmp_path}", "val")) == [f"{val_name}/c.png"]


def test_folder_split_by_hash_is_a_stable_partition_of_about_a_tenth(tmp_path):
    names = [f"{n:03d}.png" for n in range(200)]
    fill(tmp_path, names)
    spec = f"folder:{tmp_path}"
    train, val = ids(make_source(spec, "train")), ids(make_source(spec, "val"))
    assert sorted(train + val) == names
    assert 8 <= len(val) <= 34  # a binomial count, mean 20, five standard deviations down
    fill(tmp_path, ["extra/1.png", "extra/2.png"])
    assert [n for n in ids(make_source(spec, "val")) if not n.startswith("extra")] == val
    assert [n for n in ids(make_source(spec, "train")) if not n.startswith("extra")] == train


@pytest.mark.parametrize("count", range(2, 9))
def test_folder_split_leaves_no_side_empty(tmp_path, count):
    fill(tmp_path, [f"{n}.png" for n in range(count)])
    spec = f"folder:{tmp_path}"
    train, val = ids(make_source(spec, "train")), ids(make_source(spec, "val"))
    assert train
    assert val
    assert len(train) + len(val) == count


def test_folder_mistakes(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        make_source(f"folder:{tmp_path}/nowhere", "train")
    with pytest.raises(UserError, match="holds no pictures"):
        make_source(f"folder:{tmp_path}", "train")
    fill(tmp_path, ["only.png"])
    with pytest.raises(UserError, match="too few pictures"):
        make_source(f"folder:{tmp_path}", "train")
    assert len(make_source(f"folder:{tmp_path}", "train", divide=False)) == 1


def test_synthetic_is_deterministic_colourful_and_differs_by_split():
    train, val = make_source("synthetic", "train"), make_source("synthetic", "val")
    assert len(train) == len(val) == 64
    images = [train[index].content for index in range(8)] + [
        val[index].content for index in range(8)
    ]
    assert all(image.shape == (96, 96, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 16
    assert all(image.std() > 10 for image in images)
    np.testing.assert_array_equal(make_source("synthetic", "train")[5].content, images[5])
    with pytest.raises(IndexError):
        train[64]


def write_array_records(path, records):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_record_globs(tmp_path):
    records = [encode(picture(n)) for n in range(23)]
    write_array_records(tmp_path / "part-0.array_record", records[:12])
    write_array_records(tmp_path / "part-1.array_record", records[12:])
    spec = f"array_record:{tmp_path}/part-*"
    parts = {split: make_source(spec, split) for split in sources.SPLITS}
    assert [record.content for record in parts["val"]] == [records[0], records[10], records[20]]
    rest = [record for n, record in enumerate(records) if n % 10]
    assert [parts["train"][n].content for n in range(len(parts["train"]))] == rest
    assert len(make_source(spec, "val", divide=False)) == 23
    two = f"array_record:{tmp_path}/part-0*|{tmp_path}/part-1*"
    assert make_source(two, "train")[11].content == records[11]
    assert make_source(two, "val")[0].content == records[12]
    with pytest.raises(UserError, match="matches no file"):
        make_source(f"array_record:{tmp_path}/none-*", "train")
    (tmp_path / "text.array_record").write_text("hello")
    with pytest.raises(UserError, match="not array_record files"):
        make_source(f"array_record:{tmp_path}/text.array_record", "train")


def test_array_record_of_videos_is_told_by_content(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    videos = [path.read_bytes()] * 2
    write_array_records(tmp_path / "videos.array_record", [b"damaged", *videos])
    write_array_records(tmp_path / "pictures.array_record", [b"", encode(picture(0)), *videos])
    source = make_source(f"array_record:{tmp_path}/videos*", "train", divide=False)
    assert source.videos
    with open_record(source[1]) as footage:
        assert len(footage) == 5
    pictures = make_source(f"array_record:{tmp_path}/pictures*", "train", divide=False)
    assert not pictures.videos
    with open_record(pictures[1]) as footage:
        assert len(footage) == 1


def test_array_record_without_its_package_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(UserError, match="needs 'pip install array_record'") as raised:
        make_source("array_record:/some/*", "train")
    assert "\n" not in str(raised.value)


def prepared(folder, class_name, feature, value):
    """A tiny dataset that tensorflow-datasets itself prepares: 5 train and 3 test examples.

    ``feature`` is (name, feature), ``value`` maps the number of an example to what is stored.
    """
    import tensorflow_datasets as tfds

    def info(self):
        features = {"label": tfds.features.Scalar(np.int64), feature[0]: feature[1]}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples(first, last):
        for n in range(first, last):
            yield n, {"label": n, feature[0]: value(n)}

    class_members = {
        "__module__": __name__,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda *_: {"train": examples(0, 5), "test": examples(5, 8)},
        "_generate_examples": lambda *_: None,
    }
    builder = type(class_name, (tfds.core.GeneratorBasedBuilder,), class_members)
    return builder(data_dir=folder, file_format="array_record")


@pytest.fixture(scope="module")
def tfds_place(tmp_path_factory):
    """A tiny dataset of pictures."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    builder = prepared(
        folder,
        "TinyPictures",
        ("image", tfds.features.Image()),
        lambda n: io.BytesIO(encode(picture(n), "JPEG")),
    )
    spec = f"tfds:tiny_pictures@{folder}"
    with pytest.raises(UserError, match=r"not prepared.*download_and_prepare\(\)"):
        make_source(spec, "train")
    builder.download_and_prepare()
    return spec


def test_tfds_gives_the_stored_bytes(tfds_place):
    train, val = make_source(tfds_place, "train"), make_source(tfds_place, "val")
    assert len(train) == 5
    assert len(val) == 3
    expected = {encode(picture(n), "JPEG") for n in range(5)}  # tfds writes in an order of its own
    assert {train[n].content for n in range(5)} == expected
    assert {val[n].content for n in range(3)} == {encode(picture(n), "JPEG") for n in range(5, 8)}
    assert train[2].id == "tfds:tiny_pictures/train#2"


def frames_of(number):
    """The frames of video ``number``: two more than that."""
    return [picture(10 * number + frame) for frame in range(number + 2)]


@pytest.fixture(scope="module")
def tfds_videos(tmp_path_factory):
    """A tiny dataset of videos: a folder."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds_videos")
    prepared(
        folder,
        "TinyVideos",
        ("video", tfds.features.Sequence(tfds.features.Image())),
        lambda n: [io.BytesIO(encode(frame)) for frame in frames_of(n)],
    ).download_and_prepare()
    return folder


def test_tfds_videos_are_sequences_of_stored_pictures(tfds_videos):
    source = make_source(f"tfds:tiny_videos@{tfds_videos}", "val")
    assert source.videos
    assert len(source) == 3
    for record in (source[n] for n in range(3)):
        number = len(record.content) - 2
        assert list(record.content) == [encode(frame) for frame in frames_of(number)]
        with open_record(record) as footage:
            assert len(footage) == number + 2
            shown = {n: render() for n, render in footage.frames([1, number])}
        for n, pixels in shown.items():
            np.testing.assert_array_equal(pixels, frames_of(number)[n])
    assert {len(source[n].content) for n in range(3)} == {7, 8, 9}


def test_tfds_video_feature_needs_tensorflow_and_says_so(tfds_videos, tmp_path, monkeypatch):
    """The same files, described as the features.Video that ucf101 has."""
    name = "of_video_feature"  # unknown as a class, so the folder describes the dataset
    shutil.copytree(tfds_videos / "tiny_videos", tmp_path / name)
    folder = tmp_path / name / "1.0.0"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("tiny_videos", name))
    info = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("tiny_videos", name))
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"dtype": "uint8", "encodingFormat": "png"},
    }
    (folder / "features.json").write_text(json.dumps(features))
    spec = f"tfds:{name}@{tmp_path}"

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"without tensorflow.*clips:PATH") as raised:
        make_source(spec, "val")
    assert "\n" not in str(raised.value)


def test_tfds_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"unknown to tensorflow-datasets .*; its video"):
        make_source(f"tfds:no_such_dataset_here@{tmp_path}", "train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foto", "did you mean 'photos'"),
        ("folders:/x", "did you mean 'folder'"),
        ("TFDS:cifar10", "did you mean 'tfds'"),
        ("photos:all", "takes nothing after it"),
        ("folder:", "names no place"),
        (str(pathlib.Path(__file__).parent), "write 'folder:"),
    ],
)
def test_spec_mistakes(spec, message):
    with pytest.raises(UserError, match=message):
        make_source(spec, "train")


def test_unknown_split():
    with pytest.raises(UserError, match="unknown split 'eval'"):
        make_source("photos", "eval")


def test_pictures_of_kinds_that_are_not_read_are_counted_once(tmp_path, caplog):
    fill(tmp_path, ["a.png", "b/c.jpg"])
    left = ["1.jxl", "b/2.JXL", "b/3.jxl", "4.dng", "clip.mp4", "5.psd"]
    # Nobody means these as pictures.
    silent = ["notes.txt", "a.json", "Thumbs.db", ".DS_Store", ".6.jxl", ".trash/7.jxl", "x.ts"]
    for name in left + silent:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    spec = f"folder:{tmp_path}"
    with caplog.at_level("WARNING"):
        for split in ("train", "val", "train"):
            assert set(ids(make_source(spec, split))) <= {"a.png", "b/c.jpg"}
    skipped = "skipped 6 files of kinds that are not read: .jxl (3), .dng (1), .mp4 (1), .psd (1)"
    assert caplog.messages == [f"{spec}: {skipped}"]


def test_pictures_among_videos_are_counted(tmp_path, caplog):
    for name in ("a.mp4", "b.mkv", "cover.jpg", "c.rmvb", "c.srt"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level("WARNING"):
        assert ids(make_source(f"clips:{tmp_path}", "train", divide=False)) == ["a.mp4", "b.mkv"]
    skipped = "skipped 2 files of kinds that are not read: .jpg (1), .rmvb (1)"
    assert caplog.messages == [f"clips:{tmp_path}: {skipped}"]


def test_split_folders_count_their_own(tmp_path, caplog):
    fill(tmp_path, ["train/a.png", "train/b.png", "val/c.png"])
    for name in ("train/1.jxl", "val/2.nef", "3.cr2"):
        (tmp_path / name).write_bytes(b"x")
    spec = f"folder:{tmp_path}"
    with caplog.at_level("WARNING"):
        for split in ("train", "val"):
            make_source(spec, split)
    one = "skipped 1 file of a kind that is not read"
    assert caplog.messages == [f"{spec}/train: {one}: .jxl (1)", f"{spec}/val: {one}: .nef (1)"]


def test_a_folder_of_kinds_that_are_not_read_says_so(tmp_path):
    for name in ("1.jxl", "2.jxl"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"2 files of kinds that are not read: \.jxl \(2\)"):
        make_source(f"folder:{tmp_path}", "train")


def test_other_commands_name_what_they_skip(tmp_path, caplog):
    fill(tmp_path, ["a.png"])
    (tmp_path / "b.jxl").write_bytes(b"x")
    with caplog.at_level("WARNING"):
        assert len(find_inputs([str(tmp_path)])) == 1  # of bsq-jax rd
        assert len(PictureSet(tmp_path)) == 1  # of bsq-jax score
    message = f"{tmp_path}: skipped 1 file of a kind that is not read: .jxl (1)"
    assert caplog.messages == [message]
    (tmp_path / "a.png").unlink()
    for opens in (lambda: find_inputs([str(tmp_path)]), lambda: PictureSet(tmp_path)):
        with pytest.raises(UserError, match=r"it holds 1 file of a kind that is not read: \.jxl"):
            opens()


def test_every_kind_of_picture_that_is_looked_for_is_read(tmp_path):
    """Pillow may be built without AVIF; then .avif is a kind that is not read."""
    image = Image.fromarray(picture(0, side=16))
    for ending in folders.IMAGE_EXTENSIONS:
        path = tmp_path / f"a{ending}"
        image.save(path, {".jfif": "JPEG", ".jpe": "JPEG"}.get(ending))
        assert stills.decode(path.read_bytes()).shape == (16, 20, 3)
    assert len(make_source(f"folder:{tmp_path}", "train", divide=False)) == len(
        folders.IMAGE_EXTENSIONS
    )
