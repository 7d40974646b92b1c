"""What the configuration alone says of columns: their names, and what of it decides their bytes."""

from cache.captions import CAPTIONS
from cache.layout import FEATURES, FLIPPED, PIXELS
from cache.recipe import RecipeValue
from stages.encode.build_settings import EncodeSettings
from stages.encode.images.crop import CROPS
from stages.encode.network_settings import LatentsSettings, TextSettings
from stages.encode.networks.registry import EncoderError

# Of what makes a column: a version is raised whenever the same settings give other bytes than
# before. That of the crop, which every column is made from, is called `recipe_version` in recipes.
CROP_VERSION = 2
AUTOENCODER_VERSION = 1
ENCODER_VERSION = 1
COMPONENTS_VERSION = 1
TEXT_VERSION = 1

MIRRORED: dict[str, RecipeValue] = {"view": "mirrored"}


def declared_recipes(settings: EncodeSettings) -> dict[str, dict[str, RecipeValue]]:
    """What the configuration alone says of every column's recipe, without loading a network."""
    image = _image_recipe(settings)
    recipes = {name: image | own for name, own in _latents_recipe(settings.latents).items()}
    for name, encoder in settings.encoders.items():
        spec = _encoder_recipe(settings, name)
        own: dict[str, RecipeValue] = {
            "encoder_version": ENCODER_VERSION,
            "storage": encoder.storage,
            "compute": encoder.precision,
        }
        recipes[features_column(name)] = image | spec | own
    if settings.dataset.flip:
        recipes |= {name + FLIPPED: recipe | MIRRORED for name, recipe in recipes.items()}
    if settings.stores_pixels:
        recipes[PIXELS] = pixels_recipe(settings)
    for name, text in settings.texts.items():
        recipes[text_column(name)] = _text_recipe(text)
    for name, components in settings.components.items():
        for view in ("", FLIPPED) if settings.dataset.flip else ("",):
            source: dict[str, RecipeValue] = {"source": features_column(components.encoder) + view}
            source |= {"components_version": COMPONENTS_VERSION, "storage": "float16"}
            recipes[features_column(name) + view] = source | components.recipe
    return recipes


def _latents_recipe(latents: LatentsSettings) -> dict[str, dict[str, RecipeValue]]:
    """What the configuration says of latents, by the name of their column, if there are any."""
    if latents.is_pixels:
        return {}
    origin: dict[str, RecipeValue] = {"imported": True}
    if not latents.imported:
        origin = {"autoencoder_version": AUTOENCODER_VERSION, "compute": latents.precision}
    return {latents.column: {"storage": "float16", **origin}}


def _text_recipe(text: TextSettings) -> dict[str, RecipeValue]:
    """What the configuration says of the tokens of captions."""
    origin: dict[str, RecipeValue] = {"imported": True}
    if not text.imported:
        origin = {
            "text_version": TEXT_VERSION,
            "compute": text.precision,
            "layer": text.layer,
            "cleaning": text.cleaning,
        }
    return {"storage": text.storage} | origin


def _encoder_recipe(settings: EncodeSettings, encoder: str) -> dict[str, RecipeValue]:
    """What the registry says of an encoder, or its library, as far as that is to be had here."""
    try:
        return settings.spec(encoder).recipe(settings.input_size(encoder))
    except EncoderError:
        return {"library": settings.encoders[encoder].library}


def pixels_recipe(settings: EncodeSettings) -> dict[str, RecipeValue]:
    """The recipe of the crops themselves."""
    return {**_image_recipe(settings), "storage": "uint8"}


def _image_recipe(settings: EncodeSettings) -> dict[str, RecipeValue]:
    """What every column's recipe says of the crops."""
    return {
        "recipe_version": CROP_VERSION,
        "resolution": settings.dataset.resolution,
        "crop": CROPS[settings.dataset.crop].recipe,
    }


def text_column(name: str) -> str:
    """The name of a text encoder's column, as seen from the cache of images."""
    return f"{CAPTIONS}/{FEATURES}{name}"


def features_column(encoder: str) -> str:
    """The name of the column that holds an encoder's tokens."""
    return FEATURES + encoder
