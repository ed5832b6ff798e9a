"""What one fake server is like."""

import dataclasses
import ipaddress

from clients.errors import SettingsError
from clients.fake_vllm.batching import StepModel


@dataclasses.dataclass(frozen=True, slots=True)
class Outage:
    """Replica `replica` is dead for `seconds`, from `start_s` seconds after the first chat request on."""

    replica: int
    start_s: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Everything about a server but its faults and answers.

    Attributes:
        steps: How long a decode step takes.
        host: The first address, in 127.0.0.0/8.
        port: 0 takes a free one.
        model: Served name.
        max_model_len: Most tokens of prompt and answer together.
        api_key: None asks for none.
        seed: For the choice of a replica for each connection.
        replicas: How many engines.
        own_addresses: Whether each replica has an address of its own, not a share of one.
        slots: Most running requests of a replica.
        prefill_s: Seconds for which each start holds up its replica.
        instant: Answer at once, without an engine.
        max_queued: A request that would make more than this wait in a replica gets 503; None for no such limit.
        gateway_queue: The same for all queues together, with 429 and Retry-After; None for no such limit.
        retry_after_s: What that 429 says.
        keep_alive_s: An idle connection is closed after so many seconds.
        closed_s: The port is not open for so long after the start.
        not_ready_s: `/health` and chat say 503 for so long after the start.
        metrics: Whether there is `/metrics`.
        anonymous: Whether `/metrics` leaves out what tells one process from another.
        outages: Which replica dies when.
    """

    steps: StepModel
    host: str = "127.0.0.1"
    port: int = 0
    model: str = "fake"
    max_model_len: int = 131_072
    api_key: str | None = None
    seed: int = 0
    replicas: int = 1
    own_addresses: bool = False
    slots: int = 256
    prefill_s: float = 0.0
    instant: bool = False
    max_queued: int | None = None
    gateway_queue: int | None = None
    retry_after_s: float = 1.0
    keep_alive_s: float = 5.0
    closed_s: float = 0.0
    not_ready_s: float = 0.0
    metrics: bool = True
    anonymous: bool = False
    outages: tuple[Outage, ...] = ()

    def __post_init__(self) -> None:
        try:
            address = ipaddress.IPv4Address(self.host)
        except ValueError:
            raise SettingsError(f"--host {self.host!r}: expected an address such as 127.0.0.1") from None
        if not address.is_loopback or not (address + self.replicas).is_loopback:
            raise SettingsError(f"--host {self.host}: this server is for this machine only; give one in 127.0.0.0/8")
        if self.slots < 1 or self.replicas < 1:
            raise SettingsError("--slots and the number of replicas have to be at least 1")
        if self.steps.base_s <= 0 or self.steps.per_running_s < 0 or self.prefill_s < 0:
            raise SettingsError("--step-base-ms has to be above 0, the other times of the simulation not below")
        for outage in self.outages:
            if not 0 <= outage.replica < self.replicas:
                raise SettingsError(f"--outage: there is no replica {outage.replica}; they count from 0")

    @property
    def addresses(self) -> list[str]:
        """The addresses that are listened on."""
        first = ipaddress.IPv4Address(self.host)
        return [str(first + number) for number in range(self.replicas if self.own_addresses else 1)]


def parse_outage(text: str) -> Outage:
    """Read `REPLICA:START:SECONDS`.

    Raises:
        SettingsError: anything else.
    """
    try:
        replica, start, seconds = text.split(":")
        return Outage(int(replica), float(start), float(seconds))
    except ValueError:
        raise SettingsError(f"--outage {text!r}: expected REPLICA:START:SECONDS, such as 0:2.5:1") from None
