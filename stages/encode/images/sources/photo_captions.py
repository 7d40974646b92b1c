"""Captions written for the photographs that come along."""

PHOTO_CAPTIONS = {
    "astronaut": (
        "a portrait of an astronaut in an orange space suit",
        "a smiling woman in front of a flag and a space shuttle",
        "an astronaut of NASA poses for her portrait",
        "a woman in an orange flight suit with a white collar",
        "the face of a smiling astronaut",
    ),
    "brick": (
        "a brick wall",
        "rows of bricks with mortar between them",
        "a wall that was built of bricks",
        "the texture of masonry in black and white",
        "grey bricks seen from close by",
    ),
    "camera": (
        "a man with a camera on a tripod",
        "a photographer in a dark coat looks through his camera",
        "a cameraman stands on a lawn",
        "black and white photograph of a man who films",
        "someone takes a picture with a camera on three legs",
    ),
    "chelsea": (
        "a tabby cat",
        "the face of a cat with whiskers",
        "a kitten looks at something beside the camera",
        "close portrait of a ginger striped cat",
        "a pet with pointed ears and green eyes",
    ),
    "clock_motion": (
        "a clock that is blurred by motion",
        "the dial of a round wall clock",
        "a blurred photograph of a clock with black hands",
        "a clock shows the time",
        "numbers and hands on a white clock face",
    ),
    "coffee": (
        "a cup of coffee on a saucer",
        "espresso in a white cup with a spoon beside it",
        "a hot drink on a wooden table",
        "coffee seen from above in a porcelain cup",
        "a small cup of black coffee",
    ),
    "coins": (
        "old coins in rows",
        "a collection of Greek coins",
        "many round coins on a dark background",
        "ancient money from Pompeii",
        "pieces of metal money side by side",
    ),
    "ihc": (
        "stained cells under a microscope",
        "tissue with brown and blue stains",
        "a slide of human tissue, seen by a microscope",
        "histology of glands in brown and pale blue",
        "a medical picture of many cells",
    ),
    "retina": (
        "the retina of an eye",
        "blood vessels on the back of an eye",
        "an orange picture of the inside of an eye",
        "a fundus photograph with a bright disc",
        "a medical photograph of an eye's red vessels",
    ),
    "rocket": (
        "a rocket on the launch pad",
        "a rocket takes off at night",
        "flames and smoke under a rocket that is launched",
        "a spacecraft lifts off between two towers",
        "the launch of a rocket into space",
    ),
}
