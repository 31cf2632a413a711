"""Sets that are folders of files: Tiny ImageNet and ImageNet-100 in their published layouts, and refusals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wmse import data
from wmse.data import folders
from wmse.data.folders import IMAGENET100
from wmse.data.streaming import StreamedSet

pytestmark = pytest.mark.filterwarnings("ignore:.*the published set")  # these are parts of it
WNIDS = ["n01443537", "n01629819", "n02124075"]  # sorted, as labels are
TRAIN, VAL = 4, 6  # images a class for training, and in all for validation


def write_jpeg(path: Path, rng: np.random.RandomState, size=(64, 64), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = rng.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(levels).convert(mode).save(path, "JPEG")


def decoded(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Three classes of Tiny ImageNet as the archive unpacks; wnids.txt in another order, one image gray."""
    rng = np.random.RandomState(0)
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        for i in range(TRAIN):
            mode = "L" if (wnid, i) == (WNIDS[1], 0) else "RGB"
            write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", rng, mode=mode)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for i in range(VAL):
        write_jpeg(folder / "val" / "images" / f"val_{i}.JPEG", rng)
        lines.append(f"val_{i}.JPEG\t{WNIDS[(2 * i + 1) % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    words = [f"{WNIDS[0]}\tgoldfish, Carassius auratus", f"{WNIDS[2]}\tEgyptian cat", "n00001740\tentity"]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    return folder


def load_tiny(folder: Path, split: str) -> data.ImageSet:
    return data.load("tiny-imagenet", split, root=folder.parent)


# --- Tiny ImageNet --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "probe"])
def test_tiny_imagenet_trains_on_the_class_folders_in_turn(tiny, split):
    images = load_tiny(tiny, split)
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    assert images.labels.tolist() == [0, 1, 2] * TRAIN
    for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        wnid = WNIDS[label]
        expected = decoded(tiny / "train" / wnid / "images" / f"{wnid}_{i // 3}.JPEG")
        assert torch.equal(image, expected)
    gray = images.images[1]  # the first of the second class is stored as one channel
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2]) and gray[0].float().std() > 10


def test_tiny_imagenet_tests_on_the_annotated_images_with_the_same_labels(tiny):
    train, test = load_tiny(tiny, "train"), load_tiny(tiny, "test")
    assert test.labels.tolist() == [
        1,
        0,
        2,
        1,
        0,
        2,
    ]  # by sorted folders, though wnids.txt is in another order
    for i in range(VAL):
        assert torch.equal(test.images[i], decoded(tiny / "val" / "images" / f"val_{i}.JPEG"))
    assert train.classes == test.classes == ("goldfish", WNIDS[1], "Egyptian cat")
    assert train.mean == test.mean == (0.480, 0.448, 0.398) and train.std == (0.277, 0.269, 0.282)


def test_limited_tiny_imagenet_has_all_classes(tiny):
    assert data.load("tiny-imagenet", "train", root=tiny.parent, limit=3).labels.tolist() == [0, 1, 2]


def test_names_of_classes_may_be_absent(tiny):
    (tiny / "words.txt").unlink()
    (tiny / "wnids.txt").unlink()
    assert load_tiny(tiny, "test").classes == tuple(WNIDS)


def test_absent_tiny_imagenet_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load("tiny-imagenet", "train", root=tmp_path)
    for word in (folders.TINY_ADDRESS, str(tmp_path), "tiny-imagenet-200"):
        assert word in str(error.value)


def test_incomplete_training_folders_are_refused(tiny):
    shutil.rmtree(tiny / "train" / WNIDS[1] / "images")
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 3 folders of classes hold no images: .*{WNIDS[1]}.*afresh"
    ):
        load_tiny(tiny, "train")
    shutil.rmtree(tiny / "train" / WNIDS[1])
    with pytest.raises(ValueError, match=rf"lacks 1 of the classes in wnids.txt: {WNIDS[1]}\. Unpack"):
        load_tiny(tiny, "test")


def test_val_without_annotations_is_refused(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"one class, and accuracy that of chance, about 0\.5%"):
        load_tiny(tiny, "test")


def test_val_rearranged_into_classes_is_refused(tiny):
    (tiny / "val" / WNIDS[0]).mkdir()
    with pytest.raises(ValueError, match=rf"rearranged into folders of classes \({WNIDS[0]}\).*afresh"):
        load_tiny(tiny, "test")


