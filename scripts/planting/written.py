"""Bugs written by hand."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from planting.drawing import function_at
from planting.rooms import test_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class WrittenBug:
    """A mistake: what it breaks, where, and which test files must notice it."""

    name: str
    path: str
    old: str
    """Stands in the file exactly once."""
    new: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Why it cannot be planted any more, None where it can."""
        file = root / self.path
        if not file.is_file():
            return f"{self.name}: {self.path} is not there"
        times = file.read_text(encoding="utf-8").count(self.old)
        if times != 1:
            return f"{self.name}: its text occurs {times} times in {self.path}"
        try:
            ast.parse(self.applied(root))
        except SyntaxError as error:
            return f"{self.name}: what it makes of {self.path} is not Python ({error})"
        if lost := [test for test in self.tests if not (root / test).is_file()]:
            return f"{self.name}: {lost[0]} is not there"
        return None

    def applied(self, root: Path) -> bytes:
        """The file's content with the bug in it."""
        return (root / self.path).read_text(encoding="utf-8").replace(self.old, self.new).encode()

    def function(self, root: Path) -> str:
        """The function that it stands in."""
        text = (root / self.path).read_text(encoding="utf-8")
        place = text.index(self.old)
        return function_at(ast.parse(text), text.count("\n", 0, place) + 1 + _same(self.old, self.new).count("\n"))


def _same(old: str, new: str) -> str:
    """What the two begin with."""
    length = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return old[:length]


def _bug(name: str, path: str, old: str, new: str, tests: str) -> WrittenBug:
    return WrittenBug(name, path, old, new, tuple(test_file(test, ROOT) for test in tests.split()))


