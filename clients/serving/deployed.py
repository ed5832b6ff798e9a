"""What a deployment hands on to whoever waits for it."""

import dataclasses
import json
from typing import Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployed:
    """A service that a run uses.

    Attributes:
        name: Of the InferenceService.
        namespace: Where it is.
        uid: Which one it is: a successor of the same name is another.
        run: The run that holds it.
        model: Name under which it serves the model.
        replicas: Replicas that must serve.
        gpus: GPUs of all replicas together.
        created: Whether this run made it.
        at: When it was deployed, in seconds since 1970; a wait for it that starts again ends no later for that. 0 lets
            a wait count from its own start.
    """

    name: str
    namespace: str
    uid: str
    run: str
    model: str
    replicas: int
    gpus: int
    created: bool
    at: float = dataclasses.field(default=0.0, compare=False)

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))