@pytest.mark.parametrize("line", ["val_1.JPEG\tn99999999\t0\t0\t1\t1", "val_1.JPEG n01443537", ""])
def test_annotations_of_unknown_classes_are_refused(tiny, line):
    listing = tiny / "val" / "val_annotations.txt"
    lines = listing.read_text().splitlines()
    lines[1] = line
    listing.write_text("\n".join(lines))
    with pytest.raises(ValueError) as error:
        load_tiny(tiny, "test")
    assert f"line 2: {line!r} names no class" in str(error.value)


def test_annotations_and_images_must_agree(tiny):
    listing = tiny / "val" / "val_annotations.txt"
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"has 5 images, not the 6 .*val_5\.JPEG"):
        load_tiny(tiny, "test")
    listing.write_text("".join(lines))
    (tiny / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 6 images .* missing: .*val_3\.JPEG"):
        load_tiny(tiny, "test")


def test_images_of_another_size_are_refused(tiny):
    path = tiny / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_3.JPEG"
    write_jpeg(path, np.random.RandomState(0), size=(32, 64))
    with pytest.raises(ValueError, match=rf"{WNIDS[2]}_3.JPEG has 32 x 64 pixels, not 64 x 64"):
        load_tiny(tiny, "train")


@pytest.mark.parametrize("keep", [0, 20, 600])
def test_broken_file_is_named(tiny, keep):
    path = tiny / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_2.JPEG"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{WNIDS[0]}_2.JPEG is no whole image"):
        load_tiny(tiny, "train")


# --- list files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_in_the_encodings_that_say_so(tmp_path, encoding, end):
    path = tmp_path / "words.txt"
    path.write_bytes(end.join(["n1\tcafé, bar", "n2\tcrêpe\x85"]).encode(encoding))
    assert folders.read_lines(path) == ["n1\tcafé, bar", "n2\tcrêpe\x85"]
    path.write_bytes(f"one{end}two{end}".encode(encoding))
    assert folders.read_lines(path) == ["one", "two"]


def test_lists_of_tiny_imagenet_may_be_in_utf_16(tiny):
    before = load_tiny(tiny, "test")
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        (tiny / name).write_text((tiny / name).read_text("utf-8"), "utf-16")
    after = load_tiny(tiny, "test")
    assert after.classes == before.classes and torch.equal(after.labels, before.labels)


def test_a_list_in_latin_1_is_read_with_a_warning(tiny):
    (tiny / "words.txt").write_text(f"{WNIDS[0]}\tcrêpe", "latin-1")
    with pytest.warns(UserWarning, match="words.txt is not in UTF-8"):
        assert load_tiny(tiny, "test").classes[0] == "crêpe"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_no_known_encoding_is_told(tiny, encoding):
    (tiny / "wnids.txt").write_text("\n".join(WNIDS), encoding)
    with pytest.raises(ValueError, match=r"wnids.txt is no text in UTF-8: save it as UTF-8"):
        load_tiny(tiny, "test")


# --- what operating systems leave in folders -------------------------------------------------------


