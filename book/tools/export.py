"""Export the networks of a finished run in half precision, with a model card, so that others can use them.

    python book/tools/export.py runs/cifar10-laptop/w-mse-4/seed-0

It writes `results/encoders/BUDGET-METHOD/`: the run's record; `encoder.safetensors` and
`projector.safetensors`, their floating-point tensors rounded to float16; and README.md, the card, which is
computed from the record. The folder is read as any run's:
`python -m wmse evaluate results/encoders/cifar10-laptop-w-mse-4`.
"""

import argparse
import json
import sys
from pathlib import Path
from textwrap import fill

import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from wmse import figures, machine, records  # noqa: E402
from wmse.data.sets import STATISTICS  # noqa: E402
from wmse.networks import read_weights  # noqa: E402
from wmse.records import NETWORKS, Record  # noqa: E402

ENCODERS = ROOT / "results" / "encoders"
LARGEST = 6 * 2**20  # bytes of the folder, by which every clone of the repository grows
CARD = """# {method} on {dataset}: an encoder to take away

{summary}

| on {images:,} test images | |
|:--|--:|
{scores}

{origin}

{data}

## In `wmse`

```python
from wmse import load_encoder

encoder = load_encoder("results/encoders/{folder}")
features = encoder(images)  # of (n, 3, 32, 32) in [0, 1]: (n, {features})
```

`python -m wmse evaluate results/encoders/{folder}` computes the scores again, where {dataset} is.

## In plain torchvision

```python
import torch
from safetensors.torch import load_file
from torchvision.models.resnet import BasicBlock, ResNet

{plain}
network.load_state_dict({{key: value.float() for key, value in load_file("encoder.safetensors").items()}})
network.eval()

mean, std = {mean}, {std}
images = torch.rand(4, 3, 32, 32)  # yours, in [0, 1]
normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
features = network(normalised)  # (4, {features})
```

The licence of the weights is the repository's MIT licence.
"""


def plain_network(record: Record) -> str:
    """Lines of Python that build the encoder's architecture with torchvision alone."""
    width, stem = record.recipe.width, record.recipe.stem
    lines = [
        "",
        "class Slim(ResNet):  # torchvision's ResNet with fewer channels",
        "    def _make_layer(self, block, planes, *rest, **options):",
        f"        self.inplanes = {width} if planes == 64 else self.inplanes",
        f"        return super()._make_layer(block, planes * {width} // 64, *rest, **options)",
        "",
        "",
        "network = Slim(BasicBlock, [2, 2, 2, 2])",
        f"network.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)",
        f"network.bn1, network.fc = torch.nn.BatchNorm2d({width}), torch.nn.Identity()",
    ]
    return "\n".join(lines + ["network.maxpool = torch.nn.Identity()"] * (stem == "32px"))


def card(record: Record, folder: str) -> str:
    """The model card of a run, in Markdown."""
    recipe = record.recipe
    method = figures.METHOD_TITLES[record.name.partition("/")[2]]
    dataset = figures.DATASET_TITLES[recipe.dataset]
    mean, std = STATISTICS[recipe.dataset]
    summary = (
        f"A ResNet-18 of width {recipe.width} (stem `{recipe.stem}`), trained without labels by the recipe "
        f"`{record.name}`, seed {recipe.seed}, for {recipe.epochs} epochs: {record.steps:,} steps of "
        f"{recipe.positives} views of {recipe.batch_size} images. The scores are the run's own, of its "
        "float32 weights at the last epoch."
    )
    rows = {
        "linear probe": f"{record.metrics['linear_top1']:.2f} %",
        "5-NN, Euclidean": f"{record.metrics['knn5_euclidean_top1']:.2f} %",
        "effective rank of the features": f"{record.metrics['effective_rank_features']:.1f}",
    }
    commit = (record.git or {}).get("commit")
    origin = (
        f"Trained with commit {commit[:10] if commit else 'unknown'} on "
        f"{machine.hardware_label(record.hardware)} in {machine.duration(record.train_seconds)}; "
        "the whole record is `record.json`."
    )
    data = (
        f"{dataset} (Krizhevsky, 2009) is a set of photographs that its authors collected from the web and "
        "labelled by hand. The weights hold no image. They were trained for a book, to be looked at and "
        "compared. They are small, and much better encoders exist for real use."
    )
    wrapped = {
        key: fill(text, 120) for key, text in (("summary", summary), ("origin", origin), ("data", data))
    }
    return CARD.format(
        method=method,
        dataset=dataset,
        folder=folder,
        images=record.images["test"],
        scores="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        features=8 * recipe.width,
        plain=plain_network(record),
        mean=mean,
        std=std,
        **wrapped,
    )


def export(run: Path, root: Path = ENCODERS) -> Path:
    """Write the export of a finished run below `root`, and return its folder."""
    record = records.read_record(run)
    recipe = record.recipe
    if record.status != "finished" or record.scored_on != "test" or record.limit:
        raise ValueError(
            f"{run} is {record.status}, scored on {record.scored_on}: export a finished run on test"
        )
    if recipe.encoder != "resnet18" or recipe.stem == "224px" or recipe.dataset not in STATISTICS:
        raise ValueError(
            f"{run} has the encoder {recipe.encoder}: the card tells of ResNet-18 for small images"
        )
    folder = root / record.name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        weights = read_weights(run / name)
        halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        if not all(torch.isfinite(value).all() for value in halved.values()):
            raise ValueError(f"{run / name} holds values beyond float16's range: keep it in float32")
        machine.write_whole(folder / name, save(halved))
    text = json.dumps(json.loads((run / "record.json").read_text("utf-8")), separators=(",", ":"))
    machine.write_whole(folder / "record.json", f"{text}\n".encode())
    machine.write_whole(folder / "README.md", card(record, folder.name).encode())
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > LARGEST:
        raise ValueError(f"{folder} has {size:,} bytes, and at most {LARGEST:,} are allowed")
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, with its networks")
    folder = export(parser.parse_args(arguments).run)
    print(folder, json.dumps({path.name: path.stat().st_size for path in sorted(folder.iterdir())}))


if __name__ == "__main__":
    main()
