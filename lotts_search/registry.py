"""Find models, strategies, verifiers, metrics and rewriters by name. Nothing is imported before it is used.

Other packages register theirs through entry points of the groups ``lotts_search.strategies``,
``lotts_search.verifiers``, ``lotts_search.metrics``, ``lotts_search.rewriters`` and ``lotts_search.families``. An
unregistered strategy, verifier, metric or rewriter is named as ``package.module:Class``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from lotts_search import fingerprint
from lotts_search.backbones.base import Backbone
from lotts_search.backbones.defaults import pipeline_of
from lotts_search.backbones.image_size import image_size
from lotts_search.backbones.single_file import refuse_file
from lotts_search.core.strategy import Strategy
from lotts_search.errors import BadInput, Failure, LottsError, unknown
from lotts_search.plugins import Entry, misnamed, refuse_lacking, resolve, target_of, with_plugins
from lotts_search.rewriters.base import PromptRewriter, check_rewriter
from lotts_search.settings import Setting, arguments, build, describe, describe_arguments
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.environments.hosted import load_hosted
from lotts_search.verifiers.environments.recipe import recipe_of
from lotts_search.verifiers.metric import Metric
from lotts_search.verifiers.spec import SOURCES, VerifierSpec
from lotts_search.work.masks import mask_kind

PLACEMENT = ("device", "offload", "spread", "vae_slicing", "compile", "channels_last")
"""Load options that say where and how fast a model runs, and leave its images as they are."""


@dataclass(frozen=True)
class StrategyInfo:
    """Description of a strategy, a mask source, a verifier or a rewriter.

    Attributes:
        name: registered name or ``package.module:Class``.
        summary: first line of the docstring.
        doc: the docstring without its ``Attributes:``.
        settings: its fields.
        source: the paper that a strategy comes from; class and method of a mask source.
        formula: its cost.
    """

    name: str
    summary: str
    doc: str
    settings: list[Setting]
    source: str = ""
    formula: str = ""


_EMBEDDED = Path(__file__).parent / "shapes" / "models"
_MODELS = [
    Entry(
        "shapes-sd",
        str(_EMBEDDED / "shapes-sd"),
        "Embedded Stable Diffusion: 64×64 scenes with nine places; needs no download and no GPU.",
    ),
    Entry("shapes-sdxl", str(_EMBEDDED / "shapes-sdxl"), "Embedded SDXL: the same scenes, two text encoders."),
    Entry(
        "shapes-flux",
        str(_EMBEDDED / "shapes-flux"),
        "Embedded FLUX: the same scenes, a transformer with rectified flow.",
    ),
]
_STRATEGIES = [
    Entry("resampling", "lotts_search.strategies.resampling:Resampling", "Draw one sample, without selection."),
    Entry(
        "more-steps", "lotts_search.strategies.more_steps:MoreSteps", "Spend the whole budget on one longer trajectory."
    ),
    Entry(
        "best-of-n",
        "lotts_search.strategies.best_of_n:BestOfN",
        "Draw independent samples; the verifier picks the best.",
    ),
    Entry("lotts", "lotts_search.strategies.lotts:LoTTS", "Locate the defects of samples and resample only those."),
    Entry(
        "adaptive-lotts",
        "lotts_search.strategies.adaptive_lotts:AdaptiveLoTTS",
        "LoTTS that decides during the search what to try next and when to stop.",
    ),
    Entry(
        "mosaic",
        "lotts_search.strategies.mosaic:Mosaic",
        "At each step continue in every region with its best child's noise.",
    ),
    Entry(
        "adaptive-mosaic",
        "lotts_search.strategies.adaptive_mosaic:AdaptiveMosaic",
        "mosaic for new images, adaptive-lotts for what comes next; recommended.",
    ),
    Entry("random-search", "lotts_search.strategies.random_search:RandomSearch", "Best-of-N in growing rounds."),
    Entry("zero-order", "lotts_search.strategies.zero_order:ZeroOrder", "Move the start noise to better neighbours."),
    Entry(
        "search-over-paths",
        "lotts_search.strategies.search_over_paths:SearchOverPaths",
        "Re-noise the best images and denoise them along other paths.",
    ),
    Entry(
        "evolutionary",
        "lotts_search.strategies.evolutionary:Evolutionary",
        "Evolve start noises by selection and mutation.",
    ),
    Entry(
        "spectral-evolution",
        "lotts_search.strategies.spectral_evolution:SpectralEvolution",
        "Evolve the low frequencies of the start noise by the cross-entropy method.",
    ),
    Entry(
        "particle",
        "lotts_search.strategies.particle:Particle",
        "Feynman-Kac steering: resample a population of particles.",
    ),
    Entry(
        "partial-refinement",
        "lotts_search.strategies.partial_refinement:PartialRefinement",
        "Resample random regions again and again; no verifier chooses.",
    ),
    Entry(
        "successive-halving",
        "lotts_search.strategies.successive_halving:SuccessiveHalving",
        "Begin many samples and end the worse half at checkpoints.",
    ),
    Entry(
        "critique",
        "lotts_search.strategies.critique:Critique",
        "A critic revises the prompt and the located region is resampled with it.",
    ),
    Entry("beam-in-mask", "lotts_search.strategies.beam_in_mask:BeamInMask", "Beam search inside the located mask."),
    Entry("svdd", "lotts_search.strategies.svdd:SVDD", "Branch at every step and keep the best child."),
    Entry(
        "tree-search",
        "lotts_search.strategies.tree_search:DiffusionTreeSearch",
        "Monte Carlo tree search over the denoising steps.",
    ),
    Entry(
        "rollover-budget",
        "lotts_search.strategies.rollover_budget:RolloverBudget",
        "Draw children one by one at each step; unused quotas roll over.",
    ),
    Entry(
        "verifier-threshold",
        "lotts_search.strategies.verifier_threshold:VerifierThreshold",
        "Draw children at each step until one scores above a threshold.",
    ),
    Entry(
        "epsilon-greedy",
        "lotts_search.strategies.epsilon_greedy:EpsilonGreedy",
        "Search for each step's noise near the best so far, and now and then anywhere.",
    ),
    Entry("ttgen", "lotts_search.strategies.ttgen:TTGen", "Try revised prompts in the early steps and keep the best."),
]
_VERIFIERS = [
    Entry(
        "shapes-reward",
        "lotts_search.shapes.verifier:ShapesReward",
        "Small learned verifier of shapes images: the share of objects that match the prompt.",
    ),
    Entry(
        "shapes-reward-x0",
        "lotts_search.shapes.verifier:ShapesRewardX0",
        "shapes-reward trained on x0 predictions, for strategies that score unfinished images.",
    ),
    Entry(
        "image-reward",
        "lotts_search.verifiers.image_reward:ImageReward",
        "Learned human preference: BLIP trained on rankings by experts.",
    ),
    Entry("hpsv2", "lotts_search.verifiers.hpsv2:HPSv2", "Learned human preference: CLIP ViT-H trained on HPD v2."),
    Entry(
        "pickscore",
        "lotts_search.verifiers.pickscore:PickScore",
        "Learned human preference: CLIP ViT-H trained on choices of users.",
    ),
    Entry(
        "clip-score",
        "lotts_search.verifiers.clip_score:ClipScore",
        "How well an image matches its prompt, by CLIP ViT-L.",
    ),
    Entry(
        "aesthetic",
        "lotts_search.verifiers.aesthetic:Aesthetic",
        "Predicted aesthetic rating, 1 to 10, whatever the prompt (LAION).",
    ),
    Entry(
        "brisque",
        "lotts_search.verifiers.brisque:Brisque",
        "How natural an image looks, by the statistics of its pixels, whatever the prompt; needs no network.",
    ),
    Entry(
        "ocr",
        "lotts_search.verifiers.ocr:Ocr",
        "How well the text that the prompt quotes can be read in the image, by character recognition on the CPU.",
    ),
    Entry(
        "vlm-judge",
        "lotts_search.verifiers.vlm_judge:VlmJudge",
        "A vision-language model behind an OpenAI-compatible endpoint rates images by a rubric, or by VQAScore.",
    ),
    Entry(
        "http", "lotts_search.verifiers.http:HttpVerifier", "Scores of any server that speaks a small JSON protocol."
    ),
    Entry(
        "geneval",
        "lotts_search.geneval.verifier:GenEval",
        "Whether an image shows what a prompt of GenEval's tasks asks for, by a detector and CLIP.",
    ),
    Entry("weighted", "lotts_search.combinations.weighted:Weighted", "Weighted sum of the scores of other verifiers."),
    Entry(
        "rank-ensemble",
        "lotts_search.combinations.rank_ensemble:RankEnsemble",
        "Mean percentile of other verifiers' scores among the images of an earlier study.",
    ),
    Entry("noisy", "lotts_search.combinations.noisy:Noisy", "Another verifier's score with Gaussian noise."),
    Entry(
        "image-reward-package",
        "lotts_search.verifiers.image_reward_package:ImageRewardPackage",
        "ImageReward by its own package, in an environment of its own.",
    ),
    Entry(
        "musiq",
        "lotts_search.verifiers.musiq:Musiq",
        "How people would rate an image's quality, whatever the prompt; in an environment of its own, noncommercial.",
    ),
    Entry(
        "hpsv2-package",
        "lotts_search.verifiers.hpsv2_package:HPSv2Package",
        "HPSv2 by its own package, in an environment of its own.",
    ),
]
_METRICS = [
    Entry(
        "shapes-oracle",
        "lotts_search.shapes.oracle_metric:ShapesOracle",
        "Judges shapes images by rendering rules: quality 0..1, and whether an image is perfect.",
    ),
]
_REWRITERS = [
    Entry(
        "shapes-rewriter",
        "lotts_search.shapes.rewriter:ShapesRewriter",
        "Emphasizes the objects that shapes-reward scores lowest in a shapes image.",
    ),
    Entry(
        "chat",
        "lotts_search.rewriters.chat:ChatRewriter",
        "A vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, LocalAI).",
    ),
    Entry(
        "transformers",
        "lotts_search.rewriters.local:TransformersRewriter",
        "A vision-language model of the transformers library, on this machine.",
    ),
]
_FAMILIES = [
    Entry("StableDiffusionPipeline", "lotts_search.backbones.stable_diffusion:StableDiffusion", "1.x and 2.x."),
    Entry("StableDiffusionXLPipeline", "lotts_search.backbones.sdxl:StableDiffusionXL", "SDXL."),
    Entry("StableDiffusion3Pipeline", "lotts_search.backbones.sd3:StableDiffusion3", "3 and 3.5."),
    Entry("FluxPipeline", "lotts_search.backbones.flux:Flux", "FLUX.1."),
]
"""Classes that load a model folder, by the ``_class_name`` in its ``model_index.json``."""


def models() -> dict[str, Entry]:
    """Return the registered models; any diffusers folder or Hub id of a known family works as well."""
    return {entry.name: entry for entry in _MODELS}


def strategies() -> dict[str, Entry]:
    """Return the registered strategies, including those of other packages."""
    return with_plugins("lotts_search.strategies", _STRATEGIES)


def own_strategies() -> list[str]:
    """Return the names of this package's strategies."""
    return [entry.name for entry in _STRATEGIES]


