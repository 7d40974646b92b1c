"""Whose code a file of weights is of, which decides its names and its direction of time."""

from stages.model.transformer_config import TransformerConfig
from stages.weights.export_options import Layout
from stages.weights.model_shape import shape_in
from stages.weights.published import CLASS_TOKENS, PROJECTOR, PROJECTORS, Found, WeightsError


def layout_of(found: Found, stated: Layout | None, config: TransformerConfig) -> Layout:
    """Whose code weights are of, as far as they and the model that they are for tell.

    stated: what the user says. Raises WeightsError if that contradicts the weights, and if nothing
    tells: files of SiT and of REPA differ in their direction of time, but not in their names.
    """
    possible, evidence = possible_layouts(found, config)
    others = " or ".join(f"'{layout}'" for layout in possible[1:])
    if stated is None and others and possible[0] is Layout.REPA:
        raise WeightsError(
            f"{found.path} does not tell whose code its weights are of: {evidence}",
            remedy=(
                f"Say '{Layout.REPA}' (time 0 is data) or {others} (time 0 is noise): "
                "train.init_layout, or --layout of `repa-cache sample --official`."
            ),
        )
    if stated is not None and stated not in possible:
        fitting = " or ".join(f"'{layout}'" for layout in possible)
        raise WeightsError(
            f"{found.path} is not of the layout '{stated}': {evidence}",
            remedy=(
                f"Expected {fitting} (train.init_layout, or --layout of `repa-cache sample "
                "--official`)."
            ),
        )
    return stated or possible[0]


def possible_layouts(found: Found, config: TransformerConfig) -> tuple[tuple[Layout, ...], str]:
    """The layouts that weights may have, and what tells so."""
    if config.context_features:
        return (Layout.REPA,), "it reads captions, as only REPA's MMDiT does"
    if shape_in(found).bottleneck:
        return (Layout.JIT,), "its patches go through few numbers, as only JiT's do"
    if config.learns_sigma:
        return (Layout.DIT,), "it is read as a DiT, as train.model says"
    if told := _told(found):
        layout, evidence = told
        return (layout,), evidence
    shape = shape_in(found)
    if shape.learns_sigma:
        doubled = "its output has twice the channels, as SiT's files have"
        # Earlier versions of this project wrote such files in their own direction of time.
        return (Layout.SIT, Layout.REPA), f"{doubled} (and DiT's, which need a DiT as train.model)"
    single = "it has neither projectors nor an output of twice the channels"
    if config.joint_channels:
        return (Layout.REPA, Layout.REDI), single
    if shape.has_only_layers_of_sit:
        return (Layout.REPA, Layout.SIT_NO_SIGMA, Layout.LIGHTNINGDIT), single
    return (Layout.REPA, Layout.LIGHTNINGDIT), f"{single}; some of its layers SiT has not"


def _told(found: Found) -> tuple[Layout, str] | None:
    """The only layout that weights may have by where they come from or by their names."""
    if found.model is not None:
        return Layout.REPA, "it is a checkpoint of this project, which has REPA's"
    if has_redi_names(found):
        return Layout.REDI, "its projector has no number, as in ReDi's files"
    if any(name.startswith(PROJECTORS) for name in found.state):
        return Layout.REPA, "it has projectors, as only REPA's files do"
    if CLASS_TOKENS in found.state:
        return Layout.REPA, "it has a class token, as only REG's files do, which are as REPA's"
    return None


def has_redi_names(found: Found) -> bool:
    """Whether weights have the projector of ReDi's code."""
    return any(name.startswith(PROJECTOR) for name in found.state)


def doubts_about(found: Found, layout: Layout, config: TransformerConfig) -> list[str]:
    """What speaks against the layout that the user states, though it is possible."""
    if layout is not Layout.REPA or Layout.SIT not in possible_layouts(found, config)[0]:
        return []
    return [
        "read with time 0 as data, as earlier versions of repa-cache wrote such files; those of "
        f"SiT's own code have the layout '{Layout.SIT}'"
    ]
