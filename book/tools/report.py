"""The computed parts of the reproduction report: the ledger of claims, and what the runs cost.

Called by `build.py`; the page `reproduction-report.md` includes what this writes beside it in the stage.
"""

from pathlib import Path

LEDGER, COMPUTE = "report-ledger.md", "report-compute.md"
UNTESTED = "not yet tested"
MARKS = {"holds": "✓ holds", "fails": "✗ fails", "open": "○ open"}


def write_parts(results: Path, folder: Path) -> None:
    """Write both parts into `folder`, from the records below `results`."""
    from wmse.records import read_records

    entries, _ = read_records(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEDGER).write_text(ledger(entries), "utf-8")
    (folder / COMPUTE).write_text(compute(entries), "utf-8")


def ledger(entries) -> str:
    """A section a claim: its rule, and the verdict of each rung with the numbers behind it."""
    from wmse.reproduction.claims import CLAIMS, findings

    summary, sections = ["| claim | verdict | rung |", "| :-- | :-- | :-- |"], []
    for claim in CLAIMS:
        found = findings(claim, entries)
        tested = [one for one in found if one.verdict != UNTESTED]
        best = f"{MARKS[tested[0].verdict]} | `{tested[0].rung}`" if tested else f"{UNTESTED} | none"
        summary.append(f"| {claim.text} | {best} |")
        parts = [f"### {claim.text}", f"*Rule.* {claim.rule}"]
        if tested:
            rows = [f"| `{one.rung}` | {MARKS[one.verdict]} | {one.evidence} |" for one in tested]
            parts.append("\n".join(["| rung | verdict | evidence |", "| :-- | :-- | :-- |", *rows]))
        if untested := [f"`{one.rung}` ({one.evidence})" for one in found if one.verdict == UNTESTED]:
            parts.append(f"Not yet tested: {'; '.join(untested)}.")
        sections.append("\n\n".join(parts))
    return "\n\n".join(["\n".join(summary), *sections]) + "\n"


def compute(entries) -> str:
    """Hours by machine, over all records whether finished or not; a sentence if there are none."""
    from wmse.machine import in_words

    hours: dict[str, list[float]] = {}
    for entry in entries:
        name = in_words(entry.record["hardware"])
        seconds = entry.record.get("wall_seconds") or entry.record.get("train_seconds") or 0.0
        hours.setdefault(name, []).append(seconds / 3600)
    if not hours:
        return "No run is on record yet.\n"
    lines = ["| machine | runs | hours, training and evaluation |", "| :-- | --: | --: |"]
    lines += [f"| {name} | {len(spent)} | {sum(spent):,.1f} |" for name, spent in sorted(hours.items())]
    return "\n".join(lines) + "\n"