def verifiers() -> dict[str, Entry]:
    """Return the registered verifiers, including those of other packages."""
    return with_plugins("lotts_search.verifiers", _VERIFIERS)


def metrics() -> dict[str, Entry]:
    """Return the registered metrics that are not verifiers, including those of other packages."""
    return with_plugins("lotts_search.metrics", _METRICS)


def rewriters() -> dict[str, Entry]:
    """Return the registered rewriters of prompts, including those of other packages."""
    return with_plugins("lotts_search.rewriters", _REWRITERS)


def families() -> dict[str, Entry]:
    """Return the classes that load a model folder, by the ``_class_name`` in its ``model_index.json``, including those
    of other packages. Each is a :class:`~lotts_search.backbones.base.Backbone` with ``from_pretrained``."""
    return with_plugins("lotts_search.families", _FAMILIES)


def resolve_strategy(name: str) -> type[Strategy]:
    """Return the class of a registered name or of ``package.module:Class``.

    Raises:
        BadInput: the name is unknown, the class cannot be imported, or it is not a strategy.
    """
    found = resolve("strategy", name, strategies())
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise BadInput(f"{name} is not a strategy: it must be a subclass of lotts_search.core.strategy.Strategy")
    refuse_lacking(found, "strategy", "run(search)", "plan(budget, costs)")
    bare = [field for field, hint in inspect.get_annotations(found).items() if "ClassVar" not in str(hint)]
    if bare and "__dataclass_fields__" not in vars(found):
        raise BadInput(f"{name} has no settings {', '.join(bare)}: put @dataclass above its class")
    return found


