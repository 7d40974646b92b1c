"""Loss terms: each file has the settings of one kind, and what it computes."""

from typing import Annotated

from pydantic import SerializeAsAny

from stages.setting_types import Registered
from stages.train.terms.contrastive import Contrastive
from stages.train.terms.direction import Direction
from stages.train.terms.dispersive import Dispersive
from stages.train.terms.irepa import IRepa
from stages.train.terms.joint import ClassToken
from stages.train.terms.nt_xent import NTXent
from stages.train.terms.pixel_repa import PixelRepa
from stages.train.terms.redi import Redi
from stages.train.terms.repa import Repa
from stages.train.terms.sra import SelfAlignment
from stages.train.terms.term import Term
from stages.train.terms.token_similarity import TokenSimilarity

# The kinds that an entry of `[[train.align]]` takes.
TERMS: dict[str, type[Term]] = {
    "repa": Repa,
    "irepa": IRepa,
    "nt-xent": NTXent,
    "token-similarity": TokenSimilarity,
    "class-token": ClassToken,
    "direction": Direction,
    "redi": Redi,
    "pixel-repa": PixelRepa,
    "contrastive": Contrastive,
    "dispersive": Dispersive,
    "sra": SelfAlignment,
}
# One of them, by its kind.
AnyTerm = Annotated[SerializeAsAny[Term], Registered("kind", TERMS)]
