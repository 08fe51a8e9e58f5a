"""ResNet50: "Standard" on D_tr, then fine-tuned on D_aug; torchreid's model, engine and loaders.

Every stage runs a stated number of iterations with its own restarted schedule (linear warm-up,
then a cosine to zero), random flip and crop, and is tested once, after its last iteration.
Stages differ in nothing but their training list and the weights that they start from.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pidm_core import (
    BAD_DATA,
    Record,
    UserError,
    place,
    read_market1501,
    sha256,
    track,
)
from pidm_reid import compat, retrieval
from pidm_reid.config import NetworkConfig, Stage
from pidm_reid.dataset import REAL, SYNTHETIC, Item, check_images, entries
from pidm_reid.folder import GALLERY, QUERY, person
from pidm_reid.plan import shuffled
from pidm_reid.pool import Pool, fresh_each_epoch
from pidm_reid.small_maps import by_products
from pidm_reid.unfinished import Unfinished, digest
from pidm_reid.weights import State, backbone, describe_weights, first_weights_file

NETWORK = "resnet50"
MEASURED_PEOPLE = 100
torchreid = compat.torchreid()
_SoftmaxEngine: Any = torchreid.engine.ImageSoftmaxEngine
_ImageDataset: Any = torchreid.data.ImageDataset


@dataclass(frozen=True)
class TestSet:
    """Query and gallery, without junk."""

    query: list[Record]
    gallery: list[Record]
    junk: int  # images of identity -1 that were dropped


@dataclass(frozen=True)
class Result:
    """A trained and tested network in figures."""

    ranking: retrieval.Ranking
    images: int  # entries of the training list
    people: int
    steps: int
    loss: float  # mean of the last tenth of the iterations
    accuracy: float  # on the training batches of the last tenth, 0 ... 1
    train_seconds: float  # if it was cut off, without what was lost
    test_seconds: float
    images_per_s: float  # while training
    weights: str  # "from scratch", a file or "Standard"
    precision: str
    fresh_images: int = 0  # different synthetic images shown on the fly
    fresh_seconds: float = 0.0  # of train_seconds, spent on making them
    reranked: retrieval.Ranking | None = None  # the same features with k-reciprocal re-ranking


# ---------------------------------------------------------------- the engine


class FastSoftmaxEngine(_SoftmaxEngine):  # type: ignore[misc]
    """torchreid's softmax engine with channels_last, bf16 autocast and a schedule by iteration."""

    def __init__(self, manager: Any, model: torch.nn.Module, *, bf16: bool, **options: Any) -> None:
        super().__init__(manager, model, **options)
        self.device = torch.device("cuda" if self.use_gpu else "cpu")
        self.bf16 = bf16
        self.model.to(self.device, memory_format=torch.channels_last)
        by_products(self.model)

    def autocast(self) -> torch.autocast:
        """bf16 where the network runs; the weights and the loss stay fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def forward_backward(self, data: Any) -> dict[str, float]:
        """One iteration; loss, and accuracy in per cent, as torchreid returns them."""
        images, pids = self.parse_data_for_train(data)
        images = images.to(self.device, memory_format=torch.channels_last)
        pids = pids.to(self.device)
        with self.autocast():
            outputs = self.model(images)
        loss = self.compute_loss(self.criterion, outputs.float(), pids)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        accuracy = torchreid.metrics.accuracy(outputs, pids)[0]
        return {"loss": loss.item(), "acc": accuracy.item()}

    def extract_features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 2048), float32."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), self.autocast():
            features: torch.Tensor = self.model(images)
        return features.float()


def iterate(
    engine: FastSoftmaxEngine, steps: int, *, before: Callable[[], object] = lambda: None
) -> Iterator[dict[str, float]]:
    """Train for `steps` iterations, over as many epochs as it takes; yields each one's figures.

    before: called before each epoch.
    """
    engine.set_model_mode("train")
    done = 0
    while done < steps:
        before()
        for data in engine.train_loader:
            yield engine.forward_backward(data)
            done += 1
            if done == steps:
                return
        engine.epoch += 1


# ---------------------------------------------------------------- one stage


@dataclass(frozen=True)
class How:
    """What may differ between two trainings on the same list."""

    erasing: bool = False  # random erasing beside random flip and crop
    half_real: bool = False  # every batch half real, half synthetic (RandomDatasetSampler)
    real_last: float = 0.0  # share of the iterations, at the end, on the real images alone
    fresh: bool = False  # the synthetic images lie in a pool: others in every epoch


def train_and_test(
    train: Sequence[Item],
    test: TestSet,
    *,
    config: NetworkConfig,
    stage: Stage,
    seed: int,
    start: State | None = None,
    how: How | None = None,
    rerank: bool = False,
    keep: Path | None = None,
    label: str = "ResNet50",
) -> tuple[State, Result]:
    """Train from `start` (None: a file's or random weights) and test; (weights, figures).

    The same arguments give the same weights on the same machine with the same thread count.
    keep: file from which a training that was cut off goes on, and that stays when it has ended;
    with fresh images it begins anew.
    """
    _check_people(train, test)
    _check_test(test, rerank=rerank)
    begin = time.perf_counter()
    done = _train(
        train, test, config=config, stage=stage, seed=seed, start=start, how=how or How(),
        keep=keep, label=label,
    )  # fmt: skip
    trained = time.perf_counter()
    train_seconds = done.seconds_before + trained - begin
    features = embed_test(done.engine)
    ranking = rank(features, test)
    tail = done.history[-max(1, stage.steps // 10) :]
    result = Result(
        ranking=ranking,
        images=len(train),
        people=done.engine.datamanager.num_train_pids,
        steps=stage.steps,
        loss=float(np.mean([figures["loss"] for figures in tail])),
        accuracy=float(np.mean([figures["acc"] for figures in tail])) / 100,
        train_seconds=train_seconds,
        test_seconds=time.perf_counter() - trained,
        images_per_s=stage.steps * config.batch_size / train_seconds,
        weights=done.weights,
        fresh_images=sum(pool.distinct_images for pool in done.pools),
        fresh_seconds=sum(pool.wait_seconds for pool in done.pools),
        precision="bf16" if done.engine.bf16 else "fp32",
        reranked=rank(features, test, by=retrieval.rerank) if rerank else None,
    )
    return {name: value.cpu() for name, value in done.engine.model.state_dict().items()}, result


def train_and_embed(
    train: Sequence[Item],
    images: Sequence[Record],
    *,
    config: NetworkConfig,
    stage: Stage,
    seed: int,
    label: str,
) -> np.ndarray:
    """Train from the first weights; features (N, 2048) of other images by that network."""
    check_images(str(record.path) for record in images)
    both = TestSet(list(images[:1]), list(images), 0)  # torchreid wants a query
    done = _train(
        train, both, config=config, stage=stage, seed=seed, start=None, how=How(), keep=None,
        label=label,
    )  # fmt: skip
    return embed_test(done.engine)[1]


def embed(
    train: Iterable[Path], images: Sequence[Record], *, network: State, config: NetworkConfig
) -> np.ndarray:
    """Features (N, 2048) of images by a network that was trained on the people of `train`."""
    check_images(str(record.path) for record in images)
    both = TestSet(list(images[:1]), list(images), 0)  # torchreid wants a query
    manager = make_manager(train_list(train), both, config=config)
    model, _ = _make_model(manager.num_train_pids, config=config, start=network)
    return embed_test(_make_engine(manager, model, config=config, stage=Stage()))[1]


@dataclass(frozen=True)
class _Trained:
    engine: FastSoftmaxEngine
    history: list[dict[str, float]]  # the figures of every iteration
    weights: str  # what they began as
    pools: list[Pool]
    seconds_before: float  # that it had taken when it was taken up again


def _train(
    train: Sequence[Item],
    test: TestSet,
    *,
    config: NetworkConfig,
    stage: Stage,
    seed: int,
    start: State | None,
    how: How,
    keep: Path | None,
    label: str,
) -> _Trained:
    check_images({item[0] for item in train})
    torchreid.utils.set_random_seed(seed)
    manager = make_manager(train, test, config=config, how=how)
    pools = fresh_each_epoch(manager) if how.fresh else []
    model, weights = _make_model(manager.num_train_pids, config=config, start=start)
    engine = _make_engine(manager, model, config=config, stage=stage)
    last = min(round(how.real_last * stage.steps), stage.steps - 1)
    if how.fresh:  # the pools would have to go on as well
        keep = None
    unfinished = Unfinished(
        keep,
        {
            "input": [config.height, config.width, config.batch_size, engine.bf16],
            "hardware": [engine.device.type, config.workers, torch.__version__],
            "stage": asdict(stage),
            "seed": seed,
            "how": asdict(how),
            "images": _contents(train) if keep else "",
            "start": digest(start) if start else weights,
        },
    )
    history = unfinished.resume(engine)
    try:
        _run(engine, stage.steps - last, history, unfinished, label=label, batch=config.batch_size)
    finally:
        for pool in pools:
            pool.close()
    if last:
        real = [item for item in train if item[3] == REAL]
        engine.train_loader = make_manager(
            real, test, config=config, how=replace(how, half_real=False)
        ).train_loader
        label += ", real images"
        _run(engine, stage.steps, history, unfinished, label=label, batch=config.batch_size)
    unfinished.keep(engine, history, end=True)
    return _Trained(engine, history, weights, pools, unfinished.seconds_before)


def _contents(train: Sequence[Item]) -> str:
    """A hash of the images, by what is in them, and of what is said of them."""
    content = {path: sha256(Path(path)) for path in {item[0] for item in train}}
    return str(sha256(repr([(content[path], *who) for path, *who in train]).encode()))


def _run(
    engine: FastSoftmaxEngine,
    end: int,
    history: list[dict[str, float]],
    unfinished: Unfinished,
    *,
    label: str,
    batch: int,
) -> None:
    """Train until `history` has the figures of `end` iterations."""
    iterations = iterate(
        engine, end - len(history), before=lambda: unfinished.begin_epoch(engine, history)
    )
    try:
        for figures in track(
            iterations, total=end * batch, label=label, unit="images", each=batch,
            at=lambda _: (len(history) + 1) * batch,
        ):  # fmt: skip
            if not math.isfinite(loss := figures["loss"]):
                raise UserError(
                    f"{label}: the loss is {loss} at iteration {len(history)}; lower lr"
                )
            history.append(figures)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{label}: {unfinished.kept()}") from None


def make_manager(
    train: Sequence[Item], test: TestSet, *, config: NetworkConfig, how: How | None = None
) -> Any:
    """torchreid's ImageDataManager over lists of images."""
    how = how or How()
    check_batch(len(train), config)
    if how.half_real:
        counts = Counter(item[3] for item in train)
        check_halves(counts[REAL], counts[SYNTHETIC], config.batch_size)
    use_gpu = torch.cuda.is_available()
    with compat.registered(_listed(train, test)) as name, compat.quiet():
        manager = torchreid.data.ImageDataManager(
            sources=name,
            height=config.height,
            width=config.width,
            transforms=["random_flip", "random_crop"] + ["random_erase"] * how.erasing,
            use_gpu=use_gpu,
            batch_size_train=config.batch_size,
            batch_size_test=100,
            workers=config.workers if config.workers >= 0 else 8 * use_gpu,
            train_sampler="RandomDatasetSampler" if how.half_real else "RandomSampler",
            num_datasets=2,
        )
    return manager


def check_batch(images: int, config: NetworkConfig, what: str = "training images") -> None:
    """Refuse a set too small for one batch, of which torchreid would train nothing, silently."""
    if images < config.batch_size:
        raise UserError(
            f"{images} {what} are fewer than one batch of {config.batch_size}; give a smaller "
            "--batch-size (of reproduce_table --student.batch-size)"
        )


def check_halves(real: int, synthetic: int, batch_size: int) -> None:
    """torchreid's sampler asserts on an odd batch, and fails late on too short a half."""
    if batch_size % 2:
        raise UserError(f"half_real: batch_size {batch_size} is odd")
    for count, name in ((real, "real"), (synthetic, "synthetic")):
        if count < batch_size // 2:
            raise UserError(f"half_real: {count} {name} images do not fill half a batch")


def _listed(train: Sequence[Item], test: TestSet) -> type[Any]:
    def tuples(records: Iterable[Record]) -> list[Item]:
        return [(str(r.path), r.pid, r.camid - 1, 0) for r in records]

    class Listed(_ImageDataset):  # type: ignore[misc]
        def __init__(self, root: str = "", **options: Any) -> None:
            super().__init__(list(train), tuples(test.query), tuples(test.gallery), **options)

    return Listed


def _make_engine(
    manager: Any, model: torch.nn.Module, *, config: NetworkConfig, stage: Stage
) -> FastSoftmaxEngine:
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=stage.lr,
        betas=(0.9, 0.99),  # torchreid's
        weight_decay=stage.weight_decay,
        amsgrad=True,
        fused=True,
    )

    def factor(step: int) -> float:
        if step < stage.warmup_steps:
            return (step + 1) / stage.warmup_steps
        return 0.5 + 0.5 * math.cos(
            math.pi * (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
        )

    return FastSoftmaxEngine(
        manager,
        model,
        bf16=place(config.precision).dtype == torch.bfloat16,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        use_gpu=manager.use_gpu,
        label_smooth=stage.label_smooth,
    )


def _make_model(
    people: int, *, config: NetworkConfig, start: State | None
) -> tuple[torch.nn.Module, str]:
    model = torchreid.models.build_model(NETWORK, people, loss="softmax", pretrained=False)
    if start is not None:
        model.load_state_dict(start)
        return model, "Standard"
    if path := first_weights_file(config.weights):
        model.load_state_dict({**model.state_dict(), **backbone(path, model)})
    return model, describe_weights(config.weights)


def measure_speed(config: NetworkConfig) -> float:
    """Training images a second on this machine, from three iterations on noise."""
    loaders = {"train_loader": [], "test_loader": {}, "num_train_pids": MEASURED_PEOPLE}
    manager = SimpleNamespace(**loaders, use_gpu=torch.cuda.is_available())
    model = torchreid.models.build_model(NETWORK, MEASURED_PEOPLE, loss="softmax", pretrained=False)
    engine = _make_engine(manager, model, config=config, stage=Stage())
    engine.set_model_mode("train")
    noise = torch.randn(config.batch_size, 3, config.height, config.width)
    batch = {"img": noise, "pid": torch.arange(config.batch_size) % MEASURED_PEOPLE}
    engine.forward_backward(batch)  # the first is slower
    begin = time.perf_counter()
    for _ in range(2):
        engine.forward_backward(batch)
    return 2 * config.batch_size / (time.perf_counter() - begin)


# ---------------------------------------------------------------- testing


def read_test(root: str | Path) -> TestSet:
    """Query and gallery of a Market-1501 root; UserError if there are synthetic images in them."""
    both = [read_market1501(root, subset) for subset in (QUERY, GALLERY)]
    for records, what in zip(both, (QUERY, GALLERY), strict=True):
        retrieval.check_names((record.name for record in records), f"{root}: {what}")
    query, gallery = ([r for r in records if r.pid != retrieval.JUNK] for records in both)
    return TestSet(query, gallery, sum(map(len, both)) - len(query) - len(gallery))


def embed_test(engine: FastSoftmaxEngine) -> tuple[np.ndarray, np.ndarray]:
    """Features of query (Q, 2048) and gallery (G, 2048) by the engine's network."""
    engine.set_model_mode("eval")
    (loaders,) = engine.test_loader.values()
    query, gallery = (_features(engine, loaders[side]) for side in ("query", "gallery"))
    return query, gallery


def rank(
    features: tuple[np.ndarray, np.ndarray],
    test: TestSet,
    *,
    by: Callable[..., retrieval.Ranking] = retrieval.evaluate,
) -> retrieval.Ranking:
    """Rank the gallery for every query."""
    ranking = by(
        *features,
        query_pids=np.array([record.pid for record in test.query]),
        gallery_pids=np.array([record.pid for record in test.gallery]),
        query_camids=np.array([record.camid for record in test.query]),
        gallery_camids=np.array([record.camid for record in test.gallery]),
    )
    return replace(ranking, junk=test.junk)


def _features(engine: FastSoftmaxEngine, loader: Any) -> np.ndarray:
    batches = [engine.extract_features(engine.parse_data_for_eval(data)[0]) for data in loader]
    features: np.ndarray = torch.cat(batches).cpu().numpy()
    return features


def _check_people(train: Sequence[Item], test: TestSet) -> None:
    tested = {record.pid for record in test.query}
    if both := {person(Path(item[0]).name)[0] for item in train} & tested:
        raise UserError(
            f"{len(both)} people, such as {min(both)}, are in the training set and in the query; "
            "a score on them says nothing",
            BAD_DATA,
        )


def _check_test(test: TestSet, *, rerank: bool) -> None:
    """Refuse now what could not be tested after hours of training."""
    check_images(str(record.path) for record in (*test.query, *test.gallery))
    query, gallery = ([(r.pid, r.camid) for r in side] for side in (test.query, test.gallery))
    retrieval.refuse_unmatched(query, gallery)
    if rerank:
        retrieval.refuse_large(len(query), len(gallery))


# ---------------------------------------------------------------- training lists


def train_list(real: Iterable[Path], synthetic: Iterable[Path] = ()) -> list[Item]:
    """torchreid's training tuples of D_tr, or of D_aug when there are synthetic images."""
    return entries([str(path) for path in real], [str(path) for path in synthetic])


def repeated(items: Sequence[Item], length: int, *, seed: int) -> list[Item]:
    """The list repeated to exactly `length` entries; which ones come once more is drawn."""
    times, more = divmod(length, len(items))
    return [*items] * times + shuffled(items, seed=seed, key=lambda item: Path(item[0]).name)[:more]