def test_what_systems_leave_in_folders_counts_for_nothing(tiny):
    before = {split: load_tiny(tiny, split) for split in ("train", "test")}
    (tiny / "wnids.txt").unlink()  # so that the folders of train say which classes there are
    for place in (
        tiny / "train",
        tiny / "train" / WNIDS[0] / "images",
        tiny / "val",
        tiny / "val" / "images",
    ):
        for name in (".ipynb_checkpoints", "@eaDir", ".Trash-1000", "__MACOSX", "lost+found"):
            (place / name).mkdir()
            (place / name / "images").mkdir()
            (place / name / "images" / "x.JPEG").write_bytes(b"")
        for name in ("._x.JPEG", ".x.jpg", "@x.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
            (place / name).write_bytes(b"no image")
        (place / "a folder.jpeg").mkdir() if place.name == "images" else None
    for split, images in before.items():
        after = load_tiny(tiny, split)
        assert torch.equal(after.images, images.images) and torch.equal(after.labels, images.labels)


def test_classes_come_from_the_list_where_there_is_one(tiny):
    before = {split: load_tiny(tiny, split) for split in ("train", "test")}
    write_jpeg(tiny / "train" / "n00000000" / "images" / "x.JPEG", np.random.RandomState(0))  # sorts first
    for split, images in before.items():
        with pytest.warns(UserWarning, match=r"1 folders that wnids.txt does not name.*left out: n00000000"):
            after = load_tiny(tiny, split)
        assert torch.equal(after.labels, images.labels) and after.classes == images.classes


def test_an_empty_list_of_classes_is_told(tiny):
    (tiny / "wnids.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"wnids.txt is empty\. Unpack"):
        load_tiny(tiny, "train")


# --- ImageNet-100 ---------------------------------------------------------------------------------


def write_imagenet(folder: Path, wnids: list[str]) -> None:
    """Two training images and one for validation of each class, all of them links to one JPEG."""
    rng = np.random.RandomState(0)
    write_jpeg(folder / "one.JPEG", rng, size=(40, 30))
    for wnid in wnids:
        for part, names in (("train", (f"{wnid}_10.JPEG", f"{wnid}_9.JPEG")), ("val", (f"v_{wnid}.JPEG",))):
            (folder / part / wnid).mkdir(parents=True)
            for name in names:
                (folder / part / wnid / name).hardlink_to(folder / "one.JPEG")


def test_the_list_has_a_hundred_classes():
    wnids = IMAGENET100.split()
    assert len(wnids) == len(set(wnids)) == 100
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)


@pytest.mark.parametrize("name", ["imagenet100", "imagenet"])
def test_imagenet100_is_listed_from_its_own_folder_or_all_of_imagenet(tmp_path, name):
    others = ["n01440764", "n99999999"] if name == "imagenet" else []
    write_imagenet(tmp_path / name, IMAGENET100.split() + others)
    (tmp_path / name / "train" / "n01558993" / "notes.txt").write_text("no image")
    train, probe, test = (data.load("imagenet100", s, root=tmp_path) for s in ("train", "probe", "test"))
    wnids = sorted(IMAGENET100.split())
    assert isinstance(train, StreamedSet) and train.paths == probe.paths
    assert train.classes == test.classes == tuple(wnids)
    assert train.labels.tolist() == [*range(100), *range(100)] and train.labels.dtype == torch.int64
    assert test.labels.tolist() == list(range(100))
    for images in (train, test):
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            assert Path(path).parent.name == wnids[label]
    assert train.mean == (0.485, 0.456, 0.406) and train.std == (0.229, 0.224, 0.225)
    assert (train.resize, train.crop) == (256, 224)
    limited = data.load("imagenet100", "train", root=tmp_path, limit=7)
    assert limited.paths == train.paths[:7] and limited.labels.tolist() == list(range(7))


def test_missing_classes_are_counted_and_named(tmp_path):
    wnids = IMAGENET100.split()
    write_imagenet(tmp_path / "imagenet", wnids[2:])
    with pytest.raises(FileNotFoundError) as error:
        data.load("imagenet100", "test", root=tmp_path)
    assert "lacks 2 of the 100 classes" in str(error.value)
    assert all(wnid in str(error.value) for wnid in wnids[:2]) and "sort them" in str(error.value)


def test_a_class_that_the_list_of_imagenet100_does_not_name_is_told(tmp_path):
    write_imagenet(tmp_path / "imagenet100", [*IMAGENET100.split(), "n01440764", ".thumbs"])
    with pytest.warns(UserWarning, match=r"1 folders that the list of the 100 classes .*: n01440764"):
        assert data.load("imagenet100", "test", root=tmp_path).labels.tolist() == list(range(100))


def test_empty_class_is_refused(tmp_path):
    write_imagenet(tmp_path / "imagenet100", IMAGENET100.split())
    (tmp_path / "imagenet100" / "val" / "n01558993" / "v_n01558993.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 100 folders of classes hold no images: .*n01558993"):
        data.load("imagenet100", "test", root=tmp_path)


def test_absent_imagenet100_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load("imagenet100", "train", root=tmp_path)
    for name in ("imagenet100", "imagenet"):
        assert str(tmp_path / name / "train") in str(error.value)


def test_a_part_of_the_set_is_warned_of(tiny):
    with pytest.warns(UserWarning, match="12 images in 3 classes, and the published set 100,000"):
        load_tiny(tiny, "train")