def make_strategy(name: str, settings: Mapping[str, object]) -> Strategy:
    """Return a strategy.

    Args:
        name: registered name or ``package.module:Class``.
        settings: values, or texts to parse, by field.

    Raises:
        BadInput: an unknown name or setting, or a value of the wrong type.
    """
    return build(resolve_strategy(name), settings, f"strategy {name!r}")


def describe_strategy(name: str) -> StrategyInfo:
    """Describe a strategy."""
    found = resolve_strategy(name)
    doc = (found.__doc__ or "").strip()
    return StrategyInfo(name, doc.partition("\n")[0], doc, describe(found), found.source, found.formula)


def name_of(strategy: Strategy) -> str:
    """Return the registered name of a strategy's class, or ``package.module:Class``."""
    cls = type(strategy)
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((entry.name for entry in strategies().values() if entry.target == path), path)


def load_verifier(text: str) -> Verifier:
    """Return a verifier, created by the class method ``load`` of its class: here, or in a process of the environment that
    the class names.

    Args:
        text: registered name or ``package.module:Class``, with settings as ``NAME:KEY=VALUE,KEY=VALUE``, see
            :class:`~lotts_search.verifiers.spec.VerifierSpec`.

    Raises:
        BadInput: an unknown name or setting, or what it names is not a verifier.
        Failure: the verifier cannot be loaded.
    """
    settings = check_verifier(text)
    found = verifier_class(text)
    try:
        verifier: Verifier
        if getattr(found, "environment", None):
            verifier = load_hosted(found, settings, VerifierSpec.parse(text).name)
        else:
            verifier = found.load(**settings)
    except LottsError:
        raise
    except Exception as error:
        raise Failure(f"verifier {text!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(getattr(verifier, "score", None)):
        raise BadInput(f"{text} is not a verifier: its load() returned no object with a method score(prompts, images)")
    return verifier


def check_verifier(text: str) -> dict[str, Any]:
    """Check a verifier's name and settings without loading it, and return the settings as arguments of its ``load``.

    Raises:
        BadInput: an unknown name or setting, or what it names is not a verifier.
    """
    spec = VerifierSpec.parse(text)
    return arguments(_loadable(text).load, spec.settings, f"verifier {spec.name!r}")


def _loadable(text: str) -> Any:
    """Return the class of a verifier; raise BadInput where it is held out or has no ``load``."""
    name = VerifierSpec.parse(text).name
    if name not in verifiers() and metric_class(name) is not None:
        raise BadInput(f"{name} is held out: it may be a metric of a study, never the verifier of a search")
    found = verifier_class(text)
    if not inspect.ismethod(getattr(found, "load", None)):
        raise BadInput(
            f"{name} is not a verifier: it must be a class with a class method load() that returns one"
            f"{misnamed(found, 'load')}"
        )
    if not callable(getattr(found, "score", None)) and (meant := misnamed(found, "score")):
        raise BadInput(f"{name} is not a verifier: it lacks the method score(prompts, images){meant}")
    return found


def verifier_class(text: str) -> Any:
    """Return the class of a verifier, named as in :func:`load_verifier`."""
    return resolve("verifier", VerifierSpec.parse(text).name, verifiers())


def verifier_target(text: str) -> str:
    """Return ``package.module:Class`` of a verifier, named as in :func:`load_verifier`, without importing it.

    Raises:
        BadInput: the name is unknown.
    """
    return target_of("verifier", VerifierSpec.parse(text).name, verifiers())


def verifier_parts(text: str) -> list[str]:
    """Return a verifier and the verifiers that it combines by its setting ``of``, without loading any."""
    return [text, *(part for name in VerifierSpec.parse(text).parts for part in verifier_parts(name))]


def default_verifier(model: str, revision: str | None = None) -> str:
    """Return the verifier that the ``lotts.json`` of a model names, for a search that names none; reads no weights.

    The file may come from a stranger with the model. So it names registered verifiers only and no addresses: it starts no
    code of the model, and sends no image and no key anywhere.

    Args:
        model: registered name, folder or Hub id; relative paths in the ``lotts.json`` of a folder start from it.

    Raises:
        BadInput: it names none, or one that is wrong or not allowed; or the model does not exist.
        Failure: its files are missing or broken.
    """
    folder, named = _named_by(model, "verifier", verifiers(), revision)
    try:
        spec = VerifierSpec.of(named)
        text = str(spec.within(Path(folder)) if Path(folder).is_dir() else spec)
        for part in map(VerifierSpec.parse, verifier_parts(text)):
            if part.name not in verifiers():
                raise unknown("verifier", part.name, verifiers())
            check_verifier(str(part))
            for name, value in part.settings.items():
                if "://" in str(value) and name != "of":
                    raise BadInput(f"{name} is an address, which only commands and programs choose: {value!r}")
    except BadInput as error:
        raise BadInput(f"model {model}: verifier in its lotts.json: {error}") from error
    return text


def default_strategy(verifier: str) -> str:
    """Return the strategy of a search that names none.

    Args:
        verifier: what guides the search. ``adaptive-mosaic`` asks it for hundreds of scores, so a verifier that is ``remote``,
            or has a part that is, guides ``adaptive-lotts``, which asks for one per image.
    """
    try:
        remote = any(getattr(verifier_class(part), "remote", False) for part in verifier_parts(verifier))
    except BadInput:  # an object that a pool has under a name of its own
        remote = False
    return "adaptive-lotts" if remote else "adaptive-mosaic"


def default_rewriter(model: str, revision: str | None = None) -> str:
    """Return the rewriter that the ``lotts.json`` of a model names, for a search that needs one and names none: a registered
    name. Arguments and errors are those of :func:`default_verifier`.
    """
    _, named = _named_by(model, "rewriter", rewriters(), revision)
    if not isinstance(named, str) or named not in rewriters():
        raise BadInput(f"model {model}: rewriter in its lotts.json: {unknown('rewriter', str(named), rewriters())}")
    return named


def _named_by(model: str, kind: str, known: Mapping[str, Entry], revision: str | None) -> tuple[str, Any]:
    """Return the folder or Hub id of a model, and what its ``lotts.json`` names as its verifier or rewriter."""
    folder, _ = _index_of(model, revision)
    from lotts_search.backbones.model_folder import read_json  # slow to import

    named = read_json(folder, "lotts.json", optional=True, revision=revision).get(kind)
    if named is None:
        made_for_others = ("lotts_search.shapes.", "lotts_search.combinations.")
        fit = [name for name, entry in known.items() if not entry.target.startswith(made_for_others)]
        raise BadInput(
            f"model {model} names no {kind} of its own: choose one with --{kind} NAME, in Python {kind}=…, in a study "
            f"{kind}: NAME. For any images: {', '.join(fit)}; `lotts-search {kind}s` describes them"
        )
    return folder, named


def verifier_contents(text: str) -> str:
    """Return the fingerprint of a verifier: its code and the files of the model that it loads.

    A verifier that was passed as an object under a name of its own is :data:`~lotts_search.fingerprint.UNCHECKED`.
    """
    try:
        spec = VerifierSpec.parse(text)
        code = fingerprint.of_named(verifier_target(text))
        found = verifier_class(text)
        load = getattr(found, "load", None)
        settings = {setting.name: setting.default for setting in describe_arguments(load)} if load else {}
    except BadInput:
        return fingerprint.UNCHECKED
    settings |= spec.settings
    hashes = [code, *(fingerprint.of_model(str(settings[name])) for name in SOURCES if settings.get(name))]
    if recipe := recipe_of(found):
        hashes.append(recipe.hash)
    hashes += [verifier_contents(part) for part in spec.parts]
    if fingerprint.UNCHECKED in hashes:
        return fingerprint.UNCHECKED
    return code if len(hashes) == 1 else fingerprint.combined(hashes)


def describe_verifier(name: str) -> StrategyInfo:
    """Describe a verifier: a registered name or ``package.module:Class``."""
    found = _loadable(name)
    return _described(name, found, describe_arguments(found.load))


def metric_class(name: str) -> type[Metric] | None:
    """Return the metric of a registered name or of ``package.module:Class``; None where the name is a verifier's.

    Raises:
        BadInput: a registered metric cannot be imported, or is not a metric.
    """
    known = metrics()
    try:
        found = resolve("metric", name, known)
    except BadInput:
        if name in known:
            raise
        return None  # a verifier, whose requirements may be installed for its actor only
    if isinstance(found, type) and issubclass(found, Metric):
        refuse_lacking(found, "metric", "judge(images, prompt)")
        return found
    if name in known:
        raise BadInput(f"{name} is not a metric: it must be a subclass of lotts_search.verifiers.metric.Metric")
    return None


def check_judging(text: str, prompts: Sequence[str], models: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> None:
    """Refuse prompts and image sizes that a verifier, one that it combines, or a metric cannot judge, by the class methods
    ``check(prompt)`` and ``check_size(height, width)`` that it may have; ``check`` also gets the settings that are its
    arguments.

    Args:
        models: name and load options of each model, whose image size may be known before it is loaded.

    Raises:
        BadInput: it cannot judge one of them.
    """
    try:
        specs = [VerifierSpec.parse(part) for part in verifier_parts(text)]
    except BadInput:
        return  # an object of a pool
    for spec in specs:
        try:
            found: Any = metric_class(spec.name) or verifier_class(spec.name)
        except BadInput:
            continue  # an object of a pool, or of a package that only its actor has
        try:
            if hasattr(found, "check_size"):
                for size in filter(None, (model_image_size(*model) for model in models)):
                    found.check_size(*size)
            if hasattr(found, "check"):
                wanted = inspect.signature(found.check).parameters
                given = arguments(found.load, spec.settings, spec.name) if spec.settings else {}
                for prompt in prompts:
                    found.check(prompt, **{name: value for name, value in given.items() if name in wanted})
        except ValueError as error:
            raise BadInput(str(error)) from error


def model_image_size(model: str, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width in pixels of a model's images as its folder tells before it is loaded; None where it does not.

    Args:
        options: load options; their ``size`` precedes.
    """
    if size := options.get("size"):
        return size[0], size[1]
    revision = options.get("revision")
    with suppress(LottsError):  # raised when the model is loaded
        folder, family = find_model(model, revision)
        from lotts_search.backbones.model_folder import read_json  # slow to import

        return image_size(family, lambda file: read_json(folder, file, optional=True, revision=revision))
    return None


def load_rewriter(name: str, settings: Mapping[str, object] | None = None) -> PromptRewriter:
    """Return the rewriter (a dataclass) of a registered name or of ``package.module:Class``.

    Args:
        settings: values, or texts to parse, by field.

    Raises:
        BadInput: an unknown name or setting, or a value of the wrong type.
    """
    made: PromptRewriter = build(_rewriter_class(name), settings or {}, f"rewriter {name!r}")
    check_rewriter(made)
    return made


def describe_rewriter(name: str) -> StrategyInfo:
    """Describe a rewriter."""
    found = _rewriter_class(name)
    return _described(name, found, describe(found))


def describe_mask(name: str) -> StrategyInfo:
    """Describe a mask source: a registered name or ``package.module:Class``."""
    found = mask_kind(name)
    return replace(
        _described(name, found, describe(found)),
        source=f"{found.__module__}:{found.__qualname__}, method {found.method}",
        formula=f"{found().rows()} network rows with the default settings",
    )


def _described(name: str, found: type[Any], settings: list[Setting]) -> StrategyInfo:
    doc = inspect.cleandoc(found.__doc__ or "").partition("\n\nAttributes:")[0]
    return StrategyInfo(name, doc.partition("\n")[0], doc, settings)


def _rewriter_class(name: str) -> Any:
    found = resolve("rewriter", name, rewriters())
    if not (isinstance(found, type) and is_dataclass(found) and callable(getattr(found, "rewrite", None))):
        raise BadInput(
            f"{name} is not a rewriter: it must be a dataclass with a method rewrite(requests){misnamed(found, 'rewrite')}"
        )
    return found


def find_model(name: str, revision: str | None = None) -> tuple[str, str]:
    """Return the folder or Hub id of a model, and the name of its family; imports no torch, and reads only the model's
    ``model_index.json``.

    Raises:
        BadInput: the model does not exist, or its family is unknown.
        Failure: its files are missing or broken.
    """
    folder, index = _index_of(name, revision)
    family = pipeline_of(name, index)
    loaders = families()
    if family not in loaders:
        raise BadInput(f"model {name} is of the unknown family {family!r}. Known: {', '.join(sorted(loaders))}")
    return folder, family


def check_model(name: str) -> None:
    """Raise BadInput where there can be no such model: it is neither known nor a folder nor a Hub id."""
    if name in models():
        return
    if Path(name).is_file():
        raise refuse_file(Path(name))
    if not name or (not Path(name).is_dir() and "/" not in name):
        raise unknown("model", name, models())


def _index_of(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return the folder or Hub id of a model, and its ``model_index.json``; raise as :func:`find_model` does."""
    known = models()
    folder = name
    if name in known:
        folder = known[name].target
        if not Path(folder).is_dir():
            raise Failure(f"the weights of {name} are missing: there is no folder {folder}")
    check_model(name)
    if revision is not None and Path(folder).is_dir():
        raise BadInput(
            f"revision {revision!r} would not be used: {name} is a folder, and only models of the Hub have some"
        )
    from lotts_search.backbones.model_folder import read_json  # slow to import; report a mistyped name first

    return folder, read_json(folder, "model_index.json", revision=revision)


def family_of(name: str, revision: str | None = None) -> tuple[str, Any]:
    """Return the folder or Hub id of a model and the class that loads it; raise as :func:`find_model` does."""
    folder, family = find_model(name, revision)
    return folder, resolve("family", family, families())


def load_backbone(name: str, **options: Any) -> Backbone:
    """Load a model by registered name, diffusers folder or Hub id.

    Args:
        options: passed to the family's ``from_pretrained``: the fields of
            :class:`~lotts_search.backbones.load_options.LoadOptions`, e.g. ``device``, ``dtype``, ``size``, ``lora``.

    Raises:
        BadInput: the model does not exist, or its family is unknown.
        Failure: its files are missing or broken.
    """
    folder, family = family_of(name, options.get("revision"))
    backbone: Backbone = family.from_pretrained(folder, name=name, **options)
    backbone.info = replace(backbone.info, loaded=loaded(options))
    return backbone


def loaded(options: Mapping[str, Any]) -> str:
    """Return the load options that affect the images of a model, as JSON, see
    :class:`~lotts_search.work.model.ModelInfo`."""
    given = {key: value for key, value in options.items() if key not in PLACEMENT and value is not None}
    return json.dumps(given, sort_keys=True, default=str)