BUGS: tuple[WrittenBug, ...] = (
    # sources, columns, labels
    _bug(
        "Two columns that could both be the label and disagree are not compared: one is taken.",
        "builders/sources/columns.py",
        "    _check_agreement(columns, variant, best, [one for one in coded if one is not best])\n",
        "",
        "tables_people_bring",
    ),
    _bug(
        "A row labelled -1, which has no label, gets the last class.",
        "builders/sources/columns.py",
        "    return pc.if_else(pc.equal(array, -1), pa.scalar(None, pa.int64()), array)",
        "    return array",
        "tables_people_bring sources",
    ),
    _bug(
        "A repository's numbers are believed although 60 % of their names are unknown.",
        "builders/sources/rows.py",
        "known.count(None) <= 0.1 * len(names)",
        "known.count(None) <= 0.6 * len(names)",
        "sources",
    ),
    _bug(
        "Labels that match no variant: those of the variant that fits worst are listed.",
        "hfsyn/judging/sets/tables.py",
        "fewest = min(missing, key=len)",
        "fewest = max(missing, key=len)",
        "tables_people_bring references",
    ),
    # decoding
    _bug(
        "Photographs that were taken upright are turned upside down.",
        "builders/images/decoding.py",
        "TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90",
        "TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270",
        "images image_files_people_bring",
    ),
    _bug(
        "A photograph of which half is missing counts as whole, its rest grey.",
        "builders/images/decoding.py",
        "ImageFile.LOAD_TRUNCATED_IMAGES = False",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "images image_files_people_bring",
    ),
    # claims, shards, plan
    _bug(
        "A shard that was finished between the look and the lock is made again.",
        "hfsyn/runs/claims.py",
        "            if not arrived(path):\n                return claim",
        "            if claim is not None:\n                return claim",
        "claims",
    ),
    _bug(
        "Two processes claim one shard: the lock is a shared one.",
        "hfsyn/runs/claims.py",
        "fcntl.LOCK_SH if shared else fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        "claims",
    ),
    _bug(
        "A file gets its name before it is on the disk.",
        "builders/files.py",
        "            os.fsync(handle.fileno())",
        "            handle.fileno()",
        "shards disk_errors",
    ),
    _bug(
        "A shard with one byte changed is as its sidecar says.",
        "hfsyn/runs/shards.py",
        "if path.stat().st_size != sidecar.bytes or sha256_of(path) != sidecar.sha256:",
        "if path.stat().st_size != sidecar.bytes:",
        "shards damaged_runs",
    ),
    _bug(
        "The plan forgets the seeds of single classes.",
        "hfsyn/runs/specs.py",
        "seed=seed_of(self._recipe.seed_for(info.wnid), sample_id),",
        "seed=seed_of(self._recipe.seed, sample_id),",
        "specs stages",
    ),
    _bug(
        "A retry forgets the seeds of single classes.",
        "hfsyn/images/production.py",
        "seed_of(self._recipe.seed_for(spec.wnid), spec.sample_id, attempt)",
        "seed_of(self._recipe.seed, spec.sample_id, attempt)",
        "stages production",
    ),
    _bug(
        "A sentence that does not name its class becomes a prompt without it.",
        "hfsyn/recipes/strategies.py",
        "return text if c.name.casefold() in text.casefold() else _join(c.name, text)",
        "return text or c.name",
        "prompts text_writer",
    ),
    # what is drawn
    _bug(
        "An image that was flagged, and drawn again, is not said to have been.",
        "hfsyn/images/production.py",
        'safety = image.problem == "safety" or (before is not None and before.safety)',
        'safety = image.problem == "safety"',
        "stages production",
    ),
    _bug(
        "Where memory runs out, the first captions of a batch are given to its last images, too.",
        "hfsyn/captions/caption_stage.py",
        "self.tally.asked(partial(_answers, batch, self._texts, size), left[:size])",
        "self.tally.asked(partial(_answers, batch, self._texts, size), batch.seen[:size])",
        "stages captioner reading production",
    ),
    _bug(
        "Guidance that is to begin later is there from the first step on.",
        "hfsyn/images/guidance.py",
        "start * whole <= at < stop * whole",
        "at < stop * whole",
        "guidance production",
    ),
    _bug(
        "Where guidance ends, what it steered away from stays, and what it steered towards goes.",
        "hfsyn/images/guidance.py",
        "value[rows:]",
        "value[:rows]",
        "guidance production",
    ),
    _bug(
        "Entropy guidance steers towards what the classifier is sure of.",
        "hfsyn/images/entropy.py",
        "step = -part.entropy_weight",
        "step = part.entropy_weight",
        "entropy_guidance",
    ),
    _bug(
        "The classifier that steers is in training, and mixes the images of a batch.",
        "hfsyn/images/entropy.py",
        "classifier.network\n",
        "classifier.network.train()\n",
        "entropy_guidance",
    ),
    _bug(
        "Of images that are steered in parts each part is told the first prompts.",
        "hfsyn/images/entropy.py",
        "return told[rows] if hasattr",
        "return told[: len(rows)] if hasattr",
        "entropy_guidance",
    ),
    _bug(
        "A classifier of other means and deviations is the same one.",
        "hfsyn/judging/steering.py",
        "[*facts, asdict(classifier.preprocessing)]",
        "facts",
        "entropy_guidance",
    ),
    _bug(
        "Of each photograph the middle is shown as all of its crops.",
        "hfsyn/tuning/examples.py",
        "loss.fit(image, at)",
        "loss.fit(image)",
        "tuning",
    ),
    _bug(
        "What the device still has is not waited for before a smaller batch is tried.",
        "hfsyn/images/tuning.py",
        "        settle()\n        release_memory()",
        "        release_memory()",
        "production",
    ),
    _bug(
        "A prompt that just fits is said to be cut off.",
        "hfsyn/images/production.py",
        '"truncated": count > max_tokens',
        '"truncated": count >= max_tokens',
        "stages",
    ),
    _bug(
        "A sidecar does not say with which batches its images were drawn.",
        "hfsyn/runs/stage.py",
        "                grid=tuple(grid),",
        "                grid=(),",
        "production stages",
    ),
    _bug(
        "An open revision of a LoRA is not filled in when a run continues.",
        "hfsyn/runs/pins.py",
        '    ("generate", "lora_revision"): ("lora", "lora_file"),\n',
        "",
        "pins",
    ),
    # run folder and publication
    _bug(
        "A manifest that somebody has altered is believed.",
        "builders/runs/layout.py",
        "if raw != sealed(raw):",
        "if not sealed(raw):",
        "verification damaged_runs",
    ),
    _bug(
        "A version is tagged without a look at what the Hub has.",
        "hfsyn/publishing/publication.py",
        "    read_back(job, commit)\n",
        "",
        "reading_back",
    ),
    _bug(
        "The first row read back may be any row with the same columns.",
        "hfsyn/publishing/reading_back.py",
        "    if theirs != mine:",
        "    if theirs.keys() != mine.keys():",
        "reading_back",
    ),
    _bug(
        "Shards of an older version stay beside those of the new one.",
        "hfsyn/publishing/job.py",
        "        return sorted(state.owned(self.config_name) - self.files.keys())",
        "        return []",
        "publication",
    ),
    _bug(
        "A fine-grained token that may write to somebody else's repository passes for one that may write here.",
        "hfsyn/hub/rights.py",
        'write |= mine and "repo.write" in permissions',
        'write |= "repo.write" in permissions',
        "rights",
    ),
    _bug(
        "A gateway that times out is not asked again.",
        "builders/hub.py",
        "500, 502, 503, 504})",
        "500, 502, 503})",
        "access",
    ),
    _bug(
        "A caption with a link in it makes a link in the card.",
        "hfsyn/cards/text.py",
        r'r"[&<>|`*\[\]~\\$@^]|',
        r'r"[&<>|`*~\\$@^]|',
        "cards publication",
    ),
    _bug(
        "Versions are sorted as texts: 1.10.0 comes before 1.9.0.",
        "hfsyn/hub/versions.py",
        'sorted(parse_version(tag) for tag in tags if tag.startswith("v") and _FORM.fullmatch(tag))',
        'sorted((parse_version(tag) for tag in tags if tag.startswith("v") and _FORM.fullmatch(tag)), key=str)',
        "versions publication",
    ),
    _bug(
        "A row that is there twice verifies.",
        "hfsyn/checks/verify.py",
        "        if order <= before:",
        "        if order < before:",
        "verification",
    ),
    _bug(
        "A sample behind a line that was set aside is made again in the wrong batch.",
        "hfsyn/checks/reproduce.py",
        "ids.index(sample_id) + aside",
        "ids.index(sample_id)",
        "production reproduction verification",
    ),
    # judging
    _bug(
        "Gradients of earlier steps are added to those of each step.",
        "hfsyn/judging/train/loop.py",
        "                        optimizer.zero_grad()\n",
        "",
        "training",
    ),
    _bug(
        "The average of the weights begins from nothing where a training goes on.",
        "hfsyn/judging/train/loop.py",
        "            accelerator.register_for_checkpointing(average)",
        "            accelerator.wait_for_everyone()",
        "training",
    ),
    _bug(
        "A set with some of the classes is judged among all of them alone.",
        "hfsyn/judging/measures/evaluate.py",
        "mask = np.array(columns) if len(columns) < len(classifier.wnids) else None",
        "mask = None",
        "evaluation",
    ),
    _bug(
        "The calibration among a set's classes is that among all classes.",
        "hfsyn/judging/measures/metrics.py",
        "confidence[rows] = softmax(part).max(1)",
        "confidence[rows] = softmax(logits[rows]).max(1)",
        "metrics",
    ),
    _bug(
        "Differences of two arms have the wrong sign.",
        "hfsyn/judging/bench/summaries.py",
        "for b, a in itertools.combinations(by_arm, 2)",
        "for a, b in itertools.combinations(by_arm, 2)",
        "benchmarking pages",
    ),
    _bug(
        "One id with two names in two sets passes for one class.",
        "hfsyn/judging/sets/shared.py",
        "if spelling(known) != spelling(name) and not is_wnid(identity):",
        "if not identity:",
        "names_people_give references",
    ),
    _bug(
        "Each image is its own near duplicate.",
        "hfsyn/judging/sets/copies.py",
        "            best[torch.arange(len(numbers)), numbers] = -2.0\n",
        "            pass\n",
        "fidelity",
    ),
    _bug(
        "The attack's threshold is chosen on the images that it is judged on.",
        "hfsyn/judging/measures/membership.py",
        "threshold = best_threshold(tuned_in, tuned_out)",
        "threshold = best_threshold(judged_in, judged_out)",
        "membership",
    ),
    _bug(
        "Images of equal length pass for the same image.",
        "hfsyn/judging/sets/shared.py",
        "found.update(mine.get(sha256(a.images[number]).digest(), ()))",
        "found.update(number for group in mine.values() for number in group)",
        "references",
    ),
)
