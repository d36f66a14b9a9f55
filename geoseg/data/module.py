"""The one data module: every data set in, every task and method out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from geoseg.data.profiles import natural
from geoseg.data.sampling import Shared, Shares, Visits, choose_random, choose_representative, stratified
from geoseg.data.source import Source
from geoseg.palette import Palette, data_palette
from geoseg.quoting import typed


class Split(Dataset[dict[str, Any]]):
    """The samples of one split as tensors.

    Item ``i`` holds ``image`` float32 [C, H, W] in [0, 1], ``target`` int64 [*space], or float32 where it is
    continuous, ``name``, ``index`` and ``caption``.
    Samples are kept in memory once read, up to ``keep`` of them.
    """

    def __init__(self, source: Source, names: Sequence[str], keep: int = 1024) -> None:
        self.source, self.names, self.keep = source, list(names), keep
        self._read: dict[int, dict[str, Any]] = {}

    @property
    def repeats(self) -> list[int]:
        """How often an epoch meets each sample."""
        repeats: Callable[[str], int] = getattr(self.source, "repeats", lambda name: 1)
        return [repeats(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self._read:
            return self._read[index]
        sample = self.source.read(self.names[index])
        image = torch.from_numpy(np.array(sample.image)).float() / 255
        kind = np.float32 if sample.target.dtype.kind == "f" else np.int64
        item = {
            "image": image[None] if image.ndim == 2 else image.permute(2, 0, 1).contiguous(),
            "target": torch.from_numpy(sample.target.astype(kind)),
            "name": self.names[index],
            "index": index,
            "caption": sample.caption,
        }
        if len(self._read) < self.keep:
            self._read[index] = item
        return item


class SameShape(Sampler[list[int]]):
    """Batches of neighbours that have the same height and width, so that they can be stacked."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.batches: list[list[int]] = []
        last: tuple[int, int] | None = None
        for i, name in enumerate(split.names):
            shape = split.source.shape(name)
            if shape != last or len(self.batches[-1]) == batch_size:
                self.batches.append([])
            self.batches[-1].append(i)
            last = shape

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class DataModule(pl.LightningDataModule):
    """Splits a source, checks it, and feeds tasks and evaluations.

    Where the source prescribes splits they are kept; otherwise all names form one pool: training samples come from one
    end of an order that the seed decides, validation and test samples from the other, so that they stay the same when
    ``num_train`` changes. Without ``num_test`` all that is left is the test set. Where every sample has one class,
    classes alternate in that order, so that each split has its share of every class.

    Args:
        source: the data set.
        palette: K colours "#RRGGBB"; None takes the published facies colours, of a continuous source black and white.
        num_train: labelled samples used for training; None means all that num_val and num_test leave, and none where
            the source has samples for other splits alone, which is enough for methods that learn nothing.
        select: "random" (by seed), "representative" (class coverage) or a list of names.
        num_val: validation samples; None means all that the source prescribes, 0 where it prescribes none.
        num_test: test samples; None means all that are left.
        batch_size: images per batch in validation and test.
        workers: processes that read data beside training; 0 reads in the main process.
        seed: decides the choice and the order.
        root: where the source's files lie; only the source's own configuration looks at it, so that it is one short
            key, data.root.
        tolerances: classes that are a few pixels thin, such as faults, by name, each with the distance in pixels
            within which a pixel of it counts as found; None scores none in this way.
        published_batch: images per batch in the scores that were published for this data set, which are then counted
            beside the others; None counts none.
        published_flips: those scores also with every image followed by its mirror image.
        merge_threshold: below which divergence two attention maps of this data are of one region; only the
            configuration of methods that merge maps looks at it.

    Attributes:
        thin: the tolerance of every thin class, by its index.
        first: batches that a training which goes on has already met.
    """

    def __init__(
        self,
        source: Source,
        palette: Sequence[str] | None = None,
        num_train: int | None = 4,
        select: str | Sequence[str] = "random",
        num_val: int | None = None,
        num_test: int | None = None,
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        root: str | None = None,
        tolerances: Mapping[str, int] | None = None,
        published_batch: int | None = None,
        published_flips: bool = False,
        merge_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.thin = self._indexed(tolerances or {})
        if published_batch is not None and published_batch < 1:
            raise ValueError(f"data.published_batch must be 1 or more images, or null; got {published_batch}")
        self.published_batch, self.published_flips = published_batch, published_flips
        self.palette: Palette | None = None  # a corpus of captioned pictures has no classes
        if source.num_classes:
            self.palette = data_palette(palette, source.num_classes, self.continuous)
        if self.palette is not None and self.palette.num_classes != source.num_classes:
            raise ValueError(
                f"data.palette has {self.palette.num_classes} colours, the data set has {source.num_classes} classes "
                f"({', '.join(source.class_names)}); give one colour per class, or null for the standard colours"
            )
        self.num_train, self.select, self.num_val, self.num_test = num_train, select, num_val, num_test
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.names: dict[str, list[str]] = {}
        self._fingerprints: dict[str, str] = {}
        self.first = 0

    def _indexed(self, tolerances: Mapping[str, int]) -> dict[int, int]:
        """Tolerances by the index of their class."""
        names = list(self.source.class_names)
        for name, distance in tolerances.items():
            if name not in names:
                raise ValueError(
                    f"data.tolerances names the class {name!r}, which the data set does not have; its classes are "
                    f"{', '.join(names)}"
                )
            if isinstance(distance, bool) or not isinstance(distance, int) or distance < 0:
                raise ValueError(f"data.tolerances.{name}={distance}: a whole number of pixels is wanted, 0 or more")
        return {names.index(name): distance for name, distance in tolerances.items()}

    @property
    def num_classes(self) -> int:
        """K of the source."""
        return self.source.num_classes

    @property
    def continuous(self) -> bool:
        """Whether targets are shares of the second of two classes, as mattes and depth maps are."""
        return bool(getattr(self.source, "continuous", False))

    @property
    def per_image(self) -> bool:
        """Whether a sample has one class as a whole, and not one per pixel."""
        return bool(getattr(self.source, "per_image", False))

    def _ordered(self, names: list[str]) -> list[str]:
        """Samples in the order in which they are chosen."""
        if not self.per_image:
            return choose_random(names, len(names), self.seed)
        label_of: Callable[[str], int] = getattr(self.source, "label")  # noqa: B009 -- a source of whole images has it
        return stratified(names, [label_of(name) for name in names], self.seed)

    def prepare(self, train: bool = True) -> None:
        """Chooses the splits and checks every sample in them, before any work starts.

        Args:
            train: False chooses nothing to train or validate on, for methods that were trained elsewhere: the test set
                is the one that the source prescribes, else every sample there is.

        Raises:
            ValueError: too few samples, unknown names, or whatever the source finds wrong.
        """
        if self.names:
            return
        for option, count in (("num_val", self.num_val), ("num_test", self.num_test)):
            if count is not None and count < 0:
                raise ValueError(f"data.{option} must be 0 or more, or null; got {count}")
        pools: dict[str | None, list[str]] = {"train": [], "val": [], "test": [], None: []}
        for name in self.source.names:
            pools[self.source.split(name)].append(name)
        prescribed = any(pools[split] for split in ("train", "val", "test"))
        train_pool = pools["train"] if prescribed else pools[None]
        order = self._ordered(train_pool)
        held = 0 if prescribed else (self.num_val or 0) + (self.num_test or 0)
        nothing_to_learn = prescribed and not train_pool and self.num_train is None
        choose = train and not nothing_to_learn
        chosen = self._choose_train(train_pool, order, held) if choose else []
        if not train:
            val, test = [], pools["test"] if prescribed else train_pool
        elif prescribed:
            val, test = pools["val"], pools["test"]
        else:
            # from the far end of the order, so that they are the same however many train
            rest = [name for name in reversed(order) if name not in set(chosen)]
            val, left = rest[: self.num_val or 0], rest[self.num_val or 0 :]
            test = [name for name in train_pool if name in set(left)] if self.num_test is None else left
        self.names = {
            "train": chosen,
            "val": self._cut("num_val", self.num_val, val) if train else [],
            "test": self._cut("num_test", self.num_test, test),
        }
        self.source.check([name for names in self.names.values() for name in names])
        self.train, self.val, self.test = (Split(self.source, self.names[s]) for s in ("train", "val", "test"))

    def leave_out(self, names: Sequence[str]) -> None:
        """Takes samples out of the test set."""
        self.names["test"] = [name for name in self.names["test"] if name not in set(names)]
        self.test = Split(self.source, self.names["test"])
        self._fingerprints.pop("test", None)

    def fingerprint(self, *splits: str) -> str:
        """A hex digest of the content of the named splits and of who is in which."""
        self.prepare()
        digest = hashlib.sha256()
        for split in splits:
            if split not in self._fingerprints:  # it reads every file
                self._fingerprints[split] = self.source.fingerprint(self.names[split])
            digest.update(f"{split}:{self._fingerprints[split]};".encode())
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the whole run, in the shape that the task being trained asks for."""
        assert self.trainer is not None
        task: Any = self.trainer.lightning_module
        view = task.view(self.train, training=True)
        return self._loader(view, self.visits(task, self.first), pin_memory=torch.cuda.is_available())

    def state_dict(self) -> dict[str, Any]:
        """How far a training has come."""
        assert self.trainer is not None
        return {"first": self.trainer.fit_loop.total_batch_idx + 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after the batches that were met."""
        self.first = state_dict["first"]

    def visits(self, task: Any, first: int = 0) -> Visits:
        """Which samples each batch of a training holds, from batch ``first`` on; its length is that of the training."""
        fit = task.fit
        batches = None if fit.steps is None else fit.steps * fit.accumulate
        return Visits(
            len(self.train),
            fit.batch_size,
            fit.epochs * fit.repeats if batches is None else batches,  # a round has one batch at least
            self.seed,
            first,
            repeats=self.train.repeats,
            buckets=task.buckets(self.train),
            batches=batches,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches at fixed randomness; an empty list where there is nothing to validate on."""
        assert self.trainer is not None
        task: Any = self.trainer.lightning_module
        if not len(self.val):
            return []
        view = task.view(self.val, training=False)
        buckets = task.buckets(self.val)
        order = Visits(len(view), self.batch_size, task.fit.validation_visits, seed=0, buckets=buckets)
        return self._loader(view, order)

    def _loader(self, view: Dataset[Any], order: Visits, **more: Any) -> DataLoader[Any]:
        """Batches in this order; of several processes each takes its part of every batch."""
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return DataLoader(view, batch_sampler=order, num_workers=self.workers, **more)
        shares = Shares(order, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(Shared(view), batch_sampler=shares, num_workers=self.workers, **more)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test set's whole images."""
        return self.whole(self.test)

    def whole(self, split: Split) -> DataLoader[Any]:
        """Whole images, neighbours of one shape together."""
        return DataLoader(split, batch_sampler=SameShape(split, self.batch_size), num_workers=self.workers)

    def _choose_train(self, pool: list[str], order: list[str], held: int) -> list[str]:
        """Training samples: any of ``pool`` by name, else the first of its ``order`` but for the last ``held``."""
        if not isinstance(self.select, str):
            if not self.select:
                raise ValueError("data.select is an empty list; name at least one sample, or use random")
            select = [str(name) for name in self.select]  # the command line reads a name such as 7 as a number
            unknown = [name for name in select if name not in set(pool)]
            if unknown:
                read = any(not isinstance(name, str) for name in self.select)  # as a number, a list, a truth value
                line = typed(f"data.select=[{','.join(pool[:2])}]")
                raise ValueError(
                    f"data.select names {unknown[:10]}, which the data set does not have for training; "
                    f"it has {sorted(pool, key=natural)[:10]}{' ...' if len(pool) > 10 else ''}"
                    f"{f'; in quotes a name is taken as it stands: {line}' if read else ''}"
                )
            return select
        free = order[: len(order) - held]
        count = len(free) if self.num_train is None else self.num_train
        if count < 1 or count > len(free):
            kept = len(pool) - len(free)
            beside = f" beside the {kept} that data.num_val and data.num_test take" if kept else ""
            raise ValueError(
                f"data.num_train={count}, but {len(free)} labelled samples are there to choose from{beside}; "
                + (
                    f"ask for 1 to {len(free)}, or null for all of them"
                    if free
                    else "lower these"
                    if kept
                    else "change the splits in data.source"
                )
            )
        if self.select == "random":
            return free[:count]
        if self.select == "representative":
            return choose_representative(self.source, [name for name in pool if name in set(free)], count, self.seed)
        raise ValueError(f"data.select must be random, representative or a list of names, got {self.select!r}")

    @staticmethod
    def _cut(option: str, count: int | None, names: list[str]) -> list[str]:
        if count is None:
            return names
        if count > len(names):
            raise ValueError(f"data.{option}={count}, but only {len(names)} samples are left for it; ask for fewer")
        return names[:count]
